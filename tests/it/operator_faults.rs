//! The operator's fault suite: every write × crashes and errors, distorted watches, outages, meddling, two operators,
//! random walks. One test a class of faults; the table of all is target/test-logs/operator-faults.txt.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::json;
use terrapool::crd::names;

use crate::support::operator::{
    cluster::Kind,
    plan::{Dice, Failure, Point, Schedule, Side, Sight, Trouble},
    recorder::Write,
    runner::{Clean, exhaustive, hub},
    scenario::{Goal, Scenario, Step, Tamper, external, idle, pool},
    webhook,
};

fn schedule(class: &'static str, scenario: &str, troubles: Vec<Trouble>) -> Schedule {
    Schedule { class, scenario: scenario.to_owned(), title: String::new(), troubles, seed: 0 }
}

/// Write points of all scenarios, with the scenario of each.
fn points() -> Vec<(String, Write)> {
    let clean = hub().block_on(hub().all_clean());
    let of = |(scenario, clean): &(Scenario, Arc<Clean>)| {
        clean.writes.iter().map(|write| (scenario.name.clone(), write.clone())).collect::<Vec<_>>()
    };
    clean.iter().flat_map(of).collect()
}

/// Every write point with at least `each` of these failures: another part of them at each point of the same kind of
/// write, so that every kind meets all of them.
fn every_point(class: &'static str, failures: &[Failure], each: usize) {
    let mut of_kind = BTreeMap::<String, Vec<(String, Write)>>::new();
    for point in points() {
        of_kind.entry(point.1.label.clone()).or_default().push(point);
    }
    let schedules = of_kind.into_values().flat_map(|points| {
        let each = each.max(failures.len().div_ceil(points.len()));
        points.into_iter().enumerate().flat_map(move |(number, (scenario, write))| {
            (0..each).map(move |k| {
                let failure = failures[(number * each + k) % failures.len()];
                (schedule(class, &scenario, vec![Trouble::Write { at: write.point(), failure }]), Vec::new())
            })
        })
    });
    hub().play(schedules.collect());
}

#[test]
fn operator_faults_f00_without_faults() {
    for (scenario, clean) in hub().block_on(hub().all_clean()) {
        println!("{}", scenario.name);
        clean.writes.iter().for_each(|write| println!("  {}", write.line()));
    }
}

#[test]
fn operator_faults_f01_crash_before_and_after_each_write() {
    every_point("F1", &Failure::CRASHES, 2);
}

#[test]
fn operator_faults_f02_each_write_refused_or_lost() {
    every_point("F2", &Failure::ERRORS, if exhaustive() { 6 } else { 2 });
}

#[test]
fn operator_faults_f03_two_crashes() {
    let points = points();
    let mut dice = Dice::new(3);
    let count = if exhaustive() { 2_000 } else { 64 };
    let schedules = (0..count).map(|_| {
        let (scenario, write) = dice.one(&points).clone();
        let first = Trouble::Write { at: write.point(), failure: *dice.one(&Failure::CRASHES) };
        let again = Point::AfterRestart(1 + dice.below(5));
        let second = Trouble::Write { at: again, failure: *dice.one(&Failure::CRASHES) };
        (schedule("F3", &scenario, vec![first, second]), Vec::new())
    });
    hub().play(schedules.collect());
}

/// Every scenario with each of these.
fn every_scenario(class: &'static str, troubles: &[Vec<Trouble>]) -> Vec<(Schedule, Vec<Step>)> {
    let clean = hub().block_on(hub().all_clean());
    let each = clean.iter().flat_map(|(scenario, _)| {
        troubles.iter().map(|troubles| (schedule(class, &scenario.name, troubles.clone()), Vec::new()))
    });
    each.collect()
}

#[test]
fn operator_faults_f04_stale_views() {
    let lags: Vec<Vec<Trouble>> = (1..=3).map(|k| vec![Trouble::Sight(Sight::Lag(k))]).collect();
    let mut schedules = every_scenario("F4", &lags);
    let mut dice = Dice::new(4);
    let points = points();
    let count = if exhaustive() { points.len() * 3 } else { 35 };
    for _ in 0..count {
        let (scenario, write) = dice.one(&points).clone();
        let crash = Trouble::Write { at: write.point(), failure: *dice.one(&Failure::CRASHES) };
        schedules.push((schedule("F4", &scenario, vec![crash, Trouble::Stale(1 + dice.below(3))]), Vec::new()));
    }
    hub().play(schedules);
}

