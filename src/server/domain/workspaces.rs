//! Workspaces: names, settings, locks, deletion.

use sqlx::AnyConnection;

use super::{
    environments, links,
    model::{Environment, Lock, Workspace},
    pools, run_settings, runs,
    unit::Unit,
};
use crate::{
    api::job::EngineKind,
    ids::{AccountId, EnvironmentId, UserId, WorkspaceId},
    jsonapi::Page,
    server::{
        app::AppState,
        error::{Error, Result},
        store::{self, workspaces::Placed},
        wake::Topic,
    },
};

/// The class in error texts.
pub const CLASS: &str = "Workspace";

/// Longest name, in bytes.
const MAX_NAME: usize = 90;

/// Where a workspace's runs happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Execution {
    /// On agents, of whichever pool serves the workspace.
    Remote,
    /// On agents; refused while no pool serves the workspace.
    Agent,
    /// On the caller's machine: only state is kept here.
    Local,
}

impl Execution {
    /// # Errors
    /// 422 for any other word.
    pub fn parse(text: &str) -> Result<Self> {
        match text {
            "remote" => Ok(Self::Remote),
            "agent" => Ok(Self::Agent),
            "local" => Ok(Self::Local),
            _ => Err(Error::attribute("execution-mode", "The execution mode must be `remote`, `agent` or `local`.")),
        }
    }
}

/// What a client sets; absent: as it is, or the default.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    pub name: Option<String>,
    pub description: Option<Option<String>>,
    /// The pool that the workspace is linked to, by its id; `Some(None)`: unlink.
    pub pool: Option<Option<String>>,
    pub execution: Option<Execution>,
    pub auto_apply: Option<bool>,
    pub engine: Option<EngineKind>,
    pub engine_version: Option<String>,
    pub working_directory: Option<String>,
    pub run_image: Option<Option<String>>,
}

/// The organization of that name.
///
/// # Errors
/// [`Error::NotFound`]
pub async fn organization(connection: &mut AnyConnection, account: &AccountId, name: &str) -> Result<Environment> {
    environments::by_name(connection, account, name).await?.ok_or_else(|| Error::not_found("Organization", name))
}

/// The workspace `id`, when it is the account's.
///
/// # Errors
/// [`Error::NotFound`]
pub async fn find(connection: &mut AnyConnection, account: &AccountId, id: &WorkspaceId) -> Result<Placed> {
    let found = store::workspaces::placed_by_id(connection, account, id).await?;
    found.ok_or_else(|| Error::not_found(CLASS, id))
}

/// The workspace of that name.
///
/// # Errors
/// [`Error::NotFound`]
pub async fn find_by_name(
    connection: &mut AnyConnection,
    account: &AccountId,
    organization: &str,
    name: &str,
) -> Result<Placed> {
    let found = store::workspaces::placed_by_name(connection, account, organization, name).await?;
    found.ok_or_else(|| Error::not_found(CLASS, format!("{organization}/{name}")))
}

/// A page of the workspaces whose names contain `search`; and how many there are.
///
/// # Errors
/// [`Error::NotFound`] for the organization.
pub async fn list(
    connection: &mut AnyConnection,
    account: &AccountId,
    organization_name: &str,
    search: &str,
    page: Page,
) -> Result<(Vec<Placed>, i64)> {
    let environment = organization(connection, account, organization_name).await?;
    Ok(store::workspaces::placed_of_environment(connection, &environment.id, search, page).await?)
}

/// Creates a workspace in `environment`.
///
/// # Errors
/// 422 for settings that cannot be used or a name that is taken.
pub async fn create(
    unit: &mut Unit<'_>,
    account: &AccountId,
    environment: &EnvironmentId,
    settings: &Settings,
) -> Result<Placed> {
    let mut workspace = Workspace {
        id: WorkspaceId::random(),
        environment_id: environment.clone(),
        name: String::new(),
        description: None,
        pool_id: None,
        remote: true,
        auto_apply: false,
        engine: EngineKind::Terraform,
        engine_version: String::new(),
        working_directory: String::new(),
        run_image: None,
        lock: Lock::Unlocked,
        current_run_id: None,
        current_state_id: None,
        created_at: unit.now,
        updated_at: unit.now,
    };
    let name = settings.name.as_deref().unwrap_or_default();
    check_name(name)?;
    apply(&mut workspace, settings)?;
    store::workspaces::insert(unit, &workspace).await.map_err(|error| name_taken(error, name))?;
    link(unit, account, &workspace, settings).await?;
    tracing::info!(workspace = %workspace.id, name, "workspace created");
    find(unit, account, &workspace.id).await
}

