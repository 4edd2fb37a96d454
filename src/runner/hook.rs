//! What hooks have beyond other steps: their output passes through here, so that a secret that it declares is noted
//! before anything that comes after it is in the log; and they add to the environment.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, PipeReader, PipeWriter, Read, Write},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    time::Duration,
};

use super::{
    env_file::{self, Addition},
    format::{MASKS, Mask},
    masks::{Lines, Piece},
    stage::say,
    sys,
};

/// Shorter secrets are not hidden: they would be found all over the log.
const SHORTEST_MASK: usize = 4;

/// Secrets that the hooks of one stage may declare: each costs the agent memory and time for every byte of the log.
const MOST_MASKS: usize = 200;

/// Bytes of all of them together.
const MOST_MASK_BYTES: usize = 256 << 10;

/// Longest file with additions to the environment.
const LONGEST_ENV_FILE: u64 = 1 << 20;

/// Bytes that are taken from one hook at a time: more than a pipe can hold, so that nothing that a hook wrote before its
/// end stays behind, though something that it left running goes on writing.
const MOST_AT_ONCE: usize = 2 << 20;

/// The outputs of hooks that run, and of what they left running.
pub struct Outputs<'a> {
    log: &'a File,
    pipes: Vec<(PipeReader, Lines)>,
    masks: usize,
    mask_bytes: usize,
    /// Why nothing of hooks may be written any more.
    trouble: Option<String>,
    signals: File,
}

impl<'a> Outputs<'a> {
    pub fn new(log: &'a File) -> Result<Self, String> {
        let signals = sys::signal_file().map_err(|error| format!("signals cannot be waited for: {error}"))?;
        Ok(Self { log, pipes: Vec::new(), masks: 0, mask_bytes: 0, trouble: None, signals })
    }

    /// For both streams of a hook that is about to start.
    pub fn open(&mut self) -> io::Result<PipeWriter> {
        let (reader, writer) = io::pipe()?;
        self.pipes.push((reader, Lines::default()));
        Ok(writer)
    }

    /// Sleeps until there is output, or a signal to be taken, or `longest` is over.
    pub fn wait(&self, longest: Duration) {
        let files: Vec<i32> =
            self.pipes.iter().map(|(pipe, _)| pipe.as_raw_fd()).chain([self.signals.as_raw_fd()]).collect();
        if sys::wait_readable(&files, Some(longest)).is_err() {
            std::thread::sleep(longest);
        }
    }

    /// Writes what there is to the log.
    pub fn pump(&mut self) {
        for (mut pipe, mut lines) in std::mem::take(&mut self.pipes) {
            if self.take(&mut pipe, &mut lines) {
                self.pipes.push((pipe, lines));
            }
        }
    }

    /// `false`: the output has ended.
    fn take(&mut self, pipe: &mut PipeReader, lines: &mut Lines) -> bool {
        let mut buffer = [0; 16 << 10];
        let mut taken = 0;
        while taken < MOST_AT_ONCE && sys::wait_readable(&[pipe.as_raw_fd()], Some(Duration::ZERO)).unwrap_or(false) {
            let mut pieces = Vec::new();
            match pipe.read(&mut buffer) {
                Ok(length) if length > 0 => lines.push(&buffer[..length], &mut pieces),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                _ => {
                    lines.finish(&mut pieces);
                    self.write(pieces);
                    return false;
                }
            }
            taken += buffer.len();
            self.write(pieces);
        }
        true
    }

    fn write(&mut self, pieces: Vec<Piece>) {
        for piece in pieces {
            if self.trouble.is_some() {
                return;
            }
            let done = match piece {
                Piece::Text(text) => {
                    let mut log = self.log;
                    // A log that cannot be written must not stop the stage.
                    let _ = log.write_all(&text);
                    Ok(())
                }
                Piece::Mask(value) => match String::from_utf8(value) {
                    Ok(value) => self.mask(&value),
                    Err(_) => Err("a secret that it declares is not text in UTF-8".to_owned()),
                },
                Piece::Endless => Err("a secret that it declares is too long".to_owned()),
            };
            if let Err(message) = done {
                // What comes now might show what could not be hidden.
                self.trouble = Some(message);
            }
        }
    }

    /// Has a secret hidden in all that is written to the log from now on.
    fn mask(&mut self, value: &str) -> Result<(), String> {
        if value.is_empty() {
            return Ok(());
        }
        if value.len() < SHORTEST_MASK {
            say(self.log, &format!("A secret of fewer than {SHORTEST_MASK} bytes cannot be hidden."));
            return Ok(());
        }
        self.masks += 1;
        self.mask_bytes += value.len();
        if self.masks > MOST_MASKS || self.mask_bytes > MOST_MASK_BYTES {
            return Err(format!("more than {MOST_MASKS} secrets, or {MOST_MASK_BYTES} bytes of them, are declared"));
        }
        let note = || {
            let at = self.log.metadata()?.len();
            let line = Mask { at, value: value.to_owned() }.to_line();
            OpenOptions::new().append(true).create(true).open(MASKS)?.write_all(line.as_bytes())
        };
        note().map_err(|error| format!("a secret that it declares cannot be noted: {error}"))
    }

    /// Why nothing of hooks may be written any more, for the hook that has ended.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.clone()
    }

    /// What a hook wants added to the environment; secrets among it are hidden from now on.
    pub fn take_additions(&mut self, path: &str) -> Result<Vec<(String, String)>, String> {
        let text = read_env_file(path).map_err(|error| format!("its file of variables cannot be read: {error}"))?;
        // Nothing of it is for others than the steps that get it.
        let _ = fs::remove_file(path);
        let additions =
            env_file::parse(&text).map_err(|error| format!("its file of variables cannot be used: {error}"))?;
        for Addition { value, .. } in additions.iter().filter(|addition| addition.masked) {
            self.mask(value)?;
        }
        Ok(additions.into_iter().map(|Addition { name, value, .. }| (name, value)).collect())
    }
}

/// Makes the file that a hook may write to: whatever was there is gone.
pub fn make_env_file(path: &str) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map(drop)
}

fn read_env_file(path: &str) -> io::Result<Vec<u8>> {
    // Without waiting: it may have been replaced by a pipe.
    let file = match OpenOptions::new().read(true).custom_flags(sys::O_NONBLOCK).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file?,
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a regular file"));
    }
    let mut text = Vec::new();
    file.take(LONGEST_ENV_FILE + 1).read_to_end(&mut text)?;
    match text.len() as u64 > LONGEST_ENV_FILE {
        true => Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {LONGEST_ENV_FILE} bytes"))),
        false => Ok(text),
    }
}
