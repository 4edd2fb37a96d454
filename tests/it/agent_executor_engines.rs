//! Downloaded engines in run containers. Needs a Docker engine.

use terrapool::{
    agent::{engine::Engines, executor::Choice},
    api::{agent::Outcome, job::Stage},
};

use crate::support::{
    agents::ENGINE,
    jobs::{Host, log, slug, spec},
    publisher::Publisher,
};

fn only(publisher: &Publisher, cache: &std::path::Path) -> Engines {
    publisher.engines(cache)
}

#[tokio::test]
async fn a_downloaded_engine_is_mounted_and_a_run_cannot_write_to_it() {
    let (publisher, cache) = (Publisher::open().await, tempfile::tempdir().unwrap());
    publisher.release("1.11.4", ENGINE);
    let host = Host::with(Choice::Docker, |settings| settings.engines = only(&publisher, cache.path())).await;
    let mut spec = spec(Stage::Plan);
    spec.engine.version = Some("1.11.4".to_owned());
    // As root nothing but the mount itself is in the way.
    spec.run_as_root = true;
    let script = "f=/terrapool/engine/terraform; echo poison >>$f && echo written; rm -f $f && echo removed; echo done";
    let (dir, finished) = host.run(&spec, &slug(&[("main.tf", ""), ("plan.sh", script)])).await;
    let text = log(&dir);
    assert_eq!(finished.outcome, Outcome::Finished, "{finished:?}\n{text}");
    assert!(text.contains("done") && !text.contains("written") && !text.contains("removed"), "{text}");
    assert!(text.contains("Read-only file system"), "{text}");
    let again = only(&publisher, cache.path()).obtain(&spec.engine, std::time::Duration::ZERO).await.unwrap();
    assert_eq!(std::fs::read_to_string(again).unwrap(), ENGINE);
    assert_eq!(publisher.asked(".zip"), 1);
}

#[tokio::test]
async fn an_image_gets_the_version_that_it_may_not_have() {
    let (publisher, cache) = (Publisher::open().await, tempfile::tempdir().unwrap());
    publisher.release("1.11.4", ENGINE);
    let busybox = std::fs::read("/bin/busybox").expect("/bin/busybox: install busybox-static");
    let other = ENGINE.replace("1.11.4", "1.0.0");
    let name = format!("terrapool-test-engines:{}", std::process::id());
    let files: &[(&str, &[u8])] =
        &[("bin/busybox", &busybox), ("bin/sh", &busybox), ("bin/terraform", other.as_bytes())];
    let image = crate::support::docker::Image::of(&name, files);
    let host = Host::with(Choice::Docker, |settings| settings.engines = only(&publisher, cache.path())).await;
    let mut spec = spec(Stage::Plan);
    spec.image = Some(image.name.clone());
    for (version, wanted) in [(Some("1.11.4"), "Terraform v1.11.4"), (None, "Terraform v1.0.0")] {
        spec.job_id = terrapool::ids::JobId::random();
        spec.engine.version = version.map(str::to_owned);
        let (dir, finished) = host.run(&spec, &slug(&[("main.tf", "")])).await;
        assert_eq!(finished.outcome, Outcome::Finished, "{finished:?}\n{}", log(&dir));
        assert!(log(&dir).starts_with(wanted), "{}", log(&dir));
    }
    // What cannot be had is left to the image, and asked for once.
    spec.engine.version = Some("9.9.9".to_owned());
    for _ in 0..2 {
        assert_eq!(host.executor.prepare(&spec).await.unwrap().engine, None);
    }
    assert_eq!(publisher.asked("9.9.9_SHA256SUMS"), 1);
}
