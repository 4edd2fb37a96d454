//! Metrics as OTLP's JSON, from the very text that Prometheus reads: what is told is decided in one place. Pure.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::otlp::{attribute, nanos};

/// OTLP's name for counts since the start of the program.
const CUMULATIVE: u8 = 2;

/// Who tells, and for which time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Teller<'a> {
    pub(super) service: &'a str,
    /// Tells programs of one service apart.
    pub(super) instance: &'a str,
    /// When counting began, in milliseconds since 1970.
    pub(super) since_ms: i64,
    pub(super) now_ms: i64,
}

/// A line `name{label="value",…} number`.
struct Sample<'a> {
    name: &'a str,
    labels: Vec<(&'a str, String)>,
    value: f64,
}

/// What belongs to one `# TYPE`.
#[derive(Default)]
struct Family<'a> {
    name: &'a str,
    kind: &'a str,
    help: &'a str,
    samples: Vec<Sample<'a>>,
}

/// The body of an export of what `text` tells, which is OpenMetrics' text format; other kinds than gauges, counters and
/// histograms are left out.
pub(super) fn body(teller: &Teller<'_>, text: &str) -> Value {
    let metrics: Vec<Value> = families(text).iter().filter_map(|family| metric(teller, family)).collect();
    let version = env!("CARGO_PKG_VERSION");
    json!({"resourceMetrics": [{
        "resource": {"attributes": [
            attribute("service.name", teller.service),
            attribute("service.version", version),
            attribute("service.instance.id", teller.instance),
        ]},
        "scopeMetrics": [{"scope": {"name": "terrapool", "version": version}, "metrics": metrics}],
    }]})
}

fn families(text: &str) -> Vec<Family<'_>> {
    let mut families: Vec<Family<'_>> = Vec::new();
    for line in text.lines() {
        let Some(comment) = line.strip_prefix("# ") else {
            if let (Some(family), Some(sample)) = (families.last_mut(), sample(line)) {
                family.samples.push(sample);
            }
            continue;
        };
        let mut words = comment.splitn(3, ' ');
        let (Some(what), Some(name), Some(rest)) = (words.next(), words.next(), words.next()) else { continue };
        if families.last().is_none_or(|family| family.name != name) {
            families.push(Family { name, ..Family::default() });
        }
        if let Some(family) = families.last_mut() {
            match what {
                "TYPE" => family.kind = rest,
                "HELP" => family.help = rest,
                _ => {}
            }
        }
    }
    families
}

fn sample(line: &str) -> Option<Sample<'_>> {
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inner) => labels(inner)?,
        None => (Vec::new(), rest),
    };
    Some(Sample { name, labels, value: rest.split_ascii_whitespace().next()?.parse().ok()? })
}

/// `label="value",…}`, and what stands behind it.
fn labels(mut text: &str) -> Option<(Vec<(&str, String)>, &str)> {
    let mut labels = Vec::new();
    loop {
        text = text.trim_start_matches(',');
        if let Some(rest) = text.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, quoted) = text.split_once("=\"")?;
        let mut value = String::new();
        let mut chars = quoted.char_indices();
        let end = loop {
            match chars.next()? {
                (at, '"') => break at,
                (_, '\\') => value.push(match chars.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, other) => value.push(other),
            }
        };
        labels.push((name, value));
        text = &quoted[end + 1..];
    }
}

fn metric(teller: &Teller<'_>, family: &Family<'_>) -> Option<Value> {
    let Family { name, kind, help, samples } = family;
    let (since, now) = (nanos(teller.since_ms), nanos(teller.now_ms));
    let points = |cumulative: bool| -> Vec<Value> {
        let point = |sample: &Sample<'_>| {
            let mut point = json!({
                "attributes": attributes(&sample.labels), "timeUnixNano": now, "asDouble": sample.value,
            });
            if cumulative {
                point["startTimeUnixNano"] = json!(since);
            }
            point
        };
        samples.iter().map(point).collect()
    };
    let (key, value) = match *kind {
        "gauge" => ("gauge", json!({"dataPoints": points(false)})),
        "counter" => {
            ("sum", json!({"aggregationTemporality": CUMULATIVE, "isMonotonic": true, "dataPoints": points(true)}))
        }
        "histogram" => {
            let mut points = histograms(family);
            for point in &mut points {
                point["startTimeUnixNano"] = json!(since);
                point["timeUnixNano"] = json!(now);
            }
            ("histogram", json!({"aggregationTemporality": CUMULATIVE, "dataPoints": points}))
        }
        _ => return None,
    };
    let is_empty = value["dataPoints"].as_array().is_none_or(Vec::is_empty);
    (!is_empty).then(|| json!({"name": name, "description": help, key: value}))
}

