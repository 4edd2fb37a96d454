//! `/`: pools with their agents, and the newest runs. `/app/{organization}/{workspace}`: one workspace's.

use axum::extract::{Path, State};
use maud::{Markup, html};
use sqlx::AnyConnection;

use super::{
    layout::{self, Failure, ago, badge, run_badge},
    session::SignedIn,
};
use crate::{
    api::agent::{AgentStatus, ExecutorKind},
    ids::EnvironmentId,
    server::{
        app::{App, AppState},
        domain::{
            agents,
            model::{Agent, Pool, Workspace},
            pools, workspaces,
        },
        store::{
            self,
            overview::{Shown, Work},
        },
    },
};

const RUNS: i64 = 50;

/// A pool with what its card shows.
struct PoolCard {
    pool: Pool,
    /// Name of the environment that it belongs to.
    environment: Option<String>,
    /// Names of the environments that may use it, when it is not shared.
    listed: Vec<String>,
    is_default: bool,
    workspaces: usize,
    queued: i64,
    oldest_queued_at: Option<i64>,
    agents: Vec<Agent>,
}

pub(super) async fn overview(user: SignedIn, State(app): State<App>) -> Result<Markup, Failure> {
    let now = app.clock.now_ms();
    let mut connection = app.store.read().await?;
    let cards = cards(&mut connection, &user).await?;
    let work = store::overview::work(&mut connection, &user.account_id).await?;
    let runs = store::overview::newest(&mut connection, &user.account_id, RUNS).await?;
    drop(connection);
    let body = html! {
        div data-refresh {
            h1 { "Overview" }
            section aria-labelledby="pools" {
                h2 #pools { "Agent pools" }
                @if cards.is_empty() {
                    p.card.empty { "No agent pools yet. Apply an " code { "AgentPool" } " manifest, or create one through the API." }
                }
                div.pools { @for card in &cards { (pool_card(&app, card, &work, now)) } }
            }
            section aria-labelledby="runs" {
                h2 #runs { "Runs" }
                (runs_table(&runs, now, true))
            }
        }
    };
    Ok(layout::page("Overview", true, &body))
}

async fn cards(connection: &mut AnyConnection, user: &SignedIn) -> Result<Vec<PoolCard>, store::Error> {
    let default_pool = store::accounts::get(connection, &user.account_id).await?.and_then(|a| a.default_pool_id);
    let environments = store::environments::of_account(connection, &user.account_id).await?;
    let mut cards = Vec::new();
    for pool in store::pools::of_account(connection, &user.account_id).await? {
        let name =
            |id: &EnvironmentId| environments.iter().find(|known| known.id == *id).map(|known| known.name.clone());
        let environment = pool.environment_id.as_ref().and_then(name);
        let listed = pool.environments.iter().filter_map(name).collect();
        let (queued, oldest_queued_at) = store::jobs::depth(connection, &pool.id).await?;
        cards.push(PoolCard {
            environment,
            listed,
            is_default: default_pool.as_ref() == Some(&pool.id),
            workspaces: store::pools::linked(connection, &pool.id).await?.len(),
            queued,
            oldest_queued_at,
            agents: store::agents::of_pool(connection, &pool.id).await?,
            pool,
        });
    }
    Ok(cards)
}

fn pool_card(app: &AppState, card: &PoolCard, work: &[Work], now: i64) -> Markup {
    let PoolCard { pool, environment, listed, is_default, workspaces, queued, oldest_queued_at, agents } = card;
    let scope = match environment {
        Some(environment) => format!("environment {environment}"),
        None if pool.is_shared => "all environments".to_owned(),
        None if listed.is_empty() => "no environment yet".to_owned(),
        None => format!("environments {}", listed.join(", ")),
    };
    html! {
        article.card {
            header {
                h3 { (pool.name) }
                span {
                    @if *is_default { (badge("ask", "default")) " " }
                    @if pool.run_settings.run_as_root { (badge("bad", "runs as root")) }
                }
            }
            p.facts { (scope) " · " (count(*workspaces, "linked workspace")) }
            @if *queued > 0 {
                p.notice {
                    (count(usize::try_from(*queued).unwrap_or_default(), "job")) " waiting"
                    @if let Some(at) = oldest_queued_at { ", the oldest for " (layout::duration((now - at) / 1000)) }
                    @if agents.is_empty() { ": no agent has registered in this pool" }
                }
            }
            @if agents.is_empty() { p.facts { "No agents." } }
            ul.agents { @for agent in agents { (agent_row(app, agent, work, now)) } }
        }
    }
}

fn agent_row(app: &AppState, agent: &Agent, work: &[Work], now: i64) -> Markup {
    let status = agents::status(agent, now, app.policy.offline_after);
    let tone = match status {
        AgentStatus::Idle => "good",
        AgentStatus::Busy => "work",
        AgentStatus::Errored => "bad",
        AgentStatus::Offline => "idle",
    };
    html! {
        li {
            span.name { (agent.name) }
            span {
                @if agent.draining || agent.cordoned { (badge("wait", "draining")) " " }
                @if agent.run_as_root { (badge("bad", "root")) " " }
                @if agent.executor == ExecutorKind::Process { (badge("bad", "no isolation")) " " }
                (badge(tone, status.as_str()))
            }
            small {
                (agent.executor.as_str()) " · " (agent.os) " · " (agent.platform) " · " (agent.version)
                @if status == AgentStatus::Offline { " · last seen " (ago(agent.last_seen_at, now)) }
            }
            @for job in work.iter().filter(|work| work.agent_id == agent.id) {
                small {
                    (job.stage.as_str()) " of "
                    a href={ "/app/" (job.environment) "/" (job.workspace) "/runs/" (job.run_id) } {
                        (job.environment) "/" (job.workspace)
                    }
                }
            }
            @if let Some(message) = &agent.error_message { small { (message) } }
        }
    }
}

