//! The JSON:API envelope, shared by server and client: documents, resources, relationships, errors,
//! and the query parameters with brackets. Source: <https://jsonapi.org/format/>.

mod error;
mod query;

pub use error::{ErrorObject, Errors, Source};
pub use query::{Page, Query};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Content type of every document.
pub const CONTENT_TYPE: &str = "application/vnd.api+json";

/// `{"data": …, "included": […], "meta": …}`; `data` is one [`Resource`], a list, or null.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Document<T> {
    pub data: T,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub included: Vec<Resource>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meta: Option<Value>,
}

impl<T> Document<T> {
    pub fn new(data: T) -> Self {
        Self { data, included: Vec::new(), meta: None }
    }
}

/// One resource. Attributes stay JSON here; `api` has their types.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Resource {
    #[serde(rename = "type", default)]
    pub kind: String,
    /// Absent in requests that create something, and in some clients' updates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub attributes: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub relationships: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub links: Map<String, Value>,
}

/// A resource named in a relationship.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Linkage {
    #[serde(rename = "type", default)]
    pub kind: String,
    pub id: String,
}

impl Linkage {
    pub fn new(kind: impl Into<String>, id: impl Into<String>) -> Self {
        Self { kind: kind.into(), id: id.into() }
    }
}

/// What a request says of a to-one relationship.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToOne {
    /// Not mentioned: leave it.
    Absent,
    /// `{"data": null}`: clear it.
    Null,
    To(Linkage),
}

impl Resource {
    pub fn new(kind: impl Into<String>, id: impl Into<String>) -> Self {
        Self { kind: kind.into(), id: Some(id.into()), ..Self::default() }
    }

    /// With attributes from anything that serialises to a JSON object.
    ///
    /// # Errors
    /// When `attributes` does not serialise to an object.
    pub fn with_attributes<T: Serialize>(mut self, attributes: &T) -> Result<Self, serde_json::Error> {
        self.attributes = match serde_json::to_value(attributes)? {
            Value::Object(map) => map,
            other => return Err(serde::ser::Error::custom(format!("attributes must be an object, not {other}"))),
        };
        Ok(self)
    }

    /// Adds the attribute `name`.
    #[must_use]
    pub fn attribute(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.attributes.insert(name.to_owned(), value.into());
        self
    }

    /// Adds a to-one relationship; `None` becomes `{"data": null}`.
    #[must_use]
    pub fn to_one(mut self, name: &str, kind: &str, id: Option<&str>) -> Self {
        let data = id.map_or(Value::Null, |id| serde_json::json!({"type": kind, "id": id}));
        self.relationships.insert(name.to_owned(), serde_json::json!({ "data": data }));
        self
    }

    /// Adds a to-many relationship.
    #[must_use]
    pub fn to_many<I: AsRef<str>>(mut self, name: &str, kind: &str, ids: impl IntoIterator<Item = I>) -> Self {
        let data: Vec<Value> = ids.into_iter().map(|id| serde_json::json!({"type": kind, "id": id.as_ref()})).collect();
        self.relationships.insert(name.to_owned(), serde_json::json!({ "data": data }));
        self
    }

    #[must_use]
    pub fn link(mut self, name: &str, href: impl Into<String>) -> Self {
        self.links.insert(name.to_owned(), Value::String(href.into()));
        self
    }

    /// The attributes as a type.
    ///
    /// # Errors
    /// When they do not have that shape.
    pub fn decode<T: serde::de::DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_value(Value::Object(self.attributes.clone()))
    }

    /// What the document says of the to-one relationship `name`. Malformed linkage counts as absent.
    #[must_use]
    pub fn related(&self, name: &str) -> ToOne {
        match self.relationships.get(name).and_then(|relationship| relationship.get("data")) {
            None => ToOne::Absent,
            Some(Value::Null) => ToOne::Null,
            Some(data) => serde_json::from_value(data.clone()).map_or(ToOne::Absent, ToOne::To),
        }
    }

    /// The to-many relationship `name`; `None` when it is not mentioned.
    #[must_use]
    pub fn related_many(&self, name: &str) -> Option<Vec<Linkage>> {
        let data = self.relationships.get(name)?.get("data")?;
        serde_json::from_value(data.clone()).ok()
    }
}
