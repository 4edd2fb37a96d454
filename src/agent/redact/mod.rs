//! Hides secrets in a run's output: [`MARK`] stands where one was, in whatever form it was written.
//!
//! Streaming and a pure function of the bytes: the output never depends on how they were cut. Only what may still
//! become a secret stays back, so that a line without an end, as of a prompt, is seen at once.
//!
//! A job has a few values, each in a dozen forms ([`forms`]), and its agent must stay small: so no automaton, but a
//! table of the first four bytes of all forms, which nearly every place of a text fails at.

pub mod forms;

use std::{
    collections::{BTreeSet, HashMap},
    ops::Range,
    sync::Arc,
};

use secrecy::{ExposeSecret, SecretString};

use crate::api::job::{Category, JobSpec, Variable};

/// What stands in place of a secret; shorter than the shortest of them.
pub const MARK: &[u8] = b"***";

/// What is shorter is not hidden: its letters would be hidden all over the log, which tells more than it hides.
pub const SHORTEST: usize = HEAD;

/// First bytes of a form that are looked for.
const HEAD: usize = 4;

/// Secrets that are looked for, in all their forms. Cheap to clone; its `Debug` output shows none.
#[derive(Clone, Default)]
pub struct Secrets(Option<Arc<Table>>);

struct Table {
    /// Sorted.
    forms: Vec<Box<[u8]>>,
    /// By their first bytes, where in `forms` they stand.
    heads: HashMap<[u8; HEAD], Range<usize>>,
    /// A bit for each hash of first bytes that there are.
    seen: Box<[u64]>,
    /// Bytes that a form begins with.
    begins: [bool; 256],
    /// Length of the longest form.
    longest: usize,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secrets({} forms)", self.0.as_ref().map_or(0, |table| table.forms.len()))
    }
}

impl Secrets {
    /// Of these values. Those shorter than [`SHORTEST`] and the words `true`, `false` and `null` are left out.
    pub fn new<'a>(values: impl IntoIterator<Item = &'a str>) -> Self {
        let forms: BTreeSet<Vec<u8>> = values.into_iter().flat_map(forms::of).collect();
        if forms.is_empty() { Self(None) } else { Self(Some(Arc::new(Table::new(forms)))) }
    }

    /// What a job's log must not show: the values of sensitive variables, also where the run gives them others, and the
    /// pool token, though no run is given that.
    pub(super) fn of_job(spec: &JobSpec, pool_token: &SecretString) -> Self {
        let sensitive: Vec<&Variable> = spec.variables.iter().filter(|variable| variable.sensitive).collect();
        let given = |key: &str| sensitive.iter().any(|it| it.key == key && it.category == Category::Terraform);
        let literals = sensitive.iter().filter(|it| it.hcl).map(|it| it.value.as_str());
        let literals =
            literals.chain(spec.run.variables.iter().filter(|it| given(&it.key)).map(|it| it.value.as_str()));
        let inner: Vec<String> = literals.flat_map(forms::strings).collect();
        let values = sensitive.iter().map(|it| it.value.as_str()).chain(inner.iter().map(String::as_str));
        Self::new(values.chain([pool_token.expose_secret()]))
    }

    /// These and more.
    #[must_use]
    pub fn with<'a>(&self, values: impl IntoIterator<Item = &'a str>) -> Self {
        let mut forms: BTreeSet<Vec<u8>> = values.into_iter().flat_map(forms::of).collect();
        forms.extend(self.0.iter().flat_map(|table| table.forms.iter()).map(|form| form.to_vec()));
        if forms.is_empty() { Self(None) } else { Self(Some(Arc::new(Table::new(forms)))) }
    }

    /// A whole text without them.
    #[must_use]
    pub fn redact(&self, text: &str) -> String {
        let (mut redactor, mut output) = (Redactor::new(self.clone()), Vec::new());
        redactor.push(text.as_bytes(), &mut output);
        redactor.finish(&mut output);
        String::from_utf8_lossy(&output).into_owned()
    }
}

