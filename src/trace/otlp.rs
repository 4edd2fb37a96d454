//! Spans as OTLP's JSON, as opentelemetry.io/docs/specs/otlp says. Pure. Written out here, for the crates that do it bring
//! protocol buffers and think of ids for themselves.

use serde_json::{Value, json};

use super::{Service, Span, span_id, trace_id};

/// OTLP's code of a span that failed.
const ERROR: u8 = 2;

/// OTLP's kind of a span within a program.
const INTERNAL: u8 = 1;

/// The body of an export: spans by who recorded them.
pub(super) fn body(spans: &[Span]) -> Value {
    let resources: Vec<Value> = [Service::Server, Service::Agent]
        .into_iter()
        .filter_map(|service| {
            let spans: Vec<Value> = spans.iter().filter(|span| span.service == service).map(one).collect();
            let version = env!("CARGO_PKG_VERSION");
            (!spans.is_empty()).then(|| {
                json!({
                    "resource": {"attributes": [attribute("service.name", service.name()), attribute("service.version", version)]},
                    "scopeSpans": [{"scope": {"name": "terrapool", "version": version}, "spans": spans}],
                })
            })
        })
        .collect();
    json!({ "resourceSpans": resources })
}

fn one(span: &Span) -> Value {
    let Span { service: _, run, node, start_ms, end_ms, attributes, error } = span;
    let mut value = json!({
        "traceId": trace_id(run),
        "spanId": span_id(run, *node),
        "name": node.name(),
        "kind": INTERNAL,
        "startTimeUnixNano": nanos(*start_ms),
        // A clock that was set back in between makes no span that ends before it begins.
        "endTimeUnixNano": nanos(*end_ms.max(start_ms)),
        "attributes": attributes.iter().map(|(name, value)| attribute(name, value)).collect::<Vec<_>>(),
    });
    if let Some(parent) = node.parent() {
        value["parentSpanId"] = span_id(run, parent).into();
    }
    if let Some(error) = error {
        value["status"] = json!({"code": ERROR, "message": error});
    }
    value
}

/// OTLP's JSON has numbers of 64 bits as texts.
pub(super) fn nanos(ms: i64) -> String {
    (i128::from(ms) * 1_000_000).to_string()
}

pub(super) fn attribute(name: &str, value: &str) -> Value {
    json!({"key": name, "value": {"stringValue": value}})
}

#[cfg(test)]
mod tests {
    use super::{super::Node, *};
    use crate::{api::job::Stage, ids::RunId};

    #[test]
    fn spans_are_grouped_by_service_and_name_their_parents() {
        let run: RunId = "run-1".parse().unwrap();
        let span = |service, node, error: Option<&str>| Span {
            service,
            run: run.clone(),
            node,
            start_ms: 1_700_000_000_001,
            end_ms: 1_700_000_000_000,
            attributes: vec![("terrapool.run.id", run.to_string())],
            error: error.map(str::to_owned),
        };
        let stage = Node::Stage { stage: Stage::Plan, epoch: 1 };
        let spans = [span(Service::Agent, stage, Some("timed_out")), span(Service::Server, Node::Run, None)];
        let body = body(&spans);
        let [server, agent] = body["resourceSpans"].as_array().unwrap().as_slice() else { panic!("{body}") };
        assert_eq!(server["resource"]["attributes"][0]["value"]["stringValue"], "terrapool-server");
        let root = &server["scopeSpans"][0]["spans"][0];
        assert_eq!(root["traceId"], trace_id(&run));
        assert!(root.get("parentSpanId").is_none() && root.get("status").is_none(), "{root}");
        assert_eq!(root["startTimeUnixNano"], "1700000000001000000");
        assert_eq!(root["endTimeUnixNano"], root["startTimeUnixNano"]);
        assert_eq!(root["attributes"][0]["value"]["stringValue"], "run-1");
        let plan = &agent["scopeSpans"][0]["spans"][0];
        assert_eq!((&plan["parentSpanId"], &plan["name"]), (&root["spanId"], &json!("plan")));
        assert_eq!(plan["status"], json!({"code": 2, "message": "timed_out"}));
        assert_eq!(super::body(&[]), json!({"resourceSpans": []}));
    }
}
