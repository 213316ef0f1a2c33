//! `POST /v1/completions`.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use base::RequestId;
use bytes::BytesMut;
use serde_json::{Map, Value};
use wire::chunk::TokenLogprob;
use wire::openai::parse_completion;
use wire::openai::response::{Completion, CompletionChoice, CompletionLogprobs, Usage};

use super::answer::{End, Part, Whole, collect};
use super::call::Call;
use super::prepare::prepare;
use super::stream::{Shape, put_event, respond, whole};
use crate::clock::unix_s;
use crate::core::Core;
use crate::problem::Problem;

/// Continues texts.
pub(super) async fn create(
    State(core): State<Arc<Core>>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Result<Response, Problem> {
    let (mut call, body) = Call::admit(&core, id, "completions", request).await?;
    let asked = call.parse(body, parse_completion).await?;
    let (stream, include_usage) = (asked.generation.stream, asked.generation.include_usage);
    let choices = asked.generation.choices.max(1);
    let mut prepared = prepare(&core, call, asked).await?;
    let mut answer = Answer {
        id: format!("cmpl-{:032x}", id.0),
        created: unix_s(),
        model: prepared.served.name.as_str().to_owned(),
        fingerprint: super::fingerprint(&prepared.served),
        include_usage,
        per_prompt: choices,
        echo: std::mem::take(&mut prepared.echo),
        characters: Vec::new(),
    };
    let said = prepared.take_said();
    let answering = prepared.begin(&core);
    if stream {
        return respond(answering, said, answer).await;
    }
    let got = collect(answering).await?;
    let timings = got.timings.clone();
    Ok(whole(&answer.whole(got), &said, &timings))
}

/// What all pieces of one answer have.
struct Answer {
    id: String,
    created: u64,
    model: String,
    fingerprint: String,
    include_usage: bool,
    /// Choices to each prompt.
    per_prompt: u32,
    /// What each prompt's choices begin with, where they begin with it.
    echo: Vec<String>,
    /// Characters of each choice so far, for `text_offset`.
    characters: Vec<u32>,
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

    /// What a choice begins with.
    fn echo_of(&self, choice: u32) -> &str {
        self.echo.get((choice / self.per_prompt) as usize).map_or("", String::as_str)
    }

    fn whole(&mut self, got: Whole) -> Completion {
        let mut choices = Vec::with_capacity(got.choices.len());
        for (index, choice) in (0u32..).zip(got.choices) {
            let logprobs = choice.logprobs.map(|more| self.logprobs(index, more));
            choices.push(CompletionChoice {
                index,
                text: format!("{}{}", self.echo_of(index), choice.content),
                logprobs,
                finish_reason: Some(finish_reason(choice.end).to_owned()),
            });
        }
        self.completion(choices, Some(Some(got.usage)))
    }

    fn logprobs(&mut self, choice: u32, more: Vec<TokenLogprob>) -> CompletionLogprobs {
        let mut list = CompletionLogprobs::default();
        let at = choice as usize;
        if self.characters.len() <= at {
            self.characters.resize(at + 1, 0);
        }
        for of in more {
            let text = String::from_utf8_lossy(&of.bytes).into_owned();
            list.text_offset.push(self.characters[at]);
            self.characters[at] += u32::try_from(text.chars().count()).unwrap_or(0);
            list.tokens.push(text);
            list.token_logprobs.push(of.logprob);
            let mut top = Map::new();
            for (_, bytes, logprob) in of.top {
                top.insert(String::from_utf8_lossy(&bytes).into_owned(), Value::from(logprob));
            }
            list.top_logprobs.push(top);
        }
        list
    }

    fn piece(&self, choice: CompletionChoice) -> Completion {
        self.completion(vec![choice], self.include_usage.then_some(None))
    }
}

fn finish_reason(end: End) -> &'static str {
    match end {
        End::Stop | End::Calls => "stop",
        End::Length => "length",
    }
}

impl Shape for Answer {
    fn begin(&mut self, choices: u32, out: &mut BytesMut) {
        for index in 0..choices {
            let text = self.echo_of(index).to_owned();
            if !text.is_empty() {
                let choice = CompletionChoice { index, text, logprobs: None, finish_reason: None };
                put_event(out, &self.piece(choice));
            }
        }
    }

    fn part(&mut self, choice: u32, part: Part, logprobs: Option<Vec<TokenLogprob>>, out: &mut BytesMut) {
        // Texts are read as they are: there is nothing else.
        let Part::Content(text) = part else { return };
        let logprobs = logprobs.map(|more| self.logprobs(choice, more));
        put_event(out, &self.piece(CompletionChoice { index: choice, text, logprobs, finish_reason: None }));
    }

    fn end(&mut self, choice: u32, end: End, _: Option<String>, out: &mut BytesMut) {
        let finish_reason = Some(finish_reason(end).to_owned());
        let choice = CompletionChoice { index: choice, text: String::new(), logprobs: None, finish_reason };
        put_event(out, &self.piece(choice));
    }

    fn complete(&mut self, usage: Usage, out: &mut BytesMut) {
        if self.include_usage {
            put_event(out, &self.completion(Vec::new(), Some(Some(usage))));
        }
    }

    fn failed(&mut self, problem: &Problem, out: &mut BytesMut) {
        put_event(out, &problem.body());
    }
}
