//! Which programs a stage runs, in which order, with which environment. Pure: a job and some facts in, a text for
//! the runner and two generated files out. The golden tests show what it makes.

mod environment;
#[path = "../../runner/format.rs"]
pub mod format;
mod variables;

use std::path::Path;

pub use self::variables::variables;
use self::{
    environment::environment,
    format::{Announce, ENGINE, Output, Stage as Steps, Step},
};
use super::{
    hooks::{self, Hook, Point},
    provider_cache,
};
use crate::api::job::{EngineKind, JobSpec, Stage};

/// The plan file, in the working directory.
pub const PLAN_FILE: &str = "tfplan";

/// What `-generate-config-out` makes, in the working directory.
pub const GENERATED: &str = "generated.tf";

/// Values of the workspace's and the run's variables, in the working directory. The last one in the order of the
/// alphabet, because the engine lets later files win.
pub const VARIABLES: &str = "zzz_terrapool.auto.tfvars";

/// Dependency lock file, in the working directory.
pub const LOCK_FILE: &str = ".terraform.lock.hcl";

/// What [`override_file`] is made of.
pub const OVERRIDE: &str = "terraform {\n  backend \"local\" {}\n}\n";

/// The engine's own configuration, in the job directory.
pub const CLI_CONFIG: &str = "cli.tfrc";

/// Output of `show -json`, in the job directory.
pub const PLAN_JSON: &str = "artifacts/plan.json";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the variable `{key}` has a name that the engine cannot read; rename it")]
    VariableName { key: String },
    #[error(
        "the environment variable `{key}` cannot be set: its name is empty or has `=` in it, or a zero byte is in it"
    )]
    Environment { key: String },
    #[error("the working directory `{path}` leads out of the configuration")]
    WorkingDirectory { path: String },
}

type Result<T, E = Error> = std::result::Result<T, E>;

/// What the planner must know beside the job.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    /// The job directory, as the stage sees it.
    pub dir: &'a str,
    /// The engine of the wanted version on the agent's host, as the stage sees it.
    pub engine: Option<&'a str>,
    /// For temporary files; absent: the system's own place.
    pub tmp: Option<&'a str>,
    /// Seconds between SIGINT and SIGKILL.
    pub grace_seconds: u64,
    /// There is a [`CLI_CONFIG`].
    pub cli_config: bool,
    /// There is a [`provider_cache::FOLDER`].
    pub provider_cache: bool,
    /// The hooks of the stage, which lie in the job directory.
    pub hooks: &'a [Hook],
    /// Where the control plane is, as the agent reaches it: `host` or `host:port`.
    pub hostname: Option<&'a str>,
}

/// Names of the engine's own steps.
const OF_ENGINE: [&str; 5] = ["version", "init", "plan", "show", "apply"];

/// The name of a step that stages have, of the engine's own and hooks.
pub(super) fn known(name: &str) -> Option<&'static str> {
    OF_ENGINE.into_iter().chain(hooks::NAMES.map(|(name, _)| name)).find(|known| *known == name)
}

/// Name of the file that replaces the user's backend or `cloud` block by a state file in the working directory.
/// OpenTofu lets a `.tofu` file hide a `.tf` file of the same name, so there it must be a `.tofu` file itself.
#[must_use]
pub fn override_file(kind: EngineKind) -> &'static str {
    match kind {
        EngineKind::Terraform => "zz_terrapool_override.tf",
        EngineKind::OpenTofu => "zz_terrapool_override.tofu",
    }
}

