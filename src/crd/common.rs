//! Types that both kinds share: references, durations, where the control plane is.

use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A key of a Secret or ConfigMap in the object's own namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeyRef {
    /// Name of the object in the same namespace.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key whose value is read.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// An object of the same namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LocalRef {
    /// Name of the object in the same namespace.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Where the address of a control plane is read from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.configMapKeyRef) != has(self.secretKeyRef)", "set exactly one of configMapKeyRef and secretKeyRef"))]
pub struct UrlSource {
    /// The address is the value of this key of a ConfigMap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_key_ref: Option<KeyRef>,
    /// The address is the value of this key of a Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<KeyRef>,
}

/// The control plane and how to talk to it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.url) != has(self.urlFrom)", "set exactly one of url and urlFrom"))]
pub struct ControlPlaneRef {
    /// Address of the control plane, as https://terrapool.example.com. Plain http is only accepted for a loopback address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048), regex(pattern = r"^https?://[^\s]+$"))]
    pub url: Option<String>,
    /// Where the address is read from, when it is not written here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_from: Option<UrlSource>,
    /// Secret key that holds a token which may manage agent pools and workspaces. Without it the operator's own token is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_secret_ref: Option<KeyRef>,
    /// ConfigMap key with the PEM certificates that the control plane's certificate is checked against, beside the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_config_map_ref: Option<KeyRef>,
}

/// A length of time as people write it: `30s`, `15m`, `1h30m`, `720h`. The text is kept as written.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span {
    text: String,
    seconds: u64,
}

/// A text that is not a [`Span`].
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a duration: write hours, minutes and seconds, as 720h, 15m or 1h30m")]
pub struct InvalidSpan(String);

impl Span {
    const PATTERN: &'static str = "^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?$";

    #[must_use]
    pub fn as_duration(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    #[must_use]
    pub fn seconds(&self) -> u64 {
        self.seconds
    }

    #[must_use]
    pub fn from_hours(hours: u64) -> Self {
        Self { text: format!("{hours}h"), seconds: hours * 3600 }
    }

    #[must_use]
    pub fn from_minutes(minutes: u64) -> Self {
        Self { text: format!("{minutes}m"), seconds: minutes * 60 }
    }

    #[must_use]
    pub fn from_seconds(seconds: u64) -> Self {
        Self { text: format!("{seconds}s"), seconds }
    }
}

impl FromStr for Span {
    type Err = InvalidSpan;

    fn from_str(text: &str) -> Result<Self, InvalidSpan> {
        let invalid = || InvalidSpan(text.chars().take(40).collect());
        let (mut rest, mut seconds) = (text, 0);
        for (unit, factor) in [('h', 3600), ('m', 60), ('s', 1)] {
            if let Some((digits, after)) = rest.split_once(unit) {
                if digits.is_empty() || digits.len() > 6 || !digits.bytes().all(|b| b.is_ascii_digit()) {
                    return Err(invalid());
                }
                seconds += digits.parse::<u64>().map_err(|_| invalid())? * factor;
                rest = after;
            }
        }
        if !rest.is_empty() || text.is_empty() {
            return Err(invalid());
        }
        Ok(Self { text: text.to_owned(), seconds })
    }
}

impl TryFrom<String> for Span {
    type Error = InvalidSpan;

    fn try_from(text: String) -> Result<Self, InvalidSpan> {
        text.parse()
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.text
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl JsonSchema for Span {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Span".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "minLength": 2, "maxLength": 24, "pattern": Self::PATTERN})
    }
}

/// An image with a tag or a digest: what runs must not change because somebody pushed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Image(String);

/// A text that is not an [`Image`].
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not an image reference with a tag or a digest, as docker.io/hashicorp/terraform:1.11.4")]
pub struct InvalidImage(String);

impl Image {
    const PATTERN: &'static str = "^[A-Za-z0-9][A-Za-z0-9._:/-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]*|@sha256:[0-9a-f]{64})$";

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Image {
    type Error = InvalidImage;

    fn try_from(text: String) -> Result<Self, InvalidImage> {
        let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        let named = |name: &str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._:/-".contains(&b));
        let valid = match text.split_once("@sha256:") {
            Some((name, digest)) => {
                named(name) && digest.len() == 64 && digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
            }
            None => text.rsplit_once(':').is_some_and(|(name, tag)| {
                named(name)
                    && tag.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
                    && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
            }),
        };
        if first && valid { Ok(Self(text)) } else { Err(InvalidImage(text.chars().take(80).collect())) }
    }
}

impl From<Image> for String {
    fn from(image: Image) -> Self {
        image.0
    }
}

impl JsonSchema for Image {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Image".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "maxLength": 512, "pattern": Self::PATTERN})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_hours_minutes_seconds_in_this_order() {
        for (text, seconds) in [("720h", 2_592_000), ("15m", 900), ("1h30m", 5400), ("0s", 0), ("1h2m3s", 3723)] {
            assert_eq!(text.parse::<Span>().unwrap().seconds(), seconds, "{text}");
        }
        for text in ["", "15", "m", "1d", "-1h", "1m1h", "1.5h", "1h ", "1234567h", "1hh"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn images_need_a_tag_or_a_digest() {
        let digest = format!("registry:5000/a/b@sha256:{}", "0f".repeat(32));
        for text in ["alpine:3.20", "docker.io/hashicorp/terraform:1.11.4", "registry:5000/a/b:v1", digest.as_str()] {
            assert!(Image::try_from(text.to_owned()).is_ok(), "{text}");
        }
        for text in ["alpine", "", ":1", "a b:1", "registry:5000/a/b", "a@sha256:12", "-x:1", "a:"] {
            assert!(Image::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
