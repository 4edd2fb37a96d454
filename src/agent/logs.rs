//! Ships a job's log by (offset, bytes) while it grows, and the rest at its end.
//!
//! What is shipped is a pure function of the file (and, at the end, of the epilogue): without secrets, neutralised,
//! and cut at a limit. So nothing about it is kept on disk: after a restart, or when the server's log ends elsewhere than
//! expected, the text is made again from the start and what the server has is skipped.
//!
//! Secrets that hooks declare are hidden from a place in the file on that is noted with them, before a byte behind it is
//! written. So they are read after each part of the file and before any of it is shipped, and the function stays pure.

use std::{io::Read, time::Duration};

use bytes::Bytes;

use super::{
    file_watch::FileWatches,
    jobdir::{self, JobDir, LOG},
    neutralise::{Neutraliser, WORST_GROWTH},
    redact::{Redactor, Secrets},
    remote::{CallError, Remote, Stop},
    steps::format::Mask,
};
use crate::{api::agent::MAX_LOG_APPEND, client};

/// Default of the most that is shipped of one stage's log, in bytes.
pub(super) const DEFAULT_LIMIT: u64 = 64 * 1024 * 1024;

/// From one batch to the next: a line that comes alone is shipped at once, one of many waits this long at most.
const PACE: Duration = Duration::from_millis(15);

/// How often the file is looked at though nobody tells that it has grown.
const LOOK: Duration = Duration::from_millis(500);

/// How long nothing is shipped after a failure.
const AGAIN: Duration = Duration::from_secs(5);

/// Bytes read at once: small, so that batches come near [`MAX_LOG_APPEND`] though text may grow on its way.
const PIECE: usize = 16 * 1024;

/// Fill up to here: one more piece, grown at its worst, still fits into one append.
const FULL: usize = MAX_LOG_APPEND - WORST_GROWTH * PIECE - 64;

const CUT: &[u8] = b"\n\x1b[33mTerrapool: this log has reached its limit; the rest is left out.\x1b[0m\n";

/// The log as it is shipped, from some offset on. No I/O but reading.
#[derive(Debug)]
struct Text {
    /// What is hidden from the start.
    secrets: Secrets,
    redactor: Redactor,
    /// What hooks declared; the redactor looks for so many of them.
    masks: Vec<Mask>,
    learned: usize,
    neutraliser: Neutraliser,
    /// Bytes of the file that were read.
    read: u64,
    /// What is made and not acknowledged yet; begins at `shipped`.
    pending: Vec<u8>,
    /// Bytes that the server has.
    shipped: u64,
    /// The server has everything below this, though it is not made again yet.
    skip: u64,
    limit: u64,
    cut: bool,
}

impl Text {
    fn new(limit: u64, secrets: Secrets) -> Self {
        Self {
            redactor: Redactor::new(secrets.clone()),
            secrets,
            masks: Vec::new(),
            learned: 0,
            neutraliser: Neutraliser::default(),
            read: 0,
            pending: Vec::new(),
            shipped: 0,
            skip: 0,
            limit,
            cut: false,
        }
    }

    /// Where the made text ends.
    fn end(&self) -> u64 {
        self.shipped + self.pending.len() as u64
    }

    /// What hooks declared until now. Of what is known already a stage could take something away; it stays known.
    fn note(&mut self, masks: Vec<Mask>) {
        if masks.len() > self.masks.len() {
            self.masks = masks;
        }
    }

    /// Takes the next bytes of the file, all of whose masks are noted.
    fn take(&mut self, mut bytes: &[u8]) {
        while let Some(mask) = self.masks.get(self.learned).filter(|mask| mask.at < self.read + bytes.len() as u64) {
            let before = usize::try_from(mask.at.saturating_sub(self.read)).unwrap_or(usize::MAX).min(bytes.len());
            let (before, after) = bytes.split_at(before);
            self.push(before);
            bytes = after;
            self.learn(self.read);
        }
        self.push(bytes);
    }

    /// Looks for all that was declared at `place` or before.
    fn learn(&mut self, place: u64) {
        let new: Vec<&str> = self.masks[self.learned..]
            .iter()
            .take_while(|mask| mask.at <= place)
            .map(|mask| mask.value.as_str())
            .collect();
        self.redactor.learn(new.iter().copied());
        self.learned += new.len();
    }

    fn push(&mut self, bytes: &[u8]) {
        self.read += bytes.len() as u64;
        if self.cut {
            return;
        }
        let mut redacted = Vec::with_capacity(bytes.len());
        self.redactor.push(bytes, &mut redacted);
        self.neutraliser.push(&redacted, &mut self.pending);
        self.cut_at_limit();
        self.drop_known();
    }

