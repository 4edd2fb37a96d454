//! What an agent's administrator decides about its run containers. Nothing of a workspace or a run changes any of it.

use crate::api::image_name::Pattern;

/// Name of the Docker network that the agent makes for run containers.
pub const NETWORK: &str = "terrapool";

/// Room for temporary files in `/tmp` where nothing else is said, in bytes.
const TMP: u64 = 512 << 20;

/// How run containers of the Docker executor are kept apart from host and network.
#[derive(Debug, Clone)]
pub struct Isolation {
    /// Docker network of the run containers; one of this name is made when there is none. `none`: no network at all.
    pub network: String,
    /// Addresses under which clouds hand out credentials are out of reach.
    pub block_metadata: bool,
    /// What listens on the host itself is out of reach.
    pub block_host: bool,
    /// Better no agent than one that cannot block what is to be blocked.
    pub require_block: bool,
    /// The images that runs may use; empty: all that their pool allows.
    pub allowed_images: Vec<Pattern>,
    pub pull: Pull,
    /// OCI runtime of the engine, as `runsc`; absent: the engine's default one.
    pub runtime: Option<String>,
    pub users: Users,
    /// Room in `/tmp`, in bytes.
    pub tmp_bytes: u64,
    /// Room for what a run as root writes beside its job directory, in bytes; absent: that of the host.
    pub disk_bytes: Option<u64>,
}

impl Default for Isolation {
    fn default() -> Self {
        Self {
            network: NETWORK.to_owned(),
            block_metadata: true,
            block_host: true,
            require_block: false,
            allowed_images: Vec::new(),
            pull: Pull::default(),
            runtime: None,
            users: Users::default(),
            tmp_bytes: TMP,
            disk_bytes: None,
        }
    }
}

/// When an image is asked for at its registry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Pull {
    /// When the engine does not have it.
    #[default]
    Missing,
    /// Before every run, unless its name fixes its content.
    Always,
}

impl std::str::FromStr for Pull {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "missing" => Ok(Self::Missing),
            "always" => Ok(Self::Always),
            other => Err(format!("`{other}` is not a time to pull images: missing or always")),
        }
    }
}

/// Whose users the users of a run container are, where the engine maps users (`userns-remap`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Users {
    /// The host's: user 65532 in the container is user 65532 on the host.
    #[default]
    Host,
    /// Those that the engine maps to: nobody on the host has their numbers.
    Engine,
}

impl std::str::FromStr for Users {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "host" => Ok(Self::Host),
            "engine" => Ok(Self::Engine),
            other => Err(format!("`{other}` does not say whose users a run has: host or engine")),
        }
    }
}
