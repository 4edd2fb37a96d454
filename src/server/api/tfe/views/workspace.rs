//! Organizations, workspaces, and what belongs to a workspace.

use serde_json::{Value, json};

use super::super::addresses::Addresses;
use crate::{
    clock::rfc3339,
    jsonapi::Resource,
    server::{
        domain::{
            model::{ConfigurationStatus, ConfigurationVersion, Environment, Lock, User},
            organizations::Capacity,
            variables::Shown,
            workspaces::execution,
        },
        store::{variables::category_name, workspaces::Placed},
    },
};

/// There are no projects: every workspace is in this one.
pub(in super::super) const NO_PROJECT: &str = "prj-default";

/// Organizations are known by their name.
pub(in super::super) fn organization(environment: &Environment) -> Resource {
    Resource::new("organizations", environment.name.as_str())
        .attribute("name", environment.name.as_str())
        .attribute("external-id", environment.id.as_str())
        .attribute("created-at", rfc3339(environment.created_at))
        .attribute("default-execution-mode", "remote")
        .attribute("permissions", json!({"can-create-workspace": true, "can-update": true, "can-destroy": true}))
        .to_one("default-agent-pool", "agent-pools", environment.default_pool_id.as_ref().map(AsRef::as_ref))
        .to_one("default-project", "projects", Some(NO_PROJECT))
        .link("self", format!("/api/v2/organizations/{}", environment.name))
}

/// `operations`: without it the CLI runs everything on its own machine.
pub(in super::super) fn entitlements(environment: &Environment) -> Resource {
    let on = ["operations", "state-storage", "agents", "teams"];
    let off = [
        "private-module-registry",
        "sentinel",
        "cost-estimation",
        "run-tasks",
        "vcs-integrations",
        "audit-logging",
        "sso",
    ];
    let view = Resource::new("entitlement-sets", environment.id.as_str());
    let view = on.into_iter().fold(view, |view, name| view.attribute(name, true));
    off.into_iter().fold(view, |view, name| view.attribute(name, false))
}

pub(in super::super) fn capacity(organization: &str, capacity: Capacity) -> Resource {
    Resource::new("organization-capacity", organization)
        .attribute("pending", capacity.pending)
        .attribute("running", capacity.running)
}

pub(in super::super) fn user(user: &User) -> Resource {
    Resource::new("users", user.id.as_str())
        .attribute("username", user.username.as_str())
        .attribute("email", user.email.as_str())
        .attribute("is-service-account", user.is_service_account)
        .attribute("is-admin", user.is_admin)
        .attribute("v2-only", false)
}

/// The CLI panics without `permissions`.
fn permissions() -> Value {
    json!({
        "can-queue-run": true,
        "can-queue-apply": true,
        "can-queue-destroy": true,
        "can-lock": true,
        "can-unlock": true,
        "can-force-unlock": true,
        "can-update": true,
        "can-update-variable": true,
        "can-read-settings": true,
        "can-read-state-outputs": true,
        "can-read-state-versions": true,
        "can-create-state-versions": true,
        "can-read-variable": true,
        "can-destroy": true,
        "can-force-delete": true,
        "can-manage-run-tasks": false,
    })
}

pub(in super::super) fn workspace(placed: &Placed) -> Resource {
    let workspace = &placed.workspace;
    let version = &workspace.engine_version;
    let view = Resource::new("workspaces", workspace.id.as_str())
        .attribute("name", workspace.name.as_str())
        .attribute("description", workspace.description.clone())
        .attribute("locked", workspace.lock != Lock::Unlocked)
        .attribute("auto-apply", workspace.auto_apply)
        .attribute("operations", workspace.remote)
        .attribute("execution-mode", execution(workspace))
        .attribute("iac-platform", workspace.engine.as_str())
        // the CLI reads anything else as a version constraint
        .attribute("terraform-version", if version.is_empty() { "latest" } else { version })
        .attribute("working-directory", workspace.working_directory.as_str())
        .attribute("vcs-repo", Value::Null)
        .attribute("structured-run-output-enabled", false)
        .attribute("global-remote-state", false)
        .attribute("allow-destroy-plan", true)
        .attribute("queue-all-runs", false)
        .attribute("file-triggers-enabled", false)
        .attribute("speculative-enabled", true)
        .attribute("tag-names", json!([]))
        .attribute("created-at", rfc3339(workspace.created_at))
        .attribute("updated-at", rfc3339(workspace.updated_at))
        .attribute("resource-count", placed.resource_count)
        .attribute("actions", json!({"is-destroyable": true}))
        .attribute("permissions", permissions());
    let view = match &workspace.lock {
        Lock::Unlocked => view.to_one("locked-by", "users", None),
        Lock::User { id, .. } => view.to_one("locked-by", "users", Some(id.as_str())),
        Lock::Run { id } => view.to_one("locked-by", "runs", Some(id.as_str())),
    };
    view.to_one("organization", "organizations", Some(&placed.organization))
        .to_one("project", "projects", Some(NO_PROJECT))
        .to_one("current-run", "runs", workspace.current_run_id.as_ref().map(AsRef::as_ref))
        .to_one("agent-pool", "agent-pools", workspace.pool_id.as_ref().map(AsRef::as_ref))
        .to_one("current-state-version", "state-versions", workspace.current_state_id.as_ref().map(AsRef::as_ref))
        .link("self", format!("/api/v2/organizations/{}/workspaces/{}", placed.organization, workspace.name))
}

/// The upload address is there as long as the upload may come.
pub(in super::super) fn configuration(configuration: &ConfigurationVersion, addresses: Addresses<'_>) -> Resource {
    let pending = configuration.status == ConfigurationStatus::Pending;
    Resource::new("configuration-versions", configuration.id.as_str())
        .attribute("status", configuration.status.as_str())
        .attribute("source", configuration.source.as_str())
        .attribute("auto-queue-runs", configuration.auto_queue_runs)
        .attribute("speculative", configuration.speculative)
        .attribute("provisional", configuration.provisional)
        .attribute("error", configuration.error.clone())
        .attribute("error-message", configuration.error_message.clone())
        .attribute("created-at", rfc3339(configuration.created_at))
        .attribute("upload-url", pending.then(|| addresses.configuration_upload(&configuration.id)))
        .to_one("ingress-attributes", "ingress-attributes", None)
        .to_one("workspace", "workspaces", Some(configuration.workspace_id.as_str()))
        .link("self", format!("/api/v2/configuration-versions/{}", configuration.id))
        .link("download", format!("/api/v2/configuration-versions/{}/download", configuration.id))
}

pub(in super::super) fn variable(variable: &Shown) -> Resource {
    let row = &variable.row;
    Resource::new("vars", row.id.as_str())
        .attribute("key", row.key.as_str())
        .attribute("value", variable.value.clone())
        .attribute("category", category_name(row.category))
        .attribute("hcl", row.hcl)
        .attribute("sensitive", row.sensitive)
        .attribute("description", row.description.clone())
        .attribute("version-id", format!("{}-{}", row.id, row.updated_at))
        .to_one("configurable", "workspaces", Some(row.workspace_id.as_str()))
        .link("self", format!("/api/v2/workspaces/{}/vars/{}", row.workspace_id, row.id))
}
