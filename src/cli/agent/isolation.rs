//! Options of `terrapool agent run` about the run containers of the Docker executor.

use super::size;
use crate::{
    agent::executor::{Isolation, NETWORK, Pull, Settings, Users},
    api::{
        image_name::{ImageName, Pattern},
        job::Limits,
    },
};

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Run containers (docker executor)")]
pub(in crate::cli) struct IsolationArgs {
    /// Docker network of the run containers; it is made when there is none of that name, and then keeps them from each
    /// other. `none`: no network at all.
    #[arg(long, env = "TERRAPOOL_AGENT_NETWORK", default_value = NETWORK, value_name = "NAME")]
    network: String,
    /// Keep runs from the addresses under which clouds hand out credentials, as 169.254.169.254. Takes root and iptables.
    #[arg(long, env = "TERRAPOOL_AGENT_BLOCK_METADATA", default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    block_metadata: bool,
    /// Keep runs from what listens on this host itself, except DNS. Takes root and iptables.
    #[arg(long, env = "TERRAPOOL_AGENT_BLOCK_HOST", default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    block_host: bool,
    /// Do not start, and start no run, when that cannot be blocked. Default: a warning.
    #[arg(long, env = "TERRAPOOL_AGENT_REQUIRE_NETWORK_BLOCK")]
    require_network_block: bool,
    /// An image that runs may use, as `docker.io/hashicorp/terraform` or `ghcr.io/acme/*:stable`; may be given several
    /// times. Default: what the pool allows.
    #[arg(
        long = "allowed-image",
        env = "TERRAPOOL_AGENT_ALLOWED_IMAGES",
        value_name = "PATTERN",
        value_delimiter = ','
    )]
    allowed_images: Vec<Pattern>,
    /// Image of runs that name none, and of containers that wait before there was a run. Default: a minimal one, made of
    /// this host's files.
    #[arg(long, env = "TERRAPOOL_AGENT_DEFAULT_IMAGE", value_name = "IMAGE", value_parser = image)]
    default_image: Option<String>,
    /// When images are pulled: missing, or always (before every run, unless the name has a digest).
    #[arg(long, env = "TERRAPOOL_AGENT_PULL", default_value = "missing", value_name = "WHEN")]
    pull: Pull,
    /// OCI runtime of the engine for run containers, as `runsc`. Default: the engine's own default.
    #[arg(long, env = "TERRAPOOL_AGENT_CONTAINER_RUNTIME", value_name = "NAME")]
    container_runtime: Option<String>,
    /// Where the engine maps users (userns-remap): `engine` keeps run containers mapped, `host` does not.
    #[arg(long, env = "TERRAPOOL_AGENT_USERNS", default_value = "host", value_name = "WHOSE")]
    userns: Users,
    /// Containers that are started before there is a job and wait for one, each for one job. They and the runs together are
    /// never more than --concurrency.
    #[arg(long, env = "TERRAPOOL_AGENT_WARM", default_value_t = 0, value_name = "COUNT")]
    warm: usize,
    /// Memory of a run whose pool sets none, as 4GiB. Default: 2GiB.
    #[arg(long, env = "TERRAPOOL_AGENT_RUN_MEMORY", value_name = "SIZE", value_parser = size::of_run)]
    run_memory: Option<u64>,
    /// CPUs of a run whose pool sets none, as 0.5. Default: 2.
    #[arg(long, env = "TERRAPOOL_AGENT_RUN_CPUS", value_name = "CPUS", value_parser = millis)]
    run_cpus: Option<i64>,
    /// Processes and threads of a run. Default: 1024.
    #[arg(long, env = "TERRAPOOL_AGENT_RUN_PIDS", value_name = "COUNT", value_parser = clap::value_parser!(i64).range(16..))]
    run_pids: Option<i64>,
    /// Room of a run in /tmp, which is memory. Default: 512MiB.
    #[arg(long, env = "TERRAPOOL_AGENT_RUN_TMP", value_name = "SIZE", value_parser = size::of_run)]
    run_tmp: Option<u64>,
    /// Room of a run as root for what it installs, where the engine's storage can limit it. Default: no limit.
    #[arg(long, env = "TERRAPOOL_AGENT_RUN_DISK", value_name = "SIZE", value_parser = size::of_run)]
    run_disk: Option<u64>,
}

