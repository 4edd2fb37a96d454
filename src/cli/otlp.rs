//! Options about traces and metrics for a collector, of all that have some.

use std::path::Path;

use anyhow::Context;
use secrecy::SecretString;
use url::Url;

use crate::trace::{Endpoint, Tracer};

#[derive(Debug, clap::Args)]
pub(super) struct OtlpArgs {
    /// Send a trace of every run there, and an agent's metrics, by OTLP over HTTP as JSON: a collector's address, as
    /// http://collector:4318. The variable OTEL_EXPORTER_OTLP_ENDPOINT does the same. Default: nowhere.
    #[arg(long, env = "TERRAPOOL_OTLP_ENDPOINT", value_name = "URL")]
    otlp_endpoint: Option<Url>,
    #[arg(skip = variable("OTEL_EXPORTER_OTLP_ENDPOINT"))]
    standard_endpoint: Option<String>,
    /// `name=value,…`. Only as a variable, never as an argument: they may be secrets.
    #[arg(skip = variable("OTEL_EXPORTER_OTLP_HEADERS").map(SecretString::from))]
    headers: Option<SecretString>,
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}

impl OtlpArgs {
    /// A tracer that sends, when that is asked for.
    pub(super) fn start(&self, ca_file: Option<&Path>) -> anyhow::Result<Tracer> {
        match self.endpoint(ca_file)? {
            Some(endpoint) => {
                let tracer = Tracer::start(&endpoint)?;
                tracing::info!(url = %endpoint.url, "traces of runs and metrics of agents are sent to a collector");
                Ok(tracer)
            }
            None => Ok(Tracer::default()),
        }
    }

    fn endpoint(&self, ca_file: Option<&Path>) -> anyhow::Result<Option<Endpoint>> {
        use secrecy::ExposeSecret;
        let url = match (&self.otlp_endpoint, &self.standard_endpoint) {
            (Some(url), _) => url.clone(),
            (None, Some(text)) => {
                text.parse().with_context(|| format!("OTEL_EXPORTER_OTLP_ENDPOINT: `{text}` is no address"))?
            }
            (None, None) => return Ok(None),
        };
        let headers = self.headers.as_ref().map_or("", |headers| headers.expose_secret());
        let headers =
            headers_of(headers).context("OTEL_EXPORTER_OTLP_HEADERS is not a list as name=value,name=value")?;
        Ok(Some(Endpoint { url, headers, ca_file: ca_file.map(Path::to_owned) }))
    }
}

/// As the specification has them: percent-encoded values, commas between the pairs.
fn headers_of(text: &str) -> Option<Vec<(String, SecretString)>> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=')?;
            Some((name.trim().to_owned(), decode(value.trim())?.into()))
        })
        .collect()
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn headers_are_read_as_the_specification_has_them() {
        let read = |text: &str| {
            let headers = headers_of(text)?;
            Some(headers.iter().map(|(name, value)| format!("{name}: {}", value.expose_secret())).collect::<Vec<_>>())
        };
        assert_eq!(read("").unwrap(), Vec::<String>::new());
        assert_eq!(read("a=1, b = two%20words=%3D,").unwrap(), ["a: 1", "b: two words=="]);
        for broken in ["a", "a=%4", "a=%zz", "a=%ff"] {
            assert_eq!(read(broken), None, "{broken}");
        }
    }

    #[test]
    fn our_own_name_comes_before_the_standard_one() {
        let endpoint = |own: Option<&str>, standard: Option<&str>| {
            let args = OtlpArgs {
                otlp_endpoint: own.map(|url| url.parse().unwrap()),
                standard_endpoint: standard.map(str::to_owned),
                headers: None,
            };
            args.endpoint(None).map(|endpoint| endpoint.map(|endpoint| endpoint.url.to_string()))
        };
        assert_eq!(endpoint(None, None).unwrap(), None);
        assert_eq!(endpoint(None, Some("http://b:1")).unwrap().unwrap(), "http://b:1/");
        assert_eq!(endpoint(Some("http://a:1"), Some("http://b:1")).unwrap().unwrap(), "http://a:1/");
        assert!(endpoint(None, Some("b")).is_err());
    }
}