impl Table {
    fn new(forms: BTreeSet<Vec<u8>>) -> Self {
        let forms: Vec<Box<[u8]>> = forms.into_iter().map(Vec::into_boxed_slice).collect();
        let mut heads: HashMap<[u8; HEAD], Range<usize>> = HashMap::new();
        let mut seen = vec![0; (1 << 16) / 64].into_boxed_slice();
        let mut begins = [false; 256];
        for (at, form) in forms.iter().enumerate() {
            let Some(head) = form.first_chunk::<HEAD>() else { continue };
            heads.entry(*head).or_insert(at..at).end = at + 1;
            let (word, bit) = place(*head);
            seen[word] |= bit;
            begins[usize::from(head[0])] = true;
        }
        let longest = forms.iter().map(|form| form.len()).max().unwrap_or_default();
        Self { forms, heads, seen, begins, longest }
    }

    /// The first form at or behind `from`; of several at one place the longest.
    fn find(&self, text: &[u8], from: usize) -> Option<Range<usize>> {
        let mut from = from;
        loop {
            let may_begin = |head: &[u8]| head.first_chunk().is_some_and(|head| self.may_begin(*head));
            let start = from + text.get(from..)?.windows(HEAD).position(may_begin)?;
            if let Some(length) = self.longest_at(&text[start..]) {
                return Some(start..start + length);
            }
            from = start + 1;
        }
    }

    fn may_begin(&self, head: [u8; HEAD]) -> bool {
        let (word, bit) = place(head);
        self.seen[word] & bit != 0
    }

    /// Length of the longest form that `text` begins with.
    fn longest_at(&self, text: &[u8]) -> Option<usize> {
        let range = self.heads.get(text.first_chunk::<HEAD>()?)?;
        self.forms[range.clone()].iter().filter(|form| text.starts_with(form)).map(|form| form.len()).max()
    }

    /// Whether more bytes may make a form of it, or a longer one.
    fn is_begun(&self, tail: &[u8]) -> bool {
        let next = self.forms.partition_point(|form| **form <= *tail);
        self.forms.get(next).is_some_and(|form| form.starts_with(tail))
    }

    /// Where the part of `text` begins of which more bytes have to tell what it is.
    fn undecided(&self, text: &[u8]) -> usize {
        let from = text.len().saturating_sub(self.longest - 1);
        let begun = |at: &usize| self.begins[usize::from(text[*at])] && self.is_begun(&text[*at..]);
        (from..text.len()).find(begun).unwrap_or(text.len())
    }
}

/// Word and bit of the hash of a form's first bytes.
fn place(head: [u8; HEAD]) -> (usize, u64) {
    let hash = u32::from_le_bytes(head).wrapping_mul(0x9e37_79b1) >> 16;
    ((hash / 64) as usize, 1 << (hash % 64))
}

/// The state between two pieces of a log.
#[derive(Debug, Clone, Default)]
pub struct Redactor {
    secrets: Secrets,
    /// What stays back.
    held: Held,
}

/// Text that is not written yet; its `Debug` output shows nothing of it.
#[derive(Clone, Default)]
struct Held {
    text: Vec<u8>,
    /// So many bytes of it belong to a mark that was written.
    marked: usize,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Held({} bytes)", self.text.len())
    }
}

impl Redactor {
    #[must_use]
    pub fn new(secrets: Secrets) -> Self {
        Self { secrets, held: Held::default() }
    }

    /// Appends what `input` becomes to `output`: all in all never more bytes than were taken.
    pub fn push(&mut self, input: &[u8], output: &mut Vec<u8>) {
        self.write(input, output, false);
    }

    /// Looks for more from here on, and in what stayed back.
    pub fn learn<'a>(&mut self, values: impl IntoIterator<Item = &'a str>) {
        self.secrets = self.secrets.with(values);
    }

    /// The text ends here: appends what stayed back. What is pushed then is another text.
    pub fn finish(&mut self, output: &mut Vec<u8>) {
        self.write(&[], output, true);
    }

    fn write(&mut self, input: &[u8], output: &mut Vec<u8>, ends: bool) {
        let Some(table) = &self.secrets.0 else {
            output.extend_from_slice(input);
            return;
        };
        let Held { text, marked } = &mut self.held;
        text.extend_from_slice(input);
        let decided = if ends { text.len() } else { table.undecided(text) };
        let (mut from, mut written) = (0, *marked);
        while let Some(found) = table.find(text, from).filter(|found| found.start < decided) {
            // What overlaps is one secret to who reads it: the rest of the other one must not stand there.
            if found.start >= written {
                output.extend_from_slice(&text[written..found.start]);
                output.extend_from_slice(MARK);
            }
            written = written.max(found.end);
            from = found.start + 1;
        }
        output.extend_from_slice(text.get(written..decided).unwrap_or_default());
        *marked = written.saturating_sub(decided);
        text.drain(..decided);
    }
}

