//! From the model to documents: the shapes that the CLI needs, and nothing else decided.

mod run;
mod state;
mod workspace;

pub(super) use run::{apply, plan, run, worked_on};
pub(super) use state::{output, outputs, state};
pub(super) use workspace::{
    NO_PROJECT, capacity, configuration, entitlements, organization, user, variable, workspace,
};

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::clock::rfc3339;

/// Times by name, for `status-timestamps`.
fn times<'a>(times: impl IntoIterator<Item = (&'a str, i64)>) -> Value {
    json!(times.into_iter().map(|(name, time)| (name, rfc3339(time))).collect::<BTreeMap<_, _>>())
}

/// A list that is null when it is empty, as addresses of runs are.
fn or_null(list: &[String]) -> Value {
    if list.is_empty() { Value::Null } else { json!(list) }
}
