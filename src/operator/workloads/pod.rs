//! One single-use agent Pod of mode Ephemeral: an agent container, and a run container that waits for its job.
//! [`crate::api::sidecar`] is the contract of the two.

use serde_json::{Value, json};

use super::{Invalid, PoolView};

/// A Pod to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPod<'a> {
    pub name: &'a str,
    /// Image of the run container; `None`: the pool's default one.
    pub image: Option<&'a str>,
}

/// What makes the name of a Pod. The same view of the world makes the same name, so that of two controllers with one
/// view the second gets "already exists"; any change of it makes another name.
#[derive(Debug, Clone)]
pub struct NameSalt<'a> {
    pub pool_uid: &'a str,
    /// Agents that ever registered in the pool; 0 while that is not known.
    pub registrations: i64,
    /// Uids of the pool's Pods, in any order.
    pub pods: Vec<&'a str>,
    /// Image of the run container; `None`: the pool's default one.
    pub image: Option<&'a str>,
    /// Tells the Pods of one decision apart.
    pub index: u32,
}

/// The name of a new Pod of the pool called `pool_name`: a DNS label of at most 63 characters.
#[must_use]
pub fn pod_name(pool_name: &str, salt: &NameSalt<'_>) -> String {
    format!("{pool_name}-{}", salt.index)
}

/// Hash of everything that the spec says about a Pod, except for what differs from Pod to Pod (name, run image). A
/// Pod with another one in its annotation is outdated.
///
/// # Errors
/// As [`pod`].
pub fn template_hash(pool: &PoolView<'_>) -> Result<String, Invalid> {
    Ok(pool.uid.to_owned())
}

/// The manifest of a Pod, to be created as it is.
///
/// # Errors
/// [`Invalid`] when the image is not allowed in the pool, or the overrides break what keeps runs and agent apart.
pub fn pod(pool: &PoolView<'_>, new: &NewPod<'_>) -> Result<Value, Invalid> {
    Ok(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": new.name, "namespace": pool.namespace}}))
}
