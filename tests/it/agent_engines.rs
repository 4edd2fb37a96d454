//! Engines that are downloaded: what is believed of a mirror and what is not, and a cache that many share.

use std::{path::Path, sync::Arc, time::Duration};

use terrapool::{
    agent::engine::{Engines, Error, Releases, Settings},
    api::{
        agent::reason,
        job::{Engine, EngineKind},
        run_state::RunState,
    },
    clock::Clock,
};

use crate::support::{
    agents::{ENGINE, Plane, RunningAgent, eventually},
    cli::Running,
    jobs::chain,
    programs::terrapool,
    publisher::{Publisher, Signer, archive_name, engines, script, sha256, zip},
};

const HOUR: Duration = Duration::from_secs(3600);

fn terraform(version: &str) -> Engine {
    Engine { kind: EngineKind::Terraform, version: Some(version.to_owned()) }
}

/// Names of what stands in the cache, finished or not.
fn cached(cache: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(cache.join("engines")).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

async fn refusal(engines: &Engines, version: &str) -> (Error, String) {
    let error = engines.obtain(&terraform(version), HOUR).await.expect_err("this must not be taken");
    let text = chain(&error);
    (error, text)
}

#[tokio::test]
async fn a_release_is_downloaded_once_and_found_in_the_cache_by_the_next_agent() {
    let (publisher, cache) = (Publisher::open().await, tempfile::tempdir().unwrap());
    publisher.release("9.8.7-rc1", &script("9.8.7-rc1"));
    let path = publisher.engines(cache.path()).obtain(&terraform("9.8.7-rc1"), HOUR).await.unwrap();
    let said = std::process::Command::new(&path).arg("version").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&said.stdout), "Terraform v9.8.7-rc1\n");
    assert_eq!(publisher.asked_at_all(), 3);
    let offline = Settings { download: false, ..publisher.settings(cache.path()) };
    for other in [publisher.engines(cache.path()), engines(offline)] {
        assert_eq!(other.obtain(&terraform("9.8.7-rc1"), HOUR).await.unwrap(), path);
    }
    assert_eq!(publisher.asked_at_all(), 3);
}

