//! Web pages: pools, agents, runs, the live log. They show, they do not change: the one thing that can be
//! made here is a user's access token, which `terraform login` sends people for.

mod ansi;
mod assets;
mod layout;
mod overview;
mod run;
mod session;
mod tokens;

use axum::{
    Router,
    extract::Request,
    http::{HeaderMap, HeaderValue, header},
    middleware::{self, Next},
    response::{Redirect, Response},
    routing::{get, post},
};

use super::app::App;

/// Nothing but our own files; nowhere in a frame.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; \
     base-uri 'none'; frame-ancestors 'none'",
);

/// The pages. Everyone but the form and the assets asks for a session: see [`session::SignedIn`].
pub fn router() -> Router<App> {
    Router::new()
        .route("/", get(overview::overview))
        .route("/login", get(session::form).post(session::sign_in))
        .route("/logout", post(session::sign_out))
        .route("/app", get(async || Redirect::to("/")))
        .route("/app/{organization}", get(async || Redirect::to("/")))
        .route("/app/settings/tokens", get(tokens::show).post(tokens::create))
        .route("/app/{organization}/{workspace}", get(overview::workspace))
        .route("/app/{organization}/{workspace}/runs", get(overview::workspace))
        .route("/app/{organization}/{workspace}/runs/{run}", get(run::show))
        .route("/app/{organization}/{workspace}/runs/{run}/events", get(run::events))
        .route("/app/{organization}/{workspace}/runs/{run}/logs/{stage}", get(run::raw_log))
        .merge(assets::router())
        .layer(middleware::from_fn(secure))
}

async fn secure(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    protect(response.headers_mut());
    response
}

fn protect(headers: &mut HeaderMap) {
    headers.insert(header::CONTENT_SECURITY_POLICY, POLICY);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    // `no-referrer` would make browsers send `Origin: null` with our own forms
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
}
