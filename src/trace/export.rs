//! Spans on their way to a collector, behind a bounded queue: whoever records one goes on at once, and what a collector does
//! not take in time is dropped and counted. Metrics go the same way, once in a while.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use reqwest::{
    Client,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use url::Url;

use super::{
    Service, Span,
    metrics::{self, Teller},
    otlp,
};
use crate::{clock::Clock, http, telemetry::Chain};

/// Spans that wait, at most: about 1 MiB, and a hundred runs that end at once.
const QUEUE: usize = 2048;

/// Spans of one call.
const BATCH: usize = 100;

/// A span is sent this long after the first one of its batch.
const PAUSE: Duration = Duration::from_secs(1);

/// Longest time for one call.
const DEADLINE: Duration = Duration::from_secs(5);

/// Metrics are sent so often, and at the end.
const INTERVAL: Duration = Duration::from_secs(60);

/// Where spans and metrics are sent.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// As `http://collector:4318`; `v1/traces` and `v1/metrics` are added.
    pub url: Url,
    /// Sent with every call; their values may be secrets.
    pub headers: Vec<(String, SecretString)>,
    /// PEM file of certificates trusted beside the system's.
    pub ca_file: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{url}` is no address of a collector; give one as http://collector:4318 (--otlp-endpoint)")]
    Address { url: Url },
    #[error("`{name}` cannot be a header of calls to the collector; mend OTEL_EXPORTER_OTLP_HEADERS")]
    Header { name: String },
    #[error("could not set up the connection to the collector")]
    Http(#[from] http::Error),
}

/// Takes spans; cheap to clone. The default one throws them away.
#[derive(Debug, Clone, Default)]
pub struct Tracer(Option<Arc<Queue>>);

#[derive(Debug)]
struct Queue {
    messages: mpsc::Sender<Message>,
    dropped: Arc<AtomicU64>,
    metrics: Target,
    closing: CancellationToken,
    tasks: TaskTracker,
}

/// Who tells its metrics.
pub struct Meter {
    pub service: Service,
    /// Tells programs of one service apart.
    pub instance: String,
    pub clock: Clock,
    /// What Prometheus reads.
    pub text: Box<dyn Fn() -> String + Send + Sync>,
}

#[derive(Debug)]
enum Message {
    Span(Box<Span>),
    /// Send what there is, and end.
    Close,
}

impl Tracer {
    /// Sends spans until [`Self::close`], in a task of its own: it ends after those that record spans.
    ///
    /// # Errors
    /// When the endpoint cannot be one. Nobody is called yet.
    pub fn start(endpoint: &Endpoint) -> Result<Self, Error> {
        let Endpoint { url, headers, ca_file } = endpoint;
        let (client, headers) = (http::client(ca_file.as_deref())?, header_map(headers)?);
        let target = |signal| {
            Ok::<_, Error>(Target { client: client.clone(), url: path(url, signal)?, headers: headers.clone() })
        };
        let exporter = Exporter { target: target("traces")?, dropped: Arc::default() };
        let (messages, queue) = mpsc::channel(QUEUE);
        let (dropped, metrics) = (exporter.dropped.clone(), target("metrics")?);
        let tasks = TaskTracker::new();
        drop(tasks.spawn(exporter.run(queue)));
        tasks.close();
        Ok(Self(Some(Arc::new(Queue { messages, dropped, metrics, closing: CancellationToken::new(), tasks }))))
    }

    /// Sends metrics once a minute, and for the last time when `done` or at [`Self::close`].
    pub fn measure(&self, meter: Meter, done: CancellationToken) {
        if let Some(queue) = &self.0 {
            drop(queue.tasks.spawn(tell(queue.metrics.clone(), meter, queue.closing.clone(), done)));
        }
    }

    /// Whether spans go anywhere.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Never waits.
    pub fn record(&self, span: Span) {
        if let Some(queue) = &self.0
            && queue.messages.try_send(Message::Span(Box::new(span))).is_err()
        {
            queue.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Spans that did not reach the collector.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.0.as_ref().map_or(0, |queue| queue.dropped.load(Ordering::Relaxed))
    }

    /// Sends what waits, as far as that goes in 5 seconds; nothing is sent any more after that.
    pub async fn close(&self) {
        let Some(queue) = &self.0 else { return };
        let close = async {
            // Err: it has ended already.
            drop(queue.messages.send(Message::Close).await);
            queue.closing.cancel();
            queue.tasks.wait().await;
        };
        drop(tokio::time::timeout(DEADLINE, close).await);
        let dropped = self.dropped();
        if dropped > 0 {
            tracing::warn!(spans = dropped, "spans did not reach the collector");
        }
    }
}

async fn tell(target: Target, meter: Meter, closing: CancellationToken, done: CancellationToken) {
    let Meter { service, instance, clock, text } = meter;
    let since_ms = clock.now_ms();
    let mut in_trouble = false;
    loop {
        let is_last = tokio::select! {
            () = tokio::time::sleep(INTERVAL) => false,
            () = closing.cancelled() => true,
            () = done.cancelled() => true,
        };
        let teller = Teller { service: service.name(), instance: &instance, since_ms, now_ms: clock.now_ms() };
        let body = metrics::body(&teller, &text());
        if is_last {
            // What is told of may end before a slow collector has taken it.
            drop(text);
            target.note(&target.send(&body).await, &mut in_trouble, "metrics");
            return;
        }
        target.note(&target.send(&body).await, &mut in_trouble, "metrics");
    }
}

fn path(url: &Url, signal: &str) -> Result<Url, Error> {
    let error = || Error::Address { url: url.clone() };
    if !matches!(url.scheme(), "http" | "https") {
        return Err(error());
    }
    let mut url = url.clone();
    url.path_segments_mut().map_err(|()| error())?.pop_if_empty().extend(["v1", signal]);
    Ok(url)
}

fn header_map(headers: &[(String, SecretString)]) -> Result<HeaderMap, Error> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let error = || Error::Header { name: name.clone() };
        let key: HeaderName = name.parse().map_err(|_| error())?;
        let mut value = HeaderValue::from_str(value.expose_secret()).map_err(|_| error())?;
        value.set_sensitive(true);
        map.append(key, value);
    }
    map.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(map)
}

/// What is called for one kind of things.
#[derive(Debug, Clone)]
struct Target {
    client: Client,
    url: Url,
    headers: HeaderMap,
}

impl Target {
    async fn send(&self, body: &Value) -> Result<(), String> {
        let call = self.client.post(self.url.clone()).headers(self.headers.clone()).timeout(DEADLINE);
        match call.body(body.to_string()).send().await {
            Ok(answer) if answer.status().is_success() => Ok(()),
            Ok(answer) => Err(format!("it answers {}", answer.status())),
            Err(error) => Err(Chain(&error).to_string()),
        }
    }

    /// The log has a line when trouble begins, and when it ends.
    fn note(&self, sent: &Result<(), String>, in_trouble: &mut bool, what: &str) {
        match sent {
            Ok(()) if *in_trouble => tracing::info!("the collector takes {what} again"),
            Err(why) if !*in_trouble => {
                tracing::warn!(url = %self.url, why, "the collector does not take {what}: they are dropped");
            }
            _ => {}
        }
        *in_trouble = sent.is_err();
    }
}

struct Exporter {
    target: Target,
    dropped: Arc<AtomicU64>,
}

impl Exporter {
    async fn run(self, mut queue: mpsc::Receiver<Message>) {
        let mut in_trouble = false;
        loop {
            let (batch, is_last) = collect(&mut queue).await;
            if !batch.is_empty() {
                let sent = self.target.send(&otlp::body(&batch)).await;
                self.target.note(&sent, &mut in_trouble, "spans");
                if in_trouble {
                    self.dropped.fetch_add(batch.len() as u64, Ordering::Relaxed);
                }
            }
            if is_last {
                return;
            }
        }
    }
}

/// The next batch, and whether it is the last one.
async fn collect(queue: &mut mpsc::Receiver<Message>) -> (Vec<Span>, bool) {
    let mut batch = Vec::new();
    // Begins with the first span.
    let mut end = None;
    while batch.len() < BATCH {
        let message = match end {
            None => queue.recv().await,
            Some(end) => match tokio::time::timeout_at(end, queue.recv()).await {
                Ok(message) => message,
                Err(_) => break,
            },
        };
        match message {
            Some(Message::Span(span)) => batch.push(*span),
            // `None`: nobody can record a span any more.
            Some(Message::Close) | None => return (batch, true),
        }
        end = end.or_else(|| Some(tokio::time::Instant::now() + PAUSE));
    }
    (batch, false)
}

#[cfg(test)]
mod tests {
    use super::{super::Node, *};

    fn span() -> Span {
        Span {
            service: Service::Server,
            run: "run-1".parse().unwrap(),
            node: Node::Run,
            start_ms: 1,
            end_ms: 2,
            attributes: Vec::new(),
            error: None,
        }
    }

    #[test]
    fn the_path_of_what_is_sent_is_added_to_the_address() {
        for (given, wanted) in [
            ("http://collector:4318", "http://collector:4318/v1/traces"),
            ("http://collector:4318/", "http://collector:4318/v1/traces"),
            ("https://collector.example/otlp/", "https://collector.example/otlp/v1/traces"),
        ] {
            assert_eq!(path(&given.parse().unwrap(), "traces").unwrap().as_str(), wanted);
        }
        assert!(path(&"grpc://collector:4317".parse().unwrap(), "traces").is_err());
        assert!(path(&"data:x".parse().unwrap(), "traces").is_err());
    }

    #[test]
    fn headers_that_cannot_be_are_named_without_their_value() {
        let header = |name: &str, value: &str| header_map(&[(name.to_owned(), value.to_owned().into())]);
        let made = header("x-api-key", "canary-1").unwrap();
        assert!(made.len() == 2 && !format!("{made:?}").contains("canary"), "{made:?}");
        for (name, value) in [("no name", "canary-1"), ("x", "canary-1\n")] {
            let error = header(name, value).unwrap_err().to_string();
            assert!(error.contains(name) && !error.contains("canary"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_batch_ends_with_a_second_a_hundred_spans_or_the_end() {
        let (messages, mut queue) = mpsc::channel(QUEUE);
        let send = |count: usize| (0..count).for_each(|_| messages.try_send(Message::Span(Box::new(span()))).unwrap());
        send(BATCH + 3);
        let counted = |(batch, is_last): (Vec<Span>, bool)| (batch.len(), is_last);
        assert_eq!(counted(collect(&mut queue).await), (BATCH, false));
        assert_eq!(counted(collect(&mut queue).await), (3, false));
        send(1);
        messages.try_send(Message::Close).unwrap();
        assert_eq!(counted(collect(&mut queue).await), (1, true));
        drop(messages);
        assert_eq!(counted(collect(&mut queue).await), (0, true));
    }

    #[tokio::test]
    async fn what_does_not_fit_into_the_queue_is_dropped_and_counted() {
        let (messages, _queue) = mpsc::channel(2);
        let url = "http://collector:4318".parse().unwrap();
        let metrics = Target { client: http::client(None).unwrap(), url, headers: HeaderMap::new() };
        let (closing, tasks) = (CancellationToken::new(), TaskTracker::new());
        let tracer = Tracer(Some(Arc::new(Queue { messages, dropped: Arc::default(), metrics, closing, tasks })));
        (0..5).for_each(|_| tracer.record(span()));
        assert_eq!(tracer.dropped(), 3);
        Tracer::default().record(span());
        assert!(tracer.is_on() && !Tracer::default().is_on());
    }
}
