//! From what a stage left behind to what is reported. Pure but for [`gather`], which reads the job directory.

use std::{
    fmt,
    io::{self, BufRead, BufReader, Read},
};

use serde::{
    Deserialize,
    de::{IgnoredAny, SeqAccess, Visitor},
};

use super::{
    executor::{Exit, Prepared},
    jobdir::{self, JobDir},
    steps::format::{Outcome as Ended, Report},
};
use crate::api::{
    agent::{FinishRequest, Outcome, ResourceChanges, reason},
    job::{JobSpec, Stage},
};

/// `terraform plan -detailed-exitcode`: something would change.
const CHANGES: i32 = 2;

/// Exit code of a step that was killed by SIGKILL, and not by the runner.
const KILLED: i32 = 128 + 9;

/// What is known of a stage that has ended.
#[derive(Debug, Clone)]
pub struct Evidence<'a> {
    pub stage: Stage,
    pub timeout_seconds: u64,
    pub exit: &'a Exit,
    /// The runner's account, when there is one.
    pub report: Option<&'a Report>,
    /// Somebody asked for the end of the stage.
    pub canceled: bool,
    /// The disk of the agent's data has no room.
    pub disk_full: bool,
    /// From the plan or from the apply's log.
    pub changes: ResourceChanges,
    pub log_bytes: u64,
    pub image_digest: Option<String>,
}

/// The verdict.
#[must_use]
pub fn conclude(evidence: &Evidence<'_>) -> FinishRequest {
    let (outcome, why) = match evidence.report {
        Some(report) => of_report(evidence, report),
        None => without_report(evidence),
    };
    let (reason, message) = why.unzip();
    let plan_exit = evidence.report.and_then(|report| report.exits.iter().find(|(step, _)| step == "plan"));
    FinishRequest {
        outcome,
        reason: reason.map(str::to_owned),
        message,
        log_bytes: evidence.log_bytes,
        has_changes: outcome == Outcome::Finished && plan_exit.is_some_and(|(_, code)| *code == CHANGES),
        changes: evidence.changes,
        image_digest: evidence.image_digest.clone(),
    }
}

