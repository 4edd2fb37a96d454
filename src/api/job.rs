//! What an agent is handed with a job: all that a stage needs, so that the run container needs no
//! route and no credential to the control plane.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{JobId, RunId, WorkspaceId};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    Plan,
    Apply,
}

impl Stage {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Apply => "apply",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    Terraform,
    /// OpenTofu; its program is `tofu`.
    OpenTofu,
}

impl EngineKind {
    /// Name of the program.
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            Self::Terraform => "terraform",
            Self::OpenTofu => "tofu",
        }
    }

    /// Name as the program itself prints it.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Terraform => "Terraform",
            Self::OpenTofu => "OpenTofu",
        }
    }

    /// Value of Scalr's `iac-platform` attribute.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Terraform => "terraform",
            Self::OpenTofu => "opentofu",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Engine {
    pub kind: EngineKind,
    /// An exact version, or absent: whatever the agent or the image has.
    pub version: Option<String>,
}

/// One stage of one run, for one agent, under a lease. Holds secrets: no `Debug` output of it may reach a log.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    pub job_id: JobId,
    pub epoch: i64,
    pub stage: Stage,
    pub run: RunSpec,
    pub workspace: WorkspaceSpec,
    pub engine: Engine,
    /// The run image, or absent: the agent's default one.
    pub image: Option<String>,
    /// What the run's plan left for its apply to be bound to; empty for a plan.
    #[serde(default)]
    pub planned: Planned,
    /// Run the container as root.
    pub run_as_root: bool,
    /// Variables of the workspace, in order of precedence: a later one of the same key and category wins.
    pub variables: Vec<Variable>,
    /// Environment of every step, set by the pool.
    pub env: BTreeMap<String, String>,
    pub limits: Limits,
    /// The stage is ended after this many seconds.
    pub timeout_seconds: u64,
}

impl std::fmt::Debug for JobSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "JobSpec({} epoch {} {} of {})", self.job_id, self.epoch, self.stage.as_str(), self.run.id)
    }
}

/// An apply executes what its plan was: the same bytes, in the same image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// The image that the plan ran in: `repository@algorithm:hex`, or the id of an image that came from no registry;
    /// absent: it ran in none, or nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<String>,
    /// SHA-256 of [`super::agent::artifact::PLAN`] as it was uploaded, 64 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunSpec {
    pub id: RunId,
    pub message: String,
    /// `tfe-api`, `terraform+cloud`, …: who asked for the run.
    pub source: String,
    pub is_destroy: bool,
    pub refresh: bool,
    pub refresh_only: bool,
    pub plan_only: bool,
    pub target_addrs: Vec<String>,
    pub replace_addrs: Vec<String>,
    /// `-generate-config-out=generated.tf`
    pub allow_config_generation: bool,
    /// Variables of this run; values are HCL literals.
    pub variables: Vec<RunVariable>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunVariable {
    pub key: String,
    /// An HCL literal: a string arrives quoted.
    pub value: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkspaceSpec {
    pub id: WorkspaceId,
    pub name: String,
    /// Environment (Scalr) = organization (TFE API).
    pub environment: String,
    pub environment_id: String,
    /// Empty from a control plane that does not tell it.
    #[serde(default)]
    pub account_id: String,
    /// Folder below the configuration's root; empty for the root.
    pub working_directory: String,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variable {
    pub key: String,
    pub value: String,
    pub category: Category,
    /// `value` is HCL, not a string. Only for [`Category::Terraform`].
    pub hcl: bool,
    pub sensitive: bool,
}

impl std::fmt::Debug for Variable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Variable({} {:?})", self.key, self.category)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Category {
    Terraform,
    Env,
}

/// What a run container may take. Absent: the agent's own default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    pub memory_bytes: Option<i64>,
    /// Thousandths of a core.
    pub cpu_millis: Option<i64>,
    pub pids: Option<i64>,
}

#[cfg(test)]
impl JobSpec {
    /// A plan that wants nothing in particular.
    pub(crate) fn plain() -> Self {
        let text = r#"{"job_id": "job-1", "epoch": 1, "stage": "plan", "run": {"id": "run-1", "message": "", "source": "",
            "is_destroy": false, "refresh": true, "refresh_only": false, "plan_only": false, "target_addrs": [],
            "replace_addrs": [], "allow_config_generation": false, "variables": []}, "workspace": {"id": "ws-1",
            "name": "", "environment": "", "environment_id": "", "working_directory": ""},
            "engine": {"kind": "terraform", "version": null}, "image": null, "run_as_root": false, "variables": [],
            "env": {}, "limits": {"memory_bytes": null, "cpu_millis": null, "pids": null}, "timeout_seconds": 60}"#;
        serde_json::from_str(text).unwrap()
    }
}
