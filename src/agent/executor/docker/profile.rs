//! What a run container may do and see. Pure: the whole hardening is this one value, and its test names every field.
//!
//! A container gets its job directory, the runner, the engine, the mirror and the cache of providers, and nothing else of
//! the host: no socket, no environment, no capability, no other user's files. Its own root is read-only.

use std::{
    collections::HashMap,
    path::{Component, Path, PathBuf},
};

use bollard::models::{ContainerCreateBody, HealthConfig, HostConfig, HostConfigLogConfig};

use super::{
    super::{Error, Result},
    network::check_name,
};
use crate::{
    agent::hooks::FOLDER,
    api::job::{JobSpec, Limits},
    ids::JobId,
};

/// Labels of run containers: which job, which epoch, whose.
pub(super) const JOB: &str = "terrapool.dev/job";
pub(super) const EPOCH: &str = "terrapool.dev/epoch";
pub(super) const AGENT: &str = "terrapool.dev/agent";
/// Label of run containers whose processes are root: `true`.
pub(super) const ROOT: &str = "terrapool.dev/run-as-root";
/// Label of containers that were started before their job was known: their own id. Labels cannot change, so from the
/// hand-over on it is the name that tells the job.
pub(super) const WARM: &str = "terrapool.dev/warm";

/// Where the container finds what it is given.
pub(super) const JOB_DIR: &str = "/terrapool/job";
pub(super) const RUNNER: &str = "/terrapool/runner";
pub(super) const ENGINE_DIR: &str = "/terrapool/engine";
pub(super) const PROVIDERS: &str = "/terrapool/providers";
pub(super) const PROVIDER_CACHE: &str = "/terrapool/provider-cache";
pub(super) const LINE: &str = "/terrapool/line";

/// Used where neither job nor agent say otherwise. Threads count as processes, and every provider has dozens.
const PIDS: i64 = 1024;
const MEMORY: i64 = 2 << 30;
const CPU_MILLIS: i64 = 2000;

/// What apt and yum need of root to install packages. Only for pools that ask for root.
const ROOT_CAPABILITIES: [&str; 7] = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID"];

/// A run container to be.
#[derive(Debug)]
pub(super) struct Profile<'a> {
    pub content: Content<'a>,
    pub image: &'a str,
    pub instance: &'a str,
    pub job_dir: &'a Path,
    /// The folder of hooks in the job directory, when it has one: no run may change them.
    pub hooks: Option<&'a Path>,
    pub runner: &'a Path,
    /// The mirror of provider packages on the host.
    pub providers: Option<&'a Path>,
    /// What other runs have fetched.
    pub provider_cache: Option<&'a Path>,
    /// `uid:gid`
    pub user: &'a str,
    /// Pool or agent want root.
    pub root: bool,
    /// Id or name of the network.
    pub network: &'a str,
    /// OCI runtime; absent: the engine's default one.
    pub runtime: Option<&'a str>,
    /// Room in `/tmp`, in bytes.
    pub tmp_bytes: u64,
    /// Room of the container's own layer, in bytes; absent: that of the host.
    pub disk_bytes: Option<u64>,
    /// The job's limits.
    pub job_limits: &'a Limits,
    /// The agent's limits, for what the job leaves open.
    pub limits: &'a Limits,
    /// Cores of the host: Docker refuses a limit above them.
    pub cores: Option<i64>,
    /// Files must be labelled for SELinux.
    pub selinux: bool,
    /// Docker maps users, and files of the host would belong to nobody.
    pub host_users: bool,
    pub grace_seconds: u64,
}

/// What differs between a container that is made for a job and one that waits for any: labels, mounts and arguments,
/// and nothing else.
#[derive(Debug, Clone, Copy)]
pub(super) enum Content<'a> {
    Job {
        spec: &'a JobSpec,
        /// An engine of the host.
        engine: Option<&'a Path>,
    },
    Warm {
        id: &'a str,
        /// Where the agent tells the runner that there is a job.
        line: &'a Path,
        /// Where the engine will lie.
        engines: &'a Path,
    },
}

/// Name of the container of a job.
pub(super) fn name(spec: &JobSpec) -> String {
    name_of(spec.job_id.as_str(), spec.epoch)
}

