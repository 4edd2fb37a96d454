//! Where runs get their providers from: a mirror, which they can read and nobody of them can change, beside or instead
//! of the registries. Pure.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

use reqwest::Url;

/// The mirror, and whether registries are asked too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Providers {
    pub mirror: Option<Mirror>,
    /// What the mirror does not have may come from the registries.
    pub direct: bool,
}

impl Default for Providers {
    fn default() -> Self {
        Self { mirror: None, direct: true }
    }
}

/// Copies of providers' packages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mirror {
    /// Speaks the provider network mirror protocol.
    Network(Url),
    /// As `terraform providers mirror` fills it; absolute. Mounted read-only into run containers.
    Directory(PathBuf),
}

/// A text that names no mirror.
#[derive(Debug, thiserror::Error)]
#[error("`{text}` is no mirror of providers: {why}")]
pub struct InvalidMirror {
    text: String,
    why: &'static str,
}

impl FromStr for Mirror {
    type Err = InvalidMirror;

    fn from_str(text: &str) -> Result<Self, InvalidMirror> {
        let invalid = |why| InvalidMirror { text: text.to_owned(), why };
        // It becomes a string of the engine's configuration language, where these have a meaning.
        if text.contains(['"', '\\', '$', '%']) || text.contains(char::is_control) {
            return Err(invalid("quotes, backslashes, `$`, `%` and control characters cannot be in it"));
        }
        if text.starts_with('/') {
            return Ok(Self::Directory(PathBuf::from(text)));
        }
        let mut url =
            Url::parse(text).map_err(|_| invalid("it is neither an absolute path nor an address (https://…)"))?;
        if url.scheme() != "https" {
            return Err(invalid("the engines speak to network mirrors over https only"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(invalid("runs can read it, so no password can be in it"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(invalid("it can have neither a query nor a fragment"));
        }
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        Ok(Self::Network(url))
    }
}

impl Providers {
    /// The directory of the mirror on this host.
    #[must_use]
    pub fn directory(&self) -> Option<&Path> {
        match &self.mirror {
            Some(Mirror::Directory(path)) => Some(path),
            _ => None,
        }
    }

    /// The engine's configuration for runs that see the mirror where it is; `None`: none is needed.
    #[must_use]
    pub fn in_place(&self) -> Option<String> {
        let path = self.directory().map(|path| path.to_string_lossy().into_owned());
        self.mounted_at(path.as_deref().unwrap_or_default())
    }

    /// As [`Self::in_place`], for runs that see the directory at `path`.
    #[must_use]
    pub fn mounted_at(&self, path: &str) -> Option<String> {
        let mirror = match self.mirror.as_ref()? {
            Mirror::Network(url) => format!("network_mirror {{\n    url = \"{url}\"\n  }}"),
            Mirror::Directory(_) => format!("filesystem_mirror {{\n    path = \"{path}\"\n  }}"),
        };
        let direct = if self.direct { "\n  direct {}" } else { "" };
        Some(format!("provider_installation {{\n  {mirror}{direct}\n}}\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn providers(mirror: &str, direct: bool) -> Providers {
        Providers { mirror: Some(mirror.parse().unwrap()), direct }
    }

    #[test]
    fn without_a_mirror_the_engine_is_left_alone() {
        assert_eq!(Providers::default().in_place(), None);
    }

    #[test]
    fn a_directory_is_named_as_the_run_sees_it() {
        let providers = providers("/srv/mirror", true);
        assert_eq!(providers.directory(), Some(Path::new("/srv/mirror")));
        assert_eq!(
            providers.mounted_at("/terrapool/providers").unwrap(),
            "provider_installation {\n  filesystem_mirror {\n    path = \"/terrapool/providers\"\n  }\n  direct {}\n}\n"
        );
        assert!(providers.in_place().unwrap().contains("path = \"/srv/mirror\""));
    }

    #[test]
    fn a_network_mirror_may_be_all_there_is() {
        assert_eq!(
            providers("https://mirror.example/providers", false).in_place().unwrap(),
            "provider_installation {\n  network_mirror {\n    url = \"https://mirror.example/providers/\"\n  }\n}\n"
        );
    }

    #[test]
    fn what_names_no_mirror_is_refused() {
        for text in [
            "",
            "mirror",
            "./mirror",
            "http://mirror.example/",
            "ftp://x/",
            "https://u:p@mirror.example/",
            "https://mirror.example/?a=b",
            "/srv/${x}",
            "/srv/\"x",
            "/srv/a\nb",
            "/srv/%{x}",
            "/srv/a\\b",
        ] {
            assert!(text.parse::<Mirror>().is_err(), "{text}");
        }
    }
}
