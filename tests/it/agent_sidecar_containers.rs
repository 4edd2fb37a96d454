//! The run container as a container: another root file system, process ids of its own, no rights at all. Needs a Docker
//! engine and its command.

use std::fs;

use terrapool::{agent::executor::volume, api::run_state::RunState, server::domain::model::RunOptions};

use crate::support::{
    agents::{Plane, eventually},
    cli::Engine,
    docker::{Image, docker, quietly},
    pods::{Pod, SAME, copy},
};

/// A run container that is removed with the value.
struct Container(String);

impl Container {
    /// As a Pod of profile "restricted" has it, with a read-only root file system and no network.
    fn start(image: &Image, pod: &Pod) -> Self {
        let volume = pod.volume.to_str().unwrap();
        let (mount, user) = (format!("{volume}:{volume}"), format!("{0}:{0}", pod.run_user()));
        let runner = format!("{volume}/{}", volume::RUNNER);
        let hardening = ["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--network=none"];
        let mut arguments = vec!["run", "--detach", "--volume", &mount, "--user", &user, "--entrypoint", &runner];
        arguments.extend(hardening);
        arguments.extend([&image.name, "wait", volume]);
        Self(docker(&arguments))
    }

    async fn succeeds(&self) {
        let state = || docker(&["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", &self.0]);
        eventually("the end of the run container", async || state().starts_with("exited")).await;
        assert_eq!(state(), "exited 0", "{}", docker(&["logs", &self.0]));
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        quietly(&["rm", "--force", "--volumes", &self.0]);
    }
}

#[tokio::test]
async fn a_run_works_in_an_empty_image_with_the_agents_engine() {
    let plane = Plane::new().await;
    let image = Image::of("terrapool-test/sidecar-empty:1", &[("nothing", b"")]);
    let engines = plane.place.path().join("real");
    fs::create_dir(&engines).unwrap();
    copy(&Engine::Terraform.program(), &engines.join("terraform_1.11.4"));
    let configuration = plane.configuration(&[("main.tf", "resource \"terraform_data\" \"one\" {}\n")]).await;
    let options = RunOptions { auto_apply: true, ..RunOptions::default() };
    let run = plane.test.run(&plane.fixture.workspace.id, &configuration, options).await;
    for (name, status) in [("plan", RunState::ApplyQueued), ("apply", RunState::Applied)] {
        let mut pod = Pod::new(&plane, name, SAME).await;
        let container = Container::start(&image, &pod);
        pod.start_agent(&plane, &["--engine-dir", engines.to_str().unwrap()]);
        plane.until(&run, status).await;
        pod.agent.take().unwrap().end().await.expect(0);
        container.succeeds().await;
    }
    let run = plane.test.reread(&run).await;
    let log = plane.log(run.apply_id.as_str()).await;
    assert!(log.contains("Apply complete! Resources: 1 added"), "{log}");
}

#[tokio::test]
async fn an_image_without_an_engine_says_so() {
    let plane = Plane::new().await;
    let image = Image::of("terrapool-test/sidecar-none:1", &[("nothing", b"")]);
    let run = plane.run("", "").await;
    let mut pod = Pod::new(&plane, "a", SAME).await;
    let container = Container::start(&image, &pod);
    pod.start_agent(&plane, &[]);
    let run = plane.until(&run, RunState::Errored).await;
    assert_eq!(run.error_code.as_deref(), Some("engine_unavailable"));
    pod.agent.take().unwrap().end().await.expect(0);
    container.succeeds().await;
}

/// As process id 1, to which the kernel does not deliver what is not asked for.
#[tokio::test]
async fn a_waiting_run_container_ends_with_its_agent_and_when_it_is_told_to() {
    let plane = Plane::new().await;
    let image = Image::of("terrapool-test/sidecar-idle:1", &[("nothing", b"")]);
    let mut pod = Pod::new(&plane, "a", SAME).await;
    let container = Container::start(&image, &pod);
    pod.start_agent(&plane, &[]).until("the agent is ready").await;
    docker(&["kill", "--signal=TERM", &container.0]);
    assert_eq!(docker(&["inspect", "--format", "{{.State.Running}}", &container.0]), "true", "its agent is there");
    pod.signal(rustix::process::Signal::TERM);
    pod.agent.take().unwrap().end().await.expect(0);
    container.succeeds().await;

    let alone = Pod::new(&plane, "b", SAME).await;
    let container = Container::start(&image, &alone);
    alone.runner_is_ready().await;
    docker(&["kill", "--signal=TERM", &container.0]);
    container.succeeds().await;
}

#[tokio::test]
async fn a_run_container_that_is_killed_is_noticed_from_outside() {
    let plane = Plane::new().await;
    let image = Image::of("terrapool-test/sidecar-killed:1", &[("nothing", b"")]);
    let mut pod = Pod::new(&plane, "a", SAME).await;
    let container = Container::start(&image, &pod);
    pod.start_agent(&plane, &[]).until("the agent is ready").await;
    docker(&["kill", &container.0]);
    pod.agent.take().unwrap().end().await.expect(0).says("the run container has ended");
}
