//! What a package of a provider is called, and how its content is. Pure.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use sha2::{Digest, Sha256};

use crate::{agent::engine::architecture, hash::hex};

/// Longest part of a name: it becomes the name of a directory.
const LONGEST: usize = 128;

/// A version of a provider for this machine's platform. Every part of it is the name of a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Package {
    host: String,
    namespace: String,
    kind: String,
    version: String,
}

impl Package {
    /// `None`: such parts are not those of a provider, or only those of one that is not kept.
    pub(super) fn new(host: &str, namespace: &str, kind: &str, version: &str) -> Option<Self> {
        let valid = is_host(host) && is_name(namespace) && is_name(kind) && is_version(version);
        let [host, namespace, kind, version] = [host, namespace, kind, version].map(str::to_owned);
        valid.then_some(Self { host, namespace, kind, version })
    }

    /// A provider as lock files name it, `registry.terraform.io/hashicorp/null`, of this version.
    pub(super) fn of_address(address: &str, version: &str) -> Option<Self> {
        let mut parts = address.split('/');
        let package = Self::new(parts.next()?, parts.next()?, parts.next()?, version)?;
        parts.next().is_none().then_some(package)
    }

    /// Where engines look for it below their directory of plugins: `HOST/NAMESPACE/TYPE/VERSION/PLATFORM`.
    pub(super) fn path(&self) -> PathBuf {
        [&self.host, &self.namespace, &self.kind, &self.version, &platform()].iter().collect()
    }
}

impl fmt::Display for Package {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{} {}", self.host, self.namespace, self.kind, self.version)
    }
}

/// `linux_amd64`
pub(super) fn platform() -> String {
    format!("linux_{}", architecture())
}

/// `registry.terraform.io`, `localhost:8443`
pub(super) fn is_host(text: &str) -> bool {
    let (name, port) = text.split_once(':').unwrap_or((text, "1"));
    text.len() <= LONGEST
        && name.split('.').all(|label| {
            label.starts_with(|c: char| c.is_ascii_alphanumeric())
                && label.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        })
        && port.parse::<u16>().is_ok_and(|number| number.to_string() == port)
}

/// A namespace or type.
pub(super) fn is_name(text: &str) -> bool {
    text.len() <= LONGEST
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_'))
}

pub(super) fn is_version(text: &str) -> bool {
    text.len() <= LONGEST && semver::Version::parse(text).is_ok()
}

/// Digest of the content of a package: names of files and their bytes. `h1:` in lock files, `Hash1` of Go's `dirhash`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct H1([u8; 32]);

impl H1 {
    /// Of files by their path below the package, with the SHA-256 of each as 64 hexadecimal digits.
    pub(super) fn of(files: &BTreeMap<String, String>) -> Self {
        let mut digest = Sha256::new();
        for (name, sha256) in files {
            digest.update(format!("{sha256}  {name}\n"));
        }
        Self(digest.finalize().into())
    }

    /// As the name of a directory: base64 has characters that cannot be in one.
    pub(super) fn file_name(self) -> String {
        hex(self.0)
    }

    pub(super) fn of_file_name(name: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(name.get(2 * at..2 * at + 2)?, 16).ok()?;
        }
        let found = Self(bytes);
        // One name for one content: no capitals, nothing behind.
        (found.file_name() == name).then_some(found)
    }
}

/// A text that is no such digest.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InvalidH1;

impl FromStr for H1 {
    type Err = InvalidH1;

    fn from_str(text: &str) -> Result<Self, InvalidH1> {
        let bytes = STANDARD.decode(text.strip_prefix("h1:").ok_or(InvalidH1)?).map_err(|_| InvalidH1)?;
        bytes.try_into().map(Self).map_err(|_| InvalidH1)
    }
}

impl fmt::Display for H1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "h1:{}", STANDARD.encode(self.0))
    }
}

