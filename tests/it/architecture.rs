//! The walls between modules, read from the source: who may use whom, which crate is named where.

use std::collections::BTreeMap;

use crate::support::sources::{Edge, Source, root, sources};

/// What each top-level module may use of the others. `cli`, `lib` and `main` may use everything.
fn allowed() -> BTreeMap<&'static str, &'static [&'static str]> {
    BTreeMap::from([
        ("ids", [].as_slice()),
        ("clock", &[]),
        ("files", &[]),
        ("hash", &[]),
        ("memory", &[]),
        ("shutdown", &[]),
        ("yaml", &[]),
        ("http", &[]),
        ("telemetry", &[]),
        ("trace", &["api", "ids", "http", "hash", "telemetry", "clock"]),
        ("jsonapi", &[]),
        ("runner", &[]),
        ("api", &["ids", "jsonapi"]),
        ("crd", &["ids"]),
        ("client", &["api", "jsonapi", "ids", "http"]),
        ("sync", &["client", "api", "ids", "clock", "crd"]),
        (
            "operator",
            &["sync", "crd", "client", "api", "http", "ids", "telemetry", "shutdown", "clock", "hash", "memory"],
        ),
        (
            "up",
            &[
                "sync",
                "crd",
                "client",
                "http",
                "server",
                "agent",
                "yaml",
                "ids",
                "telemetry",
                "trace",
                "shutdown",
                "clock",
                "files",
                "hash",
            ],
        ),
        ("server", &["api", "jsonapi", "ids", "telemetry", "trace", "shutdown", "clock", "http", "files"]),
        (
            "agent",
            &["api", "client", "ids", "telemetry", "trace", "shutdown", "clock", "http", "files", "hash", "memory"],
        ),
    ])
}

/// Tokens that only some places may contain: (tokens, path prefixes, what it is about).
const CONFINED: &[(&[&str], &[&str], &str)] = &[
    (&["bollard", "::"], &["src/agent/executor/docker"], "the Docker engine is the Docker executor's affair"),
    (&["kube", "::"], &["src/crd/", "src/operator/"], "Kubernetes is the operator's affair"),
    (&["serde_yaml", "::"], &["src/yaml.rs"], "the YAML crate is named in one place"),
    (&["anyhow", "::"], &["src/cli/", "src/main.rs"], "modules have error types of their own"),
    (&["Client", "::", "new"], &["src/http.rs"], "HTTP clients are built in one place"),
    (&["Client", "::", "builder"], &["src/http.rs"], "HTTP clients are built in one place"),
    (&["ClientBuilder"], &["src/http.rs"], "HTTP clients are built in one place"),
    (&["println", "!"], &["src/cli/", "src/main.rs"], "only the command line prints"),
    (&["eprintln", "!"], &["src/cli/", "src/main.rs"], "only the command line prints"),
    (&["print", "!"], &["src/cli/", "src/main.rs"], "only the command line prints"),
    (&["eprint", "!"], &["src/cli/", "src/main.rs"], "only the command line prints"),
    (&["env", "::", "var"], EDGES, "the environment enters at the edges"),
    (&["env", "::", "vars"], EDGES, "the environment enters at the edges"),
    (&["env", "::", "var_os"], EDGES, "the environment enters at the edges"),
    (&["env", "::", "vars_os"], EDGES, "the environment enters at the edges"),
];

/// The programs' own ends; the runner is one, inside of the run container.
const EDGES: &[&str] = &["src/cli/", "src/main.rs", "src/runner/"];

/// Longest file. What is longer has more than one story to tell.
const MAX_LINES: usize = 600;

fn assert_none(violations: &[String], rule: &str) {
    assert!(violations.is_empty(), "{rule}:\n  {}", violations.join("\n  "));
}

#[test]
fn modules_use_only_what_they_may() {
    let allowed = allowed();
    let mut violations = Vec::new();
    for source in sources("src") {
        let module = source.module();
        if matches!(module, "lib" | "main" | "cli") {
            continue;
        }
        let Some(may) = allowed.get(module) else {
            violations.push(format!("{}: the module `{module}` is not in the table of this test", source.path));
            continue;
        };
        // Macros and types that lib.rs defines itself would be no module; it defines none.
        for Edge { to, line } in source.edges() {
            if !may.contains(&to.as_str()) {
                violations.push(format!("{}:{line}: `{module}` may not use `{to}`", source.path));
            }
        }
    }
    assert_none(&violations, "forbidden use of another module");
}

#[test]
fn crates_and_macros_stay_where_they_belong() {
    let mut violations = Vec::new();
    for source in sources("src") {
        for (tokens, places, why) in CONFINED {
            if places.iter().any(|place| source.path.starts_with(place)) {
                continue;
            }
            for line in source.lines_with(tokens) {
                violations.push(format!("{}:{line}: `{}` ({why})", source.path, tokens.concat()));
            }
        }
    }
    assert_none(&violations, "named outside of its place");
}

