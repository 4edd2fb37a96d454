//! `terrapool crds`

use std::process::ExitCode;

use anyhow::Context;

use crate::{crd, yaml};

pub(super) fn run() -> anyhow::Result<ExitCode> {
    let definitions = crd::all().context("could not generate the definitions")?;
    for definition in &definitions {
        let text = yaml::to_string(definition).map_err(|problem| anyhow::anyhow!("{problem}"))?;
        anstream::print!("---\n{text}");
    }
    Ok(ExitCode::SUCCESS)
}