#[test]
fn operator_faults_f05_states_that_are_never_seen() {
    let (windows, lost) = if exhaustive() { (vec![40, 150, 400], 12) } else { (vec![150], 4) };
    let mut troubles: Vec<Vec<Trouble>> =
        windows.into_iter().map(|ms| vec![Trouble::Sight(Sight::Coalesce(ms))]).collect();
    troubles.extend((1..=lost).map(|nth| vec![Trouble::Sight(Sight::Drop(nth * 2))]));
    hub().play(every_scenario("F5", &troubles));
}

#[test]
fn operator_faults_f06_broken_watches_and_outages() {
    let sights =
        [Sight::Twice, Sight::Cut(1), Sight::Cut(3), Sight::Gone(1), Sight::Gone(3), Sight::Bookmarks, Sight::Reorder];
    let troubles: Vec<Vec<Trouble>> = sights.map(|sight| vec![Trouble::Sight(sight)]).to_vec();
    let mut schedules = every_scenario("F6", &troubles);
    let mut dice = Dice::new(6);
    let points = points();
    for _ in 0..if exhaustive() { 300 } else { 30 } {
        let (scenario, write) = dice.one(&points).clone();
        let side = *dice.one(&[Side::Cluster, Side::ControlPlane]);
        let down = Trouble::Down { side, at: write.point(), ms: 200 + 300 * dice.below(5) as u64 };
        schedules.push((schedule("F6", &scenario, vec![down]), Vec::new()));
    }
    hub().play(schedules);
}

/// Every one of these happens to each scenario when everything is in order, and then everything is again.
fn meddle(class: &'static str, scenarios: &[&str], all: &[Vec<Step>]) {
    let schedules = scenarios.iter().flat_map(|scenario| {
        all.iter().map(move |steps| {
            let title: Vec<String> = steps.iter().map(|step| format!("{step:?}")).collect();
            let title = title.join(" ").replace(['"', '\\'], "");
            let schedule =
                Schedule { title: title.chars().take(120).collect(), ..schedule(class, scenario, Vec::new()) };
            (schedule, steps.clone())
        })
    });
    hub().play(schedules.collect());
}

fn ready(name: &'static str) -> Step {
    Step::Wait(Goal::Ready(Kind::AgentPool, name))
}

#[test]
fn operator_faults_f07_meddling_in_the_cluster() {
    let tampers = [
        Tamper::WipeStatus(Kind::AgentPool, "alpha"),
        Tamper::StripLabels(Kind::Secret),
        Tamper::DeleteAll(Kind::Secret),
        Tamper::EmptySecret,
        Tamper::ForgeSecret,
        Tamper::StripLabels(Kind::NetworkPolicy),
        Tamper::DeleteAll(Kind::NetworkPolicy),
        Tamper::DeleteAll(Kind::PodDisruptionBudget),
        Tamper::DeleteAll(Kind::Pod),
        Tamper::DeleteAll(Kind::Deployment),
        Tamper::DeleteAll(Kind::DaemonSet),
        Tamper::Edit(Kind::NetworkPolicy, json!({"spec": {"egress": []}})),
        Tamper::Edit(Kind::Deployment, json!({"spec": {"replicas": 7}})),
        Tamper::Edit(Kind::Deployment, json!({"spec": {"template": {"spec": {"hostNetwork": true}}}})),
        Tamper::Edit(Kind::DaemonSet, json!({"spec": {"template": {"spec": {"hostNetwork": true}}}})),
    ];
    let steps: Vec<Vec<Step>> = tampers.into_iter().map(|tamper| vec![Step::Tamper(tamper), ready("alpha")]).collect();
    meddle("F7", &["B1-pool", "B2-linked", "B3-agents", "B4-nodes", "B5-deployment", "S06-rotate"], &steps);
}