#[cfg(test)]
mod tests {
    use base64::{
        Engine,
        engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
    };
    use proptest::prelude::*;

    use super::*;

    fn redacted(secrets: &Secrets, text: &[u8], cuts: &[usize]) -> Vec<u8> {
        let (mut redactor, mut output) = (Redactor::new(secrets.clone()), Vec::new());
        let mut from = 0;
        for cut in cuts.iter().copied().filter(|cut| *cut <= text.len()) {
            if cut > from {
                redactor.push(&text[from..cut], &mut output);
                from = cut;
            }
        }
        redactor.push(&text[from..], &mut output);
        redactor.finish(&mut output);
        output
    }

    /// The same in the plainest way, of a text that is there as a whole.
    fn at_once(forms: &[Box<[u8]>], text: &[u8]) -> Vec<u8> {
        let (mut output, mut end) = (Vec::new(), 0);
        for at in 0..text.len() {
            let found = forms.iter().filter(|form| text[at..].starts_with(form)).map(|form| at + form.len()).max();
            match found {
                Some(_) if at >= end => output.extend_from_slice(MARK),
                None if at >= end => output.push(text[at]),
                _ => {}
            }
            end = end.max(found.unwrap_or_default());
        }
        output
    }

    fn text_of(secrets: &[&str], text: &str) -> String {
        String::from_utf8(redacted(&Secrets::new(secrets.iter().copied()), text.as_bytes(), &[])).unwrap()
    }

    fn url(text: &str) -> String {
        url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
    }

    /// As programs write a value, and what of it must not be seen.
    fn written(value: &str) -> Vec<(&'static str, String)> {
        let json = serde_json::to_string(value).unwrap();
        vec![
            ("as it is", value.to_owned()),
            ("base64", STANDARD.encode(value)),
            ("base64 for URLs", URL_SAFE_NO_PAD.encode(value)),
            ("percent-encoded", url(value)),
            ("JSON", json[1..json.len() - 1].to_owned()),
        ]
    }

