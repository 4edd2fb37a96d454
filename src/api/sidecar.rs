//! What a Pod with an agent and a run container must look like: the contract between whoever makes such Pods and the
//! agent's Sidecar executor. No Kubernetes API is used by either container, and none needs a service account.
//!
//! ```text
//! volumes         terrapool        emptyDir                     the two containers meet here
//!                 agent-data       emptyDir                     the agent's alone: identity, tokens, jobs with their secrets
//!                 pool-token       secret, defaultMode 0440     the agent's alone
//!
//! initContainers  place-runner     image: terrapool             args: [`place_arguments`]
//!                                  mounts: terrapool at [`VOLUME`]
//!
//! containers      agent            image: terrapool             args: [`AgentArguments::to_vec`]
//!                                  mounts: terrapool at [`VOLUME`], agent-data at [`AGENT_DATA`],
//!                                          pool-token at the folder of [`TOKEN_FILE`], read-only
//!                 run              image: the pool's run image  command: [`run_command`], no args
//!                                  mounts: terrapool at [`VOLUME`], and an emptyDir at /tmp when the root file system
//!                                          is read-only and runs want /tmp ($TMPDIR and $HOME lie in [`VOLUME`] anyway)
//!
//! restartPolicy: Never   shareProcessNamespace: false   automountServiceAccountToken: false   enableServiceLinks: false
//! terminationGracePeriodSeconds: the drain time-out plus [`STOP_SECONDS`]
//! securityContext (both)   runAsNonRoot, runAsUser = runAsGroup = fsGroup = [`USER`], seccompProfile RuntimeDefault,
//!                          allowPrivilegeEscalation false, capabilities drop ALL, readOnlyRootFilesystem: "restricted"
//! ```
//!
//! **Users.** The same user in both containers is the plain case: the job directory is its alone (0700). The run
//! container may have another one, for an image that insists: then the job directory is open to every user, which in
//! a volume of two containers means just these two. In root mode the run container alone has `runAsUser: 0` (and no
//! `runAsNonRoot`); the agent gets `--user root`, stays [`USER`], and takes no job when the run container's user is
//! not what the pool says.
//!
//! **Secrets.** The run container must mount neither agent-data nor pool-token, and get no variable of the agent's.
//! Everything that a run needs comes through the job directory.
//!
//! **Life.** The run container's runner takes its place and says so; before that the agent does not even register, so
//! a Pod whose run image cannot be pulled is no agent. The agent takes one job (`--once`), hands the directory over,
//! carries log, state and result to the control plane, deregisters, and exits 0; the runner sees that the agent is
//! gone and exits 0: the Pod has *Succeeded*. The same happens without a job after `--idle-timeout`, when the control
//! plane cordons an idle agent, and on SIGTERM (within about a second when idle).
//!
//! **Termination.** SIGTERM reaches both containers at once. The runner leaves the decision to its agent: a running job
//! goes on until it ends or `--drain-timeout` is over; then the engine is interrupted, killed after its grace time, and
//! everything is delivered, for which there are [`STOP_SECONDS`]. Without an agent the runner exits at once.
//!
//! **Death.** When the agent is gone (crash, memory) while a job runs, the runner interrupts the engine after
//! a few seconds: nothing goes on unfenced, and the state stays in the volume as long as the Pod does. Should the run keep
//! the runner from that, the operator deletes the Pod by the time that the job's lease is over. When the run
//! container is gone, the agent notices within a second and reports the job as `container_lost`; an agent that has no
//! job deregisters. Whether it was memory cannot be seen from inside: the run container's status in the Pod says it.

use std::time::Duration;

/// Where both containers mount their common volume.
pub const VOLUME: &str = "/terrapool";

/// The runner's program, which the init container puts into the volume. Static: it runs in any image.
pub const RUNNER: &str = "/terrapool/runner";

/// Where the agent container mounts its own volume.
pub const AGENT_DATA: &str = "/var/lib/terrapool-agent";

/// The pool token, from a Secret volume that only the agent container mounts.
pub const TOKEN_FILE: &str = "/etc/terrapool/pool/token";

/// Certificates to trust beside the system's, when that Secret has them: for [`AgentArguments::ca_file`].
pub const CA_FILE: &str = "/etc/terrapool/pool/ca.crt";

/// User and group of the containers, when nobody asks for others.
pub const USER: i64 = 65_532;

/// What an agent needs beyond its drain time-out, in seconds: the engine's grace time after the interrupt, a kill,
/// delivery of what is left, signing off.
pub const STOP_SECONDS: i64 = 100;

/// Names of the Pod's containers.
pub mod container {
    pub const PLACE_RUNNER: &str = "place-runner";
    pub const AGENT: &str = "agent";
    pub const RUN: &str = "run";
}

/// Arguments of the init container; the image's entry point is `terrapool`.
#[must_use]
pub fn place_arguments() -> Vec<String> {
    ["agent", "place-runner", VOLUME].map(str::to_owned).to_vec()
}

/// Command of the run container, in place of its image's entry point; it has no arguments.
#[must_use]
pub fn run_command() -> Vec<String> {
    [RUNNER, "wait", VOLUME].map(str::to_owned).to_vec()
}

/// What the agent container is started with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AgentArguments {
    /// Address of the control plane.
    pub url: String,
    /// Unique in the pool: the Pod's name.
    pub name: String,
    /// Image of the run container, exactly as jobs name it: only its jobs are taken. Absent: the run container has an
    /// image of the operator's choice, and jobs that name none are taken.
    pub run_image: Option<String>,
    /// The run container's user is root.
    pub root: bool,
    /// The agent leaves when it got no job for so long. Whole seconds.
    pub idle_timeout: Option<Duration>,
    /// After SIGTERM a job may go on for so long. Whole seconds. Absent: as long as it takes.
    pub drain_timeout: Option<Duration>,
    /// Certificates to trust beside the system's.
    pub ca_file: Option<String>,
    /// Folder with engines in the agent's image or a volume of it, for run images that have none.
    pub engine_dir: Option<String>,
    /// Shown with the agent.
    pub labels: Vec<(String, String)>,
}

impl AgentArguments {
    /// Arguments of the agent container; the image's entry point is `terrapool`. Nothing in them is secret.
    #[must_use]
    pub fn to_vec(&self) -> Vec<String> {
        let Self { url, name, run_image, root, idle_timeout, drain_timeout, ca_file, engine_dir, labels } = self;
        let mut args: Vec<String> = ["agent", "run", "--executor", "sidecar", "--once"].map(str::to_owned).to_vec();
        let mut flag = |flag: &str, value: &str| args.push(format!("--{flag}={value}"));
        flag("url", url);
        flag("name", name);
        flag("token-file", TOKEN_FILE);
        flag("data", AGENT_DATA);
        flag("sidecar-dir", VOLUME);
        if *root {
            flag("user", "root");
        }
        let seconds = |time: &Option<Duration>| time.map(|time| format!("{}s", time.as_secs()));
        let (idle, drain) = (seconds(idle_timeout), seconds(drain_timeout));
        for (name, value) in [
            ("run-image", run_image),
            ("idle-timeout", &idle),
            ("drain-timeout", &drain),
            ("ca-file", ca_file),
            ("engine-dir", engine_dir),
        ] {
            if let Some(value) = value {
                flag(name, value);
            }
        }
        for (key, value) in labels {
            flag("label", &format!("{key}={value}"));
        }
        args
    }
}
