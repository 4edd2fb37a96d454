//! How near the stage is to the memory limit of its container, as the container's own cgroup tells. No limit, or none
//! that can be seen: nothing is guarded.
//!
//! The kernel takes back the cache of files before it kills, so that cache is not counted. Pages of programs that run are
//! cache as well, but without them nothing goes on, and the engine would not come to its end: those in use are counted.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// A limit from here on is none: cgroup v1 says "no limit" by a number near 2^63.
const UNLIMITED: u64 = 1 << 60;

/// What is left for the engine to save its state in, at least and at most.
const LEAST_RESERVE: u64 = 8 << 20;
const MOST_RESERVE: u64 = 512 << 20;

/// What is read of a cgroup, by the file that holds it.
struct Files {
    limit: &'static str,
    usage: &'static str,
    stat: &'static str,
    /// Rows of `stat`: memory that the kernel takes back before it kills.
    reclaimable: &'static [&'static str],
    /// Rows of `stat`: cache that was used of late, and what of files is mapped into programs.
    active: &'static str,
    mapped: &'static str,
    swap_limit: &'static str,
    swap_usage: &'static str,
    /// Swap and memory are counted together.
    swap_counts_memory: bool,
    /// Has a row `oom_kill`.
    kills: &'static str,
}

const V1: Files = Files {
    limit: "memory/memory.limit_in_bytes",
    usage: "memory/memory.usage_in_bytes",
    stat: "memory/memory.stat",
    reclaimable: &["total_inactive_file", "total_active_file"],
    active: "total_active_file",
    mapped: "total_mapped_file",
    swap_limit: "memory/memory.memsw.limit_in_bytes",
    swap_usage: "memory/memory.memsw.usage_in_bytes",
    swap_counts_memory: true,
    kills: "memory/memory.oom_control",
};

const V2: Files = Files {
    limit: "memory.max",
    usage: "memory.current",
    stat: "memory.stat",
    reclaimable: &["inactive_file", "active_file", "slab_reclaimable"],
    active: "active_file",
    mapped: "file_mapped",
    swap_limit: "memory.swap.max",
    swap_usage: "memory.swap.current",
    swap_counts_memory: false,
    kills: "memory.events",
};

/// Watches over the memory of a cgroup.
pub(super) struct Guard {
    place: PathBuf,
    files: &'static Files,
}

/// Memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shortage {
    /// What cannot be taken back, or not without harm.
    pub(super) taken: u64,
    pub(super) limit: u64,
}

impl Guard {
    /// `None`: there is no memory cgroup to be seen at `place`, or it is one without a limit, as a host's own.
    pub(super) fn open(place: &Path) -> Option<Self> {
        let files = [&V2, &V1].into_iter().find(|files| place.join(files.limit).is_file())?;
        Some(Self { place: place.to_owned(), files })
    }

    /// Says when memory is about to run out. Cheap, unless it nearly does: two short files are read.
    pub(super) fn look(&self) -> Option<Shortage> {
        let limit = number(&self.read(self.files.limit).ok()?)?;
        let usage = number(&self.read(self.files.usage).ok()?)?;
        if limit >= UNLIMITED || !is_short(limit, usage) {
            return None;
        }
        let stat = self.read(self.files.stat).ok()?;
        let value = |name: &&str| row(&stat, name).unwrap_or(0);
        let reclaimable: u64 = self.files.reclaimable.iter().map(value).sum();
        let in_use = value(&self.files.active).min(value(&self.files.mapped));
        let taken = usage.saturating_sub(reclaimable.saturating_sub(in_use));
        (is_short(limit, taken) && !self.may_swap()).then_some(Shortage { taken, limit })
    }

    /// Processes of the container that the kernel has killed for memory.
    pub(super) fn kills(&self) -> u64 {
        self.read(self.files.kills).ok().and_then(|text| row(&text, "oom_kill")).unwrap_or(0)
    }

