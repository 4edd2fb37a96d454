//! Runs the steps of a stage one after another.

use std::{
    env,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant, SystemTime},
};

use super::{
    control::{self, Act, Cause, Control, Demand, Outside},
    format::{Announce, ENGINE, Outcome, Output, Report, Stage, Step, Time},
    hook::{self, Outputs},
    memory::{self, Guard, Shortage},
    sys,
};

/// Searched when the image sets no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The log's third line. The terraform CLI drops the first three lines of an apply's log, so there must be three.
const THIRD_LINE: &str = "Initializing plugins and modules...";

/// Where a container finds its own cgroup.
const CGROUP: &str = "/sys/fs/cgroup";

/// Why a stage is interrupted whose agent is lost.
const ABANDONED: &str = "The agent of this stage is gone: the stage is interrupted.";

pub fn run(stage: &Stage, log: &File, outside: &mut Outside) -> Report {
    let mut report = Report {
        outcome: Outcome::Finished,
        step: String::new(),
        exits: Vec::new(),
        times: Vec::new(),
        message: None,
    };
    let path = search_path(stage);
    let engine = match find_engine(&stage.engines, &path) {
        Ok(engine) => engine,
        Err(message) => {
            say(log, &message);
            return Report { outcome: Outcome::EngineUnavailable, message: Some(message), ..report };
        }
    };
    let outputs = match Outputs::new(log) {
        Ok(outputs) => outputs,
        Err(message) => return Report { outcome: Outcome::RunnerFailed, message: Some(message), ..report },
    };
    let deadline = Instant::now() + Duration::from_secs(stage.limit_seconds);
    let control = Control::new(deadline, Duration::from_secs(stage.grace_seconds));
    let mut work = Work {
        stage,
        engine,
        log,
        control,
        outside,
        outputs,
        added: Vec::new(),
        memory: Guard::open(Path::new(CGROUP)),
        shortage: None,
        killed_for_memory: false,
    };
    for step in &stage.steps {
        let going_on = report.outcome == Outcome::Finished;
        if going_on && work.control.cause().is_none() {
            let now = Instant::now();
            work.control.decide(now, work.outside.look(now));
        }
        if going_on && work.control.cause().is_some() {
            (report.outcome, report.message) = work.ended_early(step);
            report.step.clone_from(&step.name);
        }
        if !work.is_due(step, &report) {
            continue;
        }
        let start_ms = now_ms();
        let (outcome, message) = match work.execute(step, &report.exits) {
            Ok(code) => {
                report.exits.push((step.name.clone(), code));
                report.times.push(Time { step: step.name.clone(), start_ms, end_ms: now_ms() });
                work.judge(step, code)
            }
            Err(message) => {
                say(log, &message);
                (if step.hook.is_some() { Outcome::HookFailed } else { Outcome::RunnerFailed }, Some(message))
            }
        };
        if report.outcome == Outcome::Finished {
            report.step.clone_from(&step.name);
            report.outcome = outcome;
            report.message = message;
        }
    }
    work.outputs.pump();
    report
}

/// Milliseconds since 1970.
fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// A stage at work.
struct Work<'a> {
    stage: &'a Stage,
    engine: PathBuf,
    log: &'a File,
    control: Control,
    outside: &'a mut Outside,
    outputs: Outputs<'a>,
    /// What hooks added to the environment.
    added: Vec<(String, String)>,
    memory: Option<Guard>,
    /// Why the engine was interrupted, when that was for memory.
    shortage: Option<Shortage>,
    /// The kernel has killed a program during the last step.
    killed_for_memory: bool,
}