/// Name of the container of a job of that id and epoch.
pub(super) fn name_of(job: &str, epoch: i64) -> String {
    format!("terrapool-{job}-{epoch}")
}

/// Name of a container that waits.
pub(super) fn warm_name(id: &str) -> String {
    format!("terrapool-warm-{id}")
}

/// Whose container this is, job and epoch, going by its labels or, for one that had waited, by its name.
pub(super) fn job_of(labels: &HashMap<String, String>, name: &str) -> Option<(JobId, i64)> {
    let (job, epoch) = match labels.contains_key(WARM) {
        true => name.strip_prefix("terrapool-")?.rsplit_once('-')?,
        false => (labels.get(JOB)?.as_str(), labels.get(EPOCH)?.as_str()),
    };
    Some((job.parse().ok()?, epoch.parse().ok()?))
}

/// What has to be equal in a container that waits and in the one that a job would get.
pub(super) fn essence(mut body: ContainerCreateBody) -> ContainerCreateBody {
    (body.labels, body.cmd) = (None, None);
    if let Some(host) = &mut body.host_config {
        host.binds = None;
    }
    body
}

/// Where the container finds an engine of the host.
pub(super) fn engine_path(spec: &JobSpec) -> String {
    format!("{ENGINE_DIR}/{}", spec.engine.kind.program())
}

impl Profile<'_> {
    /// # Errors
    /// [`Error::Refused`] when a mount or the network would open the host to the run.
    pub(super) fn body(&self) -> Result<ContainerCreateBody> {
        let Self { image, instance, user, .. } = *self;
        let mut labels = vec![(AGENT, instance.to_owned()), (ROOT, self.root.to_string())];
        let arguments = match self.content {
            Content::Job { spec, .. } => {
                labels.extend([(JOB, spec.job_id.to_string()), (EPOCH, spec.epoch.to_string())]);
                vec![JOB_DIR.to_owned(), spec.epoch.to_string()]
            }
            Content::Warm { id, .. } => {
                labels.push((WARM, id.to_owned()));
                ["wait", LINE, JOB_DIR].map(str::to_owned).to_vec()
            }
        };
        Ok(ContainerCreateBody {
            image: Some(image.to_owned()),
            user: Some(user.to_owned()),
            entrypoint: Some(vec![RUNNER.to_owned()]),
            cmd: Some(arguments),
            working_dir: Some("/".to_owned()),
            labels: Some(labels.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
            healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..HealthConfig::default() }),
            stop_timeout: i64::try_from(self.grace_seconds).ok().map(|grace| grace + 5),
            host_config: Some(self.host()?),
            ..ContainerCreateBody::default()
        })
    }

    fn host(&self) -> Result<HostConfig> {
        let limit = |of: fn(&Limits) -> Option<i64>| of(self.job_limits).or_else(|| of(self.limits));
        let memory = limit(|limits| limits.memory_bytes).unwrap_or(MEMORY);
        let cores = limit(|limits| limits.cpu_millis).unwrap_or(CPU_MILLIS);
        let cores = self.cores.map_or(cores, |host| cores.min(host * 1000));
        let root = self.root;
        // Providers are started from it.
        let tmp = format!("rw,nosuid,nodev,exec,size={},mode=1777", self.tmp_bytes);
        let capabilities = || ROOT_CAPABILITIES.map(str::to_owned).to_vec();
        Ok(HostConfig {
            binds: Some(self.binds()?),
            cap_drop: Some(vec!["ALL".to_owned()]),
            cap_add: root.then(capabilities),
            security_opt: Some(vec!["no-new-privileges".to_owned()]),
            privileged: Some(false),
            // Packages can only be installed where there is something to write to.
            readonly_rootfs: Some(!root),
            tmpfs: Some(HashMap::from([("/tmp".to_owned(), tmp)])),
            memory: Some(memory),
            memory_swap: Some(memory),
            nano_cpus: Some(cores * 1_000_000),
            pids_limit: Some(limit(|limits| limits.pids).unwrap_or(PIDS)),
            ipc_mode: Some("private".to_owned()),
            network_mode: Some(self.network()?),
            runtime: self.runtime.map(str::to_owned),
            storage_opt: self.disk_bytes.map(|bytes| HashMap::from([("size".to_owned(), bytes.to_string())])),
            userns_mode: self.host_users.then(|| "host".to_owned()),
            log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
            auto_remove: Some(false),
            publish_all_ports: Some(false),
            ..HostConfig::default()
        })
    }

    fn network(&self) -> Result<String> {
        check_name(self.network)?;
        Ok(self.network.to_owned())
    }

    fn binds(&self) -> Result<Vec<String>> {
        let (own, shared) = if self.selinux { (",Z", ",z") } else { ("", "") };
        let mut binds =
            vec![bind(self.job_dir, JOB_DIR, &format!("rw{own}"))?, bind(self.runner, RUNNER, &format!("ro{shared}"))?];
        if let Some(hooks) = self.hooks {
            binds.push(bind(hooks, &format!("{JOB_DIR}/{FOLDER}"), &format!("ro{own}"))?);
        }
        match self.content {
            Content::Job { engine: None, .. } => {}
            Content::Job { spec, engine: Some(engine) } => {
                binds.push(bind(engine, &engine_path(spec), &format!("ro{shared}"))?);
            }
            Content::Warm { line, engines, .. } => {
                binds.push(bind(line, LINE, &format!("ro{own}"))?);
                binds.push(bind(engines, ENGINE_DIR, &format!("ro{own}"))?);
            }
        }
        for (from, to) in [(self.providers, PROVIDERS), (self.provider_cache, PROVIDER_CACHE)] {
            if let Some(from) = from {
                binds.push(bind(from, to, &format!("ro{shared}"))?);
            }
        }
        Ok(binds)
    }
}

