//! Client of `/api/agent/v1`. Large bodies stream from and to files; nothing is buffered whole.

use std::{
    io::Seek,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use bytes::Bytes;
use reqwest::{Body, Client, Method, RequestBuilder, Response, StatusCode, Url, header::CONTENT_LENGTH};
use secrecy::{ExposeSecret, SecretString};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use tokio_util::io::ReaderStream;

use super::{Refusal, success_or_refusal};
use crate::{
    api::{
        agent::{
            BASE, ClaimRequest, EPOCH_HEADER, FinishRequest, HeartbeatRequest, HeartbeatResponse, JobRef, LogAck,
            PROTOCOL_HEADER, PROTOCOL_VERSION, PoolResponse, RegisterRequest, RegisterResponse, code,
        },
        job::JobSpec,
    },
    jsonapi::ErrorObject,
};

/// Deadline of a small call: the server answers at once or is in trouble.
const CALL: Duration = Duration::from_secs(20);

/// What a held call gets on top of the time that the server may hold it.
const HOLD_MARGIN: Duration = Duration::from_secs(10);

/// Longest silence in the middle of a download.
const IDLE: Duration = Duration::from_secs(30);

/// Slowest transfer that is waited for, in bytes per second; slower ones are cut and tried again.
const SLOWEST: u64 = 32 * 1024;

/// Deadline of a call whose answer is a state.
const LARGE_CALL: Duration = Duration::from_secs(5 * 60);

/// Longest time that one download may take in all.
const DOWNLOAD: Duration = Duration::from_secs(2 * 60 * 60);

type Result<T, E = Error> = std::result::Result<T, E>;

/// What is stored at the control plane.
#[derive(Debug)]
pub enum Upload {
    Bytes(Bytes),
    /// Sent from its start on, in pieces.
    File(std::fs::File),
}

/// Why a call did not do its work, told apart by what the agent has to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// 401: the token is unknown, expired or revoked.
    #[error("the control plane does not accept the token: {detail}")]
    Unauthorized { detail: String },
    /// The job is somebody else's now.
    #[error("the job is not this agent's any more")]
    Fenced,
    /// The log on the server ends before the bytes that were sent.
    #[error("the log at the control plane ends at byte {end}")]
    LogGap { end: u64 },
    /// Another agent of that name is online.
    #[error("the agent's name is taken: {detail}")]
    NameTaken { detail: String },
    /// 426: this program is too old for the server, or too new.
    #[error("the control plane wants another version of the agent: {detail}")]
    Upgrade { detail: String },
    /// The request itself is wrong; trying again does not help.
    #[error("the control plane refused to {action}: {refusal}")]
    Rejected { action: &'static str, refusal: Box<Refusal> },
    /// The server is overloaded, restarting or out of space. Try again.
    #[error("the control plane could not {action}: {refusal}")]
    Busy { action: &'static str, refusal: Box<Refusal> },
    /// No answer, or one that makes no sense. Try again.
    #[error("no answer from the control plane to: {action}")]
    Unreachable { action: &'static str, source: reqwest::Error },
    #[error("the control plane was too slow to {action}")]
    TooSlow { action: &'static str },
    /// The file on this machine could not be read or written.
    #[error("the control plane could not {action}: {path} failed on this machine")]
    LocalFile { action: &'static str, path: String, source: std::io::Error },
}

impl Error {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Busy { .. } | Self::Unreachable { .. } | Self::TooSlow { .. })
    }

    /// When the server wants to be asked again.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { refusal, .. } => refusal.retry_after,
            _ => None,
        }
    }

    fn of_refusal(action: &'static str, refusal: Refusal) -> Self {
        let detail = || {
            let ErrorObject { title, detail, .. } = &refusal.error;
            detail.clone().unwrap_or_else(|| title.clone())
        };
        match (refusal.status, refusal.code()) {
            (StatusCode::UNAUTHORIZED, _) => Self::Unauthorized { detail: detail() },
            (StatusCode::UPGRADE_REQUIRED, _) => Self::Upgrade { detail: detail() },
            (StatusCode::CONFLICT, Some(code::FENCED)) => Self::Fenced,
            (_, Some(code::NAME_TAKEN)) => Self::NameTaken { detail: detail() },
            (_, Some(code::LOG_GAP)) => {
                let end = refusal.error.meta.as_ref().and_then(|meta| meta.get("end")?.as_u64());
                Self::LogGap { end: end.unwrap_or(0) }
            }
            (_, Some(code::OUT_OF_SPACE)) => Self::Busy { action, refusal: Box::new(refusal) },
            _ if refusal.is_transient() => Self::Busy { action, refusal: Box::new(refusal) },
            _ => Self::Rejected { action, refusal: Box::new(refusal) },
        }
    }
}

/// What an answer tells of who gave it, whatever it says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Head {
    /// The header `Date`.
    pub date: Option<String>,
    /// The certificate of the other side (DER), where the client keeps it: see [`crate::http::probing_client`].
    pub certificate: Option<Vec<u8>>,
}

