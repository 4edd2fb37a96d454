//! The control plane in memory of one test: real router, real SQLite in a temporary directory, a clock that
//! the test moves.

use axum::{
    Router,
    body::{Body, Bytes},
    http::{HeaderMap, Method, Request, StatusCode},
};
use secrecy::ExposeSecret;
use serde_json::Value;
use tempfile::TempDir;
use terrapool::{
    api::{iacp::RunSettings, job::EngineKind},
    clock::Clock,
    ids::{AccountId, ConfigurationVersionId, EnvironmentId, PoolId, WorkspaceId},
    server::{
        app::{App, Policy},
        domain::{
            environments,
            model::{ConfigurationStatus, ConfigurationVersion, Environment, Lock, Pool, Run, RunOptions, Workspace},
            runs::{self, NewRun},
            tokens::{self, NewToken},
            unit::Unit,
        },
        router::router,
        serve::{self, Config},
        store,
    },
};
use tower::ServiceExt;

/// The administrator's token in tests.
pub const ADMIN_TOKEN: &str = "tpu_test-administrator-token";

pub struct TestApp {
    pub app: App,
    pub router: Router,
    pub account: AccountId,
    pub data: TempDir,
}

/// An answer, read whole.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON; null when there is none.
    pub fn json(&self) -> Value {
        if self.body.is_empty() {
            return Value::Null;
        }
        serde_json::from_slice(&self.body).unwrap_or_else(|error| {
            panic!("{} answered no JSON ({error}): {}", self.status, String::from_utf8_lossy(&self.body))
        })
    }

    /// The answer, after checking its status.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{}", String::from_utf8_lossy(&self.body));
        self
    }
}

/// What a run needs: environment, pool, workspace linked to it, an uploaded configuration.
pub struct Fixture {
    pub environment: Environment,
    pub pool: Pool,
    pub workspace: Workspace,
    pub configuration: ConfigurationVersionId,
    /// The pool's token.
    pub pool_token: String,
}

impl TestApp {
    pub async fn new() -> Self {
        Self::with(Policy::default()).await
    }

    pub async fn with(policy: Policy) -> Self {
        // 2026-01-02T03:04:05Z
        Self::at(Clock::manual(1_767_323_045_000), policy).await
    }

    /// With that clock.
    pub async fn at(clock: Clock, policy: Policy) -> Self {
        let data = tempfile::tempdir().unwrap();
        let app = open(data.path(), policy, clock).await;
        let mut connection = app.store.read().await.unwrap();
        let admin = store::tokens::user_by_name(&mut connection, "admin").await.unwrap().unwrap();
        drop(connection);
        Self { router: router(app.clone()), app, account: admin.account_id, data }
    }

    /// Another server on the same data, as after a restart.
    pub async fn reopen(&mut self) {
        // Requests that are under way keep the old one alive; the end of a process would give its lock back.
        rustix::fs::flock(&self.app.lock, rustix::fs::FlockOperation::Unlock).unwrap();
        self.app.closing.cancel();
        self.app = open(self.data.path(), self.app.policy.clone(), self.app.clock.clone()).await;
        self.router = router(self.app.clone());
    }

    /// Moves the server's clock.
    pub fn advance(&self, seconds: i64) {
        self.app.clock.advance(seconds * 1000);
    }

