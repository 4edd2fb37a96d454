//! States that people's CLIs write: under their lock, in order of the serial, checked by MD5.

use sqlx::AnyConnection;

use super::{blob_key, content, md5_hex, save};
use crate::{
    ids::{AccountId, StateVersionId, UserId, WorkspaceId},
    server::{
        app::AppState,
        domain::{
            model::{Lock, StateStatus, StateVersion, Workspace},
            unit::Unit,
            workspaces,
        },
        error::{Error, Result},
        store,
    },
};

/// What a client says of a state before, or instead of, uploading it.
#[derive(Debug, Clone, Default)]
pub struct NewState {
    pub serial: i64,
    pub lineage: String,
    /// MD5 of the bytes, hex.
    pub md5: String,
    /// Store it whatever is there.
    pub force: bool,
    /// The bytes, when they come with the request.
    pub bytes: Option<Vec<u8>>,
    /// The same in the form of `show -json`.
    pub json: Option<Vec<u8>>,
}

/// Whether a state may follow the current one.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Next,
    /// It is the current one.
    Same,
    Refused(String),
}

/// Pure: the rules of serial and lineage.
fn judge(current: Option<&StateVersion>, new: &NewState) -> Verdict {
    let Some(current) = current else { return Verdict::Next };
    if current.serial == new.serial && current.md5 == new.md5 {
        return Verdict::Same;
    }
    if new.force {
        return Verdict::Next;
    }
    if !current.lineage.is_empty() && !new.lineage.is_empty() && current.lineage != new.lineage {
        return Verdict::Refused(format!(
            "The state's lineage {} is not the workspace's, {}: it belongs to something else. Use force to replace it.",
            new.lineage, current.lineage
        ));
    }
    if new.serial <= current.serial {
        return Verdict::Refused(format!(
            "The state's serial {} must be greater than the current one, {}: somebody wrote a newer state meanwhile.",
            new.serial, current.serial
        ));
    }
    Verdict::Next
}

/// Stores a state, or makes room for its upload.
///
/// # Errors
/// [`Error::Conflict`] when the caller does not hold the workspace's lock, or serial or lineage do not follow.
pub async fn create(
    app: &AppState,
    account: &AccountId,
    user: &UserId,
    workspace: &WorkspaceId,
    new: NewState,
) -> Result<StateVersion> {
    let mut unit = Unit::begin(app).await?;
    let workspace = workspaces::find(&mut unit, account, workspace).await?.workspace;
    holds_lock(&workspace, user)?;
    let current = store::states::current(&mut unit, &workspace.id).await?;
    match (judge(current.as_ref(), &new), current) {
        (Verdict::Refused(why), _) => return Err(Error::Conflict(why)),
        (Verdict::Same, Some(current)) => return Ok(current),
        _ => {}
    }
    let mut state = StateVersion {
        id: StateVersionId::random(),
        workspace_id: workspace.id,
        status: StateStatus::Pending,
        serial: new.serial,
        lineage: new.lineage,
        md5: new.md5,
        size_bytes: 0,
        blob: None,
        json_blob: None,
        outputs: None,
        resource_count: 0,
        engine_version: String::new(),
        run_id: None,
        epoch: None,
        created_by: Some(user.clone()),
        created_at: unit.now,
    };
    if let Some(bytes) = new.bytes {
        state = finalized(app, state, &bytes).await?;
    }
    if let Some(json) = new.json {
        state.json_blob = Some(save_json(app, &state, &json).await?);
    }
    store::states::insert(&mut unit, &state).await?;
    if state.status == StateStatus::Finalized {
        make_current(&mut unit, &state).await?;
    }
    unit.commit().await?;
    Ok(state)
}

fn holds_lock(workspace: &Workspace, user: &UserId) -> Result<()> {
    let why = match &workspace.lock {
        Lock::User { id, .. } if id == user => return Ok(()),
        Lock::Unlocked => "is not locked: lock it before writing its state".to_owned(),
        Lock::User { .. } => "is locked by another user".to_owned(),
        Lock::Run { id } => format!("is locked by Run {id}"),
    };
    Err(Error::Conflict(format!("Workspace {} {why}.", workspace.name)))
}

