//! What can go wrong in the control plane, and how it is told: HTTP status and JSON:API error. Internal
//! causes are logged once, here, and never shown.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

use super::{blobs, store, vault};
use crate::{
    api::agent::code,
    jsonapi::{self, ErrorObject, Errors, Source},
    telemetry::Chain,
};

/// An error of the domain layer or of a handler.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// 404: no such object, or not for this caller; the two look alike.
    #[error("{class} with ID '{id}' not found or user unauthorized.")]
    NotFound { class: &'static str, id: String },
    /// 404: no such path or parent.
    #[error("{0}")]
    NoSuch(String),
    /// 401: the token is missing, unknown or expired.
    #[error("{0}")]
    Unauthorized(&'static str),
    /// 422 or 404 at `/data/relationships/<name>`.
    #[error("{detail}")]
    Relationship { name: &'static str, detail: String, missing: bool },
    /// 422 at `/data/attributes/<name>`.
    #[error("{detail}")]
    Attribute { name: String, detail: String },
    /// 400: the request cannot be read.
    #[error("{0}")]
    Malformed(String),
    /// 409: the object's state does not allow it.
    #[error("{0}")]
    Conflict(String),
    /// 409 with a code that clients act on.
    #[error("{detail}")]
    ConflictCode { code: &'static str, detail: String, meta: Option<serde_json::Value> },
    /// 413
    #[error("{0}")]
    TooLarge(String),
    /// 422 without a pointer.
    #[error("{0}")]
    Unprocessable(String),
    /// 426
    #[error("{0}")]
    Upgrade(String),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Blob(#[from] blobs::Error),
    #[error(transparent)]
    Vault(#[from] vault::Error),
    /// 500: a defect of ours.
    #[error("{0}")]
    Internal(&'static str),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn not_found(class: &'static str, id: impl AsRef<str>) -> Self {
        Self::NotFound { class, id: id.as_ref().to_owned() }
    }

    pub fn attribute(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::Attribute { name: name.into(), detail: detail.into() }
    }

    /// A to-one relationship to something that is not there.
    pub fn missing_relation(name: &'static str, class: &str, id: impl std::fmt::Display) -> Self {
        Self::Relationship {
            name,
            detail: format!("{class} with ID '{id}' not found or user unauthorized."),
            missing: true,
        }
    }

    /// The (job, epoch) of a call is not the current one.
    #[must_use]
    pub fn fenced() -> Self {
        Self::ConflictCode {
            code: code::FENCED,
            detail: "This job's lease is over: it was given to another agent or has ended. Stop its container."
                .to_owned(),
            meta: None,
        }
    }

    /// A row with that unique value exists already.
    #[must_use]
    pub fn is_unique_violation(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_unique_violation())
    }

    fn is_out_of_space(&self) -> bool {
        match self {
            Self::Store(error) => error.is_out_of_space(),
            Self::Blob(error) => error.is_out_of_space(),
            _ => false,
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::NotFound { .. } | Self::NoSuch(_) => StatusCode::NOT_FOUND,
            Self::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Self::Relationship { missing: true, .. } => StatusCode::NOT_FOUND,
            Self::Relationship { .. } | Self::Attribute { .. } | Self::Unprocessable(_) => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::Conflict(_) | Self::ConflictCode { .. } => StatusCode::CONFLICT,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Upgrade(_) => StatusCode::UPGRADE_REQUIRED,
            Self::Store(_) | Self::Blob(_) | Self::Vault(_) | Self::Internal(_) => {
                if self.is_out_of_space() {
                    StatusCode::INSUFFICIENT_STORAGE
                } else if matches!(self, Self::Store(error) if error.is_closed()) {
                    StatusCode::SERVICE_UNAVAILABLE
                } else {
                    StatusCode::INTERNAL_SERVER_ERROR
                }
            }
        }
    }

    fn object(&self, status: StatusCode) -> ErrorObject {
        let mut object = ErrorObject { status: status.as_u16().to_string(), ..ErrorObject::default() };
        let detail = Some(self.to_string());
        match self {
            // Clients assert this title, without detail and pointer.
            Self::NotFound { .. } | Self::NoSuch(_) => object.title = self.to_string(),
            Self::Unauthorized(_) => (object.title, object.detail) = ("unauthorized".to_owned(), detail),
            Self::Relationship { name, .. } => {
                (object.title, object.detail) = ("Invalid Relationship".to_owned(), detail);
                object.source = Some(pointer(format!("/data/relationships/{name}")));
            }
            Self::Attribute { name, .. } => {
                (object.title, object.detail) = ("Invalid Attribute".to_owned(), detail);
                object.source = Some(pointer(format!("/data/attributes/{name}")));
            }
            Self::ConflictCode { code, meta, .. } => {
                (object.title, object.detail) = ("conflict".to_owned(), detail);
                (object.code, object.meta) = (Some((*code).to_owned()), meta.clone());
            }
            Self::Store(_) | Self::Blob(_) | Self::Vault(_) | Self::Internal(_) if self.is_out_of_space() => {
                object.title = "out of space".to_owned();
                object.code = Some(code::OUT_OF_SPACE.to_owned());
                object.detail = Some(
                    "The control plane's disk is full; nothing was changed. Free space in its data directory, then try again."
                        .to_owned(),
                );
            }
            Self::Store(_) | Self::Blob(_) | Self::Vault(_) | Self::Internal(_) => {
                object.title = "internal error".to_owned();
                object.detail = Some("The control plane failed to do this; its log says why.".to_owned());
            }
            Self::Malformed(_) | Self::Conflict(_) | Self::TooLarge(_) | Self::Unprocessable(_) | Self::Upgrade(_) => {
                object.title = status.canonical_reason().unwrap_or("error").to_lowercase();
                object.detail = detail;
            }
        }
        object
    }
}

fn pointer(pointer: String) -> Source {
    Source { pointer: Some(pointer), parameter: None }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let status = self.status();
        if status.is_server_error() && status != StatusCode::SERVICE_UNAVAILABLE {
            tracing::error!(error = %Chain(&self), "request failed");
        }
        let body = Json(json!(Errors { errors: vec![self.object(status)] }));
        let mut response = (status, body).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(jsonapi::CONTENT_TYPE));
        response
    }
}
