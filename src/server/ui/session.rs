//! Signing in to the pages: the form takes a user's token, the browser gets a signed cookie. The cookie names
//! the token, so that revoking the token ends the session.

use axum::{
    Form,
    extract::{FromRequestParts, Query, State},
    http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Redirect, Response},
};
use maud::html;
use secrecy::SecretString;
use serde::Deserialize;

use super::layout;
use crate::{
    ids::{AccountId, TokenId, UserId},
    server::{
        app::{App, AppState},
        auth::{Scheme, requested_host},
        domain::access::{self, Principal},
        error::{Error, Result},
        store,
    },
};

const COOKIE: &str = "terrapool_session";
/// What the signature is for, so that it is worth nothing elsewhere.
const PURPOSE: &str = "page session";
/// A working day.
const LIFETIME_MS: i64 = 12 * 3600 * 1000;

/// A user who looks at pages; others are sent to the form.
#[derive(Debug, Clone)]
pub(super) struct SignedIn {
    pub user_id: UserId,
    pub account_id: AccountId,
}

impl FromRequestParts<App> for SignedIn {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Response> {
        match session(&parts.headers, app).await {
            Ok(Some(user)) => Ok(user),
            Ok(None) => {
                let next = parts.uri.path_and_query().map_or("/", |path| path.as_str());
                let query: String =
                    url::form_urlencoded::Serializer::new(String::new()).append_pair("next", next).finish();
                Err(Redirect::to(&format!("/login?{query}")).into_response())
            }
            Err(error) => Err(layout::Failure(error).into_response()),
        }
    }
}

async fn session(headers: &HeaderMap, app: &AppState) -> Result<Option<SignedIn>> {
    let now = app.clock.now_ms();
    let Some(token_id) = cookies(headers).find_map(|cookie| verify(app, cookie, now)) else { return Ok(None) };
    let mut connection = app.store.read().await?;
    let token = store::tokens::get(&mut connection, &token_id).await?.filter(|token| access::is_valid(token, now));
    let Some(user_id) = token.and_then(|token| token.user_id) else { return Ok(None) };
    let user = store::tokens::user(&mut connection, &user_id).await?;
    Ok(user.map(|user| SignedIn { user_id: user.id, account_id: user.account_id }))
}

fn cookies(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter_map(|(name, value)| (name == COOKIE).then_some(value))
}

/// `token.expiry.signature`
fn seal(app: &AppState, token: &TokenId, expires_at: i64) -> String {
    let claim = format!("{token}.{expires_at}");
    format!("{claim}.{}", app.signer.sign(PURPOSE, &claim))
}

fn verify(app: &AppState, cookie: &str, now: i64) -> Option<TokenId> {
    let (claim, signature) = cookie.rsplit_once('.')?;
    let (token, expires_at) = claim.split_once('.')?;
    let alive = now < expires_at.parse().ok()?;
    (alive && app.signer.verify(PURPOSE, claim, signature)).then(|| token.parse().ok()).flatten()
}

#[derive(Debug, Deserialize)]
pub(super) struct Next {
    #[serde(default)]
    next: String,
}

#[derive(Deserialize)]
pub(super) struct Credentials {
    token: SecretString,
    #[serde(default)]
    next: String,
}

pub(super) async fn form(Query(Next { next }): Query<Next>) -> Response {
    page(StatusCode::OK, &next, None)
}

fn page(status: StatusCode, next: &str, problem: Option<&str>) -> Response {
    let body = html! {
        section.card.narrow {
            h1 { "Sign in" }
            @if let Some(problem) = problem { p.problem role="alert" { (problem) } }
            form method="post" action="/login" {
                input type="hidden" name="next" value=(local(next));
                label for="token" { "Access token" }
                input #token type="password" name="token" required autocomplete="current-password" autofocus
                    spellcheck="false";
                button type="submit" { "Sign in" }
            }
            p.hint {
                "Any user’s token works. " code { "terrapool up" } " keeps the administrator’s in "
                code { "connection.env" } " in its data directory, as " code { "TERRAPOOL_TOKEN" } "."
            }
        }
    };
    (status, layout::page("Sign in", false, &body)).into_response()
}

