//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::Extension;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use base::RequestId;
use bytes::BytesMut;
use serde::Deserialize;
use serde_json::{Value, json};
use wire::RequestError;
use wire::chunk::TokenLogprob;
use wire::openai::parse_chat;
use wire::openai::response::{
    ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatDelta, ChatLogprobs, ChatMessage, DeltaCall,
    DeltaFunction, FunctionCall, MessageCall, TokenLogprobs, Usage,
};

use super::answer::{Answering, Choice, End, Part, Whole, collect};
use super::auth::{Caller, caller};
use super::call::{Call, answer_id, last_event};
use super::prepare::prepare;
use super::reader::Reading;
use super::stream::{Said, Shape, put_event, respond, whole};
use crate::clock::unix_s;
use crate::core::Core;
use crate::problem::Problem;

/// Continues a chat.
pub(super) async fn create(
    State(core): State<Arc<Core>>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Result<Response, Problem> {
    let (mut call, body) = Call::admit(&core, id, "chat", request).await?;
    let asked = call.parse(body, parse_chat).await?;
    let (stream, include_usage) = (asked.generation.stream, asked.generation.include_usage);
    let mut prepared = prepare(&core, call, asked).await?;
    let answer = Answer {
        id: prepared.request,
        created: unix_s(),
        model: prepared.served.name.as_str().to_owned(),
        fingerprint: super::fingerprint(&prepared.served),
        include_usage,
    };
    prepared.keep(&answer.kept(prepared.said.seed));
    let said = prepared.take_said();
    let answering = prepared.begin(&core);
    if stream {
        return respond(answering, said, answer).await;
    }
    let got = collect(answering).await?;
    let timings = got.timings.clone();
    Ok(whole(&answer.whole(got), &said, &timings))
}

/// From which event on a stream is read again.
#[derive(Deserialize)]
pub(super) struct From {
    starting_after: Option<u64>,
}

/// The rest of an answer that was asked for as one that can be come back to, or all of it: for a caller that does not have
/// the body of its request any more.
pub(super) async fn resume(
    State(core): State<Arc<Core>>,
    uri: Uri,
    path: Result<Path<String>, PathRejection>,
    from: Result<Query<From>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let key = caller(&core, Caller::of_headers(&headers)).await?;
    let name = super::part(path, &uri)?;
    let Query(from) = from.map_err(|_| {
        let message = "'starting_after' must be the number of an event".to_owned();
        let param = Some("starting_after".to_owned());
        Problem::Request(RequestError { message, param, code: "invalid_value" })
    })?;
    let missing =
        || Problem::Missing { what: "answer that can be come back to", id: name.chars().take(100).collect() };
    let id = answer_id(&name).ok_or_else(missing)?;
    let from = from.starting_after.or(last_event(&headers)?).unwrap_or(0);
    let attached = core.attach(id, key.account).ok_or_else(missing)?;
    let kept: Value = serde_json::from_str(&attached.shape).map_err(|_| missing())?;
    let model = kept["shape"]["model"].as_str().unwrap_or_default();
    let served = super::prepare::served(&core, model)?;
    let dialect = super::prepare::kit_of(&served)?.dialect;
    let tail = kept["reading"]["tail"].as_str().unwrap_or_default().to_owned();
    let reading = Reading::of(&dialect, kept["reading"]["tools"].clone(), tail);
    let answer = Answer::again(id, &kept["shape"]);
    let said =
        Said { seed: kept["shape"]["seed"].as_u64().unwrap_or(0), ignored: Vec::new(), more: Vec::new() };
    let answering = Answering::new(vec![attached.events], &reading).marked(true).after(from);
    respond(answering, said, answer).await
}

/// What all pieces of one answer have.
struct Answer {
    id: RequestId,
    created: u64,
    model: String,
    fingerprint: String,
    include_usage: bool,
}

/// A call's name for its result to refer to: the same however often the answer is read.
pub(super) fn call_id(id: RequestId, choice: u32, index: usize) -> String {
    format!("call_{:032x}_{choice}_{index}", id.0)
}

fn finish_reason(end: End) -> &'static str {
    match end {
        End::Stop => "stop",
        End::Length => "length",
        End::Calls => "tool_calls",
    }
}

impl Answer {
    /// What [`Answer::again`] needs.
    fn kept(&self, seed: u64) -> Value {
        json!({
            "created": self.created, "model": self.model, "fingerprint": self.fingerprint,
            "include_usage": self.include_usage, "seed": seed,
        })
    }

    fn again(id: RequestId, kept: &Value) -> Self {
        let text = |name: &str| kept[name].as_str().unwrap_or_default().to_owned();
        Self {
            id,
            created: kept["created"].as_u64().unwrap_or(0),
            model: text("model"),
            fingerprint: text("fingerprint"),
            include_usage: kept["include_usage"].as_bool().unwrap_or(false),
        }
    }

