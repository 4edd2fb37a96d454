//! `terrapool rbac`

use std::process::ExitCode;

use crate::{operator::rbac, yaml};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Namespace that the operator runs in.
    #[arg(long, default_value = "terrapool-system", value_name = "NAMESPACE")]
    own_namespace: String,
    /// A namespace that it works in; without it all. May be given several times.
    #[arg(long = "namespace", value_name = "NAMESPACE", value_delimiter = ',')]
    namespaces: Vec<String>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let namespaces = (!args.namespaces.is_empty()).then_some(args.namespaces.as_slice());
    for manifest in rbac::manifests(&args.own_namespace, namespaces) {
        let text = yaml::to_string(&manifest).map_err(|problem| anyhow::anyhow!("{problem}"))?;
        anstream::print!("---\n{text}");
    }
    Ok(ExitCode::SUCCESS)
}
