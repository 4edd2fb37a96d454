//! The real `terraform` and `tofu`, run as a user runs them: a working directory, a configuration file of the CLI, and
//! nothing else of this machine's environment.

use std::{
    env, fs,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStdin, Command},
    sync::watch,
    task::JoinHandle,
};

/// No command of these tests takes longer, even on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(120);

pub const TOFU_VERSION: &str = "1.12.6";
pub const TERRAFORM_VERSION: &str = "1.11.4";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Terraform,
    Tofu,
}

impl Engine {
    pub fn name(self) -> &'static str {
        match self {
            Self::Terraform => "terraform",
            Self::Tofu => "tofu",
        }
    }

    /// The program: from the `PATH`, else as `tests/run` built it. What is missing is named.
    pub fn program(self) -> PathBuf {
        let on_path = env::var_os("PATH").unwrap_or_default();
        let version = if self == Self::Tofu { TOFU_VERSION } else { TERRAFORM_VERSION };
        let built = cache().join(self.name()).join(version);
        let found =
            env::split_paths(&on_path).chain([built]).map(|dir| dir.join(self.name())).find(|path| path.is_file());
        found.unwrap_or_else(|| panic!("{} is missing: put it on the PATH, or let tests/run build it", self.name()))
    }
}

/// Where `tests/run` keeps what it built for tests.
pub fn cache() -> PathBuf {
    env::var_os("XDG_CACHE_HOME").map_or_else(|| home().join(".cache"), PathBuf::from).join("terrapool-test")
}

fn home() -> PathBuf {
    env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from)
}

/// How the CLI reaches a control plane.
#[derive(Debug, Clone)]
pub struct Access {
    /// `localhost:PORT`, as it stands in the `cloud` block.
    pub host: String,
    pub token: String,
    /// The CA to trust with HTTPS; absent: plain HTTP, through a `host` block.
    pub ca: Option<PathBuf>,
}

impl Access {
    /// The CLI's configuration file.
    fn config(&self) -> String {
        let Self { host, token, ca } = self;
        let credentials = format!("credentials \"{host}\" {{\n  token = \"{token}\"\n}}\n");
        if ca.is_some() {
            return credentials;
        }
        // As service discovery answers; `backend "remote"` asks for the later names.
        let service = |name| format!("    \"{name}\" = \"http://{host}/api/v2/\"\n");
        let services = format!("services = {{\n{}  }}", ["tfe.v2", "tfe.v2.1", "tfe.v2.2"].map(service).concat());
        format!("{credentials}host \"{host}\" {{\n  {services}\n}}\n")
    }
}

/// Where the CLI's input comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// Nothing: `/dev/null`.
    None,
    /// A pipe, as in `echo yes | terraform apply`.
    Pipe,
    /// A pseudo-terminal (of util-linux `script`), as a person has it.
    Terminal,
}

/// A working directory and the program that is run there.
pub struct Cli {
    engine: Engine,
    ca: Option<PathBuf>,
    /// `work`, `home` and `cli.tfrc`.
    dir: TempDir,
}

