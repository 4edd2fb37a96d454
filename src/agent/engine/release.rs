//! What a release is called and where it lies. Pure.

use std::{fmt, str::FromStr};

use reqwest::Url;

use super::Error;
use crate::api::job::EngineKind;

/// Longest version: it becomes part of names of files.
const LONGEST: usize = 64;

/// `MAJOR.MINOR.PATCH` or `MAJOR.MINOR.PATCH-PRE`: nothing else may become part of a path or an address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExactVersion(semver::Version);

impl FromStr for ExactVersion {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = || Error::Version { version: text.chars().take(LONGEST).collect() };
        if text.len() > LONGEST {
            return Err(invalid());
        }
        let version = semver::Version::parse(text).map_err(|_| invalid())?;
        if version.build.is_empty() { Ok(Self(version)) } else { Err(invalid()) }
    }
}

impl fmt::Display for ExactVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One engine of one version for this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Release {
    pub(super) kind: EngineKind,
    pub(super) version: ExactVersion,
}

impl Release {
    /// `terraform_1.11.4_linux_amd64`
    pub(super) fn name(&self) -> String {
        format!("{}_{}_linux_{}", self.kind.program(), self.version, architecture())
    }

    pub(super) fn archive(&self) -> String {
        format!("{}.zip", self.name())
    }

    pub(super) fn checksums(&self) -> String {
        format!("{}_{}_SHA256SUMS", self.kind.program(), self.version)
    }

    /// The detached OpenPGP signature of [`Self::checksums`].
    pub(super) fn signature(&self) -> String {
        let extension = match self.kind {
            EngineKind::Terraform => "sig",
            EngineKind::OpenTofu => "gpgsig",
        };
        format!("{}.{extension}", self.checksums())
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.program(), self.version)
    }
}

/// As Go calls it.
pub(in crate::agent) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Where releases are downloaded from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Origin {
    /// The publishers' own servers.
    #[default]
    Publisher,
    /// One address for both engines: a base, or a template with `{program}`, `{version}`, `{file}`.
    Mirror(String),
}

/// A text that is not an address of a mirror.
#[derive(Debug, thiserror::Error)]
#[error("`{text}` is no address of a mirror: {why}")]
pub struct InvalidMirror {
    text: String,
    why: String,
}

impl FromStr for Origin {
    type Err = InvalidMirror;