impl Head {
    fn of(response: &Response) -> Self {
        let certificate = response.extensions().get::<reqwest::tls::TlsInfo>().and_then(|tls| tls.peer_certificate());
        let date = response.headers().get(reqwest::header::DATE).and_then(|date| date.to_str().ok());
        Self { date: date.map(str::to_owned), certificate: certificate.map(<[u8]>::to_vec) }
    }
}

/// Calls as one agent. Clones share the token.
#[derive(Debug, Clone)]
pub struct AgentClient {
    http: Client,
    /// Server address with [`BASE`], without a slash at the end.
    base: Arc<str>,
    token: Arc<RwLock<SecretString>>,
}

impl AgentClient {
    /// `server` is the control plane's address as people write it; `token` the pool token until [`Self::set_token`].
    #[must_use]
    pub fn new(http: Client, server: &Url, token: SecretString) -> Self {
        let base = format!("{}{BASE}", server.as_str().trim_end_matches('/'));
        Self { http, base: base.into(), token: Arc::new(RwLock::new(token)) }
    }

    /// The bearer of all further calls, in every clone.
    pub fn set_token(&self, token: SecretString) {
        *self.token.write().unwrap_or_else(PoisonError::into_inner) = token;
    }

    /// Asks about the pool token `token` without registering: how the answer looked, and what it says.
    ///
    /// # Errors
    /// When there was no answer. One that is no pool is the second part of the answer.
    pub async fn ask_for_pool(&self, token: &SecretString) -> Result<(Head, Result<PoolResponse>)> {
        const ACTION: &str = "say which pool the token is of";
        let request = self.request(Method::GET, "pool").bearer_auth(token.expose_secret()).timeout(CALL);
        let response = request.send().await.map_err(|source| unreachable(ACTION, source))?;
        let head = Head::of(&response);
        let pool = match success_or_refusal(response, CALL).await {
            Ok(response) => read_json(ACTION, response).await,
            Err(refusal) => Err(Error::of_refusal(ACTION, refusal)),
        };
        Ok((head, pool))
    }

    /// Registers with the pool token `token`.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::NameTaken`] and [`Error::Unauthorized`] are final.
    pub async fn register(&self, token: &SecretString, body: &RegisterRequest) -> Result<RegisterResponse> {
        const ACTION: &str = "register the agent";
        let request = self.request(Method::POST, "register").bearer_auth(token.expose_secret()).json(body);
        read_json(ACTION, send(ACTION, request, CALL).await?).await
    }

