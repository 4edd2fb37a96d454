//! Programs of the agent's owner that run before and after the engine's commands, inside of the run container: which
//! there are, when each runs, and what it is told.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use super::steps::format::{self, Step};
use crate::api::job::Stage;

#[cfg(test)]
#[path = "../runner/env_file.rs"]
mod env_file;
#[cfg(test)]
#[path = "../runner/masks.rs"]
mod masks;

/// How long a hook may take when nothing else is set.
pub const DEFAULT_LIMIT: Duration = Duration::from_secs(60);

/// The longest that can be set.
pub const LONGEST_LIMIT: Duration = Duration::from_secs(600);

/// Folder of a job directory with the hooks of its stage.
pub(super) const FOLDER: &str = "hooks";

/// What a hook adds to the environment, in the job directory.
const ENV_FILE: &str = "hook.env";

/// Names of the variable with the path of [`ENV_FILE`]: HashiCorp's, Scalr's, ours.
const ENV_FILE_VARIABLES: [&str; 3] = ["TFC_AGENT_ENV", "SCALR_AGENT_ENV", "TERRAPOOL_ENV"];

/// The variable with the exit code of the command that a hook comes after.
const EXIT_CODE: &str = "SCALR_TERRAFORM_EXIT_CODE";

/// Where in a stage a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// Before `init`, in plan and in apply.
    PreInit,
    PrePlan,
    PostPlan,
    PreApply,
    PostApply,
}

/// All names. Of one point, the first one here runs first.
pub const NAMES: [(&str, Point); 9] = [
    ("pre-init", Point::PreInit),
    ("pre-plan", Point::PrePlan),
    ("terraform-pre-plan", Point::PrePlan),
    ("post-plan", Point::PostPlan),
    ("terraform-post-plan", Point::PostPlan),
    ("pre-apply", Point::PreApply),
    ("terraform-pre-apply", Point::PreApply),
    ("post-apply", Point::PostApply),
    ("terraform-post-apply", Point::PostApply),
];

impl Point {
    fn is_in(self, stage: Stage) -> bool {
        match self {
            Self::PreInit => true,
            Self::PrePlan | Self::PostPlan => stage == Stage::Plan,
            Self::PreApply | Self::PostApply => stage == Stage::Apply,
        }
    }

    /// The step that it comes after.
    fn after(self) -> Option<&'static str> {
        match self {
            Self::PostPlan => Some("plan"),
            Self::PostApply => Some("apply"),
            Self::PreInit | Self::PrePlan | Self::PreApply => None,
        }
    }
}

/// What an agent is told of its hooks.
#[derive(Debug, Clone, Default)]
pub struct Hooks {
    /// Where they lie; absolute. Absent: there are none.
    pub dir: Option<PathBuf>,
    /// How long those may take that have no [`DEFAULT_LIMIT`], by name.
    pub limits: BTreeMap<String, Duration>,
}

/// A hook that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    pub name: &'static str,
    pub point: Point,
    /// On the agent's host.
    pub path: PathBuf,
    pub limit: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the hooks directory {path} cannot be read")]
    Read { path: String, source: io::Error },
}

type Result<T, E = Error> = std::result::Result<T, E>;

/// Something in the hooks directory.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    name: String,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Program,
    /// A file that nobody may execute.
    Plain,
    Directory,
    /// A link that leads nowhere, a pipe…
    Other,
}

