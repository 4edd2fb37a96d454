//! Gives back the memory in which a process has its program's file mapped.
//!
//! A large program that mostly waits needs little of itself, but what its start went through stays mapped: with the
//! kernel's habit of mapping sixteen pages around each one that is used, that is most of the file. Given back, the pages
//! remain in the page cache as long as there is room, and a use of one costs a minor fault. They no longer count as the
//! process's own, and are the first that the kernel takes when memory is short (`madvise(2)`, `MADV_DONTNEED`; `proc(5)`,
//! `smaps`).
//!
//! A crate of its own because it cannot be done without unsafe code, which the rest does without.

use std::{fs, io, ops::Range};

use rustix::mm::{Advice, madvise};

/// Where the program's file is mapped and nothing was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramPages(Vec<Range<usize>>);

impl ProgramPages {
    /// Of this process.
    ///
    /// # Errors
    /// When `/proc` does not tell.
    pub fn find() -> io::Result<Self> {
        let program = fs::read_link("/proc/self/exe")?;
        let smaps = fs::read_to_string("/proc/self/smaps")?;
        Ok(Self(unwritten(&smaps, &program.to_string_lossy())))
    }

    /// Gives them back; they come again when they are used. A hint to the kernel: what it does not take stays.
    pub fn give_back(&self) {
        for range in &self.0 {
            let start = std::ptr::without_provenance_mut(range.start);
            // SAFETY: the range is a private mapping of a file, not writable and without a page that differs from the
            // file, so that its content is the same after it was read again; nothing here makes code or constants
            // writable later, and the kernel lets nobody write the file of a program that runs.
            #[expect(unsafe_code, reason = "what this crate is for")]
            let advised = unsafe { madvise(start, range.len(), Advice::LinuxDontNeed) };
            _ = advised;
        }
    }
}

/// Mappings of the file `program` that cannot be written and never were, of all that `smaps` tells.
fn unwritten(smaps: &str, program: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut mapping = None;
    for line in smaps.lines() {
        if let Some(kilobytes) = line.strip_prefix("Anonymous:") {
            // Where relocations were written, the pages are the process's own, though read-only by now.
            if kilobytes.trim() == "0 kB" {
                found.extend(mapping.take());
            }
            mapping = None;
        } else if let Some(range) = range(line) {
            let mut words = line.split_ascii_whitespace().skip(1);
            let is_read_only = words.next().is_some_and(|rights| matches!(rights, "r--p" | "r-xp"));
            // Whatever is in the name stands behind offset, device and inode; one that was deleted says so behind it.
            let is_the_program = line.trim_end().ends_with(&format!(" {program}"));
            mapping = (is_read_only && is_the_program).then_some(range);
        }
    }
    found
}

/// The addresses at the start of a mapping's first line.
fn range(line: &str) -> Option<Range<usize>> {
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    Some(address(start)?..address(end)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55d0c0000000-55d0c0300000 r--p 00000000 fe:00 42                         /usr/bin/terrapool
Size:               3072 kB
Anonymous:             0 kB
VmFlags: rd mr mw me sd
55d0c0300000-55d0c1000000 r-xp 00300000 fe:00 42                         /usr/bin/terrapool
Anonymous:             0 kB
55d0c1000000-55d0c1100000 r--p 01000000 fe:00 42                         /usr/bin/terrapool
Anonymous:          1024 kB
55d0c1100000-55d0c1101000 rw-p 01100000 fe:00 42                         /usr/bin/terrapool
Anonymous:             0 kB
7f0000000000-7f0000100000 r-xp 00000000 fe:00 43                         /usr/lib/libc.so.6
Anonymous:             0 kB
7f0000200000-7f0000300000 r--p 00000000 00:00 0
Anonymous:             0 kB
";

    #[test]
    fn only_what_is_the_programs_own_and_was_never_written_is_given_back() {
        let found = unwritten(SMAPS, "/usr/bin/terrapool");
        assert_eq!(found, [0x55d0_c000_0000..0x55d0_c030_0000, 0x55d0_c030_0000..0x55d0_c100_0000]);
        assert_eq!(unwritten(SMAPS, "/usr/bin/other"), []);
        assert_eq!(unwritten("garbage\n-\nx-y r--p\nAnonymous: 0 kB\n", "garbage"), []);
    }

    fn resident(ranges: &[Range<usize>]) -> u64 {
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let (mut inside, mut sum) = (false, 0);
        for line in smaps.lines() {
            if let Some(range) = range(line) {
                inside = ranges.contains(&range);
            } else if let Some(kilobytes) = line.strip_prefix("Rss:").filter(|_| inside) {
                sum += kilobytes.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
            }
        }
        sum
    }

    #[test]
    fn a_process_goes_on_with_less_of_its_program() {
        let pages = ProgramPages::find().unwrap();
        let before = resident(&pages.0);
        pages.give_back();
        let after = resident(&pages.0);
        assert!(0 < after && after < before, "{before} kB, then {after}");
    }
}