/// One point for each set of labels. Prometheus counts what is below each bound, OTLP what is between two of them.
fn histograms(family: &Family<'_>) -> Vec<Value> {
    #[derive(Default)]
    struct Point {
        count: f64,
        sum: f64,
        buckets: Vec<(f64, f64)>,
    }
    let mut points: BTreeMap<Vec<(&str, String)>, Point> = BTreeMap::new();
    for Sample { name, labels, value } in &family.samples {
        let (bounds, mut labels): (Vec<_>, Vec<_>) = labels.iter().cloned().partition(|(label, _)| *label == "le");
        labels.sort();
        let point = points.entry(labels).or_default();
        match name.strip_prefix(family.name) {
            Some("_count") => point.count = *value,
            Some("_sum") => point.sum = *value,
            Some("_bucket") => {
                let bound = bounds.first().and_then(|(_, bound)| bound.parse().ok());
                point.buckets.extend(bound.filter(|bound: &f64| bound.is_finite()).map(|bound| (bound, *value)));
            }
            _ => {}
        }
    }
    let one = |(labels, mut point): (Vec<(&str, String)>, Point)| {
        point.buckets.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        let below = point.buckets.iter().map(|(_, count)| *count);
        let before = std::iter::once(0.0).chain(below.clone());
        let counts = below.chain([point.count]).zip(before);
        let counts: Vec<String> = counts.map(|(below, before)| whole(below - before)).collect();
        let bounds: Vec<f64> = point.buckets.iter().map(|(bound, _)| *bound).collect();
        json!({
            "attributes": attributes(&labels), "count": whole(point.count), "sum": point.sum,
            "bucketCounts": counts, "explicitBounds": bounds,
        })
    };
    points.into_iter().map(one).collect()
}

/// OTLP's JSON has numbers of 64 bits as texts.
fn whole(count: f64) -> String {
    format!("{:.0}", count.max(0.0))
}

fn attributes(labels: &[(&str, String)]) -> Vec<Value> {
    labels.iter().map(|(name, value)| attribute(name, value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"# HELP agent_build Version of the program.
# TYPE agent_build info
agent_build_info{version="1"} 1
# HELP agent_jobs Jobs now.
# TYPE agent_jobs gauge
agent_jobs 2
# HELP agent_stages Stages.
# TYPE agent_stages counter
agent_stages_total{stage="plan",outcome="a\"b\\c\nd"} 3
# HELP agent_seconds Time.
# TYPE agent_seconds histogram
agent_seconds_sum{stage="plan"} 4.5
agent_seconds_count{stage="plan"} 6
agent_seconds_bucket{le="0.5",stage="plan"} 1
agent_seconds_bucket{le="2.0",stage="plan"} 5
agent_seconds_bucket{le="+Inf",stage="plan"} 6
# HELP agent_unused Never counted.
# TYPE agent_unused counter
# EOF
"#;

    #[test]
    fn what_prometheus_reads_is_told_to_a_collector() {
        let teller = Teller { service: "terrapool-agent", instance: "host-1", since_ms: 1, now_ms: 2 };
        let body = body(&teller, TEXT);
        let resource = &body["resourceMetrics"][0];
        assert_eq!(resource["resource"]["attributes"][2], attribute("service.instance.id", "host-1"));
        let metrics = resource["scopeMetrics"][0]["metrics"].as_array().unwrap();
        let wanted = json!([
            {"name": "agent_jobs", "description": "Jobs now.", "gauge": {"dataPoints": [
                {"attributes": [], "timeUnixNano": "2000000", "asDouble": 2.0},
            ]}},
            {"name": "agent_stages", "description": "Stages.", "sum": {
                "aggregationTemporality": 2, "isMonotonic": true, "dataPoints": [{
                    "attributes": [attribute("stage", "plan"), attribute("outcome", "a\"b\\c\nd")],
                    "startTimeUnixNano": "1000000", "timeUnixNano": "2000000", "asDouble": 3.0,
                }],
            }},
            {"name": "agent_seconds", "description": "Time.", "histogram": {
                "aggregationTemporality": 2, "dataPoints": [{
                    "attributes": [attribute("stage", "plan")],
                    "startTimeUnixNano": "1000000", "timeUnixNano": "2000000",
                    "count": "6", "sum": 4.5, "bucketCounts": ["1", "4", "1"], "explicitBounds": [0.5, 2.0],
                }],
            }},
        ]);
        assert_eq!(json!(metrics), wanted);
    }

    #[test]
    fn what_is_no_text_of_metrics_tells_nothing() {
        let teller = Teller { service: "s", instance: "i", since_ms: 0, now_ms: 0 };
        for text in ["", "garbage", "a{b=\"c} 1", "# TYPE a gauge\na{b=\"c\\", "# TYPE a gauge\na one\n"] {
            let body = body(&teller, text);
            assert_eq!(body["resourceMetrics"][0]["scopeMetrics"][0]["metrics"], json!([]), "{text}");
        }
    }
}