impl Hooks {
    /// The hooks of a stage that there are now.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub(super) async fn of(&self, stage: Stage) -> Result<Vec<Hook>> {
        let Some(dir) = self.dir.clone() else { return Ok(Vec::new()) };
        let path = dir.display().to_string();
        let entries = tokio::task::spawn_blocking(move || entries(&dir)).await;
        let entries = entries.unwrap_or_else(|panicked| Err(io::Error::other(panicked)));
        let (hooks, _) = self.judge(&entries.map_err(|source| Error::Read { path, source })?);
        Ok(hooks.into_iter().filter(|hook| hook.point.is_in(stage)).collect())
    }

    /// Tells in the agent's log which hooks there are, and what lies there without being one.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub(super) fn announce(&self) -> Result<()> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let path = dir.display().to_string();
        let entries = entries(dir).map_err(|source| Error::Read { path, source })?;
        let (hooks, remarks) = self.judge(&entries);
        let told: Vec<String> =
            hooks.iter().map(|hook| format!("{} ({} s)", hook.name, hook.limit.as_secs())).collect();
        let told = if told.is_empty() { "none".to_owned() } else { told.join(", ") };
        tracing::info!(dir = %dir.display(), hooks = told, "looked for hooks");
        for remark in remarks {
            tracing::warn!(dir = %dir.display(), "{remark}");
        }
        Ok(())
    }

    /// The hooks in the order in which they run, and what is to be said of the rest.
    fn judge(&self, entries: &[Entry]) -> (Vec<Hook>, Vec<String>) {
        let hook = |(name, point): (&'static str, Point)| Hook {
            name,
            point,
            path: self.dir.as_deref().unwrap_or(Path::new("")).join(name),
            limit: self.limits.get(name).copied().unwrap_or(DEFAULT_LIMIT),
        };
        let runs = |name: &str| entries.iter().any(|entry| entry.name == name && entry.kind == Kind::Program);
        let hooks = NAMES.into_iter().filter(|(name, _)| runs(name)).map(hook).collect();
        (hooks, entries.iter().filter_map(remark).collect())
    }
}

/// Why something is no hook.
fn remark(entry: &Entry) -> Option<String> {
    let Entry { name, kind } = entry;
    let known = |name: &str| NAMES.iter().any(|(known, _)| *known == name);
    match (known(name), kind) {
        (true, Kind::Program) => None,
        (true, Kind::Plain) => {
            Some(format!("the hook `{name}` does not run: it is not executable; make it so with chmod +x"))
        }
        (true, Kind::Directory) => Some(format!("the hook `{name}` does not run: it is a directory, not a program")),
        (true, Kind::Other) => {
            Some(format!("the hook `{name}` does not run: it is no file, or a link that leads nowhere"))
        }
        (false, _) => {
            let stem = name.split_once('.').map_or(name.as_str(), |(stem, _)| stem);
            let mend = match known(stem) {
                true => format!("name it `{stem}`"),
                false => format!("hooks are named {}", NAMES.map(|(name, _)| name).join(", ")),
            };
            Some(format!("`{name}` is no hook and does not run: {mend}"))
        }
    }
}

/// What lies in the directory, sorted; links count as what they lead to. Hidden names are others' affair, as those that
/// the kubelet makes in a mounted ConfigMap.
fn entries(dir: &Path) -> io::Result<Vec<Entry>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        let kind = match fs::metadata(entry.path()) {
            Ok(meta) if meta.is_file() && meta.permissions().mode() & 0o111 != 0 => Kind::Program,
            Ok(meta) if meta.is_file() => Kind::Plain,
            Ok(meta) if meta.is_dir() => Kind::Directory,
            _ => Kind::Other,
        };
        found.push(Entry { name, kind });
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

/// The steps of the hooks of one point: `dir` is the job directory as the stage sees it, `cwd` the working directory.
pub(super) fn steps(hooks: &[Hook], point: Point, dir: &str, cwd: &str) -> impl Iterator<Item = Step> {
    hooks.iter().filter(move |hook| hook.point == point).map(move |hook| Step {
        name: hook.name.to_owned(),
        args: vec![format!("{dir}/{FOLDER}/{}", hook.name)],
        cwd: cwd.to_owned(),
        env: ENV_FILE_VARIABLES.map(|variable| (variable.to_owned(), format!("{dir}/{ENV_FILE}"))).to_vec(),
        ok: vec![0],
        hook: Some(format::Hook {
            limit_seconds: hook.limit.as_secs(),
            env_file: ENV_FILE.to_owned(),
            after: point.after().map(|step| (step.to_owned(), EXIT_CODE.to_owned())),
        }),
        ..Step::default()
    })
}

