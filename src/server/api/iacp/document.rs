//! Reading requests and writing answers of this surface: bodies, filters, sorting, pages.

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Request},
    http::{HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde::de::DeserializeOwned;

use crate::{
    jsonapi::{self, Document, Linkage, Page, Query, Resource, ToOne},
    server::{
        app::App,
        error::{Error, Result},
        store::lists::{Match, Selection},
    },
};

/// The resource of a request's body. Clients send it with and without an id, with nulls, and with more
/// members than we know: all of that is read over.
#[derive(Debug, Clone)]
pub(super) struct Body(pub Resource);

impl FromRequest<App> for Body {
    type Rejection = Error;

    async fn from_request(request: Request, app: &App) -> Result<Self> {
        let bytes = Bytes::from_request(request, app)
            .await
            .map_err(|_| Error::TooLarge("The request's body is too large.".to_owned()))?;
        let document: Document<Resource> = serde_json::from_slice(&bytes).map_err(|error| {
            Error::Unprocessable(format!("The body must be a JSON:API document, `{{\"data\": {{…}}}}`: {error}."))
        })?;
        Ok(Self(document.data))
    }
}

impl Body {
    /// The attributes, of a resource of type `kind`.
    pub(super) fn attributes<T: DeserializeOwned>(&self, kind: &str) -> Result<T> {
        if !self.0.kind.is_empty() && self.0.kind != kind {
            return Err(Error::Unprocessable(format!("The body's type must be `{kind}`, not `{}`.", self.0.kind)));
        }
        self.0.decode().map_err(|error| Error::Unprocessable(format!("The attributes cannot be read: {error}.")))
    }

    /// A to-one relationship: `None` when not mentioned, `Some(None)` to clear it.
    pub(super) fn to_one(&self, name: &str) -> Option<Option<String>> {
        match self.0.related(name) {
            ToOne::Absent => None,
            ToOne::Null => Some(None),
            ToOne::To(linkage) => Some(Some(linkage.id)),
        }
    }

    /// The ids of a to-many relationship; `None` when not mentioned.
    pub(super) fn to_many(&self, name: &str) -> Option<Vec<String>> {
        Some(self.0.related_many(name)?.into_iter().map(|Linkage { id, .. }| id).collect())
    }
}

/// The query parameters.
#[derive(Debug, Clone)]
pub(super) struct Params(pub Query);

impl FromRequestParts<App> for Params {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, Self::Rejection> {
        Ok(Self(Query::parse(parts.uri.query())))
    }
}

impl Params {
    pub(super) fn page(&self) -> Page {
        self.0.page()
    }

    pub(super) fn includes(&self, path: &str) -> bool {
        self.0.includes().any(|wanted| wanted == path)
    }

    /// Adds `filter[name]` on `column`, when the request has it.
    pub(super) fn filter(&self, selection: Selection, name: &str, column: &'static str) -> Selection {
        match self.0.filter(name) {
            Some(text) => selection.column(column, operator(text)),
            None => selection,
        }
    }

    /// Adds `sort=a,-b`; what is not in `columns` is passed over. Without any, the first column sorts.
    pub(super) fn sort(&self, mut selection: Selection, columns: &[(&str, &'static str)]) -> Selection {
        let mut sorted = false;
        for key in self.0.get("sort").unwrap_or_default().split(',') {
            let (key, descending) = key.trim().strip_prefix('-').map_or((key.trim(), false), |key| (key, true));
            if let Some((_, column)) = columns.iter().find(|(name, _)| *name == key) {
                selection = selection.order_by(column, descending);
                sorted = true;
            }
        }
        match columns.first() {
            Some((_, column)) if !sorted => selection.order_by(column, false),
            _ => selection,
        }
    }
}

/// `x`, `in:a,b`, `in:null,a`, `like:x`
fn operator(text: &str) -> Match {
    if let Some(list) = text.strip_prefix("in:") {
        let (nulls, values): (Vec<&str>, Vec<&str>) = list.split(',').map(str::trim).partition(|word| *word == "null");
        let values = values.into_iter().filter(|value| !value.is_empty()).map(str::to_owned).collect();
        return Match::OneOf { values, null: !nulls.is_empty() };
    }
    match text.strip_prefix("like:") {
        Some(part) => Match::Contains(part.to_owned()),
        None => Match::is(text),
    }
}

/// One resource, with what was asked to be included.
pub(super) fn one(status: StatusCode, data: Resource, included: Vec<Resource>) -> Response {
    answer(status, &Document { data, included, meta: None })
}

/// A page of a list of `total` resources.
pub(super) fn many(data: Vec<Resource>, included: Vec<Resource>, page: Page, total: i64) -> Response {
    answer(StatusCode::OK, &Document { data, included, meta: Some(page.meta(total)) })
}

fn answer<T: serde::Serialize>(status: StatusCode, document: &T) -> Response {
    let Ok(body) = serde_json::to_vec(document) else {
        return Error::Internal("an answer cannot be written as JSON").into_response();
    };
    (status, [(header::CONTENT_TYPE, HeaderValue::from_static(jsonapi::CONTENT_TYPE))], body).into_response()
}

/// An included resource is listed once, however many others refer to it.
pub(super) fn include(included: &mut Vec<Resource>, resource: Resource) {
    if !included.iter().any(|known| known.kind == resource.kind && known.id == resource.id) {
        included.push(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filter_operators_are_read() {
        let one_of =
            |values: &[&str], null| Match::OneOf { values: values.iter().map(|v| (*v).into()).collect(), null };
        assert_eq!(operator("a,b"), one_of(&["a,b"], false));
        assert_eq!(operator("in:a, b"), one_of(&["a", "b"], false));
        assert_eq!(operator("in:null,a"), one_of(&["a"], true));
        assert_eq!(operator("in:"), one_of(&[], false));
        assert_eq!(operator("like:50%"), Match::Contains("50%".to_owned()));
    }
}
