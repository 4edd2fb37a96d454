//! `/api/agent/v1`: the agents' own surface. Shapes and meanings: `crate::api::agent`.

mod jobs;

use axum::{
    Extension, Json, Router,
    extract::{DefaultBodyLimit, FromRequest, Request, State},
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};

use crate::{
    api::agent::{
        BASE, ClaimRequest, HeartbeatRequest, HeartbeatResponse, MAX_LOG_APPEND, PROTOCOL_HEADER, PROTOCOL_VERSION,
        PoolResponse, RegisterRequest, RegisterResponse,
    },
    server::{
        app::App,
        auth::{AgentAuth, PoolAuth},
        domain::{agents, queue},
        error::{Error, Result},
        router::CallerGone,
    },
};

/// The surface's routes.
pub fn router() -> Router<App> {
    let routes = Router::new()
        .route("/pool", get(pool))
        .route("/register", post(register))
        .route("/claim", post(claim))
        .route("/heartbeat", post(heartbeat))
        .route("/deregister", post(deregister))
        .merge(jobs::router())
        .layer(middleware::from_fn(check_protocol))
        .layer(DefaultBodyLimit::max(2 * MAX_LOG_APPEND));
    Router::new().nest(BASE, routes)
}

/// Refuses agents that speak another version of the protocol.
async fn check_protocol(request: Request, next: Next) -> Response {
    let version = request.headers().get(PROTOCOL_HEADER).map(|value| value.as_bytes().to_owned());
    if version.as_deref() == Some(PROTOCOL_VERSION.as_bytes()) {
        return next.run(request).await;
    }
    let spoken = version.map_or_else(|| "none".to_owned(), |version| String::from_utf8_lossy(&version).into_owned());
    Error::Upgrade(format!(
        "This control plane speaks version {PROTOCOL_VERSION} of the agent protocol, the agent speaks {spoken}. Install the \
         agent of the same release."
    ))
    .into_response()
}

/// A JSON body; a bad one is answered like every other error.
struct Body<T>(T);

impl<T: serde::de::DeserializeOwned> FromRequest<App> for Body<T> {
    type Rejection = Error;

    async fn from_request(request: Request, app: &App) -> Result<Self> {
        match Json::<T>::from_request(request, app).await {
            Ok(Json(body)) => Ok(Self(body)),
            Err(rejection) => Err(Error::Malformed(rejection.body_text())),
        }
    }
}

async fn pool(State(app): State<App>, pool: PoolAuth) -> Result<Json<PoolResponse>> {
    Ok(Json(agents::pool(&app, &pool.pool_id, &pool.token_id).await?))
}

async fn register(
    State(app): State<App>,
    pool: PoolAuth,
    Body(request): Body<RegisterRequest>,
) -> Result<Json<RegisterResponse>> {
    Ok(Json(agents::register(&app, &pool.pool_id, pool.token_id, request).await?))
}

async fn claim(
    State(app): State<App>,
    agent: AgentAuth,
    Extension(caller): Extension<CallerGone>,
    Body(request): Body<ClaimRequest>,
) -> Result<Response> {
    let gone = caller.0.cancelled();
    Ok(match queue::claim(&app, &queue_caller(&agent), &request, gone).await? {
        Some(spec) => Json(spec).into_response(),
        None => StatusCode::NO_CONTENT.into_response(),
    })
}

async fn heartbeat(
    State(app): State<App>,
    agent: AgentAuth,
    Body(request): Body<HeartbeatRequest>,
) -> Result<Json<HeartbeatResponse>> {
    Ok(Json(queue::heartbeat(&app, &queue_caller(&agent), &request).await?))
}

fn queue_caller(agent: &AgentAuth) -> queue::Caller<'_> {
    queue::Caller { agent: &agent.id, pool: &agent.pool_id, token: &agent.token_id }
}

async fn deregister(State(app): State<App>, agent: AgentAuth) -> Result<StatusCode> {
    agents::deregister(&app, &agent.id).await?;
    Ok(StatusCode::NO_CONTENT)
}