    fn whole(self, got: Whole) -> ChatCompletion {
        let choices = (0u32..).zip(got.choices).map(|(index, choice)| self.choice(index, choice)).collect();
        ChatCompletion {
            id: format!("chatcmpl-{:032x}", self.id.0),
            object: "chat.completion".to_owned(),
            created: self.created,
            model: self.model,
            choices,
            usage: got.usage,
            system_fingerprint: self.fingerprint,
        }
    }

    fn choice(&self, index: u32, choice: Choice) -> ChatChoice {
        let calls: Vec<_> = choice
            .calls
            .into_iter()
            .enumerate()
            .map(|(at, call)| MessageCall {
                id: call_id(self.id, index, at),
                kind: "function".to_owned(),
                function: FunctionCall { name: call.name, arguments: call.arguments },
            })
            .collect();
        let silent = choice.content.is_empty() && !calls.is_empty();
        ChatChoice {
            index,
            message: ChatMessage {
                role: "assistant".to_owned(),
                content: (!silent).then_some(choice.content),
                refusal: None,
                reasoning_content: (!choice.reasoning.is_empty()).then_some(choice.reasoning),
                tool_calls: calls,
            },
            logprobs: choice.logprobs.map(chat_logprobs),
            finish_reason: finish_reason(choice.end).to_owned(),
        }
    }

    fn chunk(&self, choices: Vec<ChatChunkChoice>, usage: Option<Usage>) -> ChatChunk {
        ChatChunk {
            id: format!("chatcmpl-{:032x}", self.id.0),
            object: "chat.completion.chunk".to_owned(),
            created: self.created,
            model: self.model.clone(),
            system_fingerprint: self.fingerprint.clone(),
            choices,
            usage: self.include_usage.then_some(usage),
        }
    }

    fn piece(
        &self,
        index: u32,
        delta: ChatDelta,
        logprobs: Option<ChatLogprobs>,
        end: Option<End>,
    ) -> ChatChunk {
        let finish_reason = end.map(|end| finish_reason(end).to_owned());
        self.chunk(vec![ChatChunkChoice { index, delta, logprobs, finish_reason }], None)
    }

    fn delta(&self, choice: u32, part: Part) -> Option<ChatDelta> {
        let call = |index: usize, id, name, arguments| {
            let function = DeltaFunction { name, arguments };
            let kind = function.name.is_some().then(|| "function".to_owned());
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            ChatDelta { tool_calls: vec![DeltaCall { index, id, kind, function }], ..ChatDelta::default() }
        };
        match part {
            Part::Content(text) => Some(ChatDelta { content: Some(text), ..ChatDelta::default() }),
            Part::Reasoning(text) => {
                Some(ChatDelta { reasoning_content: Some(text), ..ChatDelta::default() })
            }
            Part::Call { index, name } => {
                Some(call(index, Some(call_id(self.id, choice, index)), Some(name), String::new()))
            }
            Part::Arguments { index, text } => Some(call(index, None, None, text)),
            Part::CallEnd { .. } => None,
        }
    }
}

impl Shape for Answer {
    fn begin(&mut self, choices: u32, out: &mut BytesMut) {
        for choice in 0..choices {
            let role = Some("assistant".to_owned());
            let delta = ChatDelta { role, content: Some(String::new()), ..ChatDelta::default() };
            let piece = self.piece(choice, delta, None, None);
            put_event(out, &piece);
        }
    }

    fn part(&mut self, choice: u32, part: Part, logprobs: Option<Vec<TokenLogprob>>, out: &mut BytesMut) {
        if let Some(delta) = self.delta(choice, part) {
            let piece = self.piece(choice, delta, logprobs.map(chat_logprobs), None);
            put_event(out, &piece);
        }
    }

    fn end(&mut self, choice: u32, end: End, _: Option<String>, out: &mut BytesMut) {
        let piece = self.piece(choice, ChatDelta::default(), None, Some(end));
        put_event(out, &piece);
    }

    fn complete(&mut self, usage: Usage, out: &mut BytesMut) {
        if self.include_usage {
            let last = self.chunk(Vec::new(), Some(usage));
            put_event(out, &last);
        }
    }

    fn failed(&mut self, problem: &Problem, out: &mut BytesMut) {
        put_event(out, &problem.body());
    }
}

fn chat_logprobs(list: Vec<TokenLogprob>) -> ChatLogprobs {
    ChatLogprobs { content: list.into_iter().map(TokenLogprobs::from).collect(), refusal: None }
}
