//! Signed addresses: who holds one may do that one thing. The CLI sends no token to them.

use crate::{
    ids::{ConfigurationVersionId, StateVersionId},
    server::{app::AppState, domain::states::Form},
};

/// What a signature is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    ReadLog,
    UploadConfiguration,
    ReadState(Form),
    WriteState(Form),
}

impl Purpose {
    fn name(self) -> &'static str {
        match self {
            Self::ReadLog => "log",
            Self::UploadConfiguration => "configuration-upload",
            Self::ReadState(Form::Raw) => "state-read",
            Self::ReadState(Form::Json) => "json-state-read",
            Self::WriteState(Form::Raw) => "state-write",
            Self::WriteState(Form::Json) => "json-state-write",
        }
    }
}

/// Whether `signature` opens `id` for `purpose`.
pub(super) fn verify(app: &AppState, purpose: Purpose, id: &str, signature: &str) -> bool {
    app.signer.verify(purpose.name(), id, signature)
}

/// Makes addresses that start with where the request was sent to.
#[derive(Clone, Copy)]
pub(super) struct Addresses<'a> {
    app: &'a AppState,
    base: &'a str,
}

impl<'a> Addresses<'a> {
    pub(super) fn new(app: &'a AppState, base: &'a str) -> Self {
        Self { app, base }
    }

    fn sign(&self, purpose: Purpose, id: &str) -> String {
        self.app.signer.sign(purpose.name(), id)
    }

    /// The log of a plan or apply.
    pub(super) fn log(&self, stage_id: &str) -> String {
        format!("{}/_logs/{stage_id}/{}", self.base, self.sign(Purpose::ReadLog, stage_id))
    }

    pub(super) fn configuration_upload(&self, id: &ConfigurationVersionId) -> String {
        format!("{}/_upload/cv/{id}/{}", self.base, self.sign(Purpose::UploadConfiguration, id.as_str()))
    }

    pub(super) fn state_download(&self, id: &StateVersionId, form: Form) -> String {
        self.state(Purpose::ReadState(form), id, form)
    }

    pub(super) fn state_upload(&self, id: &StateVersionId, form: Form) -> String {
        self.state(Purpose::WriteState(form), id, form)
    }

    fn state(&self, purpose: Purpose, id: &StateVersionId, form: Form) -> String {
        format!("{}/_sv/{id}/{}/{}", self.base, form_name(form), self.sign(purpose, id.as_str()))
    }
}

/// The path segment that names a form.
pub(super) fn form_name(form: Form) -> &'static str {
    match form {
        Form::Raw => "state",
        Form::Json => "json-state",
    }
}
