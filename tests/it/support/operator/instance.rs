//! One operator of a schedule, in a runtime and a thread of its own: dropping that is as sudden as the end of a process.

use std::{
    io,
    sync::{
        Arc, Mutex, Once,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use kube::Client;
use terrapool::{
    clock::Clock,
    operator::{Config, DefaultControlPlane, Ended, Metrics, Operator, health::Pending, leader},
    shutdown::Shutdown,
};
use tokio_util::sync::CancellationToken;
use tracing::{
    Subscriber,
    span::{Attributes, Id},
};
use tracing_subscriber::{
    Layer,
    filter::LevelFilter,
    layer::{Context, SubscriberExt},
    registry::LookupSpan,
};

/// What an operator is started with.
#[derive(Debug, Clone)]
pub struct Settings {
    pub namespace: String,
    /// Address of the control plane.
    pub url: String,
    pub token: String,
    pub clock: Clock,
    pub identity: String,
    /// With a Lease.
    pub elects: bool,
    pub resync: Duration,
}

/// What the operators of a schedule show of themselves, in the order in which they were started.
#[derive(Debug, Clone, Default)]
pub struct Log {
    lines: Arc<Mutex<Vec<u8>>>,
    visits: Visits,
    operators: Arc<Mutex<Vec<(Pending, Metrics)>>>,
}

impl Log {
    /// What they wrote to their logs.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.lines.lock().unwrap()).into_owned()
    }

    /// Visits of objects that have begun and not ended.
    pub fn visits(&self) -> usize {
        self.visits.0.load(Ordering::SeqCst)
    }

    /// Visits that have failed so far.
    pub fn errors(&self) -> u64 {
        let metrics = self.metrics().concat();
        let counts = metrics.lines().filter(|line| line.starts_with("terrapool_reconcile_errors_total"));
        counts.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
    }

    /// What each shows as its metrics.
    pub fn metrics(&self) -> Vec<String> {
        self.operators.lock().unwrap().iter().map(|(_, metrics)| metrics.text()).collect()
    }

    /// What the last one says that it still waits for.
    pub fn pending(&self) -> Vec<String> {
        self.operators.lock().unwrap().last().map(|(pending, _)| pending.lines()).unwrap_or_default()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lines.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Counts the spans that controllers open around each visit of an object.
#[derive(Debug, Clone, Default)]
struct Visits(Arc<AtomicUsize>);

const VISIT: &str = "reconciling object";

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Visits {
    fn on_new_span(&self, attributes: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
        if attributes.metadata().name() == VISIT {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        if context.span(&id).is_some_and(|span| span.name() == VISIT) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Panics of operators, by the name of their thread.
static PANICS: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

fn note_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let earlier = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let name = thread::current().name().unwrap_or_default().to_owned();
            if name.starts_with("operator ") {
                PANICS.lock().unwrap().push((name, info.to_string()));
            }
            earlier(info);
        }));
    });
}

/// Panics of the operators of a namespace.
pub fn panics(namespace: &str) -> Vec<String> {
    let wanted = format!("operator {namespace}");
    PANICS.lock().unwrap().iter().filter(|(name, _)| *name == wanted).map(|(_, text)| text.clone()).collect()
}

pub struct Instance {
    kill: CancellationToken,
    pub alive: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Instance {
    /// `client` is made in the operator's runtime.
    pub fn start(
        settings: Settings,
        log: Log,
        alive: Arc<AtomicBool>,
        client: impl FnOnce() -> Client + Send + 'static,
    ) -> Self {
        note_panics();
        let kill = CancellationToken::new();
        let name = format!("operator {}", settings.namespace);
        let thread = thread::Builder::new().name(name).spawn({
            let kill = kill.clone();
            move || work(settings, log, client, &kill)
        });
        Self { kill, alive, thread: Some(thread.unwrap()) }
    }

    /// As `kill -9`.
    pub async fn kill(mut self) {
        self.alive.store(false, Ordering::SeqCst);
        self.kill.cancel();
        if let Some(thread) = self.thread.take() {
            drop(tokio::task::spawn_blocking(move || thread.join()).await);
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.alive.store(false, Ordering::SeqCst);
        self.kill.cancel();
    }
}

fn work(settings: Settings, log: Log, client: impl FnOnce() -> Client, kill: &CancellationToken) {
    let level = match std::env::var("TERRAPOOL_FAULTS_LOG").as_deref() {
        Ok("debug") => LevelFilter::DEBUG,
        _ => LevelFilter::INFO,
    };
    let writer = log.clone();
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(move || writer.clone());
    let subscriber = tracing_subscriber::registry().with(level).with(lines).with(log.visits.clone());
    let _guard = tracing::subscriber::set_default(subscriber);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = client();
        tokio::select! {
            () = operate(settings, log, client) => {}
            () = kill.cancelled() => {}
        }
    });
    runtime.shutdown_background();
}

/// Runs the operator; one that lost its leadership is started again, as a process would be.
async fn operate(settings: Settings, log: Log, client: Client) {
    let Settings { namespace, url, token, clock, identity, elects, resync } = settings;
    let election = leader::Settings {
        duration: Duration::from_millis(2_000),
        renew_deadline: Duration::from_millis(1_300),
        retry: Duration::from_millis(300),
        ..leader::Settings::new(namespace.clone(), identity.clone())
    };
    let config = Config {
        namespaces: Some(vec![namespace]),
        control_plane: Some(DefaultControlPlane { url: url.parse().unwrap(), token: token.into(), ca: None }),
        resync,
        concurrency: 4,
        backoff: (Duration::from_millis(50), Duration::from_secs(1)),
        leader_election: elects.then_some(election),
        clock,
        ..Config::new(identity, "registry.test/terrapool:test".to_owned())
    };
    loop {
        let operator = Operator::new(config.clone(), client.clone(), Shutdown::new());
        log.operators.lock().unwrap().push((operator.pending(), operator.metrics()));
        let Err(Ended::LeadershipLost) = operator.run().await else { return };
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
