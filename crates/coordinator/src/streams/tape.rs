//! A tape: everything that a request has said to its caller, kept so that a caller that comes back gets the rest.
//!
//! The request's task records, any number of readers play it from the beginning, each at its own pace. A tape is
//! bounded: an answer that is larger than its bound is read live or not at all.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base::AccountId;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::dispatch::{Delta, Event, Finished};
use crate::problem::Problem;
use crate::segments::Timings;

/// What a tape holds at most. The longest answers known, a hundred thousand tokens with text, take a tenth of it; one
/// with twenty log-probabilities a token does not fit, and its reader must read live.
pub(crate) const TAPE_BYTES_MAX: usize = 16 << 20;

/// Events that may wait for one reader's connection.
const READER_WAITING_MAX: usize = 32;

/// One recorded answer.
pub(crate) struct Tape {
    /// Who may read it.
    pub(crate) account: AccountId,
    /// What its API needs to write it again, in that API's own words.
    pub(crate) shape: Arc<str>,
    state: Mutex<State>,
    /// Counts changes, so that no reader misses one.
    news: watch::Sender<u64>,
    /// Its caller wants no more of it.
    pub(crate) cancelled: CancellationToken,
}

struct State {
    started: Option<Box<Timings>>,
    pieces: Vec<Delta>,
    bytes: usize,
    finished: Option<Finished>,
    settled: Option<Box<Timings>>,
    failed: Option<Box<Problem>>,
    readers: usize,
    /// Since when nobody reads it.
    unread_since: Instant,
}

/// Where a reader is.
#[derive(Default)]
struct Cursor {
    started: bool,
    pieces: usize,
    finished: bool,
}

impl Tape {
    pub(crate) fn new(account: AccountId, shape: Arc<str>) -> Self {
        let state = State {
            started: None,
            pieces: Vec::new(),
            bytes: 0,
            finished: None,
            settled: None,
            failed: None,
            readers: 0,
            unread_since: Instant::now(),
        };
        Self {
            account,
            shape,
            state: Mutex::new(state),
            news: watch::Sender::new(0),
            cancelled: CancellationToken::new(),
        }
    }

    /// Takes in what the request says. False where it does not fit any more.
    pub(crate) fn record(&self, event: Event) -> bool {
        {
            let mut state = self.state.lock();
            match event {
                Event::Waiting => return true,
                Event::Started(timings) => state.started = Some(timings),
                Event::Delta(delta) => {
                    state.bytes += delta.bytes();
                    if state.bytes > TAPE_BYTES_MAX {
                        return false;
                    }
                    state.pieces.push(delta);
                }
                Event::Finished(finished) => state.finished = Some(finished),
                Event::Settled(timings) => state.settled = Some(timings),
                Event::Failed(problem) => state.failed = Some(problem),
            }
        }
        self.news.send_modify(|count| *count += 1);
        true
    }

    /// What it holds, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.state.lock().bytes
    }

    /// Returns once nobody has read it for `patience`, or its caller cancelled it.
    pub(crate) async fn left(&self, patience: Option<Duration>) {
        let alone = async {
            let Some(patience) = patience else { return std::future::pending().await };
            loop {
                let unread = {
                    let state = self.state.lock();
                    (state.readers == 0).then(|| state.unread_since.elapsed())
                };
                match unread {
                    Some(unread) if unread >= patience => return,
                    Some(unread) => tokio::time::sleep(patience - unread).await,
                    // Whoever reads may leave at any time: looked at again after the shortest that it may matter.
                    None => tokio::time::sleep(patience).await,
                }
            }
        };
        tokio::select! {
            () = self.cancelled.cancelled() => {}
            () = alone => {}
        }
    }

    /// What comes next for a reader; nothing where it has to wait.
    fn next(&self, cursor: &mut Cursor) -> Option<Event> {
        let state = self.state.lock();
        if !cursor.started
            && let Some(timings) = &state.started
        {
            cursor.started = true;
            return Some(Event::Started(timings.clone()));
        }
        if let Some(piece) = state.pieces.get(cursor.pieces) {
            cursor.pieces += 1;
            return Some(Event::Delta(piece.clone()));
        }
        if !cursor.finished
            && let Some(finished) = &state.finished
        {
            cursor.finished = true;
            return Some(Event::Finished(finished.clone()));
        }
        if let Some(problem) = &state.failed {
            return Some(Event::Failed(problem.clone()));
        }
        state.settled.as_ref().map(|timings| Event::Settled(timings.clone()))
    }

    /// Begins to play it to a new reader, from the first piece.
    pub(crate) fn play(
        self: &Arc<Self>,
        tasks: &tokio_util::task::TaskTracker,
        keepalive: Duration,
        write_max: Duration,
    ) -> mpsc::Receiver<Event> {
        let (to, from) = mpsc::channel(READER_WAITING_MAX);
        let reading = Reading::begin(Arc::clone(self));
        tasks.spawn(async move { reading.play(&to, keepalive, write_max).await });
        from
    }
}

