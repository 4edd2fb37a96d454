//! Access tokens of pools and users: made, listed, renamed, revoked. Secrets are shown once and never kept.
//! Revoking a pool token ends the tokens of the agents that registered with it; retiring it in favour of another one
//! does not. Its expiry does not either: it ends registering, not what was registered.

use secrecy::SecretString;
use sqlx::AnyConnection;

use super::{
    access,
    model::{Pool, Token, TokenKind},
    pools,
    unit::Unit,
};
use crate::{
    ids::{AccountId, TokenId, UserId},
    server::{
        error::{Error, Result},
        store,
        wake::Topic,
    },
};

/// The class in error texts.
pub const CLASS: &str = "AccessToken";

/// Ten years: longer is meant to be never, which is said by leaving it out.
const MAX_MINUTES: i64 = 10 * 366 * 24 * 60;

/// What the creator says of a token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewToken {
    pub name: Option<String>,
    pub description: Option<String>,
    /// Minutes; `None`: does not expire.
    pub expires_in: Option<i64>,
    /// Unique in the pool.
    pub external_id: Option<String>,
}

/// Creates a token that registers agents of `pool`; returns the secret, which is kept nowhere.
///
/// # Errors
/// 422 for a lifetime out of bounds or an external id that another token of the pool has.
pub async fn create_for_pool(
    connection: &mut AnyConnection,
    pool: &Pool,
    new: NewToken,
    now: i64,
) -> Result<(Token, SecretString)> {
    if let Some(external_id) = &new.external_id {
        let existing = store::tokens::of_pool(connection, &pool.id).await?;
        if existing.iter().any(|token| token.external_id.as_ref() == Some(external_id)) {
            let detail = format!("The pool has a token with the external id `{external_id}` already.");
            return Err(Error::attribute("external-id", detail));
        }
    }
    let mut token = build(TokenKind::Pool, new, now)?;
    token.pool_id = Some(pool.id.clone());
    insert(connection, token).await
}

/// Creates a token for `user`, with all of the user's rights.
///
/// # Errors
/// 422 for a lifetime out of bounds.
pub async fn create_for_user(
    connection: &mut AnyConnection,
    user: &UserId,
    new: NewToken,
    now: i64,
) -> Result<(Token, SecretString)> {
    let mut token = build(TokenKind::User, new, now)?;
    // only pools' tokens are found by it
    token.external_id = None;
    token.user_id = Some(user.clone());
    insert(connection, token).await
}

fn build(kind: TokenKind, new: NewToken, now: i64) -> Result<Token> {
    if new.expires_in.is_some_and(|minutes| !(1..=MAX_MINUTES).contains(&minutes)) {
        return Err(Error::attribute("expires-in", format!("Must lie between 1 and {MAX_MINUTES} minutes.")));
    }
    let text = |text: Option<String>| text.filter(|text| !text.is_empty());
    Ok(Token {
        id: TokenId::random(),
        kind,
        user_id: None,
        pool_id: None,
        agent_id: None,
        parent_id: None,
        name: text(new.name),
        description: text(new.description),
        external_id: text(new.external_id),
        created_at: now,
        expires_at: new.expires_in.map(|minutes| now + minutes * 60_000),
        last_used_at: None,
    })
}

async fn insert(connection: &mut AnyConnection, token: Token) -> Result<(Token, SecretString)> {
    let secret = access::new_secret(token.kind);
    store::tokens::insert(connection, &token, &access::hash(&secret)).await?;
    Ok((token, secret))
}

/// The token that a user names: a pool's of the same account, or an own one.
///
/// # Errors
/// [`Error::NotFound`] for every other.
pub async fn find(connection: &mut AnyConnection, account: &AccountId, user: &UserId, id: &str) -> Result<Token> {
    let missing = || Error::not_found(CLASS, id);
    let parsed: TokenId = id.parse().map_err(|_| missing())?;
    let token = store::tokens::get(connection, &parsed).await?.ok_or_else(missing)?;
    let visible = match (token.kind, &token.pool_id) {
        (TokenKind::User, _) => token.user_id.as_ref() == Some(user),
        (TokenKind::Pool, Some(pool)) => {
            pools::get(connection, pool).await?.is_some_and(|pool| pool.account_id == *account)
        }
        // an agent's token comes and goes with its registration
        _ => false,
    };
    if visible { Ok(token) } else { Err(missing()) }
}

/// Writes a new name and description; `None` leaves the old one.
///
/// # Errors
/// When the database fails.
pub async fn rename(
    connection: &mut AnyConnection,
    mut token: Token,
    name: Option<String>,
    description: Option<String>,
) -> Result<Token> {
    token.name = name.or(token.name);
    token.description = description.or(token.description);
    store::tokens::rename(connection, &token).await?;
    Ok(token)
}

/// Ends the token at once, and with a pool's the tokens of the agents that registered with it: calls that are held
/// for them end too.
///
/// # Errors
/// When the database fails.
pub async fn revoke(unit: &mut Unit<'_>, token: &Token) -> Result<()> {
    for agent in store::tokens::agents_of(unit, &token.id).await? {
        unit.wake(Topic::Agent(agent));
    }
    if let Some(pool) = &token.pool_id {
        unit.wake(Topic::Queue(pool.clone()));
        unit.changed(pool);
    }
    Ok(store::tokens::delete(unit, &token.id).await?)
}

/// Ends a pool token that `successor` replaces: the agents that registered with it go on, under the successor. Says
/// how many.
///
/// # Errors
/// 422 for a token that is no pool's, 404 or 422 for a successor that is none.
pub async fn retire(unit: &mut Unit<'_>, token: &Token, successor: &TokenId) -> Result<u64> {
    const RELATION: &str = "successor";
    let Some(pool) = token.pool_id.as_ref().filter(|_| token.kind == TokenKind::Pool) else {
        return Err(Error::Unprocessable("Only a pool's token can be retired; delete this one instead.".to_owned()));
    };
    let wrong = |detail: String| Error::Relationship { name: RELATION, detail, missing: false };
    let heir = store::tokens::get(unit, successor)
        .await?
        .filter(|heir| heir.kind == TokenKind::Pool && heir.pool_id.as_ref() == Some(pool))
        .ok_or_else(|| Error::missing_relation(RELATION, CLASS, successor))?;
    if heir.id == token.id {
        return Err(wrong("A token cannot replace itself.".to_owned()));
    }
    if !access::is_valid(&heir, unit.now) {
        return Err(wrong(format!("The token {successor} has expired: it can replace no other.")));
    }
    let moved = store::tokens::move_children(unit, &token.id, &heir.id).await?;
    if moved > 0 {
        // Agents live on it now, as if they had registered with it: nobody may take it for one that is not in use.
        let now = unit.now;
        store::tokens::touch(unit, &heir.id, now).await?;
    }
    store::tokens::delete(unit, &token.id).await?;
    unit.changed(pool);
    Ok(moved)
}
