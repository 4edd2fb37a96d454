//! Manifests in a directory: read, checked, each object with where it came from. Pure but for reading the files.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

use crate::{
    crd::{self, AgentPool, AgentPoolSpec, Violation, WorkspaceLink, WorkspaceLinkSpec, rules},
    yaml::{self, Document, Problem},
};

/// Folders below the directory that are read: deep enough for any repository, shallow enough for a loop of links.
const MAX_DEPTH: usize = 8;

/// Largest manifest file in bytes.
const MAX_FILE: u64 = 4 << 20;

/// Names an object as kubectl does: kind, namespace, name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.kind {
            Kind::Pool => "AgentPool",
            Kind::Link => "WorkspaceLink",
        };
        if self.namespace == DEFAULT_NAMESPACE {
            write!(f, "{kind} {}", self.name)
        } else {
            write!(f, "{kind} {}/{}", self.namespace, self.name)
        }
    }
}

/// The namespace of a manifest that names none.
const DEFAULT_NAMESPACE: &str = "default";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    // pools before links: the order of work
    Pool,
    Link,
}

/// What an object is to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Spec {
    Pool(Box<AgentPoolSpec>),
    Link(Box<WorkspaceLinkSpec>),
}

/// An object of a manifest.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    pub key: Key,
    pub spec: Spec,
    /// The file that it stands in.
    pub file: PathBuf,
    /// `metadata.annotations` asks for no changes.
    pub paused: bool,
}

/// A defect, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defect {
    pub file: PathBuf,
    pub problem: Problem,
}

impl std::fmt::Display for Defect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.file.display())?;
        match self.problem.line {
            Some(line) => write!(f, ":{line}: ")?,
            None => f.write_str(": ")?,
        }
        if let Some(field) = &self.problem.field {
            write!(f, "{field}: ")?;
        }
        f.write_str(&self.problem.message)
    }
}

/// All that a directory says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Manifests {
    pub objects: BTreeMap<Key, Object>,
    pub defects: Vec<Defect>,
    /// Kinds of other tools, as `Kustomization`, that are left alone.
    pub foreign: Vec<String>,
}

/// Tells whether the directory has changed: path, length and time of every manifest file.
pub type Fingerprint = BTreeMap<PathBuf, (u64, Option<SystemTime>)>;

/// The manifest files below `dir` and their state.
///
/// # Errors
/// When the directory cannot be listed.
pub fn fingerprint(dir: &Path) -> io::Result<Fingerprint> {
    let mut found = Fingerprint::new();
    collect(dir, MAX_DEPTH, &mut found)?;
    Ok(found)
}

fn collect(dir: &Path, depth: usize, found: &mut Fingerprint) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // Hidden files are editors' and tools' own, as `.git` and `.pool.yaml.swp`.
        if name.starts_with('.') {
            continue;
        }
        // A file that vanishes meanwhile was not there.
        let Ok(meta) = fs::metadata(&path) else { continue };
        if meta.is_dir() && depth > 0 {
            // A folder that cannot be read hides its own manifests only; the fingerprint of the others stands.
            collect(&path, depth - 1, found)?;
        } else if meta.is_file() && [".yaml", ".yml", ".json"].iter().any(|ending| name.ends_with(ending)) {
            found.insert(path.clone(), (meta.len(), meta.modified().ok()));
        }
    }
    Ok(())
}

