//! Who may sign releases, and whether one of them has.

use pgp::{
    composed::{Deserializable, DetachedSignature, SignedPublicKey, SignedPublicSubKey},
    crypto::hash::HashAlgorithm,
    packet::{Signature, SignatureType},
    types::{KeyDetails, VerifyingKey},
};

use crate::api::job::EngineKind;

/// HashiCorp's release key, C874011F0AB405110D02105534365D9472D7468F, as the module
/// github.com/hashicorp/hc-install v0.10.0 has it; see https://www.hashicorp.com/security.
const HASHICORP: &str = include_str!("keys/hashicorp.asc");

/// OpenTofu's key, E3E6E43D84CB852EADB0051D0C0AF313E5FD9F80, as the module github.com/opentofu/tofudl v0.0.1 has it;
/// see https://get.opentofu.org/opentofu.asc.
const OPENTOFU: &str = include_str!("keys/opentofu.asc");

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("it holds no OpenPGP public key")]
    NoKey,
    #[error("it is not an OpenPGP public key that can be used")]
    Key { source: Box<pgp::errors::Error> },
    #[error("the signature is no OpenPGP signature")]
    Unreadable { source: Box<pgp::errors::Error> },
    #[error("the signature is by none of the trusted keys ({trusted})")]
    Stranger { trusted: String },
    #[error("the signature by the key {signer} does not fit the file")]
    Bad { signer: String },
    #[error("the signature by the key {signer} is not accepted: {why}")]
    Refused { signer: String, why: &'static str },
}

/// Keys by any of which a release may be signed.
#[derive(Debug, Clone)]
pub struct Keyring {
    keys: Vec<SignedPublicKey>,
}

impl Keyring {
    /// The keys of an engine's publisher.
    ///
    /// # Errors
    /// Never for the keys of this program: a test reads them.
    pub fn of_publisher(kind: EngineKind) -> Result<Self, Error> {
        match kind {
            EngineKind::Terraform => Self::parse(HASHICORP.as_bytes()),
            EngineKind::OpenTofu => Self::parse(OPENTOFU.as_bytes()),
        }
    }

    /// The keys of a file, armored or binary.
    ///
    /// # Errors
    /// When it holds no key, or one whose parts are not signed by it.
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        let unusable = |source| Error::Key { source: Box::new(source) };
        let (read, _) = SignedPublicKey::from_reader_many(text).map_err(unusable)?;
        let keys: Vec<_> = read.collect::<Result<_, _>>().map_err(unusable)?;
        for key in &keys {
            key.verify_bindings().map_err(unusable)?;
        }
        if keys.is_empty() { Err(Error::NoKey) } else { Ok(Self { keys }) }
    }

    /// Trusts these keys too.
    pub fn extend(&mut self, other: Self) {
        self.keys.extend(other.keys);
    }

    fn fingerprints(&self) -> String {
        let all: Vec<_> = self.keys.iter().map(|key| fingerprint(&key.primary_key)).collect();
        all.join(", ")
    }

    /// Checks a detached signature, armored or binary; says which key made it.
    ///
    /// # Errors
    /// When it is no signature, not by a trusted key, or not of this content.
    pub fn verify(&self, signature: &[u8], content: &[u8]) -> Result<String, Error> {
        let (signature, _) = DetachedSignature::from_reader_single(signature)
            .map_err(|source| Error::Unreadable { source: Box::new(source) })?;
        let signature = signature.signature;
        for key in &self.keys {
            if names(&signature, &key.primary_key) {
                return check(&signature, content, &key.primary_key, usable_primary(key), ends_primary(key));
            }
            if let Some(subkey) = key.public_subkeys.iter().find(|subkey| names(&signature, &subkey.key)) {
                let usable = not_revoked(key).and_then(|()| usable_subkey(subkey));
                return check(&signature, content, &subkey.key, usable, ends_subkey(subkey));
            }
        }
        Err(Error::Stranger { trusted: self.fingerprints() })
    }
}

/// The signature says that this key made it. One that names no key is by nobody.
fn names(signature: &Signature, key: &impl KeyDetails) -> bool {
    let by_fingerprint = signature.issuer_fingerprint();
    if by_fingerprint.is_empty() {
        return signature.issuer_key_id().into_iter().any(|id| *id == key.legacy_key_id());
    }
    by_fingerprint.into_iter().any(|issuer| *issuer == key.fingerprint())
}

fn check(
    signature: &Signature,
    content: &[u8],
    key: &impl VerifyingKey,
    usable: Result<(), &'static str>,
    ends: Option<u64>,
) -> Result<String, Error> {
    let signer = fingerprint(key);
    let refuse = |why| Err(Error::Refused { signer: signer.clone(), why });
    if let Err(why) = usable {
        return refuse(why);
    }
    if !matches!(signature.typ(), Some(SignatureType::Binary | SignatureType::Text)) {
        return refuse("it is not the signature of a file");
    }
    if !matches!(signature.hash_alg(), Some(HashAlgorithm::Sha256 | HashAlgorithm::Sha384 | HashAlgorithm::Sha512)) {
        return refuse("its hash is weaker than SHA-256");
    }
    let Some(made) = signature.created().map(|made| u64::from(made.as_secs())) else {
        return refuse("it does not say when it was made");
    };
    if ends.is_some_and(|ends| made >= ends) {
        return refuse("the key had expired when it was made");
    }
    match signature.verify(key, content) {
        Ok(()) => Ok(signer),
        Err(_) => Err(Error::Bad { signer }),
    }
}

fn fingerprint(key: &impl KeyDetails) -> String {
    key.fingerprint().to_string().to_uppercase()
}

fn not_revoked(key: &SignedPublicKey) -> Result<(), &'static str> {
    if key.details.revocation_signatures.is_empty() { Ok(()) } else { Err("the key is revoked") }
}

