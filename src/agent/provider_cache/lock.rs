//! Reads a dependency lock file as engines write it, line by line. It is part of a configuration, so it may be anything:
//! what is not understood is skipped, and never an error. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::package::{H1, Package};

/// Longest file that is read, in bytes.
pub(super) const LIMIT: u64 = 1 << 20;

/// Most providers, and most hashes of one, that are taken from a file.
const MOST: usize = 256;

/// Packages that a lock file allows, with their `h1:` hashes: of this platform or another, which it does not say.
pub(super) type Locked = BTreeMap<Package, BTreeSet<H1>>;

/// A `provider` block that is not closed yet.
#[derive(Default)]
struct Block<'a> {
    address: &'a str,
    version: Option<&'a str>,
    hashes: BTreeSet<H1>,
    /// Within the brackets of `hashes`.
    listing: bool,
}

impl<'a> Block<'a> {
    fn read(&mut self, line: &'a str) {
        if self.listing {
            self.list(line);
        } else if let Some(list) = value(line, "hashes").and_then(|list| list.strip_prefix('[')) {
            self.listing = true;
            self.list(list);
        } else if let Some(version) = value(line, "version").and_then(quoted) {
            self.version = Some(version);
        }
    }

    /// Hashes with commas between them, perhaps to the end of the list.
    fn list(&mut self, text: &str) {
        let items = match text.split_once(']') {
            Some((items, _)) => {
                self.listing = false;
                items
            }
            None => text,
        };
        let hashes = items.split(',').filter_map(|item| quoted(item.trim())?.parse::<H1>().ok());
        self.hashes.extend(hashes.take(MOST.saturating_sub(self.hashes.len())));
    }
}

/// What the lock file says.
pub(super) fn read(text: &[u8]) -> Locked {
    let text = String::from_utf8_lossy(text);
    let mut locked = Locked::new();
    let mut block: Option<Block<'_>> = None;
    for line in text.lines().map(str::trim) {
        match &mut block {
            None => block = opening(line).map(|address| Block { address, ..Block::default() }),
            Some(Block { address, version, hashes, listing: false }) if line == "}" => {
                let package = version.and_then(|version| Package::of_address(address, version));
                if let Some(package) = package
                    && locked.len() < MOST
                {
                    locked.entry(package).or_default().append(hashes);
                }
                block = None;
            }
            Some(block) => block.read(line),
        }
    }
    locked
}

/// `provider "ADDRESS" {`
fn opening(line: &str) -> Option<&str> {
    quoted(line.strip_prefix("provider ")?.strip_suffix('{')?.trim())
}

/// What stands behind `KEY =`.
fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    Some(line.strip_prefix(key)?.trim_start().strip_prefix('=')?.trim_start())
}