    /// The file ends here.
    fn close(&mut self, epilogue: &str) {
        self.learn(u64::MAX);
        let mut redacted = Vec::new();
        self.redactor.finish(&mut redacted);
        if !self.cut {
            self.neutraliser.push(&redacted, &mut self.pending);
            self.neutraliser.finish(&mut self.pending);
            self.cut_at_limit();
        }
        // Beyond the limit too: it says why the stage ended.
        redacted.clear();
        self.redactor.push(epilogue.as_bytes(), &mut redacted);
        self.redactor.finish(&mut redacted);
        let mut own = Neutraliser::default();
        own.push(&redacted, &mut self.pending);
        own.finish(&mut self.pending);
        self.drop_known();
    }

    fn cut_at_limit(&mut self) {
        if let Some(over) = self.end().checked_sub(self.limit)
            && over > 0
        {
            let keep = self.pending.len().saturating_sub(usize::try_from(over).unwrap_or(usize::MAX));
            self.pending.truncate(keep);
            self.pending.extend_from_slice(CUT);
            self.cut = true;
        }
    }

    /// How much of the text the server has, though it may not have been made again here.
    fn known(&self) -> u64 {
        self.shipped.max(self.skip)
    }

    fn drop_known(&mut self) {
        let known = usize::try_from(self.skip.saturating_sub(self.shipped)).unwrap_or(usize::MAX);
        let known = known.min(self.pending.len());
        self.pending.drain(..known);
        self.shipped += known as u64;
    }

    /// The server's log ends at `end`. `false`: everything is to be made again from the start of the file.
    fn acknowledge(&mut self, end: u64) -> bool {
        let rewind = end < self.shipped;
        if rewind {
            let masks = std::mem::take(&mut self.masks);
            *self = Self { masks, ..Self::new(self.limit, self.secrets.clone()) };
        }
        self.skip = end;
        self.drop_known();
        !rewind
    }
}

/// Ships the log of one job.
#[derive(Debug)]
pub(super) struct Shipper {
    dir: JobDir,
    /// Read in blocking threads, hence an `Option`: it travels there and back.
    text: Option<Text>,
    limit: u64,
    secrets: Secrets,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Stop(#[from] Stop),
    #[error("could not read the log")]
    Open { source: jobdir::Error },
    #[error("could not read the log")]
    Read { source: std::io::Error },
    #[error("the log is not shown, for it is not known what to hide in it")]
    Masks { source: jobdir::Error },
    #[error("the control plane does not take the log")]
    Refused { source: client::agent::Error },
}

impl Shipper {
    /// `secrets` are shown to nobody.
    pub(super) fn new(dir: JobDir, limit: u64, secrets: Secrets) -> Self {
        Self { dir, text: None, limit, secrets }
    }

    fn fresh(&self) -> Text {
        Text::new(self.limit, self.secrets.clone())
    }

