//! Flags about terraform, tofu and their providers.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, ensure};

use super::{super::engines, size};
use crate::{
    agent::{
        engine::{Engines, Origin, Releases, Settings},
        provider_cache::ProviderCache,
        providers::{Mirror, Providers},
    },
    crd::common::Span,
};

#[derive(Debug, clap::Args)]
pub(super) struct EngineArgs {
    /// Directory with terraform and tofu programs, as `terraform_1.11.4`.
    #[arg(long, env = "TERRAPOOL_AGENT_ENGINE_DIR", value_name = "DIR")]
    engine_dir: Option<PathBuf>,
    /// Download engines that are not on this host: verified releases of their publishers.
    #[arg(long, env = "TERRAPOOL_AGENT_ENGINE_DOWNLOAD", value_name = "BOOL", default_value_t = true,
        action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    engine_download: bool,
    /// Where engines are downloaded from instead of their publishers: a base address, or a template with {program},
    /// {version} and {file}.
    #[arg(long, env = "TERRAPOOL_AGENT_ENGINE_MIRROR", value_name = "URL")]
    engine_mirror: Option<Origin>,
    /// OpenPGP public key that releases may be signed with, beside the publishers'; may be given several times.
    #[arg(long = "engine-key", env = "TERRAPOOL_AGENT_ENGINE_KEYS", value_name = "FILE", value_delimiter = ',')]
    engine_keys: Vec<PathBuf>,
    /// Longest time of one download of an engine.
    #[arg(long, env = "TERRAPOOL_AGENT_ENGINE_TIMEOUT", value_name = "DURATION", default_value = "10m")]
    engine_timeout: Span,
    /// Cache of downloaded engines; agents of one user may share it. Default: `cache` in the data directory.
    #[arg(long, env = "TERRAPOOL_AGENT_CACHE_DIR", value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// What the cache may take; beyond it, what was not used for longest is removed.
    #[arg(long, env = "TERRAPOOL_AGENT_CACHE_SIZE", value_name = "SIZE", default_value = "10GiB", value_parser = size::of_cache)]
    cache_size: u64,
    /// Mirror of providers for all runs: the address of a network mirror, or a directory as `terraform providers mirror`
    /// fills it, which run containers see read-only.
    #[arg(long, env = "TERRAPOOL_AGENT_PROVIDER_MIRROR", value_name = "URL|DIR")]
    provider_mirror: Option<Mirror>,
    /// With --provider-mirror: ask the registries too.
    #[arg(long, env = "TERRAPOOL_AGENT_PROVIDER_DIRECT", value_name = "BOOL", default_value_t = true,
        action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    provider_direct: bool,
    /// What providers that runs have fetched may take in the cache, for later runs; 0: none are kept.
    #[arg(long, env = "TERRAPOOL_AGENT_PROVIDER_CACHE_SIZE", value_name = "SIZE", default_value = "10GiB", value_parser = size::of_cache)]
    provider_cache_size: u64,
}

/// What the flags come to.
#[derive(Debug)]
pub(super) struct Settled {
    pub(super) engines: Engines,
    pub(super) providers: Providers,
    pub(super) provider_cache: Option<Arc<ProviderCache>>,
}

impl EngineArgs {
    /// Engines and providers of an agent whose data is at `data`.
    pub(super) fn into_settings(self, data: &Path, ca_file: Option<&Path>) -> anyhow::Result<Settled> {
        let Self { engine_dir, engine_download, engine_mirror, engine_keys, engine_timeout, .. } = self;
        ensure!(
            self.provider_direct || self.provider_mirror.is_some(),
            "without registries (--provider-direct=false) runs need a mirror of providers (--provider-mirror)"
        );
        let cache_dir = match self.cache_dir {
            Some(dir) => std::path::absolute(&dir).with_context(|| format!("could not find {}", dir.display()))?,
            None => data.join("cache"),
        };
        if let Some(Mirror::Directory(dir)) = &self.provider_mirror {
            ensure!(dir.is_dir(), "there is no directory {} (--provider-mirror)", dir.display());
        }
        let size = self.provider_cache_size;
        let provider_cache = (size > 0).then(|| Arc::new(ProviderCache::new(&cache_dir, size)));
        let releases = Releases::new(Settings {
            cache_dir,
            cache_size: self.cache_size,
            download: engine_download,
            origin: engine_mirror.unwrap_or_default(),
            keys: engine_keys,
            ca_file: ca_file.map(Path::to_owned),
            deadline: engine_timeout.as_duration(),
        })?;
        let engines = engines(engine_dir).with_releases(Arc::new(releases));
        let providers = Providers { mirror: self.provider_mirror, direct: self.provider_direct };
        Ok(Settled { engines, providers, provider_cache })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: EngineArgs,
    }

    fn parse(line: &[&str]) -> Result<EngineArgs, clap::Error> {
        Line::try_parse_from(std::iter::once("agent").chain(line.iter().copied())).map(|line| line.args)
    }

    #[test]
    fn downloads_and_registries_can_be_switched_off() {
        let args = parse(&[]).unwrap();
        assert!(args.engine_download && args.provider_direct);
        let args = parse(&["--engine-download=false", "--provider-direct=false"]).unwrap();
        assert!(!args.engine_download && !args.provider_direct);
        let error = args.into_settings(Path::new("/nonexistent"), None).unwrap_err();
        assert!(error.to_string().contains("--provider-mirror"), "{error}");
    }

    #[test]
    fn providers_are_kept_in_the_cache_directory_unless_they_may_take_nothing() {
        let cache_of =
            |line: &[&str]| parse(line).unwrap().into_settings(Path::new("/data"), None).unwrap().provider_cache;
        assert_eq!(cache_of(&[]).unwrap().dir(), Path::new("/data/cache/providers"));
        assert_eq!(cache_of(&["--cache-dir=/srv/cache"]).unwrap().dir(), Path::new("/srv/cache/providers"));
        for off in ["--provider-cache-size=0", "--provider-cache-size=0GiB"] {
            assert!(cache_of(&[off]).is_none(), "{off}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_at_once() {
        for line in
            ["--engine-mirror=mirror", "--provider-mirror=http://x/", "--cache-size=10", "--provider-cache-size=10"]
        {
            assert!(parse(&[line]).is_err(), "{line}");
        }
        for line in ["--engine-key=/nonexistent", "--provider-mirror=/nonexistent"] {
            let error = parse(&[line]).unwrap().into_settings(Path::new("/nonexistent"), None).unwrap_err();
            assert!(error.to_string().contains("/nonexistent"), "{error}");
        }
    }
}
