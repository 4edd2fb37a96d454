//! The file of settings that systemd hands to the agent (`EnvironmentFile=`): `KEY=VALUE` a line. What is not ours in
//! it, comments too, stays as it is.

use std::fmt;

/// The lines of such a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct EnvFile {
    lines: Vec<Line>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Line {
    Setting {
        key: String,
        value: String,
    },
    /// Empty, a comment, or something that nobody reads.
    Other(String),
}

impl EnvFile {
    /// Reads what systemd would.
    pub(super) fn parse(text: &str) -> Self {
        let line = |line: &str| match setting(line) {
            Some((key, value)) => Line::Setting { key, value },
            None => Line::Other(line.to_owned()),
        };
        Self { lines: text.lines().map(line).collect() }
    }

    /// The last one counts.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.lines.iter().rev().find_map(|line| match line {
            Line::Setting { key: found, value } if found == key => Some(value.as_str()),
            _ => None,
        })
    }

    /// Sets a value; says whether that changed anything.
    pub(super) fn set(&mut self, key: &str, value: &str) -> bool {
        if self.get(key) == Some(value) {
            return false;
        }
        let new = Line::Setting { key: key.to_owned(), value: value.to_owned() };
        let last =
            self.lines.iter_mut().rev().find(|line| matches!(line, Line::Setting { key: found, .. } if found == key));
        match last {
            Some(line) => *line = new,
            None => self.lines.push(new),
        }
        true
    }
}

impl fmt::Display for EnvFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.lines {
            match line {
                Line::Setting { key, value } => writeln!(f, "{key}={}", quoted(value))?,
                Line::Other(text) => writeln!(f, "{text}")?,
            }
        }
        Ok(())
    }
}

fn setting(line: &str) -> Option<(String, String)> {
    let line = line.trim();
    if line.starts_with(['#', ';']) {
        return None;
    }
    let (key, value) = line.split_once('=')?;
    let key = key.trim_end();
    let is_name = |key: &str| !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    is_name(key).then(|| (key.to_owned(), unquoted(value.trim())))
}

fn unquoted(text: &str) -> String {
    if let Some(inner) = text.strip_prefix('\'').and_then(|text| text.strip_suffix('\'')) {
        return inner.to_owned();
    }
    let inner = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    let mut value = String::new();
    let mut characters = inner.chars();
    while let Some(character) = characters.next() {
        value.extend(if character == '\\' { characters.next() } else { Some(character) });
    }
    value
}

/// As systemd and a shell read it back.
fn quoted(value: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./:=,@%+".contains(&byte);
    if !value.is_empty() && value.bytes().all(plain) {
        return value.to_owned();
    }
    let escaped = |character: char| match character {
        '"' | '\\' | '$' | '`' => vec!['\\', character],
        other => vec![other],
    };
    format!("\"{}\"", value.chars().flat_map(escaped).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_changes_and_the_rest_stays() {
        let text = "# ours\nTERRAPOOL_URL=https://a.example\n\nOTHER='x y'\n; not ours\n";
        let mut file = EnvFile::parse(text);
        assert!(file.set("TERRAPOOL_URL", "https://b.example"));
        assert!(!file.set("OTHER", "x y"));
        assert!(file.set("TERRAPOOL_AGENT_USER", "root"));
        let wanted =
            "# ours\nTERRAPOOL_URL=https://b.example\n\nOTHER=\"x y\"\n; not ours\nTERRAPOOL_AGENT_USER=root\n";
        assert_eq!(file.to_string(), wanted);
    }

    #[test]
    fn values_come_back_whatever_is_in_them() {
        for value in ["plain", "", "two words", "a\"b\\c$d`e", "'single'", "key=value,other=5%", "ü#;"] {
            let mut file = EnvFile::default();
            file.set("KEY", value);
            assert_eq!(EnvFile::parse(&file.to_string()).get("KEY"), Some(value), "{file}");
        }
    }

    #[test]
    fn the_last_setting_of_a_name_counts_and_is_the_one_that_changes() {
        let mut file = EnvFile::parse("A=1\nA=2\nno setting\n");
        assert_eq!(file.get("A"), Some("2"));
        file.set("A", "3");
        assert_eq!(file.to_string(), "A=1\nA=3\nno setting\n");
    }
}
