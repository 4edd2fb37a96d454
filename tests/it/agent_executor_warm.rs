//! Containers that wait for jobs. Needs a Docker engine and its command.

use std::fs;

use axum::http::Method;
use serde_json::Value;
use terrapool::{
    agent::{
        executor::{Choice, Room, Settings},
        jobdir::JobDir,
    },
    api::{
        agent::{Outcome, reason},
        job::{JobSpec, Stage},
        run_state::RunState,
    },
};

use crate::support::{
    agents::{Plane, RunningAgent, eventually},
    docker::{containers, docker},
    jobs::{Host, log, log_has, slug, spec},
    metadata::{Cloud, busybox_image},
    warm::{self, Point, Scene, assert_nothing_left, inspect, waiting_of},
};

const ROOM: Room = Room { slots: 5, claimed: 0 };

/// Runs until its configuration has a file `stop`.
const WAIT: &str = "echo begin; while [ ! -e stop ]; do sleep 0.05; done\n";

async fn host(cloud: &Cloud, warm: usize, change: impl FnOnce(&mut Settings)) -> Host {
    Host::with(Choice::Docker, |settings| {
        settings.engines.dir = Some(cloud.engines());
        settings.warm = warm;
        change(settings);
    })
    .await
}

/// As many wait as are to.
async fn settle(host: &Host, room: Room) -> Vec<String> {
    while host.executor.keep_warm(room).await.unwrap() {}
    let waiting = waiting_of(&host.instance);
    assert_eq!(waiting.len(), host.executor.waiting());
    waiting
}

/// A job that runs, and the id of its container.
async fn started(host: &Host, spec: &JobSpec, script: &str) -> (JobDir, String) {
    let dir = host.create(spec, &slug(&[("main.tf", ""), ("plan.sh", script)])).await;
    host.start(&dir, spec).await;
    log_has(&dir, "begin").await;
    let id = docker(&["inspect", "--format", "{{.Id}}", &format!("terrapool-{}-1", spec.job_id)]);
    (dir, id)
}

async fn stopped(host: &Host, spec: &JobSpec, dir: &JobDir) {
    fs::write(dir.path().join("config/stop"), "").unwrap();
    let prepared = host.executor.prepare(spec).await.unwrap();
    let finished = host.finish(dir, spec, &prepared, false).await;
    assert_eq!(finished.outcome, Outcome::Finished, "{}", log(dir));
    dir.remove().await.unwrap();
}

#[tokio::test]
async fn a_job_takes_a_waiting_container_for_good_and_another_is_made() {
    let cloud = Cloud::without_metadata();
    let host = host(&cloud, 1, |_| {}).await;
    let mut used = Vec::new();
    for _ in 0..3 {
        let waiting = settle(&host, ROOM).await;
        let spec = spec(Stage::Plan);
        let (dir, id) = started(&host, &spec, WAIT).await;
        assert_eq!(waiting, std::slice::from_ref(&id));
        assert!(!used.contains(&id), "a container had two jobs");
        used.push(id);
        // With the job at work.
        let next = settle(&host, ROOM).await;
        assert!(next.len() == 1 && !used.contains(&next[0]), "{next:?}");
        stopped(&host, &spec, &dir).await;
    }
    let all = containers(&format!("terrapool.dev/agent={}", host.instance));
    assert!(used.iter().all(|id| !all.contains(id)), "{all:?}");
    settle(&host, Room::default()).await;
    assert_nothing_left(host.data.path(), &host.instance);
}

#[tokio::test]
async fn a_job_that_wants_another_container_gets_one_of_its_own_and_such_ones_wait_from_then_on() {
    let cloud = Cloud::without_metadata();
    let host = host(&cloud, 1, |_| {}).await;
    let image = busybox_image();
    for what in ["memory", "processes", "root", "image"] {
        let waiting = settle(&host, ROOM).await;
        let mut other = spec(Stage::Plan);
        match what {
            "memory" => other.limits.memory_bytes = Some(512 << 20),
            "processes" => other.limits.pids = Some(99),
            "root" => other.run_as_root = true,
            _ => other.image = Some(image.name.clone()),
        }
        let (dir, id) = started(&host, &other, WAIT).await;
        assert!(!waiting.contains(&id), "{what}");
        stopped(&host, &other, &dir).await;
        let waiting = settle(&host, ROOM).await;
        let again = JobSpec { job_id: terrapool::ids::JobId::random(), ..other };
        let (dir, id) = started(&host, &again, WAIT).await;
        assert_eq!(waiting, [id], "{what}");
        stopped(&host, &again, &dir).await;
    }
    settle(&host, Room::default()).await;
    assert_nothing_left(host.data.path(), &host.instance);
}

