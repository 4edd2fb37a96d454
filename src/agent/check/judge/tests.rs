use super::*;
use crate::{agent::check::facts::Proxy, api::agent::PoolResponse, ids::PoolId};

const NOW: i64 = 1_800_000_000;

fn pool(expires_in_days: Option<i64>) -> Answer {
    Answer::Pool(PoolResponse {
        pool_id: PoolId::random(),
        pool_name: "private".to_owned(),
        token_expires_at_ms: expires_in_days.map(|days| (NOW + days * DAY) * 1000),
        server_time_ms: NOW * 1000,
    })
}

/// An engine that can all that is wanted of it.
fn engine(version: &str) -> Engine {
    Engine { version: version.to_owned(), limits_memory: true, limits_processes: true, ..Engine::default() }
}

fn source(programs: &str, answers: bool) -> Source {
    let answers = if answers { Ok(()) } else { Err("connection refused".to_owned()) };
    Source { programs: programs.to_owned(), address: format!("https://{programs}.example.com"), answers }
}

/// A host where all is well.
fn well() -> Facts {
    Facts {
        url: "https://terrapool.example.com".parse().unwrap(),
        has_token: true,
        token_file_mode: Some(0o100_600),
        proxy: None,
        addresses: Ok(vec!["192.0.2.1".to_owned()]),
        connection: Some(Ok(())),
        answer: pool(None),
        certificate_ends: Some(NOW + 60 * DAY),
        clock_ahead: Some(0),
        now: NOW,
        data: Data { path: "/var/lib/terrapool-agent".into(), free: Some(50 << 30), writable: Ok(()) },
        executor: Choice::Docker,
        is_root: true,
        docker: Some(Sight::Answers(engine("28.5.2"))),
        image: Some(DefaultImage::Minimal { shell: true }),
        engines: vec!["terraform 1.11.4 at /usr/bin/terraform".to_owned()],
        sources: vec![source("terraform", true), source("tofu", true)],
        cgroup: Cgroup { version: Some(2), memory: true, pids: true },
    }
}

/// The one finding that is not well.
fn only(facts: &Facts) -> Finding {
    let mut bad: Vec<_> = judge(facts).into_iter().filter(|finding| finding.level != Level::Ok).collect();
    assert_eq!(bad.len(), 1, "{bad:?}");
    let finding = bad.remove(0);
    assert!(finding.mend.is_some(), "{finding:?}");
    finding
}

fn assert_only(facts: &Facts, check: &str, level: Level, words: &str) {
    let finding = only(facts);
    assert_eq!((finding.check, finding.level), (check, level), "{finding:?}");
    let text = format!("{} {}", finding.detail, finding.mend.as_deref().unwrap_or_default());
    assert!(text.contains(words), "{finding:?}");
}

#[test]
fn a_host_where_all_is_well_has_a_line_for_everything() {
    let findings = judge(&well());
    assert!(findings.iter().all(|finding| finding.level == Level::Ok && finding.mend.is_none()), "{findings:?}");
    let checks: Vec<_> = findings.iter().map(|finding| finding.check).collect();
    let way = ["address", "proxy", "dns", "tcp", "tls", "clock", "token"];
    let host = ["data", "disk", "executor", "image", "engine", "download", "cgroup"];
    assert_eq!(checks, [&way[..], &host].concat());
}

#[test]
fn plain_http_is_well_on_this_machine_only() {
    let mut facts = Facts { url: "http://terrapool.example.com".parse().unwrap(), certificate_ends: None, ..well() };
    assert_only(&facts, "address", Level::Warn, "read on the way");
    facts.url = "http://127.0.0.1:8780".parse().unwrap();
    assert!(judge(&facts).iter().all(|finding| finding.level == Level::Ok));
}

#[test]
fn without_a_name_nothing_is_said_of_connection_and_tls() {
    let facts = Facts {
        addresses: Err("unknown".to_owned()),
        connection: None,
        answer: Answer::None("no address".to_owned()),
        certificate_ends: None,
        clock_ahead: None,
        ..well()
    };
    let bad: Vec<_> = judge(&facts).into_iter().filter(|finding| finding.level != Level::Ok).collect();
    let told: Vec<_> = bad.iter().map(|finding| (finding.check, finding.level)).collect();
    assert_eq!(told, [("dns", Level::Fail), ("token", Level::Warn)]);
}

