//! `POST /v1/completions`.

use std::sync::Arc;
use std::time::Instant;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use base::RequestId;
use bytes::BytesMut;
use futures_util::future::try_join_all;
use serde_json::{Map, Value};
use wire::chunk::TokenLogprob;
use wire::openai::CompletionRequest;
use wire::openai::response::{Completion, CompletionChoice, CompletionLogprobs, Usage, finish_reason};

use super::prepare::{Call, Source, served, work};
use super::stream::{Said, Shape, Whole, collect, put_event, respond, whole};
use crate::clock::unix_s;
use crate::core::Core;
use crate::dispatch::{Delta, Finished, serve};
use crate::problem::Problem;
use crate::segments::Segment;

/// Continues texts.
pub(super) async fn create(
    State(core): State<Arc<Core>>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Result<Response, Problem> {
    let (mut call, body) = Call::admit(&core, id, "completions", request).await?;
    let start = Instant::now();
    let asked = CompletionRequest::parse(&body)?;
    call.timings.since(Segment::Parse, start);
    let pool = served(&core, &asked.model)?;
    let mut generation = asked.generation;
    // One seed for all prompts, so that the header can name it.
    let seed = *generation.seed.get_or_insert_with(|| core.seed());
    let mut calls = Vec::with_capacity(asked.prompts.len());
    for _ in 1..asked.prompts.len() {
        calls.push(call.another(&core)?);
    }
    calls.insert(0, call);
    // All are looked at before any is served: one bad prompt refuses the whole.
    let mut works = Vec::with_capacity(calls.len());
    for (call, prompt) in calls.into_iter().zip(asked.prompts) {
        let source = Source::Completion(prompt);
        works.push(work(&core, call, Arc::clone(&pool), source, &generation).await?);
    }
    let said = Said { seed, ignored: std::mem::take(&mut generation.ignored) };
    let mut answer = Answer {
        id: format!("cmpl-{:032x}", id.0),
        created: unix_s(),
        model: pool.name.as_str().to_owned(),
        fingerprint: super::fingerprint(&pool),
        include_usage: generation.include_usage,
        characters: 0,
    };
    let mut events: Vec<_> = works.into_iter().map(|work| serve(&core, work)).collect();
    if generation.stream && events.len() == 1 {
        return respond(events.remove(0), said, answer).await;
    }
    let all = try_join_all(events.into_iter().map(collect)).await?;
    let timings = all[0].timings.clone();
    Ok(whole(&answer.whole(all), &said, &timings))
}

/// What all pieces of one answer have.
struct Answer {
    id: String,
    created: u64,
    model: String,
    fingerprint: String,
    include_usage: bool,
    /// Characters so far, for `text_offset`.
    characters: u32,
}

impl Answer {
    fn completion(&self, choices: Vec<CompletionChoice>, usage: Option<Option<Usage>>) -> Completion {
        Completion {
            id: self.id.clone(),
            object: "text_completion".to_owned(),
            created: self.created,
            model: self.model.clone(),
            choices,
            usage,
            system_fingerprint: self.fingerprint.clone(),
        }
    }

    fn whole(&mut self, all: Vec<Whole>) -> Completion {
        let mut usage = Usage::default();
        let mut choices = Vec::with_capacity(all.len());
        for (index, got) in all.into_iter().enumerate() {
            self.characters = 0;
            let mut text = String::new();
            let mut logprobs: Option<CompletionLogprobs> = None;
            for delta in got.deltas {
                text.push_str(&delta.text);
                if let Some(more) = delta.logprobs {
                    self.add(logprobs.get_or_insert_default(), more);
                }
            }
            usage = usage.plus(got.finished.usage);
            choices.push(CompletionChoice {
                index: u32::try_from(index).unwrap_or(u32::MAX),
                text,
                logprobs,
                finish_reason: Some(finish_reason(got.finished.reason).to_owned()),
            });
        }
        self.completion(choices, Some(Some(usage)))
    }

    fn add(&mut self, list: &mut CompletionLogprobs, more: Vec<TokenLogprob>) {
        for of in more {
            let text = String::from_utf8_lossy(&of.bytes).into_owned();
            list.text_offset.push(self.characters);
            self.characters += u32::try_from(text.chars().count()).unwrap_or(0);
            list.tokens.push(text);
            list.token_logprobs.push(of.logprob);
            let mut top = Map::new();
            for (_, bytes, logprob) in of.top {
                top.insert(String::from_utf8_lossy(&bytes).into_owned(), Value::from(logprob));
            }
            list.top_logprobs.push(top);
        }
    }
}

impl Shape for Answer {
    fn begin(&mut self, _out: &mut BytesMut) {}

    fn delta(&mut self, delta: Delta, out: &mut BytesMut) {
        let logprobs = delta.logprobs.map(|more| {
            let mut list = CompletionLogprobs::default();
            self.add(&mut list, more);
            list
        });
        if delta.text.is_empty() && logprobs.is_none() {
            return;
        }
        let choice = CompletionChoice { index: 0, text: delta.text, logprobs, finish_reason: None };
        put_event(out, &self.completion(vec![choice], self.include_usage.then_some(None)));
    }

    fn finish(&mut self, finished: Finished, out: &mut BytesMut) {
        let reason = Some(finish_reason(finished.reason).to_owned());
        let choice =
            CompletionChoice { index: 0, text: String::new(), logprobs: None, finish_reason: reason };
        put_event(out, &self.completion(vec![choice], self.include_usage.then_some(None)));
        if self.include_usage {
            put_event(out, &self.completion(Vec::new(), Some(Some(finished.usage))));
        }
    }
}
