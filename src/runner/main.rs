//! The runner: executes one stage inside the run container, in any image. It knows only the job directory, which is
//! its argument: reads `steps`, runs them with their output in `log`, heeds `cancel`, writes `result`.
//!
//! `runner wait VOLUME` stands ready until a job directory is handed over ([`wait`]), in a container that was started
//! before its job was known; `runner wait LINE JOB` does so where the two lie apart.
//!
//! Compiled by `build.rs` as a static program of its own: the standard library and nothing else, no name service, no
//! threads. As process id 1 it reaps whatever is left to it, and nothing that a stage started outlives it.

mod control;
mod env_file;
mod format;
mod hook;
mod masks;
mod memory;
mod stage;
mod sys;
mod volume;
mod wait;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use control::Outside;
use format::{Outcome, Report, Stage};

/// Exit code when no result could be written: the agent then knows no more than that.
const NO_RESULT: u8 = 70;

/// Room for the result, taken at the start so that a disk full at the end cannot swallow it.
const RESERVED: usize = 8192;

fn main() -> ExitCode {
    sys::hold_signals();
    sys::adopt_orphans();
    let mut args = std::env::args_os().skip(1);
    let job = match (args.next(), args.next(), args.next()) {
        (Some(word), Some(line), Some(job)) if word == "wait" => {
            let line = wait::stand_by(Path::new(&line), Path::new(&job));
            line.map(|line| line.map(|line| (PathBuf::from(job), Outside::default(), Some(line))))
        }
        (Some(word), Some(place), None) if word == "wait" => {
            let agent = wait::wait(Path::new(&place));
            let dir = Path::new(&place).join(volume::JOB);
            agent.map(|agent| agent.map(|agent| (dir, Outside { agent: Some(agent) }, None)))
        }
        (Some(dir), ..) => Ok(Some((PathBuf::from(dir), Outside::default(), None))),
        (None, ..) => Err("the runner needs the job directory as its first argument".to_owned()),
    };
    // The line is held to the end: its agent sees by it that the runner lives.
    let (dir, mut outside, _line) = match job {
        Ok(Some(job)) => job,
        Ok(None) => return ExitCode::SUCCESS,
        Err(message) => {
            complain(&message);
            return ExitCode::from(NO_RESULT);
        }
    };
    let mut reserved = match std::env::set_current_dir(&dir).and_then(|()| reserve()) {
        Ok(file) => file,
        Err(error) => {
            complain(&format!("the job directory {} cannot be used: {error}", dir.display()));
            return ExitCode::from(NO_RESULT);
        }
    };
    let report = run(&mut outside).unwrap_or_else(|message| Report {
        outcome: Outcome::RunnerFailed,
        step: String::new(),
        exits: Vec::new(),
        times: Vec::new(),
        message: Some(message),
    });
    control::kill_all_others();
    match write(&mut reserved, &report) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("the result could not be written: {error}"));
            ExitCode::from(NO_RESULT)
        }
    }
}

fn run(outside: &mut Outside) -> Result<Report, String> {
    let mut text = String::new();
    File::open("steps")
        .and_then(|mut file| file.read_to_string(&mut text))
        .map_err(|error| format!("the list of steps cannot be read: {error}"))?;
    let stage = Stage::parse(&text).map_err(|error| format!("the list of steps is damaged: {error}"))?;
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .open("log")
        .map_err(|error| format!("the log cannot be opened: {error}"))?;
    Ok(stage::run(&stage, &log, outside))
}

fn reserve() -> io::Result<File> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open("result.tmp")?;
    file.write_all(&[b' '; RESERVED])?;
    file.sync_all()?;
    Ok(file)
}

/// The name `result` appears only when its content is whole and on the disk.
fn write(file: &mut File, report: &Report) -> io::Result<()> {
    let mut report = report.clone();
    if let Some(message) = &mut report.message {
        message.truncate(message.floor_char_boundary(RESERVED / 4));
    }
    let text = report.to_text();
    file.seek(SeekFrom::Start(0))?;
    file.write_all(text.as_bytes())?;
    file.set_len(text.len() as u64)?;
    file.sync_all()?;
    fs::rename("result.tmp", "result")?;
    File::open(".")?.sync_all()
}

/// To whoever started the runner by hand; an agent does not listen.
fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}
