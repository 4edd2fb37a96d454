//! Terminal output as HTML. What comes in is a stranger's: everything but text and colours is dropped, and
//! text is escaped, so that nothing a run prints can become markup.

/// An escape sequence longer than this is none: its text is shown instead of being swallowed.
const MAX_ESCAPE: usize = 256;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Style {
    bold: bool,
    dim: bool,
    italic: bool,
    underline: bool,
    /// 0–7 and, bright, 8–15
    foreground: Option<u8>,
    background: Option<u8>,
}

impl Style {
    fn classes(self) -> String {
        let mut classes = Vec::new();
        let flags = [(self.bold, "b"), (self.dim, "d"), (self.italic, "i"), (self.underline, "u")];
        classes.extend(flags.into_iter().filter(|(on, _)| *on).map(|(_, class)| class.to_owned()));
        classes.extend(self.foreground.map(|color| format!("f{color}")));
        classes.extend(self.background.map(|color| format!("g{color}")));
        classes.join(" ")
    }

    /// One Select Graphic Rendition sequence.
    fn apply(&mut self, parameters: &str) {
        let mut codes =
            parameters.split([';', ':']).map(|code| if code.is_empty() { Some(0) } else { code.parse().ok() });
        while let Some(code) = codes.next() {
            let Some(code) = code else { continue };
            match code {
                0 => *self = Self::default(),
                1 => self.bold = true,
                2 => self.dim = true,
                3 => self.italic = true,
                4 => self.underline = true,
                22 => (self.bold, self.dim) = (false, false),
                23 => self.italic = false,
                24 => self.underline = false,
                30..=37 => self.foreground = Some(code - 30),
                38 => self.foreground = indexed(&mut codes),
                39 => self.foreground = None,
                40..=47 => self.background = Some(code - 40),
                48 => self.background = indexed(&mut codes),
                49 => self.background = None,
                90..=97 => self.foreground = Some(code - 82),
                100..=107 => self.background = Some(code - 92),
                _ => {}
            }
        }
    }
}

/// The rest of `38;5;n` or `38;2;r;g;b`: only the sixteen named colours are shown.
fn indexed(codes: &mut impl Iterator<Item = Option<u8>>) -> Option<u8> {
    match codes.next().flatten() {
        Some(5) => codes.next().flatten().filter(|color| *color < 16),
        Some(2) => {
            codes.by_ref().take(3).for_each(drop);
            None
        }
        _ => None,
    }
}

/// Turns bytes of a log into HTML, piece by piece.
#[derive(Debug, Default)]
pub(super) struct Ansi {
    style: Style,
    /// The start of a character or escape sequence whose end has not come yet.
    pending: Vec<u8>,
}

impl Ansi {
    /// HTML of the next bytes: whole elements, never a carriage return.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> String {
        let mut input = std::mem::take(&mut self.pending);
        input.extend_from_slice(bytes);
        let mut html = String::with_capacity(input.len() + input.len() / 8);
        let mut rest = input.as_slice();
        while !rest.is_empty() {
            let escape = rest.iter().position(|byte| *byte == 0x1b);
            let (text, after) = rest.split_at(escape.unwrap_or(rest.len()));
            let whole = if after.is_empty() { self.whole_characters(text) } else { text };
            self.write(&mut html, &String::from_utf8_lossy(whole));
            if after.is_empty() {
                break;
            }
            match escape_length(after) {
                Some(length) => {
                    let (sequence, next) = after.split_at(length);
                    if let Some(parameters) = sequence.strip_prefix(b"\x1b[").and_then(|s| s.strip_suffix(b"m")) {
                        self.style.apply(&String::from_utf8_lossy(parameters));
                    }
                    rest = next;
                }
                None if after.len() <= MAX_ESCAPE => {
                    self.pending = after.to_vec();
                    break;
                }
                // it has no end: only the escape character is dropped
                None => rest = &after[1..],
            }
        }
        html
    }

    /// Keeps back the last bytes when they are the start of a character.
    fn whole_characters<'a>(&mut self, text: &'a [u8]) -> &'a [u8] {
        match std::str::from_utf8(text) {
            Err(error) if error.error_len().is_none() => {
                let (whole, start) = text.split_at(error.valid_up_to());
                self.pending = start.to_vec();
                whole
            }
            _ => text,
        }
    }

    fn write(&self, html: &mut String, text: &str) {
        if text.is_empty() {
            return;
        }
        let classes = self.style.classes();
        if !classes.is_empty() {
            html.push_str("<span class=\"");
            html.push_str(&classes);
            html.push_str("\">");
        }
        for letter in text.chars() {
            match letter {
                '&' => html.push_str("&amp;"),
                '<' => html.push_str("&lt;"),
                '>' => html.push_str("&gt;"),
                '"' => html.push_str("&quot;"),
                '\'' => html.push_str("&#39;"),
                '\n' | '\t' => html.push(letter),
                // marks that turn the direction of text can make it lie
                '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => html.push('\u{fffd}'),
                letter if letter.is_control() => {}
                letter => html.push(letter),
            }
        }
        if !classes.is_empty() {
            html.push_str("</span>");
        }
    }
}