/// The text between quotes, in which nothing has a meaning.
fn quoted(text: &str) -> Option<&str> {
    let text = text.strip_prefix('"')?.strip_suffix('"')?;
    (!text.contains(['"', '\\', '$', '%'])).then_some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ONE: &str = "h1:k7DInynaRAsI3eP2jhlDnTYexV7KO4/BK6YN+xpCr5o=";
    const OTHER: &str = "h1:Yl6DdT6NyVpWrgH8PloCJONjgqs5W1WxOmuNakpVpzM=";

    fn locked(packages: &[(&str, &str, &[&str])]) -> Locked {
        let of = |(address, version, hashes): &(&str, &str, &[&str])| {
            let hashes = hashes.iter().map(|hash| hash.parse().unwrap()).collect();
            (Package::of_address(address, version).unwrap(), hashes)
        };
        packages.iter().map(of).collect()
    }

    /// As terraform and tofu write it.
    fn written() -> String {
        format!(
            r#"# This file is maintained automatically by "terraform init".
# Manual edits may be lost in future updates.

provider "registry.terraform.io/hashicorp/null" {{
  version     = "3.2.1"
  constraints = ">= 3.0.0, < 4.0.0"
  hashes = [
    "{ONE}",
    "{OTHER}",
    "zh:{zh}",
  ]
}}

provider "registry.terrapool.test/test/probe" {{
  version = "1.2.3"
  hashes = [
    "{ONE}",
  ]
}}
"#,
            zh = "0".repeat(64)
        )
    }

    #[test]
    fn what_engines_write_is_read() {
        let wanted = locked(&[
            ("registry.terraform.io/hashicorp/null", "3.2.1", &[ONE, OTHER]),
            ("registry.terrapool.test/test/probe", "1.2.3", &[ONE]),
        ]);
        assert_eq!(read(written().as_bytes()), wanted);
        assert_eq!(read(written().replace('\n', "\r\n").as_bytes()), wanted);
    }

    #[test]
    fn what_is_written_by_hand_is_read_where_it_is_plain() {
        let probe = "registry.terrapool.test/test/probe";
        let block = |inner: &str| format!("provider \"{probe}\" {{\n{inner}\n}}\n");
        let one_line = block(&format!("hashes = [\"{ONE}\", \"{OTHER}\"]\nversion=\"1.2.3\""));
        assert_eq!(read(one_line.as_bytes()), locked(&[(probe, "1.2.3", &[ONE, OTHER])]));
        let nothing_known = block("version = \"1.2.3\"\nhashes = [\n\"zh:00\",\n\"h1:short\",\nnonsense\n]");
        assert_eq!(read(nothing_known.as_bytes()), locked(&[(probe, "1.2.3", &[])]));
        for text in [
            block(&format!("hashes = [\"{ONE}\"]")),
            block(&format!("version = \"${{x}}\"\nhashes = [\"{ONE}\"]")),
            format!("provider \"{probe}\" {{\nversion = \"1.2.3\"\nhashes = [\"{ONE}\"]"),
            format!("provider \"{probe}\" {{\nversion = \"1.2.3\"\nhashes = [\n\"{ONE}\",\n}}"),
            format!("provider \"../../etc\" {{\nversion = \"1.2.3\"\nhashes = [\"{ONE}\"]\n}}"),
            format!("provider \"{probe}\"\n{{\nversion = \"1.2.3\"\nhashes = [\"{ONE}\"]\n}}"),
            format!("other \"{probe}\" {{\nversion = \"1.2.3\"\nhashes = [\"{ONE}\"]\n}}"),
        ] {
            assert_eq!(read(text.as_bytes()), Locked::new(), "{text}");
        }
    }

    #[test]
    fn there_is_an_end_to_what_is_taken() {
        let block = |at: usize| format!("provider \"a.b/c/p{at}\" {{\nversion = \"1.0.0\"\nhashes = [\"{ONE}\"]\n}}\n");
        let many: String = (0..2 * MOST).map(block).collect();
        assert_eq!(read(many.as_bytes()).len(), MOST);
    }

    proptest! {
        #[test]
        fn nothing_makes_it_fail(text in "(provider \"a/b/c\" \\{\n|version = \"1.0.0\"\n|hashes = \\[|\\]\n|\"h1:|\",\n|\\}\n|.|\n){0,60}") {
            read(text.as_bytes());
        }

        #[test]
        fn bytes_that_are_no_text_are_only_skipped(bytes: Vec<u8>) {
            let mut file = written().into_bytes();
            file.extend(b"\n");
            file.extend(&bytes);
            let found = read(&file);
            prop_assert!(read(written().as_bytes()).keys().all(|package| found.contains_key(package)));
        }

        #[test]
        fn a_file_that_breaks_off_says_nothing_else(at in 0usize..700) {
            let text = written();
            let cut = &text[..at.min(text.len())];
            let whole = read(text.as_bytes());
            for (package, hashes) in read(cut.as_bytes()) {
                prop_assert!(hashes.is_subset(&whole[&package]));
            }
        }
    }
}
