//! Traces, from programs as users start them: one tree per run over control plane and agent, and a collector that is out of
//! order is in nobody's way.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, TcpListener},
    time::Duration,
};

use terrapool::agent::executor::Choice;

use crate::support::{
    cli::Cli,
    collector::{Collector, Received},
    poll::eventually,
    programs::{AgentProgram, ServerProgram},
    server::Place,
};

const PATIENCE: Duration = Duration::from_secs(60);

const MAIN: &str = r#"
resource "terraform_data" "one" {
  provisioner "local-exec" { command = "echo traceparent=$TRACEPARENT; echo otel=$(env | grep -c -e OTEL -e canary)" }
}
"#;

/// A control plane and an agent with these environments, and a desk.
struct Scene {
    server: ServerProgram,
    agent: AgentProgram,
    cli: Cli,
    place: Place,
    _data: tempfile::TempDir,
}

impl Scene {
    async fn new(of_server: Vec<(&'static str, String)>, of_agent: Vec<(&'static str, String)>) -> Self {
        let data = tempfile::tempdir().unwrap();
        let server = ServerProgram::start_with(data.path(), of_server).await;
        let place = server.admin.place("acme").await;
        let mut agent = AgentProgram::new(&server, &place.pool_token, "tracer", Choice::Process);
        agent.environment = of_agent;
        agent.start_again().await;
        let cli = server.cli(&place);
        cli.write("main.tf", MAIN);
        cli.succeed(&["init"]).await;
        Self { server, agent, cli, place, _data: data }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_one_trace_over_control_plane_agent_and_stage() {
    let collector = Collector::open();
    let url = || collector.url.clone();
    let scene = Scene::new(
        vec![("TERRAPOOL_OTLP_ENDPOINT", url()), ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=canary%2D1".into())],
        vec![("OTEL_EXPORTER_OTLP_ENDPOINT", url()), ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=canary-2".into())],
    )
    .await;
    let Scene { mut server, mut agent, cli, place, _data } = scene;
    let output = cli.succeed(&["apply", "-auto-approve"]).await;
    let parts = ["queued", "prepare", "start", "engine", "deliver"];
    let steps = |stage: &str| match stage {
        "plan" => ["version", "init", "plan", "show"].as_slice(),
        _ => &["version", "init", "apply"],
    };
    let mut names = vec!["run".to_owned()];
    for stage in ["plan", "apply"] {
        names.push(stage.to_owned());
        names.extend(parts.map(|part| format!("{stage} {part}")));
        names.extend(steps(stage).iter().map(|step| format!("{stage} step {step}")));
    }
    let spans: BTreeMap<String, Received> = eventually("all spans of the run", PATIENCE, async || {
        let spans = collector.spans();
        if spans.len() >= names.len() { Ok(spans) } else { Err(spans) }
    })
    .await
    .into_iter()
    .map(|span| (span.name.clone(), span))
    .collect();
    assert_eq!(spans.keys().collect::<std::collections::BTreeSet<_>>(), names.iter().collect());
    let of = |name: &str| &spans[name];
    let root = of("run");
    assert_eq!(root.parent, None);
    for (name, span) in &spans {
        assert_eq!(span.trace, root.trace, "{name}");
        assert!(span.start <= span.end && span.start >= root.start && span.error.is_none(), "{span:?}");
        let is_agents = name.contains(" step ") || parts[1..].iter().any(|part| name.ends_with(part));
        assert_eq!(span.service, if is_agents { "terrapool-agent" } else { "terrapool-server" }, "{name}");
        assert_eq!(span.key.as_deref(), Some(if is_agents { "canary-2" } else { "canary-1" }), "{name}");
        assert_eq!(span.attribute("terrapool.run.id"), root.attribute("terrapool.run.id"), "{name}");
        let parent = match name.split_once(' ') {
            _ if name == "run" => continue,
            Some((stage, part)) if part.starts_with("step ") => of(&format!("{stage} engine")),
            Some((stage, part)) if part != "queued" => of(stage),
            _ => root,
        };
        assert_eq!(span.parent.as_ref(), Some(&parent.id), "{name}");
        assert!(span.start >= parent.start, "{name}: {span:?} {parent:?}");
    }
    for stage in ["plan", "apply"] {
        let in_order = parts.map(|part| of(&format!("{stage} {part}")));
        assert!(in_order.windows(2).all(|pair| pair[0].end <= pair[1].start), "{in_order:#?}");
        assert_eq!(of(stage).start, in_order[0].end, "a stage begins with its claim");
        let steps: Vec<&Received> = steps(stage).iter().map(|step| of(&format!("{stage} step {step}"))).collect();
        assert!(steps.windows(2).all(|pair| pair[0].end <= pair[1].start), "{steps:#?}");
        assert!(steps[1].end - steps[1].start > 0 && steps.last().unwrap().end <= of(&format!("{stage} engine")).end);
        let code = if stage == "plan" { "2" } else { "0" };
        let told = steps.iter().map(|step| step.attribute("terrapool.step.exit_code"));
        assert!(
            told.eq(steps.iter().map(|step| Some(if step.name == "plan step plan" { code } else { "0" }))),
            "{steps:#?}"
        );
    }
    assert!(of("plan").end <= of("apply queued").start && of("apply").end <= root.end, "{spans:#?}");
    let told = [
        ("terrapool.workspace", "app"),
        ("terrapool.environment", place.organization.as_str()),
        ("terrapool.run.status", "applied"),
    ];
    for (name, value) in told {
        assert_eq!(root.attribute(name), Some(value), "{root:?}");
    }
    // What the stage's programs record hangs below its engine; where it is sent is not told to them.
    output.says(&format!("traceparent=00-{}-{}-01", root.trace, of("apply engine").id)).says("otel=0");
    for said in [agent.terminate().await, server.terminate().await] {
        assert!(said.status.success() && !said.all.contains("canary") && !said.all.contains("spans did"), "{said:?}");
    }
    // The agent's last act.
    let told = collector.metrics();
    let resource = told.last().expect("metrics");
    let who = &resource["resource"]["attributes"];
    assert_eq!(
        (&who[0]["value"]["stringValue"], &who[2]["value"]["stringValue"]),
        (&"terrapool-agent".into(), &"tracer".into())
    );
    let points = |name: &str, kind: &str| {
        let metrics = resource["scopeMetrics"][0]["metrics"].as_array().unwrap();
        let metric =
            metrics.iter().find(|metric| metric["name"] == name).unwrap_or_else(|| panic!("{name}: {resource}"));
        metric[kind]["dataPoints"].as_array().unwrap().clone()
    };
    assert_eq!(points("terrapool_agent_jobs", "gauge")[0]["asDouble"], 0.0);
    let stages = points("terrapool_agent_stages", "sum");
    assert!(stages.len() == 2 && stages.iter().all(|point| point["asDouble"] == 1.0), "{stages:?}");
    let seconds = points("terrapool_agent_stage_seconds", "histogram");
    assert!(seconds.len() == 2 && seconds.iter().all(|point| point["count"] == "1"), "{seconds:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_or_refuses_is_in_nobodys_way() {
    // It accepts connections, as the kernel does for it, and never answers.
    let hanging = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let hangs = format!("http://{}", hanging.local_addr().unwrap());
    // Taken and given back: nobody listens there.
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let refuses = format!("http://{free}");
    for (of_server, of_agent) in [(&hangs, &refuses), (&refuses, &hangs)] {
        let environment = |url: &String| vec![("TERRAPOOL_OTLP_ENDPOINT", url.clone())];
        let scene = Scene::new(environment(of_server), environment(of_agent)).await;
        let Scene { mut server, mut agent, cli, .. } = scene;
        cli.succeed(&["apply", "-auto-approve"]).await.says("Apply complete! Resources: 1 added");
        eventually("the agent says that its spans are dropped", PATIENCE, async || {
            let said = agent.said();
            if said.contains("the collector does not take spans") { Ok(()) } else { Err(said) }
        })
        .await;
        for said in [agent.terminate().await, server.terminate().await] {
            assert!(said.status.success() && said.all.contains("spans did not reach the collector"), "{said:?}");
        }
    }
}
