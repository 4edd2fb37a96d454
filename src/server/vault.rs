//! Secrets at rest: XChaCha20-Poly1305 with a random nonce. Who it is for (table and row) is bound to the
//! ciphertext, so that a sealed value cannot be moved to another row.

use std::{fs, io, path::Path, sync::Arc};

use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use rand::RngExt;

use crate::files::write_private;

/// Length of the key in bytes.
pub const KEY_LEN: usize = 32;

const NONCE_LEN: usize = 24;

/// First byte of a sealed value: the format.
const FORMAT: u8 = 1;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not read or create the key file {path}")]
    KeyFile { path: String, source: io::Error },
    #[error("the key file {path} must hold exactly 32 bytes")]
    KeyLength { path: String },
    #[error("could not encrypt a value")]
    Seal,
    #[error("could not decrypt {what}: it was sealed with another key, or is damaged")]
    Open { what: String },
}

/// Seals and opens secrets; the key never leaves it.
#[derive(Clone)]
pub struct Vault {
    cipher: Arc<XChaCha20Poly1305>,
    derived: [u8; KEY_LEN],
}

impl Vault {
    /// # Errors
    /// Never in practice: the key's length is part of its type.
    #[must_use]
    pub fn new(key: &[u8; KEY_LEN]) -> Self {
        use sha2::{Digest, Sha256};
        let derived = Sha256::new().chain_update(b"terrapool signed addresses").chain_update(key).finalize().into();
        Self { cipher: Arc::new(XChaCha20Poly1305::new(key.into())), derived }
    }

    /// The key in `path`; made there, readable by its owner only, when the file does not exist.
    ///
    /// # Errors
    /// When the file cannot be read or written, or holds no key.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let name = || path.display().to_string();
        let fail = |source| Error::KeyFile { path: name(), source };
        let key = match fs::read(path) {
            Ok(key) => key,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key: [u8; KEY_LEN] = rand::rng().random();
                write_private(path, &key).map_err(fail)?;
                key.to_vec()
            }
            Err(source) => return Err(fail(source)),
        };
        let key: [u8; KEY_LEN] = key.try_into().map_err(|_| Error::KeyLength { path: name() })?;
        Ok(Self::new(&key))
    }

    /// Key for signing addresses, derived from the vault's.
    #[must_use]
    pub fn signing_key(&self) -> [u8; KEY_LEN] {
        self.derived
    }

    /// Encrypts `plain` for `owner`, as `variables/var-…`.
    ///
    /// # Errors
    /// When the value is too large for the cipher.
    pub fn seal(&self, owner: &str, plain: &[u8]) -> Result<Vec<u8>, Error> {
        let nonce: [u8; NONCE_LEN] = rand::rng().random();
        let payload = Payload { msg: plain, aad: owner.as_bytes() };
        let sealed = self.cipher.encrypt(&XNonce::from(nonce), payload).map_err(|_| Error::Seal)?;
        Ok([&[FORMAT][..], &nonce, &sealed].concat())
    }

    /// Decrypts what [`Self::seal`] made for the same `owner`.
    ///
    /// # Errors
    /// When it was sealed for another owner or with another key, or is damaged.
    pub fn open(&self, owner: &str, sealed: &[u8]) -> Result<Vec<u8>, Error> {
        let fail = || Error::Open { what: owner.to_owned() };
        let Some((&FORMAT, rest)) = sealed.split_first() else { return Err(fail()) };
        let (nonce, ciphertext) = rest.split_at_checked(NONCE_LEN).ok_or_else(fail)?;
        let nonce: [u8; NONCE_LEN] = nonce.try_into().map_err(|_| fail())?;
        let payload = Payload { msg: ciphertext, aad: owner.as_bytes() };
        self.cipher.decrypt(&XNonce::from(nonce), payload).map_err(|_| fail())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_for_its_owner_only() {
        let vault = Vault::new(&[7; KEY_LEN]);
        let sealed = vault.seal("variables/var-1", b"hunter2").unwrap();
        assert!(!sealed.windows(7).any(|window| window == b"hunter2"));
        assert_eq!(vault.open("variables/var-1", &sealed).unwrap(), b"hunter2");
        assert!(vault.open("variables/var-2", &sealed).is_err());
        assert!(Vault::new(&[8; KEY_LEN]).open("variables/var-1", &sealed).is_err());
        for cut in 0..sealed.len() {
            assert!(vault.open("variables/var-1", &sealed[..cut]).is_err());
        }
    }

    #[test]
    fn the_key_file_is_made_once_and_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let sealed = Vault::from_file(&path).unwrap().seal("x", b"y").unwrap();
        assert_eq!(Vault::from_file(&path).unwrap().open("x", &sealed).unwrap(), b"y");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, b"short").unwrap();
        assert!(matches!(Vault::from_file(&path), Err(Error::KeyLength { .. })));
    }
}
