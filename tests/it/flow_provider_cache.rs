//! The cache of providers with the real terraform and tofu, a provider of our own, and a network mirror that counts how
//! often it is fetched.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use futures::future::join_all;
use terrapool::{
    agent::{
        engine::Engines,
        executor::{Choice, Settings},
        jobdir::{Archive, JobDir},
        providers::Providers,
    },
    api::{
        agent::Outcome,
        job::{EngineKind, JobSpec, Stage},
    },
};

use crate::support::{
    cli::Engine,
    docker::docker,
    jobs::{Host, apply_of, log, slug, spec},
    metadata::Cloud,
    probe::{self, NetworkMirror},
    publisher::sha256,
    store::{CacheDir, Stored, lock_file, place, unfinished},
};

macro_rules! for_each_executor_and_engine {
    ($($name:ident;)*) => {
        for_each_executor_and_engine! { docker_terraform: Docker, Terraform, $($name;)* }
        for_each_executor_and_engine! { docker_tofu: Docker, OpenTofu, $($name;)* }
        for_each_executor_and_engine! { process_terraform: Process, Terraform, $($name;)* }
        for_each_executor_and_engine! { process_tofu: Process, OpenTofu, $($name;)* }
    };
    ($module:ident: $executor:ident, $engine:ident, $($name:ident;)*) => {
        mod $module {
            $( #[tokio::test] async fn $name() {
                super::$name(super::Choice::$executor, super::EngineKind::$engine).await;
            } )*
        }
    };
}

for_each_executor_and_engine! {
    only_the_first_run_fetches_what_the_lock_file_names;
    a_lock_file_with_another_hash_gets_its_own_package;
    other_bytes_under_the_same_name_never_reach_who_has_locked_the_right_ones;
}

/// A mirror, a cache, and executors that share both.
struct Scene {
    choice: Choice,
    kind: EngineKind,
    mirror: NetworkMirror,
    cache: CacheDir,
    host: Host,
}

impl Scene {
    async fn new(choice: Choice, kind: EngineKind) -> Self {
        let address = match choice {
            Choice::Docker => docker(&["network", "inspect", "bridge", "-f", "{{(index .IPAM.Config 0).Gateway}}"]),
            _ => "127.0.0.1".to_owned(),
        };
        let (mirror, cache) = (NetworkMirror::open(&address).await, CacheDir::new());
        let host = host(choice, &mirror, &cache, |_| {}).await;
        Self { choice, kind, mirror, cache, host }
    }

    fn spec(&self) -> JobSpec {
        let mut spec = spec(Stage::Plan);
        spec.engine.kind = self.kind;
        let ca = match self.choice {
            Choice::Docker => "/terrapool/job/config/ca.pem".to_owned(),
            _ => self.mirror.ca.display().to_string(),
        };
        spec.env.insert("SSL_CERT_FILE".to_owned(), ca);
        spec
    }

    fn files(&self, lock: Option<&str>) -> Archive {
        let (main, ca) = (probe::configuration(""), fs::read_to_string(&self.mirror.ca).unwrap());
        let mut files = vec![("main.tf", main.as_str()), ("ca.pem", ca.as_str())];
        files.extend(lock.map(|lock| (".terraform.lock.hcl", lock)));
        slug(&files)
    }

    /// Plans, as an agent does; the log and the lock file that is there then.
    async fn plan(&self, lock: Option<&str>) -> (String, String) {
        self.plan_on(&self.host, lock).await
    }

    async fn plan_on(&self, host: &Host, lock: Option<&str>) -> (String, String) {
        let spec = self.spec();
        let (dir, finished) = host.run(&spec, &self.files(lock)).await;
        let text = log(&dir);
        assert_eq!(finished.outcome, Outcome::Finished, "{finished:?}\n{text}");
        let lock = lock_of(&dir);
        fill(host, &dir).await;
        dir.remove().await.unwrap();
        (text, lock)
    }

    /// The one package that there is.
    fn stored(&self) -> Stored {
        let packages = self.cache.packages();
        let [stored] = &packages[..] else { panic!("{packages:?}") };
        stored.clone()
    }
}

async fn host(choice: Choice, mirror: &NetworkMirror, cache: &CacheDir, change: impl FnOnce(&mut Settings)) -> Host {
    let programs = [Engine::Terraform, Engine::Tofu].map(Engine::program);
    let folders = programs.iter().filter_map(|program| Some(program.parent()?.to_owned()));
    let path = folders.chain(["/usr/bin".into(), "/bin".into()]).collect();
    let providers = Providers { mirror: Some(mirror.url.parse().unwrap()), direct: false };
    Host::with(choice, |settings| {
        settings.engines = Engines::new(None, path);
        settings.providers = providers;
        settings.provider_cache = Some(cache.open());
        // The mirror is on this host. Rules would hold for other tests' runs too.
        settings.isolation.network = "bridge".to_owned();
        (settings.isolation.block_metadata, settings.isolation.block_host) = (false, false);
        change(settings);
    })
    .await
}

async fn fill(host: &Host, dir: &JobDir) {
    host.executor.provider_cache().unwrap().fill(dir).await;
}

fn lock_of(dir: &JobDir) -> String {
    fs::read_to_string(dir.path().join("config/.terraform.lock.hcl")).unwrap()
}

fn program_name() -> String {
    format!("terraform-provider-probe_v{}", probe::VERSION)
}

fn program_of(stored: &Stored) -> PathBuf {
    stored.dir.join(program_name())
}

fn is_the_right_one(program: &Path) -> bool {
    sha256(&fs::read(program).unwrap()) == sha256(&fs::read(probe::program()).unwrap())
}

