//! The definitions in crds/ are what the types say, and what the definitions refer to exists.

use std::{fs, path::Path};

use serde_json::Value;
use terrapool::crd;

const HEADER: &str = "# Generated from src/crd. Do not edit: UPDATE_GOLDEN=1 cargo test --test it crds\n";

fn definitions() -> Vec<Value> {
    crd::all().unwrap().iter().map(|definition| serde_json::to_value(definition).unwrap()).collect()
}

#[test]
fn generated_definitions_are_what_is_committed() {
    for definition in definitions() {
        let plural = definition["spec"]["names"]["plural"].as_str().unwrap();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("crds").join(format!("{plural}.yaml"));
        let text = format!("{HEADER}{}", serde_yaml::to_string(&definition).unwrap());
        assert!(ambiguous(&text).is_empty(), "{plural}: {:?}", ambiguous(&text));
        // What kubectl apply keeps in an annotation may have 256 KiB; ours stay well below.
        assert!(text.len() < 200_000, "{plural} has {} bytes", text.len());
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&path, &text).unwrap();
        }
        let committed = fs::read_to_string(&path).unwrap_or_default();
        assert!(committed == text, "{} is out of date: UPDATE_GOLDEN=1 cargo test --test it crds", path.display());
    }
}

/// Plain strings that a YAML 1.1 reader (kubectl) takes for something else: `no`, `on`, `12:30`. The writer
/// leaves them unquoted.
fn ambiguous(text: &str) -> Vec<&str> {
    fn value(line: &str) -> &str {
        let line = line.trim().trim_start_matches("- ");
        line.split_once(": ").map_or(line, |(_, value)| value).trim()
    }
    let odd = |value: &&str| {
        let digits = |extra: char| {
            value.contains(extra)
                && value.starts_with(|c: char| c.is_ascii_digit())
                && value.chars().all(|c| c.is_ascii_digit() || c == extra)
        };
        let word = value.to_ascii_lowercase();
        ["y", "n", "yes", "no", "on", "off"].contains(&word.as_str()) || digits('_') || digits(':')
    };
    text.lines().map(value).filter(odd).collect()
}

#[test]
fn ambiguous_plain_strings_are_found() {
    assert_eq!(ambiguous("a: no\nb: 'no'\nc:\n- on\n- 12:30\n- 1_000\nd: note\n"), ["no", "on", "12:30", "1_000"]);
}

/// The schema of a JSON path as `.status.conditions[?(@.type=="Ready")].status`.
fn resolve<'a>(schema: &'a Value, path: &str) -> Option<&'a Value> {
    let mut here = schema;
    let mut rest = path.strip_prefix('.')?;
    while !rest.is_empty() {
        let end = rest.find(['.', '[']).unwrap_or(rest.len());
        let (field, after) = rest.split_at(end);
        here = here.get("properties")?.get(field)?;
        rest = after;
        if let Some(filter) = rest.strip_prefix('[') {
            here = here.get("items")?;
            rest = &filter[filter.find(']')? + 1..];
        }
        rest = rest.strip_prefix('.').unwrap_or(rest);
    }
    Some(here)
}

#[test]
fn p08_every_print_column_resolves_in_the_schema() {
    for definition in definitions() {
        let version = &definition["spec"]["versions"][0];
        let schema = &version["schema"]["openAPIV3Schema"];
        let columns = version["additionalPrinterColumns"].as_array().unwrap();
        assert!(columns.len() >= 6);
        let mut paths: Vec<&str> = columns.iter().map(|column| column["jsonPath"].as_str().unwrap()).collect();
        if let Some(scale) = version["subresources"].get("scale") {
            paths.extend(scale.as_object().unwrap().values().map(|path| path.as_str().unwrap()));
        }
        for path in paths.into_iter().filter(|path| !path.starts_with(".metadata.")) {
            let found = resolve(schema, path).unwrap_or_else(|| panic!("{path} is not in the schema"));
            assert!(found["type"].is_string(), "{path}: {found}");
        }
    }
}

#[test]
fn definitions_carry_names_defaults_and_map_lists() {
    for definition in definitions() {
        let names = &definition["spec"]["names"];
        assert_eq!(names["categories"], serde_json::json!(["terrapool"]));
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let status = &schema["properties"]["status"];
        assert_eq!(status["default"]["observedGeneration"], -1);
        let conditions = &status["properties"]["conditions"];
        assert_eq!(conditions["x-kubernetes-list-map-keys"], serde_json::json!(["type"]));
        assert_described(&schema["properties"]["spec"], "spec");
    }
}

/// Every field has a text for `kubectl explain`.
fn assert_described(schema: &Value, path: &str) {
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let text = property["description"].as_str().unwrap_or_default();
        assert!(text.ends_with('.') || text.ends_with('…'), "{path}.{name}: `{text}` is no full sentence");
        assert_described(property, &format!("{path}.{name}"));
        assert_described(&property["items"], &format!("{path}.{name}[]"));
    }
}