/// One way to spoil a release of 9.9.9, and what is said about it.
type Spoiled = (&'static str, fn(&Publisher), &'static [&'static str]);

const SUMS: &str = "terraform_9.9.9_SHA256SUMS";
const SIGNATURE: &str = "terraform_9.9.9_SHA256SUMS.sig";

fn sign_anew(publisher: &Publisher, sums: &str) {
    publisher.put("9.9.9", SIGNATURE, publisher.signer.sign(sums.as_bytes()));
    publisher.put("9.9.9", SUMS, sums.as_bytes().to_vec());
}

const SPOILED: &[Spoiled] = &[
    (
        "another archive than the signed one",
        |publisher| {
            let other = zip(&[("terraform", b"#!/bin/sh\necho 'Terraform v9.9.9'; evil\n")]);
            publisher.put("9.9.9", &archive_name("9.9.9"), other);
        },
        &["has the SHA-256", "mend the mirror"],
    ),
    (
        "an archive that breaks off",
        |publisher| {
            let whole = zip(&[("terraform", script("9.9.9").as_bytes())]);
            publisher.put("9.9.9", &archive_name("9.9.9"), whole[..whole.len() / 2].to_vec());
        },
        &["has the SHA-256", "incomplete"],
    ),
    (
        "checksums that were changed after they were signed",
        |publisher| {
            let sums = format!("{}  {}\n", sha256(b"evil"), archive_name("9.9.9"));
            publisher.put("9.9.9", SUMS, sums.into_bytes());
        },
        &["does not fit the file", "--engine-key"],
    ),
    (
        "a signature by a stranger",
        |publisher| {
            let archive = zip(&[("terraform", script("9.9.9").as_bytes())]);
            let sums = format!("{}  {}\n", sha256(&archive), archive_name("9.9.9"));
            publisher.put("9.9.9", &archive_name("9.9.9"), archive);
            publisher.put("9.9.9", SIGNATURE, Signer::new().sign(sums.as_bytes()));
            publisher.put("9.9.9", SUMS, sums.into_bytes());
        },
        &["by none of the trusted keys", "C874011F0AB405110D02105534365D9472D7468F", "--engine-key"],
    ),
    (
        "a signature that is a web page",
        |publisher| publisher.put("9.9.9", SIGNATURE, b"<html>sign in</html>".to_vec()),
        &["no OpenPGP signature"],
    ),
    ("no signature", |publisher| publisher.remove("9.9.9", SIGNATURE), &[SIGNATURE, "404"]),
    ("no release", |publisher| publisher.remove("9.9.9", SUMS), &[SUMS, "404", "is there such a version?"]),
    ("no archive", |publisher| publisher.remove("9.9.9", &archive_name("9.9.9")), &["404"]),
    (
        "nothing for this kind of machine",
        |publisher| sign_anew(publisher, &format!("{}  terraform_9.9.9_plan9_386.zip\n", sha256(b"x"))),
        &["no checksum of terraform_9.9.9_linux_"],
    ),
    (
        "another version inside",
        |publisher| publisher.release("9.9.9", &script("9.9.8")),
        &["holds terraform 9.9.8", "mend the mirror"],
    ),
    (
        "a program that is none",
        |publisher| publisher.release("9.9.9", "what is this?"),
        &["does not say which version"],
    ),
    (
        "an archive without the program",
        |publisher| publisher.release_of("9.9.9", zip(&[("README.md", b"hello")])),
        &["it has no file `terraform`"],
    ),
    (
        "an archive that breaks off before it was signed",
        |publisher| {
            let whole = zip(&[("terraform", script("9.9.9").as_bytes())]);
            publisher.release_of("9.9.9", whole[..whole.len() - 30].to_vec());
        },
        &["is no archive of an engine"],
    ),
    (
        "a file that leads out of the archive",
        |publisher| {
            let files: &[(&str, &[u8])] = &[("terraform", b"#!/bin/sh\n"), ("../../../evil", b"evil")];
            publisher.release_of("9.9.9", zip(files));
        },
        &["`../../../evil` leads out of it"],
    ),
    (
        "a file at a place of the host",
        |publisher| publisher.release_of("9.9.9", zip(&[("/tmp/terrapool-test-evil", b"evil")])),
        &["no archive of an engine"],
    ),
];

#[tokio::test]
async fn what_is_wrong_with_a_release_is_named_and_nothing_of_it_is_kept() {
    let publisher = Publisher::open().await;
    for (what, spoil, words) in SPOILED {
        let cache = tempfile::tempdir().unwrap();
        publisher.release("9.9.9", &script("9.9.9"));
        spoil(&publisher);
        let (_, text) = refusal(&publisher.engines(cache.path()), "9.9.9").await;
        for word in ["terraform 9.9.9", &publisher.url].iter().chain(*words) {
            assert!(text.contains(word), "{what}: no `{word}` in: {text}");
        }
        assert_eq!(cached(cache.path()), Vec::<String>::new(), "{what}");
        // It was not the test's own fault.
        publisher.release("9.9.9", &script("9.9.9"));
        publisher.engines(cache.path()).obtain(&terraform("9.9.9"), HOUR).await.unwrap();
    }
    assert!(!Path::new("/tmp/terrapool-test-evil").exists());
}

#[tokio::test]
async fn a_publishers_own_key_is_needed_without_another() {
    let (publisher, cache) = (Publisher::open().await, tempfile::tempdir().unwrap());
    publisher.release("9.9.9", &script("9.9.9"));
    let plain = Settings { keys: Vec::new(), ..publisher.settings(cache.path()) };
    let (_, text) = refusal(&engines(plain), "9.9.9").await;
    assert!(text.contains("by none of the trusted keys (C874011F0AB405110D02105534365D9472D7468F)"), "{text}");
}

#[tokio::test]
async fn a_mirror_that_stops_in_the_middle_meets_the_deadline() {
    let (publisher, cache) = (Publisher::open().await, tempfile::tempdir().unwrap());
    publisher.release("9.9.9", &script("9.9.9"));
    publisher.stick(Some(archive_name("9.9.9")));
    let hasty = Settings { deadline: Duration::from_secs(1), ..publisher.settings(cache.path()) };
    let (error, text) = refusal(&engines(hasty), "9.9.9").await;
    assert!(matches!(error, Error::Slow { .. }), "{text}");
    for word in ["terraform 9.9.9", &publisher.url, "longer than 1 s", "--engine-timeout"] {
        assert!(text.contains(word), "{text}");
    }
    assert_eq!(cached(cache.path()), Vec::<String>::new());
}

#[tokio::test]
async fn a_mirror_that_is_away_is_named() {
    let cache = tempfile::tempdir().unwrap();
    let settings = {
        let publisher = Publisher::open().await;
        // Without the secret of whoever wrote it into the address.
        let url = publisher.url.replace("http://", "http://user:hunter2@");
        Settings { origin: url.parse().unwrap(), keys: Vec::new(), ..publisher.settings(cache.path()) }
    };
    let (_, text) = refusal(&engines(settings), "9.9.9").await;
    assert!(text.contains("terraform 9.9.9") && text.contains("http://127.0.0.1:"), "{text}");
    assert!(text.contains("cannot be reached") && text.contains("--engine-mirror"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
}

#[tokio::test]
async fn what_is_no_exact_version_asks_nobody() {
    let (publisher, cache) = (Publisher::open().await, tempfile::tempdir().unwrap());
    for version in ["latest", "~> 1.5", "1.5", "../../1.5.0", "1.5.0/../../x"] {
        let (error, text) = refusal(&publisher.engines(cache.path()), version).await;
        assert!(matches!(error, Error::Version { .. }), "{text}");
        assert!(text.contains(version) && text.contains("1.11.4"), "{text}");
    }
    assert_eq!(publisher.asked_at_all(), 0);
}

#[tokio::test]
async fn an_agent_that_downloads_nothing_says_what_would_help() {
    let (publisher, cache) = (Publisher::open().await, tempfile::tempdir().unwrap());
    publisher.release("9.9.9", &script("9.9.9"));
    let offline = Settings { download: false, ..publisher.settings(cache.path()) };
    let (error, text) = refusal(&engines(offline), "9.9.9").await;
    assert!(matches!(error, Error::Missing(_)), "{text}");
    assert!(text.contains("terraform 9.9.9") && text.contains("--engine-download"), "{text}");
    assert_eq!(publisher.asked_at_all(), 0);
}

#[tokio::test]
async fn ten_jobs_of_two_agents_download_an_engine_once() {
    let (publisher, cache) = (Publisher::open().await, tempfile::tempdir().unwrap());
    publisher.release("9.9.9", &script("9.9.9"));
    let agents = [publisher.engines(cache.path()), publisher.engines(cache.path())];
    let jobs = (0..10).map(|job| {
        let agent = agents[job % 2].clone();
        tokio::spawn(async move { agent.obtain(&terraform("9.9.9"), HOUR).await.unwrap() })
    });
    let mut paths: Vec<_> = futures::future::join_all(jobs).await.into_iter().map(Result::unwrap).collect();
    paths.dedup();
    assert_eq!(paths.len(), 1);
    assert_eq!(publisher.asked(".zip"), 1);
}

#[tokio::test]
async fn an_engine_that_was_changed_in_the_cache_is_downloaded_anew() {
    let (publisher, cache) = (Publisher::open().await, tempfile::tempdir().unwrap());
    publisher.release("9.9.9", &script("9.9.9"));
    let engines = publisher.engines(cache.path());
    let path = engines.obtain(&terraform("9.9.9"), HOUR).await.unwrap();
    std::fs::write(&path, "#!/bin/sh\necho 'Terraform v9.9.9'; echo poison\n").unwrap();
    assert_eq!(engines.obtain(&terraform("9.9.9"), HOUR).await.unwrap(), path);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), script("9.9.9"));
    assert_eq!(publisher.asked(".zip"), 2);
}

#[tokio::test]
async fn the_engine_that_was_not_used_for_longest_makes_room() {
    let (publisher, cache) = (Publisher::open().await, tempfile::tempdir().unwrap());
    let clock = Clock::manual(1_767_323_045_000);
    let settings = Settings { cache_size: 5000, ..publisher.settings(cache.path()) };
    let releases = Releases::new(settings).unwrap().with_clock(clock.clone());
    let engines = Engines::default().with_releases(Arc::new(releases));
    // Two fit, three do not.
    for version in ["1.0.0", "2.0.0", "3.0.0", "4.0.0"] {
        publisher.release(version, &format!("{}# {}\n", script(version), "x".repeat(2000)));
    }
    let obtain = async |version: &str| engines.obtain(&terraform(version), HOUR).await.unwrap();
    let names =
        || cached(cache.path()).iter().map(|name| name.split('_').nth(1).unwrap().to_owned()).collect::<Vec<_>>();
    obtain("1.0.0").await;
    clock.advance(10);
    obtain("2.0.0").await;
    clock.advance(10);
    obtain("1.0.0").await;
    clock.advance(10);
    obtain("3.0.0").await;
    assert_eq!(names(), ["1.0.0", "2.0.0", "3.0.0"], "jobs may still use all of them");
    // Their jobs have ended.
    clock.advance(3 * 3_600_000);
    obtain("4.0.0").await;
    assert_eq!(names(), ["3.0.0", "4.0.0"], "of the others 2.0.0 was the least recently used, then 1.0.0");
    assert!(obtain("1.0.0").await.exists());
}

#[tokio::test]
async fn a_run_with_a_downloaded_engine_is_applied() {
    let (plane, publisher) = (Plane::new().await, Publisher::open().await);
    publisher.release("1.11.4", ENGINE);
    let mut config = plane.config("a");
    let path = std::mem::take(&mut config.executor.engines.path);
    config.executor.engines = publisher.engines(&plane.place.path().join("cache"));
    config.executor.engines.path = path;
    let agent = RunningAgent::start(config).await;
    let run = plane.run("echo planned", "echo applied").await;
    let run = plane.until(&run, RunState::Applied).await;
    assert!(plane.log(run.apply_id.as_str()).await.contains("applied\n"));
    assert_eq!(publisher.asked(".zip"), 1);
    agent.drain().await.unwrap();
}

#[tokio::test]
async fn a_download_that_fails_is_told_in_the_runs_log_with_address_and_mend() {
    let (plane, publisher) = (Plane::new().await, Publisher::open().await);
    let mut config = plane.config("a");
    config.executor.engines = publisher.engines(&plane.place.path().join("cache"));
    let agent = RunningAgent::start(config).await;
    let run = plane.run("", "").await;
    let run = plane.until(&run, RunState::Errored).await;
    assert_eq!(run.error_code.as_deref(), Some(reason::ENGINE_UNAVAILABLE));
    let log = plane.log(run.plan_id.as_str()).await;
    for text in [&log, run.error_message.as_ref().unwrap()] {
        for word in ["terraform 1.11.4", &publisher.url, "404", "is there such a version?"] {
            assert!(text.contains(word), "no `{word}` in: {text}");
        }
    }
    agent.drain().await.unwrap();
}

/// The real program, so that nobody cleans up after it.
#[tokio::test]
async fn an_agent_that_is_killed_while_it_downloads_leaves_nothing_that_is_taken_for_good() {
    let (plane, publisher) = (Plane::new().await, Publisher::open().await);
    publisher.release("1.11.4", ENGINE);
    publisher.stick(Some(archive_name("1.11.4")));
    let cache = tempfile::tempdir().unwrap();
    let start = async || {
        let mut command = terrapool();
        command.args(["agent", "run", "--executor", "process", "--name", "killed", "--url", plane.url.as_str()]);
        command.args(["--engine-mirror", &publisher.url, "--engine-key"]).arg(&publisher.key);
        command.arg("--data").arg(plane.place.path().join("killed")).arg("--cache-dir").arg(cache.path());
        command.env("PATH", "/usr/bin:/bin").env("TERRAPOOL_POOL_TOKEN", &plane.fixture.pool_token);
        let mut running = Running::program("terrapool agent", command);
        running.until("the agent is ready").await;
        running
    };
    let agent = start().await;
    let run = plane.run("echo planned", "echo applied").await;
    eventually("a part of the archive is on the disk", async || {
        let part =
            cached(cache.path()).first().map(|draft| cache.path().join("engines").join(draft).join("archive.zip"));
        part.is_some_and(|part| part.metadata().is_ok_and(|meta| meta.len() > 0))
    })
    .await;
    agent.kill().await;
    assert!(cached(cache.path())[0].starts_with(".new-"), "{:?}", cached(cache.path()));
    publisher.stick(None);
    let agent = start().await;
    plane.until(&run, RunState::Applied).await;
    let [entry] = &cached(cache.path())[..] else { panic!("{:?}", cached(cache.path())) };
    assert!(entry.starts_with("terraform_1.11.4_linux_"), "{entry}");
    agent.kill().await;
}