/// Changes settings of a workspace.
///
/// # Errors
/// [`Error::NotFound`], and 422 for settings that cannot be used.
pub async fn update(unit: &mut Unit<'_>, account: &AccountId, id: &WorkspaceId, settings: &Settings) -> Result<Placed> {
    let mut workspace = find(unit, account, id).await?.workspace;
    if let Some(name) = &settings.name {
        check_name(name)?;
    }
    let image_before = workspace.run_image.clone();
    apply(&mut workspace, settings)?;
    workspace.updated_at = unit.now;
    store::workspaces::update(unit, &workspace).await.map_err(|error| name_taken(error, &workspace.name))?;
    link(unit, account, &workspace, settings).await?;
    let after = find(unit, account, id).await?;
    if after.workspace.run_image != image_before
        && let Some(pool) = pools::for_workspace(unit, &after.workspace).await?
    {
        // Jobs that wait may need another agent now.
        unit.changed(&pool.id);
        unit.wake(Topic::Queue(pool.id));
    }
    Ok(after)
}

/// Settings that need nothing but the workspace.
fn apply(workspace: &mut Workspace, settings: &Settings) -> Result<()> {
    let Settings {
        name,
        description,
        pool: _,
        execution,
        auto_apply,
        engine,
        engine_version,
        working_directory,
        run_image,
    } = settings;
    if let Some(name) = name {
        workspace.name.clone_from(name);
    }
    if let Some(description) = description {
        workspace.description.clone_from(description);
    }
    if let Some(execution) = execution {
        workspace.remote = *execution != Execution::Local;
    }
    workspace.auto_apply = auto_apply.unwrap_or(workspace.auto_apply);
    workspace.engine = engine.unwrap_or(workspace.engine);
    if let Some(version) = engine_version {
        workspace.engine_version = version_of(version)?;
    }
    if let Some(directory) = working_directory {
        workspace.working_directory = directory_of(directory)?;
    }
    if let Some(image) = run_image {
        if let Some(image) = image.as_ref().filter(|image| !run_settings::is_image(image)) {
            let detail = format!("`{image}` is not an image reference, as `registry/name:tag`.");
            return Err(Error::attribute("run-image", detail));
        }
        workspace.run_image.clone_from(image);
    }
    Ok(())
}

/// The link to a pool, and whether the execution mode can be what was asked for.
async fn link(unit: &mut Unit<'_>, account: &AccountId, workspace: &Workspace, settings: &Settings) -> Result<()> {
    if let Some(pool) = &settings.pool {
        links::set(unit, account, &workspace.id, pool.as_deref()).await?;
    }
    if settings.execution == Some(Execution::Agent) {
        let workspace = find(unit, account, &workspace.id).await?.workspace;
        if pools::for_workspace(unit, &workspace).await?.is_none() {
            return Err(Error::attribute(
                "execution-mode",
                "The execution mode `agent` needs an agent pool: name one that may serve this workspace in \
                 `agent-pool-id`, or set a default pool first.",
            ));
        }
    }
    Ok(())
}

fn check_name(name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(Error::attribute("name", "Name cannot be empty."));
    }
    let usable = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    if !usable || name.len() > MAX_NAME {
        return Err(Error::attribute(
            "name",
            format!("Name can only hold letters, digits, `-` and `_`, and at most {MAX_NAME} of them."),
        ));
    }
    Ok(())
}

fn name_taken(error: store::Error, name: &str) -> Error {
    if error.is_unique_violation() {
        return Error::attribute(
            "name",
            format!("Name has already been taken: the organization has a workspace `{name}`."),
        );
    }
    error.into()
}

/// An exact version; `latest` and nothing mean any.
fn version_of(text: &str) -> Result<String> {
    if text.is_empty() || text == "latest" {
        return Ok(String::new());
    }
    match semver::Version::parse(text) {
        Ok(version) => Ok(version.to_string()),
        Err(_) => Err(Error::attribute(
            "terraform-version",
            format!("`{text}` is no version: give an exact one such as `1.11.4`, or `latest`."),
        )),
    }
}

/// A folder below the configuration's root.
fn directory_of(text: &str) -> Result<String> {
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") || text.contains('\0') {
        return Err(Error::attribute(
            "working-directory",
            "The working directory must lie below the configuration's root.",
        ));
    }
    Ok(parts.join("/"))
}

/// Locks a workspace for a user.
///
/// # Errors
/// [`Error::Conflict`] when it is locked.
pub async fn lock(
    app: &AppState,
    account: &AccountId,
    user: &UserId,
    id: &WorkspaceId,
    reason: Option<String>,
) -> Result<Placed> {
    let mut unit = Unit::begin(app).await?;
    let workspace = find(&mut unit, account, id).await?.workspace;
    if workspace.lock != Lock::Unlocked {
        return Err(Error::Conflict(format!(
            "Workspace {} {}. Wait for it, or unlock it first.",
            workspace.name,
            locked_by(&mut unit, &workspace.lock).await?
        )));
    }
    store::workspaces::set_lock(&mut unit, id, &Lock::User { id: user.clone(), reason }).await?;
    // those that wait say why
    runs::advance(&mut unit, id).await?;
    let placed = find(&mut unit, account, id).await?;
    unit.commit().await?;
    Ok(placed)
}

