//! The real terraform CLI in a directory of its own, with a control plane or with a local backend.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, ensure};

use super::rig::{ORGANIZATION, Rig};

pub struct Cli {
    dir: PathBuf,
    /// Absent: it lies in the rig's and goes with it.
    _own: Option<tempfile::TempDir>,
}

impl Cli {
    /// With the state on this disk.
    pub fn local() -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("bench-local-").tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let cli = Self { dir: dir.path().to_owned(), _own: Some(dir) };
        fs::write(cli.dir.join("cli.tfrc"), "")?;
        fs::create_dir(cli.dir.join("work"))?;
        Ok(cli)
    }

    /// With the workspace `name` of the control plane.
    pub fn remote(rig: &Rig, name: &str) -> anyhow::Result<Self> {
        let cli = Self { dir: rig.path().join(name), _own: None };
        fs::create_dir_all(cli.dir.join("work"))?;
        let (host, token) = (rig.host(), rig.cli_token());
        let service = |name| format!("    \"{name}\" = \"http://{host}/api/v2/\"\n");
        let services = ["tfe.v2", "tfe.v2.1", "tfe.v2.2"].map(service).concat();
        let config = format!(
            "credentials \"{host}\" {{\n  token = \"{token}\"\n}}\nhost \"{host}\" {{\n  services = {{\n{services}  }}\n}}\n"
        );
        fs::write(cli.dir.join("cli.tfrc"), config)?;
        cli.write(
            "cloud.tf",
            &format!(
                "terraform {{\n  cloud {{\n    hostname = \"{host}\"\n    organization = \"{ORGANIZATION}\"\n    \
                 workspaces {{\n      name = \"{name}\"\n    }}\n  }}\n}}\n"
            ),
        )?;
        Ok(cli)
    }

    pub fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        Ok(fs::write(self.dir.join("work").join(name), text)?)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = terraform(arguments);
        command.env("HOME", &self.dir).env("TF_CLI_CONFIG_FILE", self.dir.join("cli.tfrc"));
        command.current_dir(self.dir.join("work"));
        command
    }

    /// Runs to the end, which must be good; how long it took.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<Duration> {
        let start = Instant::now();
        let output = self.command(arguments).output()?;
        let took = start.elapsed();
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        ensure!(output.status.success(), "terraform {}: {said}", arguments.join(" "));
        Ok(took)
    }

    /// Runs to the end; each line with the time of its arrival, in seconds of the epoch.
    pub fn lines(&self, arguments: &[&str]) -> anyhow::Result<Vec<(f64, String)>> {
        let mut child = self.command(arguments).stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().context("no output")?;
        let mut lines = Vec::new();
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            lines.push((SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64(), line));
        }
        ensure!(child.wait()?.success(), "terraform {}: {lines:?}", arguments.join(" "));
        Ok(lines)
    }
}

/// The engine in a clean environment.
pub fn terraform(arguments: &[&str]) -> Command {
    let mut command = Command::new("terraform");
    command.args(arguments).env_clear().env("CHECKPOINT_DISABLE", "1").stdin(Stdio::null());
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}

/// The version of the terraform on the `PATH`.
pub fn version() -> anyhow::Result<String> {
    let output = terraform(&["version"]).output().context("terraform is needed on the PATH")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = said.lines().next().and_then(|line| line.strip_prefix("Terraform v"));
    version.map(|version| version.trim().to_owned()).with_context(|| format!("terraform says `{said}`"))
}

/// Where that terraform lies.
pub fn terraform_path() -> anyhow::Result<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join("terraform")).find(|file| file.is_file());
    let found = found.context("terraform is needed on the PATH")?.canonicalize()?;
    Ok(found.display().to_string())
}

/// The time until a program's first line, while it is let run to its end.
pub fn first_line(mut command: Command) -> anyhow::Result<Duration> {
    let start = Instant::now();
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().context("no output")?);
    stdout.read_line(&mut line)?;
    let took = start.elapsed();
    std::io::copy(&mut stdout, &mut std::io::sink())?;
    ensure!(child.wait()?.success() && line.starts_with("Terraform v"), "{command:?} said `{line}`");
    Ok(took)
}
