//! JSON:API at the edge: request bodies, query parameters and answers, for all surfaces that speak it.

use std::convert::Infallible;

use axum::{
    Json,
    extract::{FromRequest, FromRequestParts, Request},
    http::{HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    jsonapi::{self, Document, Linkage, Query, Resource},
    server::error::{Error, Result},
};

/// Largest JSON body in bytes: states come inside of one, in base64.
const MAX_BODY: usize = 256 << 20;

/// The JSON body of a request, whatever content type it claims; `Null` when there is none.
pub async fn json_body(request: Request) -> Result<Value> {
    let bytes = axum::body::to_bytes(request.into_body(), MAX_BODY)
        .await
        .map_err(|_| Error::TooLarge(format!("The request's body broke off, or is larger than {MAX_BODY} bytes.")))?;
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&bytes).map_err(|error| Error::Malformed(format!("The body is not JSON: {error}.")))
}

/// The one resource that a request is about: the member `data` of its body.
#[derive(Debug, Clone)]
pub struct Payload(pub Resource);

impl<S: Send + Sync> FromRequest<S> for Payload {
    type Rejection = Error;

    async fn from_request(request: Request, _: &S) -> Result<Self> {
        let data = json_body(request).await?.get_mut("data").map(Value::take);
        match data {
            Some(data @ Value::Object(_)) => serde_json::from_value(data)
                .map(Self)
                .map_err(|error| Error::Unprocessable(format!("The member `data` is no JSON:API resource: {error}."))),
            _ => Err(Error::Malformed("The body needs a member `data` with one resource.".to_owned())),
        }
    }
}

/// The attributes of a request as a type.
///
/// # Errors
/// 422 that says what does not fit.
pub fn decode<T: DeserializeOwned>(resource: &Resource) -> Result<T> {
    resource.decode().map_err(|error| Error::Unprocessable(format!("An attribute does not fit: {error}.")))
}

/// The resources that a request's body lists in `data`.
#[derive(Debug, Clone)]
pub struct Linkages(pub Vec<Linkage>);

impl<S: Send + Sync> FromRequest<S> for Linkages {
    type Rejection = Error;

    async fn from_request(request: Request, _: &S) -> Result<Self> {
        let data = json_body(request).await?.get_mut("data").map(Value::take).unwrap_or_default();
        serde_json::from_value(data)
            .map(Self)
            .map_err(|error| Error::Unprocessable(format!("The member `data` is no list of resources: {error}.")))
    }
}

/// The query parameters; unknown ones are kept and ignored.
#[derive(Debug, Clone)]
pub struct Params(pub Query);

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(Query::parse(parts.uri.query())))
    }
}

/// A document as an answer.
#[derive(Debug, Clone)]
pub struct Reply {
    status: StatusCode,
    document: Document<Data>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
enum Data {
    One(Box<Resource>),
    Many(Vec<Resource>),
}

impl Reply {
    fn new(data: Data) -> Self {
        Self { status: StatusCode::OK, document: Document::new(data) }
    }

    /// One resource.
    #[must_use]
    pub fn one(resource: Resource) -> Self {
        Self::new(Data::One(Box::new(resource)))
    }

    /// A list, with its `meta` member.
    #[must_use]
    pub fn list(resources: Vec<Resource>, meta: Value) -> Self {
        let mut reply = Self::new(Data::Many(resources));
        reply.document.meta = Some(meta);
        reply
    }

    /// A list that is never paged.
    #[must_use]
    pub fn whole_list(resources: Vec<Resource>) -> Self {
        let total = i64::try_from(resources.len()).unwrap_or(i64::MAX);
        let size = u32::try_from(resources.len()).unwrap_or(u32::MAX).max(1);
        Self::list(resources, jsonapi::Page { number: 1, size }.meta(total))
    }

    /// With resources beside the data.
    #[must_use]
    pub fn including(mut self, included: Vec<Resource>) -> Self {
        self.document.included = included;
        self
    }

    /// With the status 201.
    #[must_use]
    pub fn created(mut self) -> Self {
        self.status = StatusCode::CREATED;
        self
    }
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.document)).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(jsonapi::CONTENT_TYPE));
        response
    }
}

/// An identifier in a path.
///
/// # Errors
/// 404, as for one that is not there.
pub fn id<T: std::str::FromStr>(class: &'static str, text: &str) -> Result<T> {
    text.parse().map_err(|_| Error::not_found(class, text))
}