impl Work<'_> {
    fn is_due(&self, step: &Step, report: &Report) -> bool {
        match step.hook.as_ref().and_then(|hook| hook.after.as_ref()) {
            Some((name, _)) => self.control.leaves_time() && exit_of(&report.exits, name).is_some(),
            None => report.outcome == Outcome::Finished,
        }
    }

    /// Starts one step and waits for its end; gives its exit code.
    fn execute(&mut self, step: &Step, exits: &[(String, i32)]) -> Result<i32, String> {
        let program = match step.args.first().map(String::as_str) {
            Some(ENGINE) => self.engine.clone(),
            Some(program) => PathBuf::from(program),
            None => return Err(format!("{} has no program", describe(step))),
        };
        let open = |error: io::Error| format!("the output of {} cannot be kept: {error}", describe(step));
        let (stdout, stderr) = match (&step.hook, &step.output) {
            (Some(_), _) => {
                let pipe = self.outputs.open().map_err(open)?;
                (pipe.try_clone().map_err(open)?.into(), pipe.into())
            }
            (None, Output::Log) => (self.to_log().map_err(open)?, self.to_log().map_err(open)?),
            (None, Output::File(path)) => (File::create(path).map_err(open)?.into(), self.to_log().map_err(open)?),
            (None, Output::Captured(path)) => {
                let file = File::create(path).map_err(open)?;
                (file.try_clone().map_err(open)?.into(), file.into())
            }
        };
        let cwd = env::current_dir().map_err(open)?.join(&step.cwd);
        let mut command = Command::new(&program);
        command.args(&step.args[1..]).current_dir(&cwd).stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        for (key, value) in self.stage.env.iter().chain(&self.added).chain(&step.env) {
            command.env(key, value);
        }
        if let Some(hook) = &step.hook {
            say(self.log, &format!("Running the hook {}", step.name));
            hook::make_env_file(&hook.env_file)
                .map_err(|error| format!("{} cannot have its file of variables: {error}", describe(step)))?;
            if let Some((name, variable)) = &hook.after
                && let Some(code) = exit_of(exits, name)
            {
                command.env(variable, code.to_string());
            }
        }
        sys::bind_to_us(&mut command);
        let child = start(&mut command).map_err(|error| cannot_start(&program, &cwd, &error))?;
        // It holds the writing end of a hook's pipe.
        drop(command);
        let limit = step.hook.as_ref().map(|hook| Instant::now() + Duration::from_secs(hook.limit_seconds));
        self.control.limit_hook(limit);
        // The handle has no use: children are reaped all together, orphans among them.
        let kills = |memory: &Option<Guard>| memory.as_ref().map_or(0, Guard::kills);
        let before = kills(&self.memory);
        let code = self.watch(child.id() as i32, step.hook.is_some());
        self.killed_for_memory = kills(&self.memory) > before;
        self.control.limit_hook(None);
        Ok(code)
    }

    fn to_log(&self) -> io::Result<Stdio> {
        self.log.try_clone().map(Stdio::from)
    }

    /// Waits for the end of a child, and ends it early when that is demanded.
    fn watch(&mut self, child: i32, is_hook: bool) -> i32 {
        let mut looked = Instant::now();
        let mut signal = false;
        loop {
            while let Some((pid, code)) = sys::reap() {
                if pid == child {
                    self.outputs.pump();
                    return code;
                }
            }
            self.outputs.pump();
            let now = Instant::now();
            let mut demand = Demand { signal: std::mem::take(&mut signal), ..Demand::default() };
            if now.duration_since(looked) >= control::LOOK {
                looked = now;
                demand = Demand { signal: demand.signal, ..self.outside.look(now) };
                if !is_hook && self.shortage.is_none() {
                    self.shortage = self.memory.as_ref().and_then(Guard::look);
                    demand.out_of_memory = self.shortage.is_some();
                }
            }
            match self.control.decide(now, demand) {
                Some(Act::Interrupt(cause)) => {
                    match cause {
                        Cause::TimedOut => say(self.log, "The stage has reached its time limit and is interrupted."),
                        Cause::HookTimedOut => say(self.log, "The hook has reached its time limit and is interrupted."),
                        Cause::Abandoned => say(self.log, ABANDONED),
                        Cause::OutOfMemory => {
                            say(
                                self.log,
                                &format!("The stage is interrupted before the kernel kills it: {}.", self.want()),
                            );
                        }
                        Cause::Canceled => {}
                    }
                    if is_hook {
                        control::interrupt_all(child);
                    } else {
                        // An error means that it has ended by itself.
                        let _ = sys::send(child, sys::SIGINT);
                    }
                }
                Some(Act::Kill(_)) => {
                    say(self.log, if is_hook { "The hook is killed." } else { "The stage is killed." });
                    let _ = sys::send(child, sys::SIGKILL);
                    let code = wait_killed(child);
                    self.outputs.pump();
                    return code;
                }
                None => {}
            }
            self.outputs.wait(control::LOOK);
            while let Some(number) = sys::next_signal(Duration::ZERO) {
                signal |= matches!(number, sys::SIGINT | sys::SIGTERM) && self.outside.heeds_signals();
            }
        }
    }

    /// What an exit code means. A step that succeeds although it was asked to end has succeeded, unless it is a hook that
    /// took too long.
    fn judge(&mut self, step: &Step, code: i32) -> (Outcome, Option<String>) {
        if let Some(hook) = &step.hook {
            if self.control.cause() == Some(Cause::HookTimedOut) {
                return self.ended_early(step);
            }
            if let Some(trouble) = self.outputs.trouble() {
                return (Outcome::HookFailed, Some(format!("{}: {trouble}", describe(step))));
            }
            if step.ok.contains(&code) {
                return match self.outputs.take_additions(&hook.env_file) {
                    Ok(additions) => {
                        self.added.extend(additions);
                        (Outcome::Finished, None)
                    }
                    Err(message) => (Outcome::HookFailed, Some(format!("{}: {message}", describe(step)))),
                };
            }
        }
        if step.ok.contains(&code) {
            return match &step.announce {
                Some(announce) => announce_engine(step, announce, self.log),
                None => (Outcome::Finished, None),
            };
        }
        if let Output::Captured(path) = &step.output {
            show(path, self.log);
        }
        let failed = if step.hook.is_some() { Outcome::HookFailed } else { Outcome::Failed };
        match self.control.cause() {
            Some(_) => self.ended_early(step),
            None if self.killed_for_memory && step.hook.is_none() => {
                (Outcome::OutOfMemory, Some(killed_for_memory(step)))
            }
            None if code > 128 => (failed, Some(format!("{} was killed by signal {}", describe(step), code - 128))),
            None => (failed, Some(format!("{} ended with exit code {code}", describe(step)))),
        }
    }

    /// What the engine wanted of memory when it was interrupted for it.
    fn want(&self) -> String {
        self.shortage.map(|shortage| shortage.describe()).unwrap_or_default()
    }

    /// Of the stage that ended early, at this step.
    fn ended_early(&self, step: &Step) -> (Outcome, Option<String>) {
        let limit = step.hook.as_ref().map_or(0, |hook| hook.limit_seconds);
        match self.control.cause() {
            Some(Cause::TimedOut) => (Outcome::TimedOut, None),
            Some(Cause::HookTimedOut) => {
                (Outcome::HookFailed, Some(format!("{} took longer than its limit of {limit} s", describe(step))))
            }
            Some(Cause::Abandoned) => (Outcome::RunnerFailed, Some(ABANDONED.to_owned())),
            Some(Cause::OutOfMemory) => {
                (Outcome::OutOfMemory, Some(format!("{} was interrupted: {}", describe(step), self.want())))
            }
            _ => (Outcome::Canceled, None),
        }
    }
}

