//! Runs the steps of a stage one after another.

use std::{
    env,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use super::{
    control::{self, Act, Cause, Control, Demand, Outside},
    format::{Announce, ENGINE, Outcome, Output, Report, Stage, Step},
    sys,
};

/// Searched when the image sets no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The log's third line. The terraform CLI drops the first three lines of an apply's log, so there must be three.
const THIRD_LINE: &str = "Initializing plugins and modules...";

/// Why a stage is interrupted whose agent is lost.
const ABANDONED: &str = "The agent of this stage is gone: the stage is interrupted.";

pub fn run(stage: &Stage, log: &File, outside: &mut Outside) -> Report {
    let mut report =
        Report { outcome: Outcome::Finished, step: String::new(), exits: Vec::new(), message: None };
    let path = search_path(stage);
    let engine = match find_engine(&stage.engines, &path) {
        Ok(engine) => engine,
        Err(message) => {
            say(log, &message);
            return Report { outcome: Outcome::EngineUnavailable, message: Some(message), ..report };
        }
    };
    let deadline = Instant::now() + Duration::from_secs(stage.limit_seconds);
    let mut control = Control::new(deadline, Duration::from_secs(stage.grace_seconds));
    for step in &stage.steps {
        let going_on = report.outcome == Outcome::Finished;
        if going_on && control.cause().is_none() {
            let now = Instant::now();
            control.decide(now, outside.look(now));
        }
        if going_on && control.cause().is_some() {
            (report.outcome, report.message) = ended_early(&control);
            report.step.clone_from(&step.name);
        }
        if report.outcome != Outcome::Finished && !step.always {
            continue;
        }
        let (outcome, message) = match execute(stage, step, &engine, log, &mut control, outside) {
            Ok(code) => {
                report.exits.push((step.name.clone(), code));
                judge(step, code, log, &control)
            }
            Err(message) => {
                say(log, &message);
                (Outcome::RunnerFailed, Some(message))
            }
        };
        if report.outcome == Outcome::Finished {
            report.step.clone_from(&step.name);
            report.outcome = outcome;
            report.message = message;
        }
    }
    report
}

fn ended_early(control: &Control) -> (Outcome, Option<String>) {
    match control.cause() {
        Some(Cause::TimedOut) => (Outcome::TimedOut, None),
        Some(Cause::Abandoned) => (Outcome::RunnerFailed, Some(ABANDONED.to_owned())),
        _ => (Outcome::Canceled, None),
    }
}

/// What an exit code means. A step that succeeds although it was asked to end has succeeded.
fn judge(step: &Step, code: i32, log: &File, control: &Control) -> (Outcome, Option<String>) {
    if step.ok.contains(&code) {
        return match &step.announce {
            Some(announce) => announce_engine(step, announce, log),
            None => (Outcome::Finished, None),
        };
    }
    if let Output::Captured(path) = &step.output {
        show(path, log);
    }
    match control.cause() {
        Some(_) => ended_early(control),
        None if code > 128 => {
            (Outcome::Failed, Some(format!("{} was killed by signal {}", describe(step), code - 128)))
        }
        None => (Outcome::Failed, Some(format!("{} ended with exit code {code}", describe(step)))),
    }
}

fn describe(step: &Step) -> String {
    format!("the step `{}`", step.name)
}

/// Starts one step and waits for its end; gives its exit code.
fn execute(
    stage: &Stage,
    step: &Step,
    engine: &Path,
    log: &File,
    control: &mut Control,
    outside: &mut Outside,
) -> Result<i32, String> {
    let program = match step.args.first().map(String::as_str) {
        Some(ENGINE) => engine.to_owned(),
        Some(program) => PathBuf::from(program),
        None => return Err(format!("{} has no program", describe(step))),
    };
    let open = |error: io::Error| format!("the output of {} cannot be kept: {error}", describe(step));
    let to_log = || log.try_clone().map(Stdio::from).map_err(open);
    let to_file = |path: &str| File::create(path).map_err(open);
    let (stdout, stderr) = match &step.output {
        Output::Log => (to_log()?, to_log()?),
        Output::File(path) => (to_file(path)?.into(), to_log()?),
        Output::Captured(path) => {
            let file = to_file(path)?;
            (file.try_clone().map_err(open)?.into(), file.into())
        }
    };
    let cwd = env::current_dir().map_err(open)?.join(&step.cwd);
    let mut command = Command::new(&program);
    command.args(&step.args[1..]).current_dir(&cwd).stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    for (key, value) in stage.env.iter().chain(&step.env) {
        command.env(key, value);
    }
    sys::bind_to_us(&mut command);
    let child = command.spawn().map_err(|error| cannot_start(&program, &cwd, &error))?;
    // The handle has no use: children are reaped all together, orphans among them.
    Ok(watch(child.id() as i32, log, control, outside))
}

fn cannot_start(program: &Path, cwd: &Path, error: &io::Error) -> String {
    let why = match error.kind() {
        io::ErrorKind::NotFound if !cwd.is_dir() => format!("there is no directory {}", cwd.display()),
        io::ErrorKind::NotFound if program.exists() => {
            "it needs a dynamic loader that is not in the image; use a statically linked one".to_owned()
        }
        _ => error.to_string(),
    };
    format!("{} could not be started: {why}", program.display())
}

/// Waits for the end of a child, and ends it early when that is demanded.
fn watch(child: i32, log: &File, control: &mut Control, outside: &mut Outside) -> i32 {
    let mut looked = Instant::now();
    let mut signal = false;
    loop {
        while let Some((pid, code)) = sys::reap() {
            if pid == child {
                return code;
            }
        }
        let now = Instant::now();
        let mut demand = Demand { signal: std::mem::take(&mut signal), ..Demand::default() };
        if now.duration_since(looked) >= control::LOOK {
            looked = now;
            demand = Demand { signal: demand.signal, ..outside.look(now) };
        }
        match control.decide(now, demand) {
            Some(Act::Interrupt(cause)) => {
                match cause {
                    Cause::TimedOut => say(log, "The stage has reached its time limit and is interrupted."),
                    Cause::Abandoned => say(log, ABANDONED),
                    Cause::Canceled => {}
                }
                // An error means that it has ended by itself.
                let _ = sys::send(child, sys::SIGINT);
            }
            Some(Act::Kill(_)) => {
                say(log, "The stage is killed.");
                let _ = sys::send(child, sys::SIGKILL);
                return wait_killed(child);
            }
            None => {}
        }
        signal = matches!(sys::next_signal(control::LOOK), Some(sys::SIGINT | sys::SIGTERM)) && outside.heeds_signals();
    }
}

/// Everything goes: what the killed program started would otherwise work on alone.
fn wait_killed(child: i32) -> i32 {
    loop {
        if let Some((pid, code)) = sys::reap() {
            if pid == child {
                control::kill_all_others();
                return code;
            }
        } else {
            sys::next_signal(control::LOOK);
        }
    }
}

/// Heads the log with the engine's version, and refuses another than the wanted one.
fn announce_engine(step: &Step, announce: &Announce, log: &File) -> (Outcome, Option<String>) {
    let Announce { title, version } = announce;
    let text = match &step.output {
        Output::File(path) | Output::Captured(path) => fs::read(path).unwrap_or_default(),
        Output::Log => Vec::new(),
    };
    let text = String::from_utf8_lossy(&text);
    let mut lines = text.lines().map(str::trim_end).skip_while(|line| !line.starts_with(&format!("{title} v")));
    let found = lines.next();
    let platform = lines.find(|line| line.starts_with("on ")).unwrap_or("on linux");
    let message = match (found, version) {
        (None, _) => format!("The engine's program does not say that it is {title}: {:.200}", text.trim()),
        (Some(found), Some(version)) if found != format!("{title} v{version}") => {
            format!(
                "{title} v{version} is wanted, but the agent and the image have only {found}. Use an image with this \
                 version, install it on the agent's host, or change the version of the workspace."
            )
        }
        (Some(found), _) => {
            say(log, &format!("{found}\n{platform}\n{THIRD_LINE}"));
            return (Outcome::Finished, None);
        }
    };
    say(log, &message);
    (Outcome::EngineUnavailable, Some(message))
}

fn search_path(stage: &Stage) -> String {
    let given = stage.env.iter().rev().find(|(key, _)| key == "PATH").map(|(_, value)| value.clone());
    given.or_else(|| env::var("PATH").ok()).filter(|path| !path.is_empty()).unwrap_or_else(|| DEFAULT_PATH.to_owned())
}

fn find_engine(candidates: &[String], path: &str) -> Result<PathBuf, String> {
    let runs = |file: &PathBuf| {
        fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    for candidate in candidates {
        let places: Vec<PathBuf> = if candidate.contains('/') {
            vec![PathBuf::from(candidate)]
        } else {
            env::split_paths(path).map(|dir| dir.join(candidate)).collect()
        };
        if let Some(found) = places.into_iter().find(runs) {
            return Ok(found);
        }
    }
    Err(format!(
        "The engine `{}` is neither on the agent's host nor in the image (searched in {path}). Install it on the host, \
         or use an image that has it.",
        candidates.last().map(|name| name.rsplit('/').next().unwrap_or(name)).unwrap_or_default()
    ))
}

/// Shows what a failed step had to say.
fn show(path: &str, mut log: &File) {
    let shown = File::open(path).and_then(|mut file| io::copy(&mut file, &mut log));
    if let Err(error) = shown {
        say(log, &format!("the output in {path} cannot be shown: {error}"));
    }
}

/// A line of the runner's own. A log that cannot be written must not stop the stage: the result still can.
fn say(mut log: &File, text: &str) {
    let _ = log.write_all(format!("{text}\n").as_bytes());
}