type Why = Option<(&'static str, String)>;

fn of_report(evidence: &Evidence<'_>, report: &Report) -> (Outcome, Why) {
    let message = |fallback: &str| report.message.clone().unwrap_or_else(|| fallback.to_owned());
    let stage = evidence.stage.as_str();
    let (outcome, reason, message) = match report.outcome {
        Ended::Finished => return (Outcome::Finished, None),
        Ended::Failed | Ended::HookFailed if evidence.disk_full => {
            (Outcome::Errored, reason::OUT_OF_SPACE, "the agent's disk is full; make room in its data directory".into())
        }
        Ended::HookFailed => (
            Outcome::Errored,
            reason::HOOK_FAILED,
            format!("{}; see the log of the {stage}", message("a hook of the agent failed")),
        ),
        Ended::Failed if report.exits.iter().any(|(step, code)| *step == report.step && *code == KILLED) => (
            Outcome::Errored,
            reason::CONTAINER_LOST,
            format!(
                "the engine was killed during the {stage}: most often for taking more memory than the pool's limit"
            ),
        ),
        Ended::Failed => {
            (Outcome::Errored, reason::ENGINE_FAILED, format!("{}; see the log of the {stage}", message("it failed")))
        }
        Ended::Canceled => (Outcome::Canceled, reason::CANCELED, format!("the {stage} was canceled")),
        Ended::TimedOut => (
            Outcome::Errored,
            reason::TIMED_OUT,
            format!("the {stage} took longer than its limit of {} s", evidence.timeout_seconds),
        ),
        Ended::OutOfMemory => (
            Outcome::Errored,
            reason::OUT_OF_MEMORY,
            format!("the {stage} ran out of memory: {}", message("it needed more than its container may have")),
        ),
        Ended::EngineUnavailable => (Outcome::Errored, reason::ENGINE_UNAVAILABLE, message("the engine is not there")),
        Ended::RunnerFailed if evidence.disk_full => {
            (Outcome::Errored, reason::OUT_OF_SPACE, message("the agent's disk is full"))
        }
        Ended::RunnerFailed => (Outcome::Errored, reason::AGENT_ERROR, message("the runner could not go on")),
    };
    (outcome, Some((reason, message)))
}

fn without_report(evidence: &Evidence<'_>) -> (Outcome, Why) {
    let stage = evidence.stage.as_str();
    let (code, out_of_memory) = match evidence.exit {
        Exit::Gone { code, out_of_memory } => (*code, *out_of_memory),
        Exit::Result => (None, false),
    };
    let (outcome, reason, message) = if evidence.canceled {
        (Outcome::Canceled, reason::CANCELED, format!("the {stage} was killed, as was asked for"))
    } else if out_of_memory {
        let message = format!("the {stage} needed more memory than its limit and was killed; raise the pool's limit");
        (Outcome::Errored, reason::OUT_OF_MEMORY, message)
    } else if evidence.disk_full {
        let message = "the agent's disk is full; make room in its data directory".to_owned();
        (Outcome::Errored, reason::OUT_OF_SPACE, message)
    } else {
        let code = code.map_or_else(|| "no exit code is known".to_owned(), |code| format!("exit code {code}"));
        let message = format!(
            "the container or process of the {stage} ended without a result ({code}): it was killed from outside, as for \
             memory"
        );
        (Outcome::Errored, reason::CONTAINER_LOST, message)
    };
    (outcome, Some((reason, message)))
}

/// Counts what a plan would do, from `show -json`. Reads as a stream: the values, which may be huge, are never kept.
///
/// # Errors
/// When it is not such a document.
pub fn planned_changes(json: impl Read) -> serde_json::Result<ResourceChanges> {
    #[derive(Deserialize)]
    struct Plan {
        #[serde(default)]
        resource_changes: Counted,
    }
    serde_json::from_reader::<_, Plan>(BufReader::with_capacity(256 * 1024, json)).map(|plan| plan.resource_changes.0)
}

#[derive(Default)]
struct Counted(ResourceChanges);

impl<'de> Deserialize<'de> for Counted {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Changes;

        #[derive(Deserialize)]
        struct Resource {
            change: Change,
        }

        #[derive(Deserialize)]
        struct Change {
            actions: Vec<String>,
            #[serde(default)]
            importing: Option<IgnoredAny>,
        }

        impl<'de> Visitor<'de> for Changes {
            type Value = Counted;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of resource changes")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Counted, A::Error> {
                let mut counted = ResourceChanges::default();
                while let Some(Resource { change }) = seq.next_element()? {
                    counted.imports += i64::from(change.importing.is_some());
                    for action in &change.actions {
                        match action.as_str() {
                            "create" => counted.additions += 1,
                            "update" => counted.changes += 1,
                            "delete" => counted.destructions += 1,
                            _ => {}
                        }
                    }
                }
                Ok(Counted(counted))
            }
        }
        deserializer.deserialize_seq(Changes)
    }
}

/// What an apply did, from the line with which the engine ends it. Reads as a stream; lines too long to be that one are skipped.
///
/// # Errors
/// When the log cannot be read.
pub fn applied_changes(log: impl Read) -> io::Result<ResourceChanges> {
    const LONGEST: u64 = 4096;
    let mut log = BufReader::with_capacity(256 * 1024, log);
    let mut line = Vec::new();
    loop {
        line.clear();
        if (&mut log).take(LONGEST).read_until(b'\n', &mut line)? == 0 {
            return Ok(ResourceChanges::default());
        }
        if let Some(changes) = summary(&plain(&line)) {
            return Ok(changes);
        }
    }
}

/// `Apply complete! Resources: 1 imported, 2 added, 0 changed, 1 destroyed.`, `Destroy complete! Resources: 1 destroyed.`
fn summary(line: &str) -> Option<ResourceChanges> {
    let counts = ["Apply complete! Resources: ", "Destroy complete! Resources: "]
        .into_iter()
        .find_map(|start| line.trim().strip_prefix(start))?;
    let mut changes = ResourceChanges::default();
    for part in counts.trim_end_matches('.').split(", ") {
        let (number, what) = part.split_once(' ')?;
        let number = number.parse().ok()?;
        match what {
            "added" => changes.additions = number,
            "changed" => changes.changes = number,
            "destroyed" => changes.destructions = number,
            "imported" => changes.imports = number,
            _ => {}
        }
    }
    Some(changes)
}

