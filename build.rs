//! Compiles `src/runner` as a static program for the target and leaves it in `OUT_DIR`, to be embedded.

use std::{env, fs, path::PathBuf, process::Command};

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
    // A linker for old C libraries cannot link statically, which is no matter here: nothing is taken from the host's.
    println!("cargo::rerun-if-env-changed=TERRAPOOL_RUNNER_LINKER");
    if let Ok(linker) = env::var("TERRAPOOL_RUNNER_LINKER").or_else(|_| env::var("RUSTC_LINKER")) {
        rustc.arg("-C").arg(format!("linker={linker}"));
    }
    let status = rustc.status().map_err(|error| format!("{rustc:?}: {error}"))?;
    if !status.success() {
        return Err(format!("the runner does not compile: {rustc:?}"));
    }
    if needs_a_loader(&fs::read(&out).map_err(|error| format!("{}: {error}", out.display()))?) {
        return Err(
            "the runner is not static: name a linker that can do it in TERRAPOOL_RUNNER_LINKER, as cc".to_owned()
        );
    }
    println!("cargo::rustc-env=TERRAPOOL_RUNNER={}", out.display());
    Ok(())
}

/// Whether a 64-bit little-endian ELF program names a loader: it has a segment of type 3.
fn needs_a_loader(elf: &[u8]) -> bool {
    let number = |at: usize, bytes: usize| {
        elf[at..at + bytes].iter().rev().fold(0_usize, |number, byte| number << 8 | usize::from(*byte))
    };
    let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    (0..count).any(|index| number(table + index * size, 4) == 3)
}