/// Unlocks a workspace: its own lock, or with `force` any user's. A run's lock ends with the run.
///
/// # Errors
/// [`Error::Conflict`] when that cannot be done; the CLI looks for "is locked by Run" or "User" in it.
pub async fn unlock(
    app: &AppState,
    account: &AccountId,
    user: &UserId,
    id: &WorkspaceId,
    force: bool,
) -> Result<Placed> {
    let mut unit = Unit::begin(app).await?;
    let workspace = find(&mut unit, account, id).await?.workspace;
    let mend = match &workspace.lock {
        Lock::Unlocked => "",
        Lock::Run { .. } => " The lock ends with the run: wait for it, confirm, discard or cancel it.",
        Lock::User { id, .. } if force || id == user => {
            store::workspaces::set_lock(&mut unit, &workspace.id, &Lock::Unlocked).await?;
            runs::advance(&mut unit, &workspace.id).await?;
            let placed = find(&mut unit, account, &workspace.id).await?;
            unit.commit().await?;
            return Ok(placed);
        }
        Lock::User { .. } => " Only that user can unlock it, or somebody with `force-unlock`.",
    };
    let holder = locked_by(&mut unit, &workspace.lock).await?;
    Err(Error::Conflict(format!("Workspace {} {holder}.{mend}", workspace.name)))
}

/// "is locked by User jane".
async fn locked_by(connection: &mut AnyConnection, lock: &Lock) -> Result<String> {
    Ok(match lock {
        Lock::Unlocked => "is not locked".to_owned(),
        Lock::Run { id } => format!("is locked by Run {id}"),
        Lock::User { id, .. } => {
            let user = store::tokens::user(connection, id).await?;
            format!("is locked by User {}", user.map_or_else(|| id.to_string(), |user| user.username))
        }
    })
}

/// Removes a workspace with its runs, states and variables; with `safe` only when it manages nothing.
///
/// # Errors
/// [`Error::Conflict`] while it is locked, works, or manages resources.
pub async fn delete(app: &AppState, account: &AccountId, id: &WorkspaceId, safe: bool) -> Result<()> {
    let mut unit = Unit::begin(app).await?;
    let placed = find(&mut unit, account, id).await?;
    let name = &placed.workspace.name;
    if placed.workspace.lock != Lock::Unlocked {
        let holder = locked_by(&mut unit, &placed.workspace.lock).await?;
        return Err(Error::Conflict(format!("Workspace {name} {holder}: it cannot be deleted while locked.")));
    }
    if store::workspaces::open_runs(&mut unit, id).await? > 0 {
        return Err(Error::Conflict(format!(
            "Runs of workspace {name} are still being processed. Wait for them or cancel them."
        )));
    }
    if safe && placed.resource_count > 0 {
        return Err(Error::Conflict(format!(
            "Workspace {name} still manages {} resources. Destroy them first, or delete it without the check.",
            placed.resource_count
        )));
    }
    let mut blobs = store::workspaces::blobs(&mut unit, id).await?;
    let configurations = store::configurations::ids(&mut unit, id).await?;
    blobs.extend(configurations.iter().map(super::configurations::blob_key));
    if let Some(pool) = &placed.workspace.pool_id {
        unit.changed(pool);
    }
    store::workspaces::delete(&mut unit, id).await?;
    unit.commit().await?;
    tracing::info!(workspace = %id, name, "workspace deleted");
    for blob in &blobs {
        // Nothing refers to it any more: a failure costs space, not correctness.
        if let Err(error) = app.blobs.delete(blob).await {
            tracing::warn!(%error, blob, "could not remove a blob of a deleted workspace");
        }
    }
    Ok(())
}

/// The execution mode, in the words of this API.
#[must_use]
pub fn execution(workspace: &Workspace) -> &'static str {
    match (&workspace.remote, &workspace.pool_id) {
        (false, _) => "local",
        (true, Some(_)) => "agent",
        (true, None) => "remote",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_versions_and_directories_are_checked() {
        for (name, good) in
            [("demo-1_x", true), ("", false), ("a b", false), ("a/b", false), ("ä", false), ("..", false)]
        {
            assert_eq!(check_name(name).is_ok(), good, "{name}");
        }
        for (text, version) in
            [("1.11.4", Some("1.11.4")), ("latest", Some("")), ("", Some("")), ("~> 1.1", None), ("1", None)]
        {
            assert_eq!(version_of(text).ok().as_deref(), version, "{text}");
        }
        for (text, directory) in [("", Some("")), ("./a//b/", Some("a/b")), ("/a", Some("a")), ("a/../..", None)] {
            assert_eq!(directory_of(text).ok().as_deref(), directory, "{text}");
        }
    }
}