/// What the newest signature about a key says counts.
fn newest<'a>(signatures: impl Iterator<Item = &'a Signature>) -> Option<&'a Signature> {
    signatures.max_by_key(|signature| signature.created().map(|made| made.as_secs()))
}

fn about_primary(key: &SignedPublicKey) -> Option<&Signature> {
    let users = key.details.users.iter().flat_map(|user| &user.signatures);
    newest(
        users
            .chain(&key.details.direct_signatures)
            .filter(|about| names(about, &key.primary_key) && about.typ() != Some(SignatureType::CertRevocation)),
    )
}

fn about_subkey(subkey: &SignedPublicSubKey) -> Option<&Signature> {
    newest(subkey.signatures.iter().filter(|about| about.typ() == Some(SignatureType::SubkeyBinding)))
}

fn usable_primary(key: &SignedPublicKey) -> Result<(), &'static str> {
    not_revoked(key)?;
    let may_sign = about_primary(key).is_some_and(|about| about.key_flags().sign());
    if may_sign { Ok(()) } else { Err("the key is not for signing files") }
}

fn usable_subkey(subkey: &SignedPublicSubKey) -> Result<(), &'static str> {
    if subkey.signatures.iter().any(|about| about.typ() == Some(SignatureType::SubkeyRevocation)) {
        return Err("the key is revoked");
    }
    let may_sign = about_subkey(subkey).is_some_and(|about| about.key_flags().sign());
    if may_sign { Ok(()) } else { Err("the key is not for signing files") }
}

/// Seconds since 1970 at which a key is no longer to be used.
fn ends(key: &impl KeyDetails, about: Option<&Signature>) -> Option<u64> {
    let life = about?.key_expiration_time()?.as_secs();
    (life > 0).then(|| u64::from(key.created_at().as_secs()) + u64::from(life))
}

fn ends_primary(key: &SignedPublicKey) -> Option<u64> {
    ends(&key.primary_key, about_primary(key))
}

fn ends_subkey(subkey: &SignedPublicSubKey) -> Option<u64> {
    ends(&subkey.key, about_subkey(subkey))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made with GnuPG 2.4: an RSA key that certifies, with an RSA subkey that signs, as HashiCorp's.
    const KEY: &[u8] = include_bytes!("keys/test.asc");
    const CONTENT: &[u8] = b"0123  file.zip\n";
    const BY_SUBKEY: &[u8] = include_bytes!("keys/test-subkey.sig");
    const BY_SUBKEY_ARMORED: &[u8] = include_bytes!("keys/test-subkey.asc");
    const BY_SHA1: &[u8] = include_bytes!("keys/test-sha1.sig");

    #[test]
    fn the_publishers_keys_are_the_ones_they_announce() {
        for (kind, fingerprint) in [
            (EngineKind::Terraform, "C874011F0AB405110D02105534365D9472D7468F"),
            (EngineKind::OpenTofu, "E3E6E43D84CB852EADB0051D0C0AF313E5FD9F80"),
        ] {
            let keys = Keyring::of_publisher(kind).unwrap();
            assert_eq!(keys.fingerprints(), fingerprint);
            assert_eq!(usable_primary(&keys.keys[0]), Ok(()), "{fingerprint}");
        }
        let hashicorp = &Keyring::of_publisher(EngineKind::Terraform).unwrap().keys[0];
        let signing = hashicorp.public_subkeys.iter().filter(|subkey| usable_subkey(subkey).is_ok());
        // Of its two signing keys one ended in 2022; the other, which it signs with since, ends in 2030.
        let now = |subkey: &&SignedPublicSubKey| ends_subkey(subkey).is_some_and(|ends| ends > 1_893_456_000);
        let names: Vec<_> = signing.filter(now).map(|subkey| fingerprint(&subkey.key)).collect();
        assert_eq!(names.len(), 1, "{names:?}");
    }

    #[test]
    fn a_signature_that_gnupg_made_is_accepted_in_both_forms() {
        let keys = Keyring::parse(KEY).unwrap();
        for signature in [BY_SUBKEY, BY_SUBKEY_ARMORED] {
            let signer = keys.verify(signature, CONTENT).unwrap();
            assert_ne!(signer, keys.fingerprints(), "by the subkey");
        }
    }

    #[test]
    fn what_is_not_a_good_signature_is_refused_with_the_reason() {
        let keys = Keyring::parse(KEY).unwrap();
        assert!(matches!(keys.verify(BY_SUBKEY, b"0124  file.zip\n"), Err(Error::Bad { .. })));
        assert!(matches!(keys.verify(b"", CONTENT), Err(Error::Unreadable { .. })));
        assert!(matches!(keys.verify(b"<html>", CONTENT), Err(Error::Unreadable { .. })));
        assert!(matches!(keys.verify(BY_SHA1, CONTENT), Err(Error::Refused { .. })));
        for at in [0, 10, BY_SUBKEY.len() / 2, BY_SUBKEY.len() - 1] {
            let mut broken = BY_SUBKEY.to_vec();
            broken[at] ^= 0x10;
            assert!(keys.verify(&broken, CONTENT).is_err(), "byte {at}");
        }
        let stranger = Keyring::of_publisher(EngineKind::Terraform).unwrap();
        let error = stranger.verify(BY_SUBKEY, CONTENT).unwrap_err();
        assert!(error.to_string().contains("C874011F0AB405110D02105534365D9472D7468F"), "{error}");
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for text in [b"".as_slice(), b"no key", BY_SUBKEY, BY_SUBKEY_ARMORED, &KEY[..KEY.len() / 2]] {
            assert!(Keyring::parse(text).is_err());
        }
    }
}
