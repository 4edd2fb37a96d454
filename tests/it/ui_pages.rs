//! The pages: who may see them, and that nothing a run or user writes becomes markup.

use axum::{
    body::Body,
    http::{Method, Request},
};
use futures::StreamExt;
use serde_json::json;
use terrapool::server::domain::{
    model::{Run, RunOptions},
    runs::{self, NewRun},
};
use tower::ServiceExt;

use crate::support::{
    app::{ADMIN_TOKEN, Answer, Fixture, TestApp},
    sim_agent::{SimAgent, result},
};

const HOSTILE: &str =
    "\x1b[1m\x1b[32m+\x1b[0m create <script>alert('x')</script>\n\x1b]8;;javascript:alert(1)\x07link\n";

async fn page(test: &TestApp, path: &str, cookie: &str) -> Answer {
    let request = Request::builder().uri(path).header("host", "terrapool.test").header("cookie", cookie);
    test.send(request.body(Body::empty()).unwrap()).await
}

fn text(answer: &Answer) -> String {
    String::from_utf8(answer.body.to_vec()).unwrap()
}

async fn post(test: &TestApp, path: &str, form: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header("host", "terrapool.test")
        .header("content-type", "application/x-www-form-urlencoded");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    test.send(request.body(Body::from(form.to_owned())).unwrap()).await
}

/// The cookie of the administrator's session.
async fn sign_in(test: &TestApp) -> String {
    let form = format!("token={ADMIN_TOKEN}&next=%2F");
    let answer = post(test, "/login", &form, &[("origin", "http://terrapool.test")]).await.expect(303);
    let cookie = answer.headers["set-cookie"].to_str().unwrap();
    for part in ["HttpOnly", "SameSite=Lax", "Path=/"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    cookie.split(';').next().unwrap().to_owned()
}

async fn run_of(test: &TestApp, fixture: &Fixture, message: &str) -> Run {
    let new = NewRun {
        workspace_id: fixture.workspace.id.clone(),
        configuration_version_id: Some(fixture.configuration.clone()),
        message: message.to_owned(),
        source: "tfe-api".to_owned(),
        options: RunOptions::default(),
        plan_only: None,
        engine_version: None,
        created_by: None,
    };
    runs::create(&test.app, new).await.unwrap()
}

#[tokio::test]
async fn pages_need_a_session_and_only_a_users_token_begins_one() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    for path in
        ["/", "/app/prod/app", "/app/prod/app/runs/run-1", "/app/settings/tokens", "/app/prod/app/runs/run-1/events"]
    {
        for cookie in ["", "terrapool_session=", "terrapool_session=at-1.99999999999999.c2ln"] {
            let answer = page(&test, path, cookie).await.expect(303);
            assert!(answer.headers["location"].to_str().unwrap().starts_with("/login?next=%2F"), "{path}");
            assert!(answer.body.is_empty(), "{path}");
        }
    }
    for token in ["nonsense", &fixture.pool_token] {
        let answer = post(&test, "/login", &format!("token={token}"), &[]).await.expect(401);
        assert!(!answer.headers.contains_key("set-cookie") && text(&answer).contains("role=\"alert\""));
        assert!(!text(&answer).contains(token), "a secret is not shown again");
    }
    let away = post(&test, "/login", &format!("token={ADMIN_TOKEN}&next=%2F%2Fevil.example"), &[]).await.expect(303);
    assert_eq!(away.headers["location"], "/");
    for foreign in [("origin", "https://evil.example"), ("origin", "null"), ("sec-fetch-site", "cross-site")] {
        let answer = post(&test, "/login", &format!("token={ADMIN_TOKEN}"), &[foreign]).await.expect(403);
        assert!(!answer.headers.contains_key("set-cookie"));
    }
}

#[tokio::test]
async fn a_session_ends_with_its_time_its_token_and_a_forged_cookie_is_none() {
    let test = TestApp::new().await;
    let cookie = sign_in(&test).await;
    page(&test, "/", &cookie).await.expect(200);
    let (name, value) = cookie.split_once('=').unwrap();
    let (token, _) = value.split_once('.').unwrap();
    for forged in
        [format!("{name}={value}x"), format!("{name}={token}.99999999999999.{}", value.rsplit_once('.').unwrap().1)]
    {
        page(&test, "/", &forged).await.expect(303);
    }
    test.advance(13 * 3600);
    page(&test, "/", &cookie).await.expect(303);
    let cookie = sign_in(&test).await;
    page(&test, "/", &cookie).await.expect(200);
    test.request(Method::DELETE, &format!("/api/iacp/v3/access-tokens/{token}"), &json!(null)).await.expect(204);
    page(&test, "/", &cookie).await.expect(303);
}