    /// The next job, or `None` when there was none in the time that the request names.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn claim(&self, body: &ClaimRequest) -> Result<Option<JobSpec>> {
        const ACTION: &str = "hand out a job";
        let limit = Duration::from_millis(body.wait_ms) + HOLD_MARGIN;
        let response = send(ACTION, self.post("claim", body), limit).await?;
        if response.status() == StatusCode::NO_CONTENT {
            return Ok(None);
        }
        read_json(ACTION, response).await.map(Some)
    }

    /// Renews the leases; may be held for the time that the request names.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn heartbeat(&self, body: &HeartbeatRequest) -> Result<HeartbeatResponse> {
        const ACTION: &str = "take the heartbeat";
        let limit = Duration::from_millis(body.wait_ms) + HOLD_MARGIN;
        read_json(ACTION, send(ACTION, self.post("heartbeat", body), limit).await?).await
    }

    /// # Errors
    /// See [`Error`].
    pub async fn deregister(&self) -> Result<()> {
        let request = self.authorized(Method::POST, "deregister");
        send("sign the agent off", request, CALL).await.map(drop)
    }

    /// Writes the job's configuration (tar.gz) to `target`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn fetch_configuration(&self, job: &JobRef, target: &Path) -> Result<()> {
        self.download("send the configuration", job, "configuration", target).await
    }

    /// The workspace's current state; `None` when it has none yet.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn fetch_state(&self, job: &JobRef) -> Result<Option<Bytes>> {
        const ACTION: &str = "send the state";
        let response = send(ACTION, self.of_job(Method::GET, job, "state"), LARGE_CALL).await?;
        if response.status() == StatusCode::NO_CONTENT {
            return Ok(None);
        }
        response.bytes().await.map(Some).map_err(|source| unreachable(ACTION, source))
    }

    /// Writes what an earlier stage of the run stored under `name` to `target`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn fetch_artifact(&self, job: &JobRef, name: &str, target: &Path) -> Result<()> {
        self.download("send an artifact", job, &format!("artifacts/{name}"), target).await
    }

    /// Appends to the log: `bytes` begin at `offset` of it.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::LogGap`] says where to go on.
    pub async fn append_log(&self, job: &JobRef, offset: u64, bytes: Bytes) -> Result<LogAck> {
        const ACTION: &str = "store the log";
        let request = self.of_job(Method::PUT, job, "log").query(&[("offset", offset)]).body(bytes);
        read_json(ACTION, send(ACTION, request, CALL).await?).await
    }

    /// Stores the state.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn put_state(&self, job: &JobRef, state: Bytes) -> Result<()> {
        self.upload("store the state", job, "state", &Upload::Bytes(state)).await
    }

    /// Stores `content` under `name` for the run's later stages and for readers.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn put_artifact(&self, job: &JobRef, name: &str, content: &Upload) -> Result<()> {
        self.upload("store an artifact", job, &format!("artifacts/{name}"), content).await
    }

    /// Tells that the run container has been asked for.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn started(&self, job: &JobRef) -> Result<()> {
        send("note the start of the job", self.of_job(Method::POST, job, "started"), CALL).await.map(drop)
    }

    /// Reports the result.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn finish(&self, job: &JobRef, body: &FinishRequest) -> Result<()> {
        let request = self.of_job(Method::POST, job, "finish").json(body);
        send("take the result", request, CALL).await.map(drop)
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}/{path}", self.base)).header(PROTOCOL_HEADER, PROTOCOL_VERSION)
    }

    fn authorized(&self, method: Method, path: &str) -> RequestBuilder {
        let token = self.token.read().unwrap_or_else(PoisonError::into_inner);
        self.request(method, path).bearer_auth(token.expose_secret())
    }

    fn post<T: Serialize>(&self, path: &str, body: &T) -> RequestBuilder {
        self.authorized(Method::POST, path).json(body)
    }

    fn of_job(&self, method: Method, job: &JobRef, path: &str) -> RequestBuilder {
        let JobRef { job_id, epoch } = job;
        self.authorized(method, &format!("jobs/{job_id}/{path}")).header(EPOCH_HEADER, *epoch)
    }

    async fn upload(&self, action: &'static str, job: &JobRef, path: &str, content: &Upload) -> Result<()> {
        let local = |source| Error::LocalFile { action, path: path.to_owned(), source };
        let (length, body) = match content {
            Upload::Bytes(bytes) => (bytes.len() as u64, Body::from(bytes.clone())),
            Upload::File(file) => {
                let mut file = file.try_clone().map_err(local)?;
                file.rewind().map_err(local)?;
                let length = file.metadata().map_err(local)?.len();
                // Not more than was announced, even when the file grows.
                let reader = File::from_std(file).take(length);
                (length, Body::wrap_stream(ReaderStream::with_capacity(reader, 64 * 1024)))
            }
        };
        let request = self.of_job(Method::PUT, job, path).header(CONTENT_LENGTH, length).body(body);
        send(action, request, CALL + Duration::from_secs(length / SLOWEST)).await.map(drop)
    }

    /// The file is complete when this succeeds, else it is not to be used.
    async fn download(&self, action: &'static str, job: &JobRef, path: &str, target: &Path) -> Result<()> {
        let request = self.of_job(Method::GET, job, path).timeout(DOWNLOAD);
        let response = timeout(CALL, request.send()).await.map_err(|_| Error::TooSlow { action })?;
        let response = response.map_err(|source| unreachable(action, source))?;
        let mut response =
            success_or_refusal(response, CALL).await.map_err(|refusal| Error::of_refusal(action, refusal))?;
        let local = |source| Error::LocalFile { action, path: target.display().to_string(), source };
        let mut file = File::create(target).await.map_err(local)?;
        loop {
            let chunk = timeout(IDLE, response.chunk()).await.map_err(|_| Error::TooSlow { action })?;
            let Some(chunk) = chunk.map_err(|source| unreachable(action, source))? else { break };
            file.write_all(&chunk).await.map_err(local)?;
        }
        file.flush().await.map_err(local)
    }
}

