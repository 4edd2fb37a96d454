//! Compiles `src/runner` as a static program for the target and leaves it in `OUT_DIR`, to be embedded.

use std::{env, path::PathBuf, process::Command};

fn main() -> Result<(), String> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/runner");
    let var = |name: &str| env::var(name).map_err(|_| format!("cargo sets no {name}"));
    let target = var("TARGET")?;
    if !target.contains("-linux-") {
        return Err(format!("terrapool runs on Linux only; the target is {target}"));
    }
    let out = PathBuf::from(var("OUT_DIR")?).join("runner");
    let mut rustc = Command::new(var("RUSTC")?);
    rustc
        .args(["--edition", "2024", "--crate-name", "runner", "--crate-type", "bin", "--target", &target])
        // Runs in any image, an empty one too: no loader, no libraries.
        .args(["-C", "target-feature=+crt-static", "-C", "panic=abort", "-C", "strip=symbols", "-C", "opt-level=2"])
        // format.rs is compiled into the agent too; each side uses half of it.
        .args(["-A", "dead_code", "-D", "warnings"])
        .arg("-o")
        .arg(&out)
        .arg("src/runner/main.rs");
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.arg("-C").arg(format!("linker={linker}"));
    }
    let status = rustc.status().map_err(|error| format!("{rustc:?}: {error}"))?;
    if !status.success() {
        return Err(format!("the runner does not compile: {rustc:?}"));
    }
    println!("cargo::rustc-env=TERRAPOOL_RUNNER={}", out.display());
    Ok(())
}
