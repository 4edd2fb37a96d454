//! The cache of providers and run containers. Needs a Docker engine and its command.

use std::{fs, sync::Arc};

use terrapool::{
    agent::{
        executor::{Choice, Executor, Room},
        jobdir::JobDir,
        provider_cache::ProviderCache,
    },
    api::{
        agent::Outcome,
        job::{JobSpec, Stage},
    },
};

use crate::support::{
    docker::docker,
    jobs::{Host, log, log_has, slug, spec},
    metadata::Cloud,
    store::{CacheDir, NOTE, OWN, lock_file, place},
    warm::{assert_nothing_left, waiting_of},
};

const ADDRESS: &str = "registry.example.com/acme/thing";
const PROGRAM: &str = "terraform-provider-thing_v1.0.0";
const ROOM: Room = Room { slots: 5, claimed: 0 };

async fn host(cloud: &Cloud, cache: Option<Arc<ProviderCache>>, root: bool, warm: usize) -> Host {
    Host::with(Choice::Docker, |settings| {
        settings.engines.dir = Some(cloud.engines());
        settings.provider_cache = cache;
        settings.run_as_root = root;
        settings.warm = warm;
    })
    .await
}

async fn started(host: &Host, spec: &JobSpec, script: &str, lock: &str) -> JobDir {
    let files = [("main.tf", ""), ("plan.sh", script), (".terraform.lock.hcl", lock)];
    let dir = host.create(spec, &slug(&files)).await;
    host.start(&dir, spec).await;
    dir
}

/// To the end, and as the agent does then.
async fn ended(host: &Host, spec: &JobSpec, dir: &JobDir) -> String {
    let prepared = host.executor.prepare(spec).await.unwrap();
    let finished = host.finish(dir, spec, &prepared, false).await;
    let text = log(dir);
    assert_eq!(finished.outcome, Outcome::Finished, "{text}");
    if let Some(cache) = host.executor.provider_cache() {
        cache.fill(dir).await;
    }
    dir.remove().await.unwrap();
    text
}

async fn run(host: &Host, script: &str, lock: &str) -> String {
    let spec = spec(Stage::Plan);
    let dir = started(host, &spec, script, lock).await;
    ended(host, &spec, &dir).await
}

fn fetch(content: &str) -> String {
    let place = place(ADDRESS, "1.0.0");
    format!("mkdir -p {place}; echo {content} >{place}/{PROGRAM}\n")
}