#[tokio::test]
async fn every_page_forbids_foreign_code_and_frames() {
    let test = TestApp::new().await;
    let cookie = sign_in(&test).await;
    for path in ["/", "/login", "/app/settings/tokens", "/assets/terrapool.css", "/assets/terrapool.js", "/app/no/such"]
    {
        let answer = page(&test, path, &cookie).await;
        let policy = answer.headers["content-security-policy"].to_str().unwrap();
        for part in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"] {
            assert!(policy.contains(part), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe"), "{path}");
        assert_eq!(answer.headers["x-content-type-options"], "nosniff", "{path}");
        // nothing inline, so that the policy breaks nothing
        let html = text(&answer);
        if answer.headers["content-type"].to_str().unwrap().starts_with("text/html") {
            assert!(!html.contains("style=") && !html.contains("onclick") && !html.contains("<script>"), "{path}");
            assert_eq!(answer.headers["cache-control"], "no-store", "{path}");
        }
    }
    page(&test, "/app/no/such", &cookie).await.expect(404);
    page(&test, "/app/no/such/runs/run-x", &cookie).await.expect(404);
}

#[tokio::test]
async fn what_strangers_write_is_shown_as_text() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let cookie = sign_in(&test).await;
    let run = run_of(&test, &fixture, "<img src=x onerror=alert(1)>").await;
    let agent = SimAgent::register(&test, &fixture.pool_token, "<b>agent</b>").await;
    let job = agent.claim().await.unwrap();
    agent.append_log(&job, 0, HOSTILE).await.expect(200);
    let home = "/app/prod/app";
    for path in ["/", home, &format!("{home}/runs/{}", run.id)] {
        let html = text(&page(&test, path, &cookie).await.expect(200));
        assert!(html.contains("&lt;img src=x"), "{path}");
        for markup in ["<script>alert", "<img src=x", "<b>agent", "javascript:"] {
            assert!(!html.contains(markup), "{path}: {markup}");
        }
    }
    let html = text(&page(&test, &format!("{home}/runs/{}", run.id), &cookie).await);
    assert!(html.contains("<span class=\"b f2\">+</span> create &lt;script&gt;"), "{html}");
    // the raw log is the run's own bytes, but never a page
    let raw = page(&test, &format!("{home}/runs/{}/logs/plan", run.id), &cookie).await.expect(200);
    assert_eq!(text(&raw), HOSTILE);
    assert_eq!(raw.headers["content-type"], "text/plain; charset=utf-8");
    // a run is found only below its own workspace
    page(&test, &format!("/app/prod/other/runs/{}", run.id), &cookie).await.expect(404);
}

#[tokio::test]
async fn the_stream_of_a_run_brings_status_and_log_and_ends() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let cookie = sign_in(&test).await;
    let run = run_of(&test, &fixture, "streamed").await;
    let agent = SimAgent::register(&test, &fixture.pool_token, "a").await;
    let job = agent.claim().await.unwrap();
    agent.append_log(&job, 0, "first <line>\n").await.expect(200);
    let request = Request::builder()
        .uri(format!("/app/prod/app/runs/{}/events", run.id))
        .header("cookie", &cookie)
        .body(Body::empty())
        .unwrap();
    let response = test.router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut body = response.into_body().into_data_stream();
    let mut seen = String::new();
    let limit = std::time::Duration::from_secs(20);
    let mut finished = false;
    while let Some(piece) =
        tokio::time::timeout(limit, body.next()).await.unwrap_or_else(|_| panic!("no event: {seen}"))
    {
        seen.push_str(std::str::from_utf8(&piece.unwrap()).unwrap());
        if seen.contains("first &lt;line&gt;") && !finished {
            finished = true;
            let length = "first <line>\n".len() as u64;
            agent.append_log(&job, length, "second\n").await.expect(200);
            let mut done = result(terrapool::api::agent::Outcome::Finished);
            done.log_bytes = length + "second\n".len() as u64;
            agent.put_artifact(&job, "plan", "bundle").await.expect(204);
            agent.finish(&job, &done).await.expect(204);
        }
    }
    for part in ["event: status", "planning", "event: plan", "second", "planned and finished", "event: done"] {
        assert!(seen.contains(part), "{part}: {seen}");
    }
}

#[tokio::test]
async fn the_tokens_page_makes_a_token_that_works() {
    let test = TestApp::new().await;
    let cookie = sign_in(&test).await;
    let shown = page(&test, "/app/settings/tokens?source=terraform-login", &cookie).await.expect(200);
    assert!(text(&shown).contains("credentials &quot;terrapool.test&quot;"), "{}", text(&shown));
    let own = [("cookie", cookie.as_str()), ("origin", "http://terrapool.test")];
    let made = text(&post(&test, "/app/settings/tokens", "description=laptop", &own).await.expect(200));
    let start = made.find("tpu_").unwrap();
    let secret: String = made[start..].chars().take_while(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).collect();
    let request = Request::builder().uri("/api/iacp/v3/accounts").header("authorization", format!("Bearer {secret}"));
    test.send(request.body(Body::empty()).unwrap()).await.expect(200);
    let foreign = [("cookie", cookie.as_str()), ("origin", "http://evil.example")];
    post(&test, "/app/settings/tokens", "description=x", &foreign).await.expect(403);
}
