//! Names of container images, and patterns of those that are allowed: one grammar for control plane, operator and agent.
//! Pure.
//!
//! Names are compared in full, as a container engine reads them: `alpine` is `docker.io/library/alpine:latest`, and a tag
//! beside a digest means nothing, because an engine does not look at it.

use std::fmt;

/// Longest image reference; registries refuse longer names.
const MAX_REFERENCE: usize = 512;

/// Longest name of a repository, as the OCI distribution rules have it.
const MAX_REPOSITORY: usize = 255;

const DOCKER_HUB: &str = "docker.io";

/// An image reference, read as a container engine reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageName {
    /// `host[:port]`; `docker.io` when the reference names none.
    registry: String,
    /// Path in the registry: `library/alpine`.
    path: String,
    tag: Option<String>,
    /// `algorithm:hex`
    digest: Option<String>,
}

impl ImageName {
    /// Reads `[host[:port]/]path[:tag][@algorithm:digest]`; `None`: it is no such thing.
    #[must_use]
    pub fn parse(reference: &str) -> Option<Self> {
        if reference.len() > MAX_REFERENCE {
            return None;
        }
        let Split { registry, path, tag, digest } = split(reference);
        let valid = digest.is_none_or(is_digest)
            && tag.is_none_or(is_tag)
            && registry.is_none_or(is_host)
            && path.split('/').all(is_component);
        let (registry, path) = in_full(registry, path);
        // An engine takes `sha256:<hex>` for the id of any image that it has.
        let id = digest.is_none() && tag.is_some_and(|tag| is_digest(&format!("{}:{tag}", path_end(&path))));
        (valid && !id && registry.len() + 1 + path.len() <= MAX_REPOSITORY).then(|| Self {
            registry,
            path,
            tag: tag.map(str::to_owned),
            digest: digest.map(str::to_owned),
        })
    }

    /// It names its content, not what somebody called so.
    #[must_use]
    pub fn is_fixed(&self) -> bool {
        self.digest.is_some()
    }

    /// Whether both are images of one repository.
    #[must_use]
    pub fn same_repository(&self, other: &Self) -> bool {
        (&self.registry, &self.path) == (&other.registry, &other.path)
    }

    fn tag(&self) -> Option<&str> {
        match self.digest {
            Some(_) => None,
            None => Some(self.tag.as_deref().unwrap_or("latest")),
        }
    }
}

/// In full, without what means nothing: what an engine is to be asked for. A short name might be taken for an image's id.
impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.path)?;
        match (&self.digest, self.tag()) {
            (Some(digest), _) => write!(f, "@{digest}"),
            (None, Some(tag)) => write!(f, ":{tag}"),
            (None, None) => Ok(()),
        }
    }
}

/// Whether the text is an image reference.
#[must_use]
pub fn is_image(reference: &str) -> bool {
    ImageName::parse(reference).is_some()
}

/// Whether `image` is what a pool's list allows by `pattern`: the same text, or one that begins as it does before its
/// `*`. What administrators of a pool write; an agent's own list consists of [`Pattern`]s.
#[must_use]
pub fn fits(pattern: &str, image: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => image.starts_with(start),
        None => pattern == image,
    }
}

/// Images that an agent's administrator allows: `[registry/]repository[:tag][@digest]`, where a part of the repository
/// that is `*` stands for any one part, and a `**` at its end for one or more.
///
/// Without tag and digest every image of the repository is meant. With a tag only that tag, and no digest, for which the
/// tag would be an empty word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    registry: String,
    parts: Vec<String>,
    tag: Option<String>,
    digest: Option<String>,
}

/// A text that is not a [`Pattern`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a pattern of images: write registry/repository, with a `*` for any one part of it, a `**` for all that \
     is below, and a tag or a digest when only that is meant"
)]
pub struct InvalidPattern(String);

