//! Plans and applies.

use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};

use super::{addresses::Addresses, views};
use crate::{
    api::agent::artifact,
    ids::{ApplyId, PlanId},
    server::{
        api::document::{Reply, id},
        app::App,
        auth::{BaseUrl, UserAuth},
        domain::{artifacts, stages},
        error::Result,
    },
};

pub(super) fn router() -> Router<App> {
    Router::new()
        .route("/plans/{id}", get(plan))
        .route("/plans/{id}/json-output", get(plan_json))
        .route("/applies/{id}", get(apply))
}

async fn plan(
    State(app): State<App>,
    user: UserAuth,
    BaseUrl(base): BaseUrl,
    Path(text): Path<String>,
) -> Result<Reply> {
    let id: PlanId = id("Plan", &text)?;
    let mut connection = app.store.read().await?;
    let (stage, run) = stages::get_visible(&mut connection, &user.account_id, id.as_str()).await?;
    Ok(Reply::one(views::plan(&stage, &run, Addresses::new(&app, &base))))
}

async fn apply(
    State(app): State<App>,
    user: UserAuth,
    BaseUrl(base): BaseUrl,
    Path(text): Path<String>,
) -> Result<Reply> {
    let id: ApplyId = id("Apply", &text)?;
    let mut connection = app.store.read().await?;
    let (stage, _) = stages::get_visible(&mut connection, &user.account_id, id.as_str()).await?;
    Ok(Reply::one(views::apply(&stage, Addresses::new(&app, &base))))
}

/// The plan as `show -json` prints it; no content while there is none.
async fn plan_json(State(app): State<App>, user: UserAuth, Path(text): Path<String>) -> Result<Response> {
    let id: PlanId = id("Plan", &text)?;
    let run = {
        let mut connection = app.store.read().await?;
        stages::get_visible(&mut connection, &user.account_id, id.as_str()).await?.1
    };
    let Some((length, content)) = artifacts::get(&app, &run.id, artifact::PLAN_JSON).await? else {
        return Ok(StatusCode::NO_CONTENT.into_response());
    };
    let headers = [(header::CONTENT_TYPE, "application/json".to_owned()), (header::CONTENT_LENGTH, length.to_string())];
    Ok((headers, Body::from_stream(content)).into_response())
}