#[test]
fn operator_faults_f08_meddling_in_the_control_plane() {
    let linked = |pool: &'static str| Step::Wait(Goal::Linked("app", pool));
    let link_ready = Step::Wait(Goal::Ready(Kind::WorkspaceLink, "app"));
    let steps = vec![
        vec![Step::Tamper(Tamper::RenamePool("alpha")), Step::Wait(Goal::Named("alpha", "$NS-alpha")), ready("alpha")],
        vec![
            Step::Wait(Goal::OtherToken("alpha")),
            Step::Tamper(Tamper::RevokeTokens("alpha")),
            Step::Wait(Goal::OtherToken("alpha")),
        ],
    ];
    meddle("F8", &["B1-pool", "B2-linked", "B3-agents"], &steps);
    let gone =
        vec![Step::Tamper(Tamper::DeletePool("alpha")), Step::Wait(Goal::Named("alpha", "$NS-alpha")), ready("alpha")];
    meddle("F8", &["B1-pool", "B4-nodes", "B5-deployment"], &[gone]);
    let links = vec![
        vec![Step::Unlink("app"), linked("alpha"), link_ready.clone()],
        vec![
            Step::LinkElsewhere("app"),
            Step::Wait(Goal::Is(Kind::WorkspaceLink, "app", "Ready", "False", "AlreadyLinkedElsewhere")),
            Step::Unlink("app"),
            linked("alpha"),
            link_ready,
        ],
    ];
    meddle("F8", &["B2-linked"], &links);
    let foreign = vec![
        Step::Tamper(Tamper::ForeignPool("$NS-foreign")),
        Step::Apply(pool("foreign", &external())),
        Step::Wait(Goal::Is(Kind::AgentPool, "foreign", "Ready", "False", "NameConflict")),
        Step::Wait(Goal::Is(Kind::AgentPool, "foreign", "Stalled", "True", "NameConflict")),
        Step::Merge(Kind::AgentPool, "foreign", json!({"spec": {"name": "$NS-mine"}})),
        ready("foreign"),
    ];
    meddle("F8", &["B0-empty", "B1-pool"], &[foreign]);
}

#[test]
fn operator_faults_f09_two_operators() {
    let points: Vec<_> = points().into_iter().filter(|(_, write)| write.side == Side::Cluster).collect();
    let mut dice = Dice::new(9);
    let mut schedules = every_scenario("F9", &[Vec::new()]);
    for _ in 0..if exhaustive() { 100 } else { 10 } {
        let (scenario, write) = dice.one(&points).clone();
        // Longer than a Lease lasts.
        let frozen = Trouble::Write { at: write.point(), failure: Failure::Freeze(3_500) };
        schedules.push((schedule("F9", &scenario, vec![frozen]), Vec::new()));
    }
    hub().play(schedules);
}

#[test]
fn operator_faults_f11_deletion_in_every_way() {
    let delete = |options: serde_json::Value| Step::Delete(Kind::AgentPool, "alpha", options);
    let gone = || Step::Wait(Goal::Gone(Kind::AgentPool, "alpha"));
    let force = json!({"metadata": {"annotations": {names::FORCE_DELETE: "true"}}});
    let steps = vec![
        vec![delete(json!({"propagationPolicy": "Foreground"})), gone()],
        vec![delete(json!({"propagationPolicy": "Background"})), gone()],
        // Nothing is left though somebody asks for it: agents without a pool are of no use to anybody.
        vec![delete(json!({"propagationPolicy": "Orphan"})), gone()],
        vec![
            delete(json!({"propagationPolicy": "Orphan"})),
            gone(),
            Step::Apply(pool("alpha", &external())),
            ready("alpha"),
        ],
        // Deleted and made again at once: the new one is another object.
        vec![delete(json!(null)), gone(), Step::Apply(pool("alpha", &external())), ready("alpha")],
        vec![Step::Tamper(Tamper::DeletePool("alpha")), delete(json!(null)), gone()],
        vec![Step::Down(Side::ControlPlane, 2_500), delete(json!(null)), gone()],
        vec![Step::Down(Side::Cluster, 1_500), delete(json!(null)), gone()],
        vec![
            Step::Down(Side::ControlPlane, 600_000),
            delete(json!(null)),
            Step::Wait(Goal::Is(Kind::AgentPool, "alpha", "Ready", "False", "ControlPlaneUnreachable")),
            Step::Down(Side::ControlPlane, 0),
            gone(),
        ],
        vec![Step::DeleteNamespace, gone()],
    ];
    meddle("F11", &["B1-pool", "B3-agents", "B4-nodes", "B5-deployment"], &steps);
    // Somebody says that the control plane will never answer again: what is there stays there.
    let forced = vec![
        Step::Down(Side::ControlPlane, 600_000),
        delete(json!(null)),
        Step::Merge(Kind::AgentPool, "alpha", force),
        gone(),
        Step::Forget,
    ];
    meddle("F11", &["B1-pool"], &[forced]);
}