async fn send(action: &'static str, request: RequestBuilder, limit: Duration) -> Result<Response> {
    let response = request.timeout(limit).send().await.map_err(|source| unreachable(action, source))?;
    success_or_refusal(response, CALL).await.map_err(|refusal| Error::of_refusal(action, refusal))
}

async fn read_json<T: DeserializeOwned>(action: &'static str, response: Response) -> Result<T> {
    response.json().await.map_err(|source| unreachable(action, source))
}

/// Without the address: it is the same for all calls, and the log names it once.
fn unreachable(action: &'static str, source: reqwest::Error) -> Error {
    Error::Unreachable { action, source: source.without_url() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(status: u16, code: Option<&str>, meta: Option<serde_json::Value>) -> Error {
        let error = ErrorObject { code: code.map(str::to_owned), title: "t".into(), meta, ..ErrorObject::default() };
        let status = StatusCode::from_u16(status).unwrap();
        Error::of_refusal("do it", Refusal { status, error, retry_after: None })
    }

    #[test]
    fn refusals_are_told_apart_by_what_to_do_about_them() {
        assert!(matches!(refusal(401, None, None), Error::Unauthorized { .. }));
        assert!(matches!(refusal(409, Some("fenced"), None), Error::Fenced));
        assert!(matches!(refusal(409, Some("name_taken"), None), Error::NameTaken { .. }));
        assert!(matches!(refusal(426, None, None), Error::Upgrade { .. }));
        assert!(matches!(refusal(409, None, None), Error::Rejected { .. }));
        assert!(matches!(refusal(404, None, None), Error::Rejected { .. }));
        let gap = serde_json::json!({"end": 7});
        assert!(matches!(refusal(409, Some("log_gap"), Some(gap)), Error::LogGap { end: 7 }));
        for (status, code) in [(500, None), (503, None), (429, None), (507, Some("out_of_space")), (408, None)] {
            assert!(refusal(status, code, None).is_unavailable(), "{status}");
        }
    }
}