/// Reads the files of a fingerprint.
#[must_use]
pub fn read(files: &Fingerprint) -> Manifests {
    let mut all = Manifests::default();
    for (path, (length, _)) in files {
        if *length > MAX_FILE {
            all.defect(path, problem(None, None, format!("larger than {MAX_FILE} bytes: this is no manifest")));
            continue;
        }
        match fs::read_to_string(path) {
            Ok(text) => all.add(path, &text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => all.defect(path, problem(None, None, format!("could not be read: {error}"))),
        }
    }
    all
}

fn problem(line: Option<usize>, field: Option<&str>, message: String) -> Problem {
    Problem { line, field: field.map(str::to_owned), message }
}

impl Manifests {
    /// Reads one file's text.
    pub fn add(&mut self, file: &Path, text: &str) {
        for document in yaml::documents(text) {
            match object(file, &document) {
                Ok(Some(object)) => self.insert(object, &document),
                Ok(None) => {
                    let kind = document.head().map(|head| head.kind).unwrap_or_default();
                    if !self.foreign.contains(&kind) {
                        self.foreign.push(kind);
                    }
                }
                Err(problem) => self.defect(file, problem),
            }
        }
    }

    fn insert(&mut self, object: Object, document: &Document) {
        if let Some(first) = self.objects.get(&object.key) {
            let message = format!("{} stands in {} already", object.key, first.file.display());
            let line = document.line_of("metadata.name");
            self.defect(&object.file, problem(line, Some("metadata.name"), message));
            return;
        }
        self.objects.insert(object.key.clone(), object);
    }

    fn defect(&mut self, file: &Path, problem: Problem) {
        self.defects.push(Defect { file: file.to_owned(), problem });
    }
}

/// The object of a document; `None` when it is another tool's.
fn object(file: &Path, document: &Document) -> Result<Option<Object>, Problem> {
    let head = document.head()?;
    let Some((group, _)) = head.api_version.split_once('/').filter(|(group, _)| *group == crd::GROUP) else {
        return Ok(None);
    };
    let broken = |line, field, message| Err(problem(line, Some(field), message));
    if head.api_version != crd::API_VERSION {
        let message = format!("{group} has the version {} only", crd::VERSION);
        return broken(document.line_of("apiVersion"), "apiVersion", message);
    }
    let (kind, meta, spec, violations) = match head.kind.as_str() {
        "AgentPool" => {
            let AgentPool { metadata, spec, status: _ } = document.parse()?;
            let violations = rules::pool(&spec);
            (Kind::Pool, metadata, Spec::Pool(Box::new(spec)), violations)
        }
        "WorkspaceLink" => {
            let WorkspaceLink { metadata, spec, status: _ } = document.parse()?;
            let violations = rules::link(&spec);
            (Kind::Link, metadata, Spec::Link(Box::new(spec)), violations)
        }
        other => {
            let message = format!("there is no kind {other}; there are AgentPool and WorkspaceLink");
            return broken(document.line_of("kind"), "kind", message);
        }
    };
    if let Some(Violation { path, message }) = violations.into_iter().next() {
        // A field that is missing has no line: its parent's is the place to look at.
        let line = document.line_of(&path).or_else(|| document.line_of(path.rsplit_once('.')?.0));
        return Err(problem(line, Some(&path), message));
    }
    let Some(name) = meta.name.filter(|name| !name.is_empty()) else {
        return broken(document.line_of("metadata"), "metadata.name", "an object needs a name".to_owned());
    };
    let paused = meta.annotations.unwrap_or_default().get(crd::names::PAUSED).is_some_and(|value| value == "true");
    let namespace = meta.namespace.unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
    Ok(Some(Object { key: Key { kind, namespace, name }, spec, file: file.to_owned(), paused }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: &str = "apiVersion: terrapool.dev/v1alpha1\nkind: WorkspaceLink\nmetadata: {name: app}\nspec:\n  \
                        poolRef: {name: p}\n  workspace: {environment: prod, name: app}\n";

    fn add(text: &str) -> Manifests {
        let mut all = Manifests::default();
        all.add(Path::new("a.yaml"), text);
        all
    }

    #[test]
    fn a_defect_names_file_line_and_field_and_the_others_stand() {
        let text = format!(
            "{LINK}---\napiVersion: terrapool.dev/v1alpha1\nkind: AgentPool\nmetadata:\n  name: p\nspec:\n  agents:\n    minIdel: 1\n"
        );
        let all = add(&text);
        assert_eq!(all.objects.len(), 1);
        assert_eq!(all.defects.len(), 1);
        assert_eq!(all.defects[0].to_string(), "a.yaml:14: spec.agents.minIdel: there is no such field");
    }

    #[test]
    fn other_tools_documents_are_left_alone_and_repeated_names_are_not() {
        let text = format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: s}}\n---\n{LINK}---\n{LINK}");
        let all = add(&text);
        assert_eq!((all.objects.len(), all.foreign.as_slice()), (1, ["Secret".to_owned()].as_slice()));
        assert!(
            all.defects[0].to_string().contains("WorkspaceLink app stands in a.yaml already"),
            "{}",
            all.defects[0]
        );
    }

    #[test]
    fn a_broken_rule_points_to_the_field() {
        let text = "apiVersion: terrapool.dev/v1alpha1\nkind: AgentPool\nmetadata: {name: p}\nspec:\n  scope:\n    type: Environment\n";
        assert!(
            add(text).defects[0].to_string().starts_with("a.yaml:5: spec.scope.environment: "),
            "{:?}",
            add(text).defects
        );
    }
}