/// What Docker says of a container but for what must differ.
fn comparable(container: &str) -> Value {
    let mut all = inspect(container);
    let mut value = serde_json::json!({"Config": all["Config"].take(), "HostConfig": all["HostConfig"].take()});
    for (part, field) in [("Config", "Labels"), ("Config", "Cmd"), ("Config", "Hostname"), ("HostConfig", "Binds")] {
        assert!(value[part].as_object_mut().unwrap().remove(field).is_some(), "{field}");
    }
    value
}

#[tokio::test]
async fn a_container_that_waited_is_as_hardened_as_any() {
    let cloud = Cloud::without_metadata();
    for root in [false, true] {
        let [first, second] = [0, 1].map(|warm| host(&cloud, warm, |settings| settings.run_as_root = root));
        let (cold, warm) = (first.await, second.await);
        settle(&warm, ROOM).await;
        let spec = spec(Stage::Plan);
        let (cold_dir, cold_id) = started(&cold, &spec, WAIT).await;
        let wanted = comparable(&cold_id);
        stopped(&cold, &spec, &cold_dir).await;
        let (dir, id) = started(&warm, &spec, WAIT).await;
        assert_eq!(comparable(&id), wanted);
        let mounts = inspect(&id)["Mounts"].take();
        let mut mounts: Vec<_> = mounts
            .as_array()
            .unwrap()
            .iter()
            .map(|mount| (mount["Destination"].as_str().unwrap(), mount["RW"].as_bool().unwrap()))
            .collect();
        mounts.sort_unstable();
        let mounted = ["engine", "job", "job/hooks", "line", "runner"].map(|name| format!("/terrapool/{name}"));
        let wanted: Vec<_> = mounted.iter().map(|path| (path.as_str(), path == "/terrapool/job")).collect();
        assert_eq!(mounts, wanted);
        stopped(&warm, &spec, &dir).await;
        settle(&warm, Room::default()).await;
    }
}

#[tokio::test]
async fn a_run_in_a_container_that_waited_can_change_nothing_but_its_job_and_sees_no_other() {
    let cloud = Cloud::without_metadata();
    let hooks = tempfile::tempdir().unwrap();
    let hook = hooks.path().join("pre-plan");
    fs::write(&hook, "#!/bin/sh\necho the hook runs\n").unwrap();
    fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for root in [false, true] {
        let host = host(&cloud, 2, |settings| {
            settings.run_as_root = root;
            settings.hooks.dir = Some(hooks.path().to_owned());
        })
        .await;
        settle(&host, ROOM).await;
        let neighbour = spec(Stage::Plan);
        let (neighbour_dir, _) = started(&host, &neighbour, WAIT).await;
        fs::write(neighbour_dir.path().join("config/neighbour"), "").unwrap();
        let job = spec(Stage::Plan);
        let script = "echo begin; t=/terrapool; h=$t/job/hooks
            for try in \"touch $t/line/x\" \"rm -f $t/line/go\" \"mv $t/line/go $t/line/no\" \"chmod 777 $t/line\" \
                \"touch $t/engine/x\" \"rm -f $t/engine/terraform\" \"cp /dev/null $t/engine/terraform\" \
                \"chmod 777 $t/engine/terraform\" \"cp /dev/null $t/runner\" \"rm -f $h/pre-plan\" \"touch $h/pre-apply\" \
                \"mv $h $h.old\" \"rmdir $h\" \"cp /dev/null $h/pre-plan\" \"umount $h\" \"mount -o remount,rw $h\"
            do if $try; then echo \"could: $try\"; else echo \"shut: $try\"; fi; done
            ls -1 $t | sed 's/^/seen: /'; find / -name neighbour 2>/dev/null
            touch $t/job/config/mine && echo \"own: yes\"; echo told\n";
        let (dir, _) = started(&host, &job, script).await;
        log_has(&dir, "told").await;
        let text = log(&dir);
        assert!(text.contains("the hook runs") && text.contains("own: yes"), "{text}");
        assert!(!text.contains("could: ") && text.matches("shut: ").count() == 16, "{text}");
        assert!(!text.contains("/neighbour"), "{text}");
        let seen: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("seen: ")).collect();
        assert_eq!(seen, ["engine", "job", "line", "runner"]);
        assert_eq!(fs::read_to_string(&hook).unwrap(), "#!/bin/sh\necho the hook runs\n");
        stopped(&host, &job, &dir).await;
        stopped(&host, &neighbour, &neighbour_dir).await;
        settle(&host, Room::default()).await;
        assert_nothing_left(host.data.path(), &host.instance);
    }
}

