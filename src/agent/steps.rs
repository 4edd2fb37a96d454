//! Which programs a stage runs, in which order, with which environment. Pure: a job and some facts in, a text for the runner out.

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the variable `{key}` of the workspace has no name that the engine could read; rename it")]
    VariableName { key: String },
    #[error("the working directory `{path}` leads out of the configuration")]
    WorkingDirectory { path: String },
}
