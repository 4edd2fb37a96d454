use std::{
    collections::BTreeMap,
    fs::File,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::PathBuf,
};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use tempfile::TempDir;

use super::{
    package::{H1, Package, platform},
    *,
};
use crate::{
    agent::jobdir::Placement,
    api::{agent::ExecutorKind, job::Variable},
    hash::sha256,
    ids::JobId,
};

const ADDRESS: &str = "registry.example.com/acme/thing";
const PROGRAM: &str = "terraform-provider-thing_v1.0.0";

fn spec() -> JobSpec {
    JobSpec { job_id: JobId::random(), ..JobSpec::plain() }
}

/// A cache, and jobs that use it.
struct Scene {
    cache: ProviderCache,
    clock: Clock,
    place: TempDir,
}

/// A job with its directory.
struct Job {
    spec: JobSpec,
    dir: JobDir,
}

impl Scene {
    fn new(limit: u64) -> Self {
        let (place, clock) = (tempfile::tempdir().unwrap(), Clock::manual(1_000_000));
        let cache = ProviderCache::new(&place.path().join("cache"), limit).with_clock(clock.clone());
        Self { cache, clock, place }
    }

    /// A job whose lock file allows these packages.
    async fn job(&self, locked: &[(&str, H1)]) -> Job {
        let spec = spec();
        let data = self.place.path().join("data");
        let dir = JobDir::create(&data, &spec, Placement::of(ExecutorKind::Docker)).await.unwrap();
        let block = |(version, h1): &(&str, H1)| {
            format!("provider \"{ADDRESS}\" {{\n  version = \"{version}\"\n  hashes = [\n    \"{h1}\",\n  ]\n}}\n")
        };
        fs::write(dir.path().join("config/.terraform.lock.hcl"), locked.iter().map(block).collect::<String>()).unwrap();
        Job { spec, dir }
    }

    async fn link(&self, job: &Job) -> bool {
        self.cache.link(&job.dir, &job.spec, self.cache.dir().to_str().unwrap()).await
    }

    /// A run without a lock file has fetched this.
    async fn fetched(&self, version: &str, content: &str) -> H1 {
        let job = self.job(&[]).await;
        assert!(self.link(&job).await);
        job.fetches(version, content);
        self.cache.fill(&job.dir).await;
        h1(&[(PROGRAM, content)])
    }

    fn stored(&self, version: &str) -> Vec<H1> {
        self.cache.store.stored(&package(version)).unwrap().into_iter().collect()
    }

    /// Names at the store's root that are not hosts.
    fn leftovers(&self) -> usize {
        let names = fs::read_dir(self.cache.dir()).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().starts_with('.')).count()
    }
}

impl Job {
    fn folder(&self) -> PathBuf {
        self.dir.path().join(FOLDER)
    }

    fn package(&self, version: &str) -> PathBuf {
        self.folder().join(package(version).path())
    }

    fn fetches(&self, version: &str, content: &str) {
        fs::create_dir_all(self.package(version)).unwrap();
        fs::write(self.package(version).join(PROGRAM), content).unwrap();
    }

    /// What the run sees of the package.
    fn sees(&self, version: &str) -> Option<String> {
        fs::read_to_string(self.package(version).join(PROGRAM)).ok()
    }
}

fn package(version: &str) -> Package {
    Package::of_address(ADDRESS, version).unwrap()
}

fn h1(files: &[(&str, &str)]) -> H1 {
    let digest = |(name, content): &(&str, &str)| ((*name).to_owned(), sha256(content.as_bytes()).unwrap());
    H1::of(&files.iter().map(digest).collect::<BTreeMap<_, _>>())
}