    #[test]
    fn a_secret_cut_at_any_place_is_hidden_in_every_form() {
        for value in [
            "hunter2-hunter2",
            "pä$$ wörd\"<&>\\",
            "a b/c+d=e?f",
            "${x} %{y}",
            "-----K\nfirst-line-of-it\nlast-line-of-it",
        ] {
            let secrets = Secrets::new([value]);
            for (form, written) in written(value) {
                let text = format!("before {written} after\n");
                for cut in 0..=text.len() {
                    let output = redacted(&secrets, text.as_bytes(), &[cut]);
                    assert_eq!(
                        String::from_utf8(output).unwrap(),
                        "before *** after\n",
                        "{form} of {value:?}, cut at {cut}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_middle_of_a_longer_base64_is_hidden() {
        let secrets = Secrets::new(["s3cr3t-v4lue"]);
        for before in ["", "u", "us", "use", "user:"] {
            for after in ["", "x", "xy", "xyz"] {
                let text = STANDARD.encode(format!("{before}s3cr3t-v4lue{after}"));
                let output = redacted(&secrets, text.as_bytes(), &[]);
                let output = String::from_utf8(output).unwrap();
                assert!(output.contains("***"), "{before}…{after}: {output}");
                assert!(output.len() <= text.len() - 10, "{before}…{after}: {output} of {text}");
            }
        }
    }

    #[test]
    fn base64_of_a_long_value_is_hidden_though_it_is_broken_into_lines() {
        let value = "0123456789abcdefghijklmnopqrstuvwxyz".repeat(6);
        for width in [64, 76] {
            let encoded = STANDARD.encode(&value);
            let lines: Vec<&str> = encoded.as_bytes().chunks(width).map(|line| str::from_utf8(line).unwrap()).collect();
            let shown = text_of(&[&value], &lines.join("\n"));
            assert!(shown.split('\n').all(|line| line == "***"), "{width}: {shown}");
        }
    }

    #[test]
    fn each_line_of_a_key_is_hidden_and_its_borders_are_not() {
        let key = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\nBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj\n-----END PRIVATE KEY-----\n";
        let shown = text_of(
            &[key],
            "key: MIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n  BKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj\n-----END PRIVATE KEY-----\n",
        );
        assert_eq!(shown, "key: ***\n  ***\n-----END PRIVATE KEY-----\n");
        assert_eq!(text_of(&[key], key), "***\n");
    }

    #[test]
    fn words_that_everybody_writes_are_no_secrets() {
        assert_eq!(text_of(&["true", "false", "null", "abc", "", "\n"], "true false null abc"), "true false null abc");
    }

    #[test]
    fn secrets_that_overlap_are_hidden_as_one() {
        assert_eq!(text_of(&["pass", "password", "word-of"], "password-of pass"), "*** ***");
        assert_eq!(text_of(&["aaaa"], "baaaaaab aaaa"), "b***b ***");
    }

    #[test]
    fn a_line_without_an_end_is_seen_at_once() {
        let (mut redactor, mut output) = (Redactor::new(Secrets::new(["password-1"])), Vec::new());
        redactor.push(b"Enter a value: ", &mut output);
        assert_eq!(output, b"Enter a value: ");
        redactor.push(b"a pass", &mut output);
        assert_eq!(output, b"Enter a value: a ");
        redactor.push(b"age", &mut output);
        assert_eq!(output, b"Enter a value: a passage");
    }

    #[test]
    fn a_secret_that_is_learned_is_hidden_from_there_on_and_the_others_across_that_place() {
        let (mut redactor, mut output) = (Redactor::new(Secrets::new(["password-1"])), Vec::new());
        redactor.push(b"token-2 passw", &mut output);
        redactor.learn(["token-2"]);
        redactor.push(b"ord-1 token-2 dG9rZW4tMg==", &mut output);
        redactor.finish(&mut output);
        assert_eq!(String::from_utf8(output).unwrap(), "token-2 *** *** ***");
        let mut nothing_before = Redactor::default();
        nothing_before.learn(["token-2"]);
        let mut output = Vec::new();
        nothing_before.push(b"a token-2.", &mut output);
        assert_eq!(output, b"a ***.");
        assert_eq!(Secrets::new(["s3cret"]).with(["other"]).redact("s3cret other"), "*** ***");
    }

    #[test]
    fn nothing_that_is_shown_of_them_shows_them() {
        let secrets = Secrets::new(["hunter2-hunter2"]);
        let shown = format!("{secrets:?} {:?}", Redactor::new(secrets.clone()));
        assert!(!shown.contains("hunter2") && shown.contains("forms"), "{shown}");
    }

    proptest! {
        #[test]
        fn the_output_is_that_of_the_whole_text_however_it_is_cut(
            values in prop::collection::vec("[ab\"\\n]{3,9}", 1..4),
            text in "[ab\"\\\\n ]{0,120}",
            mut cuts in prop::collection::vec(0usize..130, 0..12),
        ) {
            let secrets = Secrets::new(values.iter().map(String::as_str));
            let forms: Vec<Box<[u8]>> = secrets.0.as_ref().map(|table| table.forms.clone()).unwrap_or_default();
            let expected = at_once(&forms, text.as_bytes());
            cuts.sort_unstable();
            prop_assert_eq!(redacted(&secrets, text.as_bytes(), &cuts), expected);
        }

        #[test]
        fn no_form_of_any_secret_is_left(
            values in prop::collection::vec("[ -~äß\\n]{6,40}", 1..5),
            around in prop::collection::vec("[a-zA-Z0-9 .:=\\n]{0,10}", 6),
            mut cuts in prop::collection::vec(0usize..600, 0..20),
        ) {
            let secrets = Secrets::new(values.iter().map(String::as_str));
            cuts.sort_unstable();
            for value in values.iter().map(|value| value.trim_matches('\n')).filter(|value| value.len() >= SHORTEST) {
                let forms = written(value);
                let text: String = forms.iter().zip(&around).map(|((_, form), around)| format!("{around}{form}")).collect();
                let output = redacted(&secrets, text.as_bytes(), &cuts);
                let output = String::from_utf8_lossy(&output).into_owned();
                for (name, form) in forms {
                    prop_assert!(!output.contains(&form), "{} of {:?} in {}", name, value, output);
                }
            }
        }
    }
}