async fn only_the_first_run_fetches_what_the_lock_file_names(choice: Choice, kind: EngineKind) {
    let scene = Scene::new(choice, kind).await;
    let planned = scene.spec();
    let (dir, finished) = scene.host.run(&planned, &scene.files(None)).await;
    assert_eq!(finished.outcome, Outcome::Finished, "{}", log(&dir));
    let (bundle, lock) = (Archive::File(dir.pack_plan().await.unwrap().unwrap()), lock_of(&dir));
    fill(&scene.host, &dir).await;
    assert_eq!(scene.mirror.fetched(), 1);
    let stored = scene.stored();
    assert!(lock.contains(&stored.h1), "the engine has {lock}, and this agent {stored:?}");
    assert!(is_the_right_one(&program_of(&stored)));

    let applied = apply_of(&planned);
    let dir = scene.host.create(&applied, &scene.files(None)).await;
    dir.put_state(None).await.unwrap();
    dir.unpack_plan(bundle).await.unwrap();
    let prepared = scene.host.start(&dir, &applied).await;
    let finished = scene.host.finish(&dir, &applied, &prepared, false).await;
    let text = log(&dir);
    assert_eq!(finished.outcome, Outcome::Finished, "{text}");
    let state = String::from_utf8(dir.state().await.unwrap().unwrap().to_vec()).unwrap();
    assert!(state.contains("\"version\": \"1.2.3\""), "{state}");
    fill(&scene.host, &dir).await;
    assert_eq!(scene.mirror.fetched(), 1, "{text}");

    let (text, after) = scene.plan(Some(&lock)).await;
    assert_eq!((scene.mirror.fetched(), after), (1, lock), "{text}");
    // Without a lock file engines take nothing from any cache.
    let (text, _) = scene.plan(None).await;
    assert_eq!(scene.mirror.fetched(), 2, "{text}");
    assert_eq!(scene.stored(), stored);
    let figures = scene.host.executor.provider_cache().unwrap().figures();
    assert_eq!((figures.linked, figures.kept, figures.removed), (2, 1, 0));
}

async fn a_lock_file_with_another_hash_gets_its_own_package(choice: Choice, kind: EngineKind) {
    let scene = Scene::new(choice, kind).await;
    scene.plan(None).await;
    let stored = scene.stored();
    // Perhaps of another platform; that of the archive is right.
    let h1 = format!("h1:{}=", "A".repeat(43));
    let other = lock_file(probe::FOLDER, probe::VERSION, &[&h1, &scene.mirror.zh]);
    let (text, _) = scene.plan(Some(&other)).await;
    assert_eq!(scene.mirror.fetched(), 2, "{text}");
    assert_eq!(scene.stored(), stored, "it is here already");
}

/// Another run, in a container or not, has put its own program under the provider's name; with the Process executor it also
/// changes what is in the store, which it can there.
async fn other_bytes_under_the_same_name_never_reach_who_has_locked_the_right_ones(choice: Choice, kind: EngineKind) {
    let scene = Scene::new(choice, kind).await;
    let lock = {
        let elsewhere = Scene::new(choice, kind).await;
        elsewhere.plan(None).await.1
    };
    let cloud = Cloud::without_metadata();
    let hostile =
        host(choice, &scene.mirror, &scene.cache, |settings| settings.engines.dir = Some(cloud.engines())).await;
    let (place, name) = (place(probe::FOLDER, probe::VERSION), program_name());
    let script = format!("mkdir -p {place}; echo evil >{place}/{name}\n");
    let (dir, finished) = hostile.run(&spec(Stage::Plan), &slug(&[("main.tf", ""), ("plan.sh", &script)])).await;
    assert_eq!(finished.outcome, Outcome::Finished, "{}", log(&dir));
    fill(&hostile, &dir).await;
    let poison = scene.stored();
    assert!(!lock.contains(&poison.h1));

    let (text, _) = scene.plan(Some(&lock)).await;
    assert_eq!(scene.mirror.fetched(), 1, "{text}");
    let both = scene.cache.packages();
    let right = both.iter().find(|stored| lock.contains(&stored.h1)).unwrap_or_else(|| panic!("{both:?}"));
    assert!(both.len() == 2 && is_the_right_one(&program_of(right)));
    let (text, _) = scene.plan(Some(&lock)).await;
    assert_eq!(scene.mirror.fetched(), 1, "{text}");

    if choice == Choice::Process {
        let program = program_of(right);
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(&program, "#!/bin/sh\necho evil\n").unwrap();
        let (text, _) = scene.plan(Some(&lock)).await;
        assert_eq!(scene.mirror.fetched(), 2, "{text}");
        assert!(is_the_right_one(&program));
    }
}

#[tokio::test]
async fn eight_runs_at_a_time_of_two_agents_put_one_package_into_an_empty_store() {
    let scene = Scene::new(Choice::Process, EngineKind::Terraform).await;
    let second = host(Choice::Process, &scene.mirror, &scene.cache, |_| {}).await;
    let hosts = [&scene.host, &second];
    let runs = join_all((0..8).map(|at| scene.plan_on(hosts[at % 2], None))).await;
    assert_eq!((runs.len(), scene.mirror.fetched()), (8, 8));
    let lock = &runs[0].1;
    assert!(runs.iter().all(|(_, other)| other == lock));
    assert!(is_the_right_one(&program_of(&scene.stored())));
    assert_eq!(unfinished(scene.cache.path()), 0);
    join_all((0..8).map(|at| scene.plan_on(hosts[at % 2], Some(lock)))).await;
    assert_eq!(scene.mirror.fetched(), 8);
    let kept: u64 = hosts.iter().map(|host| host.executor.provider_cache().unwrap().figures().kept).sum();
    assert_eq!(kept, 1);
}