impl std::str::FromStr for Pattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        let Split { registry, path, tag, digest } = split(text);
        let (registry_full, path_full) = in_full(registry, path);
        let parts: Vec<String> = path_full.split('/').map(str::to_owned).collect();
        let last = parts.len() - 1;
        let valid = text.len() <= MAX_REFERENCE
            && digest.is_none_or(is_digest)
            && tag.is_none_or(is_tag)
            && registry.is_none_or(is_host)
            && parts
                .iter()
                .enumerate()
                .all(|(i, part)| part == "*" || (part == "**" && i == last) || is_component(part));
        if !valid {
            return Err(InvalidPattern(text.chars().take(80).collect()));
        }
        let owned = |part: Option<&str>| part.map(str::to_owned);
        Ok(Self { text: text.to_owned(), registry: registry_full, parts, tag: owned(tag), digest: owned(digest) })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Pattern {
    #[must_use]
    pub fn allows(&self, image: &ImageName) -> bool {
        let version = match (&self.digest, &self.tag) {
            (Some(digest), _) => image.digest.as_ref() == Some(digest),
            (None, Some(tag)) => image.tag() == Some(tag),
            (None, None) => true,
        };
        version && self.registry == image.registry && self.fits_path(&image.path)
    }

    fn fits_path(&self, path: &str) -> bool {
        let parts: Vec<&str> = path.split('/').collect();
        let (wanted, rest) = match self.parts.split_last() {
            Some((last, before)) if last == "**" => (before, true),
            _ => (self.parts.as_slice(), false),
        };
        let long_enough = if rest { parts.len() > wanted.len() } else { parts.len() == wanted.len() };
        long_enough && wanted.iter().zip(parts).all(|(wanted, part)| wanted == "*" || wanted == part)
    }
}

/// The parts of a reference or pattern, unchecked.
struct Split<'a> {
    registry: Option<&'a str>,
    path: &'a str,
    tag: Option<&'a str>,
    digest: Option<&'a str>,
}

fn split(reference: &str) -> Split<'_> {
    let (rest, digest) = match reference.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (reference, None),
    };
    // a colon after the last slash starts a tag; one before it, a port
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    let (registry, path) = match name.split_once('/') {
        Some((host, path)) if host == "localhost" || host.contains(['.', ':']) => (Some(host), path),
        _ => (None, name),
    };
    Split { registry, path, tag, digest }
}

/// With what an engine adds to short names.
fn in_full(registry: Option<&str>, path: &str) -> (String, String) {
    let registry = match registry {
        None | Some("index.docker.io") => DOCKER_HUB,
        Some(registry) => registry,
    };
    let official = registry == DOCKER_HUB && !path.contains('/') && path != "**";
    (registry.to_owned(), if official { format!("library/{path}") } else { path.to_owned() })
}

fn path_end(path: &str) -> &str {
    path.strip_prefix("library/").unwrap_or(path)
}

