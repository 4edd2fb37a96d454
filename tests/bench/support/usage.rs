//! What a process has taken of the machine so far: from `/proc`.

use std::fs;

/// Kernel ticks in a second, as every Linux shows them to programs.
const TICKS: f64 = 100.0;

/// CPU seconds of a process, in the program and in the kernel.
pub fn cpu(id: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    // After the name in parentheses, which may hold anything, utime is the 12th and stime the 13th.
    let after = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let ticks = |at: usize| after.split(' ').nth(at).and_then(|text| text.parse::<f64>().ok()).unwrap_or(f64::NAN);
    (ticks(11) + ticks(12)) / TICKS
}

/// Memory of a process, in MiB.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    pub resident: f64,
    /// Pages that several processes map counted by parts.
    pub proportional: f64,
    /// Not backed by the program's file.
    pub anonymous: f64,
}

impl Memory {
    pub fn of(id: u32) -> Self {
        let rollup = fs::read_to_string(format!("/proc/{id}/smaps_rollup")).unwrap_or_default();
        let mebibytes = |name: &str| {
            let line = rollup
                .lines()
                .find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
            line.unwrap_or(f64::NAN) / 1024.0
        };
        Self { resident: mebibytes("Rss:"), proportional: mebibytes("Pss:"), anonymous: mebibytes("Anonymous:") }
    }
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { resident, proportional, anonymous } = self;
        write!(f, "RSS {resident:.1} MiB, PSS {proportional:.1}, of it not the program's file {anonymous:.1}")
    }
}
