//! Checks an uploaded configuration (tar.gz) before anybody unpacks it: nothing may end up outside of its
//! directory, and its size must be bearable. Reads it once and writes nothing. Pure over a reader.
//!
//! Why two rules for links are enough: a link's target may climb (`..`) only at its start, so that no other
//! link changes what is climbed from; and nothing may lie below a link or replace one, so that every entry is
//! created where its path says.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    io::{self, Read},
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

use flate2::read::GzDecoder;
use tar::{Archive, Entry, EntryType, PaxExtensions};

/// Most files and directories in one configuration.
const MAX_ENTRIES: usize = 200_000;

/// Longest extension record (long names, attributes): it is read into memory.
const MAX_EXTENSION: u64 = 1 << 20;

/// Zeros that may follow the archive's end: `tar` pads to its block size.
const MAX_PADDING: u64 = 1 << 20;

/// Why an archive is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("The upload is not a complete tar.gz archive")]
    Unreadable(#[source] io::Error),
    #[error("The archive holds no files.")]
    Empty,
    #[error("The archive goes on after its end.")]
    Trailing,
    #[error("`{0}` is an absolute path or leads out of the configuration's directory.")]
    OutsidePath(String),
    #[error("The link `{0}` points out of the configuration's directory (to `{1}`).")]
    OutsideLink(String, String),
    #[error("`{0}` lies below a link or takes a link's place.")]
    ThroughLink(String),
    #[error("`{0}` is neither a file, a directory nor a link.")]
    Kind(String),
    #[error("The archive has an extension record that is too large or not understood.")]
    Extension,
    #[error("The archive holds more than {MAX_ENTRIES} files and directories.")]
    TooMany,
    #[error("The configuration takes more than {limit} bytes when unpacked.")]
    TooLarge { limit: u64 },
}

/// What was found in a good archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    pub entries: usize,
    pub unpacked_bytes: u64,
}

/// Reads a whole tar.gz archive and refuses what must not be unpacked.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn check(archive: impl Read, max_unpacked: u64) -> Result<Summary, Refused> {
    let mut archive = Archive::new(GzDecoder::new(archive));
    let mut checker = Checker { limit: max_unpacked, ..Checker::default() };
    // raw: extension records come as entries of their own, so that their size is seen before they are read
    for entry in archive.entries().map_err(Refused::Unreadable)?.raw(true) {
        checker.entry(entry.map_err(Refused::Unreadable)?)?;
    }
    if checker.names.is_empty() {
        return Err(Refused::Empty);
    }
    drain(archive.into_inner())?;
    Ok(Summary { entries: checker.entries, unpacked_bytes: checker.bytes })
}

/// Reads to the end of the compressed stream, which checks its checksum.
fn drain(rest: impl Read) -> Result<(), Refused> {
    let read = io::copy(&mut rest.take(MAX_PADDING), &mut io::sink()).map_err(Refused::Unreadable)?;
    if read < MAX_PADDING { Ok(()) } else { Err(Refused::Trailing) }
}

#[derive(Default)]
struct Checker {
    limit: u64,
    entries: usize,
    bytes: u64,
    /// Everything there is by now, directories above entries included.
    names: BTreeSet<PathBuf>,
    links: BTreeSet<PathBuf>,
    /// From extension records: for the next entry.
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl Checker {
    fn entry<R: Read>(&mut self, mut entry: Entry<'_, R>) -> Result<(), Refused> {
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return Err(Refused::TooMany);
        }
        let kind = entry.header().entry_type();
        let size = entry.header().entry_size().map_err(Refused::Unreadable)?;
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > self.limit {
            return Err(Refused::TooLarge { limit: self.limit });
        }
        match kind {
            EntryType::XGlobalHeader | EntryType::XHeader | EntryType::GNULongName | EntryType::GNULongLink => {
                self.extension(kind, size, &mut entry)
            }
            EntryType::Regular
            | EntryType::Continuous
            | EntryType::Directory
            | EntryType::Symlink
            | EntryType::Link => {
                let name = self.long_name.take().unwrap_or_else(|| entry.path_bytes().into_owned());
                let target = match self.long_link.take() {
                    Some(target) => target,
                    None => entry.link_name_bytes().map(|name| name.into_owned()).unwrap_or_default(),
                };
                self.member(kind, Path::new(OsStr::from_bytes(&name)), Path::new(OsStr::from_bytes(&target)))
            }
            _ => Err(Refused::Kind(String::from_utf8_lossy(&entry.path_bytes()).into_owned())),
        }
    }

