//! Changes of a pool that nobody thought of, made from the definition's own schema: applied and taken back, one after
//! the other. What is invalid is refused or shown as a condition, nothing panics, and after each way back everything
//! is as if the change had never been.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::support::operator::{
    changes::{Change, changes, wrong_ones},
    cluster::{Kind, code},
    instance,
    oracles::condition,
    recorder::Recorder,
    runner::hub,
    scenario::{Goal, Scenario, Step, external, idle, owned_by, pool},
    stage::{Stage, is_ready},
};

/// Pools that are changed side by side, and changes of each.
const WALKERS: u64 = 10;
const CHANGES: usize = 28;

/// Reasons of a pool that is on its way.
const PASSING: [&str; 3] = ["AgentsStarting", "Created", "Draining"];

#[derive(Debug, Default)]
struct Tally {
    refused: usize,
    ready: usize,
    unready: usize,
    nothing: usize,
}

#[test]
fn every_change_is_refused_or_told_and_can_be_taken_back() {
    let walkers = (0..WALKERS).map(|seed| {
        let base = if seed % 3 == 2 { external() } else { idle(1) };
        let agents = usize::from(seed % 3 != 2);
        let mut walk = changes(seed + 1, CHANGES);
        walk.extend(wrong_ones().into_iter().skip(usize::try_from(seed).unwrap()).step_by(10));
        hub().spawn(async move { Box::pin(walk_through(&walk, &pool("alpha", &base), agents)).await })
    });
    let walkers: Vec<_> = walkers.collect();
    let mut all = Tally::default();
    let mut failures = Vec::new();
    for walker in walkers {
        match hub().block_on(walker).unwrap() {
            Ok(Tally { refused, ready, unready, nothing }) => {
                all.refused += refused;
                all.ready += ready;
                all.unready += unready;
                all.nothing += nothing;
            }
            Err(failure) => failures.push(failure),
        }
    }
    println!("{all:?}");
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    assert!(all.refused + all.ready + all.unready + all.nothing >= 300, "{all:?}");
}

async fn walk_through(walk: &[Change], base: &Value, agents: usize) -> Result<Tally, String> {
    let _seat = hub().seat().await;
    let steps = vec![
        Step::Apply(base.clone()),
        Step::Wait(Goal::Ready(Kind::AgentPool, "alpha")),
        Step::Wait(Goal::Agents(agents)),
    ];
    // Kinds that changes may bring.
    let scenario = Scenario { name: "changes of Deployment and DaemonSet".to_owned(), steps, operators: 1 };
    let (plane, recorder) = (hub().plane().await, Arc::new(Recorder::new(&[], 0)));
    let stage = Stage::open(hub().cluster().await, plane, &hub().namespace(), &scenario, recorder).await;
    let result = async {
        stage.play(&scenario.steps).await.map_err(|stuck| stuck.0)?;
        let before = picture(&stage).await;
        let mut tally = Tally::default();
        for change in walk {
            let wrong = |what: String| format!("{} := {}\n{what}", change.path, change.patch);
            try_change(&stage, change, &scenario.steps, &before, &mut tally).await.map_err(wrong)?;
            let panics = instance::panics(&stage.space.name);
            if !panics.is_empty() {
                return Err(wrong(format!("{panics:?}")));
            }
        }
        Ok(tally)
    };
    let result = Box::pin(result).await;
    let log = stage.log.text();
    stage.close().await;
    result.map_err(|failure: String| {
        let lines: Vec<&str> = log.lines().collect();
        format!("{failure}\n{}", lines[lines.len().saturating_sub(15)..].join("\n"))
    })
}

async fn try_change(
    stage: &Stage,
    change: &Change,
    steps: &[Step],
    before: &Value,
    tally: &mut Tally,
) -> Result<(), String> {
    let base = stage.space.get(Kind::AgentPool, "alpha").await;
    let patch = owned_by(&json!({"spec": change.patch}), &stage.space.name);
    let changed = match stage.space.merge(Kind::AgentPool, "alpha", "", &patch).await {
        Err(error) if matches!(code(&error), 400 | 422) => {
            tally.refused += 1;
            return Ok(());
        }
        Err(error) => return Err(format!("refused in an unexpected way: {error}")),
        Ok(changed) => changed,
    };
    if changed["spec"] == base["spec"] {
        tally.nothing += 1;
        return Ok(());
    }
    let told = stage.until("is told", |pool| {
        let seen = pool["status"]["observedGeneration"].as_i64() >= changed["metadata"]["generation"].as_i64();
        let reason = condition(pool, "Ready").map(|c| c["reason"].as_str().unwrap_or_default().to_owned());
        seen && (is_ready(pool)
            || reason.is_some_and(|reason| !reason.is_empty() && !PASSING.contains(&reason.as_str())))
    });
    let told = told.await?;
    match is_ready(&told) {
        true => tally.ready += 1,
        false => tally.unready += 1,
    }
    loop {
        let now = stage.space.get(Kind::AgentPool, "alpha").await;
        let metadata = json!({"name": "alpha", "resourceVersion": now["metadata"]["resourceVersion"],
            "finalizers": now["metadata"]["finalizers"]});
        let back =
            json!({"apiVersion": base["apiVersion"], "kind": base["kind"], "spec": base["spec"], "metadata": metadata});
        match stage.space.replace(Kind::AgentPool, "alpha", &back).await {
            Ok(_) => break,
            // Its status was written in between.
            Err(error) if code(&error) == 409 => {}
            Err(error) => return Err(format!("no way back: {error}")),
        }
    }
    stage.play(&steps[1..]).await.map_err(|stuck| format!("not as before: {}", stuck.0))?;
    stage.settle(1).await.map_err(|stuck| format!("not as before: {}", stuck.0))?;
    let after = picture(stage).await;
    if *before != after {
        return Err(format!("before:\n{before:#}\nafter:\n{after:#}"));
    }
    Ok(())
}

/// Everything that a pool makes, without what differs from one life to the next.
async fn picture(stage: &Stage) -> Value {
    let mut objects = Vec::new();
    for kind in
        [Kind::Secret, Kind::Pod, Kind::DaemonSet, Kind::Deployment, Kind::NetworkPolicy, Kind::PodDisruptionBudget]
    {
        for mut object in stage.space.list(kind).await {
            if object["metadata"]["ownerReferences"].is_null() {
                continue;
            }
            let name = object["metadata"]["name"].as_str().unwrap().to_owned();
            let name = if kind == Kind::Pod { "POD".to_owned() } else { name };
            let keys: Vec<String> =
                object["data"].as_object().map(|data| data.keys().cloned().collect()).unwrap_or_default();
            if kind == Kind::Pod {
                let own = object["metadata"]["name"].clone();
                object["spec"] =
                    serde_json::from_str(&object["spec"].to_string().replace(own.as_str().unwrap(), "POD")).unwrap();
            }
            objects.push(json!({"kind": object["kind"], "name": name, "labels": object["metadata"]["labels"],
                "keys": keys, "spec": object["spec"]}));
        }
    }
    objects.sort_by_key(|object| format!("{} {}", object["kind"], object["name"]));
    let pool = stage.space.get(Kind::AgentPool, "alpha").await;
    let conditions = pool["status"]["conditions"].as_array().into_iter().flatten();
    let mut conditions: Vec<String> =
        conditions.map(|c| format!("{} {} {}", c["type"], c["status"], c["reason"])).collect();
    conditions.sort();
    json!({"objects": objects, "pools": stage.remote_pools().await, "conditions": conditions})
}
