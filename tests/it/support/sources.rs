//! Our own source files as the architecture tests read them: text, and tokens without comments and strings.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// One `.rs` file.
pub struct Source {
    /// Relative to the package, with slashes: `src/server/mod.rs`.
    pub path: String,
    pub text: String,
    tokens: Vec<Token>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Token {
    text: String,
    line: usize,
    /// Inside of an item marked `#[cfg(test)]`.
    test: bool,
    /// How many inline modules are open around it.
    depth: usize,
}

/// A use of another top-level module of the crate.
#[derive(Debug, PartialEq, Eq)]
pub struct Edge {
    pub to: String,
    pub line: usize,
}

pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every `.rs` file below `dir` of the package, sorted.
pub fn sources(dir: &str) -> Vec<Source> {
    let mut paths = Vec::new();
    walk(&root().join(dir), &mut paths);
    paths.sort();
    paths
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            let path = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            Source::new(path, text)
        })
        .collect()
}

fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, found);
        } else {
            found.push(path);
        }
    }
}

impl Source {
    pub fn new(path: String, text: String) -> Self {
        let tokens = mark(tokenize(&text));
        Self { path, text, tokens }
    }

    /// The top-level module that the file belongs to: `server` for `src/server/store/mod.rs`.
    pub fn module(&self) -> &str {
        let inside = self.path.strip_prefix("src/").unwrap_or(&self.path);
        inside.split('/').next().unwrap_or(inside).trim_end_matches(".rs")
    }

    /// How deep the file's module lies: 1 for `src/server/mod.rs`, 0 for `src/lib.rs`.
    fn depth(&self) -> usize {
        let inside = self.path.strip_prefix("src/").unwrap_or(&self.path);
        let segments = inside.split('/').count();
        if inside.ends_with("/mod.rs") || inside == "lib.rs" || inside == "main.rs" { segments - 1 } else { segments }
    }

    /// Where the file names another top-level module, in `use` lines and in paths, through `crate` or `super`.
    pub fn edges(&self) -> Vec<Edge> {
        let mut edges = Vec::new();
        let mut i = 0;
        while i < self.tokens.len() {
            let after = match self.tokens[i].text.as_str() {
                "crate" if self.at(i + 1) == "::" => Some(i + 2),
                "super" if self.at(i + 1) == "::" => {
                    let mut climbed = 1;
                    let mut next = i + 2;
                    while self.at(next) == "super" && self.at(next + 1) == "::" {
                        climbed += 1;
                        next += 2;
                    }
                    let reaches_root = climbed >= self.depth() + self.tokens[i].depth;
                    i = next - 1;
                    reaches_root.then_some(next)
                }
                _ => None,
            };
            if let Some(after) = after {
                self.heads(after, &mut edges);
            }
            i += 1;
        }
        edges.retain(|edge| edge.to != self.module() && edge.to != "self" && edge.to != "super");
        edges
    }

    /// The first segments of what stands at `start`: one path, or a group of them.
    fn heads(&self, start: usize, edges: &mut Vec<Edge>) {
        if self.at(start) != "{" {
            if let Some(token) = self.tokens.get(start) {
                edges.push(Edge { to: token.text.clone(), line: token.line });
            }
            return;
        }
        let mut nesting = 0;
        for i in start..self.tokens.len() {
            match self.at(i) {
                "{" => nesting += 1,
                "}" => nesting -= 1,
                _ => {}
            }
            if nesting == 0 {
                return;
            }
            let begins_item = nesting == 1 && matches!(self.at(i), "{" | ",");
            if begins_item && !matches!(self.at(i + 1), "}" | "{" | ",") {
                edges.push(Edge { to: self.at(i + 1).to_owned(), line: self.tokens[i + 1].line });
            }
        }
    }

    /// Lines outside of tests with these tokens in a row, such as `["env", "::", "var"]`.
    pub fn lines_with(&self, tokens: &[&str]) -> Vec<usize> {
        let windows = self.tokens.windows(tokens.len());
        let matching = windows.filter(|window| window.iter().zip(tokens).all(|(have, want)| have.text == *want));
        matching.filter(|window| !window[0].test).map(|window| window[0].line).collect()
    }

    fn at(&self, i: usize) -> &str {
        self.tokens.get(i).map_or("", |token| token.text.as_str())
    }
}

