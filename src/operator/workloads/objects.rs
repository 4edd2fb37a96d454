//! What a pool owns beside Pods and Secret.

use super::{Invalid, Owned, PoolView};

/// The objects of the pool's mode, to be applied as they are; what is not among them is to be removed.
///
/// # Errors
/// [`Invalid`] names the field that nothing can be made from.
pub fn objects(pool: &PoolView<'_>) -> Result<Vec<Owned>, Invalid> {
    let _ = pool;
    Ok(Vec::new())
}
