//! `/agent-pools/{id}/access-tokens` and `/access-tokens`. A secret is in the answer to the creation only.

use axum::{
    Router,
    extract::{Path, State},
    http::StatusCode,
    response::Response,
    routing::get,
};

use super::{
    document::{self, Body, Params},
    views,
};
use crate::{
    api::iacp::{AccessTokenAttributes, kind},
    server::{
        app::App,
        auth::UserAuth,
        domain::{
            model::Token,
            pools,
            tokens::{self, NewToken},
            unit::Unit,
        },
        error::Result,
        store,
    },
};

pub(super) fn router() -> Router<App> {
    Router::new()
        .route("/agent-pools/{id}/access-tokens", get(list_of_pool).post(create_for_pool))
        .route("/access-tokens", get(list_own).post(create_own))
        .route("/access-tokens/{id}", get(read).patch(update).delete(revoke))
}

fn new_token(body: &Body) -> Result<NewToken> {
    let AccessTokenAttributes { name, description, expires_in, external_id, .. } =
        body.attributes(kind::ACCESS_TOKENS)?;
    Ok(NewToken { name, description, expires_in, external_id })
}

async fn list_of_pool(
    user: UserAuth,
    State(app): State<App>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response> {
    let mut connection = app.store.read().await?;
    let pool = pools::find(&mut connection, &user.account_id, &id).await?;
    let mut found = store::tokens::of_pool(&mut connection, &pool.id).await?;
    if let Some(external_id) = params.0.filter("external-id") {
        found.retain(|token| token.external_id.as_deref() == Some(external_id));
    }
    page(&app, &params, &found)
}

async fn create_for_pool(
    user: UserAuth,
    State(app): State<App>,
    Path(id): Path<String>,
    body: Body,
) -> Result<Response> {
    let new = new_token(&body)?;
    let mut unit = Unit::begin(&app).await?;
    let now = unit.now;
    let pool = pools::find(&mut unit, &user.account_id, &id).await?;
    let (token, secret) = tokens::create_for_pool(&mut unit, &pool, new, now).await?;
    unit.changed_a_little(&pool);
    unit.commit().await?;
    tracing::info!(token = %token.id, pool = %pool.id, "pool token created");
    Ok(document::one(StatusCode::CREATED, views::token(&token, Some(&secret), now)?, Vec::new()))
}

async fn list_own(user: UserAuth, State(app): State<App>, params: Params) -> Result<Response> {
    let mut connection = app.store.read().await?;
    let found = store::tokens::of_user(&mut connection, &user.id).await?;
    page(&app, &params, &found)
}

async fn create_own(user: UserAuth, State(app): State<App>, body: Body) -> Result<Response> {
    let new = new_token(&body)?;
    let mut unit = Unit::begin(&app).await?;
    let now = unit.now;
    let (token, secret) = tokens::create_for_user(&mut unit, &user.id, new, now).await?;
    unit.commit().await?;
    tracing::info!(token = %token.id, user = %user.id, "user token created");
    Ok(document::one(StatusCode::CREATED, views::token(&token, Some(&secret), now)?, Vec::new()))
}

async fn read(user: UserAuth, State(app): State<App>, Path(id): Path<String>) -> Result<Response> {
    let mut connection = app.store.read().await?;
    let token = tokens::find(&mut connection, &user.account_id, &user.id, &id).await?;
    Ok(document::one(StatusCode::OK, views::token(&token, None, app.clock.now_ms())?, Vec::new()))
}

async fn update(user: UserAuth, State(app): State<App>, Path(id): Path<String>, body: Body) -> Result<Response> {
    let attributes: AccessTokenAttributes = body.attributes(kind::ACCESS_TOKENS)?;
    let mut unit = Unit::begin(&app).await?;
    let token = tokens::find(&mut unit, &user.account_id, &user.id, &id).await?;
    let token = tokens::rename(&mut unit, token, attributes.name, attributes.description).await?;
    let now = unit.now;
    if let Some(pool) = &token.pool_id {
        unit.changed(pool);
    }
    unit.commit().await?;
    Ok(document::one(StatusCode::OK, views::token(&token, None, now)?, Vec::new()))
}

async fn revoke(user: UserAuth, State(app): State<App>, Path(id): Path<String>) -> Result<StatusCode> {
    let mut unit = Unit::begin(&app).await?;
    let token = tokens::find(&mut unit, &user.account_id, &user.id, &id).await?;
    tokens::revoke(&mut unit, &token).await?;
    unit.commit().await?;
    tracing::info!(token = %token.id, "token revoked");
    Ok(StatusCode::NO_CONTENT)
}

/// Tokens are few: the page is cut here.
fn page(app: &App, params: &Params, found: &[Token]) -> Result<Response> {
    let page = params.page();
    let now = app.clock.now_ms();
    let (skip, take) = (usize::try_from(page.offset()).unwrap_or(usize::MAX), page.size as usize);
    let shown = found.iter().skip(skip).take(take);
    let data = shown.map(|token| views::token(token, None, now)).collect::<Result<_>>()?;
    Ok(document::many(data, Vec::new(), page, i64::try_from(found.len()).unwrap_or(i64::MAX)))
}
