//! Progress of long work: a spinner with the time on a terminal, one plain line per step otherwise.

use std::{
    borrow::Cow,
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

/// How often the spinner turns.
const TICK: Duration = Duration::from_millis(100);

/// Where progress is shown.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    terminal: bool,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { terminal: std::io::stdout().is_terminal() }
    }

    /// Begins a step; it ends with [`Step::done`] or, when it is dropped, as failed.
    pub(super) fn step(self, what: impl Into<Cow<'static, str>>) -> Step {
        let what = what.into();
        let bar = self.terminal.then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner:.cyan} {msg} {elapsed:.dim}") {
                bar.set_style(style);
            }
            bar.set_message(what.clone());
            bar.enable_steady_tick(TICK);
            bar
        });
        Step { what, bar, started: Instant::now() }
    }

    /// A line that stands by itself.
    pub(super) fn line(self, text: &str) {
        anstream::println!("{text}");
    }
}

/// A step that goes on.
pub(super) struct Step {
    what: Cow<'static, str>,
    bar: Option<ProgressBar>,
    started: Instant,
}

impl Step {
    /// The step has succeeded; `detail` may be empty.
    pub(super) fn done(mut self, detail: &str) {
        self.clear();
        let took = self.started.elapsed().as_secs_f64();
        let detail = if detail.is_empty() { String::new() } else { format!(": {detail}") };
        anstream::println!("\x1b[32m✓\x1b[0m {}{detail} \x1b[2m({took:.1} s)\x1b[0m", self.what);
        self.what = Cow::Borrowed("");
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.clear();
        if !self.what.is_empty() {
            anstream::println!("\x1b[31m✗\x1b[0m {}", self.what);
        }
    }
}
