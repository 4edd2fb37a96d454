//! `/accounts`: the caller's own, and no other.

use axum::{
    Router,
    extract::{Path, State},
    http::StatusCode,
    response::Response,
    routing::get,
};

use super::{
    document::{self, Params},
    views,
};
use crate::server::{
    app::App,
    auth::UserAuth,
    domain::model::Account,
    error::{Error, Result},
    store,
};

const CLASS: &str = "Account";

pub(super) fn router() -> Router<App> {
    Router::new().route("/accounts", get(list)).route("/accounts/{id}", get(read))
}

async fn own(app: &App, user: &UserAuth) -> Result<Account> {
    let mut connection = app.store.read().await?;
    let found = store::accounts::get(&mut connection, &user.account_id).await?;
    found.ok_or_else(|| Error::not_found(CLASS, &user.account_id))
}

async fn list(user: UserAuth, State(app): State<App>, params: Params) -> Result<Response> {
    let account = own(&app, &user).await?;
    Ok(document::many(vec![views::account(&account)?], Vec::new(), params.page(), 1))
}

async fn read(user: UserAuth, State(app): State<App>, Path(id): Path<String>) -> Result<Response> {
    if id != user.account_id.as_str() {
        return Err(Error::not_found(CLASS, id));
    }
    Ok(document::one(StatusCode::OK, views::account(&own(&app, &user).await?)?, Vec::new()))
}