#[tokio::test]
async fn one_that_died_is_not_given_a_job_and_is_replaced() {
    let cloud = Cloud::without_metadata();
    let host = host(&cloud, 1, |_| {}).await;
    let dead = settle(&host, ROOM).await;
    docker(&["kill", &dead[0]]);
    let job = spec(Stage::Plan);
    let (dir, id) = started(&host, &job, WAIT).await;
    assert_ne!(id, dead[0]);
    stopped(&host, &job, &dir).await;
    let next = settle(&host, ROOM).await;
    docker(&["kill", &next[0]]);
    eventually("another one waits", async || {
        let waiting = settle(&host, ROOM).await;
        waiting.len() == 1 && waiting != next
    })
    .await;
    let all = containers(&format!("terrapool.dev/agent={}", host.instance));
    assert_eq!(all.len(), 1, "the dead ones are gone");
    settle(&host, Room::default()).await;
    assert_nothing_left(host.data.path(), &host.instance);
}

#[tokio::test]
async fn a_runner_that_waits_sleeps() {
    let cloud = Cloud::without_metadata();
    let host = host(&cloud, 1, |_| {}).await;
    let waiting = settle(&host, ROOM).await;
    let pid = docker(&["inspect", "--format", "{{.State.Pid}}", &waiting[0]]);
    let switches = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status.lines().filter(|line| line.contains("ctxt_switches")).map(str::to_owned).collect::<Vec<_>>()
    };
    // It has come to its wait once the lock is there and it sleeps.
    let asleep = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") S ");
    eventually("it sleeps", async || asleep()).await;
    let before = switches();
    // Whatever goes on beside it.
    let mut other = spec(Stage::Plan);
    other.limits.pids = Some(99);
    let (dir, _) = started(&host, &other, WAIT).await;
    stopped(&host, &other, &dir).await;
    assert_eq!(switches(), before);
    settle(&host, Room::default()).await;
}

#[tokio::test]
async fn an_agent_keeps_to_its_slots_and_takes_all_along_when_it_drains() {
    let plane = Plane::new().await;
    let config = warm::config(&plane, "a", 1, 1);
    let data = config.data.clone();
    let agent = RunningAgent::start(config).await;
    let instance = warm::instance(&data);
    eventually("one waits", async || waiting_of(&instance).len() == 1).await;
    let id = waiting_of(&instance).remove(0);
    let run = plane.run(": >running; while [ ! -e go ]; do sleep 0.05; done", "true").await;
    let running = || {
        let jobs = fs::read_dir(data.join("jobs")).into_iter().flatten().flatten();
        jobs.map(|job| job.path().join("config/running")).find(|path| path.exists())
    };
    eventually("the plan runs", async || running().is_some()).await;
    // The one slot is taken, by the one that waited.
    let all = containers(&format!("terrapool.dev/agent={instance}"));
    assert_eq!(all, [id]);
    fs::write(running().unwrap().with_file_name("go"), "").unwrap();
    plane.until(&run, RunState::Applied).await;
    eventually("one waits again", async || waiting_of(&instance).len() == 1).await;
    agent.drain().await.unwrap();
    assert_nothing_left(&data, &instance);
}

/// Cordons the one agent, or takes that back.
async fn act(plane: &Plane, action: &str) {
    let answer = plane.test.get(&format!("/api/iacp/v3/agent-pools/{}/demand", plane.fixture.pool.id)).await;
    let demand: Value = serde_json::from_slice(&answer.expect(200).body).unwrap();
    let path = format!("/api/iacp/v3/agents/{}/actions/{action}", demand["agents"][0]["id"].as_str().unwrap());
    plane.test.request(Method::POST, &path, &Value::Null).await.expect(200);
}