    fn from_str(text: &str) -> Result<Self, InvalidMirror> {
        let invalid = |why: &str| InvalidMirror { text: text.to_owned(), why: why.to_owned() };
        let example = fill(text, "terraform", "1.11.4", "terraform_1.11.4_linux_amd64.zip");
        if example.contains(['{', '}']) {
            return Err(invalid("only {program}, {version} and {file} can stand in braces"));
        }
        if text.contains('{') && !text.contains("{file}") {
            return Err(invalid("a template needs {file}: three files of each release are fetched"));
        }
        let url = Url::parse(&example).map_err(|error| invalid(&error.to_string()))?;
        if !matches!(url.scheme(), "https" | "http") {
            return Err(invalid("it must begin with https:// or http://"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(invalid("it can have neither a query nor a fragment"));
        }
        Ok(Self::Mirror(text.to_owned()))
    }
}

impl Origin {
    fn template(&self, kind: EngineKind) -> String {
        match (self, kind) {
            (Self::Publisher, EngineKind::Terraform) => {
                "https://releases.hashicorp.com/terraform/{version}/{file}".to_owned()
            }
            (Self::Publisher, EngineKind::OpenTofu) => {
                "https://github.com/opentofu/opentofu/releases/download/v{version}/{file}".to_owned()
            }
            (Self::Mirror(template), _) if template.contains('{') => template.clone(),
            (Self::Mirror(base), EngineKind::Terraform) => {
                format!("{}/terraform/{{version}}/{{file}}", base.trim_end_matches('/'))
            }
            (Self::Mirror(base), EngineKind::OpenTofu) => {
                format!("{}/v{{version}}/{{file}}", base.trim_end_matches('/'))
            }
        }
    }

    /// Where those of this kind lie, without path and credentials: `https://releases.hashicorp.com`. Absent: nowhere that
    /// can be asked.
    pub(super) fn place(&self, kind: EngineKind) -> Option<String> {
        let url = Url::parse(&fill(&self.template(kind), kind.program(), "0.0.0", "file")).ok()?;
        Some(url.origin().ascii_serialization())
    }

    /// The address of one file of a release.
    pub(super) fn url(&self, release: &Release, file: &str) -> Result<Url, Error> {
        let version = release.version.to_string();
        let text = fill(&self.template(release.kind), release.kind.program(), &version, file);
        // Checked when the template was read: what is filled in cannot spoil it.
        Url::parse(&text).map_err(|_| Error::Version { version })
    }
}

fn fill(template: &str, program: &str, version: &str, file: &str) -> String {
    template.replace("{program}", program).replace("{version}", version).replace("{file}", file)
}

/// The SHA-256 of a file in the text of a `SHA256SUMS`; `None`: it does not name the file.
pub(super) fn checksum_of(checksums: &str, file: &str) -> Option<String> {
    checksums.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let (sum, name) = (words.next()?, words.next()?);
        // `*` marks a file that was read as binary.
        let named = name.strip_prefix('*').unwrap_or(name) == file && words.next().is_none();
        let plain = sum.len() == 64 && sum.bytes().all(|byte| byte.is_ascii_hexdigit());
        (named && plain).then(|| sum.to_ascii_lowercase())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(kind: EngineKind, version: &str) -> Release {
        Release { kind, version: version.parse().unwrap() }
    }

    #[test]
    fn only_exact_versions_are_taken() {
        for version in ["1.11.4", "0.0.1", "1.12.0-rc1", "1.6.0-alpha.1"] {
            assert_eq!(version.parse::<ExactVersion>().unwrap().to_string(), version);
        }
        let long = format!("1.0.0-{}", "a".repeat(80));
        for version in [
            "",
            "1",
            "1.11",
            "v1.11.4",
            "~> 1.11",
            ">= 1.0.0",
            "latest",
            "1.11.4/",
            "../1.11.4",
            "1.11.4-../x",
            "1.1.1 ",
            "1.1.1\n",
            "1.1.1+x",
            "1.11.04",
            "1.11.4-",
            "1.11.4%2e",
            "1.11.4-a/b",
            "{version}",
            &long,
        ] {
            let error = version.parse::<ExactVersion>().unwrap_err();
            assert!(error.to_string().contains("not an exact version"), "{version}: {error}");
        }
    }

    #[test]
    fn files_lie_where_the_publishers_have_them() {
        let (terraform, tofu) = (release(EngineKind::Terraform, "1.11.4"), release(EngineKind::OpenTofu, "1.12.6"));
        let arch = architecture();
        let url = |origin: &Origin, release: &Release, file: String| origin.url(release, &file).unwrap().to_string();
        let publisher = Origin::Publisher;
        assert_eq!(
            url(&publisher, &terraform, terraform.archive()),
            format!("https://releases.hashicorp.com/terraform/1.11.4/terraform_1.11.4_linux_{arch}.zip")
        );
        assert_eq!(
            url(&publisher, &terraform, terraform.signature()),
            "https://releases.hashicorp.com/terraform/1.11.4/terraform_1.11.4_SHA256SUMS.sig"
        );
        assert_eq!(
            url(&publisher, &tofu, tofu.signature()),
            "https://github.com/opentofu/opentofu/releases/download/v1.12.6/tofu_1.12.6_SHA256SUMS.gpgsig"
        );
        assert_eq!(publisher.place(EngineKind::Terraform).unwrap(), "https://releases.hashicorp.com");
        assert_eq!(publisher.place(EngineKind::OpenTofu).unwrap(), "https://github.com");
        let base: Origin = "https://user:secret@mirror.example:8443/{program}/{file}".parse().unwrap();
        assert_eq!(base.place(EngineKind::OpenTofu).unwrap(), "https://mirror.example:8443");
        let base: Origin = "https://mirror.example/a/".parse().unwrap();
        assert_eq!(
            url(&base, &terraform, terraform.checksums()),
            "https://mirror.example/a/terraform/1.11.4/terraform_1.11.4_SHA256SUMS"
        );
        assert_eq!(
            url(&base, &tofu, tofu.archive()),
            format!("https://mirror.example/a/v1.12.6/tofu_1.12.6_linux_{arch}.zip")
        );
        let template: Origin = "https://mirror.example/{program}/{version}/x/{file}".parse().unwrap();
        assert_eq!(
            url(&template, &tofu, tofu.checksums()),
            "https://mirror.example/tofu/1.12.6/x/tofu_1.12.6_SHA256SUMS"
        );
    }

    #[test]
    fn what_is_no_mirror_is_refused() {
        for text in [
            "",
            "mirror",
            "ftp://x/",
            "file:///x",
            "https://x/{version}",
            "https://x/{os}/{file}",
            "https://x/{file",
            "https://x/?a=b",
            "https://x/#a",
        ] {
            assert!(text.parse::<Origin>().is_err(), "{text}");
        }
    }

    #[test]
    fn checksums_are_found_by_the_whole_name() {
        let (a, b) = ("a".repeat(64), "B".repeat(64));
        let text = format!("{a}  x.zip\n{b} *y.zip\nshort  z.zip\n{a}  w.zip more\n");
        assert_eq!(checksum_of(&text, "x.zip"), Some(a));
        assert_eq!(checksum_of(&text, "y.zip"), Some(b.to_lowercase()));
        for file in ["z.zip", "w.zip", "zip", "x.zi", ""] {
            assert_eq!(checksum_of(&text, file), None, "{file}");
        }
    }
}
