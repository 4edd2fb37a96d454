//! The texts that pass between agent and runner: `steps`, `result` and `masks`. Compiled into both, so that they cannot
//! disagree. One record per line, `word value`; a line break in a value is written `\n`, a backslash `\\`.

/// First line of `steps` and `result`. The runner is embedded in the agent that writes its steps, so this only catches accidents.
const HEADER: &str = "terrapool-stage 1";

/// Name of the engine in [`Step::args`]: the runner puts the program that it found in its place.
pub const ENGINE: &str = "@engine";

/// Where the runner keeps what hooks declare to be secret: [`Mask`]s, in the job directory. Absent: there are none.
pub const MASKS: &str = "masks";

/// What the runner does in one stage.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stage {
    /// The stage is interrupted after this many seconds.
    pub limit_seconds: u64,
    /// SIGKILL this many seconds after SIGINT.
    pub grace_seconds: u64,
    /// Where the engine is looked for, in this order: a path, or a name for a search in `PATH`.
    pub engines: Vec<String>,
    /// Added to the runner's own environment, for all steps.
    pub env: Vec<(String, String)>,
    pub steps: Vec<Step>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    pub name: String,
    pub args: Vec<String>,
    /// Relative to the job directory, as are all files below.
    pub cwd: String,
    pub env: Vec<(String, String)>,
    pub output: Output,
    /// Exit codes that are a success.
    pub ok: Vec<i32>,
    /// The captured output must name this engine; its version becomes the head of the log.
    pub announce: Option<Announce>,
    /// It is a hook, with all that hooks can do.
    pub hook: Option<Hook>,
}

/// What a step has that is a hook: lines of its output declare secrets, and its failure is not the engine's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hook {
    /// It is interrupted after this many seconds.
    pub limit_seconds: u64,
    /// Empty when the hook starts. What it writes there is added to the environment of all later steps.
    pub env_file: String,
    /// Runs when the step of this name has run, whatever became of it, with its exit code in this variable.
    pub after: Option<(String, String)>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Output {
    /// Both streams to the log.
    #[default]
    Log,
    /// Standard output to this file, standard error to the log.
    File(String),
    /// Both streams to this file; it is shown in the log when the step fails.
    Captured(String),
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Announce {
    /// `Terraform`, `OpenTofu`.
    pub title: String,
    /// The exact version, or absent: any.
    pub version: Option<String>,
}

/// The runner's account of a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub outcome: Outcome,
    /// The step that decided the outcome.
    pub step: String,
    /// Exit code of each step that ran, in order; 128 + signal for one that was killed.
    pub exits: Vec<(String, i32)>,
    /// When they ran, in the same order.
    pub times: Vec<Time>,
    /// For people, where there is something to say.
    pub message: Option<String>,
}

/// When a step ran, in milliseconds since 1970 by the clock of where it ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Time {
    pub step: String,
    pub start_ms: i64,
    pub end_ms: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Finished,
    /// A step ended with an exit code that is no success.
    Failed,
    /// So did a hook, or it took too long, or what it wanted cannot be done.
    HookFailed,
    Canceled,
    TimedOut,
    /// The engine was interrupted before the container's memory ran out, or the kernel killed something for it.
    OutOfMemory,
    /// The engine is not there, or has another version.
    EngineUnavailable,
    /// The runner itself could not go on.
    RunnerFailed,
}

const OUTCOMES: [(Outcome, &str); 8] = [
    (Outcome::Finished, "finished"),
    (Outcome::Failed, "failed"),
    (Outcome::HookFailed, "hook_failed"),
    (Outcome::Canceled, "canceled"),
    (Outcome::TimedOut, "timed_out"),
    (Outcome::OutOfMemory, "out_of_memory"),
    (Outcome::EngineUnavailable, "engine_unavailable"),
    (Outcome::RunnerFailed, "runner_failed"),
];

/// A value that no log may show.
#[derive(Clone, PartialEq, Eq)]
pub struct Mask {
    /// Length of the log, in bytes, when it became known: what stands behind that is not written before this record.
    pub at: u64,
    pub value: String,
}

impl std::fmt::Debug for Mask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mask(at {})", self.at)
    }
}

#[derive(Default)]
struct Writer(String);

impl Writer {
    fn new() -> Self {
        Self(format!("{HEADER}\n"))
    }

    fn line(&mut self, word: &str, value: &str) {
        self.0.push_str(word);
        self.0.push(' ');
        for c in value.chars() {
            match c {
                '\n' => self.0.push_str("\\n"),
                '\\' => self.0.push_str("\\\\"),
                c => self.0.push(c),
            }
        }
        self.0.push('\n');
    }

    fn pairs(&mut self, word: &str, pairs: &[(String, String)]) {
        for (key, value) in pairs {
            self.line(word, &format!("{key}={value}"));
        }
    }
}

fn unescape(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('n') => text.push('\n'),
                Some(c) => text.push(c),
                None => {}
            },
            c => text.push(c),
        }
    }
    text
}

fn lines(text: &str) -> Result<impl Iterator<Item = (&str, String)>, String> {
    // Not `lines()`, which takes the end off a value that ends with a carriage return.
    let mut lines = text.split('\n');
    match lines.next() {
        Some(HEADER) => {}
        other => return Err(format!("begins with {other:?}, not with {HEADER:?}")),
    }
    Ok(records(lines))
}

fn records<'a>(lines: impl Iterator<Item = &'a str>) -> impl Iterator<Item = (&'a str, String)> {
    lines.filter(|line| !line.is_empty()).map(|line| {
        let (word, value) = line.split_once(' ').unwrap_or((line, ""));
        (word, unescape(value))
    })
}

