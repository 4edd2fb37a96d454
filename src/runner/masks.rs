//! Finds the lines of an output that declare secrets. Pure and streaming: how the output was cut makes no difference.

/// What begins such a line; the rest of the line is the secret.
pub(super) const PREFIX: &[u8] = b"::add-mask::";

/// Longest secret.
const LONGEST: usize = 64 << 10;

/// A part of an output.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// For the log.
    Text(Vec<u8>),
    /// A secret.
    Mask(Vec<u8>),
    /// A secret that is too long to be one; nothing of it is kept.
    Endless,
}

/// Where in a line the output is.
#[derive(Debug, Default)]
enum Place {
    /// At its begin, of which so much may still become [`PREFIX`] or has.
    #[default]
    Begin,
    /// It is for the log.
    Text,
    /// It is to be forgotten.
    Endless,
}

/// The state between two parts of an output.
#[derive(Default)]
pub(super) struct Lines {
    held: Vec<u8>,
    place: Place,
}

impl Lines {
    /// Takes the next bytes and adds what they become.
    pub(super) fn push(&mut self, bytes: &[u8], out: &mut Vec<Piece>) {
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let ends = line.ends_with(b"\n");
            match self.place {
                Place::Begin => self.begin(line, ends, out),
                Place::Text => text(line, out),
                Place::Endless => {}
            }
            if ends {
                self.place = Place::Begin;
            }
        }
    }

    fn begin(&mut self, line: &[u8], ends: bool, out: &mut Vec<Piece>) {
        self.held.extend_from_slice(line);
        if self.held.starts_with(PREFIX) {
            if self.held.len() > PREFIX.len() + LONGEST {
                self.held.clear();
                self.place = Place::Endless;
                out.push(Piece::Endless);
            } else if ends {
                self.finish(out);
            }
        } else if !PREFIX.starts_with(&self.held) {
            text(&std::mem::take(&mut self.held), out);
            self.place = Place::Text;
        }
    }

    /// The output ends here.
    pub(super) fn finish(&mut self, out: &mut Vec<Piece>) {
        let held = std::mem::take(&mut self.held);
        match held.strip_prefix(PREFIX) {
            Some(value) => {
                let end = value.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r')).map_or(0, |at| at + 1);
                out.push(Piece::Mask(value[..end].to_vec()));
            }
            None => text(&held, out),
        }
    }
}

fn text(bytes: &[u8], out: &mut Vec<Piece>) {
    match out.last_mut() {
        _ if bytes.is_empty() => {}
        Some(Piece::Text(text)) => text.extend_from_slice(bytes),
        _ => out.push(Piece::Text(bytes.to_vec())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What becomes of an output that comes in parts of these lengths.
    fn pieces(output: &[u8], lengths: &[usize]) -> Vec<Piece> {
        let (mut lines, mut out, mut rest) = (Lines::default(), Vec::new(), output);
        for length in lengths.iter().cycle() {
            let (part, later) = rest.split_at((*length).clamp(1, 4096).min(rest.len()));
            lines.push(part, &mut out);
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        lines.finish(&mut out);
        out
    }

    #[test]
    fn a_line_that_declares_a_secret_is_taken_out() {
        let output = b"one\n::add-mask::s3cret \r\n::add-mask:\nx ::add-mask::y\n::add-mask::\n::add-mask::last";
        let wanted = [
            Piece::Text(b"one\n".to_vec()),
            Piece::Mask(b"s3cret ".to_vec()),
            Piece::Text(b"::add-mask:\nx ::add-mask::y\n".to_vec()),
            Piece::Mask(Vec::new()),
            Piece::Mask(b"last".to_vec()),
        ];
        assert_eq!(pieces(output, &[4096]), wanted);
        assert_eq!(pieces(output, &[1]), wanted);
    }

    #[test]
    fn nothing_is_shown_of_a_secret_without_an_end() {
        let output = [PREFIX, &[b'x'; LONGEST + 1], b"\nafter\n"].concat();
        for lengths in [[4096], [7]] {
            assert_eq!(pieces(&output, &lengths), [Piece::Endless, Piece::Text(b"after\n".to_vec())]);
        }
    }

    #[test]
    fn the_begin_of_a_line_is_shown_as_soon_as_it_declares_nothing() {
        let (mut lines, mut out) = (Lines::default(), Vec::new());
        lines.push(b"::add", &mut out);
        assert!(out.is_empty());
        lines.push(b"ed", &mut out);
        assert_eq!(out, [Piece::Text(b"::added".to_vec())]);
    }

    proptest! {
        #[test]
        fn how_an_output_is_cut_makes_no_difference(
            output in prop::collection::vec(prop_oneof![
                Just("::add-mask::".to_owned()), Just("\n".to_owned()), Just(":".to_owned()), "[a:\\n]{0,4}"
            ], 0..20),
            lengths in prop::collection::vec(1usize..9, 1..6),
        ) {
            let output = output.concat();
            prop_assert_eq!(pieces(output.as_bytes(), &lengths), pieces(output.as_bytes(), &[4096]));
        }
    }
}
