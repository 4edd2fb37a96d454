//! What a server needs before anybody can call it: an account, and an administrator with a token.

use secrecy::SecretString;

use super::{
    access,
    model::{Account, Token, TokenKind, User},
    unit::Unit,
};
use crate::{
    ids::{AccountId, TokenId, UserId},
    server::{
        app::AppState,
        error::{Error, Result},
        store,
    },
};

/// Name of the account that is made at the first start.
const ACCOUNT: &str = "main";

/// The administrator that is made at the first start.
const ADMIN: &str = "admin";

/// Least length of a given token: 128 random bits in any usual alphabet have more.
const MIN_TOKEN: usize = 20;

/// Makes sure that the account and the administrator exist, and that `secret` is a token of his. Tokens
/// given at earlier starts stay valid until they are deleted.
///
/// # Errors
/// When the token is too short to be safe, and those of the database.
pub async fn ensure_admin(app: &AppState, secret: &SecretString) -> Result<AccountId> {
    use secrecy::ExposeSecret;
    if secret.expose_secret().len() < MIN_TOKEN {
        return Err(Error::attribute(
            "token",
            format!("The administrator's token must have at least {MIN_TOKEN} characters."),
        ));
    }
    let mut unit = Unit::begin(app).await?;
    let now = unit.now;
    let user = match store::tokens::user_by_name(&mut unit, ADMIN).await? {
        Some(user) => user,
        None => {
            let account =
                Account { id: AccountId::random(), name: ACCOUNT.to_owned(), default_pool_id: None, created_at: now };
            store::accounts::insert(&mut unit, &account).await?;
            let user = User {
                id: UserId::random(),
                account_id: account.id,
                username: ADMIN.to_owned(),
                email: "admin@localhost".to_owned(),
                is_admin: true,
                is_service_account: false,
            };
            store::tokens::insert_user(&mut unit, &user, now).await?;
            user
        }
    };
    let hash = access::hash(secret);
    if store::tokens::by_hash(&mut unit, &hash).await?.is_none() {
        let token = Token {
            id: TokenId::random(),
            kind: TokenKind::User,
            user_id: Some(user.id),
            pool_id: None,
            agent_id: None,
            parent_id: None,
            name: Some("bootstrap".to_owned()),
            description: Some("Given to the server at its start.".to_owned()),
            external_id: None,
            created_at: now,
            expires_at: None,
            last_used_at: None,
        };
        store::tokens::insert(&mut unit, &token, &hash).await?;
    }
    unit.commit().await?;
    Ok(user.account_id)
}
