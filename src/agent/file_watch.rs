//! Waiting for what a stage writes into its job directory, without looking again and again.
//!
//! One inotify instance serves all jobs of an agent (`inotify(7)`): a user has 128 of them, which other programs need too.
//! What is told is a hint to look: nothing is lost when a notice is, for whoever waits looks now and then anyway. Where
//! there is no inotify, that is done often.

use std::{
    collections::HashMap,
    ffi::OsStr,
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use futures::{FutureExt, StreamExt};
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchDescriptor, WatchMask, Watches};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

/// What makes a file longer, or gives its name to another one.
const NOTICED: WatchMask =
    WatchMask::MODIFY.union(WatchMask::CREATE).union(WatchMask::MOVED_TO).union(WatchMask::ONLYDIR);

/// From one reading of notices to the next: a stage that writes without a pause, or makes files in order to keep the agent
/// busy, wakes it no more often.
const PACE: Duration = Duration::from_millis(5);

/// Notices that are read at once, at most.
const NOTICES: usize = 4096;

/// Room for some dozens of notices about short names, in bytes.
const ROOM: usize = 4096;

/// How often a file is looked at without inotify. A look costs one system call.
const UNTOLD: Duration = Duration::from_millis(20);

/// All watches of an agent. Clones share them; the first watch sets inotify up.
#[derive(Debug, Clone, Default)]
pub struct FileWatches(Arc<Mutex<Setup>>);

#[derive(Debug, Default)]
struct Setup {
    instance: Option<Instance>,
    /// That there is none has been said.
    told: bool,
}

#[derive(Debug)]
struct Instance {
    directories: Arc<Mutex<Directories>>,
    _reader: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Directories {
    watches: Watches,
    waiting: HashMap<WatchDescriptor, Vec<Waiting>>,
}

/// Who waits for one name in a directory.
#[derive(Debug)]
struct Waiting {
    name: &'static str,
    told: Arc<Notify>,
}

/// One file that is watched, whether or not it is there yet; inside: nothing is told of it.
#[derive(Debug)]
pub(super) struct FileWatch(Option<Watched>);

#[derive(Debug)]
struct Watched {
    directories: Weak<Mutex<Directories>>,
    directory: WatchDescriptor,
    told: Arc<Notify>,
}

impl FileWatches {
    /// Watches the file `name` in `dir`, whatever is at that name. In a tokio runtime.
    pub(super) fn watch(&self, dir: &Path, name: &'static str) -> FileWatch {
        let mut setup = lock(&self.0);
        let watched = setup.instance().and_then(|instance| match instance.watch(dir, name) {
            Ok(watched) => Some(watched),
            Err(error) => {
                tracing::debug!(dir = %dir.display(), %error, "nothing is told of this directory: it is looked at often");
                None
            }
        });
        FileWatch(watched)
    }
}

impl FileWatch {
    /// Returns when the file may have changed since it was last waited for, and after `longest` at the latest. Cancel-safe.
    pub(super) async fn changed(&self, longest: Duration) {
        match &self.0 {
            // However it ends, the next thing is a look.
            Some(watched) => drop(tokio::time::timeout(longest, watched.told.notified()).await),
            None => tokio::time::sleep(longest.min(UNTOLD)).await,
        }
    }
}

impl Setup {
    /// What could not be had before is tried again, for others may have let go of theirs.
    fn instance(&mut self) -> Option<&Instance> {
        if self.instance.is_none() {
            match Instance::start() {
                Ok(instance) => self.instance = Some(instance),
                Err(error) if !self.told => {
                    self.told = true;
                    tracing::warn!(
                        %error,
                        "the agent gets no inotify instance and looks at its jobs' files often instead: raise fs.inotify.max_user_instances"
                    );
                }
                Err(_) => {}
            }
        }
        self.instance.as_ref()
    }
}

impl Instance {
    fn start() -> io::Result<Self> {
        let notices = Inotify::init()?.into_event_stream(vec![0; ROOM])?;
        let directories = Directories { watches: notices.watches(), waiting: HashMap::new() };
        let directories = Arc::new(Mutex::new(directories));
        let reader = tokio::spawn(pass_on(notices, directories.clone()));
        Ok(Self { directories, _reader: AbortOnDropHandle::new(reader) })
    }