#[test]
fn a_connection_that_fails_is_told_by_its_mend() {
    for (connection, words) in [
        (NoConnection::Refused, "port 443"),
        (NoConnection::TimedOut, "firewall"),
        (NoConnection::Other("no route".to_owned()), "no route"),
    ] {
        let facts = Facts {
            connection: Some(Err(connection)),
            answer: Answer::None("x".to_owned()),
            certificate_ends: None,
            clock_ahead: None,
            ..well()
        };
        let findings = judge(&facts);
        let tcp = findings.iter().find(|finding| finding.check == "tcp").unwrap();
        assert_eq!(tcp.level, Level::Fail);
        assert!(format!("{tcp:?}").contains(words), "{tcp:?}");
        assert!(!findings.iter().any(|finding| finding.check == "tls"));
    }
}

#[test]
fn a_proxy_is_named_as_the_one_that_is_connected_to() {
    let proxy = Some(Proxy { host: "proxy.example.com".to_owned(), port: 3128 });
    let findings = judge(&Facts { proxy, ..well() });
    let details: Vec<_> = findings.iter().map(|finding| finding.detail.as_str()).collect();
    assert_eq!(details[1], "proxy.example.com:3128, from the environment");
    assert_eq!(details[3], "the proxy proxy.example.com accepts connections at port 3128");
}

#[test]
fn tls_troubles_have_a_mend_each() {
    for (trouble, words) in [
        (TlsTrouble::UnknownIssuer, "--ca-file"),
        (TlsTrouble::WrongName, "another name"),
        (TlsTrouble::Expired, "renew"),
        (TlsTrouble::NotYetValid, "clock"),
        (TlsTrouble::NoTls, "port"),
        (TlsTrouble::Other("odd".to_owned()), "odd"),
    ] {
        let facts = Facts { answer: Answer::Tls(trouble), certificate_ends: None, clock_ahead: None, ..well() };
        let finding = judge(&facts).into_iter().find(|finding| finding.check == "tls").unwrap();
        assert_eq!(finding.level, Level::Fail);
        assert!(format!("{finding:?}").contains(words), "{finding:?}");
    }
}

#[test]
fn ends_that_are_near_are_told_in_time() {
    assert_only(&Facts { certificate_ends: Some(NOW + 2 * DAY), ..well() }, "tls", Level::Warn, "2 days");
    assert_only(&Facts { answer: pool(Some(3)), ..well() }, "token", Level::Warn, "3 days");
    assert!(judge(&Facts { answer: pool(Some(30)), ..well() }).iter().all(|finding| finding.level == Level::Ok));
}

#[test]
fn a_clock_may_be_a_little_off() {
    for (ahead, level) in [(-31, Level::Warn), (300, Level::Warn), (301, Level::Fail), (-9000, Level::Fail)] {
        assert_only(&Facts { clock_ahead: Some(ahead), ..well() }, "clock", level, "NTP");
    }
    assert!(judge(&Facts { clock_ahead: Some(-30), ..well() }).iter().all(|finding| finding.level == Level::Ok));
}

#[test]
fn a_token_that_is_missing_refused_or_open_is_told() {
    let refused = Answer::Unauthorized("it was revoked".to_owned());
    assert_only(&Facts { has_token: false, answer: refused.clone(), ..well() }, "token", Level::Fail, "there is none");
    assert_only(&Facts { answer: refused, ..well() }, "token", Level::Fail, "it was revoked");
    assert_only(&Facts { answer: Answer::Other("404".to_owned()), ..well() }, "token", Level::Fail, "older release");
    assert_only(&Facts { answer: Answer::Upgrade("old".to_owned()), ..well() }, "token", Level::Fail, "old");
    assert_only(&Facts { token_file_mode: Some(0o100_644), ..well() }, "token", Level::Warn, "mode 644");
}

#[test]
fn the_data_directory_needs_room_and_a_right() {
    let data = |free, writable: Result<(), String>| Data { free: Some(free), writable, ..well().data };
    assert_only(&Facts { data: data(MIN_FREE - 1, Ok(())), ..well() }, "disk", Level::Fail, "no jobs");
    assert_only(&Facts { data: data(SCARCE - 1, Ok(())), ..well() }, "disk", Level::Warn, "2047 MiB");
    let refused = data(SCARCE, Err("permission denied".to_owned()));
    assert_only(&Facts { data: refused, ..well() }, "data", Level::Fail, "--data");
}

