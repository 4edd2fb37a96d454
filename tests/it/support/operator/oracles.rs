//! O2 to O9 as functions over what was observed, and that nothing is listed more often than needed. (O1, that nothing
//! is written any more, is what a schedule waits for.)

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;
use terrapool::crd::names::POOL_LABEL;

use super::{
    cluster::Kind,
    observe::{Observation, name},
    plan::Failure,
};

/// What a violation is counted as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    Leak,
    Duplicate,
    Other,
}

#[derive(Debug, Clone)]
pub struct Violation {
    pub oracle: &'static str,
    pub verdict: Verdict,
    pub message: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.oracle, self.message)
    }
}

fn violation(oracle: &'static str, verdict: Verdict, message: String) -> Violation {
    Violation { oracle, verdict, message }
}

/// How many writes there may be.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    pub writes: usize,
    /// Beside those, such as an outage has refused.
    pub refused: usize,
}

impl Budget {
    pub const ENDLESS: Self = Self { writes: usize::MAX, refused: 0 };
}

/// Everything that is wrong.
pub fn check(seen: &Observation, budget: Budget) -> Vec<Violation> {
    let mut found = Vec::new();
    pools_are_those_of_living_objects(seen, &mut found);
    tokens_are_in_secrets(seen, &mut found);
    owned_objects_have_owners(seen, &mut found);
    agents_and_pods_match(seen, &mut found);
    nothing_ran_twice(seen, &mut found);
    for complaint in &seen.complaints {
        found.push(violation("O6", Verdict::Other, complaint.clone()));
    }
    nothing_secret_is_shown(seen, &mut found);
    lists_are_few(seen, &mut found);
    conditions_are_proper(seen, &mut found);
    let counted = seen.counted();
    let refused = counted.iter().filter(|write| write.failure == Some(Failure::TimeoutBefore)).count();
    if counted.len() - refused.min(budget.refused) > budget.writes {
        let labels: Vec<&str> = counted.iter().map(|write| write.label.as_str()).collect();
        let message = format!(
            "{} writes, {refused} refused, where {budget:?} is plenty:\n  {}",
            counted.len(),
            labels.join("\n  ")
        );
        found.push(violation("O9", Verdict::Other, message));
    }
    for panic in &seen.panics {
        found.push(violation("panic", Verdict::Other, panic.clone()));
    }
    found
}

fn uid(object: &Value) -> &str {
    object["metadata"]["uid"].as_str().unwrap_or_default()
}

/// O2
fn pools_are_those_of_living_objects(seen: &Observation, found: &mut Vec<Violation>) {
    let mut of: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for pool in &seen.pools {
        match pool.external_id.as_deref() {
            Some(id) if seen.of(Kind::AgentPool).any(|object| uid(object) == id) => {
                of.entry(id).or_default().push(&pool.id);
            }
            // Not made by us.
            None if pool.name.ends_with("-foreign") => {}
            _ => {
                let message =
                    format!("the pool {} ({}) has no AgentPool any more: {:?}", pool.name, pool.id, pool.external_id);
                found.push(violation("O2", Verdict::Leak, message));
            }
        }
    }
    for object in seen.of(Kind::AgentPool) {
        let registered = condition(object, "Registered").is_some_and(|c| c["status"] == "True");
        match of.get(uid(object)).map_or(0, Vec::len) {
            0 if registered => {
                let message = format!("{} says that it is registered, and there is no pool", name(object));
                found.push(violation("O2", Verdict::Other, message));
            }
            0 | 1 => {}
            more => found.push(violation("O2", Verdict::Duplicate, format!("{} has {more} pools", name(object)))),
        }
    }
}

/// O3
fn tokens_are_in_secrets(seen: &Observation, found: &mut Vec<Violation>) {
    for (secret, token) in &seen.secrets {
        if token.is_none() {
            found.push(violation(
                "O3",
                Verdict::Other,
                format!("the Secret {secret} holds no token that anybody knows"),
            ));
        }
    }
    for pool in seen.pools.iter().filter(|pool| pool.external_id.is_some()) {
        for token in &pool.tokens {
            match seen.secrets.iter().filter(|(_, held)| held.as_ref() == Some(token)).count() {
                0 => {
                    let message = format!("the token {token} of the pool {} is in no Secret", pool.name);
                    found.push(violation("O3", Verdict::Leak, message));
                }
                1 => {}
                more => {
                    let message = format!("the token {token} is in {more} Secrets");
                    found.push(violation("O3", Verdict::Duplicate, message));
                }
            }
        }
    }
}