#[test]
fn operator_faults_f12_refusals_of_the_cluster() {
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": {"pods": "0"}}});
    let status = json!({"status": {"hard": {"pods": "0"}, "used": {"pods": "0"}}});
    let limited =
        |reason: &'static str| Step::Wait(Goal::Is(Kind::AgentPool, "alpha", "ScalingLimited", "True", reason));
    let range = json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "l"},
        "spec": {"limits": [{"type": "Pod", "max": {"memory": "1Mi"}}]}});
    let apply = || Step::Apply(pool("alpha", &idle(2)));
    let agents = || Step::Wait(Goal::Agents(2));
    let denied = |code: u16| {
        vec![
            Step::Deny(code),
            apply(),
            limited("Refused"),
            Step::Wait(Goal::Says("alpha", "ScalingLimited", webhook::WORDS)),
            Step::Wait(Goal::Says("alpha", "Ready", webhook::WORDS)),
            Step::Still("cluster POST pods", 2_000, 8),
            Step::Allow,
            agents(),
            ready("alpha"),
        ]
    };
    let steps = vec![
        vec![
            Step::Call("POST", "/api/v1/namespaces/$NS/resourcequotas", quota),
            Step::Call("PATCH", "/api/v1/namespaces/$NS/resourcequotas/q/status", status),
            apply(),
            limited("QuotaExceeded"),
            Step::Still("cluster POST pods", 2_000, 8),
            Step::Call("DELETE", "/api/v1/namespaces/$NS/resourcequotas/q", json!(null)),
            agents(),
            ready("alpha"),
        ],
        vec![
            Step::Call("POST", "/api/v1/namespaces/$NS/limitranges", range),
            apply(),
            Step::Wait(Goal::NotReady("alpha")),
            Step::Still("cluster POST pods", 2_000, 8),
            Step::Call("DELETE", "/api/v1/namespaces/$NS/limitranges/l", json!(null)),
            agents(),
            ready("alpha"),
        ],
        denied(400),
        denied(403),
        denied(422),
        vec![
            Step::Call(
                "PATCH",
                "/api/v1/namespaces/$NS",
                json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}),
            ),
            apply(),
            agents(),
            ready("alpha"),
        ],
    ];
    meddle("F12", &["B0-empty"], &steps);
}

#[test]
fn operator_faults_f13_random_walks() {
    let points = points();
    let count = if exhaustive() { 10_000 } else { 100 };
    let start: u64 = std::env::var("TERRAPOOL_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let schedules = (start..start + count).map(|seed| {
        let mut dice = Dice::new(seed);
        let (scenario, _) = dice.one(&points).clone();
        let own: Vec<&Write> = points.iter().filter(|(name, _)| *name == scenario).map(|(_, write)| write).collect();
        let faults = 2 + dice.below(5);
        let troubles = (0..faults).map(|_| any_trouble(&mut dice, &own)).collect();
        (Schedule { seed, ..schedule("F13", &scenario, troubles) }, Vec::new())
    });
    hub().play(schedules.collect());
}

fn any_trouble(dice: &mut Dice, points: &[&Write]) -> Trouble {
    let at = match dice.below(4) {
        0 => Point::AfterRestart(1 + dice.below(6)),
        _ => dice.one(points).point(),
    };
    match dice.below(12) {
        0 => Trouble::Sight(Sight::Cut(1 + dice.below(3))),
        1 => Trouble::Sight(Sight::Lag(1 + dice.below(3))),
        2 => Trouble::Sight(Sight::Coalesce(100)),
        3 => Trouble::Stale(1 + dice.below(3)),
        4 => {
            let side = *dice.one(&[Side::Cluster, Side::ControlPlane]);
            Trouble::Down { side, at, ms: 100 + 200 * dice.below(5) as u64 }
        }
        5..=7 => Trouble::Write { at, failure: *dice.one(&Failure::CRASHES) },
        _ => Trouble::Write { at, failure: *dice.one(&Failure::ERRORS) },
    }
}