/// The steps of a job.
///
/// # Errors
/// When the job names something that cannot be.
pub fn plan(spec: &JobSpec, facts: &Facts<'_>) -> Result<Steps> {
    let cwd = format!("config/{}", working_directory(&spec.workspace.working_directory)?);
    let cwd = cwd.trim_end_matches('/').to_owned();
    let kind = spec.engine.kind;
    let step = |name: &str, args: &[&str], output: Output| Step {
        name: name.to_owned(),
        args: std::iter::once(ENGINE).chain(args.iter().copied()).map(str::to_owned).collect(),
        cwd: cwd.clone(),
        output,
        ok: vec![0],
        ..Step::default()
    };
    let mut version = step("version", &["version"], Output::Captured("version.txt".to_owned()));
    // The engine's own debug output would stand between the lines that are looked for.
    version.env = vec![("TF_LOG".to_owned(), String::new())];
    version.announce = Some(Announce { title: kind.title().to_owned(), version: spec.engine.version.clone() });
    let hooks = |point| hooks::steps(facts.hooks, point, facts.dir, &cwd);
    // The version comes first: its lines head the log.
    let mut steps = vec![version];
    steps.extend(hooks(Point::PreInit));
    let mut init = step("init", &["init", "-input=false"], Output::Captured("init.log".to_owned()));
    if facts.provider_cache {
        // Here alone: engines that hooks and provisioners start would take it for one that they can write.
        init.env = vec![provider_cache::variable(facts.dir)];
    }
    steps.push(init);
    match spec.stage {
        Stage::Plan => {
            let args = plan_arguments(spec);
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            steps.extend(hooks(Point::PrePlan));
            steps.push(Step { ok: vec![0, 2], ..step("plan", &args, Output::Log) });
            steps.push(step("show", &["show", "-json", PLAN_FILE], Output::File(PLAN_JSON.to_owned())));
            steps.extend(hooks(Point::PostPlan));
        }
        Stage::Apply => {
            steps.extend(hooks(Point::PreApply));
            steps.push(step("apply", &["apply", "-input=false", PLAN_FILE], Output::Log));
            steps.extend(hooks(Point::PostApply));
        }
    }
    Ok(Steps {
        limit_seconds: spec.timeout_seconds,
        grace_seconds: facts.grace_seconds,
        engines: engines(spec, facts),
        env: environment(spec, facts)?,
        steps,
    })
}

/// The engine on the host first, for it has the wanted version. A job that names an image but no version means the
/// image's own.
fn engines(spec: &JobSpec, facts: &Facts<'_>) -> Vec<String> {
    let program = spec.engine.kind.program().to_owned();
    let host = facts.engine.map(str::to_owned);
    let prefer_image = spec.image.is_some() && spec.engine.version.is_none();
    match host {
        None => vec![program],
        Some(host) if prefer_image => vec![program, host],
        Some(host) => vec![host, program],
    }
}

fn plan_arguments(spec: &JobSpec) -> Vec<String> {
    let run = &spec.run;
    let mut args: Vec<String> = ["plan", "-input=false", "-detailed-exitcode"].into_iter().map(str::to_owned).collect();
    args.push(format!("-out={PLAN_FILE}"));
    for (wanted, flag) in
        [(run.is_destroy, "-destroy"), (!run.refresh, "-refresh=false"), (run.refresh_only, "-refresh-only")]
    {
        if wanted {
            args.push(flag.to_owned());
        }
    }
    args.extend(run.target_addrs.iter().map(|address| format!("-target={address}")));
    args.extend(run.replace_addrs.iter().map(|address| format!("-replace={address}")));
    if run.allow_config_generation {
        args.push(format!("-generate-config-out={GENERATED}"));
    }
    args
}