/// O4, first half
fn owned_objects_have_owners(seen: &Observation, found: &mut Vec<Violation>) {
    let owners = [Kind::AgentPool, Kind::Deployment, Kind::DaemonSet];
    let live: BTreeSet<&str> = owners.into_iter().flat_map(|kind| seen.of(kind)).map(uid).collect();
    for object in &seen.objects {
        let kind = object["kind"].as_str().unwrap_or_default();
        if matches!(kind, "AgentPool" | "WorkspaceLink" | "Event") {
            continue;
        }
        let labelled = object["metadata"]["labels"][POOL_LABEL].is_string();
        let owner = object["metadata"]["ownerReferences"][0]["uid"].as_str();
        match (labelled, owner) {
            (false, None) => {}
            (_, Some(owner)) if !live.contains(owner) => {
                let message = format!("{kind} {} outlived its owner", name(object));
                found.push(violation("O4", Verdict::Leak, message));
            }
            (true, None) => {
                let message = format!("{kind} {} has no owner: nobody would remove it", name(object));
                found.push(violation("O4", Verdict::Leak, message));
            }
            (false, Some(_)) => {
                let message = format!("{kind} {} has lost the label {POOL_LABEL}", name(object));
                found.push(violation("O4", Verdict::Other, message));
            }
            (true, Some(_)) => {}
        }
    }
}

/// O4, second half
fn agents_and_pods_match(seen: &Observation, found: &mut Vec<Violation>) {
    let pods: BTreeSet<&str> =
        seen.of(Kind::Pod).filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).map(name).collect();
    let agents: BTreeSet<&str> = seen.pools.iter().flat_map(|pool| &pool.agents).map(String::as_str).collect();
    if pods != agents {
        let message = format!("Pods {pods:?}, but agents {agents:?}");
        found.push(violation("O4", Verdict::Leak, message));
    }
}

/// O5
fn nothing_ran_twice(seen: &Observation, found: &mut Vec<Violation>) {
    let mut jobs = BTreeMap::new();
    for execution in &seen.executions {
        if let Some(other) = jobs.insert(&execution.job, execution) {
            found.push(violation("O5", Verdict::Duplicate, format!("{other:?} and again {execution:?}")));
        }
    }
}

/// O7
fn nothing_secret_is_shown(seen: &Observation, found: &mut Vec<Violation>) {
    let encoded: Vec<String> = seen.canaries.iter().map(|canary| STANDARD.encode(canary)).collect();
    let words = || seen.canaries.iter().chain(&encoded);
    for object in seen.objects.iter().filter(|object| object["kind"] != "Secret") {
        let text = object.to_string();
        if words().any(|word| text.contains(word.as_str())) {
            let message = format!("{} {} shows a secret", object["kind"], name(object));
            found.push(violation("O7", Verdict::Other, message));
        }
    }
    if words().any(|word| seen.log.contains(word.as_str())) {
        found.push(violation("O7", Verdict::Other, "the operator's log shows a secret".to_owned()));
    }
    if words().any(|word| seen.metrics.iter().any(|text| text.contains(word.as_str()))) {
        found.push(violation("O7", Verdict::Other, "the operator's metrics show a secret".to_owned()));
    }
    for write in &seen.writes {
        let text = write.body.to_string();
        if !write.label.contains("secrets") && words().any(|word| text.contains(word.as_str())) {
            found.push(violation("O7", Verdict::Other, format!("a secret was sent with {}", write.label)));
        }
    }
}

/// F6: a kind is listed once by each operator and once for each 410; after a cut the watch goes on where it was. While
/// the API server is away, it is asked less and less.
fn lists_are_few(seen: &Observation, found: &mut Vec<Violation>) {
    let Some((follows, operators)) = &seen.follows else { return };
    for (kind, follow) in follows {
        let plenty = operators + follow.gone;
        if follow.lists > plenty {
            let message = format!("{kind}: {follow:?} by {operators} operators, where {plenty} lists are plenty");
            found.push(violation("F6", Verdict::Other, message));
        }
        if follow.watches > plenty + follow.cuts {
            let message = format!("{kind}: {follow:?} by {operators} operators: watched again without need");
            found.push(violation("F6", Verdict::Other, message));
        }
    }
}

/// O8
fn conditions_are_proper(seen: &Observation, found: &mut Vec<Violation>) {
    for ((kind, title), history) in &seen.histories {
        let mut last: BTreeMap<String, Value> = BTreeMap::new();
        for conditions in history {
            for condition in conditions.as_array().into_iter().flatten() {
                let type_ = condition["type"].as_str().unwrap_or_default().to_owned();
                if condition["reason"].as_str().unwrap_or_default().is_empty() {
                    found.push(violation("O8", Verdict::Other, format!("{kind:?} {title}: {type_} without a reason")));
                }
                let kept = last.get(&type_).filter(|old| old["status"] == condition["status"]);
                if let Some(old) = kept.filter(|old| old["lastTransitionTime"] != condition["lastTransitionTime"]) {
                    let message = format!(
                        "{kind:?} {title}: the time of {type_} changed, its status did not: {old} → {condition}"
                    );
                    found.push(violation("O8", Verdict::Other, message));
                }
                last.insert(type_, condition.clone());
            }
            let there: BTreeSet<&str> =
                conditions.as_array().into_iter().flatten().filter_map(|c| c["type"].as_str()).collect();
            last.retain(|type_, _| there.contains(type_.as_str()));
        }
    }
}

/// The condition of that type.
pub fn condition<'a>(object: &'a Value, type_: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == type_)
}
