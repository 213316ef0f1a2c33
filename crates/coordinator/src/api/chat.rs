//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use base::RequestId;
use bytes::BytesMut;
use wire::chunk::TokenLogprob;
use wire::openai::parse_chat;
use wire::openai::response::{
    ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatDelta, ChatLogprobs, ChatMessage, DeltaCall,
    DeltaFunction, FunctionCall, MessageCall, TokenLogprobs, Usage,
};

use super::answer::{Choice, End, Part, Whole, collect};
use super::call::Call;
use super::prepare::prepare;
use super::stream::{Shape, put_event, respond, whole};
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
        id,
        created: unix_s(),
        model: prepared.served.name.as_str().to_owned(),
        fingerprint: super::fingerprint(&prepared.served),
        include_usage,
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
            put_event(out, &self.piece(choice, delta, None, None));
        }
    }

    fn part(&mut self, choice: u32, part: Part, logprobs: Option<Vec<TokenLogprob>>, out: &mut BytesMut) {
        if let Some(delta) = self.delta(choice, part) {
            put_event(out, &self.piece(choice, delta, logprobs.map(chat_logprobs), None));
        }
    }

    fn end(&mut self, choice: u32, end: End, _: Option<String>, out: &mut BytesMut) {
        put_event(out, &self.piece(choice, ChatDelta::default(), None, Some(end)));
    }

    fn complete(&mut self, usage: Usage, out: &mut BytesMut) {
        if self.include_usage {
            put_event(out, &self.chunk(Vec::new(), Some(usage)));
        }
    }

    fn failed(&mut self, problem: &Problem, out: &mut BytesMut) {
        put_event(out, &problem.body());
    }
}

fn chat_logprobs(list: Vec<TokenLogprob>) -> ChatLogprobs {
    ChatLogprobs { content: list.into_iter().map(TokenLogprobs::from).collect(), refusal: None }
}
