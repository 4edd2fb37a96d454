//! The program's commands for a host, with nothing of this machine's environment.

use std::{
    path::Path,
    process::{Output, Stdio},
};

use serde_json::Value;
use tokio::{io::AsyncWriteExt, process::Command};

pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_terrapool"));
    command.env_clear().env("PATH", "/usr/bin:/bin").kill_on_drop(true);
    command
}

/// What a command came to.
pub struct Told {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Told {
    fn of(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}{}", self.stdout, self.stderr);
        self
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}{}", self.stdout, self.stderr))
    }
}

/// `terrapool agent COMMAND --dir DIR ARGUMENTS`
pub async fn agent(command: &str, dir: &Path, arguments: &[&str], environment: &[(&str, &str)], input: &str) -> Told {
    let mut program = program();
    program.args(["agent", command, "--dir"]).arg(dir).args(arguments).envs(environment.iter().copied());
    program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = program.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // Err: it did not read its input, which is its right.
    drop(stdin.write_all(input.as_bytes()).await);
    drop(stdin);
    Told::of(child.wait_with_output().await.unwrap())
}
