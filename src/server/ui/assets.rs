//! Style sheet, script and icon: part of the program, no other site is asked for anything.

use axum::{
    Router,
    http::{HeaderValue, header},
    response::IntoResponse,
    routing::get,
};

use crate::server::app::App;

pub(super) const CSS: &str = concat!("/assets/terrapool.css?", env!("CARGO_PKG_VERSION"));
pub(super) const SCRIPT: &str = concat!("/assets/terrapool.js?", env!("CARGO_PKG_VERSION"));
pub(super) const ICON: &str = concat!("/assets/terrapool.svg?", env!("CARGO_PKG_VERSION"));

pub(super) fn router() -> Router<App> {
    Router::new()
        .route(
            "/assets/terrapool.css",
            get(async || asset("text/css; charset=utf-8", include_str!("assets/terrapool.css"))),
        )
        .route(
            "/assets/terrapool.js",
            get(async || asset("text/javascript; charset=utf-8", include_str!("assets/terrapool.js"))),
        )
        .route("/assets/terrapool.svg", get(async || asset("image/svg+xml", include_str!("assets/terrapool.svg"))))
}

fn asset(kind: &'static str, text: &'static str) -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        // short: the same version may be built twice while it is being worked on
        (header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=300")),
    ];
    (headers, text)
}