/// Starts a program that may have been written just now: whoever was started by its writer in that moment holds it open,
/// until it is a program of its own.
fn start(command: &mut Command) -> io::Result<Child> {
    let mut attempts = 0;
    loop {
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && attempts < 50 => {
                attempts += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
            started => return started,
        }
    }
}

fn exit_of(exits: &[(String, i32)], step: &str) -> Option<i32> {
    exits.iter().find(|(name, _)| name == step).map(|(_, code)| *code)
}

fn describe(step: &Step) -> String {
    format!("the {} `{}`", if step.hook.is_some() { "hook" } else { "step" }, step.name)
}

fn killed_for_memory(step: &Step) -> String {
    format!(
        "the kernel killed a program of {}, which needed more memory than the container may have. {}",
        describe(step),
        memory::MEND
    )
}

fn cannot_start(program: &Path, cwd: &Path, error: &io::Error) -> String {
    let is_script = || fs::read(program).is_ok_and(|content| content.starts_with(b"#!"));
    let why = match error.kind() {
        io::ErrorKind::NotFound if !cwd.is_dir() => format!("there is no directory {}", cwd.display()),
        io::ErrorKind::NotFound if is_script() => {
            "the program that its first line names is not in the image; use an image that has it".to_owned()
        }
        io::ErrorKind::NotFound if program.exists() => {
            "it needs a dynamic loader that is not in the image; use a statically linked one".to_owned()
        }
        _ => error.to_string(),
    };
    format!("{} could not be started: {why}", program.display())
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
    let runs =
        |file: &PathBuf| fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
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
pub fn say(mut log: &File, text: &str) {
    let _ = log.write_all(format!("{text}\n").as_bytes());
}