/// What must never be handed to a run, nor anything in it.
const FORBIDDEN: [&str; 7] =
    ["/proc", "/sys", "/dev", "/boot", "/var/lib/docker", "/var/lib/containerd", "/var/lib/kubelet"];

/// What must never be handed to a run as a whole.
const FORBIDDEN_WHOLE: [&str; 12] =
    ["/", "/etc", "/root", "/home", "/usr", "/bin", "/lib", "/opt", "/run", "/var", "/var/run", "/var/lib"];

/// Whether a directory of the host can be shown to runs.
///
/// # Errors
/// [`Error::Refused`] says why it cannot.
pub(super) fn check_mount(from: &Path) -> Result<()> {
    bind(from, PROVIDER_CACHE, "ro").map(drop)
}

/// One mount of a bind, or why not.
fn bind(from: &Path, to: &str, options: &str) -> Result<String> {
    let shown = from.display();
    let refuse = |why: &str| Err(Error::Refused(format!("{shown} cannot be mounted into a run container: {why}")));
    let Some(text) = from.to_str() else { return refuse("its path is not text") };
    if !from.is_absolute() || from.components().any(|part| part == Component::ParentDir) {
        return refuse("its path is not absolute");
    }
    if text.contains(':') {
        return refuse("Docker does not take a path with a colon");
    }
    let plain: PathBuf = from.components().collect();
    let socket = plain.extension().is_some_and(|extension| extension == "sock");
    if socket
        || FORBIDDEN.iter().any(|path| plain.starts_with(path))
        || FORBIDDEN_WHOLE.iter().any(|path| plain == Path::new(path))
    {
        return refuse("it would open the host to the run");
    }
    Ok(format!("{text}:{to}:{options}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::job::{Category, RunVariable, Variable};

    #[test]
    fn paths_that_would_open_the_host_are_refused() {
        for path in [
            "/",
            "//",
            "/.",
            "/etc",
            "/root",
            "/home",
            "/usr",
            "/bin",
            "/lib",
            "/opt",
            "/run",
            "/var",
            "/var/run",
            "/var/lib",
            "/var/run/docker.sock",
            "/run/docker.sock",
            "/run/podman/podman.sock",
            "/tmp/copy.sock",
            "/run/containerd/containerd.sock",
            "/proc",
            "/proc/1/root",
            "/sys",
            "/sys/fs/cgroup",
            "/dev",
            "/dev/sda",
            "/boot",
            "/var/lib/docker",
            "/var/lib/docker/volumes/x",
            "/var/lib/kubelet/pki",
            "relative",
            "../up",
            "/tmp/../etc",
            "/tmp/a:b",
            "",
        ] {
            assert!(matches!(bind(Path::new(path), "/x", "ro"), Err(Error::Refused(_))), "{path}");
        }
    }

    fn profile<'a>(spec: &'a JobSpec, limits: &'a Limits) -> Profile<'a> {
        Profile {
            content: Content::Job { spec, engine: Some(Path::new("/usr/bin/terraform")) },
            image: "sha256:00",
            instance: "i",
            job_dir: Path::new("/data/jobs/job-1"),
            hooks: None,
            runner: Path::new("/data/bin/runner"),
            providers: None,
            provider_cache: None,
            user: "65532:65532",
            root: false,
            network: "terrapool",
            runtime: None,
            tmp_bytes: 1 << 20,
            disk_bytes: None,
            job_limits: &spec.limits,
            limits,
            cores: Some(8),
            selinux: false,
            host_users: false,
            grace_seconds: 1,
        }
    }

    #[test]
    fn container_settings_come_from_pool_and_agent_only() {
        let (plain, limits) = (JobSpec::plain(), Limits::default());
        let mut hostile = plain.clone();
        let wishes = [
            "TERRAPOOL_AGENT_NETWORK",
            "TERRAPOOL_AGENT_USER",
            "TERRAPOOL_AGENT_CONTAINER_RUNTIME",
            "TERRAPOOL_AGENT_RUN_MEMORY",
            "TERRAPOOL_AGENT_ALLOWED_IMAGES",
            "TERRAPOOL_AGENT_BLOCK_METADATA",
            "DOCKER_HOST",
            "DOCKER_OPTS",
            "LD_PRELOAD",
            "PATH",
            "HOME",
            "--privileged",
            "--volume=/:/host",
            "--network=host",
        ];
        for category in [Category::Env, Category::Terraform] {
            for key in wishes {
                let (key, value) = (key.to_owned(), "host --privileged -v /:/host\n".to_owned());
                hostile.variables.push(Variable { key, value, category, hcl: true, sensitive: false });
            }
        }
        let trick = "--privileged --network=host; $(id) `id` ../../etc\n";
        for field in [
            &mut hostile.workspace.name,
            &mut hostile.workspace.environment,
            &mut hostile.workspace.environment_id,
            &mut hostile.workspace.working_directory,
            &mut hostile.run.message,
            &mut hostile.run.source,
        ] {
            trick.clone_into(field);
        }
        hostile.run.target_addrs = vec![trick.to_owned()];
        hostile.run.replace_addrs = vec![trick.to_owned()];
        hostile.run.variables = vec![RunVariable { key: trick.to_owned(), value: trick.to_owned() }];
        hostile.engine.version = Some(trick.to_owned());
        let body = |spec: &JobSpec| profile(spec, &limits).body().unwrap();
        assert_eq!(body(&hostile), body(&plain));
        // That it would be seen.
        hostile.limits.pids = Some(7);
        assert_ne!(body(&hostile), body(&plain));
    }

    #[test]
    fn limits_are_the_jobs_or_else_the_agents_and_never_more_cores_than_there_are() {
        let (mut spec, mut limits) = (JobSpec::plain(), Limits::default());
        let host = |spec: &JobSpec, limits: &Limits| {
            let host = profile(spec, limits).body().unwrap().host_config.unwrap();
            (host.memory, host.memory_swap, host.nano_cpus, host.pids_limit)
        };
        assert_eq!(host(&spec, &limits), (Some(2 << 30), Some(2 << 30), Some(2_000_000_000), Some(1024)));
        limits = Limits { memory_bytes: Some(4 << 30), cpu_millis: Some(500), pids: Some(50) };
        assert_eq!(host(&spec, &limits), (Some(4 << 30), Some(4 << 30), Some(500_000_000), Some(50)));
        spec.limits = Limits { memory_bytes: Some(1 << 30), cpu_millis: Some(64_000), pids: None };
        assert_eq!(host(&spec, &limits), (Some(1 << 30), Some(1 << 30), Some(8_000_000_000), Some(50)));
    }

    #[test]
    fn root_is_no_more_than_root_and_says_so() {
        let (spec, limits) = (JobSpec::plain(), Limits::default());
        let body = Profile { root: true, user: "0:0", ..profile(&spec, &limits) }.body().unwrap();
        assert_eq!(body.labels.unwrap()[ROOT], "true");
        let host = body.host_config.unwrap();
        assert_eq!(host.cap_drop.unwrap(), ["ALL"]);
        assert_eq!(host.cap_add.unwrap(), ROOT_CAPABILITIES);
        assert_eq!((host.privileged, host.readonly_rootfs), (Some(false), Some(false)));
        assert_eq!(host.security_opt.unwrap(), ["no-new-privileges"]);
    }

    #[test]
    fn a_container_that_waits_differs_in_labels_mounts_and_arguments_only() {
        let (mut spec, limits) = (JobSpec::plain(), Limits::default());
        spec.limits.memory_bytes = Some(1 << 30);
        let [line, engines] = ["/data/warm/0a/line", "/data/warm/0a/engine"].map(Path::new);
        let content = Content::Warm { id: "0a", line, engines };
        let hooks = Some(Path::new("/data/warm/0a/job/hooks"));
        let of = |profile: Profile<'_>| profile.body().unwrap();
        let cold = of(profile(&spec, &limits));
        let waiting = of(Profile { content, hooks, ..profile(&spec, &limits) });
        assert_eq!(essence(waiting.clone()), essence(cold.clone()));
        assert_eq!(waiting.cmd.as_ref().unwrap(), &["wait", "/terrapool/line", "/terrapool/job"]);
        let binds = waiting.host_config.as_ref().unwrap().binds.as_ref().unwrap();
        assert_eq!(
            binds[2..],
            [
                "/data/warm/0a/job/hooks:/terrapool/job/hooks:ro",
                "/data/warm/0a/line:/terrapool/line:ro",
                "/data/warm/0a/engine:/terrapool/engine:ro"
            ]
        );
        // That a difference would be seen.
        let other = |profile: Profile<'_>| assert_ne!(essence(of(profile)), essence(waiting.clone()));
        other(Profile { image: "sha256:01", ..profile(&spec, &limits) });
        other(Profile { user: "0:0", root: true, ..profile(&spec, &limits) });
        other(Profile { network: "n", ..profile(&spec, &limits) });
        other(Profile { runtime: Some("runsc"), ..profile(&spec, &limits) });
        other(Profile { tmp_bytes: 1, ..profile(&spec, &limits) });
        other(Profile { disk_bytes: Some(1), ..profile(&spec, &limits) });
        other(Profile { job_limits: &Limits::default(), ..profile(&spec, &limits) });
        other(Profile { host_users: true, ..profile(&spec, &limits) });
    }

    #[test]
    fn whose_a_container_is_comes_from_its_labels_or_its_name() {
        let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let job = JobId::random();
        let made = labels(&[(JOB, job.as_str()), (EPOCH, "3")]);
        assert_eq!(job_of(&made, "terrapool-x-1"), Some((job.clone(), 3)));
        let warm = labels(&[(WARM, "0a")]);
        assert_eq!(job_of(&warm, &name_of(job.as_str(), 2)), Some((job, 2)));
        for name in [warm_name("0a").as_str(), "terrapool-", "other", ""] {
            assert_eq!(job_of(&warm, name), None, "{name}");
        }
        assert_eq!(job_of(&HashMap::new(), "terrapool-x-1"), None);
    }

    #[test]
    fn a_network_that_is_not_the_runs_own_makes_no_container() {
        let (spec, limits) = (JobSpec::plain(), Limits::default());
        for network in ["host", "container:other", "", "-x"] {
            let body = Profile { network, ..profile(&spec, &limits) }.body();
            assert!(matches!(body, Err(Error::Refused(_))), "{network:?}");
        }
    }

    #[test]
    fn job_directories_are_mounted() {
        for path in ["/var/lib/terrapool/jobs/job-1", "/root/data/jobs/job-1", "/usr/local/bin/terraform", "/home/a/b"]
        {
            assert_eq!(bind(Path::new(path), "/x", "ro").unwrap(), format!("{path}:/x:ro"));
        }
    }
}