#[tokio::test]
async fn what_one_run_fetched_the_next_one_finds_if_it_has_locked_it() {
    let scene = Scene::new(1 << 20);
    let one = scene.fetched("1.0.0", "one").await;
    assert_eq!(scene.stored("1.0.0"), [one]);
    let other = h1(&[(PROGRAM, "another")]);
    for (locked, seen) in
        [(vec![("1.0.0", one)], true), (vec![("1.0.0", other)], false), (vec![], false), (vec![("1.0.1", one)], false)]
    {
        let job = scene.job(&locked).await;
        // As often as it is begun anew.
        for _ in 0..2 {
            assert!(scene.link(&job).await);
        }
        assert_eq!(job.sees("1.0.0").as_deref(), seen.then_some("one"), "{locked:?}");
        assert_eq!(fs::read_dir(job.folder()).unwrap().count(), usize::from(seen), "{locked:?}");
        scene.cache.fill(&job.dir).await;
    }
    assert_eq!(scene.stored("1.0.0"), [one], "a link is no package");
    let figures = scene.cache.figures();
    assert_eq!((figures.linked, figures.kept, figures.bytes), (2, 1, 3));
    assert_eq!(scene.leftovers(), 0);
}

#[tokio::test]
async fn files_are_programs_that_nobody_writes_and_directories_cannot_be_listed() {
    let scene = Scene::new(1 << 20);
    let one = scene.fetched("1.0.0", "one").await;
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    let mut dir = scene.cache.dir().to_owned();
    for part in Path::new("").join(package("1.0.0").path()).join(one.file_name()).iter() {
        assert_eq!(mode(&dir), 0o711, "{}", dir.display());
        dir.push(part);
    }
    assert_eq!(mode(&dir), 0o711);
    assert_eq!(mode(&dir.join("package")), 0o755);
    assert_eq!(mode(&dir.join("package").join(PROGRAM)), 0o555);
    for name in ["entry.json", "used.json"] {
        assert_eq!(mode(&dir.join(name)), 0o600, "{name}");
    }
}

#[tokio::test]
async fn what_somebody_else_brought_under_a_name_keeps_the_right_one_neither_out_nor_away() {
    let scene = Scene::new(1 << 20);
    let poison = scene.fetched("1.0.0", "poison").await;
    let right = h1(&[(PROGRAM, "right")]);
    let job = scene.job(&[("1.0.0", right)]).await;
    assert!(scene.link(&job).await);
    assert_eq!(job.sees("1.0.0"), None);
    // Not what it has locked: of no use to others like it.
    job.fetches("1.0.0", "neither");
    scene.cache.fill(&job.dir).await;
    assert_eq!(scene.stored("1.0.0"), [poison]);
    job.fetches("1.0.0", "right");
    scene.cache.fill(&job.dir).await;
    let mut both = [poison, right];
    both.sort();
    assert_eq!(scene.stored("1.0.0"), both);
    let next = scene.job(&[("1.0.0", right)]).await;
    assert!(scene.link(&next).await);
    assert_eq!(next.sees("1.0.0").as_deref(), Some("right"));
    // Without a lock file it is anybody's, and one of them is enough.
    scene.fetched("1.0.0", "more poison").await;
    assert_eq!(scene.stored("1.0.0"), both);
}

#[tokio::test]
async fn a_package_that_was_changed_where_it_lies_is_removed_and_one_that_was_only_touched_is_not() {
    let scene = Scene::new(1 << 20);
    let one = scene.fetched("1.0.0", "one").await;
    let program = scene.cache.dir().join(Store::files_of(&package("1.0.0"), one)).join(PROGRAM);
    let linked = async || {
        let job = scene.job(&[("1.0.0", one)]).await;
        assert!(scene.link(&job).await);
        job.sees("1.0.0").is_some()
    };
    File::open(&program).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert!(linked().await);
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(&program, "two").unwrap();
    assert!(!linked().await);
    assert_eq!(scene.stored("1.0.0"), []);
    // Nothing of it is left, up to the host.
    assert_eq!(fs::read_dir(scene.cache.dir()).unwrap().count(), 0);
    let one = scene.fetched("1.0.0", "one").await;
    fs::write(scene.cache.dir().join(Store::files_of(&package("1.0.0"), one)).join("more"), "").unwrap();
    assert!(!linked().await, "a file too many");
}

