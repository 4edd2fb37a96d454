//! Decoding of columns into domain types.

use sqlx::{Row, any::AnyRow};

use super::{Error, Result};
use crate::api::job::{EngineKind, Stage};

/// Reads typed columns by name.
pub(super) trait Columns {
    fn text(&self, column: &str) -> Result<String>;
    fn opt_text(&self, column: &str) -> Result<Option<String>>;
    fn int(&self, column: &str) -> Result<i64>;
    fn opt_int(&self, column: &str) -> Result<Option<i64>>;
    fn bytes(&self, column: &str) -> Result<Vec<u8>>;
    fn opt_bytes(&self, column: &str) -> Result<Option<Vec<u8>>>;

    fn flag(&self, column: &str) -> Result<bool> {
        Ok(self.int(column)? != 0)
    }

    /// A typed identifier.
    fn id<T: std::str::FromStr>(&self, column: &'static str) -> Result<T> {
        let text = self.text(column)?;
        text.parse().map_err(|_| Error::Unknown { what: column, value: text })
    }

    fn opt_id<T: std::str::FromStr>(&self, column: &'static str) -> Result<Option<T>> {
        self.opt_text(column)?
            .map(|text| text.parse().map_err(|_| Error::Unknown { what: column, value: text }))
            .transpose()
    }

    /// A value of an enumeration, by its parse function.
    fn word<T>(&self, column: &'static str, parse: impl FnOnce(&str) -> Option<T>) -> Result<T> {
        let text = self.text(column)?;
        parse(&text).ok_or(Error::Unknown { what: column, value: text })
    }

    /// A column that holds JSON.
    fn json<T: serde::de::DeserializeOwned>(&self, column: &'static str) -> Result<T> {
        let text = self.text(column)?;
        serde_json::from_str(&text).map_err(|_| Error::Unknown { what: column, value: text })
    }
}

impl Columns for AnyRow {
    fn text(&self, column: &str) -> Result<String> {
        Ok(self.try_get(column)?)
    }

    fn opt_text(&self, column: &str) -> Result<Option<String>> {
        Ok(self.try_get(column)?)
    }

    fn int(&self, column: &str) -> Result<i64> {
        Ok(self.try_get(column)?)
    }

    fn opt_int(&self, column: &str) -> Result<Option<i64>> {
        Ok(self.try_get(column)?)
    }

    fn bytes(&self, column: &str) -> Result<Vec<u8>> {
        Ok(self.try_get(column)?)
    }

    fn opt_bytes(&self, column: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.try_get(column)?)
    }
}

/// The engine of that name.
pub(in crate::server) fn engine(text: &str) -> Option<EngineKind> {
    [EngineKind::Terraform, EngineKind::OpenTofu].into_iter().find(|kind| kind.as_str() == text)
}

/// The stage of that name.
pub(super) fn stage(text: &str) -> Option<Stage> {
    [Stage::Plan, Stage::Apply].into_iter().find(|stage| stage.as_str() == text)
}
