//! Who is calling, and what that lets them do.

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use sqlx::AnyConnection;

use super::model::{Token, TokenKind};
use crate::{
    ids::{AccountId, AgentId, PoolId, TokenId, UserId},
    server::{
        app::AppState,
        error::{Error, Result},
        store,
    },
};

/// A token's use is written down at most this often, in milliseconds: reading must not cost a write each time.
const LAST_USED_GRAIN_MS: i64 = 60_000;

/// The caller of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    User {
        id: UserId,
        account_id: AccountId,
    },
    /// Holder of a pool token: may register agents.
    Pool {
        token_id: TokenId,
        pool_id: PoolId,
    },
    Agent {
        id: AgentId,
        pool_id: PoolId,
        token_id: TokenId,
    },
}

/// A new secret of that kind: prefix and 32 random bytes.
#[must_use]
pub fn new_secret(kind: TokenKind) -> SecretString {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    use rand::RngExt;
    let bytes: [u8; 32] = rand::rng().random();
    SecretString::from(format!("{}{}", kind.prefix(), URL_SAFE_NO_PAD.encode(bytes)))
}

/// What is stored of a secret. Plain SHA-256 is enough for 256 random bits.
#[must_use]
pub fn hash(secret: &SecretString) -> String {
    hex(&Sha256::digest(secret.expose_secret().as_bytes()))
}

/// Lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

/// Whether a token can be used at `now`.
#[must_use]
pub fn is_valid(token: &Token, now: i64) -> bool {
    token.expires_at.is_none_or(|expires_at| now < expires_at)
}

/// What holders of tokens that are none are told.
pub const UNKNOWN: Error = Error::Unauthorized("The token is not known here, was revoked, or has expired.");

/// The caller who holds `secret`.
///
/// # Errors
/// [`Error::Unauthorized`] when the secret is unknown or expired.
pub async fn authenticate(app: &AppState, secret: &SecretString) -> Result<Principal> {
    let now = app.clock.now_ms();
    let mut connection = app.store.read().await?;
    let token = store::tokens::by_hash(&mut connection, &hash(secret)).await?.ok_or(UNKNOWN)?;
    if !is_valid(&token, now) {
        return Err(UNKNOWN);
    }
    let principal = principal(&mut connection, &token).await?.ok_or(UNKNOWN)?;
    drop(connection);
    if token.last_used_at.is_none_or(|last| now - last >= LAST_USED_GRAIN_MS) {
        let mut tx = app.store.begin().await?;
        store::tokens::touch(&mut tx, &token.id, now).await?;
        tx.commit().await?;
    }
    Ok(principal)
}

async fn principal(connection: &mut AnyConnection, token: &Token) -> Result<Option<Principal>> {
    Ok(match (token.kind, &token.user_id, &token.pool_id, &token.agent_id) {
        (TokenKind::User, Some(id), ..) => store::tokens::user(connection, id)
            .await?
            .map(|user| Principal::User { id: user.id, account_id: user.account_id }),
        (TokenKind::Pool, _, Some(pool_id), _) => {
            Some(Principal::Pool { token_id: token.id.clone(), pool_id: pool_id.clone() })
        }
        (TokenKind::Agent, _, Some(pool_id), Some(id)) => {
            Some(Principal::Agent { id: id.clone(), pool_id: pool_id.clone(), token_id: token.id.clone() })
        }
        _ => None,
    })
}
