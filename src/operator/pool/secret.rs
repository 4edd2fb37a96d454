//! A pool's Secret: holds the pool token, the control plane's address and its CA. Whether what it holds is still what
//! was put there is told by annotations, so that an edit by hand is noticed. Pure.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::ResourceExt;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{crd::names, hash::hex, ids::TokenId, operator::workloads::secret_key};

/// Annotation with the identifier of the token that the Secret holds.
const TOKEN_ID: &str = "terrapool.dev/token-id";

/// Annotation with the SHA-256 of that token.
const TOKEN_DIGEST: &str = "terrapool.dev/token-sha256";

/// What is to be in the Secret.
#[derive(Debug)]
pub(super) struct Content<'a> {
    pub(super) token_id: &'a TokenId,
    pub(super) token: &'a SecretString,
    pub(super) url: &'a str,
    pub(super) ca: Option<&'a str>,
}

/// Whose the Secret is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ownership {
    Ours,
    /// Of an AgentPool of the same name that is gone: nobody else could own it so.
    Leftover,
    Foreign,
}

pub(super) fn ownership(secret: &Secret, uid: &str, name: &str) -> Ownership {
    let owner = secret.owner_references().iter().find(|owner| owner.kind == "AgentPool" && owner.name == name);
    match owner {
        Some(owner) if owner.uid == uid => Ownership::Ours,
        Some(_) => Ownership::Leftover,
        None => Ownership::Foreign,
    }
}

fn value<'a>(secret: &'a Secret, key: &str) -> Option<&'a str> {
    let ByteString(bytes) = secret.data.as_ref()?.get(key)?;
    std::str::from_utf8(bytes).ok()
}

/// The token that the Secret holds intact.
pub(super) fn held(secret: &Secret) -> Option<(TokenId, SecretString)> {
    let id = secret.annotations().get(TOKEN_ID)?.parse().ok()?;
    let token = value(secret, secret_key::TOKEN)?;
    (*secret.annotations().get(TOKEN_DIGEST)? == digest(token)).then(|| (id, SecretString::from(token)))
}

/// Whether the Secret is as it should be.
pub(super) fn matches(secret: &Secret, wanted: &Content<'_>, pool: &str) -> bool {
    held(secret)
        .is_some_and(|(id, token)| id == *wanted.token_id && token.expose_secret() == wanted.token.expose_secret())
        && value(secret, secret_key::URL) == Some(wanted.url)
        && value(secret, secret_key::CA) == wanted.ca
        && secret.labels().get(names::POOL_LABEL).map(String::as_str) == Some(pool)
}

fn digest(token: &str) -> String {
    hex(Sha256::digest(token))
}

/// The manifest to apply, and the same without the token for showing.
pub(super) fn manifest(mut meta: Value, wanted: &Content<'_>) -> (Value, Value) {
    let mut text: BTreeMap<&str, &str> = BTreeMap::from([(secret_key::URL, wanted.url)]);
    text.extend(wanted.ca.map(|ca| (secret_key::CA, ca)));
    meta["annotations"] = json!({
        TOKEN_ID: wanted.token_id,
        TOKEN_DIGEST: digest(wanted.token.expose_secret()),
    });
    let with = |token: &str| {
        let mut data: BTreeMap<&str, ByteString> =
            text.iter().map(|(key, value)| (*key, ByteString(value.as_bytes().to_vec()))).collect();
        data.insert(secret_key::TOKEN, ByteString(token.as_bytes().to_vec()));
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "type": "Opaque", "data": data})
    };
    (with(wanted.token.expose_secret()), with("(not shown)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content<'a>(id: &'a TokenId, token: &'a SecretString) -> Content<'a> {
        Content { token_id: id, token, url: "https://cp", ca: Some("PEM") }
    }

    fn secret(change: impl FnOnce(&mut Value)) -> Secret {
        let (id, token) = ("at-a".parse().unwrap(), SecretString::from("canary"));
        let meta = json!({"name": "s", "labels": {names::POOL_LABEL: "p"}, "ownerReferences":
            [{"apiVersion": "terrapool.dev/v1alpha1", "kind": "AgentPool", "name": "p", "uid": "u"}]});
        let (mut manifest, shown) = manifest(meta, &content(&id, &token));
        assert!(!shown.to_string().contains(&serde_json::to_string(&ByteString(b"canary".to_vec())).unwrap()));
        change(&mut manifest);
        serde_json::from_value(manifest).unwrap()
    }

    #[test]
    fn what_was_put_in_is_held_and_an_edit_is_noticed() {
        let (id, token) = ("at-a".parse().unwrap(), SecretString::from("canary"));
        let good = secret(|_| {});
        assert_eq!(held(&good).unwrap().0, id);
        assert!(matches(&good, &content(&id, &token), "p"));
        assert!(held(&secret(|s| s["data"]["token"] = json!(ByteString(b"other".to_vec())))).is_none());
        assert!(held(&secret(|s| drop(s["data"].as_object_mut().unwrap().remove("token")))).is_none());
        assert!(held(&secret(|s| s["metadata"]["annotations"] = json!({}))).is_none());
        let moved = secret(|s| s["data"]["url"] = json!(ByteString(b"https://evil".to_vec())));
        assert!(held(&moved).is_some() && !matches(&moved, &content(&id, &token), "p"));
    }

    #[test]
    fn a_secret_of_somebody_else_is_told_from_ours() {
        let good = secret(|_| {});
        assert_eq!(ownership(&good, "u", "p"), Ownership::Ours);
        assert_eq!(ownership(&good, "another", "p"), Ownership::Leftover);
        let foreign = secret(|s| s["metadata"]["ownerReferences"] = json!([]));
        assert_eq!(ownership(&foreign, "u", "p"), Ownership::Foreign);
    }
}
