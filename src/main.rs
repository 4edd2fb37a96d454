//! The `terrapool` program: see `terrapool::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    terrapool::cli::main()
}