#[tokio::test]
async fn a_run_finds_what_another_has_fetched_and_can_change_neither_that_nor_what_its_neighbours_fetch() {
    let cloud = Cloud::without_metadata();
    for (root, warm) in [(false, 0), (false, 1), (true, 0)] {
        let cache = CacheDir::new();
        let host = host(&cloud, Some(cache.open()), root, warm).await;
        run(&host, &fetch("right"), "").await;
        let [stored] = &cache.packages()[..] else { panic!("{:?}", cache.packages()) };
        let lock = lock_file(ADDRESS, "1.0.0", &[&stored.h1]);

        let neighbour = spec(Stage::Plan);
        let wait =
            "mkdir -p ${HOME%/home}/provider-cache/x; echo >${HOME%/home}/provider-cache/x/of-a-neighbour; echo begin
            while [ ! -e stop ]; do sleep 0.05; done\n";
        let neighbour_dir = started(&host, &neighbour, wait, "").await;
        log_has(&neighbour_dir, "begin").await;
        while host.executor.keep_warm(ROOM).await.unwrap() {}
        let waiting = waiting_of(&host.instance);
        assert_eq!(waiting.len(), warm);

        let place = place(ADDRESS, "1.0.0");
        let script = format!(
            "echo begin; while [ ! -e go ]; do sleep 0.05; done
            p={place}; f=$p/{PROGRAM}; s=/terrapool/provider-cache
            echo \"found: $(cat $f) $(readlink $p | cut -c -26)\"; test -x $f && echo 'it can be started'
            for try in \"touch $p/x\" \"touch $s/x\" \"mkdir $s/x\" \"rm -f $f\" \"cp /dev/null $f\" \"chmod 777 $f\" \
                \"mv $f $p/other\" \"ln -s /etc/passwd $p/x\" \"mount -o remount,rw $s\" \"umount $s\"
            do if $try; then echo \"could: $try\"; else echo \"shut: $try\"; fi; done 2>&1
            ls $s >/dev/null 2>&1 && echo 'listed'
            find / -name of-a-neighbour 2>/dev/null; echo told\n"
        );
        let job = spec(Stage::Plan);
        let dir = started(&host, &job, &script, &lock).await;
        log_has(&dir, "begin").await;
        if warm > 0 {
            let id = docker(&["inspect", "--format", "{{.Id}}", &format!("terrapool-{}-1", job.job_id)]);
            assert_eq!(waiting, [id], "a container that waited has the job");
        }
        fs::write(dir.path().join("config/go"), "").unwrap();
        let text = ended(&host, &job, &dir).await;
        assert!(text.contains("found: right /terrapool/provider-cache/"), "{text}");
        assert!(text.contains("it can be started") && text.contains("told"), "{text}");
        assert!(!text.contains("could: ") && text.matches("shut: ").count() == 10, "{text}");
        assert!(text.matches("Read-only file system").count() >= if root { 7 } else { 1 }, "{text}");
        assert!(!text.contains("/of-a-neighbour"), "{text}");
        assert_eq!(text.contains("listed"), root, "only root sees what there is\n{text}");
        assert_eq!(fs::read_to_string(stored.dir.join(PROGRAM)).unwrap(), "right\n");
        assert_eq!(cache.packages(), std::slice::from_ref(stored));

        fs::write(neighbour_dir.path().join("config/stop"), "").unwrap();
        ended(&host, &neighbour, &neighbour_dir).await;
        while host.executor.keep_warm(Room::default()).await.unwrap() {}
        assert_nothing_left(host.data.path(), &host.instance);
    }
}

#[tokio::test]
async fn what_a_hostile_run_leaves_in_the_place_of_packages_is_never_read() {
    let cloud = Cloud::without_metadata();
    let cache = CacheDir::new();
    let host = host(&cloud, Some(cache.open()), true, 0).await;
    let place = |version: &str| place(ADDRESS, version);
    let script = format!(
        "mkdir -p {one} {two} {three}; echo good >{three}/{PROGRAM}
        ln -s /etc/shadow {one}/{PROGRAM}; echo x >{two}/{PROGRAM}; mkfifo {two}/pipe
        mkdir -p {OWN}/a.example.com; ln -s /proc/1/root {OWN}/a.example.com/b\n",
        one = place("1.0.0"),
        two = place("2.0.0"),
        three = place("3.0.0"),
    );
    run(&host, &script, "").await;
    let names: Vec<_> = cache.packages().into_iter().map(|stored| stored.name).collect();
    assert_eq!(names.len(), 1, "{names:?}");
    assert!(names[0].contains("/3.0.0/"), "{names:?}");
}

#[tokio::test]
async fn a_directory_that_no_run_may_see_is_not_used() {
    let cloud = Cloud::without_metadata();
    // Docker takes no path with a colon.
    let cache = tempfile::tempdir().unwrap();
    let dir = cache.path().join("a:b");
    let host = host(&cloud, Some(crate::support::store::cache_at(&dir)), false, 0).await;
    assert!(matches!(&host.executor, Executor::Docker(_)));
    assert!(host.executor.provider_cache().is_none());
    let spec = spec(Stage::Plan);
    let dir = host.create(&spec, &slug(&[&NOTE[..], &[("main.tf", "")]].concat())).await;
    host.start(&dir, &spec).await;
    let text = ended(&host, &spec, &dir).await;
    assert!(text.contains("init: none, plan: none\n"), "{text}");
}