/// The path of a file in a package that can be in the digest and on the disk as it is.
pub(super) fn is_file_name(path: &str) -> bool {
    let parts = Path::new(path).components();
    path.len() <= 4 * LONGEST
        && !path.is_empty()
        && !path.contains(|c: char| c.is_control() || c == '\\')
        && parts.clone().all(|part| matches!(part, std::path::Component::Normal(_)))
        && parts.collect::<PathBuf>().to_str() == Some(path)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_digest_is_the_one_that_terraform_writes_into_lock_files() {
        // `terraform init` with a package of these files.
        let files = [
            ("terraform-provider-probe_v1.2.3", "a8076d3d28d21e02012b20eaf7dbf75409a6277134439025f282e368e3305abf"),
            ("LICENSE.txt", "0cf9340d8bc2f1f7836e0ce6e2178d5fd382bde7fc50dc845dbf228dee3713b4"),
            ("docs/README.md", "65ce01fcc3e22e78b63419ef0f4493b0950daac7cee97329b428f5cafd395cda"),
            ("a b", "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"),
        ];
        let files = files.map(|(name, sha256)| (name.to_owned(), sha256.to_owned())).into();
        assert_eq!(H1::of(&files).to_string(), "h1:k7DInynaRAsI3eP2jhlDnTYexV7KO4/BK6YN+xpCr5o=");
    }

    proptest! {
        #[test]
        fn a_digest_is_itself_by_every_name(bytes: [u8; 32]) {
            let h1 = H1(bytes);
            prop_assert_eq!(h1.to_string().parse(), Ok(h1));
            prop_assert_eq!(H1::of_file_name(&h1.file_name()), Some(h1));
        }

        #[test]
        fn what_is_taken_for_a_package_stays_below_its_directory(parts in proptest::array::uniform4("[a-z0-9./:_-]{0,12}|\\PC{0,8}")) {
            let [host, namespace, kind, version] = &parts;
            if let Some(package) = Package::new(host, namespace, kind, version) {
                let path = package.path();
                prop_assert_eq!(path.components().count(), 5);
                prop_assert!(path.components().all(|part| matches!(part, std::path::Component::Normal(_))));
                prop_assert!(!path.to_str().unwrap().starts_with('.'));
            }
        }
    }

    #[test]
    fn names_of_digests_have_one_form() {
        let name = H1([0xab; 32]).file_name();
        for other in [name.to_uppercase(), format!("{name}0"), name[1..].to_owned(), "ü".repeat(32), String::new()] {
            assert_eq!(H1::of_file_name(&other), None, "{other}");
        }
        for text in ["", "h1:", "zh:00", "h1:k7DInynaRAsI3eP2jhlDnTYexV7KO4/BK6YN+xpCr5", "h1:AAAA"] {
            assert_eq!(text.parse::<H1>(), Err(InvalidH1), "{text}");
        }
    }

    #[test]
    fn only_providers_of_registries_are_packages() {
        for (address, version) in [
            ("registry.terraform.io/hashicorp/null", "3.2.1"),
            ("localhost:8443/my-team/a_b", "1.0.0-rc1"),
            ("registry.opentofu.org/x/y", "1.0.0+build.5"),
        ] {
            let package = Package::of_address(address, version).unwrap();
            assert_eq!(package.path().to_str().unwrap(), format!("{address}/{version}/{}", platform()));
        }
        for (address, version) in [
            ("", "1.0.0"),
            ("a/b", "1.0.0"),
            ("a/b/c/d", "1.0.0"),
            ("../b/c", "1.0.0"),
            ("a..b/b/c", "1.0.0"),
            (".a/b/c", "1.0.0"),
            ("a:/b/c", "1.0.0"),
            ("a:08/b/c", "1.0.0"),
            ("A/b/c", "1.0.0"),
            ("a/../c", "1.0.0"),
            ("a/b/..", "1.0.0"),
            ("a/b/.c", "1.0.0"),
            ("a/b/c", "1.0"),
            ("a/b/c", "../1"),
            ("a/b/c", ""),
            ("a/b/c\n", "1.0.0"),
        ] {
            assert_eq!(Package::of_address(address, version), None, "{address} {version}");
        }
    }

    #[test]
    fn names_of_files_lead_nowhere_else() {
        for name in ["terraform-provider-null_v3.2.1_x5", "a/b c", "ü"] {
            assert!(is_file_name(name), "{name}");
        }
        for name in ["", "/a", "../a", "a/../b", "a//b", "a/", "./a", "a\nb", "a\\b"] {
            assert!(!is_file_name(name), "{name}");
        }
    }
}
