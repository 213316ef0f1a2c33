//! One attempt at the server: asked, streamed back, ended exactly once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base::AttemptId;
use engine::Sink;
use tokio::sync::Notify;
use wire::chunk::{Chunk, Finish, FinishReason};
use wire::job::Job;

use super::ask::{authorised, body, clipped, url};
use super::events::{Events, Said};
use super::{SILENCE_MAX, Shared};

/// How soon to look again whether a slow reader has room, where nobody says so.
const ROOM_LOOK: Duration = Duration::from_millis(50);
/// How much a new measurement counts.
const WEIGHT: f32 = 0.2;

/// Why an attempt ends.
enum End {
    Finished(FinishReason),
    Failed(String),
}

/// The answer so far.
struct Answer {
    sink: Box<dyn Sink>,
    began: Instant,
    first: Option<Instant>,
    generated: u32,
    max_tokens: u32,
}

/// Computes `job` elsewhere, and takes it out of the flights at its end.
pub(super) async fn fly(
    shared: Arc<Shared>,
    attempt: AttemptId,
    job: Job,
    sink: Box<dyn Sink>,
    cancel: Arc<Notify>,
) {
    let mut answer = Answer {
        sink,
        began: Instant::now(),
        first: None,
        generated: job.generated.len() as u32,
        max_tokens: job.ask.max_tokens,
    };
    let prompt_tokens = job.prompt.len() as u32;
    let deadline = match job.ask.deadline_us {
        0 => None,
        us => Some(tokio::time::Instant::now() + Duration::from_micros(us)),
    };
    let mut stopping = shared.stopping.subscribe();
    // Whatever ends the wait drops the connection with it: that is how such a server is told to stop.
    let end = tokio::select! {
        end = stream(&shared, &job, &mut answer) => end,
        () = cancel.notified() => End::Finished(FinishReason::Cancelled),
        () = until(deadline) => End::Finished(FinishReason::Expired),
        _ = stopping.wait_for(|stopping| *stopping) => End::Failed("the engine is stopping".to_owned()),
    };
    {
        let mut state = shared.state.lock();
        state.flights.remove(&attempt);
        answer.measure(&mut state, prompt_tokens, job.generated.len() as u32);
    }
    match end {
        End::Finished(reason) => answer.finish(reason, prompt_tokens),
        End::Failed(message) => answer.sink.failed(&message),
    }
}

async fn until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn stream(shared: &Shared, job: &Job, answer: &mut Answer) -> End {
    if answer.generated >= answer.max_tokens {
        return End::Finished(FinishReason::Length);
    }
    let body = body(&shared.config, &shared.kit, shared.prompting, job);
    let request = authorised(shared.client.post(url(&shared.config, "completions")), &shared.config);
    let mut response = match tokio::time::timeout(SILENCE_MAX, request.json(&body).send()).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => return End::Failed(clipped(&crate::load::chain(&error.without_url()))),
        Err(_) => return End::Failed(format!("the server said nothing for {} s", SILENCE_MAX.as_secs())),
    };
    if !response.status().is_success() {
        // Its words may cite the prompt: only the status is passed on.
        return End::Failed(format!("the server behind this instance answered {}", response.status()));
    }
    let mut events = Events::default();
    let mut finish = None;
    loop {
        let said = match response.chunk().await {
            Ok(Some(bytes)) => events.push(&bytes),
            Ok(None) => {
                return match finish {
                    Some(reason) => End::Finished(reason),
                    None => End::Failed("the server's answer ended without its end".to_owned()),
                };
            }
            Err(error) => return End::Failed(clipped(&crate::load::chain(&error.without_url()))),
        };
        let said = match said {
            Ok(said) => said,
            Err(detail) => return End::Failed(format!("the server's answer cannot be read: {detail}")),
        };
        for event in said {
            match event {
                Said::More { text, finish: reason } => {
                    answer.more(shared, text).await;
                    if let Some(reason) = reason {
                        let length = reason == "length" || answer.generated >= answer.max_tokens;
                        finish = Some(if length { FinishReason::Length } else { FinishReason::Stop });
                    }
                }
                Said::Error(_) => return End::Failed("the server ended its answer with an error".to_owned()),
                // llama.cpp's Python server ends what another request interrupts so: as if all were well, with nothing said.
                Said::Done => {
                    return match finish {
                        Some(reason) => End::Finished(reason),
                        None => End::Failed("the server ended its answer and gave no reason".to_owned()),
                    };
                }
            }
        }
    }
}

impl Answer {
    /// Delivers `text`, once there is room for it.
    async fn more(&mut self, shared: &Shared, text: String) {
        if text.is_empty() {
            return;
        }
        while !self.sink.room() {
            // Not reading is what slows the server down.
            let _ = tokio::time::timeout(ROOM_LOOK, shared.room.notified()).await;
        }
        self.first.get_or_insert_with(Instant::now);
        let mut tokens = shared.kit.tokenizer.encode_part(&text).unwrap_or_default();
        // Text may become more tokens here than it was there; more than were asked for may not be said.
        tokens.truncate((self.max_tokens - self.generated) as usize);
        let chunk = Chunk { first_index: self.generated, tokens, text, ..Chunk::default() };
        self.generated += chunk.tokens.len() as u32;
        self.sink.deliver(chunk);
    }

    fn measure(&self, state: &mut super::State, prompt_tokens: u32, before: u32) {
        let Some(first) = self.first else { return };
        let blend = |figure: &mut Option<f32>, observed: f32| {
            *figure = Some(figure.map_or(observed, |old| old + WEIGHT * (observed - old)));
        };
        let generated = self.generated - before;
        state.computed_tokens += u64::from(prompt_tokens + generated);
        let prefill = first.duration_since(self.began).as_secs_f32().max(1e-3);
        blend(&mut state.prefill_tokens_per_s, prompt_tokens as f32 / prefill);
        let decode = first.elapsed().as_secs_f32();
        if generated > 4 && decode > 0.0 {
            blend(&mut state.decode_tokens_per_s, (generated - 1) as f32 / decode);
        }
    }

    fn finish(mut self, reason: FinishReason, prompt_tokens: u32) {
        let us = |span: Duration| u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        let first = self.first.unwrap_or_else(Instant::now);
        let finish = Finish {
            reason,
            prompt_tokens,
            cached_tokens: 0,
            generated_tokens: self.generated,
            queue_us: 0,
            prefill_us: us(first.duration_since(self.began)),
            decode_us: us(first.elapsed()),
            stop_text: None,
            usage_signature: None,
        };
        self.sink.deliver(Chunk { first_index: self.generated, finish: Some(finish), ..Chunk::default() });
    }
}
