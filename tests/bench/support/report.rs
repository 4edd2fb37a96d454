//! Figures and how they are printed: `median [min–max] unit, n`, and the ratio to a floor of the same run.

use std::{path::Path, process::Command};

/// Values of one thing that was measured again and again.
#[derive(Debug, Clone, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    pub fn extend(&mut self, values: impl IntoIterator<Item = f64>) {
        self.0.extend(values);
    }

    /// The value below which the part `part` of all lie.
    fn quantile(&self, part: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        let at = (part * last as f64).round() as usize;
        sorted.get(at).copied().unwrap_or(f64::NAN)
    }

    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Each value less its counterpart of `other`, which was measured beside it, and less `constant`.
    pub fn less(&self, other: &Self, constant: f64) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(ours, theirs)| ours - theirs - constant).collect())
    }

    /// `median [min–max] unit, n`
    pub fn text(&self, unit: &str) -> String {
        let number = |value: f64| if value.abs() < 10.0 { format!("{value:.2}") } else { format!("{value:.0}") };
        let (low, high) = (number(self.quantile(0.0)), number(self.quantile(1.0)));
        format!("{} [{low}–{high}] {unit}, n = {}", number(self.median()), self.0.len())
    }

    /// The 99th percentile, for what people wait for.
    pub fn p99(&self) -> f64 {
        self.quantile(0.99)
    }
}

/// Heading of a measure.
pub fn heading(name: &str, about: &str) {
    println!("\n{name}: {about}");
}

pub fn row(label: &str, text: &str) {
    println!("  {label:<58} {text}");
}

pub fn samples(label: &str, samples: &Samples, unit: &str) {
    row(label, &samples.text(unit));
}

/// With the ratio to the floor.
pub fn beside(label: &str, samples: &Samples, unit: &str, floor: &Samples) {
    row(label, &format!("{}, {:.2} × the floor", samples.text(unit), samples.median() / floor.median()));
}

/// One line each on the machine and on what is measured.
pub fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory =
        memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok());
    let memory = memory.unwrap_or(0_u64) / (1024 * 1024);
    format!("machine: {cores} cores, {memory} GiB of memory, load {} at the start; commit {}", load(), commit())
}

/// How many processes want to run, on average over the last minute.
pub fn load() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').next().unwrap_or("?").to_owned()
}

fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(root()).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|changes| !changes.is_empty());
    let commit = git(&["rev-parse", "--short", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    if changed { format!("{commit} with changes") } else { commit }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
