//! Mode Node: one agent on each labelled node, which gives every stage a container of the node's own engine.

use std::{fs, path::PathBuf};

use serde_json::{Value, json};

use crate::support::{
    cli::cache,
    cluster::{CENTOS, shares_our_engine},
    docker::{command, containers, docker},
    e2e::{World, condition, is_ready, name, runs::Run, small},
};

const LABEL: &str = "terrapool.dev/job";

/// Goes on for long enough to lose its agent, and says what it could reach. The log shows the command too, so what it
/// says must not stand in it.
const CONFIGURATION: &str = r#"
resource "terraform_data" "where" {
  provisioner "local-exec" {
    command = "echo be''gun as $(id -u) at $(hostname), engine: $(ls /var/run/docker.sock 2>&1); sleep 6; echo fini''shed"
  }
}
"#;

/// What agents of a namespace keep on the node, which is this host; removed with the value.
struct Data(PathBuf);

impl Drop for Data {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// Containers of runs whose job directory is below `data`, as the engine describes them.
fn run_containers(data: &Data) -> Vec<Value> {
    let place = data.0.to_str().unwrap();
    let described = |id: &String| {
        // Err: removed meanwhile.
        let output = command().args(["inspect", id]).output().unwrap();
        serde_json::from_slice::<Vec<Value>>(&output.stdout).ok()?.pop()
    };
    let ours = |container: &Value| container["HostConfig"]["Binds"].to_string().contains(place);
    containers(LABEL).iter().filter_map(described).filter(ours).collect()
}

fn example(world: &World) -> Value {
    let path = format!("{}/examples/04-labelled-nodes.yaml", env!("CARGO_MANIFEST_DIR"));
    let mut pool = world.kubectl().get_file(&path);
    world.adapt_pool(&mut pool);
    pool["spec"]["agents"]["resources"] = small();
    pool
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_on_each_labelled_node_runs_stages_in_containers_of_its_engine() {
    if !shares_our_engine() {
        println!("not tried: the nodes of this cluster have no container engine that this host sees");
        return;
    }
    docker(&["load", "--input", cache().join("images/terraform.tar").to_str().unwrap()]);
    let world = World::new("privileged").await;
    let data = Data(PathBuf::from("/var/lib/terrapool-agent").join(world.name()));
    let pool = example(&world);
    assert_eq!(pool["spec"]["agents"]["nodeSelector"], json!({CENTOS.0: CENTOS.1}));
    let pool = name(&pool).to_owned();
    world.kubectl().apply(&example(&world).to_string());
    world.apply_link("app", &pool);
    world.pool_becomes(&pool, "Ready", "True").await;
    let agents = world.pods_become(&pool, "one, which is ready", |pods| pods.len() == 1 && is_ready(&pods[0])).await;
    let node = agents[0]["spec"]["nodeName"].as_str().unwrap().to_owned();
    let node = world.read(&format!("/api/v1/nodes/{node}")).await;
    assert_eq!(node["metadata"]["labels"][CENTOS.0], CENTOS.1);
    world
        .until("the agent is shown", async || {
            let agents = world.pool(&pool).await["status"]["agents"].clone();
            if agents["summary"] == "1/1" && agents["idle"] == 1 { Ok(()) } else { Err(agents) }
        })
        .await;

    // Its agent is killed in the middle of an apply: the kubelet starts it again, and the container goes on.
    let workspace = world.make_workspace("app").await;
    let run = applying(&world, &workspace, CONFIGURATION).await;
    let working = run_containers(&data);
    let [working] = &working[..] else { panic!("{working:?}") };
    assert_eq!(working["HostConfig"]["CapDrop"], json!(["ALL"]), "{working}");
    assert_eq!(working["HostConfig"]["Privileged"], false);
    let image = docker(&["image", "inspect", "--format", "{{.Id}}", "terraform:test"]);
    assert_eq!(working["Config"]["Image"], image.as_str());
    world.kill_agent(&agents[0]);
    world.run_becomes(&run, "applied").await;
    let (log, complete) = world.admin.log(&world.run(&run).await, "apply").await;
    let log = String::from_utf8_lossy(&log).into_owned();
    assert!(complete && log.matches("begun as").count() == 1 && log.contains("finished"), "{log}");
    assert!(!log.contains("begun as 0 ") && log.contains("docker.sock: No such file"), "{log}");
    assert!(log.contains(&format!("at {:.12}", working["Id"].as_str().unwrap())), "{log}");
    nothing_runs(&world, &data).await;

    // Its Pod is deleted in the middle of one, as an update does: it takes nothing new, and finishes what it has.
    let run = applying(&world, &workspace, &CONFIGURATION.replace("\"where\"", "\"there\"")).await;
    world.kubectl().run(&["delete", "pod", name(&agents[0]), "--wait=false"]);
    world.run_becomes(&run, "applied").await;
    world
        .pods_become(&pool, "another one", |pods| {
            pods.len() == 1 && is_ready(&pods[0]) && name(&pods[0]) != name(&agents[0])
        })
        .await;
    nothing_runs(&world, &data).await;

    // No agent without a label: the pool says what is missing, and has none left.
    let nowhere = json!({"spec": {"agents": {"nodeSelector": {CENTOS.0: "elsewhere"}}}}).to_string();
    world.kubectl().run(&["patch", "agentpool", &pool, "--type=merge", "--patch", &nowhere]);
    world.pods_become(&pool, "none", <[Value]>::is_empty).await;
    let lonely = world.pool_becomes(&pool, "AgentsAvailable", "False").await;
    assert_eq!(condition(&lonely, "AgentsAvailable")["reason"], "Unschedulable", "{lonely}");

    world.kubectl().run(&["delete", "agentpools,workspacelinks", "--all", "--wait=false"]);
    world.nothing_is_left().await;
}

/// A run of this configuration, whose apply works by now.
async fn applying(world: &World, workspace: &str, configuration: &str) -> Run {
    let configuration = world.upload(workspace, configuration).await;
    world.link_becomes("app", "Ready", "True").await;
    let run = world.queue(workspace, &configuration).await;
    world.apply_says(&run, "begun as").await;
    run
}

async fn nothing_runs(world: &World, data: &Data) {
    world
        .until("the run's containers are gone", async || {
            let left = run_containers(data);
            if left.is_empty() { Ok(()) } else { Err(left) }
        })
        .await;
}
