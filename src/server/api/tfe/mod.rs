//! `/api/v2`: what the unmodified `terraform` and `tofu` need of the TFE API, for `cloud {}` and
//! `backend "remote"`. Unknown query parameters are ignored: the CLI sends junk ones.

mod addresses;
mod configurations;
mod organizations;
mod runs;
mod signed;
mod stages;
mod states;
mod variables;
mod views;
mod workspaces;

use axum::{
    Router,
    extract::Request,
    http::{HeaderName, HeaderValue, StatusCode},
    routing::get,
};
use tower_http::set_header::SetResponseHeaderLayer;

use super::discovery::{self, TFE_BASE};
use crate::server::{app::App, error::Error};

/// The CLI refuses servers that name no version, or one before 2.5.
const VERSION_HEADER: HeaderName = HeaderName::from_static("tfp-api-version");
const VERSION: HeaderValue = HeaderValue::from_static("2.6");

/// The surface's routes: discovery, the API, and the signed addresses that it hands out.
pub fn router() -> Router<App> {
    let api = Router::new()
        .route("/ping", get(ping))
        .merge(organizations::router())
        .merge(workspaces::router())
        .merge(configurations::router())
        .merge(runs::router())
        .merge(stages::router())
        .merge(states::router())
        .merge(variables::router())
        .fallback(unknown)
        .layer(SetResponseHeaderLayer::overriding(VERSION_HEADER, VERSION));
    Router::new().nest(TFE_BASE, api).merge(discovery::router()).merge(signed::router())
}

/// Only the headers matter.
async fn ping() -> StatusCode {
    StatusCode::NO_CONTENT
}

async fn unknown(request: Request) -> Error {
    Error::NoSuch(format!("There is nothing at {TFE_BASE}{}.", request.uri().path()))
}
