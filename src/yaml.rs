//! The only place that names the YAML crate. Reading is strict: an unknown or repeated field is an error with
//! its line, because a manifest with a typing error must not be half obeyed.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// What is wrong with a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Counted from 1, in the whole file.
    pub line: Option<usize>,
    /// Dotted path, as `spec.agents.minIdle`.
    pub field: Option<String>,
    pub message: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if let Some(field) = &self.field {
            write!(f, "{field}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// What every manifest begins with.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Head {
    pub api_version: String,
    pub kind: String,
}

/// One document of a file, not yet read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The document's text below as many empty lines as stand before it in the file, so that lines count right.
    text: String,
}

/// The documents of a file, without empty ones. A defect in one does not touch the others.
#[must_use]
pub fn documents(text: &str) -> Vec<Document> {
    let mut documents = Vec::new();
    let mut current = String::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim_end() == "---" || line.starts_with("--- ") {
            documents.push(std::mem::replace(&mut current, "\n".repeat(number + 1)));
        } else {
            current.push_str(line);
            current.push('\n');
        }
    }
    documents.push(current);
    let has_content = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    documents.into_iter().filter(|text| text.lines().any(has_content)).map(|text| Document { text }).collect()
}

impl Document {
    /// The line of the field at a dotted path, for a rule that found fault with its value.
    #[must_use]
    pub fn line_of(&self, path: &str) -> Option<usize> {
        line_of(&self.text, path)
    }

    /// Kind and version of the manifest.
    ///
    /// # Errors
    /// When the document is no YAML, or has neither.
    pub fn head(&self) -> Result<Head, Problem> {
        serde_yaml::from_str(&self.text).map_err(|error| problem(&error))
    }

    /// The whole document as a `T`.
    ///
    /// # Errors
    /// The first defect: syntax, a value of the wrong type, a field that is unknown or given twice.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        let mut unknown = Vec::new();
        let reader = serde_yaml::Deserializer::from_str(&self.text);
        let value = serde_ignored::deserialize(reader, |path| unknown.push(path.to_string()))
            .map_err(|error: serde_yaml::Error| problem(&error))?;
        // Types of manifests need not repeat what the head says.
        let is_head = |path: &String| ["apiVersion", "kind"].contains(&path.as_str());
        match unknown.into_iter().find(|path| !is_head(path)) {
            None => Ok(value),
            Some(path) => {
                // Options in the way show as `?` in the path.
                let path = path.split('.').filter(|part| *part != "?").collect::<Vec<_>>().join(".");
                let line = line_of(&self.text, &path);
                Err(Problem { line, message: "there is no such field".to_owned(), field: Some(path) })
            }
        }
    }
}

/// YAML for people to read.
///
/// # Errors
/// When the value has no YAML form.
pub fn to_string<T: Serialize>(value: &T) -> Result<String, Problem> {
    serde_yaml::to_string(value).map_err(|error| problem(&error))
}

/// The crate writes `path: message at line 3 column 5`; each part has its own place here.
fn problem(error: &serde_yaml::Error) -> Problem {
    let text = error.to_string();
    let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(message, _)| message);
    let is_path = |path: &str| {
        !path.is_empty() && path.chars().all(|c| c.is_ascii_alphanumeric() || "._-/[]".contains(c)) && path != "line"
    };
    let (field, message) = match text.split_once(": ") {
        Some((path, message)) if is_path(path) => (Some(path.to_owned()), message),
        _ => (None, text),
    };
    Problem { line: error.location().map(|location| location.line()), field, message: message.to_owned() }
}

/// The line of the field at `path`, or of the deepest part of the path that has one: each part is looked for below
/// the one before, deeper indented. What stands in braces on one line has that line.
fn line_of(text: &str, path: &str) -> Option<usize> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found: Option<(usize, usize)> = None;
    for part in path.split('.').filter(|part| part.parse::<usize>().is_err()) {
        let start = found.map_or(0, |(number, _)| number + 1);
        let next = lines.iter().enumerate().skip(start).find_map(|(number, line)| {
            let content = line.trim_start().trim_start_matches("- ").trim_start();
            let indent = line.len() - content.len();
            let key = content.split_once(':')?.0.trim_matches(['"', '\'']);
            (key == part && found.is_none_or(|(_, depth)| indent > depth)).then_some((number, indent))
        });
        match next {
            Some(next) => found = Some(next),
            None => break,
        }
    }
    found.map(|(number, _)| number + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    struct Manifest {
        kind: String,
        spec: Spec,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    struct Spec {
        size: u32,
        inner: Option<Inner>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    struct Inner {
        name: String,
    }

    fn parse(text: &str) -> Vec<Result<Manifest, Problem>> {
        documents(text).iter().map(Document::parse).collect()
    }

    #[test]
    fn each_document_is_read_by_itself_and_lines_count_in_the_file() {
        let text = "# nothing\n---\nkind: A\nspec: {size: 1}\n---\nkind: B\nspec:\n  size: many\n---\nkind: C\nspec: {size: 3\n";
        let found = parse(text);
        assert_eq!(found.len(), 3);
        assert_eq!(found[0].as_ref().unwrap().spec.size, 1);
        let wrong_type = found[1].as_ref().unwrap_err();
        assert_eq!((wrong_type.line, wrong_type.field.as_deref()), (Some(8), Some("spec.size")));
        assert!(wrong_type.message.contains("invalid type"), "{wrong_type}");
        assert!(found[2].as_ref().unwrap_err().line.unwrap() >= 10);
    }

    #[test]
    fn unknown_and_repeated_fields_are_errors_with_their_line() {
        let found = parse("kind: A\nspec:\n  size: 1\n  inner:\n    name: x\n    nmae: y\n");
        let unknown = found[0].as_ref().unwrap_err();
        assert_eq!((unknown.line, unknown.field.as_deref()), (Some(6), Some("spec.inner.nmae")));
        let in_braces = parse("kind: A\nspec:\n  size: 1\n  inner: {name: x, nmae: y}\n");
        assert_eq!(in_braces[0].as_ref().unwrap_err().line, Some(4));
        let repeated = parse("kind: A\nspec:\n  size: 1\n  size: 2\n");
        assert!(repeated[0].as_ref().unwrap_err().to_string().contains("duplicate"), "{repeated:?}");
    }
}
