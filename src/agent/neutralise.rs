//! Keeps the terraform CLI from taking lines of a run's output for its own structured log.
//!
//! The CLI tries to read every line of a remote log as a JSON object, whatever the log is: a line like
//! `{"type":"provision_progress"}` makes it panic, `{}` and `null` print as an empty line. An escape
//! sequence that resets colours, put before such a value, is invisible and makes the line print as it is.
//!
//! Pure and streaming: the output depends on the bytes alone, never on how they were cut.

/// What is put before a value that would be read as JSON.
pub(crate) const RESET: &[u8] = b"\x1b[0m";

/// How much longer than its input the output of one call of [`Neutraliser::push`] can be: each two bytes
/// (`{` and a newline) become six; and up to [`NULL`] bytes of earlier calls come with it.
pub(crate) const WORST_GROWTH: usize = 3;

const NULL: &[u8] = b"null";

/// Where in a line the input ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// At the start of a line, or behind blanks at its start: a JSON value may begin here.
    Start,
    /// The first so many bytes of `null` were seen at the start of a line, and are not written yet.
    InNull(usize),
    /// Nothing to watch for until the next line.
    Inside,
}

/// The state between two pieces of a log.
#[derive(Debug, Clone)]
pub(crate) struct Neutraliser {
    place: Place,
}

impl Default for Neutraliser {
    fn default() -> Self {
        Self { place: Place::Start }
    }
}

impl Neutraliser {
    /// Appends what `input` becomes to `output`; up to four bytes may stay back until the next call.
    pub(crate) fn push(&mut self, mut input: &[u8], output: &mut Vec<u8>) {
        while let Some(&byte) = input.first() {
            match self.place {
                Place::Inside => {
                    let line = input.iter().position(|&byte| byte == b'\n').map_or(input.len(), |at| at + 1);
                    output.extend_from_slice(&input[..line]);
                    if input[line - 1] == b'\n' {
                        self.place = Place::Start;
                    }
                    input = &input[line..];
                    continue;
                }
                Place::Start => self.at_start(byte, output),
                Place::InNull(seen) => {
                    if !self.in_null(seen, byte, output) {
                        continue;
                    }
                }
            }
            input = &input[1..];
        }
    }

    /// The log ends here: appends what stayed back.
    pub(crate) fn finish(&mut self, output: &mut Vec<u8>) {
        if let Place::InNull(seen) = self.place {
            if seen == NULL.len() {
                output.extend_from_slice(RESET);
            }
            output.extend_from_slice(&NULL[..seen]);
            self.place = Place::Inside;
        }
    }

    fn at_start(&mut self, byte: u8, output: &mut Vec<u8>) {
        match byte {
            // A JSON reader skips blanks, so the value may still come.
            b' ' | b'\t' | b'\r' | b'\n' => output.push(byte),
            b'{' => {
                output.extend_from_slice(RESET);
                output.push(byte);
                self.place = Place::Inside;
            }
            b'n' => self.place = Place::InNull(1),
            _ => {
                output.push(byte);
                self.place = Place::Inside;
            }
        }
    }

    /// Whether `byte` was used up; otherwise it is to be looked at again as part of an ordinary line.
    fn in_null(&mut self, seen: usize, byte: u8, output: &mut Vec<u8>) -> bool {
        if NULL.get(seen) == Some(&byte) {
            self.place = Place::InNull(seen + 1);
            return true;
        }
        // `null` with a blank after it may still turn out to be text; the escape harms neither.
        if seen == NULL.len() && byte.is_ascii_whitespace() {
            output.extend_from_slice(RESET);
        }
        output.extend_from_slice(&NULL[..seen]);
        self.place = Place::Inside;
        false
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(input: &[u8]) -> Vec<u8> {
        pieces(&[input])
    }

    fn pieces(input: &[&[u8]]) -> Vec<u8> {
        let (mut neutraliser, mut output) = (Neutraliser::default(), Vec::new());
        for piece in input {
            neutraliser.push(piece, &mut output);
        }
        neutraliser.finish(&mut output);
        output
    }

    #[test]
    fn only_lines_that_a_json_reader_would_take_are_marked() {
        let table: &[(&str, &str)] = &[
            ("{\"a\":1}\n", "\x1b[0m{\"a\":1}\n"),
            ("  {}\n", "  \x1b[0m{}\n"),
            ("null\n", "\x1b[0mnull\n"),
            ("null\r\nx", "\x1b[0mnull\r\nx"),
            ("null", "\x1b[0mnull"),
            ("\tnull \n", "\t\x1b[0mnull \n"),
            ("null_resource.a: Creating...\n", "null_resource.a: Creating...\n"),
            ("nullnull\n", "nullnull\n"),
            ("nul\nnull\n", "nul\n\x1b[0mnull\n"),
            ("nu", "nu"),
            ("a {\n  b = null\n}\n", "a {\n  b = null\n}\n"),
            ("\n\n{", "\n\n\x1b[0m{"),
            ("[1]\n\"x\"\ntrue\n7\n", "[1]\n\"x\"\ntrue\n7\n"),
            ("", ""),
        ];
        for (input, expected) in table {
            assert_eq!(String::from_utf8(whole(input.as_bytes())).unwrap(), *expected, "{input:?}");
        }
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_bytes(text in "[nul{} \\r\\nx]{0,60}", cuts in prop::collection::vec(0usize..60, 0..8)) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|at| at.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let parts: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(pieces(&parts), whole(bytes));
        }

        #[test]
        fn no_line_of_the_output_is_a_json_object_or_null(text in "[nul{} \\r\\n\":1]{0,60}") {
            let output = String::from_utf8(whole(text.as_bytes())).unwrap();
            for line in output.split('\n') {
                let value = serde_json::from_str::<serde_json::Value>(line).ok();
                prop_assert!(!value.is_some_and(|value| value.is_object() || value.is_null()), "{:?}", line);
            }
            prop_assert_eq!(output.replace("\x1b[0m", ""), text);
        }

        #[test]
        fn growth_stays_within_its_bound(text in "[{n\\n]{0,80}") {
            let mut output = Vec::new();
            Neutraliser::default().push(text.as_bytes(), &mut output);
            prop_assert!(output.len() <= WORST_GROWTH * text.len() + 8);
        }
    }
}
