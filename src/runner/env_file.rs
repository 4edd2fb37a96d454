//! The file by which a hook adds to the environment of later steps. Pure: text in, additions or a complaint out, and no
//! complaint shows what was written.
//!
//! ```text
//! # a comment
//! NAME=a value, to the end of the line
//! export NAME=the same
//! NAME<<END
//! a value
//! of several lines
//! END
//! mask NAME=a value that no log shows from now on
//! ```

/// Names that would move the state, or what `init` made, away from where the agent and later steps look for it.
const REFUSED: [&str; 2] = ["TF_WORKSPACE", "TF_DATA_DIR"];

/// One variable for later steps.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Addition {
    pub(super) name: String,
    pub(super) value: String,
    /// No log may show the value.
    pub(super) masked: bool,
}

/// What a hook wrote.
///
/// # Errors
/// A sentence that names the first line that cannot be used.
pub(super) fn parse(text: &[u8]) -> Result<Vec<Addition>, String> {
    let text = std::str::from_utf8(text).map_err(|error| {
        let before = &text[..error.valid_up_to()];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        format!("line {line} is not text in UTF-8")
    })?;
    let mut lines = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)).zip(1..);
    let mut additions = Vec::new();
    while let Some((line, number)) = lines.next() {
        let line = line.trim_start();
        if line.trim_end().is_empty() || line.starts_with('#') {
            continue;
        }
        let (masked, line) = match line.strip_prefix("mask ") {
            Some(rest) => (true, rest.trim_start()),
            None => (false, line),
        };
        let line = line.strip_prefix("export ").map_or(line, str::trim_start);
        let (name, value) = match (line.find('='), line.find("<<")) {
            (Some(equals), heredoc) if heredoc.is_none_or(|at| equals < at) => {
                (&line[..equals], line[equals + 1..].to_owned())
            }
            (_, Some(at)) => {
                let delimiter = line[at + 2..].trim();
                if delimiter.is_empty() {
                    return Err(format!("line {number} has nothing behind `<<`"));
                }
                let mut value: Vec<&str> = Vec::new();
                loop {
                    match lines.next() {
                        Some((line, _)) if line == delimiter => break,
                        Some((line, _)) => value.push(line),
                        None => return Err(format!("the value that begins in line {number} has no end")),
                    }
                }
                (&line[..at], value.join("\n"))
            }
            _ => return Err(format!("line {number} is not `NAME=VALUE`")),
        };
        check(name, &value).map_err(|why| format!("line {number}: {why}"))?;
        additions.push(Addition { name: name.to_owned(), value, masked });
    }
    Ok(additions)
}

fn check(name: &str, value: &str) -> Result<(), String> {
    let mut letters = name.chars();
    let begins_well = letters.next().is_some_and(|letter| letter.is_ascii_alphabetic() || letter == '_');
    if !begins_well || !letters.all(|letter| letter.is_ascii_alphanumeric() || letter == '_') {
        return Err("a name is made of letters, digits and `_`, and does not begin with a digit".to_owned());
    }
    // `-state` and its like, as arguments of every command of the engine.
    let names_state = |word: &str| {
        let word = word.trim_start_matches(['"', '\'']);
        word.starts_with('-') && word.trim_start_matches('-').starts_with("state")
    };
    if REFUSED.contains(&name) || name.starts_with("TF_CLI_ARGS") && value.split_whitespace().any(names_state) {
        return Err(format!("`{name}` cannot be set to this by a hook: the state would be lost"));
    }
    if value.contains('\0') {
        return Err(format!("the value of `{name}` has a zero byte in it"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<(String, String, bool)> {
        let additions = parse(text.as_bytes()).unwrap();
        additions.into_iter().map(|Addition { name, value, masked }| (name, value, masked)).collect()
    }

    #[test]
    fn every_form_of_a_line_is_understood() {
        let text = "\n# no line\n  # nor this\nA=1\nexport B= x=y \r\n_c9=\nD<<END\none\n\n two=2\r\nEND\nE=a<<b\n\
                    mask F=s3cret\nmask export G<<  EOF\nkey\nEOF\nA=2";
        let wanted = [
            ("A", "1", false),
            ("B", " x=y ", false),
            ("_c9", "", false),
            ("D", "one\n\n two=2", false),
            ("E", "a<<b", false),
            ("F", "s3cret", true),
            ("G", "key", true),
            ("A", "2", false),
        ];
        assert_eq!(parsed(text), wanted.map(|(name, value, masked)| (name.to_owned(), value.to_owned(), masked)));
        assert!(parsed("").is_empty());
    }

    #[test]
    fn a_complaint_names_the_line_and_never_what_stands_there() {
        for (text, wanted) in [
            (b"A=1\ns3cret\n".as_slice(), "line 2 is not `NAME=VALUE`"),
            (b"A<<END\ns3cret\n", "the value that begins in line 1 has no end"),
            (b"A=1\n\nA<<\ns3cret", "line 3 has nothing behind `<<`"),
            (b"s3cret s3cret=1", "line 1: a name is made of letters"),
            (b"=s3cret", "line 1: a name is made of letters"),
            (b"9A=s3cret", "line 1: a name is made of letters"),
            (b"A=1\nB=s3cret\xff", "line 2 is not text in UTF-8"),
            (b"A=s3cret\0", "line 1: the value of `A` has a zero byte"),
        ] {
            let complaint = parse(text).unwrap_err();
            assert!(complaint.starts_with(wanted) && !complaint.contains("s3cret"), "{complaint}");
        }
    }

    #[test]
    fn what_would_move_the_state_away_is_refused() {
        for line in
            ["TF_WORKSPACE=x", "TF_DATA_DIR=/tmp", "TF_CLI_ARGS_apply=-lock=false --state=x", "TF_CLI_ARGS='-state' x"]
        {
            let complaint = parse(line.as_bytes()).unwrap_err();
            assert!(complaint.contains("the state would be lost"), "{line}: {complaint}");
        }
        assert_eq!(parsed("TF_CLI_ARGS_plan=-parallelism=3").len(), 1);
    }
}