    fn watch(&self, dir: &Path, name: &'static str) -> io::Result<Watched> {
        let told = Arc::new(Notify::new());
        // Locked throughout: a directory that is watched already keeps its descriptor until its last watch ends.
        let mut directories = lock(&self.directories);
        let directory = directories.watches.add(dir, NOTICED)?;
        directories.waiting.entry(directory.clone()).or_default().push(Waiting { name, told: told.clone() });
        Ok(Watched { directories: Arc::downgrade(&self.directories), directory, told })
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Passes notices on, for ever.
async fn pass_on(mut notices: EventStream<Vec<u8>>, directories: Arc<Mutex<Directories>>) {
    while let Some(first) = notices.next().await {
        lock(&directories).heed(first);
        for _ in 1..NOTICES {
            let Some(Some(next)) = notices.next().now_or_never() else { break };
            lock(&directories).heed(next);
        }
        tokio::time::sleep(PACE).await;
    }
}

impl Directories {
    fn heed(&self, notice: io::Result<EventOwned>) {
        match notice {
            Ok(notice) if notice.mask.contains(EventMask::Q_OVERFLOW) => self.tell_all(),
            Ok(notice) => self.tell(&notice.wd, notice.name.as_deref()),
            Err(error) => {
                tracing::debug!(%error, "notices about files could not be read");
                self.tell_all();
            }
        }
    }

    fn tell(&self, directory: &WatchDescriptor, name: Option<&OsStr>) {
        for waiting in self.waiting.get(directory).into_iter().flatten() {
            if name.is_some_and(|name| name == waiting.name) {
                waiting.told.notify_one();
            }
        }
    }

    /// What was not told could concern anybody.
    fn tell_all(&self) {
        self.waiting.values().flatten().for_each(|waiting| waiting.told.notify_one());
    }

    /// Somebody waits no more; the last one takes the watch of the directory along.
    fn forget(&mut self, directory: &WatchDescriptor, told: &Arc<Notify>) {
        let Some(waiting) = self.waiting.get_mut(directory) else { return };
        waiting.retain(|waiting| !Arc::ptr_eq(&waiting.told, told));
        if waiting.is_empty() {
            self.waiting.remove(directory);
            // It has gone already when the directory has.
            drop(self.watches.remove(directory.clone()));
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(directories) = self.directories.upgrade() {
            lock(&directories).forget(&self.directory, &self.told);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        io::Write,
    };

    use tempfile::TempDir;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn append(dir: &TempDir, name: &str) {
        let mut file = File::options().append(true).create(true).open(dir.path().join(name)).unwrap();
        file.write_all(b"x").unwrap();
    }

    async fn is_told(watch: &FileWatch) {
        tokio::time::timeout(Duration::from_secs(60), watch.changed(LONG)).await.expect("a notice");
    }

    fn is_not_told(watch: &FileWatch) {
        assert!(watch.changed(LONG).now_or_never().is_none());
    }

    fn directories(watches: &FileWatches) -> Arc<Mutex<Directories>> {
        lock(&watches.0).instance().unwrap().directories.clone()
    }

    fn watched(watches: &FileWatches) -> usize {
        lock(&directories(watches)).waiting.len()
    }

    #[tokio::test]
    async fn a_file_that_comes_grows_or_is_replaced_is_told() {
        let (dir, watches) = (TempDir::new().unwrap(), FileWatches::default());
        let log = watches.watch(dir.path(), "log");
        append(&dir, "log");
        is_told(&log).await;
        append(&dir, "log");
        is_told(&log).await;
        append(&dir, "other");
        fs::rename(dir.path().join("other"), dir.path().join("log")).unwrap();
        is_told(&log).await;
    }

    #[tokio::test]
    async fn what_happened_before_the_wait_is_told() {
        let (dir, watches) = (TempDir::new().unwrap(), FileWatches::default());
        let [first, second] = ["first", "second"].map(|name| watches.watch(dir.path(), name));
        append(&dir, "first");
        append(&dir, "second");
        is_told(&second).await;
        is_told(&first).await;
    }

    #[tokio::test]
    async fn other_files_and_other_directories_disturb_nobody() {
        let [here, there] = [(); 2].map(|()| TempDir::new().unwrap());
        let watches = FileWatches::default();
        let [log, other] = [&here, &there].map(|dir| watches.watch(dir.path(), "log"));
        append(&here, "noise");
        append(&there, "log");
        // Notices come in order.
        is_told(&other).await;
        is_not_told(&log);
    }

    #[tokio::test]
    async fn a_directory_is_watched_as_long_as_anybody_waits() {
        let (dir, watches) = (TempDir::new().unwrap(), FileWatches::default());
        let [log, result] = ["log", "result"].map(|name| watches.watch(dir.path(), name));
        drop(log);
        append(&dir, "result");
        is_told(&result).await;
        assert_eq!(watched(&watches), 1);
        drop(result);
        assert_eq!(watched(&watches), 0);
        let again = watches.watch(dir.path(), "log");
        append(&dir, "log");
        is_told(&again).await;
    }

    #[tokio::test]
    async fn notices_that_the_kernel_had_no_room_for_could_be_anybodys() {
        let [here, there] = [(); 2].map(|()| TempDir::new().unwrap());
        let watches = FileWatches::default();
        let [log, other] = [&here, &there].map(|dir| watches.watch(dir.path(), "log"));
        lock(&directories(&watches)).tell_all();
        is_told(&log).await;
        is_told(&other).await;
    }

    #[tokio::test]
    async fn a_storm_of_notices_is_survived_and_what_comes_after_it_is_told() {
        let (dir, watches) = (TempDir::new().unwrap(), FileWatches::default());
        let log = watches.watch(dir.path(), "log");
        // More than the kernel keeps (fs.inotify.max_queued_events), and none like the one before.
        for _ in 0..20_000 {
            append(&dir, "a");
            append(&dir, "b");
        }
        append(&dir, "log");
        is_told(&log).await;
        append(&dir, "log");
        is_told(&log).await;
    }

    #[tokio::test]
    async fn without_notices_it_is_looked_often() {
        let watches = FileWatches::default();
        let missing = watches.watch(Path::new("/nowhere/at/all"), "log");
        assert!(missing.0.is_none());
        is_told(&missing).await;
    }
}
