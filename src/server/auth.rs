//! Who may call, as extractors: a handler states it in its signature. Authorization is not a layer, so a
//! route without one of these is visibly open.

use axum::{
    extract::FromRequestParts,
    http::{header, request::Parts, uri::Authority},
};
use secrecy::SecretString;

use super::{
    app::App,
    domain::access::{self, Principal},
    error::{Error, Result},
};
use crate::ids::{AccountId, AgentId, PoolId, TokenId, UserId};

/// A person or service account, with a user token.
#[derive(Debug, Clone)]
pub struct UserAuth {
    pub id: UserId,
    pub account_id: AccountId,
}

/// The holder of a pool token.
#[derive(Debug, Clone)]
pub struct PoolAuth {
    pub token_id: TokenId,
    pub pool_id: PoolId,
}

/// A registered agent.
#[derive(Debug, Clone)]
pub struct AgentAuth {
    pub id: AgentId,
    pub pool_id: PoolId,
    pub token_id: TokenId,
}

fn bearer(parts: &Parts) -> Result<SecretString> {
    const MISSING: Error = Error::Unauthorized("This call needs a token: `Authorization: Bearer …`.");
    let header = parts.headers.get(header::AUTHORIZATION).ok_or(MISSING)?;
    let text = header.to_str().map_err(|_| MISSING)?;
    let (scheme, token) = text.split_once(' ').ok_or(MISSING)?;
    if !scheme.eq_ignore_ascii_case("bearer") || token.trim().is_empty() {
        return Err(MISSING);
    }
    Ok(SecretString::from(token.trim()))
}

async fn principal(parts: &Parts, app: &App) -> Result<Principal> {
    access::authenticate(app, &bearer(parts)?).await
}

impl FromRequestParts<App> for UserAuth {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        match principal(parts, app).await? {
            Principal::User { id, account_id } => Ok(Self { id, account_id }),
            _ => Err(Error::Unauthorized("This call needs a user's token, not a pool's or an agent's.")),
        }
    }
}

impl FromRequestParts<App> for PoolAuth {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        match principal(parts, app).await? {
            Principal::Pool { token_id, pool_id } => Ok(Self { token_id, pool_id }),
            _ => Err(Error::Unauthorized("Registering an agent needs a pool's token.")),
        }
    }
}

impl FromRequestParts<App> for AgentAuth {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        match principal(parts, app).await? {
            Principal::Agent { id, pool_id, token_id } => Ok(Self { id, pool_id, token_id }),
            _ => Err(Error::Unauthorized("This call needs an agent's token: register first.")),
        }
    }
}

/// Which scheme a listener speaks; each listener puts it into its requests.
#[derive(Debug, Clone, Copy)]
pub struct Scheme(pub &'static str);

/// Start of absolute addresses in answers: `https://host:port`. The configured public address, or the one
/// that the request was sent to.
#[derive(Debug, Clone)]
pub struct BaseUrl(pub String);

impl FromRequestParts<App> for BaseUrl {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        if let Some(url) = &app.public_url {
            return Ok(Self(url.trim_end_matches('/').to_owned()));
        }
        let scheme = parts.extensions.get::<Scheme>().map_or("http", |scheme| scheme.0);
        let host = requested_host(parts)
            .filter(|host| {
                !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]_".contains(&b))
            })
            .ok_or_else(|| Error::Malformed("The request names no usable Host.".to_owned()))?;
        Ok(Self(format!("{scheme}://{host}")))
    }
}

/// The host (and port) that the request was sent to. HTTP/2 has no such header: it is part of the address there.
pub fn requested_host(parts: &Parts) -> Option<&str> {
    let header = parts.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    header.or_else(|| parts.uri.authority().map(Authority::as_str))
}
