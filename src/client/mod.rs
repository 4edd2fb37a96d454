//! Typed clients of the control plane's APIs. A refusal keeps what the server wrote about it;
//! every call has a deadline. No retries here: callers know how long an attempt is worth repeating.

pub mod agent;
pub mod iacp;

use std::time::Duration;

use reqwest::{Response, StatusCode, header::RETRY_AFTER};

use crate::jsonapi::{ErrorObject, Errors};

/// Most that is read of the body of a refusal, in bytes.
const MAX_REFUSAL: usize = 64 * 1024;

/// Longest text of an unstructured refusal that is kept, in characters: a proxy's HTML page helps nobody.
const MAX_TEXT: usize = 300;

/// An answer that is not a success.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    pub status: StatusCode,
    /// The server's words; made from the body's text where it is not an error document.
    pub error: ErrorObject,
    /// When the server wants to be asked again.
    pub retry_after: Option<Duration>,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let title = if self.error.title.is_empty() { "no explanation" } else { &self.error.title };
        write!(f, "{} ({title})", self.status)?;
        match &self.error.detail {
            Some(detail) => write!(f, ": {detail}"),
            None => Ok(()),
        }
    }
}

impl Refusal {
    /// The machine word of the refusal.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        self.error.code.as_deref()
    }

    /// Whether the same call may succeed later: the server is overloaded, broken, or has no room.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        self.status.is_server_error()
            || matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
    }
}

/// The answer itself when it is a success, else what the server wrote, read within `limit`.
///
/// # Errors
/// The [`Refusal`].
pub(crate) async fn success_or_refusal(response: Response, limit: Duration) -> Result<Response, Refusal> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let retry_after = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .map(Duration::from_secs);
    // A body that breaks off or hangs must not hide the status.
    let mut body = Vec::new();
    drop(tokio::time::timeout(limit, read_some(response, &mut body)).await);
    Err(Refusal { status, error: parse_refusal(status, &body), retry_after })
}

async fn read_some(mut response: Response, body: &mut Vec<u8>) {
    while let Ok(Some(chunk)) = response.chunk().await {
        let room = MAX_REFUSAL - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if body.len() == MAX_REFUSAL {
            return;
        }
    }
}

fn parse_refusal(status: StatusCode, body: &[u8]) -> ErrorObject {
    if let Ok(Errors { errors }) = serde_json::from_slice(body)
        && let Some(error) = errors.into_iter().next()
    {
        return error;
    }
    let text: String = String::from_utf8_lossy(body).trim().chars().take(MAX_TEXT).collect();
    ErrorObject {
        status: status.as_str().to_owned(),
        title: status.canonical_reason().unwrap_or_default().to_owned(),
        detail: (!text.is_empty()).then_some(text),
        ..ErrorObject::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_documents_and_bare_text_are_both_kept() {
        let status = StatusCode::CONFLICT;
        let structured = br#"{"errors":[{"status":"409","code":"fenced","title":"not yours"}]}"#;
        let error = parse_refusal(status, structured);
        assert_eq!((error.code.as_deref(), error.title.as_str()), (Some("fenced"), "not yours"));
        let bare = parse_refusal(status, b" a proxy says no \n");
        assert_eq!((bare.title.as_str(), bare.detail.as_deref()), ("Conflict", Some("a proxy says no")));
        assert_eq!(parse_refusal(status, b"{\"errors\":[]}").title, "Conflict");
    }
}
