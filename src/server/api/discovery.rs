//! Service discovery: where the CLI finds the APIs of this host. There is no `login.v1`: the CLI asks for
//! a token then.

use axum::{Json, Router, routing::get};
use serde_json::{Value, json};

use crate::{api::iacp, server::app::App};

/// Path prefix of the TFE-compatible surface.
pub const TFE_BASE: &str = "/api/v2";

/// Its route.
pub fn router() -> Router<App> {
    Router::new().route("/.well-known/terraform.json", get(services))
}

/// Relative addresses: they hold behind any proxy.
async fn services() -> Json<Value> {
    let tfe = format!("{TFE_BASE}/");
    Json(json!({
        "tfe.v2": tfe,
        "tfe.v2.1": tfe,
        "tfe.v2.2": tfe,
        "state.v2": tfe,
        "iacp.v3": format!("{}/", iacp::BASE),
    }))
}