impl IsolationArgs {
    /// Sets the executor up as the options say.
    pub(super) fn apply(self, settings: &mut Settings) {
        // In full: a new option must be thought about here.
        let Self {
            network,
            block_metadata,
            block_host,
            require_network_block: require_block,
            allowed_images,
            default_image,
            pull,
            container_runtime: runtime,
            userns: users,
            warm,
            run_memory,
            run_cpus: cpu_millis,
            run_pids: pids,
            run_tmp,
            run_disk: disk_bytes,
        } = self;
        settings.warm = warm;
        settings.default_image = default_image;
        let tmp_bytes = run_tmp.unwrap_or(settings.isolation.tmp_bytes);
        settings.limits =
            Limits { memory_bytes: run_memory.and_then(|bytes| i64::try_from(bytes).ok()), cpu_millis, pids };
        settings.isolation = Isolation {
            network,
            block_metadata,
            block_host,
            require_block,
            allowed_images,
            pull,
            runtime,
            users,
            tmp_bytes,
            disk_bytes,
        };
    }
}

/// The name of an image.
fn image(text: &str) -> Result<String, String> {
    let named = ImageName::parse(text).map(|_| text.to_owned());
    named.ok_or_else(|| format!("`{text}` is not an image reference, as registry/name:tag"))
}

/// Thousandths of a core.
fn millis(text: &str) -> Result<i64, String> {
    let cpus = text.parse::<f64>().ok().filter(|cpus| (0.01..=4096.0).contains(cpus));
    cpus.map(|cpus| (cpus * 1000.0).round() as i64)
        .ok_or_else(|| format!("`{text}` is not a number of CPUs, as 2 or 0.5"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: IsolationArgs,
    }

    fn settings(arguments: &[&str]) -> Result<Settings, clap::Error> {
        let line = Line::try_parse_from(std::iter::once("agent").chain(arguments.iter().copied()))?;
        let mut settings = Settings::new("/data".into(), String::new());
        line.args.apply(&mut settings);
        Ok(settings)
    }

    #[test]
    fn without_options_everything_that_can_be_blocked_is() {
        let Settings { isolation, limits, warm, default_image, .. } = settings(&[]).unwrap();
        assert_eq!((warm, default_image), (0, None));
        assert!(isolation.block_metadata && isolation.block_host && !isolation.require_block);
        assert_eq!(
            (isolation.network.as_str(), isolation.pull, isolation.users),
            (NETWORK, Pull::Missing, Users::Host)
        );
        assert_eq!((isolation.tmp_bytes, limits), (512 << 20, Limits::default()));
    }

    #[test]
    fn every_option_arrives() {
        let arguments = "--network own --block-metadata=false --block-host=false --require-network-block --pull always \
            --allowed-image alpine:3 --allowed-image ghcr.io/acme/*,b --container-runtime runsc --userns engine \
            --warm 3 --default-image alpine:3 --run-memory 4GiB --run-cpus 0.5 --run-pids 99 --run-tmp 1g --run-disk 10GB";
        let Settings { isolation, limits, warm, default_image, .. } =
            settings(&arguments.split_whitespace().collect::<Vec<_>>()).unwrap();
        assert!(!isolation.block_metadata && !isolation.block_host && isolation.require_block);
        assert_eq!((isolation.network.as_str(), isolation.pull, isolation.users), ("own", Pull::Always, Users::Engine));
        let allowed: Vec<String> = isolation.allowed_images.iter().map(ToString::to_string).collect();
        assert_eq!(allowed, ["alpine:3", "ghcr.io/acme/*", "b"]);
        assert_eq!((isolation.runtime.as_deref(), warm), (Some("runsc"), 3));
        assert_eq!(default_image.as_deref(), Some("alpine:3"));
        assert_eq!((isolation.tmp_bytes, isolation.disk_bytes), (1 << 30, Some(10 << 30)));
        assert_eq!(limits, Limits { memory_bytes: Some(4 << 30), cpu_millis: Some(500), pids: Some(99) });
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for arguments in [
            ["--run-memory", "4"],
            ["--run-memory", "1MiB"],
            ["--run-cpus", "0"],
            ["--run-cpus", "-1"],
            ["--run-cpus", "nan"],
            ["--run-cpus", "many"],
            ["--run-pids", "0"],
            ["--pull", "never"],
            ["--default-image", "Not an image"],
            ["--userns", "other"],
            ["--allowed-image", "ghcr.io/acme/terra*"],
            ["--block-metadata=perhaps", "--block-host"],
        ] {
            assert!(settings(&arguments).is_err(), "{arguments:?}");
        }
    }
}
