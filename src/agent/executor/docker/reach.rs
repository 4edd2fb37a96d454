//! What run containers can reach: their network, and the rules that hold for it. Made at the agent's start, before every
//! container, and from time to time while one runs: networks are pruned and rules are flushed by others.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    super::{Error, Isolation, NETWORK, Result},
    firewall::{self, Block, Made},
    hold::Hold,
    network::{self, Network},
};
use crate::telemetry::Chain;

/// How long rules are believed to be there while containers run.
const RENEW: Duration = Duration::from_secs(30);

/// The engine's own network, for when none can be made.
const ENGINES_OWN: &str = "bridge";

#[derive(Debug)]
pub(super) struct Reach {
    isolation: Isolation,
    rootless: bool,
    /// The rules that were made last, and when they were last seen.
    made: Mutex<Option<(Made, Instant)>>,
}

/// What a container is started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Way {
    /// Id or name of its network.
    pub network: String,
    /// Why it can reach what it should not, in words.
    pub open: Option<String>,
}

impl Reach {
    /// # Errors
    /// [`Error::Refused`] for a network that is not the runs' own.
    pub(super) fn new(isolation: Isolation, rootless: bool) -> Result<Self> {
        network::check_name(&isolation.network)?;
        Ok(Self { isolation, rootless, made: Mutex::new(None) })
    }

    /// Nobody takes the network away as long as the value lives.
    pub(super) async fn hold(&self) -> Hold {
        Hold::shared(&self.isolation.network).await
    }

    /// Has network and rules. Others flush and prune as they like, so whether they are there is asked every time.
    ///
    /// # Errors
    /// When there is no network, or what must be blocked cannot be.
    pub(super) async fn make(&self, docker: &bollard::Docker) -> Result<Way> {
        let name = &self.isolation.network;
        if name == network::NONE {
            return Ok(Way { network: name.clone(), open: None });
        }
        let (network, open) = match network::obtain(docker, name).await {
            Ok(network) => {
                let open = self.block(&network).await.err();
                (network.id, open)
            }
            // The engine's own bridge is also that of others, so no rules are made for it unasked.
            Err(error) if name == NETWORK && !self.isolation.require_block => (
                ENGINES_OWN.to_owned(),
                Some(format!("{}, so they are on the engine's own network, with other containers", Chain(&error))),
            ),
            Err(error) => return Err(error),
        };
        match open {
            Some(why) if self.isolation.require_block => Err(Error::Refused(format!(
                "runs would reach {}: {why}. Without --require-network-block they may",
                self.what()
            ))),
            open => Ok(Way { network, open: open.map(|why| self.warning(&why)) }),
        }
    }

    /// Takes away what was made: the network, unless it is somebody else's or in use, and with it its rules.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub(super) async fn clear(&self, docker: &bollard::Docker) -> Result<()> {
        let Some(_hold) = Hold::alone(&self.isolation.network) else { return Ok(()) };
        let Some(network) = network::find(docker, &self.isolation.network).await? else { return Ok(()) };
        if network.used || (network.ours && !network::remove(docker, &network).await?) {
            return Ok(());
        }
        if let Some(block) = self.rules(&network) {
            firewall::clear(&block).await;
        }
        Ok(())
    }

    /// What is to be blocked on this network; absent: it is no bridge.
    fn rules(&self, network: &Network) -> Option<Block> {
        let Isolation { block_metadata: metadata, block_host: host, .. } = self.isolation;
        network.bridge.clone().map(|bridge| Block { bridge, ipv6: network.ipv6, metadata, host })
    }

    async fn block(&self, network: &Network) -> Result<(), String> {
        let block = self.rules(network);
        if !self.isolation.block_metadata && !self.isolation.block_host {
            if let Some(block) = block {
                firewall::clear(&block).await;
            }
            return Ok(());
        }
        let Some(block) = block else {
            return Err(format!("only a bridge has rules, and this network's driver is `{}`", network.driver));
        };
        if self.rootless {
            return Err("the engine is rootless, and its networks are hidden from the host's rules".to_owned());
        }
        let before = self.made().as_ref().map(|(made, _)| made.clone());
        let made = firewall::make(&block, before).await?;
        *self.made() = Some((made, Instant::now()));
        Ok(())
    }

    fn made(&self) -> MutexGuard<'_, Option<(Made, Instant)>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the rules again that have been there, after a while.
    pub(super) async fn renew(&self) {
        let due = match &mut *self.made() {
            Some((made, at)) if at.elapsed() >= RENEW => {
                *at = Instant::now();
                made.clone()
            }
            _ => return,
        };
        match firewall::make(&due.block.clone(), Some(due)).await {
            Ok(made) => *self.made() = Some((made, Instant::now())),
            Err(why) => tracing::warn!("{}", self.warning(&why)),
        }
    }

    fn what(&self) -> &'static str {
        match (self.isolation.block_metadata, self.isolation.block_host) {
            (true, false) => "the cloud's metadata addresses",
            (false, true) => "what listens on this host",
            (true, true) => "the cloud's metadata addresses and what listens on this host",
            (false, false) => "other containers of the engine",
        }
    }

    fn warning(&self, why: &str) -> String {
        format!(
            "Runs can reach {}: {why}. Start the agent as root on the engine's host with iptables installed; \
             --block-metadata=false and --block-host=false say that it is meant.",
            self.what()
        )
    }
}