/// Rules hold a connection to hand it on; what is done with one is written in the store.
#[test]
fn sql_stays_in_the_store() {
    let mut violations = Vec::new();
    for source in sources("src").into_iter().filter(|source| !source.path.starts_with("src/server/store/")) {
        let connections = source.lines_with(&["sqlx", "::", "AnyConnection"]);
        let others = source.lines_with(&["sqlx", "::"]).into_iter().filter(|line| !connections.contains(line));
        violations.extend(others.map(|line| format!("{}:{line}", source.path)));
    }
    assert_none(&violations, "something of sqlx other than `AnyConnection` outside of the store");
}

/// The runner is compiled apart, without our dependencies, so that it runs in an empty image.
#[test]
fn the_runner_uses_the_standard_library_only() {
    let crates = dependencies();
    let mut violations = Vec::new();
    for source in sources("src").into_iter().filter(|source| source.module() == "runner") {
        for name in &crates {
            for line in source.lines_with(&[name, "::"]) {
                violations.push(format!("{}:{line}: {name}", source.path));
            }
        }
    }
    assert_none(&violations, "the runner uses a crate");
}

#[test]
fn files_are_not_too_long() {
    let long = all_sources().into_iter().map(|source| (source.text.lines().count(), source.path));
    let violations: Vec<_> =
        long.filter(|(lines, _)| *lines > MAX_LINES).map(|(lines, path)| format!("{path}: {lines} lines")).collect();
    assert_none(&violations, &format!("files of more than {MAX_LINES} lines"));
}

#[test]
fn nothing_is_marked_as_unfinished() {
    // Put together here, so that this file does not find itself.
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:"), concat!("unimplemented", "!")];
    let mut violations = Vec::new();
    for source in all_sources() {
        for (i, line) in source.text.lines().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                violations.push(format!("{}:{}: {}", source.path, i + 1, line.trim()));
            }
        }
    }
    assert_none(&violations, "marks of unfinished work");
}

#[test]
fn edges_are_found_in_every_form() {
    let text = r##"
        use std::fs;
        use crate::ids::JobId;
        use crate::{api::{agent, job}, clock, server::{self, store::{a, b}}};
        use super::super::sync::plan;
        pub(crate) fn f() -> crate::http::Error {
            // crate::comment::x
            let s = "crate::string::x"; let r = r#"crate::raw::x"#; let c = '"'; let l: &'static str = "";
            super::sibling::g()
        }
        mod tests { use super::super::super::telemetry::Chain; use super::super::local; }
    "##;
    let source = Source::new("src/agent/executor/docker.rs".to_owned(), text.to_owned());
    let found: Vec<_> = source.edges().into_iter().map(|edge| edge.to).collect();
    // `super::super::sync` is `crate::agent::sync` here: not an edge.
    assert_eq!(found, ["ids", "api", "clock", "server", "http"]);

    let source = Source::new("src/agent/mod.rs".to_owned(), "use super::{sync, ids::X};".to_owned());
    let found: Vec<_> = source.edges().into_iter().map(|edge| edge.to).collect();
    assert_eq!(found, ["sync", "ids"]);
}

#[test]
fn tests_inside_of_files_are_told_apart() {
    let text = "fn f() { println!(); }\n#[cfg(test)]\nmod tests {\n fn g() { println!(); }\n}\nfn h() { println!(); }";
    let source = Source::new("src/x.rs".to_owned(), text.to_owned());
    assert_eq!(source.lines_with(&["println", "!"]), [1, 6]);
}

/// Native TLS stacks would need C libraries at run time or minutes of compilation; ring serves all.
#[test]
fn only_one_tls_stack_is_in_the_lock_file() {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let unwanted = ["aws-lc-rs", "aws-lc-sys", "openssl", "openssl-sys", "native-tls"];
    let found: Vec<_> = unwanted
        .iter()
        .filter(|name| lock.contains(&format!("name = \"{name}\"\n")))
        .map(|name| format!("{name}: `cargo tree --invert {name}` says who wants it"))
        .collect();
    assert_none(&found, "unwanted packages");
}

fn all_sources() -> Vec<Source> {
    [sources("src"), sources("tests")].into_iter().flatten().collect()
}

/// Names of our dependencies as they are written in paths.
fn dependencies() -> Vec<String> {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let section = manifest.split("\n[dependencies]\n").nth(1).and_then(|rest| rest.split("\n[").next()).unwrap();
    let names = section.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(" ="));
    names.map(|(name, _)| name.trim().replace('-', "_")).collect()
}