    pub async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    /// A request of the administrator; `body` null sends none.
    pub async fn request(&self, method: Method, path: &str, body: &Value) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "terrapool.test")
            .header("authorization", format!("Bearer {ADMIN_TOKEN}"))
            .header("content-type", "application/vnd.api+json");
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        self.send(request.body(body).unwrap()).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.request(Method::GET, path, &Value::Null).await
    }

    /// An environment `prod` with a linked workspace `app`, a pool `pool` and an uploaded configuration.
    pub async fn fixture(&self) -> Fixture {
        let mut unit = Unit::begin(&self.app).await.unwrap();
        let now = unit.now;
        let environment = environments::create(&mut unit, &self.account, "prod", now).await.unwrap();
        let pool = Pool {
            id: PoolId::random(),
            account_id: self.account.clone(),
            environment_id: None,
            name: "pool".to_owned(),
            is_shared: true,
            environments: Vec::new(),
            external_id: None,
            run_settings: RunSettings::default(),
            created_at: now,
        };
        store::pools::insert(&mut unit, &pool).await.unwrap();
        let new = NewToken { name: None, description: None, expires_in: None, external_id: None };
        let (_, secret) = tokens::create_for_pool(&mut unit, &pool, new, now).await.unwrap();
        unit.commit().await.unwrap();
        let workspace = self.workspace(&environment.id, "app", Some(&pool.id)).await;
        let configuration = self.configuration(&workspace.id, false).await;
        Fixture { environment, pool, workspace, configuration, pool_token: secret.expose_secret().to_owned() }
    }

    pub async fn workspace(&self, environment: &EnvironmentId, name: &str, pool: Option<&PoolId>) -> Workspace {
        let mut unit = Unit::begin(&self.app).await.unwrap();
        let workspace = Workspace {
            id: WorkspaceId::random(),
            environment_id: environment.clone(),
            name: name.to_owned(),
            description: None,
            pool_id: pool.cloned(),
            remote: true,
            auto_apply: false,
            engine: EngineKind::Terraform,
            engine_version: "1.11.4".to_owned(),
            working_directory: String::new(),
            run_image: None,
            lock: Lock::Unlocked,
            current_run_id: None,
            current_state_id: None,
            created_at: unit.now,
            updated_at: unit.now,
        };
        store::workspaces::insert(&mut unit, &workspace).await.unwrap();
        unit.commit().await.unwrap();
        workspace
    }

    /// An uploaded configuration (its bytes are not there).
    pub async fn configuration(&self, workspace: &WorkspaceId, speculative: bool) -> ConfigurationVersionId {
        let mut unit = Unit::begin(&self.app).await.unwrap();
        let configuration = ConfigurationVersion {
            id: ConfigurationVersionId::random(),
            workspace_id: workspace.clone(),
            status: ConfigurationStatus::Uploaded,
            source: "tfe-api".to_owned(),
            speculative,
            provisional: false,
            auto_queue_runs: false,
            size_bytes: 0,
            error: None,
            error_message: None,
            created_at: unit.now,
        };
        store::configurations::insert(&mut unit, &configuration).await.unwrap();
        unit.commit().await.unwrap();
        configuration.id
    }

    pub async fn run(
        &self,
        workspace: &WorkspaceId,
        configuration: &ConfigurationVersionId,
        options: RunOptions,
    ) -> Run {
        let new = NewRun {
            workspace_id: workspace.clone(),
            configuration_version_id: Some(configuration.clone()),
            message: "test".to_owned(),
            source: "tfe-api".to_owned(),
            options,
            plan_only: None,
            engine_version: None,
            created_by: None,
        };
        runs::create(&self.app, new).await.unwrap()
    }

    /// The run as it is now.
    pub async fn reread(&self, run: &Run) -> Run {
        let mut connection = self.app.store.read().await.unwrap();
        runs::get(&mut connection, &run.id).await.unwrap()
    }

    /// The run's workspace as it is now.
    pub async fn reread_workspace_of(&self, run: &Run) -> Workspace {
        let mut connection = self.app.store.read().await.unwrap();
        store::workspaces::get(&mut connection, &run.workspace_id).await.unwrap().unwrap()
    }

    /// The workspace as it is now.
    pub async fn reread_workspace(&self, workspace: &Workspace) -> Workspace {
        let mut connection = self.app.store.read().await.unwrap();
        store::workspaces::get(&mut connection, &workspace.id).await.unwrap().unwrap()
    }
}

async fn open(data: &std::path::Path, policy: Policy, clock: Clock) -> App {
    let config = Config {
        data: data.to_owned(),
        database: None,
        public_url: None,
        admin_token: Some(ADMIN_TOKEN.into()),
        policy,
        trace: Default::default(),
    };
    serve::open(config, clock).await.unwrap()
}
