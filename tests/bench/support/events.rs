//! What the Docker engine and the kernel say of what happens.

use std::{
    io::{BufRead, BufReader},
    mem::MaybeUninit,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use anyhow::Context;
use rustix::fs::inotify;

/// Longest wait for what must happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the Docker engine says it does, at the time when it does it.
pub struct Events {
    docker: Child,
    lines: Receiver<String>,
}

impl Events {
    /// Of the containers of one agent.
    pub fn of(instance: &str) -> anyhow::Result<Self> {
        let mut docker = Command::new("docker")
            .args(["events", "--filter", "type=container", "--format", "{{.TimeNano}} {{.Action}} {{.From}}"])
            .args(["--filter", &format!("label=terrapool.dev/agent={instance}")])
            .stdout(Stdio::piped())
            .spawn()
            .context("the docker command is needed")?;
        let stdout = BufReader::new(docker.stdout.take().context("no output")?);
        let (sender, lines) = channel();
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        // Until the engine listens: nothing tells when it does.
        std::thread::sleep(Duration::from_millis(300));
        Ok(Self { docker, lines })
    }

    /// When the next event of this kind came, in seconds of the epoch, and of which image the container is.
    pub fn next(&self, action: &str) -> anyhow::Result<(f64, String)> {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).context("no word of the Docker engine")?;
            let mut words = line.split(' ');
            let time: f64 = words.next().unwrap_or_default().parse()?;
            if words.next() == Some(action) {
                return Ok((time / 1e9, words.next().unwrap_or_default().to_owned()));
            }
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        drop(self.docker.kill());
        drop(self.docker.wait());
    }
}

/// Tells when a program is started, wherever that is: in a container, the file is the same one.
pub struct Starts(Receiver<Instant>);

impl Starts {
    /// Of the program at `path`, which nobody opens but to start it.
    pub fn of(path: &Path) -> anyhow::Result<Self> {
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC)?;
        inotify::add_watch(&watch, path, inotify::WatchFlags::OPEN)?;
        let (sender, starts) = channel();
        std::thread::spawn(move || {
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut reader = inotify::Reader::new(watch, &mut buffer);
            while reader.next().is_ok() && sender.send(Instant::now()).is_ok() {}
        });
        Ok(Self(starts))
    }

    /// Forgets what was told so far.
    pub fn forget(&self) {
        while self.0.try_recv().is_ok() {}
    }

    /// The next one, which is waited for.
    pub fn next(&self) -> anyhow::Result<Instant> {
        self.0.recv_timeout(PATIENCE).context("the program was not started")
    }
}