/// Whether the text is `algorithm:hex` of a length that fits.
fn is_digest(digest: &str) -> bool {
    digest.split_once(':').is_some_and(|(algorithm, hash)| {
        let length = match algorithm {
            "sha256" => 64,
            "sha512" => 128,
            _ => return false,
        };
        hash.len() == length && hash.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

/// The id of an image: a digest without a repository.
#[must_use]
pub fn is_id(text: &str) -> bool {
    text.starts_with("sha256:") && is_digest(text)
}

fn is_tag(tag: &str) -> bool {
    (1..=128).contains(&tag.len())
        && !tag.starts_with(['.', '-'])
        && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

fn is_host(part: &str) -> bool {
    let (host, port) = part.split_once(':').map_or((part, None), |(host, port)| (host, Some(port)));
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let number = |port: &str| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok();
    host.split('.').all(label) && port.is_none_or(number)
}

/// Words of small letters and digits, and between them one `.`, one or two `_`, or any number of `-`.
fn is_component(part: &str) -> bool {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let mut separators = part.split(word).filter(|between| !between.is_empty());
    let fine = |between: &str| matches!(between, "." | "_" | "__") || between.bytes().all(|b| b == b'-');
    part.starts_with(word) && part.ends_with(word) && separators.all(fine)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sha(c: char) -> String {
        format!("sha256:{}", String::from(c).repeat(64))
    }

    #[test]
    fn image_references_are_told_from_other_text() {
        let digest = format!("alpine@{}", sha('a'));
        let good = [
            "alpine",
            "alpine:3.20",
            "library/alpine",
            "docker.io/hashicorp/terraform:1.11.4",
            "localhost:5000/x",
            "localhost/x",
            "registry.example.com:5000/team/tools_a:V1",
            "a/b-c--d__e.f",
            &digest,
        ];
        for image in good {
            assert!(is_image(image), "{image}");
        }
        let (id, upper) = (sha('a'), format!("alpine@{}", sha('A')));
        let long = format!("a/{}", "b".repeat(300));
        let bad = [
            "",
            " ",
            "Alpine",
            "ACME/alpine",
            "alpine:",
            "alpine:-x",
            "a//b",
            "/a",
            "a/",
            "host:port/x",
            "host:+5000/x",
            "host:65536/x",
            ":5000/x",
            "a.b./x",
            "-a.b/x",
            "a..b/x",
            "a/../b",
            "a/./b",
            "../a",
            "docker.io/../a",
            "a b",
            "a@sha256:12",
            "a@",
            "a@@sha256:12",
            "--privileged",
            "a:b:c",
            "x\n",
            "x\0",
            "a/b..c",
            "a/b___c",
            "https://docker.io/a",
            "аlpine",
            "a?b",
            "a%2fb",
            "a\\b",
            "$(id)",
            &id,
            &upper,
            &long,
        ];
        for image in bad {
            assert!(!is_image(image), "{image:?}");
        }
    }

    #[test]
    fn names_are_read_as_an_engine_reads_them() {
        let fixed = format!("a.b/c@{}", sha('0'));
        let tagged = format!("a.b/c:1@{}", sha('0'));
        for (image, full) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("docker.io/alpine", "docker.io/library/alpine:latest"),
            ("index.docker.io/library/alpine:3", "docker.io/library/alpine:3"),
            ("hashicorp/terraform", "docker.io/hashicorp/terraform:latest"),
            ("localhost:5000/x", "localhost:5000/x:latest"),
            ("localhost/x:1", "localhost/x:1"),
            // as an id it would be any image that begins so
            ("c0ffee", "docker.io/library/c0ffee:latest"),
            (&fixed, &fixed),
            (&tagged, &fixed),
        ] {
            assert_eq!(ImageName::parse(image).unwrap().to_string(), full);
        }
    }

    #[test]
    fn only_allowed_images_get_through_and_no_trick_helps() {
        let evil = format!("@{}", sha('e'));
        let good = format!("@{}", sha('0'));
        let at = |name: &str, digest: &str| format!("{name}{digest}");
        let cases: Vec<(&str, String, bool)> = [
            // exactly this repository
            ("docker.io/hashicorp/terraform", "docker.io/hashicorp/terraform:1.11.4", true),
            ("docker.io/hashicorp/terraform", "hashicorp/terraform", true),
            ("docker.io/hashicorp/terraform", "index.docker.io/hashicorp/terraform:1", true),
            ("hashicorp/terraform", "docker.io/hashicorp/terraform", true),
            ("docker.io/hashicorp/terraform", "docker.io/hashicorp/terraform-evil", false),
            ("docker.io/hashicorp/terraform", "docker.io/hashicorp/terraform/evil", false),
            ("docker.io/hashicorp/terraform", "docker.io/evil/hashicorp/terraform", false),
            ("docker.io/hashicorp/terraform", "evil.io/hashicorp/terraform", false),
            ("docker.io/hashicorp/terraform", "evil.io/docker.io/hashicorp/terraform", false),
            ("docker.io/hashicorp/terraform", "docker.io.evil.io/hashicorp/terraform", false),
            ("docker.io/hashicorp/terraform", "docker.io:443/hashicorp/terraform", false),
            ("docker.io/hashicorp/terraform", "localhost/hashicorp/terraform", false),
            ("docker.io/hashicorp/terraform", "localhost:5000/hashicorp/terraform", false),
            ("docker.io/hashicorp/terraform", "Docker.io/hashicorp/terraform", false),
            // official images
            ("alpine", "docker.io/library/alpine:3.20", true),
            ("alpine", "library/alpine", true),
            ("alpine", "evil/alpine", false),
            ("library/alpine", "alpine", true),
            // one tag
            ("alpine:3.20", "alpine:3.20", true),
            ("alpine:3.20", "alpine", false),
            ("alpine:3.20", "alpine:3.20.1", false),
            ("alpine:latest", "alpine", true),
            // any one part
            ("ghcr.io/acme/*", "ghcr.io/acme/tools:7", true),
            ("ghcr.io/acme/*", "ghcr.io/acme/team/tools", false),
            ("ghcr.io/acme/*", "ghcr.io/acme", false),
            ("ghcr.io/acme/*", "ghcr.io/acme-evil/tools", false),
            ("ghcr.io/acme/*", "ghcr.io.evil.io/acme/tools", false),
            ("ghcr.io/acme/*:stable", "ghcr.io/acme/tools:stable", true),
            ("ghcr.io/acme/*:stable", "ghcr.io/acme/tools", false),
            ("ghcr.io/*/tools", "ghcr.io/acme/tools", true),
            ("ghcr.io/*/tools", "ghcr.io/acme/x/tools", false),
            // all below
            ("ghcr.io/acme/**", "ghcr.io/acme/team/tools:7", true),
            ("ghcr.io/acme/**", "ghcr.io/acme", false),
            ("ghcr.io/**", "ghcr.io/a", true),
            ("ghcr.io/**", "docker.io/a/b", false),
            ("**", "docker.io/a/b", true),
            ("**", "ghcr.io/a/b", false),
            ("*", "alpine", true),
            ("*", "evil/alpine", false),
            // ports belong to the name of a registry
            ("host:5000/x", "host:5000/x", true),
            ("host:5000/x", "host:5001/x", false),
            ("host:5000/*", "host/x", false),
        ]
        .into_iter()
        .map(|(pattern, image, allowed)| (pattern, image.to_owned(), allowed))
        .chain([
            // a digest makes the tag beside it an empty word
            ("alpine", at("alpine", &evil), true),
            ("alpine:3.20", at("alpine:3.20", &evil), false),
            ("docker.io/hashicorp/terraform", at("docker.io/evil/terraform", &good), false),
        ])
        .collect();
        for (pattern, image, allowed) in &cases {
            let parsed = ImageName::parse(image);
            let seen = parsed.is_some_and(|image| pattern.parse::<Pattern>().unwrap().allows(&image));
            assert_eq!(seen, *allowed, "{pattern} for {image}");
        }
        let fixed: Pattern = at("alpine", &good).parse().unwrap();
        let allows = |image: String| fixed.allows(&ImageName::parse(&image).unwrap());
        assert!(allows(at("alpine", &good)) && allows(at("alpine:3", &good)));
        assert!(!allows(at("alpine", &evil)) && !allows("alpine".to_owned()) && !allows(at("evil/alpine", &good)));
    }

    #[test]
    fn patterns_that_would_say_more_than_they_seem_to_are_refused() {
        for text in
            ["", "ghcr.io/acme/terra*", "ghcr.io*", "*.io/x", "a/**/b", "a/***", "a:*", "a@*", "a b", "A", "a//b"]
        {
            assert!(text.parse::<Pattern>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_pools_pattern_is_a_text_or_the_start_of_one() {
        for (pattern, image, allowed) in [
            ("a/b:1", "a/b:1", true),
            ("a/b:1", "a/b:12", false),
            ("a/b*", "a/b:12", true),
            ("a/b*", "a/c", false),
            ("*", "x", true),
        ] {
            assert_eq!(fits(pattern, image), allowed, "{pattern} for {image}");
        }
    }
}
