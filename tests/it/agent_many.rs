//! Many runs at a time.

use std::collections::BTreeMap;

use futures::future::join_all;
use terrapool::{
    api::run_state::RunState,
    server::domain::model::{Run, RunOptions},
};

use crate::support::agents::{Plane, RunningAgent, eventually};

const RUNS: usize = 100;
const AGENTS: u32 = 5;
/// Lines of each stage, written in pieces while the other runs write theirs.
const LINES: usize = 60;

/// What stage `stage` of run `run` writes: a mark of its own in every line, and bytes that must not be changed.
fn expected(stage: &str, run: usize) -> String {
    (0..LINES).map(|line| format!("<{stage} {run:03}> line {line} \u{e4}\u{1b}[1m of {run:03}\u{1b}[0m\n")).collect()
}

/// Half of the lines, then the other half once `go` is there.
fn script(stage: &str, run: usize, here: &str, go: &str) -> String {
    format!(
        "write() {{ i=$1; while [ $i -lt $2 ]; do printf '<{stage} {run:03}> line %s \u{e4}\\033[1m of %s\\033[0m\\n' $i {run:03}; \
         i=$((i+1)); done; }}\nwrite 0 {half}; touch {here}; while [ ! -e {go} ]; do sleep 0.2; done; write {half} {LINES}\n",
        half = LINES / 2,
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p16_hundred_concurrent_runs_never_mix_log_lines() {
    let plane = Plane::new().await;
    let mut agents = Vec::new();
    for index in 0..AGENTS {
        let mut config = plane.config(&format!("a{index}"));
        config.slots = RUNS as u32 / AGENTS;
        agents.push(RunningAgent::start(config).await);
    }
    let signal = |name: &str| plane.signal(name).display().to_string();
    let mut runs: BTreeMap<usize, Run> = BTreeMap::new();
    for number in 0..RUNS {
        let environment = &plane.fixture.environment.id;
        let workspace = plane.test.workspace(environment, &format!("w{number}"), Some(&plane.fixture.pool.id)).await;
        let scripts = ["plan", "apply"]
            .map(|stage| script(stage, number, &signal(&format!("{stage}-{number}")), &signal(&format!("go-{stage}"))));
        let files = [("main.tf", ""), ("plan.sh", scripts[0].as_str()), ("apply.sh", scripts[1].as_str())];
        let configuration = plane.configuration_of(&workspace.id, &files).await;
        let options = RunOptions { auto_apply: true, ..RunOptions::default() };
        runs.insert(number, plane.test.run(&workspace.id, &configuration, options).await);
    }
    // All hundred are half written before any goes on.
    for stage in ["plan", "apply"] {
        let half_written = |number: usize| plane.signal(&format!("{stage}-{number}")).exists();
        eventually(&format!("a hundred of stage {stage} at a time"), async || (0..RUNS).all(half_written)).await;
        std::fs::write(plane.signal(&format!("go-{stage}")), "").unwrap();
    }
    let ended = join_all(runs.values().map(|run| plane.until(run, RunState::Applied))).await;
    for (number, run) in ended.iter().enumerate() {
        for (stage, id) in [("plan", run.plan_id.as_str()), ("apply", run.apply_id.as_str())] {
            let log = plane.log(id).await;
            let marked = |line: &&str| line.contains('<') && line.contains("> line ");
            let lines: String = log.split_inclusive('\n').filter(marked).collect();
            assert!(lines == expected(stage, number), "{stage} of run {number}: {log:?}");
        }
    }
    for agent in agents {
        agent.drain().await.unwrap();
    }
}