/// One reader: counted as long as it lives.
struct Reading(Arc<Tape>);

impl Reading {
    fn begin(tape: Arc<Tape>) -> Self {
        tape.state.lock().readers += 1;
        Self(tape)
    }

    async fn play(&self, to: &mpsc::Sender<Event>, keepalive: Duration, write_max: Duration) {
        let mut news = self.0.news.subscribe();
        let mut cursor = Cursor::default();
        loop {
            news.mark_unchanged();
            while let Some(event) = self.0.next(&mut cursor) {
                let last = matches!(event, Event::Failed(_) | Event::Settled(_));
                // A reader that is gone, or reads nothing, comes back for the rest if it wants it.
                if !matches!(tokio::time::timeout(write_max, to.send(event)).await, Ok(Ok(()))) || last {
                    return;
                }
            }
            tokio::select! {
                changed = news.changed() => if changed.is_err() { return },
                () = to.closed() => return,
                () = tokio::time::sleep(keepalive) => drop(to.try_send(Event::Waiting)),
            }
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.readers -= 1;
        state.unread_since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::task::TaskTracker;

    use super::*;

    fn piece(text: &str) -> Event {
        Event::Delta(Delta { tokens: 1, text: text.to_owned(), logprobs: None, vector: None })
    }

    async fn text(mut from: mpsc::Receiver<Event>) -> (String, bool) {
        let mut out = String::new();
        while let Some(event) = from.recv().await {
            match event {
                Event::Delta(delta) => out.push_str(&delta.text),
                Event::Settled(_) => return (out, true),
                _ => {}
            }
        }
        (out, false)
    }

    #[tokio::test]
    async fn every_reader_gets_all_of_it_whenever_it_comes() {
        let tape = Arc::new(Tape::new(AccountId(1), "".into()));
        let tasks = TaskTracker::new();
        let (beat, most) = (Duration::from_secs(60), Duration::from_secs(60));
        let early = tokio::spawn(text(tape.play(&tasks, beat, most)));
        tape.record(Event::Started(Box::default()));
        tape.record(piece("one "));
        let middle = tokio::spawn(text(tape.play(&tasks, beat, most)));
        tape.record(piece("two"));
        tape.record(Event::Settled(Box::default()));
        let late = tape.play(&tasks, beat, most);
        for reader in [early.await.unwrap(), middle.await.unwrap(), text(late).await] {
            assert_eq!(reader, ("one two".to_owned(), true));
        }
    }

    #[tokio::test]
    async fn a_tape_is_left_once_nobody_has_read_it_for_its_patience() {
        let tape = Arc::new(Tape::new(AccountId(1), "".into()));
        let tasks = TaskTracker::new();
        let reader = tape.play(&tasks, Duration::from_secs(60), Duration::from_secs(60));
        let mut left = std::pin::pin!(tape.left(Some(Duration::from_millis(1))));
        let still_read = tokio::time::timeout(Duration::from_millis(20), &mut left).await;
        assert!(still_read.is_err(), "it is being read");
        drop(reader);
        left.await;
        tape.cancelled.cancel();
        tape.left(None).await;
    }

    #[test]
    fn a_tape_is_bounded() {
        let tape = Tape::new(AccountId(1), "".into());
        assert!(tape.record(piece(&"x".repeat(TAPE_BYTES_MAX / 2))));
        assert!(!tape.record(piece(&"x".repeat(TAPE_BYTES_MAX / 2))));
    }
}