/// Checks the bytes against what was announced, and stores them.
async fn finalized(app: &AppState, state: StateVersion, bytes: &[u8]) -> Result<StateVersion> {
    let md5 = md5_hex(bytes);
    if !md5.eq_ignore_ascii_case(&state.md5) {
        return Err(Error::Unprocessable(format!(
            "The state's MD5 is {md5}, not {} as announced: it was damaged on its way.",
            state.md5
        )));
    }
    let content = content::read(bytes).map_err(|error| Error::Unprocessable(error.to_string()))?;
    save(app, state, &content, bytes).await
}

async fn save_json(app: &AppState, state: &StateVersion, bytes: &[u8]) -> Result<String> {
    let key = format!("{}.json", blob_key(&state.workspace_id, &state.id));
    app.blobs.put(&key, app.vault.seal(&key, bytes)?).await?;
    Ok(key)
}

async fn make_current(unit: &mut Unit<'_>, state: &StateVersion) -> Result<()> {
    let now = unit.now;
    store::workspaces::set_current_state(unit, &state.workspace_id, &state.id, now).await?;
    tracing::info!(state = %state.id, workspace = %state.workspace_id, serial = state.serial, "state stored");
    Ok(())
}

async fn get(connection: &mut AnyConnection, id: &StateVersionId) -> Result<StateVersion> {
    store::states::get(connection, id).await?.ok_or_else(|| Error::not_found(super::CLASS, id))
}

/// Takes the upload of a state; the same again is fine.
///
/// # Errors
/// [`Error::Conflict`] when the workspace's lock is not the uploader's any more or the state was discarded;
/// [`Error::Unprocessable`] when the bytes are not those announced.
pub async fn upload(app: &AppState, id: &StateVersionId, bytes: &[u8]) -> Result<()> {
    let mut unit = Unit::begin(app).await?;
    let state = get(&mut unit, id).await?;
    match state.status {
        StateStatus::Pending => {}
        StateStatus::Finalized if state.md5.eq_ignore_ascii_case(&md5_hex(bytes)) => return Ok(()),
        _ => return Err(Error::Conflict(format!("{id} has its content already, or was discarded."))),
    }
    let workspace = store::workspaces::get(&mut unit, &state.workspace_id).await?;
    if let (Some(workspace), Some(user)) = (workspace, &state.created_by) {
        holds_lock(&workspace, user)?;
    }
    let state = finalized(app, state, bytes).await?;
    store::states::update(&mut unit, &state).await?;
    make_current(&mut unit, &state).await?;
    unit.commit().await
}

/// Takes the JSON form of a state.
///
/// # Errors
/// Those of database and blob store.
pub async fn upload_json(app: &AppState, id: &StateVersionId, bytes: &[u8]) -> Result<()> {
    let mut unit = Unit::begin(app).await?;
    let mut state = get(&mut unit, id).await?;
    if state.json_blob.is_some() {
        return Err(Error::Conflict(format!("{id} has its JSON form already.")));
    }
    state.json_blob = Some(save_json(app, &state, bytes).await?);
    store::states::update(&mut unit, &state).await?;
    unit.commit().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn current(serial: i64, lineage: &str, md5: &str) -> StateVersion {
        StateVersion {
            id: StateVersionId::random(),
            workspace_id: WorkspaceId::random(),
            status: StateStatus::Finalized,
            serial,
            lineage: lineage.to_owned(),
            md5: md5.to_owned(),
            size_bytes: 0,
            blob: None,
            json_blob: None,
            outputs: None,
            resource_count: 0,
            engine_version: String::new(),
            run_id: None,
            epoch: None,
            created_by: None,
            created_at: 0,
        }
    }

    #[test]
    fn serials_rise_and_lineages_stay_unless_forced() {
        let new = |serial, lineage: &str, md5: &str, force| NewState {
            serial,
            lineage: lineage.to_owned(),
            md5: md5.to_owned(),
            force,
            ..NewState::default()
        };
        let old = current(5, "a", "m5");
        let cases = [
            (new(6, "a", "x", false), true),
            (new(99, "a", "x", false), true),
            (new(5, "a", "x", false), false),
            (new(4, "a", "x", false), false),
            (new(6, "b", "x", false), false),
            (new(6, "", "x", false), true),
            (new(4, "a", "x", true), true),
            (new(4, "b", "x", true), true),
        ];
        for (new, allowed) in cases {
            let verdict = judge(Some(&old), &new);
            assert_eq!(verdict == Verdict::Next, allowed, "{new:?} {verdict:?}");
        }
        assert_eq!(judge(Some(&old), &new(5, "a", "m5", false)), Verdict::Same);
        assert_eq!(judge(None, &new(0, "", "x", false)), Verdict::Next);
    }
}
