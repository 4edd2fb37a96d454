//! Signed addresses. The terraform CLI sends no token to log and upload addresses and replaces the query
//! of the former, so the signature stands in the path. They do not expire: a log must stay readable
//! for as long as its run may wait and last; what they open is fixed in them.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::vault::KEY_LEN;

#[derive(Clone)]
pub struct Signer {
    key: [u8; KEY_LEN],
}

impl Signer {
    #[must_use]
    pub fn new(key: [u8; KEY_LEN]) -> Self {
        Self { key }
    }

    fn mac(&self, purpose: &str, id: &str) -> Option<Hmac<Sha256>> {
        // HMAC takes keys of any length, so there is always one.
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).ok()?;
        mac.update(purpose.as_bytes());
        mac.update(&[0]);
        mac.update(id.as_bytes());
        Some(mac)
    }

    /// The signature that opens `id` for `purpose`, to be put into a path.
    #[must_use]
    pub fn sign(&self, purpose: &str, id: &str) -> String {
        self.mac(purpose, id).map(|mac| URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes())).unwrap_or_default()
    }

    /// In constant time.
    #[must_use]
    pub fn verify(&self, purpose: &str, id: &str, signature: &str) -> bool {
        let Ok(signature) = URL_SAFE_NO_PAD.decode(signature) else { return false };
        self.mac(purpose, id).is_some_and(|mac| mac.verify_slice(&signature).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_opens_its_own_object_only() {
        let signer = Signer::new([1; KEY_LEN]);
        let signature = signer.sign("log", "plan-1");
        assert!(signer.verify("log", "plan-1", &signature));
        assert!(!signer.verify("log", "plan-2", &signature));
        assert!(!signer.verify("upload", "plan-1", &signature));
        assert!(!Signer::new([2; KEY_LEN]).verify("log", "plan-1", &signature));
        assert!(!signer.verify("log", "plan-1", ""));
        assert!(!signer.verify("log", "plan-1", "%%"));
    }
}
