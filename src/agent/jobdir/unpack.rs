//! Unpacks archives that come from outside. Nothing leaves the target directory: not by a path, not by a link, not by
//! a link to a link; no devices, no sparse files; entries, bytes and the archive's own headers have limits.
//!
//! Links are made after everything else, so that nothing is ever written through one, and each is resolved on paper
//! first, through all other links.

use std::{
    collections::{BTreeMap, HashSet},
    ffi::OsString,
    fs::{self, OpenOptions},
    io::{self, Read},
    os::unix::{
        ffi::OsStringExt,
        fs::{OpenOptionsExt, symlink},
    },
    path::{Component, Path, PathBuf},
};

use flate2::read::MultiGzDecoder;
use tar::{Entry, EntryType};

use super::{Error, Result};

/// How much an archive may bring.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub entries: u64,
    /// Unpacked, all files together.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: 100_000, bytes: 2 << 30 }
    }
}

/// Longest path, and longest extended header: as `PATH_MAX`, with room for the header's own words.
const LONGEST_PATH: u64 = 4096;
const LONGEST_HEADER: u64 = 4 * LONGEST_PATH;

/// Links that may lead to links before it is called a circle; the kernel's own number.
const LINKS: usize = 40;

fn bad(what: impl Into<String>) -> Error {
    Error::Configuration(what.into())
}

/// Unpacks `archive`, a tar.gz, into the existing directory `target`. `only`: refuse every other name.
///
/// # Errors
/// [`Error::Configuration`] names the entry and what is wrong with it.
pub fn unpack(archive: impl Read, target: &Path, limits: Limits, only: Option<&[&str]>) -> Result<()> {
    let mut unpacking =
        Unpacking { target, limits, only, entries: 0, bytes: 0, links: BTreeMap::new(), made: HashSet::new() };
    let mut archive = tar::Archive::new(MultiGzDecoder::new(archive));
    let entries = archive.entries().map_err(|error| bad(format!("it is not a tar.gz: {error}")))?.raw(true);
    let mut extended = Extended::default();
    for entry in entries {
        let mut entry = entry.map_err(|error| bad(format!("it is not a whole tar.gz: {error}")))?;
        unpacking.entries += 1;
        if unpacking.entries > limits.entries {
            return Err(bad(format!("it has more than {} entries", limits.entries)));
        }
        match entry.header().entry_type() {
            EntryType::GNULongName => extended.path = Some(header_text(&mut entry)?),
            EntryType::GNULongLink => extended.link = Some(header_text(&mut entry)?),
            EntryType::XHeader => extended.read_pax(&mut entry)?,
            EntryType::XGlobalHeader => drop(header_text(&mut entry)?),
            _ => unpacking.take(&mut entry, std::mem::take(&mut extended))?,
        }
    }
    unpacking.make_links()
}

/// What headers before an entry say about it.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl Extended {
    fn read_pax<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<()> {
        let text = header_text(entry)?;
        for extension in tar::PaxExtensions::new(&text) {
            let extension = extension.map_err(|error| bad(format!("an extended header is damaged: {error}")))?;
            match extension.key_bytes() {
                b"path" => self.path = Some(extension.value_bytes().to_vec()),
                b"linkpath" => self.link = Some(extension.value_bytes().to_vec()),
                // Would change where the next entry begins; needed for files of more than 8 GiB only.
                b"size" => return Err(bad("a file in it is larger than 8 GiB")),
                key if key.starts_with(b"GNU.sparse") => return Err(bad("it holds a sparse file")),
                _ => {}
            }
        }
        Ok(())
    }
}

fn header_text<R: Read>(entry: &mut Entry<'_, R>) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let read = entry.take(LONGEST_HEADER + 1).read_to_end(&mut text);
    read.map_err(|error| bad(format!("it is not a whole tar.gz: {error}")))?;
    if text.len() as u64 > LONGEST_HEADER {
        return Err(bad("an extended header in it is too long"));
    }
    if text.last() == Some(&0) {
        text.pop();
    }
    Ok(text)
}

struct Unpacking<'a> {
    target: &'a Path,
    limits: Limits,
    only: Option<&'a [&'a str]>,
    entries: u64,
    bytes: u64,
    /// Path of a link → what it leads to, as written.
    links: BTreeMap<PathBuf, PathBuf>,
    /// Directories known to be there.
    made: HashSet<PathBuf>,
}

