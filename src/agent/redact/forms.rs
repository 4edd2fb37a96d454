//! The forms in which programs write a value.

use std::fmt::Write;

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE},
};

use super::SHORTEST;

/// Part of a value's base64 that must be there for it to count: what is shorter is found by chance.
const SHORTEST_BASE64: usize = 6;

/// Line of a longer value that is a secret of its own, as of a key.
const SHORTEST_LINE: usize = 12;

/// Widths at which programs break base64: `openssl` and PEM, `base64`.
const WIDTHS: [usize; 2] = [64, 76];

/// Characters that are not percent-encoded beside letters and digits: by RFC 3986, in forms of web pages, by JavaScript,
/// by Python.
const UNRESERVED: [&str; 4] = ["-_.~", "*-._", "-_.~!*'()", "-_.~/"];

/// All forms of a value, none shorter than [`SHORTEST`]; some may be there twice.
#[must_use]
pub fn of(value: &str) -> Vec<Vec<u8>> {
    let value = value.trim_matches(['\n', '\r']);
    if ["true", "false", "null"].contains(&value) || value.len() < SHORTEST {
        return Vec::new();
    }
    let lines = value.lines().filter(|_| value.contains('\n')).map(str::trim);
    // The borders of a PEM block are public.
    let lines = lines.filter(|line| line.len() >= SHORTEST_LINE && !line.starts_with("-----"));
    let texts = std::iter::once(value).chain(lines).flat_map(texts);
    texts.chain(base64s(value.as_bytes())).map(String::into_bytes).collect()
}

/// The strings that stand in an HCL literal, as `{password = "x"}`.
pub(super) fn strings(literal: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = literal;
    while let Some((_, string)) = rest.split_once('"') {
        let mut escaped = false;
        let end = string.find(|character| {
            let ends = character == '"' && !escaped;
            escaped = character == '\\' && !escaped;
            ends
        });
        let Some(end) = end else { break };
        // What is not a string of JSON too has escapes of its own; then it is looked for as it is written.
        let plain = serde_json::from_str(&format!("\"{}\"", &string[..end]));
        found.push(plain.unwrap_or_else(|_| string[..end].to_owned()));
        rest = &string[end + 1..];
    }
    found
}

fn texts(text: &str) -> Vec<String> {
    let json = json(text);
    // As Go writes JSON, and so terraform.
    let go = json.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026");
    // As terraform writes a string of a configuration.
    let template = json.replace("${", "$${").replace("%{", "%%{");
    let mut texts = vec![text.to_owned(), text.replace('\n', "\r\n"), json, go, template];
    for upper in [true, false] {
        texts.push(text.bytes().fold(String::new(), |text, byte| text + &hex(byte, upper)));
        for (kept, space) in UNRESERVED.into_iter().flat_map(|kept| [(kept, "%20"), (kept, "+")]) {
            texts.push(percent(text, kept, space, upper));
        }
    }
    texts
}

/// The value as a JSON string, without its quotes.
fn json(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

fn hex(byte: u8, upper: bool) -> String {
    if upper { format!("{byte:02X}") } else { format!("{byte:02x}") }
}

fn percent(text: &str, kept: &str, space: &str, upper: bool) -> String {
    let mut encoded = String::with_capacity(3 * text.len());
    for byte in text.bytes() {
        match byte {
            b' ' => encoded.push_str(space),
            _ if byte.is_ascii_alphanumeric() || kept.as_bytes().contains(&byte) => encoded.push(char::from(byte)),
            _ => drop(write!(encoded, "%{}", hex(byte, upper))),
        }
    }
    encoded
}

/// The value's part of any base64 that it is encoded into, also with other bytes around it, as in `user:password`.
fn base64s(value: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for (engine, shift) in [&STANDARD, &URL_SAFE].into_iter().flat_map(|engine| [0, 1, 2].map(|shift| (engine, shift)))
    {
        let encoded = engine.encode([&vec![0; shift], value].concat());
        // Characters that other bytes have a part in depend on them.
        let begin = [0, 2, 3][shift];
        let end = (shift + value.len()) * 8 / 6;
        let ends = [end, encoded.trim_end_matches('=').len(), encoded.len()];
        found.extend(ends.map(|end| encoded[begin..end].to_owned()));
        if shift == 0 {
            let lines = WIDTHS.into_iter().flat_map(|width| encoded.as_bytes().chunks(width));
            let lines = lines.filter(|line| line.len() < encoded.len() && line.len() >= SHORTEST_LINE);
            found.extend(lines.map(|line| String::from_utf8_lossy(line).into_owned()));
        }
    }
    found.retain(|text| text.len() >= SHORTEST_BASE64);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_of_a_literal_are_found_without_their_escapes() {
        let found =
            strings(r#"{ user = "me", password = "a\"b\\", list = ["x\ny", ""], broken = "${x} \u00zz" , open = "o"#);
        assert_eq!(found, ["me", "a\"b\\", "x\ny", "", r"${x} \u00zz"]);
        assert_eq!(strings("42"), [""; 0]);
    }

    #[test]
    fn no_form_is_too_short_to_be_looked_for() {
        for value in ["abcd", "ä€😀", "a\nb\n c", "0123456789".repeat(9).as_str(), "    ", "\\\\\\\\"] {
            let forms = of(value);
            assert!(forms.len() > 3 && forms.iter().all(|form| form.len() >= SHORTEST), "{value}: {forms:?}");
        }
        assert!(of("abc").is_empty() && of("true\n").is_empty());
    }
}
