//! What a provider does with an attempt, as the test wrote it, and the chunks that it is written with.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use base::AttemptId;
use tokio::sync::{Notify, mpsc};
use tokio_tungstenite::tungstenite::Message;
use trust::ResponseSealer;
use wire::chunk::{Chunk, Finish, FinishReason, TokenLogprob};
use wire::control::*;
use wire::frame::{self, FrameHeader, FrameKind};

/// What the provider does with an attempt, step by step.
#[derive(Clone)]
pub(crate) enum Act {
    /// Seals and sends a chunk.
    Send(Chunk),
    /// Seals a chunk and sends it with a bit changed.
    Tampered(Chunk),
    /// Sends the last frame once more.
    Repeat,
    /// Says no.
    Refuse(AttemptRefusal),
    /// Says that it failed.
    Fail,
    /// Drops the connection without a word.
    Die,
    /// Waits until the test lets it go on.
    Hold(Arc<Notify>),
}

/// How far each attempt's chunks may be sent, where the coordinator gives credit.
#[derive(Default)]
pub(crate) struct Credit {
    first: u64,
    until: Mutex<HashMap<AttemptId, u64>>,
    more: Notify,
    /// Chunks sent so far, of all attempts.
    pub(crate) sent: AtomicU64,
}

impl Credit {
    pub(crate) fn new(first: u64) -> Self {
        Self { first, ..Self::default() }
    }

    /// Waits until chunk `counter` of an attempt may be sent.
    async fn await_room(&self, attempt: AttemptId, counter: u64) {
        loop {
            let more = self.more.notified();
            let until = self.until.lock().unwrap().get(&attempt).copied().unwrap_or(self.first);
            if self.first == 0 || counter < until {
                self.sent.fetch_add(1, Ordering::Relaxed);
                return;
            }
            more.await;
        }
    }

    pub(crate) fn grant(&self, attempt: AttemptId, until: u64) {
        self.until.lock().unwrap().insert(attempt, until);
        self.more.notify_waiters();
    }
}

pub(crate) async fn perform(
    id: AttemptId,
    acts: Vec<Act>,
    mut sealer: ResponseSealer,
    out: mpsc::UnboundedSender<Message>,
    (prompt_tokens, credit): (u32, Arc<Credit>),
) {
    let mut last = Vec::new();
    let mut counter = 0;
    for act in acts {
        if matches!(act, Act::Send(_) | Act::Tampered(_)) {
            credit.await_room(id, counter).await;
            counter += 1;
        }
        match act {
            Act::Send(mut chunk) | Act::Tampered(mut chunk) if chunk.finish.is_some() => {
                if let Some(finish) = &mut chunk.finish {
                    finish.prompt_tokens = prompt_tokens;
                }
                last = sealed(&mut sealer, id, &chunk);
                let _ = out.send(Message::Binary(last.clone().into()));
            }
            Act::Send(chunk) => {
                last = sealed(&mut sealer, id, &chunk);
                let _ = out.send(Message::Binary(last.clone().into()));
            }
            Act::Tampered(chunk) => {
                last = sealed(&mut sealer, id, &chunk);
                let at = last.len() - 1;
                last[at] ^= 1;
                let _ = out.send(Message::Binary(last.clone().into()));
            }
            Act::Repeat => {
                let _ = out.send(Message::Binary(last.clone().into()));
            }
            Act::Refuse(reason) => {
                let message = FromProvider::AttemptRefused { attempt: id, reason, message: String::new() };
                let _ = out.send(Message::Text(message.encode().into()));
            }
            Act::Fail => {
                let message = FromProvider::AttemptFailed { attempt: id, message: "broken".to_owned() };
                let _ = out.send(Message::Text(message.encode().into()));
            }
            Act::Die => {
                let _ = out.send(Message::Close(None));
            }
            Act::Hold(until) => until.notified().await,
        }
    }
}

fn sealed(sealer: &mut ResponseSealer, id: AttemptId, chunk: &Chunk) -> Vec<u8> {
    let (counter, payload) = sealer.seal(&chunk.encode());
    frame::encode(FrameHeader::of_attempt(FrameKind::Chunk, id, counter), &payload)
}

/// A chunk of one token.
pub(crate) fn token(index: u32, text: &str) -> Chunk {
    Chunk {
        first_index: index,
        tokens: vec![index + 1],
        text: text.to_owned(),
        logprobs: None,
        finish: None,
        vector: None,
    }
}

/// As [`token`], with log-probabilities.
pub(crate) fn token_with_logprobs(index: u32, text: &str) -> Chunk {
    let bytes = text.as_bytes().to_vec();
    let logprob = TokenLogprob {
        token: index + 1,
        bytes: bytes.clone(),
        logprob: -0.5,
        top: vec![(index + 1, bytes, -0.5), (77, b"?".to_vec(), -1.5)],
    };
    Chunk { logprobs: Some(vec![logprob]), ..token(index, text) }
}

/// The end after `count` tokens.
pub(crate) fn end(count: u32, reason: FinishReason) -> Chunk {
    let finish = Finish {
        reason,
        prompt_tokens: 0,
        cached_tokens: 0,
        generated_tokens: count,
        queue_us: 1,
        prefill_us: 1,
        decode_us: 1,
        stop_text: None,
        usage_signature: None,
    };
    Chunk { first_index: count, finish: Some(finish), ..Chunk::default() }
}

/// A whole answer, a token a piece.
pub(crate) fn answer(pieces: &[&str]) -> Vec<Act> {
    let tokens = (0u32..).zip(pieces).map(|(index, text)| Act::Send(token(index, text)));
    tokens.chain([Act::Send(end(pieces.len() as u32, FinishReason::Stop))]).collect()
}