#[test]
fn docker_is_needed_when_it_was_asked_for() {
    let host = "unix:///var/run/docker.sock".to_owned();
    let forbidden = Sight::Forbidden { host: host.clone(), group: Some("docker".to_owned()) };
    for (sight, words) in [
        (forbidden, "--groups docker"),
        (Sight::Absent { host: host.clone() }, "systemctl enable --now docker"),
        (Sight::Silent { host, detail: "500".to_owned() }, "500"),
    ] {
        let mut facts = Facts { docker: Some(sight), ..well() };
        assert_only(&facts, "executor", Level::Fail, words);
        facts.executor = Choice::Auto;
        assert_only(&facts, "executor", Level::Warn, "without isolation");
    }
    let facts = Facts { docker: None, executor: Choice::Process, ..well() };
    assert_only(&facts, "executor", Level::Warn, "without isolation");
    let weak = Engine { version: "1.13".to_owned(), limits_processes: true, ..Engine::default() };
    assert_only(&Facts { docker: Some(Sight::Answers(weak)), ..well() }, "executor", Level::Warn, "docker info");
}

#[test]
fn an_engine_that_can_hang_is_to_be_updated() {
    for old in ["1.13.1", "18.09.1", "20.10.24+dfsg1"] {
        let facts = Facts { docker: Some(Sight::Answers(engine(old))), ..well() };
        assert_only(&facts, "executor", Level::Warn, "23.0 or later");
    }
    for good in ["23.0.0", "28.5.2", "4.9.4", "master", ""] {
        let facts = Facts { docker: Some(Sight::Answers(engine(good))), ..well() };
        assert!(judge(&facts).iter().all(|finding| finding.level == Level::Ok), "{good}");
    }
}

#[test]
fn an_image_may_bring_the_engine_but_a_process_may_not() {
    let without = Facts { engines: Vec::new(), sources: Vec::new(), ..well() };
    assert_only(&without, "engine", Level::Warn, "--engine-dir");
    let facts = Facts { docker: None, image: None, executor: Choice::Process, ..without };
    let findings = judge(&facts);
    assert!(findings.iter().any(|finding| finding.check == "engine" && finding.level == Level::Fail), "{findings:?}");
}

#[test]
fn what_is_not_on_the_host_must_come_from_somewhere() {
    let levels = |facts: &Facts| {
        let level = |finding: &Finding| ["engine", "download"].contains(&finding.check).then_some(finding.level);
        judge(facts).iter().filter_map(level).collect::<Vec<_>>()
    };
    let without = |sources| Facts { engines: Vec::new(), sources, ..well() };
    let process = |facts| Facts { docker: None, image: None, executor: Choice::Process, ..facts };
    let both = || vec![source("terraform", true), source("tofu", true)];
    let one = || vec![source("terraform", true), source("tofu", false)];
    let none = || vec![source("terraform and tofu", false)];
    assert_eq!(levels(&process(without(both()))), [Level::Ok, Level::Ok]);
    assert_eq!(levels(&process(without(one()))), [Level::Ok, Level::Warn]);
    assert_eq!(levels(&process(without(none()))), [Level::Ok, Level::Fail]);
    assert_only(&without(none()), "download", Level::Warn, "--engine-mirror");
    assert_only(&Facts { sources: none(), ..well() }, "download", Level::Warn, "connection refused");
}

#[test]
fn the_image_of_runs_that_name_none_must_be_had() {
    let image = "ghcr.io/acme/run:1".to_owned();
    let with = |image| Facts { image: Some(image), ..well() };
    for good in [
        DefaultImage::Here { image: image.clone() },
        DefaultImage::InRegistry { image: image.clone() },
        DefaultImage::Minimal { shell: false },
    ] {
        assert!(judge(&with(good)).iter().all(|finding| finding.level == Level::Ok));
    }
    let detail = "unauthorized".to_owned();
    assert_only(&with(DefaultImage::Unusable { image, detail }), "image", Level::Fail, "unauthorized");
}

#[test]
fn control_groups_of_both_versions_are_read() {
    let both = Cgroup::of(Some("cpuset cpu io memory hugetlb pids rdma\n"), None);
    assert_eq!(both, Cgroup { version: Some(2), memory: true, pids: true });
    let table = "#subsys_name\thierarchy\tnum_cgroups\tenabled\nmemory\t0\t1\t0\npids\t3\t40\t1\n";
    let old = Cgroup::of(None, Some(table));
    assert_eq!(old, Cgroup { version: Some(1), memory: false, pids: true });
    assert_eq!(Cgroup::of(None, None).version, None);
    assert_only(&Facts { cgroup: old, ..well() }, "cgroup", Level::Warn, "cgroup_enable=memory");
}