fn pair(value: &str) -> Result<(String, String), String> {
    let (key, value) = value.split_once('=').ok_or_else(|| format!("`{value}` is not a pair"))?;
    Ok((key.to_owned(), value.to_owned()))
}

fn number<T: std::str::FromStr>(value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("`{value}` is not a number"))
}

impl Stage {
    /// As text for [`Self::parse`].
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut out = Writer::new();
        out.line("limit", &self.limit_seconds.to_string());
        out.line("grace", &self.grace_seconds.to_string());
        for engine in &self.engines {
            out.line("engine", engine);
        }
        out.pairs("env", &self.env);
        for step in &self.steps {
            step.write(&mut out);
        }
        out.0
    }

    /// # Errors
    /// A sentence about the first line that is not understood.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut stage = Self::default();
        for (word, value) in lines(text)? {
            match (word, stage.steps.last_mut()) {
                ("step", _) => stage.steps.push(Step { name: value, ..Step::default() }),
                ("limit", None) => stage.limit_seconds = number(&value)?,
                ("grace", None) => stage.grace_seconds = number(&value)?,
                ("engine", None) => stage.engines.push(value),
                ("env", None) => stage.env.push(pair(&value)?),
                (word, Some(step)) => step.read(word, value)?,
                (word, None) => return Err(format!("`{word}` before the first step")),
            }
        }
        Ok(stage)
    }
}

impl Step {
    fn write(&self, out: &mut Writer) {
        let Self { name, args, cwd, env, output, ok, announce, hook } = self;
        out.line("step", name);
        for arg in args {
            out.line("arg", arg);
        }
        out.line("cwd", cwd);
        out.pairs("env", env);
        match output {
            Output::Log => {}
            Output::File(path) => out.line("stdout", path),
            Output::Captured(path) => out.line("capture", path),
        }
        for code in ok {
            out.line("ok", &code.to_string());
        }
        if let Some(Announce { title, version }) = announce {
            out.line("announce", &format!("{title}={}", version.as_deref().unwrap_or_default()));
        }
        if let Some(Hook { limit_seconds, env_file, after }) = hook {
            out.line("hook", &limit_seconds.to_string());
            out.line("env_file", env_file);
            if let Some((step, variable)) = after {
                out.line("after", &format!("{step}={variable}"));
            }
        }
    }

    fn read(&mut self, word: &str, value: String) -> Result<(), String> {
        match word {
            "arg" => self.args.push(value),
            "cwd" => self.cwd = value,
            "env" => self.env.push(pair(&value)?),
            "stdout" => self.output = Output::File(value),
            "capture" => self.output = Output::Captured(value),
            "ok" => self.ok.push(number(&value)?),
            "announce" => {
                let (title, version) = pair(&value)?;
                self.announce = Some(Announce { title, version: Some(version).filter(|v| !v.is_empty()) });
            }
            "hook" => self.hook = Some(Hook { limit_seconds: number(&value)?, ..Hook::default() }),
            "env_file" | "after" => {
                let Some(hook) = &mut self.hook else { return Err(format!("`{word}` of a step that is no hook")) };
                match word {
                    "after" => hook.after = Some(pair(&value)?),
                    _ => hook.env_file = value,
                }
            }
            other => return Err(format!("`{other}` is no property of a step")),
        }
        Ok(())
    }
}

impl Report {
    /// As text for [`Self::parse`].
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut out = Writer::new();
        let name = OUTCOMES.iter().find(|(outcome, _)| *outcome == self.outcome).map_or("", |(_, name)| name);
        out.line("outcome", name);
        out.line("step", &self.step);
        for (step, code) in &self.exits {
            out.line("exit", &format!("{step}={code}"));
        }
        for Time { step, start_ms, end_ms } in &self.times {
            out.line("time", &format!("{step}={start_ms} {end_ms}"));
        }
        if let Some(message) = &self.message {
            out.line("message", message);
        }
        out.0
    }

    /// # Errors
    /// A sentence about what is not understood.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (mut outcome, mut step, mut exits, mut message) = (None, String::new(), Vec::new(), None);
        let mut times = Vec::new();
        for (word, value) in lines(text)? {
            match word {
                "outcome" => outcome = OUTCOMES.iter().find(|(_, name)| *name == value).map(|(outcome, _)| *outcome),
                "step" => step = value,
                "exit" => {
                    let (name, code) = pair(&value)?;
                    exits.push((name, number(&code)?));
                }
                "time" => {
                    let (step, time) = pair(&value)?;
                    let (start, end) = time.split_once(' ').ok_or_else(|| format!("`{time}` has no end"))?;
                    times.push(Time { step, start_ms: number(start)?, end_ms: number(end)? });
                }
                "message" => message = Some(value),
                other => return Err(format!("`{other}` is no property of a result")),
            }
        }
        Ok(Self { outcome: outcome.ok_or("no outcome")?, step, exits, times, message })
    }
}

impl Mask {
    /// The line that is added to [`MASKS`].
    #[must_use]
    pub fn to_line(&self) -> String {
        let mut out = Writer::default();
        out.line("mask", &format!("{}={}", self.at, self.value));
        out.0
    }

    /// All lines that are whole: the last one may just be being written.
    ///
    /// # Errors
    /// A sentence about what is not understood, without any value.
    pub fn parse_all(text: &str) -> Result<Vec<Self>, String> {
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        records(whole.split('\n'))
            .zip(1..)
            .map(|((word, value), line)| match value.split_once('=') {
                Some((at, value)) if word == "mask" => {
                    let at = at.parse().map_err(|_| format!("line {line} of the masks has no place"))?;
                    Ok(Self { at, value: value.to_owned() })
                }
                _ => Err(format!("line {line} of the masks is no mask")),
            })
            .collect()
    }
}