#[tokio::test]
async fn none_waits_while_the_control_plane_wants_no_jobs_there() {
    let plane = Plane::new().await;
    let config = warm::config(&plane, "a", 3, 2);
    let data = config.data.clone();
    let agent = RunningAgent::start(config).await;
    let instance = warm::instance(&data);
    eventually("two wait", async || waiting_of(&instance).len() == 2).await;
    act(&plane, "cordon").await;
    eventually("none waits", async || containers(&format!("terrapool.dev/agent={instance}")).is_empty()).await;
    act(&plane, "uncordon").await;
    eventually("two wait again", async || waiting_of(&instance).len() == 2).await;
    agent.drain().await.unwrap();
    assert_nothing_left(&data, &instance);
}

#[tokio::test]
async fn what_waits_ends_with_its_agent_and_the_next_one_clears_it_away() {
    let mut scene = Scene::new().await;
    let first = scene.one_waits().await;
    scene.kill().await;
    eventually("the container ends by itself", async || inspect(&first)["State"]["Running"] == false).await;
    assert_eq!(inspect(&first)["State"]["ExitCode"], 0);
    scene.start_again().await;
    let second = scene.one_waits().await;
    assert_ne!(first, second);
    let all = containers(&format!("terrapool.dev/agent={}", warm::instance(&scene.data())));
    assert_eq!(all, [second]);
    scene.leave().await;
}

#[tokio::test]
async fn a_job_whose_hand_over_fails_for_the_engine_gets_a_container_of_its_own() {
    let scene = Scene::new().await;
    let waited = scene.one_waits().await;
    let run = scene.without_engine().await;
    scene.say_go().await;
    let run = scene.plane.until(&run, RunState::Planned).await;
    let log = scene.plane.log(run.plan_id.as_str()).await;
    assert_eq!((log.matches("begin\n").count(), log.matches("end\n").count()), (1, 1), "{log}");
    eventually("the other one is gone", async || {
        let all = containers(&format!("terrapool.dev/agent={}", warm::instance(&scene.data())));
        !all.contains(&waited)
    })
    .await;
    scene.one_waits().await;
    scene.leave().await;
}

/// A plan that was cut off before it began is made anew.
async fn plan_cut_at(point: Point) {
    let mut scene = Scene::new().await;
    let run = scene.cut(false, point).await;
    scene.say_go().await;
    let run = scene.plane.until(&run, RunState::Planned).await;
    let log = scene.plane.log(run.plan_id.as_str()).await;
    assert_eq!((log.matches("begin\n").count(), log.matches("end\n").count()), (1, 1), "{log}");
    assert_eq!(run.plan_attempts, 1);
    scene.leave().await;
}

/// An apply is not.
async fn apply_cut_before_its_begin(point: Point) {
    let mut scene = Scene::new().await;
    let run = scene.cut(true, point).await;
    let run = scene.plane.until(&run, RunState::Errored).await;
    assert_eq!(run.error_code.as_deref(), Some(reason::CONTAINER_LOST));
    let log = scene.plane.log(run.apply_id.as_str()).await;
    assert!(!log.contains("begin"), "{log}");
    assert_eq!(scene.plane.serial().await, None);
    scene.leave().await;
}

#[tokio::test]
async fn a_plan_whose_agent_is_killed_before_the_container_has_its_name_runs_once() {
    plan_cut_at(Point::BeforeName).await;
}

#[tokio::test]
async fn a_plan_whose_agent_is_killed_before_the_runner_knows_runs_once() {
    plan_cut_at(Point::BeforeGo).await;
}

#[tokio::test]
async fn a_plan_whose_agent_is_killed_while_it_runs_goes_on() {
    plan_cut_at(Point::Begun).await;
}

#[tokio::test]
async fn an_apply_whose_agent_is_killed_before_the_container_has_its_name_never_runs() {
    apply_cut_before_its_begin(Point::BeforeName).await;
}

#[tokio::test]
async fn an_apply_whose_agent_is_killed_before_the_runner_knows_never_runs() {
    apply_cut_before_its_begin(Point::BeforeGo).await;
}

#[tokio::test]
async fn an_apply_whose_agent_is_killed_while_it_runs_goes_on() {
    let mut scene = Scene::new().await;
    let run = scene.cut(true, Point::Begun).await;
    scene.say_go().await;
    let run = scene.plane.until(&run, RunState::Applied).await;
    let log = scene.plane.log(run.apply_id.as_str()).await;
    assert_eq!((log.matches("begin\n").count(), log.matches("end\n").count()), (1, 1), "{log}");
    assert_eq!(scene.plane.serial().await, Some(1));
    scene.leave().await;
}