impl Cli {
    pub fn new(engine: Engine, access: &Access) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["work", "home"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("cli.tfrc"), access.config()).unwrap();
        Self { engine, ca: access.ca.clone(), dir }
    }

    /// The user's working directory.
    pub fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    /// Writes a file of the configuration.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.work().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Runs to the end without input.
    pub async fn run(&self, arguments: &[&str]) -> Output {
        self.start(arguments, Input::None).end().await
    }

    /// Runs to the end without input, and it must succeed.
    #[track_caller]
    pub fn succeed(&self, arguments: &[&str]) -> impl Future<Output = Output> {
        let caller = std::panic::Location::caller();
        let running = self.start(arguments, Input::None);
        async move {
            let output = running.end().await;
            assert_eq!(output.code(), 0, "{caller}: {output:?}");
            output
        }
    }

    pub fn start(&self, arguments: &[&str], input: Input) -> Running {
        let program = self.engine.program();
        let mut command = if input == Input::Terminal {
            let words: Vec<_> = [program.to_str().unwrap()].iter().chain(arguments).map(|word| quote(word)).collect();
            let mut command = Command::new("script");
            // Without `exec` Ctrl-C would end the shell between the two, and its status would be taken for the program's.
            let line = format!("exec {}", words.join(" "));
            command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
            command
        } else {
            let mut command = Command::new(&program);
            command.args(arguments);
            command
        };
        command
            .env_clear()
            .env("TERM", "xterm")
            .env("SHELL", "/bin/sh")
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", self.dir.path().join("home"))
            .env("TF_CLI_CONFIG_FILE", self.dir.path().join("cli.tfrc"))
            // Asks the maker's site for newer versions otherwise, at every init.
            .env("CHECKPOINT_DISABLE", "1")
            .current_dir(self.work())
            .stdin(if input == Input::None { Stdio::null() } else { Stdio::piped() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        if let Some(ca) = &self.ca {
            command.env("SSL_CERT_FILE", ca);
        }
        let title = format!("{} {}", self.engine.name(), arguments.join(" "));
        Running::new(title, command.spawn().unwrap(), input)
    }
}

fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// What a program has said until now.
#[derive(Default, Clone)]
struct Said {
    stdout: String,
    /// Both streams, in the order of their arrival.
    all: String,
}

/// A program that runs. It is killed with all of its group when dropped.
pub struct Running {
    title: String,
    child: Child,
    group: Pid,
    input: Input,
    stdin: Option<ChildStdin>,
    said: Arc<Mutex<Said>>,
    changed: watch::Receiver<()>,
    readers: Vec<JoinHandle<()>>,
    started: Instant,
}

impl Running {
    /// Starts a program of our own beside the CLIs; the caller has set its environment.
    pub fn program(title: &str, mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0).kill_on_drop(true);
        Self::new(title.to_owned(), command.spawn().unwrap(), Input::None)
    }

    fn new(title: String, mut child: Child, input: Input) -> Self {
        let said = Arc::<Mutex<Said>>::default();
        let (sender, changed) = watch::channel(());
        let stdout = tokio::spawn(read(child.stdout.take().unwrap(), said.clone(), true, sender.clone()));
        let stderr = tokio::spawn(read(child.stderr.take().unwrap(), said.clone(), false, sender));
        let group = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
        let stdin = child.stdin.take();
        Self {
            title,
            child,
            group,
            input,
            stdin,
            said,
            changed,
            readers: vec![stdout, stderr],
            started: Instant::now(),
        }
    }

    /// Everything said until now, without colours.
    pub fn text(&self) -> String {
        plain(&self.said.lock().unwrap().all)
    }

    /// Waits until `text` has been said.
    pub async fn until(&mut self, text: &str) {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        loop {
            self.changed.borrow_and_update();
            if self.text().contains(text) {
                return;
            }
            match tokio::time::timeout_at(deadline, self.changed.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) if self.text().contains(text) => return,
                Ok(Err(_)) => panic!("{} ended without saying `{text}`:\n{}", self.title, self.text()),
                Err(_) => panic!("{} did not say `{text}` in time:\n{}", self.title, self.text()),
            }
        }
    }

    /// The program itself, not its group, gets a signal.
    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.group, signal).unwrap();
    }

    /// It ends at once, without a chance to do anything.
    pub async fn kill(mut self) {
        self.signal(Signal::KILL);
        self.child.wait().await.unwrap();
    }

    /// Types a line.
    pub async fn say(&mut self, line: &str) {
        self.type_bytes(format!("{line}\n").as_bytes()).await;
    }

    /// Ctrl-C.
    pub async fn interrupt(&mut self) {
        if self.input == Input::Terminal {
            self.type_bytes(b"\x03").await;
        } else {
            kill_process_group(self.group, Signal::INT).unwrap();
        }
    }

    async fn type_bytes(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().unwrap_or_else(|| panic!("{} was started without input", self.title));
        stdin.write_all(bytes).await.unwrap();
        stdin.flush().await.unwrap();
    }

    /// Waits for the end.
    pub async fn end(mut self) -> Output {
        // A pseudo-terminal ends with its input, so that one stays open until the program has ended.
        if self.input != Input::Terminal {
            drop(self.stdin.take());
        }
        let Ok(status) = tokio::time::timeout_at((self.started + DEADLINE).into(), self.child.wait()).await else {
            panic!("{} did not end in time:\n{}", self.title, self.text());
        };
        let status = status.unwrap();
        for reader in self.readers.drain(..) {
            // What the program left running may hold the pipe: that is not its output any more.
            drop(tokio::time::timeout(Duration::from_secs(5), reader).await);
        }
        let said = self.said.lock().unwrap().clone();
        Output {
            title: self.title.clone(),
            status,
            stdout: said.stdout,
            all: plain(&said.all),
            took: self.started.elapsed(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let text = self.text();
            let tail: Vec<&str> = text.lines().rev().take(40).collect();
            eprintln!("--- {} said last:", self.title);
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
        if self.child.id().is_some() {
            // It may have ended in this moment.
            let _gone = kill_process_group(self.group, Signal::KILL);
        }
    }
}

async fn read(mut stream: impl AsyncRead + Unpin, said: Arc<Mutex<Said>>, stdout: bool, changed: watch::Sender<()>) {
    let mut pending = Vec::new();
    while stream.read_buf(&mut pending).await.is_ok_and(|n| n > 0) {
        // A character may arrive in pieces.
        let whole = match std::str::from_utf8(&pending) {
            Ok(text) => text.len(),
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => pending.len(),
        };
        let bytes: Vec<u8> = pending.drain(..whole).collect();
        let text = String::from_utf8_lossy(&bytes);
        let mut said = said.lock().unwrap();
        if stdout {
            said.stdout.push_str(&text);
        }
        said.all.push_str(&text);
        drop(said);
        changed.send_replace(());
    }
}

/// Without colours and carriage returns.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            // ESC [ … letter
            '\x1b' => drop(chars.find(|c| c.is_ascii_alphabetic())),
            '\r' => {}
            c => plain.push(c),
        }
    }
    plain
}

/// How a program ended.
pub struct Output {
    title: String,
    pub status: ExitStatus,
    pub stdout: String,
    /// Both streams, without colours.
    pub all: String,
    pub took: Duration,
}

impl Output {
    /// The exit code; it must have ended by itself.
    #[track_caller]
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("ended by a signal: {self:?}"))
    }

    /// It ended with this code.
    #[track_caller]
    pub fn expect(&self, code: i32) -> &Self {
        assert_eq!(self.code(), code, "{self:?}");
        self
    }

    /// It said this.
    #[track_caller]
    pub fn says(&self, text: &str) -> &Self {
        // The CLI breaks lines where the terminal ends, and draws boxes around errors.
        let flat = |text: &str| text.replace(['│', '╷', '╵'], " ").split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(flat(&self.all).contains(&flat(text)), "no `{text}` in {self:?}");
        self
    }
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` ended with {} after {:?}:\n{}", self.title, self.status, self.took, self.all)
    }
}

/// A `terraform` block that points at a workspace, for [`Cli::write`].
pub fn cloud_block(access: &Access, organization: &str, workspace: &str) -> String {
    let host = &access.host;
    format!(
        "terraform {{\n  cloud {{\n    hostname     = \"{host}\"\n    organization = \"{organization}\"\n    \
         workspaces {{\n      name = \"{workspace}\"\n    }}\n  }}\n}}\n"
    )
}
