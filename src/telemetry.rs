//! Logs: tracing to standard error, with the whole chain of an error's causes.

use std::{error::Error, fmt};

/// Shows an error with its causes: `could not read x: permission denied`.
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Plain,
    Json,
}

/// Starts logging to standard error. `filter` is a directive list as in `info,terrapool::agent=debug`.
/// Harmless when called again.
///
/// # Errors
/// When `filter` cannot be read.
pub fn init(filter: &str, format: Format) -> Result<(), tracing_subscriber::filter::ParseError> {
    use std::io::IsTerminal;
    let filter = tracing_subscriber::EnvFilter::try_new(filter)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let set = match format {
        Format::Plain => builder.try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
    // Err: a test or an embedding program has its own, which is as good.
    drop(set);
    Ok(())
}
