//! Typed, prefixed identifiers: `run-…`, `ws-…`. One word for one thing: a function that takes a
//! `RunId` cannot be handed a workspace. Clients treat the text as opaque; it matches
//! `^[a-zA-Z0-9._-]+$`, which Scalr's clients check.

use std::{borrow::Borrow, fmt, str::FromStr};

use rand::RngExt;
use serde::{Deserialize, Deserializer, Serialize};

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Letters after the prefix: 62^16 is about 2^95, so collisions need no handling.
const RANDOM_LEN: usize = 16;

fn random_suffix() -> String {
    let mut rng = rand::rng();
    (0..RANDOM_LEN).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect()
}

/// A text that is not an identifier of the wanted kind.
#[derive(Debug, thiserror::Error)]
#[error("`{text}` is not an identifier of the form {prefix}-…")]
pub struct InvalidId {
    text: String,
    prefix: &'static str,
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            pub const PREFIX: &'static str = $prefix;

            /// A fresh random identifier.
            #[must_use]
            pub fn random() -> Self {
                Self(format!(concat!($prefix, "-{}"), random_suffix()))
            }

            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let rest = text.strip_prefix(concat!($prefix, "-"));
                match rest {
                    Some(rest) if !rest.is_empty() && rest.len() <= 64 && rest.bytes().all(|b| b.is_ascii_alphanumeric()) => {
                        Ok(Self(text.to_owned()))
                    }
                    _ => Err(InvalidId { text: text.chars().take(80).collect(), prefix: $prefix }),
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }
    )*};
}

ids! {
    /// The tenant: owns environments, account-scoped pools and users.
    AccountId = "acc";
    /// An environment (Scalr) = an organization (TFE API).
    EnvironmentId = "env";
    WorkspaceId = "ws";
    /// An agent pool.
    PoolId = "apool";
    AgentId = "agent";
    /// Any access token's record; never the secret itself.
    TokenId = "at";
    UserId = "user";
    RunId = "run";
    /// The plan stage of a run.
    PlanId = "plan";
    /// The apply stage of a run.
    ApplyId = "apply";
    /// One stage given to one agent under a lease.
    JobId = "job";
    ConfigurationVersionId = "cv";
    StateVersionId = "sv";
    /// One output of a state version.
    OutputId = "wsout";
    VariableId = "var";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ids_parse_back_and_differ() {
        let a = RunId::random();
        assert_ne!(a, RunId::random());
        assert_eq!(a, a.as_str().parse().unwrap());
        assert_eq!(a.as_str().len(), "run-".len() + RANDOM_LEN);
    }

    #[test]
    fn foreign_prefixes_and_garbage_are_refused() {
        for text in ["ws-0123456789abcdef", "run-", "run", "", "run-../..", "run-a b", "run-é"] {
            assert!(text.parse::<RunId>().is_err(), "{text}");
        }
    }
}
