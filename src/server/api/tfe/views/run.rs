//! Runs, plans, applies.

use serde_json::json;

use super::{super::addresses::Addresses, or_null, times};
use crate::{
    clock::rfc3339,
    jsonapi::Resource,
    server::{
        domain::model::{Cancel, Run, StageRow},
        store::overview::Worker,
    },
};

/// A run; `position` is its place in the queue.
pub(in super::super) fn run(run: &Run, position: i64) -> Resource {
    let status = run.status;
    let options = &run.options;
    let mut view = Resource::new("runs", run.id.as_str())
        .attribute("status", status.as_str())
        .attribute("has-changes", run.has_changes)
        .attribute("plan-only", run.plan_only)
        .attribute("is-destroy", options.is_destroy)
        .attribute("auto-apply", options.auto_apply)
        .attribute("refresh", options.refresh)
        .attribute("refresh-only", options.refresh_only)
        .attribute("save-plan", options.save_plan)
        .attribute("allow-empty-apply", options.allow_empty_apply)
        .attribute("allow-config-generation", options.allow_config_generation)
        .attribute("target-addrs", or_null(&options.target_addrs))
        .attribute("replace-addrs", or_null(&options.replace_addrs))
        .attribute("variables", json!(options.variables))
        .attribute("message", run.message.as_str())
        .attribute("source", run.source.as_str())
        .attribute("iac-platform", run.engine.as_str())
        .attribute("terraform-version", run.engine_version.as_str())
        .attribute("position-in-queue", position)
        .attribute("created-at", rfc3339(run.created_at))
        .attribute("status-timestamps", times(run.timestamps.iter().map(|(name, time)| (name.as_str(), *time))))
        // ours: why it waits, why it failed
        .attribute("waiting-for", run.waiting_for.clone())
        .attribute("error-code", run.error_code.clone())
        .attribute("error-message", run.error_message.clone());
    view = view
        .attribute(
            "actions",
            json!({
                "is-cancelable": status.is_cancelable(),
                "is-confirmable": status.is_confirmable() && !run.plan_only,
                "is-discardable": status.is_discardable(),
                "is-force-cancelable": run.cancel != Cancel::No && !status.is_final(),
            }),
        )
        .attribute(
            "permissions",
            json!({
                "can-apply": true,
                "can-cancel": true,
                "can-discard": true,
                "can-force-execute": true,
                "can-force-cancel": true,
                "can-override-policy-check": true,
            }),
        );
    let configuration = run.configuration_version_id.as_str();
    view.to_one("plan", "plans", Some(run.plan_id.as_str()))
        .to_one("apply", "applies", Some(run.apply_id.as_str()))
        .to_one("workspace", "workspaces", Some(run.workspace_id.as_str()))
        .to_one("configuration-version", "configuration-versions", Some(configuration))
        .to_one("created-by", "users", run.created_by.as_ref().map(AsRef::as_ref))
        .to_one("cost-estimate", "cost-estimates", None)
        .to_many("policy-checks", "policy-checks", [""; 0])
        .to_many("task-stages", "task-stages", [""; 0])
        .link("self", format!("/api/v2/runs/{}", run.id))
}

/// Ours: which agents were given the run's stages, which of them has one now, and the epoch of each claim. In
/// Kubernetes the name is the Pod's.
pub(in super::super) fn worked_on(view: Resource, run: &Run, workers: &[Worker]) -> Resource {
    let worker = |worker: &Worker| {
        json!({
            "stage": if worker.stage_id == run.plan_id.as_str() { "plan" } else { "apply" },
            "agent-id": worker.agent_id.as_str(),
            "agent-name": worker.agent,
            "epoch": worker.epoch,
            "holds": worker.holds,
        })
    };
    view.attribute("agents", workers.iter().map(worker).collect::<Vec<_>>())
}

fn stage(kind: &str, stage: &StageRow, addresses: Addresses<'_>) -> Resource {
    let stamps = [
        ("queued-at", stage.queued_at),
        ("started-at", stage.started_at),
        (if stage.status.as_str() == "errored" { "errored-at" } else { "finished-at" }, stage.finished_at),
    ];
    Resource::new(kind, stage.id.as_str())
        .attribute("status", stage.status.as_str())
        .attribute("resource-additions", stage.changes.additions)
        .attribute("resource-changes", stage.changes.changes)
        .attribute("resource-destructions", stage.changes.destructions)
        .attribute("resource-imports", stage.changes.imports)
        .attribute("structured-run-output-enabled", false)
        // from the first moment on: the CLI refuses a stage without one
        .attribute("log-read-url", addresses.log(&stage.id))
        .attribute("status-timestamps", times(stamps.into_iter().filter_map(|(name, time)| Some((name, time?)))))
}

/// A plan; `run` tells whether it has changes.
pub(in super::super) fn plan(row: &StageRow, run: &Run, addresses: Addresses<'_>) -> Resource {
    stage("plans", row, addresses)
        .attribute("has-changes", run.has_changes)
        .attribute("generated-configuration", false)
        .to_many("exports", "plan-exports", [""; 0])
        .link("self", format!("/api/v2/plans/{}", row.id))
        .link("json-output", format!("/api/v2/plans/{}/json-output", row.id))
}

pub(in super::super) fn apply(row: &StageRow, addresses: Addresses<'_>) -> Resource {
    stage("applies", row, addresses).link("self", format!("/api/v2/applies/{}", row.id))
}