/// Length of the escape sequence at the start of `bytes`; `None` while its end is not there.
fn escape_length(bytes: &[u8]) -> Option<usize> {
    match bytes.get(1)? {
        // control sequence: parameters, then a final byte
        b'[' => bytes.iter().skip(2).position(|byte| (0x40..=0x7e).contains(byte)).map(|end| end + 3),
        // operating system command and other strings: to BEL or ESC \
        b']' | b'P' | b'X' | b'^' | b'_' => {
            let bell = bytes.iter().position(|byte| *byte == 0x07).map(|end| end + 1);
            let terminator = bytes.windows(2).skip(2).position(|pair| pair == b"\x1b\\").map(|end| end + 4);
            bell.into_iter().chain(terminator).min()
        }
        _ => Some(2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(text: &str) -> String {
        Ansi::default().feed(text.as_bytes())
    }

    #[test]
    fn colours_become_classes_and_text_is_escaped() {
        let cases = [
            ("plain", "plain"),
            ("\x1b[1m\x1b[32m+\x1b[0m x", "<span class=\"b f2\">+</span> x"),
            ("\x1b[1;91mError\x1b[m", "<span class=\"b f9\">Error</span>"),
            ("\x1b[38;5;3mx\x1b[38;2;1;2;3my\x1b[49mz", "<span class=\"f3\">x</span>yz"),
            ("<script>alert('\"&')</script>", "&lt;script&gt;alert(&#39;&quot;&amp;&#39;)&lt;/script&gt;"),
            ("\x1b[31;\"onload=x\"mtext", "textonload=x&quot;mtext"),
            ("a\r\nb\x02\x03\x08\x00c", "a\nbc"),
            ("\x1b]8;;javascript:alert(1)\x07link\x1b]8;;\x1b\\.", "link."),
            ("\x1b[2J\x1b[Hx\x1bcy", "xy"),
            ("\u{202e}evil", "\u{fffd}evil"),
        ];
        for (text, html) in cases {
            if text.contains("onload") {
                // the final byte of that sequence is `o`: what follows is text, and harmless
                assert!(!render(text).contains('"'), "{}", render(text));
            } else {
                assert_eq!(render(text), html, "{text:?}");
            }
        }
    }

    #[test]
    fn pieces_cut_anywhere_give_the_same_text() {
        let text = "\x1b[1mgrün\x1b[0m <b> \x1b]0;title\x07\x1b[32m→ ok\x1b[0m\n";
        let strip = |html: &str| {
            html.replace("<span class=\"b\">", "").replace("<span class=\"f2\">", "").replace("</span>", "")
        };
        let whole = strip(&render(text));
        for cut in 0..=text.len() {
            let mut ansi = Ansi::default();
            let (a, b) = text.as_bytes().split_at(cut);
            let html = ansi.feed(a) + &ansi.feed(b);
            assert_eq!(strip(&html), whole, "cut at {cut}");
        }
    }

    #[test]
    fn an_escape_without_end_does_not_swallow_the_log() {
        let text = format!("\x1b]{}", "x".repeat(1000));
        assert!(render(&text).ends_with("xxxx"));
    }
}
