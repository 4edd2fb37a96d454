//! Organizations, which are our environments; what they may do, and the caller's own account.

use axum::{
    Router,
    extract::{Path, State},
    routing::get,
};

use super::views;
use crate::server::{
    api::document::Reply,
    app::App,
    auth::UserAuth,
    domain::{organizations, workspaces},
    error::{Error, Result},
};

pub(super) fn router() -> Router<App> {
    Router::new()
        .route("/organizations", get(list))
        .route("/organizations/{name}", get(read))
        .route("/organizations/{name}/entitlement-set", get(entitlements))
        .route("/organizations/{name}/capacity", get(capacity))
        .route("/organizations/{name}/runs/queue", get(queue))
        .route("/account/details", get(account))
}

async fn list(State(app): State<App>, user: UserAuth) -> Result<Reply> {
    let mut connection = app.store.read().await?;
    let environments = organizations::list(&mut connection, &user.account_id).await?;
    Ok(Reply::whole_list(environments.iter().map(views::organization).collect()))
}

async fn read(State(app): State<App>, user: UserAuth, Path(name): Path<String>) -> Result<Reply> {
    let mut connection = app.store.read().await?;
    let environment = workspaces::organization(&mut connection, &user.account_id, &name).await?;
    Ok(Reply::one(views::organization(&environment)))
}

async fn entitlements(State(app): State<App>, user: UserAuth, Path(name): Path<String>) -> Result<Reply> {
    let mut connection = app.store.read().await?;
    let environment = workspaces::organization(&mut connection, &user.account_id, &name).await?;
    Ok(Reply::one(views::entitlements(&environment)))
}

async fn capacity(State(app): State<App>, user: UserAuth, Path(name): Path<String>) -> Result<Reply> {
    let mut connection = app.store.read().await?;
    let environment = workspaces::organization(&mut connection, &user.account_id, &name).await?;
    let capacity = organizations::capacity(&mut connection, &environment.id).await?;
    Ok(Reply::one(views::capacity(&name, capacity)))
}

async fn queue(State(app): State<App>, user: UserAuth, Path(name): Path<String>) -> Result<Reply> {
    let mut connection = app.store.read().await?;
    let environment = workspaces::organization(&mut connection, &user.account_id, &name).await?;
    let queue = organizations::queue(&mut connection, &environment.id).await?;
    Ok(Reply::whole_list(queue.iter().map(|(run, position)| views::run(run, *position)).collect()))
}

async fn account(State(app): State<App>, user: UserAuth) -> Result<Reply> {
    let mut connection = app.store.read().await?;
    let found = organizations::user(&mut connection, &user.id).await?;
    Ok(Reply::one(views::user(&found.ok_or_else(|| Error::not_found("User", &user.id))?)))
}