/// Takes the token, sets the cookie.
pub(super) async fn sign_in(
    State(app): State<App>,
    parts: SameOrigin,
    Form(Credentials { token, next }): Form<Credentials>,
) -> Result<Response, layout::Failure> {
    let principal = match access::authenticate(&app, &token).await {
        Ok(principal) => principal,
        Err(Error::Unauthorized(reason)) => return Ok(page(StatusCode::UNAUTHORIZED, &next, Some(reason))),
        Err(error) => return Err(layout::Failure(error)),
    };
    if !matches!(principal, Principal::User { .. }) {
        let reason = "That is a pool’s or an agent’s token: the pages need a user’s.";
        return Ok(page(StatusCode::UNAUTHORIZED, &next, Some(reason)));
    }
    let mut connection = app.store.read().await.map_err(Error::from)?;
    let found = store::tokens::by_hash(&mut connection, &access::hash(&token)).await.map_err(Error::from)?;
    let token = found.ok_or(Error::Internal("a token vanished while signing in"))?;
    let cookie = seal(&app, &token.id, app.clock.now_ms() + LIFETIME_MS);
    Ok(with_cookie(&parts, &cookie, LIFETIME_MS / 1000, &local(&next)))
}

/// Forgets the cookie.
pub(super) async fn sign_out(parts: SameOrigin) -> Response {
    with_cookie(&parts, "", 0, "/login")
}

fn with_cookie(parts: &SameOrigin, value: &str, seconds: i64, next: &str) -> Response {
    let secure = if parts.https { "; Secure" } else { "" };
    let cookie = format!("{COOKIE}={value}; Path=/; HttpOnly; SameSite=Lax; Max-Age={seconds}{secure}");
    let mut response = Redirect::to(next).into_response();
    if let Ok(cookie) = HeaderValue::from_str(&cookie) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response
}

/// Where to go after signing in: a path of ours, nothing else.
fn local(next: &str) -> String {
    let ours = next.starts_with('/')
        && !next.starts_with("//")
        && next.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    if ours { next.to_owned() } else { "/".to_owned() }
}

/// A form that was sent from a page of ours. Browsers name the origin of every POST; the cookie's SameSite is
/// the second guard.
#[derive(Debug, Clone)]
pub(super) struct SameOrigin {
    https: bool,
}

impl FromRequestParts<App> for SameOrigin {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Response> {
        let text = |name| parts.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let host = requested_host(parts).unwrap_or_default();
        let same = match text(header::ORIGIN) {
            Some(origin) => origin.split_once("://").is_some_and(|(_, origin_host)| origin_host == host),
            None => text(header::HeaderName::from_static("sec-fetch-site")).is_none_or(|site| site == "same-origin"),
        };
        if !same {
            let body = html! { section.card.narrow { h1 { "Refused" } p { "This form was sent from another site." } } };
            return Err((StatusCode::FORBIDDEN, layout::page("Refused", false, &body)).into_response());
        }
        let scheme = parts.extensions.get::<Scheme>().is_some_and(|scheme| scheme.0 == "https");
        let public = app.public_url.as_ref().is_some_and(|url| url.starts_with("https://"));
        Ok(Self { https: scheme || public })
    }
}

#[cfg(test)]
mod tests {
    use super::local;

    #[test]
    fn only_own_paths_are_gone_to_after_signing_in() {
        for path in ["/", "/app/a/b/runs/run-1?x=y"] {
            assert_eq!(local(path), path);
        }
        for path in ["", "//evil", "https://evil", "/\\evil", "javascript:x", "/a\r\nSet-Cookie: x", "evil"] {
            assert_eq!(local(path), "/", "{path}");
        }
    }
}
