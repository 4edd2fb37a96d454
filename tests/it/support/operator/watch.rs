//! What the operator sees of a watch that something is wrong with.

use std::{io, sync::Arc, time::Duration};

use axum::body::{Body, Bytes};
use futures::{FutureExt, Stream, StreamExt, stream};
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::sleep};

use super::{
    plan::{Dice, Sight},
    recorder::Recorder,
};

type Line = Result<Bytes, io::Error>;

/// The body of a watch's answer as the schedule shows it. Ends with an outage.
pub fn follow(body: Body, kind: &str, recorder: &Arc<Recorder>) -> Body {
    let shown = match recorder.sight() {
        Some(sight) => distort(body, sight, kind, recorder.clone()),
        None => body,
    };
    let (kind, noted) = (kind.to_owned(), recorder.clone());
    let outage = recorder.outage().inspect(move |()| noted.follow(&kind, |follow| follow.cuts += 1));
    Body::from_stream(shown.into_data_stream().take_until(Box::pin(outage)))
}

fn distort(body: Body, sight: Sight, kind: &str, recorder: Arc<Recorder>) -> Body {
    let (sender, receiver) = mpsc::channel(64);
    let kind = kind.to_owned();
    tokio::spawn(async move {
        let watcher = Watcher { sender, kind, dice: Dice::new(recorder.seed ^ 0xabcd), recorder };
        watcher.run(Box::pin(events(body)), sight).await;
    });
    Body::from_stream(stream::unfold(receiver, async |mut receiver: mpsc::Receiver<Line>| {
        receiver.recv().await.map(|line| (line, receiver))
    }))
}

/// Events, parsed.
fn events(body: Body) -> impl Stream<Item = Value> + Send {
    stream::unfold((body.into_data_stream(), Vec::new()), async |(mut chunks, mut rest): (_, Vec<u8>)| {
        loop {
            if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                if let Ok(event) = serde_json::from_slice::<Value>(&line) {
                    return Some((event, (chunks, rest)));
                }
                continue;
            }
            let chunk: Bytes = chunks.next().await?.ok()?;
            rest.extend_from_slice(&chunk);
        }
    })
}

struct Watcher {
    sender: mpsc::Sender<Line>,
    kind: String,
    recorder: Arc<Recorder>,
    dice: Dice,
}

/// Nobody listens any more.
struct Over;

impl Watcher {
    async fn send(&self, event: &Value) -> Result<(), Over> {
        self.sender.send(Ok(Bytes::from(format!("{event}\n")))).await.map_err(|_| Over)
    }

    async fn gone(&self) {
        let status = json!({"type": "ERROR", "object": {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 410, "reason": "Expired",
            "message": "too old resource version (a test's fault)",
        }});
        self.recorder.follow(&self.kind, |follow| follow.gone += 1);
        drop(self.send(&status).await);
    }

    fn cut(&self) {
        self.recorder.follow(&self.kind, |follow| follow.cuts += 1);
    }

    async fn run(mut self, mut events: impl Stream<Item = Value> + Send + Unpin, sight: Sight) {
        let mut seen = 0;
        let mut last = Value::Null;
        while let Some(event) = events.next().await {
            let counts = event["type"] != "BOOKMARK" && event["type"] != "ERROR";
            seen += usize::from(counts);
            let done = match sight {
                _ if !counts => self.send(&event).await,
                Sight::Coalesce(ms) => self.coalesce(event, &mut events, Duration::from_millis(ms)).await,
                Sight::Lag(k) => self.lag(event, &mut events, k).await,
                Sight::Drop(nth) if self.recorder.event() == nth => {
                    sleep(Duration::from_millis(200)).await;
                    return self.gone().await;
                }
                Sight::Twice => match self.send(&event).await {
                    Ok(()) => self.send(&event).await,
                    over => over,
                },
                Sight::Reorder => {
                    sleep(Duration::from_millis(self.dice.below(150) as u64)).await;
                    self.send(&event).await
                }
                Sight::Bookmarks => {
                    let bookmark = bookmark(&last);
                    sleep(Duration::from_millis(50)).await;
                    if !bookmark.is_null() && self.send(&bookmark).await.is_err() {
                        return;
                    }
                    last = event.clone();
                    self.send(&event).await
                }
                Sight::Drop(_) | Sight::Cut(_) | Sight::Gone(_) => self.send(&event).await,
            };
            if done.is_err() {
                return;
            }
            match sight {
                Sight::Cut(n) if counts && seen >= n => return self.cut(),
                Sight::Gone(n) if counts && seen >= n => return self.gone().await,
                _ => {}
            }
        }
    }

    /// What comes within the window arrives as each object's last state.
    async fn coalesce(
        &self,
        first: Value,
        events: &mut (impl Stream<Item = Value> + Send + Unpin),
        window: Duration,
    ) -> Result<(), Over> {
        let mut pending = vec![first];
        let end = tokio::time::Instant::now() + window;
        while let Ok(Some(event)) = tokio::time::timeout_at(end, events.next()).await {
            let uid = event["object"]["metadata"]["uid"].clone();
            let earlier = pending.iter().position(|other| !uid.is_null() && other["object"]["metadata"]["uid"] == uid);
            let Some(earlier) = earlier.map(|index| pending.remove(index)) else {
                pending.push(event);
                continue;
            };
            let unseen = earlier["type"] == "ADDED";
            match (unseen, event["type"] == "DELETED") {
                (true, true) => {}
                (true, false) => pending.push(json!({"type": "ADDED", "object": event["object"]})),
                (false, _) => pending.push(event),
            }
        }
        for event in &pending {
            self.send(event).await?;
        }
        Ok(())
    }

    /// Held back until `k` newer ones are there, or nothing has come for a while.
    async fn lag(
        &self,
        first: Value,
        events: &mut (impl Stream<Item = Value> + Send + Unpin),
        k: usize,
    ) -> Result<(), Over> {
        let mut held = std::collections::VecDeque::from([first]);
        while let Ok(Some(event)) = tokio::time::timeout(Duration::from_millis(300), events.next()).await {
            held.push_back(event);
            while held.len() > k {
                if let Some(event) = held.pop_front() {
                    self.send(&event).await?;
                }
            }
        }
        for event in held {
            self.send(&event).await?;
        }
        Ok(())
    }
}

/// A bookmark at the revision of the event that arrived last.
fn bookmark(event: &Value) -> Value {
    if event.is_null() {
        return Value::Null;
    }
    let object = &event["object"];
    let revision = json!({"resourceVersion": object["metadata"]["resourceVersion"], "creationTimestamp": null});
    json!({"type": "BOOKMARK", "object": {"apiVersion": object["apiVersion"], "kind": object["kind"], "metadata": revision}})
}