    /// There is room outside of memory: a slow stage is better than a lost one. A container of Docker or Kubernetes
    /// usually may not swap.
    fn may_swap(&self) -> bool {
        // No such file: nobody accounts for swap here, so it is not limited.
        let value = |name: &str, or: u64| self.read(name).ok().and_then(|text| number(&text)).unwrap_or(or);
        let limit = value(self.files.swap_limit, u64::MAX);
        let usage = value(self.files.swap_usage, 0);
        let room = match self.files.swap_counts_memory {
            true => limit
                .saturating_sub(value(self.files.limit, 0))
                .saturating_sub(usage.saturating_sub(value(self.files.usage, 0))),
            false => limit.saturating_sub(usage),
        };
        let free = fs::read_to_string("/proc/meminfo").ok().and_then(|text| row(&text, "SwapFree:"));
        room.min(free.unwrap_or(0) << 10) >= LEAST_RESERVE
    }

    fn read(&self, name: &str) -> io::Result<String> {
        fs::read_to_string(self.place.join(name))
    }
}

/// Whether less than the reserve is left: 5 % of the limit; more where that is too little for an engine to end in, but
/// never more than an eighth, and less where it would be a waste.
fn is_short(limit: u64, taken: u64) -> bool {
    let least = LEAST_RESERVE.min(limit / 8);
    let reserve = (limit / 20).clamp(least, MOST_RESERVE);
    taken >= limit - reserve
}

/// `max` is none.
fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The number after a name, each on a line of its own.
fn row(text: &str, name: &str) -> Option<u64> {
    let mut rows = text.lines().map(str::split_whitespace);
    rows.find_map(|mut row| if row.next() == Some(name) { row.next()?.parse().ok() } else { None })
}

impl Shortage {
    /// What happened, and the mend.
    pub(super) fn describe(&self) -> String {
        let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
        format!("its programs took {} of the {} of memory that it may have. {MEND}", mib(self.taken), mib(self.limit))
    }
}