impl Unpacking<'_> {
    fn take<R: Read>(&mut self, entry: &mut Entry<'_, R>, extended: Extended) -> Result<()> {
        let raw = extended.path.unwrap_or_else(|| entry.path_bytes().into_owned());
        let path = inside(&raw)?;
        let shown = path.display().to_string();
        if self.only.is_some_and(|only| !only.contains(&shown.as_str())) {
            return Err(bad(format!("`{shown}` does not belong into it")));
        }
        let link = || match extended.link.or_else(|| entry.link_name_bytes().map(std::borrow::Cow::into_owned)) {
            Some(link) => Ok(PathBuf::from(OsString::from_vec(link))),
            None => Err(bad(format!("the link `{shown}` leads nowhere"))),
        };
        match entry.header().entry_type() {
            EntryType::Directory => self.directory(&path),
            _ if path.as_os_str().is_empty() => Err(bad("a file in it has no name")),
            EntryType::Regular | EntryType::Continuous => self.file(&path, entry),
            EntryType::Symlink => {
                let link = link()?;
                self.parent(&path)?;
                self.links.insert(path, link);
                Ok(())
            }
            EntryType::Link => {
                let link = inside(link()?.as_os_str().as_encoded_bytes())?;
                self.copy(&path, &link)
            }
            EntryType::GNUSparse => Err(bad(format!("`{shown}` is a sparse file"))),
            _ => Err(bad(format!("`{shown}` is neither a file nor a directory nor a link"))),
        }
    }

    fn io<'s>(&self, path: &'s Path) -> impl FnOnce(io::Error) -> Error + 's {
        Error::io(format!("unpack `{}`", path.display()))
    }

    fn directory(&mut self, path: &Path) -> Result<()> {
        if path.as_os_str().is_empty() || self.made.contains(path) {
            return Ok(());
        }
        self.parent(path)?;
        match fs::create_dir(self.target.join(path)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let meta = fs::symlink_metadata(self.target.join(path)).map_err(self.io(path))?;
                if !meta.is_dir() {
                    return Err(bad(format!("`{}` is in it twice: as a directory and as a file", path.display())));
                }
            }
            Err(error) => return Err(self.io(path)(error)),
        }
        self.made.insert(path.to_owned());
        Ok(())
    }

    fn parent(&mut self, path: &Path) -> Result<()> {
        path.parent().map_or(Ok(()), |parent| self.directory(parent))
    }

    /// A later entry of the same path replaces an earlier one.
    fn create(&mut self, path: &Path, executable: bool) -> Result<fs::File> {
        self.parent(path)?;
        self.links.remove(path);
        let at = self.target.join(path);
        match fs::symlink_metadata(&at) {
            Ok(meta) if meta.is_dir() => {
                return Err(bad(format!("`{}` is in it twice: as a directory and as a file", path.display())));
            }
            Ok(_) => fs::remove_file(&at).map_err(self.io(path))?,
            Err(_) => {}
        }
        let mode = if executable { 0o755 } else { 0o644 };
        OpenOptions::new().write(true).create_new(true).mode(mode).open(&at).map_err(self.io(path))
    }

    fn file<R: Read>(&mut self, path: &Path, entry: &mut Entry<'_, R>) -> Result<()> {
        let left = self.limits.bytes.saturating_sub(self.bytes);
        let limit = self.limits.bytes;
        let too_much = || bad(format!("it unpacks to more than {limit} bytes"));
        if entry.size() > left {
            return Err(too_much());
        }
        let executable = entry.header().mode().is_ok_and(|mode| mode & 0o100 != 0);
        let mut file = self.create(path, executable)?;
        let copied = io::copy(&mut entry.take(left + 1), &mut file).map_err(|error| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => self.io(path)(error),
            _ => bad(format!("it is not a whole tar.gz: {error}")),
        })?;
        if copied > left {
            return Err(too_much());
        }
        self.bytes += copied;
        Ok(())
    }

    /// A hard link: as a copy, so that no two names share a file.
    fn copy(&mut self, path: &Path, from: &Path) -> Result<()> {
        let wrong = || bad(format!("the link `{}` leads to no file before it", path.display()));
        let at = self.target.join(from);
        let meta = fs::symlink_metadata(&at).map_err(|_| wrong())?;
        if !meta.is_file() || path == from {
            return Err(wrong());
        }
        self.bytes += meta.len();
        if self.bytes > self.limits.bytes {
            return Err(bad(format!("it unpacks to more than {} bytes", self.limits.bytes)));
        }
        let mut source = fs::File::open(&at).map_err(self.io(from))?;
        let executable = std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o100 != 0;
        let mut file = self.create(path, executable)?;
        io::copy(&mut source, &mut file).map(drop).map_err(self.io(path))
    }

    fn make_links(&self) -> Result<()> {
        for (path, link) in &self.links {
            stays_inside(&self.links, path)?;
            let at = self.target.join(path);
            if at.symlink_metadata().is_ok() {
                return Err(bad(format!("`{}` is in it twice: as a link and as something else", path.display())));
            }
            symlink(link, &at).map_err(self.io(path))?;
        }
        Ok(())
    }
}

/// The path of an entry, below the target.
fn inside(raw: &[u8]) -> Result<PathBuf> {
    let shown = || String::from_utf8_lossy(raw).chars().take(200).collect::<String>();
    if raw.len() as u64 > LONGEST_PATH || raw.contains(&0) {
        return Err(bad(format!("the name `{}` cannot be", shown())));
    }
    let mut path = PathBuf::new();
    for component in Path::new(&OsString::from_vec(raw.to_vec())).components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            _ => return Err(bad(format!("the path `{}` leads out of it", shown()))),
        }
    }
    Ok(path)
}

/// Follows the link at `path` on paper, as the kernel would.
fn stays_inside(links: &BTreeMap<PathBuf, PathBuf>, path: &Path) -> Result<()> {
    let out = || bad(format!("the link `{}` leads out of it", path.display()));
    let mut todo: Vec<OsString> = path.components().rev().map(|c| c.as_os_str().to_owned()).collect();
    let mut at = PathBuf::new();
    let mut followed = 0;
    while let Some(name) = todo.pop() {
        match Path::new(&name).components().next() {
            Some(Component::ParentDir) => {
                if !at.pop() {
                    return Err(out());
                }
            }
            Some(Component::Normal(name)) => {
                at.push(name);
                if let Some(link) = links.get(&at) {
                    followed += 1;
                    if link.is_absolute() || followed > LINKS {
                        return Err(out());
                    }
                    at.pop();
                    todo.extend(link.components().rev().map(|c| c.as_os_str().to_owned()));
                }
            }
            Some(Component::CurDir) => {}
            _ => return Err(out()),
        }
    }
    Ok(())
}