/// Without colours.
fn plain(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            chars.by_ref().find(|c| c.is_ascii_alphabetic());
        } else {
            out.push(c);
        }
    }
    out
}

/// Reads everything that a stage left behind and concludes. `canceled`: somebody asked for the end of the stage.
///
/// # Errors
/// When the directory cannot be read.
pub async fn gather(
    dir: &JobDir,
    spec: &JobSpec,
    prepared: &Prepared,
    exit: &Exit,
    canceled: bool,
) -> Result<FinishRequest, jobdir::Error> {
    let report = dir.result().await?;
    let (reader, stage) = (dir.clone(), spec.stage);
    let (changes, log_bytes, disk_full) = jobdir::blocking(move || {
        let io = |doing: &str| jobdir::Error::io(format!("read {doing} of the stage"));
        let changes = match stage {
            // A plan that cannot be read has no numbers; the engine has judged it already.
            Stage::Plan => reader
                .open_plan_json()?
                .map_or_else(ResourceChanges::default, |file| planned_changes(file).unwrap_or_default()),
            Stage::Apply => match reader.open_log(0)? {
                Some(file) => applied_changes(file).map_err(io("the log"))?,
                None => ResourceChanges::default(),
            },
        };
        let log_bytes = match reader.open_log(0)? {
            Some(file) => file.metadata().map_err(io("the log"))?.len(),
            None => 0,
        };
        Ok((changes, log_bytes, reader.disk_full()))
    })
    .await?;
    Ok(conclude(&Evidence {
        stage,
        timeout_seconds: spec.timeout_seconds,
        exit,
        report: report.as_ref(),
        canceled,
        disk_full,
        changes,
        log_bytes,
        image_digest: prepared.image_digest.clone(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GONE: Exit = Exit::Gone { code: Some(137), out_of_memory: false };

    fn evidence<'a>(exit: &'a Exit, report: Option<&'a Report>) -> Evidence<'a> {
        Evidence {
            stage: Stage::Plan,
            timeout_seconds: 60,
            exit,
            report,
            canceled: false,
            disk_full: false,
            changes: ResourceChanges::default(),
            log_bytes: 0,
            image_digest: None,
        }
    }

    fn report(outcome: Ended, exits: &[(&str, i32)]) -> Report {
        let exits = exits.iter().map(|(step, code)| ((*step).to_owned(), *code)).collect();
        Report { outcome, step: "plan".into(), exits, times: Vec::new(), message: Some("said\nso".into()) }
    }

    #[test]
    fn verdicts() {
        use Ended as E;
        use Outcome::{Canceled, Errored, Finished};
        type Case = (E, &'static [(&'static str, i32)], bool, Outcome, Option<&'static str>, bool);
        let table: [Case; 16] = [
            (E::Finished, &[("plan", 0)], false, Finished, None, false),
            (E::Finished, &[("plan", 2), ("show", 0)], false, Finished, None, true),
            (E::Finished, &[("apply", 0)], false, Finished, None, false),
            (E::Failed, &[("plan", 1)], false, Errored, Some(reason::ENGINE_FAILED), false),
            (E::Failed, &[("plan", 2), ("show", 1)], false, Errored, Some(reason::ENGINE_FAILED), false),
            (E::Failed, &[("plan", 1)], true, Errored, Some(reason::OUT_OF_SPACE), false),
            (E::Failed, &[("plan", 137)], false, Errored, Some(reason::CONTAINER_LOST), false),
            (E::Failed, &[("plan", 1), ("post-plan", 137)], false, Errored, Some(reason::ENGINE_FAILED), false),
            (E::HookFailed, &[("pre-plan", 137)], false, Errored, Some(reason::HOOK_FAILED), false),
            (E::HookFailed, &[("plan", 2), ("post-plan", 1)], false, Errored, Some(reason::HOOK_FAILED), false),
            (E::HookFailed, &[("plan", 1)], true, Errored, Some(reason::OUT_OF_SPACE), false),
            (E::Canceled, &[("plan", 130)], false, Canceled, Some(reason::CANCELED), false),
            (E::TimedOut, &[("plan", 1)], false, Errored, Some(reason::TIMED_OUT), false),
            (E::OutOfMemory, &[("apply", 1)], true, Errored, Some(reason::OUT_OF_MEMORY), false),
            (E::EngineUnavailable, &[], false, Errored, Some(reason::ENGINE_UNAVAILABLE), false),
            (E::RunnerFailed, &[], true, Errored, Some(reason::OUT_OF_SPACE), false),
        ];
        for (ended, exits, disk_full, outcome, reason, has_changes) in table {
            let report = report(ended, exits);
            assert_eq!(Report::parse(&report.to_text()).unwrap(), report);
            let finish = conclude(&Evidence { disk_full, ..evidence(&Exit::Result, Some(&report)) });
            assert_eq!(
                (finish.outcome, finish.reason.as_deref(), finish.has_changes),
                (outcome, reason, has_changes),
                "{ended:?} {exits:?}"
            );
            assert_eq!(finish.message.is_some(), outcome != Finished);
        }
    }

    #[test]
    fn without_a_result_the_container_tells() {
        let memory = Exit::Gone { code: Some(137), out_of_memory: true };
        for (exit, canceled, disk_full, outcome, reason, word) in [
            (&GONE, false, false, Outcome::Errored, reason::CONTAINER_LOST, "exit code 137"),
            (&GONE, true, false, Outcome::Canceled, reason::CANCELED, "asked for"),
            (&GONE, false, true, Outcome::Errored, reason::OUT_OF_SPACE, "disk is full"),
            (&memory, false, false, Outcome::Errored, reason::OUT_OF_MEMORY, "memory"),
        ] {
            let finish = conclude(&Evidence { canceled, disk_full, ..evidence(exit, None) });
            assert_eq!((finish.outcome, finish.reason.as_deref()), (outcome, Some(reason)));
            assert!(finish.message.unwrap().contains(word), "{word}");
        }
    }

    #[test]
    fn changes_are_counted_without_reading_values() {
        let json = r#"{"format_version":"1.2","planned_values":{"x":[1,{"resource_changes":[]}]},"resource_changes":[
            {"address":"a","change":{"actions":["create"],"before":null,"after":{"huge":"x"}}},
            {"address":"b","change":{"actions":["delete","create"]}},
            {"address":"c","change":{"actions":["update"],"importing":{"id":"i"}}},
            {"address":"d","change":{"actions":["no-op"],"importing":null}},
            {"address":"e","change":{"actions":["read"]}},{"address":"f","change":{"actions":["forget"]}},
            {"address":"g","change":{"actions":["delete"]}}],"output_changes":{}}"#;
        let wanted = ResourceChanges { additions: 2, changes: 1, destructions: 2, imports: 1 };
        assert_eq!(planned_changes(json.as_bytes()).unwrap(), wanted);
        assert_eq!(planned_changes(&b"{}"[..]).unwrap(), ResourceChanges::default());
        assert!(planned_changes(&b"[1"[..]).is_err());
    }

    #[test]
    fn the_engines_last_words_are_read_through_colours_and_noise() {
        let long = "x".repeat(10_000);
        for (log, wanted) in [
            (
                "\u{1b}[0m\u{1b}[1m\u{1b}[32m\nApply complete! Resources: 1 imported, 2 added, 3 changed, 4 destroyed.\n\u{1b}[0m",
                (2, 3, 4, 1),
            ),
            ("\u{1b}[1m\u{1b}[32mDestroy complete! Resources: 5 destroyed.\u{1b}[0m\n", (0, 0, 5, 0)),
            (
                "a (local-exec): Apply complete! Resources: 9 added.\nApply complete! Resources: 1 added, 0 changed, 0 destroyed.\n",
                (1, 0, 0, 0),
            ),
            (
                "Apply complete! Resources: 1 added, 0 changed, 0 destroyed.\nApply complete! Resources: 9 added\n",
                (1, 0, 0, 0),
            ),
            ("Error: no\n", (0, 0, 0, 0)),
            ("", (0, 0, 0, 0)),
        ] {
            let (additions, changes, destructions, imports) = wanted;
            let wanted = ResourceChanges { additions, changes, destructions, imports };
            assert_eq!(applied_changes(format!("{long}\n{log}").as_bytes()).unwrap(), wanted, "{log}");
        }
    }
}