/// How a stage gets by with its memory.
pub(super) const MEND: &str = "Raise the limit (`runs.resources` of the pool, or --run-memory of the agent), or let the engine do \
                        less at a time (`-parallelism` in TF_CLI_ARGS_apply or TF_CLI_ARGS_plan)";

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A cgroup of these files.
    fn cgroup(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn v2(limit: &str, usage: u64, stat: &str) -> tempfile::TempDir {
        let usage = format!("{usage}\n");
        let files = [
            ("memory.max", limit),
            ("memory.current", &usage),
            ("memory.stat", stat),
            ("memory.swap.max", "0\n"),
            ("memory.events", "low 0\nhigh 0\nmax 41\noom 3\noom_kill 2\noom_group_kill 0\n"),
        ];
        cgroup(&files)
    }

    #[test]
    fn the_reserve_is_a_twentieth_and_fits_small_and_huge_limits() {
        for (limit, first) in [
            (16 * MIB, 14 * MIB),
            (64 * MIB, 56 * MIB),
            (128 * MIB, 120 * MIB),
            (1000 * MIB, 950 * MIB),
            (2000 * MIB, 1900 * MIB),
            (100_000 * MIB, (100_000 - 512) * MIB),
        ] {
            assert!(is_short(limit, first) && is_short(limit, limit) && is_short(limit, limit + 1), "{limit}");
            assert!(!is_short(limit, first - 1) && !is_short(limit, 0), "{limit}");
        }
        // No limit makes it panic.
        for limit in [0, 1, 7, 4096, u64::MAX] {
            assert!(is_short(limit, limit), "{limit}");
        }
    }

    #[test]
    fn what_the_kernel_can_take_back_is_not_counted() {
        let limit = format!("{}\n", 128 * MIB);
        let stat = |inactive: u64, active: u64, slab: u64| {
            format!(
                "anon 1\nfile 99\ninactive_anon 5\nactive_anon 6\ninactive_file {inactive}\nactive_file {active}\nslab_reclaimable {slab}\n"
            )
        };
        let mapped = |bytes: u64| format!("file_mapped {bytes}\n");
        for (usage, stat, taken) in [
            (100 * MIB, stat(0, 0, 0), None),
            (127 * MIB, stat(100 * MIB, 0, 0), None),
            (127 * MIB, stat(0, 100 * MIB, 0), None),
            (127 * MIB, stat(0, 0, 100 * MIB), None),
            (128 * MIB, stat(4 * MIB, 2 * MIB, 2 * MIB), Some(120 * MIB)),
            (125 * MIB, stat(0, 0, 0), Some(125 * MIB)),
            // Of what is mapped, only what is in use counts.
            (127 * MIB, stat(100 * MIB, 10 * MIB, 0) + &mapped(90 * MIB), None),
            (127 * MIB, stat(10 * MIB, 100 * MIB, 0) + &mapped(20 * MIB), None),
            (127 * MIB, stat(4 * MIB, 100 * MIB, 0) + &mapped(100 * MIB), Some(123 * MIB)),
            // The rows may be older than the sum.
            (125 * MIB, stat(200 * MIB, 0, 0), None),
            // A kernel without such rows counts everything.
            (125 * MIB, String::new(), Some(125 * MIB)),
        ] {
            let dir = v2(&limit, usage, &stat);
            let found = Guard::open(dir.path()).unwrap().look();
            assert_eq!(found.map(|short| (short.taken, short.limit)), taken.map(|taken| (taken, 128 * MIB)), "{stat}");
        }
    }

    #[test]
    fn cgroup_v1_is_read_as_docker_shows_it() {
        let (limit, usage) = ((64 * MIB).to_string(), (63 * MIB).to_string());
        let stat = format!("inactive_file 7\ntotal_inactive_file {}\ntotal_active_file {}\n", 2 * MIB, 3 * MIB);
        let mut files = vec![
            ("memory/memory.limit_in_bytes", limit.as_str()),
            ("memory/memory.usage_in_bytes", &usage),
            ("memory/memory.stat", &stat),
            ("memory/memory.memsw.limit_in_bytes", &limit),
            ("memory/memory.memsw.usage_in_bytes", &usage),
            ("memory/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"),
        ];
        let dir = cgroup(&files);
        let guard = Guard::open(dir.path()).unwrap();
        assert_eq!(guard.look(), Some(Shortage { taken: 58 * MIB, limit: 64 * MIB }));
        assert_eq!(guard.kills(), 5);
        files[0].1 = "9223372036854771712\n";
        files[1].1 = "9223372036854771711\n";
        assert_eq!(Guard::open(cgroup(&files).path()).unwrap().look(), None);
    }

    #[test]
    fn without_a_limit_nothing_is_guarded() {
        assert!(Guard::open(tempfile::tempdir().unwrap().path()).is_none());
        let dir = v2("max\n", 1 << 40, "");
        let guard = Guard::open(dir.path()).unwrap();
        assert_eq!(guard.look(), None);
        assert_eq!(guard.kills(), 2);
        // A host's own cgroup of version 2 has neither limit nor usage.
        assert!(Guard::open(cgroup(&[("cgroup.procs", ""), ("memory.stat", "")]).path()).is_none());
        for broken in ["", "many\n", "-1\n"] {
            assert_eq!(Guard::open(v2(broken, 100, "").path()).unwrap().look(), None, "{broken}");
        }
    }

    #[test]
    fn a_shortage_says_how_much_and_the_mend() {
        let text = Shortage { taken: 121 * MIB + MIB / 2, limit: 128 * MIB }.describe();
        assert!(text.starts_with("its programs took 121.5 MiB of the 128.0 MiB"), "{text}");
        assert!(text.contains("`runs.resources`") && text.contains("--run-memory") && text.contains("-parallelism"));
    }
}
