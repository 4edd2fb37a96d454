//! The environment of a stage's engine and hooks.

use std::collections::BTreeMap;

use super::{CLI_CONFIG, Error, Facts, Result};
use crate::{
    api::job::{Category, JobSpec},
    trace::{self, Node, Part},
};

/// A later entry wins: what the run is about, then the pool's, then the workspace's.
pub(super) fn environment(spec: &JobSpec, facts: &Facts<'_>) -> Result<Vec<(String, String)>> {
    let mut env: BTreeMap<String, String> = BTreeMap::new();
    let mut set = |key: &str, value: &str| env.insert(key.to_owned(), value.to_owned());
    for (key, value) in [("TF_IN_AUTOMATION", "1"), ("TF_INPUT", "0"), ("CHECKPOINT_DISABLE", "1")] {
        set(key, value);
    }
    set("HOME", &format!("{}/home", facts.dir));
    if let Some(tmp) = facts.tmp {
        set("TMPDIR", tmp);
    }
    if facts.cli_config {
        set("TF_CLI_CONFIG_FILE", &format!("{}/{CLI_CONFIG}", facts.dir));
    }
    for (key, value) in story(spec, facts) {
        set(key, &value);
        if key.starts_with("TFC_") {
            set(&format!("TF_VAR_{key}"), &value);
        }
    }
    for (key, value) in &spec.env {
        set(key, value);
    }
    for variable in spec.variables.iter().filter(|variable| variable.category == Category::Env) {
        set(&variable.key, &variable.value);
    }
    // The override file puts the state where the agent looks for it; another workspace of the local backend would
    // move it away again.
    set("TF_WORKSPACE", "");
    for (key, value) in &env {
        if key.is_empty() || key.contains(['=', '\0', '\n']) || value.contains('\0') {
            return Err(Error::Environment { key: key.clone() });
        }
    }
    Ok(env.into_iter().collect())
}

/// What hooks, provisioners and users' code may want to know of the run, under the names that they are used to.
fn story(spec: &JobSpec, facts: &Facts<'_>) -> Vec<(&'static str, String)> {
    let (run, workspace) = (&spec.run, &spec.workspace);
    let mode = match spec.run.refresh {
        _ if run.plan_only => "dry",
        _ if run.refresh_only => "refresh",
        false => "skip_refresh",
        true => "apply",
    };
    let source = match run.source.as_str() {
        "tfe-api" | "terraform+cloud" => "cli",
        other => other,
    };
    let of_server = facts.hostname.map(|hostname| ("SCALR_HOSTNAME", hostname.to_owned()));
    // What providers and programs trace by themselves belongs to the run's trace, wherever that is sent.
    let engine = Node::Part { stage: spec.stage, epoch: spec.epoch, part: Part::Engine };
    let of_run = [
        ("TRACEPARENT", trace::traceparent(&run.id, engine)),
        ("TERRAPOOL_RUN_ID", run.id.to_string()),
        ("TERRAPOOL_WORKSPACE_NAME", workspace.name.clone()),
        ("TFC_RUN_ID", run.id.to_string()),
        ("TFC_WORKSPACE_ID", workspace.id.to_string()),
        ("TFC_WORKSPACE_NAME", workspace.name.clone()),
        ("TFC_WORKSPACE_SLUG", format!("{}/{}", workspace.environment, workspace.name)),
        ("SCALR_RUN_ID", run.id.to_string()),
        ("SCALR_RUN_IS_DESTROY", run.is_destroy.to_string()),
        ("SCALR_RUN_MODE", mode.to_owned()),
        ("SCALR_RUN_SOURCE", source.to_owned()),
        ("SCALR_RUN_CONTENT_ROOT", format!("{}/config", facts.dir)),
        ("SCALR_TERRAFORM_OPERATION", spec.stage.as_str().to_owned()),
        ("SCALR_WORKSPACE_ID", workspace.id.to_string()),
        ("SCALR_WORKSPACE_NAME", workspace.name.clone()),
        ("SCALR_ENVIRONMENT_ID", workspace.environment_id.clone()),
        ("SCALR_ENVIRONMENT_NAME", workspace.environment.clone()),
        ("SCALR_ACCOUNT_ID", workspace.account_id.clone()),
    ];
    // An older control plane does not tell everything.
    of_run.into_iter().chain(of_server).filter(|(_, value)| !value.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Steps, plan,
            tests::{FACTS, spec, variable},
        },
        *,
    };
    use crate::api::job::Stage;

    #[test]
    fn the_workspaces_environment_wins_over_the_pools_and_neither_moves_the_state() {
        let mut spec = spec(Stage::Plan);
        spec.env = [("A".to_owned(), "pool".to_owned()), ("B".to_owned(), "pool".to_owned())].into();
        spec.variables = vec![
            variable("A", "one\ntwo \\ three", Category::Env, false),
            variable("TF_WORKSPACE", "elsewhere", Category::Env, false),
        ];
        let steps = plan(&spec, &FACTS).unwrap();
        let steps = Steps::parse(&steps.to_text()).unwrap();
        let env: BTreeMap<_, _> = steps.env.into_iter().collect();
        assert_eq!((env["A"].as_str(), env["B"].as_str()), ("one\ntwo \\ three", "pool"));
        assert_eq!(env["TF_WORKSPACE"], "");
        for (key, value) in [("", "x"), ("A=B", "x"), ("A\0", "x"), ("A", "x\0"), ("A\nB", "x")] {
            spec.variables = vec![variable(key, value, Category::Env, false)];
            assert!(matches!(plan(&spec, &FACTS), Err(Error::Environment { .. })), "{key:?} {value:?}");
        }
    }

    #[test]
    fn the_agents_cli_configuration_is_used_unless_the_workspace_has_its_own() {
        let mut spec = spec(Stage::Plan);
        let facts = Facts { cli_config: true, ..FACTS };
        let of = |spec: &JobSpec| {
            let env: BTreeMap<_, _> = plan(spec, &facts).unwrap().env.into_iter().collect();
            env["TF_CLI_CONFIG_FILE"].clone()
        };
        assert_eq!(of(&spec), "/terrapool/job/cli.tfrc");
        spec.variables = vec![variable("TF_CLI_CONFIG_FILE", "own.tfrc", Category::Env, false)];
        assert_eq!(of(&spec), "own.tfrc");
    }
}
