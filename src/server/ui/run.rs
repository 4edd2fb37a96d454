//! One run: what became of it, and its logs while they are written.

use std::{convert::Infallible, time::Duration};

use axum::{
    body::Body,
    extract::{Path, State},
    http::header,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::{Stream, stream};
use maud::{Markup, html};

use super::{
    ansi::Ansi,
    layout::{self, Failure, ago, run_badge},
    overview::why,
    session::SignedIn,
};
use crate::{
    api::job::Stage,
    clock,
    ids::{AccountId, RunId},
    server::{
        app::{App, AppState},
        domain::{
            logs,
            model::{Run, StageRow},
        },
        error::{Error, Result},
        store::{self, overview::Shown},
    },
};

/// The page shows the end of a longer log; the whole is one click away.
const SHOWN_BYTES: i64 = 1 << 20;
/// The stream looks for a new status this often when no log comes.
const LOOK: Duration = Duration::from_secs(2);
/// End of a complete log.
const ETX: u8 = 0x03;

type RunPath = Path<(String, String, String)>;

async fn find(app: &AppState, account: &AccountId, path: &(String, String, String)) -> Result<Shown> {
    let (organization, workspace, id) = path;
    let missing = || Error::not_found("Run", id);
    let parsed: RunId = id.parse().map_err(|_| missing())?;
    let mut connection = app.store.read().await?;
    let shown = store::overview::one(&mut connection, account, &parsed).await?;
    shown.filter(|shown| shown.environment == *organization && shown.workspace == *workspace).ok_or_else(missing)
}

async fn stages(app: &AppState, shown: &Shown) -> Result<[StageRow; 2]> {
    const GONE: Error = Error::Internal("a run's stage is not there");
    let mut connection = app.store.read().await?;
    let plan = store::runs::stage_by_id(&mut connection, shown.run.plan_id.as_str()).await?.ok_or(GONE)?;
    let apply = store::runs::stage_by_id(&mut connection, shown.run.apply_id.as_str()).await?.ok_or(GONE)?;
    Ok([plan, apply])
}

pub(super) async fn show(user: SignedIn, State(app): State<App>, Path(path): RunPath) -> Result<Response, Failure> {
    let shown = find(&app, &user.account_id, &path).await?;
    let status = status(&app, &shown).await?;
    let stages = stages(&app, &shown).await?;
    let (home, id) = (format!("/app/{}/{}", shown.environment, shown.workspace), &shown.run.id);
    let mut logs = Vec::new();
    for stage in &stages {
        logs.push(stage_section(&app, stage, &home, id).await?);
    }
    let body = html! {
        p.crumbs {
            a href="/" { "Overview" } " / " (shown.environment) " / " a href=(home) { (shown.workspace) }
        }
        h1 { @if shown.run.message.is_empty() { (id) } @else { (shown.run.message) } }
        div #status aria-live="polite" { (status) }
        div data-events={ (home) "/runs/" (id) "/events" } { @for log in &logs { (log) } }
    };
    Ok(layout::page(&format!("{} · {}/{}", id, shown.environment, shown.workspace), true, &body).into_response())
}

/// The part of the page that changes while the run goes on.
async fn status(app: &AppState, shown: &Shown) -> Result<Markup> {
    let run = &shown.run;
    let now = app.clock.now_ms();
    let [plan, apply] = stages(app, shown).await?;
    let mut connection = app.store.read().await?;
    let workers = store::overview::workers(&mut connection, &run.id).await?;
    drop(connection);
    let on = |stage: &StageRow| workers.iter().rev().find(|worker| worker.stage_id == stage.id);
    let engine = match run.engine_version.as_str() {
        "" => run.engine.title().to_owned(),
        version => format!("{} {version}", run.engine.title()),
    };
    Ok(html! {
        div.card {
            div.head {
                (run_badge(run.status))
                span.mono { (run.id) }
            }
            @if let Some(why) = why(run) {
                p class=(if run.error_message.is_some() { "problem" } else { "notice" }) { (why) }
            }
            dl.grid {
                div { dt { "Created" } dd { (ago(run.created_at, now)) } }
                div { dt { "Pool" } dd { (shown.pool.as_deref().unwrap_or("–")) } }
                div { dt { "Engine" } dd { (engine) } }
                div { dt { "Kind" } dd {
                    @if run.options.is_destroy { "destroy" } @else if run.plan_only { "plan only" } @else { "plan and apply" }
                } }
                @if plan.finished_at.is_some() {
                    div { dt { "Plan" } dd {
                        (plan.changes.additions) " to add, " (plan.changes.changes) " to change, "
                        (plan.changes.destructions) " to destroy"
                    } }
                }
                @for stage in [&plan, &apply] {
                    @if let Some(worker) = on(stage) {
                        div { dt { @if stage.kind == Stage::Plan { "Planned by" } @else { "Applied by" } }
                            dd title={ "epoch " (worker.epoch) } { (worker.agent) @if let Some(took) = took(stage, now) { " (" (took) ")" } } }
                    }
                }
            }
            ol.steps {
                @for (name, at) in steps(run) { li { (name) " " time datetime=(clock::rfc3339(at)) { (moment(at)) } } }
            }
        }
    })
}

/// The statuses that the run has had, in their order.
fn steps(run: &Run) -> Vec<(String, i64)> {
    let mut steps: Vec<_> =
        run.timestamps.iter().map(|(name, at)| (name.trim_end_matches("-at").replace('-', " "), *at)).collect();
    steps.sort_by_key(|(_, at)| *at);
    steps
}

/// `2026-01-02 03:04:05 UTC`
fn moment(at: i64) -> String {
    let text = clock::rfc3339(at);
    let seconds = text.split_once('.').map_or(text.as_str(), |(seconds, _)| seconds);
    format!("{} UTC", seconds.replace('T', " "))
}

fn took(stage: &StageRow, now: i64) -> Option<String> {
    let started = stage.started_at?;
    Some(layout::duration((stage.finished_at.unwrap_or(now) - started) / 1000))
}

/// The log of a stage as it is now; the script fills it anew and goes on from there.
async fn stage_section(app: &AppState, stage: &StageRow, home: &str, run: &RunId) -> Result<Markup> {
    let name = stage.kind.as_str();
    let mut reader = Reader::new(stage);
    let mut text = String::new();
    while reader.offset <= u64::try_from(stage.log_bytes).unwrap_or_default() {
        let piece = reader.next(app, Duration::ZERO).await?;
        if piece.is_empty() {
            break;
        }
        text.push_str(&piece);
    }
    let title = if stage.kind == Stage::Plan { "Plan" } else { "Apply" };
    Ok(html! {
        section hidden[text.is_empty() && stage.kind == Stage::Apply] {
            div.head {
                h2 { (title) }
                a href={ (home) "/runs/" (run) "/logs/" (name) } { "Whole log as text" }
            }
            @if reader.skipped { p.hint { "Only the end of the log is shown." } }
            pre.log tabindex="0" role="log" aria-label={ (title) " log" } data-log=(name) { (maud::PreEscaped(text)) }
        }
    })
}

/// Reads a stage's log from near its end, as HTML.
struct Reader {
    stage_id: String,
    offset: u64,
    ansi: Ansi,
    /// Text before the part that is shown.
    skipped: bool,
    ended: bool,
}

impl Reader {
    fn new(stage: &StageRow) -> Self {
        let skip = (stage.log_bytes - SHOWN_BYTES).max(0);
        Self {
            stage_id: stage.id.clone(),
            offset: u64::try_from(skip).unwrap_or_default(),
            ansi: Ansi::default(),
            skipped: skip > 0,
            ended: false,
        }
    }

    /// HTML of the next bytes; empty when none came in time.
    async fn next(&mut self, app: &AppState, wait: Duration) -> Result<String> {
        let bytes = logs::read(app, &self.stage_id, self.offset, logs::MAX_READ, wait).await?;
        self.offset += bytes.len() as u64;
        self.ended = self.ended || bytes.last() == Some(&ETX);
        Ok(self.ansi.feed(&bytes))
    }
}

/// What the page is told while it is open: `status`, `plan`, `apply` with HTML, and `done`.
pub(super) async fn events(
    user: SignedIn,
    State(app): State<App>,
    Path(path): RunPath,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Failure> {
    let shown = find(&app, &user.account_id, &path).await?;
    let [plan, apply] = stages(&app, &shown).await?;
    let feed = Feed {
        app,
        account: user.account_id,
        path,
        last_status: String::new(),
        readers: [Reader::new(&plan), Reader::new(&apply)],
        over: false,
    };
    let events = stream::unfold(feed, |mut feed| async move { feed.next().await.map(|event| (Ok(event), feed)) });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

/// One open page.
struct Feed {
    app: App,
    account: AccountId,
    path: (String, String, String),
    last_status: String,
    readers: [Reader; 2],
    over: bool,
}

impl Feed {
    async fn next(&mut self) -> Option<Event> {
        if self.over {
            return None;
        }
        loop {
            match self.look().await {
                Ok(Some(event)) => return Some(event),
                Ok(None) if self.app.closing.is_cancelled() => return None,
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(%error, "a page's stream ends");
                    return None;
                }
            }
        }
    }

    /// The next thing to tell, waiting a little for it.
    async fn look(&mut self) -> Result<Option<Event>> {
        let shown = find(&self.app, &self.account, &self.path).await?;
        let status = status(&self.app, &shown).await?.into_string();
        let final_now = shown.run.status.is_final();
        // times pass by themselves: only another status is worth an event
        let key = format!("{:?}{:?}{:?}", shown.run.status, shown.run.waiting_for, shown.run.timestamps.len());
        if key != self.last_status {
            self.last_status = key;
            return Ok(Some(Event::default().event("status").data(status.replace('\r', ""))));
        }
        for (reader, name) in self.readers.iter_mut().zip(["plan", "apply"]) {
            if reader.ended {
                continue;
            }
            let wait = if final_now { Duration::ZERO } else { LOOK };
            let html = reader.next(&self.app, wait).await?;
            if !html.is_empty() {
                return Ok(Some(Event::default().event(name).data(html)));
            }
            if !reader.ended && !final_now {
                return Ok(None);
            }
        }
        if final_now {
            self.over = true;
            return Ok(Some(Event::default().event("done").data("-")));
        }
        tokio::time::sleep(LOOK).await;
        Ok(None)
    }
}

/// The whole log, as the run wrote it.
pub(super) async fn raw_log(
    user: SignedIn,
    State(app): State<App>,
    Path((organization, workspace, run, stage)): Path<(String, String, String, String)>,
) -> Result<Response, Failure> {
    let shown = find(&app, &user.account_id, &(organization, workspace, run)).await?;
    let [plan, apply] = stages(&app, &shown).await?;
    let stage = [plan, apply].into_iter().find(|row| row.kind.as_str() == stage);
    let stage = stage.ok_or_else(|| Error::NoSuch("A run has the stages plan and apply.".to_owned()))?;
    // without the marks around it: from the first byte after the start mark, as many as there are now
    let end = 1 + u64::try_from(stage.log_bytes).unwrap_or_default();
    let pieces = stream::unfold((app, 1), move |(app, offset)| {
        let id = stage.id.clone();
        async move {
            let left = usize::try_from(end.saturating_sub(offset)).unwrap_or(logs::MAX_READ).min(logs::MAX_READ);
            if left == 0 {
                return None;
            }
            let piece = logs::read(&app, &id, offset, left, Duration::ZERO).await;
            match piece {
                Ok(bytes) if bytes.is_empty() => None,
                Ok(bytes) => Some((Ok(bytes.clone()), (app, offset + bytes.len() as u64))),
                Err(error) => Some((Err(error), (app, end))),
            }
        }
    });
    let headers = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    Ok((headers, Body::from_stream(pieces)).into_response())
}
