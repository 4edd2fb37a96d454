//! Which image a run gets: allow-lists, and the image of the plan for its apply. Needs a Docker engine.

use sha2::{Digest, Sha256};
use terrapool::{
    agent::{
        executor::{
            Choice, Isolation, Pull,
            look::{DefaultImage, look_for_image},
        },
        jobdir::JobDir,
    },
    api::{agent::reason, job::Stage},
};

use crate::support::{
    docker::{Image, docker},
    jobs::{Host, apply_of, chain, spec},
    metadata::network_name,
};

/// An image with a content of its own.
fn image(name: &str, content: &str) -> Image {
    Image::of(name, &[("content", content.as_bytes())])
}

fn id(name: &str) -> String {
    docker(&["image", "inspect", "--format", "{{.Id}}", name])
}

#[tokio::test]
async fn an_apply_runs_in_the_image_of_its_plan_although_the_tag_has_moved() {
    let host = Host::new(Choice::Docker).await;
    let name = format!("terrapool-test/{}:1", network_name());
    let first = image(&name, "one");
    let mut plan = spec(Stage::Plan);
    plan.image = Some(first.name.clone());
    let planned = host.executor.prepare(&plan).await.unwrap();
    assert_eq!(planned.image_digest.as_deref(), Some(id(&name).as_str()));
    // Kept by a second name, as a container would keep it.
    let kept = Image { name: format!("{name}-kept") };
    docker(&["tag", &name, &kept.name]);
    let second = image(&name, "two");
    let mut apply = apply_of(&plan);
    let unbound = host.executor.prepare(&apply).await.unwrap();
    assert_eq!(unbound.image.as_deref(), Some(id(&name).as_str()), "the tag has not moved");
    apply.planned.image_digest.clone_from(&planned.image_digest);
    let bound = host.executor.prepare(&apply).await.unwrap();
    assert_eq!(bound, planned);
    // The plan's image is gone: the apply does not take what the tag means now.
    drop((kept, first));
    let again = image(&name, "two");
    let error = host.executor.prepare(&apply).await.unwrap_err();
    assert_eq!(error.reason(), reason::IMAGE_UNAVAILABLE);
    assert!(chain(&error).contains("the plan ran in the image sha256:"), "{}", chain(&error));
    drop((again, second));
}

#[tokio::test]
async fn an_image_that_the_agent_does_not_allow_is_not_even_looked_for() {
    let name = format!("terrapool-test/{}:1", network_name());
    let made = image(&name, "allowed");
    let allowed = |pattern: String| {
        Host::with(Choice::Docker, move |settings| settings.isolation.allowed_images = vec![pattern.parse().unwrap()])
    };
    let mut spec = spec(Stage::Plan);
    spec.image = Some(made.name.clone());
    let host = allowed(format!("docker.io/{name}")).await;
    assert!(host.executor.prepare(&spec).await.is_ok());
    let id = id(&name);
    let short = id.trim_start_matches("sha256:")[..12].to_owned();
    for (image, reason) in [
        (format!("{name}-other"), reason::IMAGE_NOT_ALLOWED),
        (format!("localhost:9/{name}"), reason::IMAGE_NOT_ALLOWED),
        // Ids of an image that is there.
        (short, reason::IMAGE_NOT_ALLOWED),
        (id.clone(), reason::IMAGE_UNAVAILABLE),
    ] {
        spec.image = Some(image.clone());
        let error = host.executor.prepare(&spec).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{image}: {}", chain(&error));
    }
    // An image that needs nobody's leave.
    spec.image = None;
    assert!(host.executor.prepare(&spec).await.is_ok());
}

#[tokio::test]
async fn always_pulling_does_not_make_do_with_what_is_there() {
    let name = format!("localhost:9/terrapool-test/{}:1", network_name());
    let made = image(&name, "there");
    let mut spec = spec(Stage::Plan);
    spec.image = Some(made.name.clone());
    let host = Host::new(Choice::Docker).await;
    assert!(host.executor.prepare(&spec).await.is_ok());
    let host = Host::with(Choice::Docker, |settings| settings.isolation.pull = Pull::Always).await;
    let error = host.executor.prepare(&spec).await.unwrap_err();
    assert!(chain(&error).contains("it is to be pulled before every run, and pulling it failed"), "{}", chain(&error));
}

