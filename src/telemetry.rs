//! Logs: tracing to standard error, with the whole chain of an error's causes.

use std::{error::Error, fmt, os::fd::AsFd};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    fmt::{
        FmtContext,
        format::{FormatEvent, FormatFields, Writer},
    },
    registry::LookupSpan,
};

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
    /// For systemd's journal, which knows the time itself: each line begins with its priority, as `<4>`.
    Journal,
}

/// Whether `stream` is the journal's, as the environment variable `JOURNAL_STREAM` names it: `device:inode`.
#[must_use]
pub fn is_journal(journal_stream: &str, stream: impl AsFd) -> bool {
    let named =
        journal_stream.split_once(':').and_then(|(device, inode)| Some((device.parse().ok()?, inode.parse().ok()?)));
    let own = rustix::fs::fstat(stream).ok().map(|stat| (stat.st_dev, stat.st_ino));
    named.is_some() && named == own
}

/// `text` as the journal takes it: every line with the priority of errors.
#[must_use]
pub fn journal_error(text: &str) -> String {
    prefixed(text, priority(Level::ERROR))
}

/// The priorities of syslog, as sd-daemon(3) has them.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

fn prefixed(text: &str, priority: u8) -> String {
    text.lines().map(|line| format!("<{priority}>{line}\n")).collect()
}

struct Journal;

impl<S, N> FormatEvent<S, N> for Journal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut text = String::new();
        let usual = tracing_subscriber::fmt::format().without_time().with_ansi(false);
        usual.format_event(context, Writer::new(&mut text), event)?;
        writer.write_str(&prefixed(text.trim_start(), priority(*event.metadata().level())))
    }
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
        Format::Journal => builder.with_ansi(false).event_format(Journal).try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
    // Err: a test or an embedding program has its own, which is as good.
    drop(set);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_journal_is_told_by_device_and_inode_of_the_stream() {
        let file = tempfile::tempfile().unwrap();
        let meta = file.metadata().unwrap();
        let named = format!("{}:{}", meta.dev(), meta.ino());
        assert!(is_journal(&named, &file));
        assert!(!is_journal(&named, tempfile::tempfile().unwrap()));
        for other in ["", "1", "a:b", "1:2:3"] {
            assert!(!is_journal(other, &file), "{other}");
        }
    }

    #[test]
    fn every_line_has_the_priority_of_its_level() {
        assert_eq!(journal_error("one\ntwo"), "<3>one\n<3>two\n");
        let levels = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];
        assert_eq!(levels.map(priority), [3, 4, 6, 7, 7]);
    }
}
