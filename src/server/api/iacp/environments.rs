//! `/environments`.

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
    api::iacp::{EnvironmentAttributes, kind},
    server::{
        app::App,
        auth::UserAuth,
        domain::{
            environments::{self, Change},
            links,
            unit::Unit,
        },
        error::{Error, Result},
        store::lists::{Match, Selection},
    },
};

const DEFAULT_POOL: &str = "default-workspace-agent-pool";

pub(super) fn router() -> Router<App> {
    Router::new()
        .route("/environments", get(list).post(create))
        .route("/environments/{id}", get(read).patch(update).delete(delete))
}

async fn list(user: UserAuth, State(app): State<App>, params: Params) -> Result<Response> {
    let mut selection = Selection::new("environments", "id").column("account_id", Match::is(user.account_id));
    for (name, column) in [("environment", "id"), ("name", "name"), ("account", "account_id")] {
        selection = params.filter(selection, name, column);
    }
    if let Some(text) = params.0.get("query").filter(|text| !text.is_empty()) {
        selection = selection.search(&["name", "id"], text);
    }
    let mut connection = app.store.read().await?;
    let order = [("name", "name"), ("created-at", "created_at")];
    let (ids, total) = params.sort(selection, &order).page(&mut connection, params.page()).await?;
    let mut data = Vec::with_capacity(ids.len());
    for id in ids.iter().filter_map(|id| id.parse().ok()) {
        if let Some(environment) = environments::get(&mut connection, &id).await? {
            data.push(views::environment(&environment)?);
        }
    }
    Ok(document::many(data, Vec::new(), params.page(), total))
}

async fn create(user: UserAuth, State(app): State<App>, body: Body) -> Result<Response> {
    let attributes: EnvironmentAttributes = body.attributes(kind::ENVIRONMENTS)?;
    if let Some(Some(account)) = body.to_one("account")
        && account != user.account_id.as_str()
    {
        return Err(Error::missing_relation("account", "Account", account));
    }
    let mut unit = Unit::begin(&app).await?;
    let now = unit.now;
    let name = attributes.name.unwrap_or_default();
    let environment = environments::create(&mut unit, &user.account_id, &name, now).await?;
    let change = Change { name: None, default_pool: body.to_one(DEFAULT_POOL) };
    let environment = environments::update(&mut unit, environment, change).await?;
    unit.commit().await?;
    Ok(document::one(StatusCode::CREATED, views::environment(&environment)?, Vec::new()))
}

async fn read(user: UserAuth, State(app): State<App>, Path(id): Path<String>) -> Result<Response> {
    let mut connection = app.store.read().await?;
    let environment = environments::find(&mut connection, &user.account_id, &id).await?;
    Ok(document::one(StatusCode::OK, views::environment(&environment)?, Vec::new()))
}

async fn update(user: UserAuth, State(app): State<App>, Path(id): Path<String>, body: Body) -> Result<Response> {
    let attributes: EnvironmentAttributes = body.attributes(kind::ENVIRONMENTS)?;
    let mut unit = Unit::begin(&app).await?;
    let before = environments::find(&mut unit, &user.account_id, &id).await?;
    let change = Change { name: attributes.name, default_pool: body.to_one(DEFAULT_POOL) };
    let after = environments::update(&mut unit, before.clone(), change).await?;
    if after.default_pool_id != before.default_pool_id {
        links::reroute(&mut unit, None).await?;
    }
    unit.commit().await?;
    Ok(document::one(StatusCode::OK, views::environment(&after)?, Vec::new()))
}

async fn delete(user: UserAuth, State(app): State<App>, Path(id): Path<String>) -> Result<StatusCode> {
    let mut unit = Unit::begin(&app).await?;
    let environment = environments::find(&mut unit, &user.account_id, &id).await?;
    environments::delete(&mut unit, environment).await?;
    unit.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}