/// A registry on loopback, which Docker asks over plain HTTP; it has the image `acme/run:1` and no other. Its address.
async fn registry() -> String {
    use axum::{
        Router,
        extract::Path,
        http::{StatusCode, header::CONTENT_TYPE},
        routing::get,
    };

    const NOT_FOUND: (StatusCode, &str) =
        (StatusCode::NOT_FOUND, r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#);

    let digest = |text: &str| format!("sha256:{}", terrapool::hash::hex(Sha256::digest(text)));
    let config = r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
    let kind = "application/vnd.docker.distribution.manifest.v2+json";
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": kind,
        "config": {
            "mediaType": "application/vnd.docker.container.image.v1+json",
            "size": config.len(),
            "digest": digest(config),
        },
        "layers": [],
    })
    .to_string();
    let names = ["1".to_owned(), digest(&manifest)];
    let head = [(CONTENT_TYPE.as_str(), kind.to_owned()), ("docker-content-digest", digest(&manifest))];
    let router = Router::new()
        .route("/v2/", get(|| async { "{}" }))
        .route(
            "/v2/acme/run/manifests/{name}",
            get(move |Path(name): Path<String>| async move {
                names.contains(&name).then_some((head, manifest)).ok_or(NOT_FOUND)
            }),
        )
        .route(&format!("/v2/acme/run/blobs/{}", digest(config)), get(move || async move { config }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

#[tokio::test]
async fn the_image_of_runs_that_name_none_is_looked_for_and_not_pulled() {
    let look = async |name: &str, change: &dyn Fn(&mut Isolation)| {
        let mut isolation = Isolation::default();
        change(&mut isolation);
        look_for_image(None, Some(name), &isolation).await.expect("a Docker engine")
    };
    let usual = |_: &mut Isolation| {};
    let nowhere = |found: DefaultImage, words: &str| match found {
        DefaultImage::Unusable { detail, .. } => assert!(detail.contains(words), "{detail}"),
        other => panic!("{other:?}"),
    };
    let registry = registry().await;
    let image = format!("{registry}/acme/run:1");
    assert_eq!(look(&image, &usual).await, DefaultImage::InRegistry { image: image.clone() });
    assert_eq!(docker(&["image", "ls", "--quiet", &image]), "", "it was pulled");
    nowhere(look(&format!("{registry}/acme/run:2"), &usual).await, "its registry does not give it");
    nowhere(look("Not an image", &usual).await, "not an image reference");

    let here = self::image(&format!("localhost:9/terrapool-test/{}:1", network_name()), "here");
    assert_eq!(look(&here.name, &usual).await, DefaultImage::Here { image: here.name.clone() });
    // Nobody listens there.
    nowhere(look(&here.name, &|isolation| isolation.pull = Pull::Always).await, "its registry does not give it");
    let other = |isolation: &mut Isolation| isolation.allowed_images = vec!["ghcr.io/acme/*".parse().unwrap()];
    nowhere(look(&here.name, &other).await, "ghcr.io/acme/*");

    let none = look_for_image(None, None, &Isolation::default()).await.unwrap();
    assert_eq!(none, DefaultImage::Minimal { shell: true }, "tests/run installs a static busybox");
    assert_eq!(look_for_image(Some("unix:///nowhere"), Some(&image), &Isolation::default()).await, None);
}

/// Through the server: what a plan ran in and what it left is handed to its apply.
#[tokio::test]
async fn the_control_plane_binds_an_apply_to_its_plan() {
    use terrapool::api::run_state::RunState;

    use crate::support::agents::{Plane, RunningAgent, eventually};

    let plane = Plane::new().await;
    let name = format!("terrapool-test/{}:1", network_name());
    let shell = std::fs::read("/bin/busybox").expect("a static busybox, as tests/run installs it");
    let shell_and =
        |content: &str| Image::of(&name, &[("bin/sh", &shell), ("bin/cat", &shell), ("content", content.as_bytes())]);
    let planned = shell_and("the image of the plan");
    // Kept by a second name, as a container would keep it.
    let kept = Image { name: format!("{name}-kept") };
    docker(&["tag", &planned.name, &kept.name]);
    let mut config = plane.config("a");
    config.executor.choice = Choice::Docker;
    config.executor.default_image = Some(name.clone());
    let data = config.data.clone();
    let agent = RunningAgent::start(config).await;
    let run = plane.run("echo waits; until [ -e go ]; do sleep 0.1; done", "cat /content").await;
    eventually("the plan waits", async || plane.log(run.plan_id.as_str()).await.contains("waits")).await;
    let moved = shell_and("another image");
    let waiting = JobDir::scan(&data).await.unwrap();
    std::fs::write(waiting[0].1.path().join("config/go"), "").unwrap();
    let run = plane.until(&run, RunState::Applied).await;
    let said = plane.log(run.apply_id.as_str()).await;
    assert!(said.contains("the image of the plan") && !said.contains("another image"), "{said}");
    let mut connection = plane.test.app.store.read().await.unwrap();
    let mut digests = Vec::new();
    for stage in [run.plan_id.as_str(), run.apply_id.as_str()] {
        let row = terrapool::server::store::runs::stage_by_id(&mut connection, stage).await.unwrap().unwrap();
        digests.push(row.image_digest.unwrap());
    }
    assert!(digests[0].contains("sha256:") && digests[0] == digests[1], "{digests:?}");
    assert_ne!(digests[0], id(&moved.name), "the tag has not moved");
    drop(connection);
    agent.drain().await.unwrap();
}

/// Somebody changes the saved plan where the control plane keeps it.
#[tokio::test]
async fn a_plan_that_was_changed_in_the_storage_is_not_applied() {
    use terrapool::{
        api::run_state::RunState,
        server::domain::{model::RunOptions, runs},
    };

    use crate::support::agents::{Plane, slug};

    let plane = Plane::new().await;
    let agent = plane.agent("a").await;
    let files = [("main.tf", ""), ("apply.sh", "echo it was applied")];
    let configuration = plane.configuration(&files).await;
    let run = plane.test.run(&plane.fixture.workspace.id, &configuration, RunOptions::default()).await;
    let run = plane.until(&run, RunState::Planned).await;
    let mut connection = plane.test.app.store.read().await.unwrap();
    let plan = terrapool::server::store::artifacts::get(&mut connection, &run.id, "plan").await.unwrap().unwrap();
    drop(connection);
    let other = bytes::Bytes::from(slug(&[("tfplan", "another plan")]));
    let stream = futures::stream::iter([Ok::<_, std::io::Error>(other)]);
    plane.test.app.blobs.put_stream(&plan.blob, stream, 1 << 20).await.unwrap();
    runs::confirm(&plane.test.app, &run.id).await.unwrap();
    let run = plane.until(&run, RunState::Errored).await;
    let message = run.error_message.unwrap();
    assert!(message.contains("not the one that was made") && message.contains(&plan.sha256), "{message}");
    assert!(!plane.log(run.apply_id.as_str()).await.contains("it was applied"));
    agent.drain().await.unwrap();
}
