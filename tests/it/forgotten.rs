//! What must be listed is listed: a test file that nobody names is never compiled, and nobody notices.

use std::{collections::BTreeSet, fs};

use crate::support::sources::root;

/// Names of what lies directly in `dir`: files without `.rs`, and folders.
fn entries(dir: &str) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(root().join(dir)) else { return BTreeSet::new() };
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap().trim_end_matches(".rs").to_owned()).collect()
}

/// The modules that `file` declares.
fn modules(file: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(file)).unwrap();
    let lines = text.lines().map(|line| line.trim_start_matches("pub "));
    lines.filter_map(|line| Some(line.strip_prefix("mod ")?.strip_suffix(';')?.to_owned())).collect()
}

#[test]
fn every_test_file_is_compiled() {
    for (dir, file) in [("tests/it", "main"), ("tests/it/support", "mod")] {
        let listed = modules(&format!("{dir}/{file}.rs"));
        let mut there = entries(dir);
        there.remove(file);
        there.remove("golden");
        let missing: Vec<_> = there.iter().filter(|name| !listed.contains(name)).collect();
        assert!(missing.is_empty(), "{dir}/{file}.rs does not name {missing:?}");
        let mut sorted = listed.clone();
        sorted.sort();
        assert_eq!(listed, sorted, "{dir}/{file}.rs: sorted lists are easier to merge");
    }
}

#[test]
fn every_benchmark_is_listed() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    for name in entries("tests/bench") {
        let path = format!("tests/bench/{name}.rs");
        if root().join(&path).is_file() {
            assert!(manifest.contains(&format!("path = \"{path}\"")), "{path} is no [[bench]] in Cargo.toml");
        }
    }
}