/// `3 jobs`
fn count(n: usize, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

fn runs_table(runs: &[Shown], now: i64, with_workspace: bool) -> Markup {
    html! {
        @if runs.is_empty() {
            p.card.empty { "No runs yet. Run " code { "terraform init" } " and " code { "terraform plan" } " against this server." }
        } @else {
            div.card.table tabindex="0" role="region" aria-label="Runs" {
                table {
                    thead {
                        tr {
                            th scope="col" { "Status" }
                            @if with_workspace { th scope="col" { "Workspace" } }
                            th scope="col" { "Run" }
                            th.wide scope="col" { "Pool" }
                            th scope="col" { "Created" }
                        }
                    }
                    tbody { @for shown in runs { (run_row(shown, now, with_workspace)) } }
                }
            }
        }
    }
}

fn run_row(Shown { run, workspace, environment, pool }: &Shown, now: i64, with_workspace: bool) -> Markup {
    let home = format!("/app/{environment}/{workspace}");
    html! {
        tr {
            td.fit { (run_badge(run.status)) }
            @if with_workspace { td { a href=(home) { (environment) "/" (workspace) } } }
            td {
                a href={ (home) "/runs/" (run.id) } { span.mono { (run.id) } }
                @if run.plan_only { " " (badge("idle", "plan only")) }
                @if run.options.is_destroy { " " (badge("bad", "destroy")) }
                @if !run.message.is_empty() { span.why { (run.message) } }
                @if let Some(why) = why(run) { span.why { (why) } }
            }
            td.wide { @if let Some(pool) = pool { (pool) } @else { "–" } }
            td.fit { (ago(run.created_at, now)) }
        }
    }
}

/// Why a run does not go on, or why it failed.
pub(super) fn why(run: &crate::server::domain::model::Run) -> Option<String> {
    use crate::api::run_state::RunState as S;
    match run.status {
        S::Pending => run.waiting_for.as_ref().map(|what| format!("Waits: {what}.")),
        S::PlanQueued | S::ApplyQueued => Some("Waits for a free agent of its pool.".to_owned()),
        S::Planned | S::PlannedAndSaved => Some("Waits for somebody to confirm or discard it.".to_owned()),
        S::Errored => run.error_message.clone().or_else(|| run.error_code.clone()),
        _ => None,
    }
}

pub(super) async fn workspace(
    user: SignedIn,
    State(app): State<App>,
    Path(path): Path<(String, String)>,
) -> Result<Markup, Failure> {
    let (organization, name) = path;
    let now = app.clock.now_ms();
    let mut connection = app.store.read().await?;
    let placed = workspaces::find_by_name(&mut connection, &user.account_id, &organization, &name).await?;
    let pool = pools::for_workspace(&mut connection, &placed.workspace).await?;
    let runs = store::overview::of_workspace(&mut connection, &placed.workspace.id, RUNS).await?;
    drop(connection);
    let body = html! {
        div data-refresh {
            p.crumbs { a href="/" { "Overview" } " / " (organization) }
            h1 { (name) }
            (workspace_facts(&placed.workspace, pool.as_ref(), placed.resource_count))
            h2 { "Runs" }
            (runs_table(&runs, now, false))
        }
    };
    Ok(layout::page(&format!("{organization}/{name}"), true, &body))
}

fn workspace_facts(workspace: &Workspace, pool: Option<&Pool>, resources: i64) -> Markup {
    use crate::server::domain::model::Lock;
    let lock = match &workspace.lock {
        Lock::Unlocked => "no".to_owned(),
        Lock::User { reason: Some(reason), .. } => format!("by a user: {reason}"),
        Lock::User { .. } => "by a user".to_owned(),
        Lock::Run { id } => format!("by {id}"),
    };
    let origin = match pool {
        Some(pool) if workspace.pool_id.as_ref() == Some(&pool.id) => "linked",
        Some(_) => "by default",
        None => "runs will wait",
    };
    let version = if workspace.engine_version.is_empty() { "any version" } else { &workspace.engine_version };
    html! {
        dl.grid.card {
            div { dt { "Agent pool" } dd { (pool.map_or("none", |pool| pool.name.as_str())) " (" (origin) ")" } }
            div { dt { "Engine" } dd { (workspace.engine.title()) ", " (version) } }
            div { dt { "Execution" } dd { @if workspace.remote { "on agents" } @else { "on the caller’s machine" } } }
            div { dt { "Resources" } dd { (resources) } }
            div { dt { "Locked" } dd { (lock) } }
            div { dt { "Id" } dd.mono { (workspace.id) } }
        }
    }
}
