//! Runs: creating, reading, and what people do to them.

use std::convert::Infallible;

use axum::{
    Router,
    extract::{FromRequestParts, Path, State},
    http::{StatusCode, request::Parts},
    routing::{get, post},
};
use serde::Deserialize;

use super::{addresses::Addresses, views};
use crate::{
    api::job::RunVariable,
    ids::RunId,
    jsonapi::{Query, Resource, ToOne},
    server::{
        api::document::{Params, Payload, Reply, decode, id},
        app::App,
        auth::{BaseUrl, UserAuth},
        domain::{
            configurations,
            model::{Run, RunOptions},
            runs::{self, NewRun},
            stages, workspaces,
        },
        error::{Error, Result},
        store,
    },
};

/// The class in error texts.
const CLASS: &str = "Run";

pub(super) fn router() -> Router<App> {
    Router::new()
        .route("/runs", post(create))
        .route("/runs/{id}", get(read))
        .route("/runs/{id}/run-events", get(events))
        .route("/runs/{id}/actions/{action}", post(act))
        .route("/workspaces/{id}/runs", get(list))
}

/// Which program asks, as far as its headers tell.
pub(super) struct Caller {
    pub(super) source: &'static str,
    message: &'static str,
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let has = |name| parts.headers.contains_key(name);
        Ok(match (has("x-terraform-integration"), has("terraform-version")) {
            (true, _) => Self { source: "terraform+cloud", message: "Triggered via CLI" },
            (false, true) => Self { source: "terraform", message: "Triggered via CLI" },
            (false, false) => Self { source: "tfe-api", message: "Triggered via the API" },
        })
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct Attributes {
    auto_apply: Option<bool>,
    is_destroy: Option<bool>,
    refresh: Option<bool>,
    refresh_only: Option<bool>,
    save_plan: Option<bool>,
    plan_only: Option<bool>,
    allow_empty_apply: Option<bool>,
    allow_config_generation: Option<bool>,
    target_addrs: Option<Vec<String>>,
    replace_addrs: Option<Vec<String>>,
    variables: Option<Vec<RunVariable>>,
    message: Option<String>,
    terraform_version: Option<String>,
}

impl Attributes {
    fn into_new_run(self, caller: &Caller, user: &UserAuth, targets: Targets) -> NewRun {
        NewRun {
            workspace_id: targets.workspace,
            configuration_version_id: targets.configuration,
            message: self.message.filter(|text| !text.is_empty()).unwrap_or_else(|| caller.message.to_owned()),
            source: caller.source.to_owned(),
            options: RunOptions {
                auto_apply: self.auto_apply.unwrap_or_default(),
                is_destroy: self.is_destroy.unwrap_or_default(),
                refresh: self.refresh.unwrap_or(true),
                refresh_only: self.refresh_only.unwrap_or_default(),
                save_plan: self.save_plan.unwrap_or_default(),
                allow_empty_apply: self.allow_empty_apply.unwrap_or_default(),
                allow_config_generation: self.allow_config_generation.unwrap_or_default(),
                target_addrs: self.target_addrs.unwrap_or_default(),
                replace_addrs: self.replace_addrs.unwrap_or_default(),
                variables: self.variables.unwrap_or_default(),
            },
            plan_only: self.plan_only,
            engine_version: self.terraform_version.filter(|version| !version.is_empty()),
            created_by: Some(user.id.clone()),
        }
    }
}

/// What the relationships of a new run name.
struct Targets {
    workspace: crate::ids::WorkspaceId,
    configuration: Option<crate::ids::ConfigurationVersionId>,
}

/// Both are the caller's own, or look as if they were not there.
async fn targets(app: &App, user: &UserAuth, resource: &Resource) -> Result<Targets> {
    let mut connection = app.store.read().await?;
    let ToOne::To(workspace) = resource.related("workspace") else {
        return Err(Error::Relationship {
            name: "workspace",
            detail: "A run needs the relationship `workspace`.".to_owned(),
            missing: false,
        });
    };
    let missing = || Error::missing_relation("workspace", workspaces::CLASS, &workspace.id);
    let parsed = workspace.id.parse().map_err(|_| missing())?;
    workspaces::find(&mut connection, &user.account_id, &parsed).await.map_err(|_| missing())?;
    let configuration =
        match resource.related("configuration-version") {
            ToOne::To(configuration) => Some(configuration.id.parse().map_err(|_| {
                Error::missing_relation("configuration-version", configurations::CLASS, &configuration.id)
            })?),
            ToOne::Absent | ToOne::Null => None,
        };
    Ok(Targets { workspace: parsed, configuration })
}

async fn create(State(app): State<App>, user: UserAuth, caller: Caller, Payload(resource): Payload) -> Result<Reply> {
    let attributes: Attributes = decode(&resource)?;
    let targets = targets(&app, &user, &resource).await?;
    let run = runs::create(&app, attributes.into_new_run(&caller, &user, targets)).await?;
    Ok(Reply::one(views::run(&run, 0)).created())
}

async fn visible(app: &App, user: &UserAuth, text: &str) -> Result<Run> {
    let id: RunId = id(CLASS, text)?;
    let mut connection = app.store.read().await?;
    Ok(runs::get_visible(&mut connection, &user.account_id, &id).await?.0)
}

async fn read(
    State(app): State<App>,
    user: UserAuth,
    BaseUrl(base): BaseUrl,
    Path(text): Path<String>,
    Params(query): Params,
) -> Result<Reply> {
    let run = visible(&app, &user, &text).await?;
    let included = included(&app, &user, &base, &run, &query).await?;
    let workers = store::overview::workers(&mut *app.store.read().await?, &run.id).await?;
    Ok(Reply::one(views::worked_on(views::run(&run, 0), &run, &workers)).including(included))
}

/// What `include` asks for and we have; the rest is ignored.
async fn included(app: &App, user: &UserAuth, base: &str, run: &Run, query: &Query) -> Result<Vec<Resource>> {
    let mut connection = app.store.read().await?;
    let addresses = Addresses::new(app, base);
    let mut included = Vec::new();
    for path in query.includes() {
        included.push(match path {
            "workspace" => {
                views::workspace(&workspaces::find(&mut connection, &user.account_id, &run.workspace_id).await?)
            }
            "plan" => views::plan(&stages::get(&mut connection, run.plan_id.as_str()).await?, run, addresses),
            "apply" => views::apply(&stages::get(&mut connection, run.apply_id.as_str()).await?, addresses),
            "configuration_version" | "configuration-version" => {
                let id = &run.configuration_version_id;
                let found = configurations::find(&mut connection, &user.account_id, id).await?;
                views::configuration(&found, addresses)
            }
            _ => continue,
        });
    }
    Ok(included)
}

/// The CLI insists on this list; it prints events of kinds that we do not have.
async fn events(State(app): State<App>, user: UserAuth, Path(text): Path<String>) -> Result<Reply> {
    visible(&app, &user, &text).await?;
    Ok(Reply::whole_list(Vec::new()))
}

async fn act(
    State(app): State<App>,
    user: UserAuth,
    Path((text, action)): Path<(String, String)>,
) -> Result<StatusCode> {
    let run = visible(&app, &user, &text).await?;
    match action.as_str() {
        "apply" => runs::confirm(&app, &run.id).await?,
        "discard" => runs::discard(&app, &run.id).await?,
        "cancel" => runs::cancel(&app, &run.id).await?,
        "force-cancel" => runs::force_cancel(&app, &run.id).await?,
        _ => return Err(Error::NoSuch(format!("Runs have no action `{action}`."))),
    }
    Ok(StatusCode::ACCEPTED)
}

async fn list(
    State(app): State<App>,
    user: UserAuth,
    Path(text): Path<String>,
    Params(query): Params,
) -> Result<Reply> {
    let mut connection = app.store.read().await?;
    let workspace = workspaces::find(&mut connection, &user.account_id, &id(workspaces::CLASS, &text)?).await?;
    let page = query.page();
    let (runs, total) = runs::list(&mut connection, &workspace.workspace.id, page).await?;
    Ok(Reply::list(runs.iter().map(|run| views::run(run, 0)).collect(), page.meta(total)))
}