/// Splits Rust into words, `::` and single characters; comments, strings and characters are left out.
fn tokenize(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut tokens = Vec::new();
    let mut line = 1;
    let mut i = 0;
    while i < chars.len() {
        let c = chars[i];
        let end = if c == '/' && at(i + 1) == '/' {
            (i..chars.len()).find(|&j| chars[j] == '\n').unwrap_or(chars.len())
        } else if c == '/' && at(i + 1) == '*' {
            block_comment_end(&chars, i)
        } else if let Some(end) = string_end(&chars, i) {
            end
        } else if c.is_alphanumeric() || c == '_' {
            let end = (i..chars.len()).find(|&j| !(chars[j].is_alphanumeric() || chars[j] == '_'));
            let end = end.unwrap_or(chars.len());
            tokens.push(Token { text: chars[i..end].iter().collect(), line, test: false, depth: 0 });
            end
        } else if c == ':' && at(i + 1) == ':' {
            tokens.push(Token { text: "::".to_owned(), line, test: false, depth: 0 });
            i + 2
        } else {
            if !c.is_whitespace() {
                tokens.push(Token { text: c.to_string(), line, test: false, depth: 0 });
            }
            i + 1
        };
        line += chars[i..end].iter().filter(|&&c| c == '\n').count();
        i = end;
    }
    tokens
}

fn block_comment_end(chars: &[char], start: usize) -> usize {
    let mut nesting = 0;
    let mut i = start;
    while i < chars.len() {
        match (chars[i], chars.get(i + 1)) {
            ('/', Some('*')) => (nesting, i) = (nesting + 1, i + 2),
            ('*', Some('/')) => (nesting, i) = (nesting - 1, i + 2),
            _ => i += 1,
        }
        if nesting == 0 {
            break;
        }
    }
    i
}

/// Where the string or character that begins at `start` ends; `None` when none begins there.
fn string_end(chars: &[char], start: usize) -> Option<usize> {
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let begins_word = start == 0 || !(at(start - 1).is_alphanumeric() || at(start - 1) == '_');
    let mut i = start;
    if begins_word && matches!(at(i), 'b' | 'c') && matches!(at(i + 1), '"' | 'r' | '\'') {
        i += 1;
    }
    if begins_word && at(i) == 'r' && matches!(at(i + 1), '"' | '#') {
        let hashes = (i + 1..).take_while(|&j| at(j) == '#').count();
        if at(i + 1 + hashes) != '"' {
            return None; // a raw identifier
        }
        let is_end = |&j: &usize| at(j) == '"' && (1..=hashes).all(|k| at(j + k) == '#');
        return Some((i + 2 + hashes..chars.len()).find(is_end).map_or(chars.len(), |j| j + 1 + hashes));
    }
    let quote = at(i);
    let is_character = quote == '\'' && (at(i + 1) == '\\' || at(i + 2) == '\''); // otherwise a lifetime
    if quote != '"' && !is_character {
        return None;
    }
    let mut j = i + 1;
    while j < chars.len() && chars[j] != quote {
        j += if chars[j] == '\\' { 2 } else { 1 };
    }
    Some((j + 1).min(chars.len()))
}

/// Marks what belongs to `#[cfg(test)]` items, and counts inline modules.
fn mark(mut tokens: Vec<Token>) -> Vec<Token> {
    let mut braces: Vec<(bool, bool)> = Vec::new(); // of each open brace: opens a module, opens a test item
    let (mut next_is_module, mut next_is_test) = (false, false);
    for i in 0..tokens.len() {
        let text = |k: usize| tokens.get(i + k).map_or("", |token| token.text.as_str());
        if text(0) == "#" && text(1) == "[" && text(2) == "cfg" && text(3) == "(" && text(4) == "test" {
            next_is_test = true;
        }
        match text(0) {
            "mod" if text(2) == "{" => next_is_module = true,
            ";" if braces.iter().all(|brace| !brace.1) => next_is_test = false,
            "{" => braces.push((std::mem::take(&mut next_is_module), std::mem::take(&mut next_is_test))),
            "}" => drop(braces.pop()),
            _ => {}
        }
        let test = next_is_test || braces.iter().any(|brace| brace.1);
        let depth = braces.iter().filter(|brace| brace.0).count();
        tokens[i].test = test;
        tokens[i].depth = depth;
    }
    tokens
}
