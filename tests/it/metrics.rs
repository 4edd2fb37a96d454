//! `/metrics`, `/healthz`, `/readyz`.

use axum::{body::Body, http::Request};
use terrapool::server::domain::model::RunOptions;

use crate::support::{app::TestApp, sim_agent::SimAgent};

#[tokio::test]
async fn pools_requests_and_build_are_told_to_prometheus() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    SimAgent::register(&test, &fixture.pool_token, "a").await;
    test.run(&fixture.workspace.id, &fixture.configuration, RunOptions::default()).await;
    test.advance(7);
    test.get("/api/iacp/v3/agent-pools/apool-unknown").await.expect(404);
    let answer = test.get("/metrics").await.expect(200);
    assert!(answer.headers["content-type"].to_str().unwrap().starts_with("application/openmetrics-text"));
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    let pool = format!("pool=\"pool\",pool_id=\"{}\"", fixture.pool.id);
    for line in [
        format!("terrapool_pool_queue_depth{{{pool},priority=\"plan\"}} 1"),
        format!("terrapool_pool_queue_depth{{{pool},priority=\"apply\"}} 0"),
        format!("terrapool_pool_oldest_queued_seconds{{{pool}}} 7"),
        format!("terrapool_pool_ready_agents{{{pool}}} 1"),
        format!("terrapool_pool_busy_agents{{{pool}}} 0"),
        format!("terrapool_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION")),
        "terrapool_fenced_writes_total 0".to_owned(),
        "terrapool_pool_claim_latency_seconds_count 0".to_owned(),
        "path=\"/api/iacp/v3/agent-pools/{id}\",status=\"404\"} 1".to_owned(),
        "# EOF".to_owned(),
    ] {
        assert!(text.contains(&line), "{line} is not in\n{text}");
    }
    assert!(!text.contains("apool-unknown"), "labels are bounded: no path of a client");
    assert_eq!(text.matches("# EOF").count(), 1);
}

#[tokio::test]
async fn health_is_open_and_metrics_are_not() {
    let test = TestApp::new().await;
    let open = |path: &str| Request::builder().uri(path).body(Body::empty()).unwrap();
    test.send(open("/metrics")).await.expect(401);
    test.send(open("/healthz")).await.expect(200);
    assert_eq!(test.send(open("/readyz")).await.expect(200).body, "ready\n");
    test.app.closing.cancel();
    let stopping = test.send(open("/readyz")).await.expect(503);
    assert_eq!(stopping.body, "not ready: shutting down\n");
    test.send(open("/healthz")).await.expect(200);
    test.app.store.close().await;
    let gone = test.send(open("/readyz")).await.expect(503);
    assert!(String::from_utf8_lossy(&gone.body).contains("database"), "{gone:?}");
}