    /// Ships what comes, for ever; returns when the job is not ours any more. Cancel-safe.
    pub(super) async fn follow(&mut self, remote: &Remote, watches: &FileWatches) -> Stop {
        let log = watches.watch(self.dir.path(), LOG);
        loop {
            if !self.has_more() {
                log.changed(LOOK).await;
                continue;
            }
            let pause = match self.ship_available(remote).await {
                Ok(_) => PACE,
                Err(Error::Stop(stop)) => return stop,
                Err(error) => {
                    tracing::warn!(job = %remote.job.job_id, error = %crate::telemetry::Chain(&error), "the log is not shipped now");
                    AGAIN
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Whether there may be something to ship. Asked without a thread of its own, for many looks find nothing.
    fn has_more(&self) -> bool {
        self.text.as_ref().is_none_or(|text| !text.pending.is_empty() || self.dir.log_length() > text.read)
    }

    /// Ships everything that the file has now.
    pub(super) async fn drain(&mut self, remote: &Remote) -> Result<(), Error> {
        while self.ship_available(remote).await? > 0 {}
        Ok(())
    }

    /// The stage is over: ships the rest and `epilogue`; says how long the whole log is.
    pub(super) async fn close(&mut self, remote: &Remote, epilogue: &str) -> Result<u64, Error> {
        loop {
            self.drain(remote).await?;
            let masks = self.masks().await.map_err(|source| Error::Masks { source })?;
            self.text_mut().note(masks);
            self.text_mut().close(epilogue);
            // A rewind drops what was closed: then once more from the start.
            if self.send_pending(remote).await? {
                return Ok(self.text_mut().end());
            }
        }
    }

    /// A text about the stage, without all that its log does not show.
    pub(super) async fn redact(&self, text: &str) -> String {
        match self.masks().await {
            Ok(masks) => self.secrets.with(masks.iter().map(|mask| mask.value.as_str())).redact(text),
            Err(error) => {
                let why = crate::telemetry::Chain(&error).to_string();
                tracing::warn!(error = why, "a message is withheld");
                format!("what happened is not told here, for it is not known what to hide in it: {why}")
            }
        }
    }

    async fn masks(&self) -> Result<Vec<Mask>, jobdir::Error> {
        let dir = self.dir.clone();
        jobdir::blocking(move || dir.masks()).await
    }

    /// The server's log ends at `end`, whatever was thought before.
    pub(super) fn resynchronise(&mut self, end: u64) {
        self.text = Some(self.fresh());
        self.text_mut().acknowledge(end);
    }

    /// Bytes that the server is known to have.
    pub(super) fn shipped(&self) -> u64 {
        self.text.as_ref().map_or(0, Text::known)
    }

    fn text_mut(&mut self) -> &mut Text {
        let Self { text, limit, secrets, .. } = self;
        text.get_or_insert_with(|| Text::new(*limit, secrets.clone()))
    }

    /// Reads one batch and ships it; says how many bytes were read or shipped.
    async fn ship_available(&mut self, remote: &Remote) -> Result<u64, Error> {
        let read = self.fill().await?;
        let pending = self.text_mut().pending.len() as u64;
        self.send_pending(remote).await?;
        Ok(read + pending)
    }

    async fn fill(&mut self) -> Result<u64, Error> {
        let (dir, taken) = (self.dir.clone(), self.text.take());
        // When this is cancelled the text is lost with the thread, and made again from the start: nothing is sent twice.
        let mut text = taken.unwrap_or_else(|| self.fresh());
        let filled = tokio::task::spawn_blocking(move || {
            let result = fill(&dir, &mut text);
            (text, result)
        })
        .await;
        match filled {
            Ok((text, result)) => {
                self.text = Some(text);
                result
            }
            Err(panicked) => Err(Error::Read { source: std::io::Error::other(panicked) }),
        }
    }

    /// `false`: the server lost text, and everything is to be made again.
    async fn send_pending(&mut self, remote: &Remote) -> Result<bool, Error> {
        let mut whole = true;
        loop {
            let text = self.text_mut();
            if text.pending.is_empty() {
                return Ok(whole);
            }
            let (offset, batch) = (text.shipped, text.pending.len().min(MAX_LOG_APPEND));
            let bytes = Bytes::copy_from_slice(&text.pending[..batch]);
            let sent = remote.call(|| remote.client.append_log(&remote.job, offset, bytes.clone())).await;
            let end = match sent {
                Ok(ack) => ack.end,
                Err(CallError::Failed(client::agent::Error::LogGap { end })) => end,
                Err(CallError::Stop(stop)) => return Err(stop.into()),
                Err(CallError::Failed(source)) => return Err(Error::Refused { source }),
            };
            whole &= self.text_mut().acknowledge(end);
        }
    }
}

fn fill(dir: &JobDir, text: &mut Text) -> Result<u64, Error> {
    let Some(mut file) = dir.open_log(text.read).map_err(|source| Error::Open { source })? else { return Ok(0) };
    let mut piece = [0; PIECE];
    let before = text.read;
    while text.pending.len() < FULL {
        let length = file.read(&mut piece).map_err(|source| Error::Read { source })?;
        if length == 0 {
            break;
        }
        // After the part was read: what is declared before it was noted before it.
        text.note(dir.masks().map_err(|source| Error::Masks { source })?);
        text.take(&piece[..length]);
    }
    Ok(text.read - before)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a server would store when it acknowledges as it likes.
    fn shipped(file: &[u8], pieces: &[usize], losses: &[usize], limit: u64, epilogue: &str) -> Vec<u8> {
        shipped_with(&[], file, pieces, losses, limit, epilogue)
    }

    /// The same with masks, each of which is known once a byte behind its place is read.
    fn shipped_with(
        masks: &[Mask],
        file: &[u8],
        pieces: &[usize],
        losses: &[usize],
        limit: u64,
        epilogue: &str,
    ) -> Vec<u8> {
        let (mut text, mut server) = (Text::new(limit, Secrets::new(["nullxx"])), Vec::<u8>::new());
        let mut losses = losses.iter();
        let mut pieces = pieces.iter().cycle();
        loop {
            let from = usize::try_from(text.read).unwrap();
            let to = (from + pieces.next().unwrap()).min(file.len());
            text.note(masks.iter().filter(|mask| mask.at < to as u64).cloned().collect());
            text.take(&file[from..to]);
            let closed = to == file.len();
            if closed {
                text.note(masks.to_vec());
                text.close(epilogue);
            }
            let offset = usize::try_from(text.shipped).unwrap();
            assert!(offset <= server.len(), "a gap: {offset} > {}", server.len());
            let known = server.len() - offset;
            server.extend_from_slice(text.pending.get(known..).unwrap_or_default());
            // Now and then the server forgets its tail, or has more than was acknowledged.
            if let Some(loss) = losses.next() {
                server.truncate(server.len().saturating_sub(*loss));
            }
            let whole = text.acknowledge(server.len() as u64);
            if closed && whole && text.pending.is_empty() {
                return server;
            }
            if closed && whole {
                continue_closed(&mut text, &mut server);
                return server;
            }
        }
    }

    fn continue_closed(text: &mut Text, server: &mut Vec<u8>) {
        server.extend_from_slice(&text.pending);
        assert!(text.acknowledge(server.len() as u64));
    }

    #[test]
    fn what_the_server_has_is_known_though_it_cannot_be_read_again() {
        let mut text = Text::new(400, Secrets::default());
        text.acknowledge(7);
        assert_eq!(text.known(), 7);
    }

    #[test]
    fn a_secret_is_hidden_also_at_the_start_of_a_line_and_in_the_last_words() {
        let text = String::from_utf8(shipped(b"a nullxx\nnullxx\nnull", &[3], &[], 400, "\nnullxx\n")).unwrap();
        assert_eq!(text, "a ***\n***\n\u{1b}[0mnull\n***\n");
    }

    #[test]
    fn a_log_beyond_its_limit_is_cut_and_says_so_and_still_says_why_it_ended() {
        let text = String::from_utf8(shipped(b"0123456789", &[3], &[], 4, "\nthe end\n")).unwrap();
        assert!(text.starts_with("0123\n"), "{text}");
        assert!(text.contains("reached its limit") && text.ends_with("\nthe end\n"), "{text}");
    }

    fn mask(at: u64, value: &str) -> Mask {
        Mask { at, value: value.to_owned() }
    }

    #[test]
    fn what_a_hook_declares_is_hidden_from_its_place_on_and_in_the_last_words() {
        let masks = [mask(7, "first"), mask(7, "second"), mask(20, "third")];
        let file = b"first\n\nfirst second\nx";
        for piece in 1..=file.len() {
            let text = shipped_with(&masks, file, &[piece], &[], 400, "\nfirst third\n");
            let text = String::from_utf8(text).unwrap();
            assert_eq!(text, "first\n\n*** ***\nx\n*** ***\n", "in parts of {piece}");
        }
    }

    #[test]
    fn a_stage_that_takes_a_mask_away_shows_nothing_by_it() {
        let mut text = Text::new(400, Secrets::default());
        text.note(vec![mask(0, "s3cret")]);
        text.take(b"s3cret\n");
        text.note(Vec::new());
        text.take(b"s3cret\n");
        text.close("");
        assert_eq!(text.pending, b"***\n***\n");
    }

    proptest! {
        #[test]
        fn with_masks_too_the_server_gets_the_same_bytes(
            file in "[nulab \\n]{1,80}",
            mut places in prop::collection::vec((0u64..80, "[ab]{4,6}"), 0..4),
            pieces in prop::collection::vec(1usize..20, 1..5),
            losses in prop::collection::vec(0usize..30, 0..6),
        ) {
            places.sort();
            let masks: Vec<Mask> = places.iter().map(|(at, value)| mask(*at, value)).collect();
            let expected = shipped_with(&masks, file.as_bytes(), &[1000], &[], 200, "\nbye");
            prop_assert_eq!(shipped_with(&masks, file.as_bytes(), &pieces, &losses, 200, "\nbye"), expected);
        }

        #[test]
        fn the_server_gets_the_same_bytes_whatever_is_lost_on_the_way(
            file in "[nul{ \\nx]{1,80}",
            pieces in prop::collection::vec(1usize..20, 1..5),
            losses in prop::collection::vec(0usize..30, 0..6),
            limit in 10u64..200,
        ) {
            let expected = shipped(file.as_bytes(), &[1000], &[], limit, "\nbye");
            prop_assert_eq!(shipped(file.as_bytes(), &pieces, &losses, limit, "\nbye"), expected);
        }
    }
}