/// The folder below `config/`, with `/` between its parts and none around them.
///
/// # Errors
/// [`Error::WorkingDirectory`]
pub fn working_directory(path: &str) -> Result<String> {
    let mut parts = Vec::new();
    for component in Path::new(path.trim_start_matches('/')).components() {
        match component {
            std::path::Component::Normal(part) => parts.push(part.to_string_lossy().into_owned()),
            std::path::Component::CurDir => {}
            _ => return Err(Error::WorkingDirectory { path: path.to_owned() }),
        }
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::job::{Category, Engine, Variable};

    pub(super) fn spec(stage: Stage) -> JobSpec {
        let mut spec = JobSpec { stage, timeout_seconds: 7200, ..JobSpec::plain() };
        spec.run.source = "tfe-api".into();
        spec.workspace.name = "demo".into();
        spec.workspace.environment = "acme".into();
        spec.workspace.environment_id = "env-1".into();
        spec.workspace.account_id = "acc-1".into();
        spec.engine.version = Some("1.11.4".into());
        spec
    }

    pub(super) const FACTS: Facts<'_> = Facts {
        dir: "/terrapool/job",
        engine: Some("/engine/terraform"),
        tmp: Some("/tmp"),
        grace_seconds: 60,
        cli_config: false,
        provider_cache: false,
        hooks: &[],
        hostname: Some("terrapool.example.com"),
    };

    pub(super) fn variable(key: &str, value: &str, category: Category, hcl: bool) -> Variable {
        Variable { key: key.into(), value: value.into(), category, hcl, sensitive: false }
    }

    fn args(spec: &JobSpec, step: &str) -> String {
        let steps = plan(spec, &FACTS).unwrap();
        steps.steps.iter().find(|s| s.name == step).unwrap().args.join(" ")
    }

    #[test]
    fn an_apply_in_full() {
        let mut spec = spec(Stage::Apply);
        spec.workspace.working_directory = "net/eu/".into();
        let steps = plan(&spec, &FACTS).unwrap();
        assert_eq!(Steps::parse(&steps.to_text()).unwrap(), steps);
        let wanted = "terrapool-stage 1
limit 7200
grace 60
engine /engine/terraform
engine terraform
env CHECKPOINT_DISABLE=1
env HOME=/terrapool/job/home
env SCALR_ACCOUNT_ID=acc-1
env SCALR_ENVIRONMENT_ID=env-1
env SCALR_ENVIRONMENT_NAME=acme
env SCALR_HOSTNAME=terrapool.example.com
env SCALR_RUN_CONTENT_ROOT=/terrapool/job/config
env SCALR_RUN_ID=run-1
env SCALR_RUN_IS_DESTROY=false
env SCALR_RUN_MODE=apply
env SCALR_RUN_SOURCE=cli
env SCALR_TERRAFORM_OPERATION=apply
env SCALR_WORKSPACE_ID=ws-1
env SCALR_WORKSPACE_NAME=demo
env TERRAPOOL_RUN_ID=run-1
env TERRAPOOL_WORKSPACE_NAME=demo
env TFC_RUN_ID=run-1
env TFC_WORKSPACE_ID=ws-1
env TFC_WORKSPACE_NAME=demo
env TFC_WORKSPACE_SLUG=acme/demo
env TF_INPUT=0
env TF_IN_AUTOMATION=1
env TF_VAR_TFC_RUN_ID=run-1
env TF_VAR_TFC_WORKSPACE_ID=ws-1
env TF_VAR_TFC_WORKSPACE_NAME=demo
env TF_VAR_TFC_WORKSPACE_SLUG=acme/demo
env TF_WORKSPACE=
env TMPDIR=/tmp
env TRACEPARENT=00-4e65d3fbe8ad6535681b021b30785b12-0267577bb92b6b02-01
step version
arg @engine
arg version
cwd config/net/eu
env TF_LOG=
capture version.txt
ok 0
announce Terraform=1.11.4
step init
arg @engine
arg init
arg -input=false
cwd config/net/eu
capture init.log
ok 0
step apply
arg @engine
arg apply
arg -input=false
arg tfplan
cwd config/net/eu
ok 0
";
        assert_eq!(steps.to_text(), wanted);
    }

    #[test]
    fn a_plan_takes_every_wish_of_its_run() {
        let mut spec = spec(Stage::Plan);
        assert_eq!(args(&spec, "plan"), "@engine plan -input=false -detailed-exitcode -out=tfplan");
        spec.run.is_destroy = true;
        spec.run.refresh = false;
        spec.run.refresh_only = true;
        spec.run.target_addrs = vec!["a.b".into(), "c.d[\"x y\"]".into()];
        spec.run.replace_addrs = vec!["-destroy".into()];
        spec.run.allow_config_generation = true;
        assert_eq!(
            args(&spec, "plan"),
            "@engine plan -input=false -detailed-exitcode -out=tfplan -destroy -refresh=false -refresh-only \
             -target=a.b -target=c.d[\"x y\"] -replace=-destroy -generate-config-out=generated.tf"
        );
        assert_eq!(args(&spec, "show"), "@engine show -json tfplan");
    }

    fn hook((name, point): (&'static str, Point)) -> Hook {
        Hook { name, point, path: format!("/hooks/{name}").into(), limit: hooks::DEFAULT_LIMIT }
    }

    #[test]
    fn each_hook_stands_at_its_point_and_every_step_is_known() {
        let hooks = hooks::NAMES.map(hook);
        let names = |stage| -> String {
            let (spec, facts) = (spec(stage), Facts { hooks: &hooks, ..FACTS });
            let steps = plan(&spec, &facts).unwrap().steps;
            assert!(steps.iter().all(|step| known(&step.name) == Some(step.name.as_str())), "{steps:?}");
            steps.iter().map(|step| step.name.as_str()).collect::<Vec<_>>().join(" ")
        };
        let plan = "version pre-init init pre-plan terraform-pre-plan plan show post-plan terraform-post-plan";
        assert_eq!(names(Stage::Plan), plan);
        let apply = "version pre-init init pre-apply terraform-pre-apply apply post-apply terraform-post-apply";
        assert_eq!(names(Stage::Apply), apply);
    }

    #[test]
    fn a_hook_in_full() {
        let mut spec = spec(Stage::Apply);
        spec.workspace.working_directory = "net".into();
        let hooks = [hook(("post-apply", Point::PostApply))];
        let steps = plan(&spec, &Facts { hooks: &hooks, ..FACTS }).unwrap();
        let text = steps.to_text();
        assert_eq!(Steps::parse(&text).unwrap(), steps);
        let wanted = "step post-apply
arg /terrapool/job/hooks/post-apply
cwd config/net
env TFC_AGENT_ENV=/terrapool/job/hook.env
env SCALR_AGENT_ENV=/terrapool/job/hook.env
env TERRAPOOL_ENV=/terrapool/job/hook.env
ok 0
hook 60
env_file hook.env
after apply=SCALR_TERRAFORM_EXIT_CODE
";
        assert!(text.ends_with(wanted), "{text}");
    }

    #[test]
    fn masks_are_read_while_they_are_being_written() {
        let mask = |at, value: &str| self::format::Mask { at, value: value.to_owned() };
        let masks = [mask(0, "a=b"), mask(70, "one\ntwo\\ \r")];
        let text: String = masks.iter().map(self::format::Mask::to_line).collect();
        assert_eq!(self::format::Mask::parse_all(&text).unwrap(), masks);
        for cut in 0..text.len() {
            let whole = text[..cut].matches('\n').count();
            assert_eq!(self::format::Mask::parse_all(&text[..cut]).unwrap(), masks[..whole], "{cut}");
        }
        let error = self::format::Mask::parse_all("mask x=s3cret\n").unwrap_err();
        assert!(!error.contains("s3cret") && !format!("{:?}", mask(1, "s3cret")).contains("s3cret"), "{error}");
    }

    #[test]
    fn the_engine_of_the_host_comes_first_unless_the_image_is_meant() {
        let mut spec = spec(Stage::Plan);
        let engines = |spec: &JobSpec, facts: &Facts<'_>| plan(spec, facts).unwrap().engines;
        assert_eq!(engines(&spec, &FACTS), ["/engine/terraform", "terraform"]);
        spec.image = Some("own/image".into());
        assert_eq!(engines(&spec, &FACTS), ["/engine/terraform", "terraform"]);
        spec.engine = Engine { kind: EngineKind::OpenTofu, version: None };
        assert_eq!(engines(&spec, &FACTS), ["tofu", "/engine/terraform"]);
        assert_eq!(engines(&spec, &Facts { engine: None, ..FACTS }), ["tofu"]);
    }

    #[test]
    fn working_directories_stay_inside() {
        for (path, wanted) in [
            ("", Some("")),
            ("a/b", Some("a/b")),
            ("/a/", Some("a")),
            ("./a//b/.", Some("a/b")),
            ("..", None),
            ("a/../b", None),
        ] {
            assert_eq!(working_directory(path).ok().as_deref(), wanted, "{path}");
        }
    }
}