/// The limit of a hook as it is set.
///
/// # Errors
/// A sentence about a name that no hook has, or a time that is none for a hook.
pub fn check_limit(name: &str, limit: Duration) -> std::result::Result<(), String> {
    if !NAMES.iter().any(|(known, _)| *known == name) {
        return Err(format!("there is no hook `{name}`: hooks are named {}", NAMES.map(|(name, _)| name).join(", ")));
    }
    if limit.as_secs() == 0 || limit > LONGEST_LIMIT {
        return Err(format!("a hook may take from 1s to {}m", LONGEST_LIMIT.as_secs() / 60));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, kind: Kind) -> Entry {
        Entry { name: name.to_owned(), kind }
    }

    fn hooks() -> Hooks {
        Hooks { dir: Some("/hooks".into()), limits: [("post-plan".to_owned(), Duration::from_secs(300))].into() }
    }

    #[test]
    fn of_one_point_scalrs_name_comes_first_and_each_has_its_limit() {
        let names = ["terraform-pre-plan", "pre-plan", "terraform-post-plan", "post-plan", "pre-init"];
        let entries = names.map(|name| entry(name, Kind::Program));
        let (found, remarks) = hooks().judge(&entries);
        let told: Vec<_> = found.iter().map(|hook| (hook.name, hook.limit.as_secs())).collect();
        let wanted = [
            ("pre-init", 60),
            ("pre-plan", 60),
            ("terraform-pre-plan", 60),
            ("post-plan", 300),
            ("terraform-post-plan", 60),
        ];
        assert_eq!(told, wanted);
        assert!(remarks.is_empty(), "{remarks:?}");
        assert_eq!(found[1].path, Path::new("/hooks/pre-plan"));
    }

    #[test]
    fn what_is_no_hook_is_told_with_the_mend() {
        let entries = [
            entry("pre-plan", Kind::Plain),
            entry("post-plan", Kind::Directory),
            entry("pre-apply", Kind::Other),
            entry("pre-init.sh", Kind::Program),
            entry("README", Kind::Plain),
        ];
        let (found, remarks) = hooks().judge(&entries);
        assert_eq!(found, []);
        for (remark, wanted) in remarks.iter().zip([
            "chmod +x",
            "is a directory",
            "leads nowhere",
            "name it `pre-init`",
            "named pre-init, ",
        ]) {
            assert!(remark.contains(wanted), "{remark}");
        }
        assert_eq!(remarks.len(), 5);
    }

    #[tokio::test]
    async fn a_directory_is_read_for_each_stage_and_hidden_names_are_others_affair() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, mode: u32| {
            fs::write(dir.path().join(name), "#!/bin/sh\n").unwrap();
            fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        put("pre-init", 0o755);
        put("post-apply", 0o700);
        put("pre-plan", 0o644);
        fs::create_dir(dir.path().join("..data")).unwrap();
        std::os::unix::fs::symlink("pre-init", dir.path().join("terraform-pre-plan")).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("terraform-post-plan")).unwrap();
        let hooks = Hooks { dir: Some(dir.path().to_owned()), ..Hooks::default() };
        let names = async |stage| -> Vec<_> { hooks.of(stage).await.unwrap().iter().map(|hook| hook.name).collect() };
        assert_eq!(names(Stage::Plan).await, ["pre-init", "terraform-pre-plan"]);
        assert_eq!(names(Stage::Apply).await, ["pre-init", "post-apply"]);
        let (_, remarks) = hooks.judge(&entries(dir.path()).unwrap());
        assert_eq!(remarks.len(), 2, "{remarks:?}");
        let nowhere = Hooks { dir: Some(dir.path().join("nowhere")), ..Hooks::default() };
        assert!(nowhere.announce().unwrap_err().to_string().contains("/nowhere cannot be read"));
        assert!(nowhere.of(Stage::Plan).await.is_err());
        assert_eq!(Hooks::default().of(Stage::Plan).await.unwrap(), []);
    }

    #[test]
    fn limits_are_of_known_hooks_and_at_most_ten_minutes() {
        assert!(check_limit("pre-plan", Duration::from_secs(600)).is_ok());
        assert!(check_limit("pre-plan", Duration::from_secs(601)).unwrap_err().contains("10m"));
        assert!(check_limit("pre-plan", Duration::ZERO).is_err());
        assert!(check_limit("plan", Duration::from_secs(1)).unwrap_err().contains("`plan`"));
    }
}
