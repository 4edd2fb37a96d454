//! Digests as text.

use std::io::{self, Read};

use sha2::{Digest, Sha256};

/// Two lower-case hexadecimal digits for each byte.
#[must_use]
pub fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The SHA-256 of all that there is to read, as 64 hexadecimal digits.
///
/// # Errors
/// Those of the source.
pub fn sha256(mut source: impl Read) -> io::Result<String> {
    let mut digest = Sha256::new();
    let mut part = vec![0; 256 << 10];
    loop {
        match source.read(&mut part)? {
            0 => return Ok(hex(digest.finalize())),
            read => digest.update(&part[..read]),
        }
    }
}