    fn extension<R: Read>(&mut self, kind: EntryType, size: u64, entry: &mut Entry<'_, R>) -> Result<(), Refused> {
        if size > MAX_EXTENSION {
            return Err(Refused::Extension);
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(Refused::Unreadable)?;
        let until_nul = |bytes: Vec<u8>| bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
        match kind {
            EntryType::GNULongName => self.long_name = Some(until_nul(bytes)),
            EntryType::GNULongLink => self.long_link = Some(until_nul(bytes)),
            _ => {
                for record in PaxExtensions::new(&bytes) {
                    let record = record.map_err(|_| Refused::Extension)?;
                    let value = record.value_bytes().to_vec();
                    match (kind, record.key_bytes()) {
                        (EntryType::XHeader, b"path") => self.long_name = Some(value),
                        (EntryType::XHeader, b"linkpath") => self.long_link = Some(value),
                        // would make readers disagree on names, and on where the next entry starts
                        (_, b"path" | b"linkpath" | b"size") => return Err(Refused::Extension),
                        (_, key) if key.starts_with(b"GNU.sparse") => return Err(Refused::Extension),
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }

    fn member(&mut self, kind: EntryType, name: &Path, target: &Path) -> Result<(), Refused> {
        let shown = || name.display().to_string();
        let path = inside(name).ok_or_else(|| Refused::OutsidePath(shown()))?;
        if path.as_os_str().is_empty() {
            // `./`, the root itself
            return if kind == EntryType::Directory { Ok(()) } else { Err(Refused::OutsidePath(shown())) };
        }
        if path.ancestors().any(|ancestor| self.links.contains(ancestor)) {
            return Err(Refused::ThroughLink(shown()));
        }
        let outside = || Refused::OutsideLink(shown(), target.display().to_string());
        match kind {
            EntryType::Symlink => {
                let depth = path.components().count() - 1;
                if !stays_inside(target, depth) {
                    return Err(outside());
                }
                if self.names.contains(&path) {
                    return Err(Refused::ThroughLink(shown()));
                }
                self.links.insert(path.clone());
            }
            // A hard link is another name of a file of this archive.
            EntryType::Link => {
                let other = inside(target).ok_or_else(outside)?;
                if !self.names.contains(&other) || other.ancestors().any(|ancestor| self.links.contains(ancestor)) {
                    return Err(outside());
                }
            }
            _ => {}
        }
        for ancestor in path.ancestors().filter(|ancestor| !ancestor.as_os_str().is_empty()) {
            if !self.names.insert(ancestor.to_path_buf()) {
                break;
            }
        }
        Ok(())
    }
}

/// The path without `.`; `None` when it is absolute, climbs, or holds a NUL.
fn inside(path: &Path) -> Option<PathBuf> {
    if path.as_os_str().as_bytes().contains(&0) {
        return None;
    }
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::Normal(part) => clean.push(part),
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(clean)
}

/// Whether a link that lies `depth` directories deep stays inside, whatever else is a link.
fn stays_inside(target: &Path, depth: usize) -> bool {
    let mut climbed = 0;
    let mut descended = false;
    for component in target.components() {
        match component {
            Component::CurDir => {}
            Component::Normal(_) => descended = true,
            Component::ParentDir if !descended && climbed < depth => climbed += 1,
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    !target.as_os_str().is_empty() && !target.as_os_str().as_bytes().contains(&0)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    /// Kind, name, link target or content.
    type Member<'a> = (EntryType, &'a [u8], &'a [u8]);

    fn tar(members: &[Member<'_>]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (kind, name, rest) in members {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o644);
            header.as_old_mut().name[..name.len()].copy_from_slice(name);
            let link = matches!(kind, EntryType::Symlink | EntryType::Link);
            if link {
                header.as_old_mut().linkname[..rest.len()].copy_from_slice(rest);
            }
            let content = if link { &b""[..] } else { rest };
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append(&header, content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn gz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn judge(members: &[Member<'_>]) -> Result<Summary, Refused> {
        check(gz(&tar(members)).as_slice(), 1 << 20)
    }

    const FILE: EntryType = EntryType::Regular;
    const DIR: EntryType = EntryType::Directory;
    const SYM: EntryType = EntryType::Symlink;
    const HARD: EntryType = EntryType::Link;

    #[test]
    fn ordinary_configurations_pass() {
        let long = [b"path=".as_slice(), b"a/b.tf"].concat();
        let good: &[&[Member<'_>]] = &[
            &[(FILE, b"main.tf", b"x")],
            &[(DIR, b"./", b""), (FILE, b"./main.tf", b"x")],
            &[(DIR, b"m/", b""), (FILE, b"m/a.tf", b"x"), (SYM, b"l", b"m/a.tf"), (SYM, b"m/up", b"../m/a.tf")],
            &[(FILE, b"a", b"x"), (HARD, b"b", b"a")],
            // the same name twice: the later file wins
            &[(FILE, b"a", b"x"), (FILE, b"a", b"y")],
            &[(EntryType::GNULongName, b"x", b"deep/er\0"), (FILE, b"cut", b"x")],
            &[(EntryType::XHeader, b"x", &pax(&long)), (FILE, b"cut", b"x")],
            &[(EntryType::XGlobalHeader, b"x", &pax(b"comment=git")), (FILE, b"a", b"x")],
        ];
        for members in good {
            judge(members).unwrap_or_else(|error| panic!("{members:?}: {error}"));
        }
    }

    fn pax(record: &[u8]) -> Vec<u8> {
        // "<length> <record>\n", where the length counts itself
        let length = record.len() + 4;
        assert!((10..100).contains(&length));
        [format!("{length} ").as_bytes(), record, b"\n"].concat()
    }

    #[test]
    fn what_leads_out_of_the_tree_is_refused() {
        let bad: &[&[Member<'_>]] = &[
            &[(FILE, b"../a", b"x")],
            &[(FILE, b"a/../../b", b"x")],
            &[(FILE, b"/etc/passwd", b"x")],
            &[(DIR, b"..", b"")],
            &[(FILE, b".", b"x")],
            &[(SYM, b"l", b"/etc/passwd")],
            &[(SYM, b"l", b"..")],
            &[(SYM, b"a/l", b"../../x")],
            &[(SYM, b"l", b"a/../..")],
            // climbing through another link: `d/e/l` is the root, so `d/e/l/..` is outside
            &[(SYM, b"d/e/l", b"../.."), (SYM, b"m", b"d/e/l/..")],
            &[(SYM, b"d/e/l", b"../.."), (SYM, b"d/e/l/n", b"..")],
            // writing through a link, or making a directory one afterwards
            &[(SYM, b"l", b"a"), (FILE, b"l/x", b"x")],
            &[(SYM, b"l", b"a"), (FILE, b"l", b"x")],
            &[(FILE, b"d/n", b"x"), (SYM, b"d", b"e")],
            &[(HARD, b"h", b"/etc/passwd")],
            &[(HARD, b"h", b"../x")],
            &[(HARD, b"h", b"unknown")],
            &[(SYM, b"l", b"a"), (HARD, b"h", b"l")],
            &[(EntryType::Char, b"null", b"")],
            &[(EntryType::Block, b"sda", b"")],
            &[(EntryType::Fifo, b"pipe", b"")],
            &[(EntryType::GNUSparse, b"s", b"")],
            &[(EntryType::GNULongName, b"x", b"../../etc/cron.d/x\0"), (FILE, b"harmless", b"x")],
            &[(EntryType::GNULongLink, b"x", b"/etc/passwd\0"), (SYM, b"harmless", b"a")],
            &[(EntryType::XHeader, b"x", &pax(b"path=/etc/passwd")), (FILE, b"harmless", b"x")],
            &[(EntryType::XHeader, b"x", &pax(b"linkpath=/etc/pass")), (SYM, b"harmless", b"a")],
            &[(EntryType::XHeader, b"x", &pax(b"size=1000000")), (FILE, b"a", b"x")],
            &[(EntryType::XHeader, b"x", &pax(b"GNU.sparse.major=1")), (FILE, b"a", b"x")],
            &[(EntryType::XGlobalHeader, b"x", &pax(b"path=all-of-them")), (FILE, b"a", b"x")],
        ];
        for members in bad {
            assert!(judge(members).is_err(), "{members:?}");
        }
    }

    #[test]
    fn garbage_and_broken_archives_are_refused() {
        let good = gz(&tar(&[(FILE, b"main.tf", b"x")]));
        assert!(check(good.as_slice(), 1 << 20).is_ok());
        for cut in 0..good.len() {
            assert!(check(&good[..cut], 1 << 20).is_err(), "cut at {cut}");
        }
        assert!(matches!(check(&b"hello"[..], 1), Err(Refused::Unreadable(_))));
        assert!(matches!(check(gz(b"hello").as_slice(), 1), Err(Refused::Unreadable(_))));
        assert!(matches!(check(gz(&tar(&[])).as_slice(), 1), Err(Refused::Empty)));
    }

    #[test]
    fn bombs_are_refused_by_what_they_claim() {
        // a file of 10 GB: refused by its header, before its content
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(FILE);
        header.set_size(10 << 30);
        header.as_old_mut().name[..4].copy_from_slice(b"bomb");
        header.set_cksum();
        let claim = [header.as_bytes().as_slice(), &[0; 4096]].concat();
        assert!(matches!(check(gz(&claim).as_slice(), 2 << 30), Err(Refused::TooLarge { .. })));
        // zeros without end
        let zeros = gz(&vec![0; 8 << 20]);
        assert!(matches!(check(zeros.as_slice(), 2 << 30), Err(Refused::Empty | Refused::Trailing)));
        let trailing = gz(&[tar(&[(FILE, b"a", b"x")]), vec![0; 8 << 20]].concat());
        assert!(matches!(check(trailing.as_slice(), 2 << 30), Err(Refused::Trailing)));
        // many small ones
        let many = vec![(FILE, &b"a"[..], &[0; 1000][..]); 20];
        assert!(matches!(check(gz(&tar(&many)).as_slice(), 10_000), Err(Refused::TooLarge { .. })));
        // an extension record that would be read into memory
        let large = vec![b'x'; 2 << 20];
        let extension = tar(&[(EntryType::GNULongName, b"x", &large), (FILE, b"a", b"x")]);
        assert!(matches!(check(gz(&extension).as_slice(), 1 << 30), Err(Refused::Extension)));
    }
}
