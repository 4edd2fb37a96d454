//! Calls about one job. Each names its epoch; a stale one is fenced in the transaction that would store it.

use axum::{
    Json, Router,
    body::{Body as HttpBody, Bytes},
    extract::{DefaultBodyLimit, FromRequestParts, Path, Query, State},
    http::{StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use futures::StreamExt;
use serde::Deserialize;

use super::Body;
use crate::{
    api::agent::{EPOCH_HEADER, FinishRequest, LogAck},
    ids::JobId,
    server::{
        app::App,
        auth::AgentAuth,
        domain::{artifacts, configurations, logs, model::Job, queue, runs, states, unit::Unit},
        error::{Error, Result},
    },
};

pub(super) fn router() -> Router<App> {
    Router::new()
        .route("/jobs/{id}/configuration", get(configuration))
        .route("/jobs/{id}/log", put(append_log))
        .route("/jobs/{id}/started", post(started))
        .route("/jobs/{id}/finish", post(finish))
        // states and artifacts have limits of their own
        .route("/jobs/{id}/state", get(state).put(put_state).layer(DefaultBodyLimit::disable()))
        .route("/jobs/{id}/artifacts/{name}", get(artifact).put(put_artifact).layer(DefaultBodyLimit::disable()))
}

/// Agent, job and epoch of a call.
struct Call {
    agent: AgentAuth,
    job: JobId,
    epoch: i64,
}

#[derive(Deserialize)]
struct Id {
    id: String,
}

impl FromRequestParts<App> for Call {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        let agent = AgentAuth::from_request_parts(parts, app).await?;
        let Path(Id { id }) = Path::<Id>::from_request_parts(parts, app)
            .await
            .map_err(|_| Error::Malformed("The path names no job.".to_owned()))?;
        let epoch =
            parts.headers.get(EPOCH_HEADER).and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
        Ok(Self {
            agent,
            job: id.parse().map_err(|_| Error::fenced())?,
            epoch: epoch
                .ok_or_else(|| Error::Malformed(format!("The header {EPOCH_HEADER} is missing or no number.")))?,
        })
    }
}

impl Call {
    async fn current(&self, unit: &mut Unit<'_>) -> Result<Job> {
        queue::current(unit, &self.agent.id, &self.job, self.epoch).await
    }

    /// The job, for a read.
    async fn check(&self, app: &App) -> Result<Job> {
        self.current(&mut Unit::begin(app).await?).await
    }
}

fn download(length: u64, bytes: HttpBody) -> Response {
    (
        [(header::CONTENT_TYPE, "application/octet-stream".to_owned()), (header::CONTENT_LENGTH, length.to_string())],
        bytes,
    )
        .into_response()
}

async fn configuration(State(app): State<App>, call: Call) -> Result<Response> {
    let job = call.check(&app).await?;
    let (length, bytes) = configurations::content_for_run(&app, &job.run_id).await?;
    Ok(download(length, HttpBody::from_stream(bytes)))
}

async fn state(State(app): State<App>, call: Call) -> Result<Response> {
    let job = call.check(&app).await?;
    Ok(match states::current_for_run(&app, &job.run_id).await? {
        Some(bytes) => download(bytes.len() as u64, HttpBody::from(bytes)),
        None => StatusCode::NO_CONTENT.into_response(),
    })
}

async fn put_state(State(app): State<App>, call: Call, body: HttpBody) -> Result<StatusCode> {
    let limit = usize::try_from(app.policy.max_artifact_bytes).unwrap_or(usize::MAX);
    let bytes = axum::body::to_bytes(body, limit)
        .await
        .map_err(|_| Error::TooLarge(format!("The state broke off, or is larger than {limit} bytes.")))?;
    let mut unit = Unit::begin(&app).await?;
    let job = call.current(&mut unit).await?;
    let workspace = runs::get(&mut unit, &job.run_id).await?.workspace_id;
    states::record_run_snapshot(&app, &mut unit, &workspace, &job.run_id, job.epoch, &bytes).await?;
    unit.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
struct Name {
    name: String,
}

async fn artifact(State(app): State<App>, call: Call, Path(Name { name }): Path<Name>) -> Result<Response> {
    let job = call.check(&app).await?;
    match artifacts::get(&app, &job.run_id, &name).await? {
        Some((length, bytes)) => Ok(download(length, HttpBody::from_stream(bytes))),
        None => Err(Error::NoSuch(format!("The run has no artifact `{name}`."))),
    }
}

async fn put_artifact(
    State(app): State<App>,
    call: Call,
    Path(Name { name }): Path<Name>,
    body: HttpBody,
) -> Result<StatusCode> {
    let job = call.check(&app).await?;
    let stored = artifacts::put(&app, &job, &name, body.into_data_stream().boxed()).await?;
    let mut unit = Unit::begin(&app).await?;
    if let Err(error) = call.current(&mut unit).await {
        drop(unit);
        stored.drop_bytes(&app).await;
        return Err(error);
    }
    stored.attach(&mut unit, &job).await?;
    unit.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
struct Offset {
    offset: u64,
}

async fn append_log(
    State(app): State<App>,
    call: Call,
    Query(Offset { offset }): Query<Offset>,
    bytes: Bytes,
) -> Result<Json<LogAck>> {
    let mut unit = Unit::begin(&app).await?;
    let job = call.current(&mut unit).await?;
    let end = logs::append(&mut unit, &job, offset, &bytes).await?;
    unit.commit().await?;
    Ok(Json(LogAck { end }))
}

async fn started(State(app): State<App>, call: Call) -> Result<StatusCode> {
    queue::started(&app, &call.agent.id, &call.job, call.epoch).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn finish(State(app): State<App>, call: Call, Body(result): Body<FinishRequest>) -> Result<StatusCode> {
    queue::finish(&app, &call.agent.id, &call.job, call.epoch, &result).await?;
    Ok(StatusCode::NO_CONTENT)
}