/// Something that is no package, and how it is made in the place of one.
type Trap = (&'static str, fn(&Path));

const TRAPS: &[Trap] = &[
    ("a link to a file of the host", |dir| symlink("/etc/passwd", dir.join("x")).unwrap()),
    ("a link to a directory", |dir| symlink("/etc", dir.join("x")).unwrap()),
    ("a pipe", |dir| mknodat(CWD, dir.join("x"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap()),
    ("a name that breaks the hash", |dir| fs::write(dir.join("x\n0  y"), "").unwrap()),
    ("a file larger than the cache", |dir| File::create(dir.join("x")).unwrap().set_len(1 << 40).unwrap()),
    ("too many files", |dir| (0..5000).for_each(|at| fs::write(dir.join(at.to_string()), "").unwrap())),
    ("too deep", |dir| fs::create_dir_all((0..20).fold(dir.to_owned(), |dir, _| dir.join("d"))).unwrap()),
];

#[tokio::test]
async fn traps_are_not_kept_and_other_packages_are() {
    for (what, make) in TRAPS {
        let scene = Scene::new(1 << 20);
        let job = scene.job(&[]).await;
        assert!(scene.link(&job).await);
        job.fetches("1.0.0", "one");
        make(&job.package("1.0.0"));
        job.fetches("2.0.0", "two");
        scene.cache.fill(&job.dir).await;
        assert_eq!(scene.stored("1.0.0"), [], "{what}");
        assert_eq!(scene.stored("2.0.0"), [h1(&[(PROGRAM, "two")])], "{what}");
        assert_eq!(scene.leftovers(), 0, "{what}");
    }
}

#[tokio::test]
async fn only_directories_at_their_place_are_packages() {
    let scene = Scene::new(1 << 20);
    let elsewhere = scene.place.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join(PROGRAM), "of the host").unwrap();
    let job = scene.job(&[]).await;
    assert!(scene.link(&job).await);
    let folder = job.folder();
    for path in [
        format!("{ADDRESS}/1.0.0/windows_amd64"),
        format!("{ADDRESS}/one/{}", platform()),
        format!("{ADDRESS}/1.0.0"),
        format!("UPPER/a/b/1.0.0/{}", platform()),
        format!("a/b/c/d/1.0.0/{}", platform()),
    ] {
        fs::create_dir_all(folder.join(&path)).unwrap();
        fs::write(folder.join(path).join(PROGRAM), "").unwrap();
    }
    fs::create_dir_all(folder.join(ADDRESS).join("2.0.0")).unwrap();
    symlink(&elsewhere, folder.join(package("2.0.0").path())).unwrap();
    symlink("/", folder.join("linked.example.com")).unwrap();
    fs::create_dir_all(folder.join(package("3.0.0").path())).unwrap();
    scene.cache.fill(&job.dir).await;
    assert_eq!(fs::read_dir(scene.cache.dir()).unwrap().count(), 0);
    // The whole directory may be a trap.
    fs::remove_dir_all(&folder).unwrap();
    fs::create_dir_all(elsewhere.join(package("1.0.0").path())).unwrap();
    fs::write(elsewhere.join(package("1.0.0").path()).join(PROGRAM), "").unwrap();
    symlink(&elsewhere, &folder).unwrap();
    scene.cache.fill(&job.dir).await;
    assert_eq!(scene.stored("1.0.0"), []);
}

#[tokio::test]
async fn the_least_recently_used_go_and_those_in_use_stay() {
    let scene = Scene::new(25);
    let [first, second] = ["1.0.0", "2.0.0"].map(|version| scene.fetched(version, "ten bytes."));
    let first = first.await;
    scene.clock.advance(1000);
    second.await;
    scene.clock.advance(1000);
    let job = scene.job(&[("1.0.0", first)]).await;
    assert!(scene.link(&job).await);
    scene.fetched("3.0.0", "ten bytes.").await;
    let there = || ["1.0.0", "2.0.0", "3.0.0", "4.0.0"].map(|version| scene.stored(version).len());
    assert_eq!(there(), [1, 0, 1, 0]);
    assert_eq!(scene.cache.figures().removed, 1);
    // Wanted longer ago than all others, but in use.
    scene.clock.advance((60 + 3600) * 1000 - 1);
    scene.fetched("2.0.0", "ten bytes.").await;
    assert_eq!(there(), [1, 1, 0, 0]);
    scene.clock.advance(10_000);
    scene.fetched("3.0.0", "ten bytes.").await;
    assert_eq!(there(), [0, 1, 1, 0]);
    // One that never fits takes nobody's place.
    scene.fetched("4.0.0", "twenty-six bytes, too many").await;
    assert_eq!(there(), [0, 1, 1, 0]);
    assert_eq!(scene.cache.figures().bytes, 20);
}

#[tokio::test]
async fn leftovers_are_removed_unless_somebody_is_at_work_on_them() {
    let scene = Scene::new(1 << 20);
    scene.cache.open().await.unwrap();
    let at_work = scene.cache.store.draft(&scene.cache.store.lock().unwrap()).unwrap();
    for name in [".new-dead", ".old-dead"] {
        fs::create_dir_all(scene.cache.dir().join(name).join("package")).unwrap();
    }
    scene.cache.open().await.unwrap();
    assert_eq!(scene.leftovers(), 1);
    drop(at_work);
    assert_eq!(scene.leftovers(), 0);
}

#[tokio::test]
async fn a_workspace_with_settings_of_its_own_is_left_alone() {
    let scene = Scene::new(1 << 20);
    let variable = |key: &str, category| Variable {
        key: key.into(),
        value: String::new(),
        category,
        hcl: false,
        sensitive: false,
    };
    for key in [VARIABLE, CLI_CONFIG] {
        let mut job = scene.job(&[]).await;
        job.spec.variables = vec![variable(key, Category::Terraform)];
        assert!(scene.link(&job).await, "{key} is no variable of the environment");
        let mut job = scene.job(&[]).await;
        job.spec.variables = vec![variable(key, Category::Env)];
        assert!(!scene.link(&job).await && !job.folder().exists(), "{key}");
        job.spec.variables.clear();
        job.spec.env.insert(key.to_owned(), String::new());
        assert!(!scene.link(&job).await && !job.folder().exists(), "{key} of the pool");
    }
}

#[tokio::test]
async fn a_store_that_cannot_be_used_harms_no_run() {
    let scene = Scene::new(1 << 20);
    let one = h1(&[(PROGRAM, "one")]);
    fs::write(scene.place.path().join("cache"), "in the way").unwrap();
    scene.cache.open().await.unwrap_err();
    let job = scene.job(&[("1.0.0", one)]).await;
    assert!(scene.link(&job).await, "it has its own directory, with nothing in it");
    job.fetches("1.0.0", "one");
    scene.cache.fill(&job.dir).await;
    assert_eq!(scene.cache.figures(), Figures::default());
}

#[tokio::test]
async fn filling_that_is_given_up_leaves_nothing() {
    let scene = Scene::new(1 << 40);
    let job = scene.job(&[]).await;
    assert!(scene.link(&job).await);
    job.fetches("1.0.0", "");
    File::create(job.package("1.0.0").join("large")).unwrap().set_len(8 << 30).unwrap();
    let begun = async {
        while !scene.cache.dir().exists() || scene.leftovers() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = scene.cache.fill(&job.dir) => panic!("it was not given up"),
        () = begun => {}
    }
    while scene.leftovers() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(scene.stored("1.0.0"), []);
}
