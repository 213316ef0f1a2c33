//! Ollama's API: `/api/chat`, `/api/generate`, `/api/tags`, `/api/show`, `/api/ps`, `/api/version`.

mod models;

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use base::RequestId;
use bytes::BytesMut;
use serde_json::{Value, json};
use wire::RequestError;
use wire::chunk::TokenLogprob;
use wire::ollama::response::{Call as ToolCall, ErrorBody, Function, Line, Message, Spent};
use wire::ollama::{Asked, parse_chat, parse_generate};
use wire::openai::response::{TokenLogprobs, Usage};

use super::answer::{Called, Choice, End, Part, Whole, collect};
use super::call::Call;
use super::messages::arguments;
use super::prepare::prepare;
use super::stream::{Shape, put_json, respond, whole};
use crate::clock::now_rfc3339;
use crate::core::Core;
use crate::problem::Problem;
use crate::segments::{Segment, Timings};

pub(super) use models::{name_of, ps, show, tags, version};

/// Answers a conversation.
pub(super) async fn chat(
    State(core): State<Arc<Core>>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Result<Response, Problem> {
    let (mut call, body) = Call::admit(&core, id, "ollama_chat", request).await?;
    let asked = call.parse(body, parse_chat).await?;
    answer(&core, call, asked, true).await
}

/// Continues a text.
pub(super) async fn generate(
    State(core): State<Arc<Core>>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Result<Response, Problem> {
    let (mut call, body) = Call::admit(&core, id, "ollama_generate", request).await?;
    let asked = call.parse(body, parse_generate).await?;
    answer(&core, call, asked, false).await
}

/// What Ollama manages in its own folder, and Phalanx on its machines.
pub(super) async fn elsewhere(uri: Uri) -> Problem {
    let path: String = uri.path().chars().take(100).collect();
    let message = format!(
        "{path} is not served: models are placed on machines by the operator (see `phalanx provider --help`)"
    );
    Problem::Request(RequestError { message, param: None, code: "unsupported_call" })
}

async fn answer(core: &Arc<Core>, call: Call, asked: Asked, chat: bool) -> Result<Response, Problem> {
    let (id, arrived) = (call.request, call.arrived);
    let mut asked = match asked {
        Asked::Answer(asked) => *asked,
        Asked::Load(model) => return loaded(core, &model, chat),
    };
    asked.model = models::name_of(core, &asked.model);
    let stream = asked.generation.stream;
    let mut prepared = prepare(core, call, asked).await?;
    let answer = Answer {
        id,
        model: prepared.served.name.as_str().to_owned(),
        chat,
        arrived,
        calls: Vec::new(),
        end: End::Stop,
        usage: Usage::default(),
    };
    let said = prepared.take_said();
    let answering = prepared.begin(core);
    if stream {
        return respond(answering, said, answer).await;
    }
    let got = collect(answering).await?;
    let timings = got.timings.clone();
    Ok(whole(&answer.whole(got), &said, &timings))
}

/// A model is always there: whoever asks for nothing else is told so.
fn loaded(core: &Core, model: &str, chat: bool) -> Result<Response, Problem> {
    let name = models::name_of(core, model);
    super::prepare::served(core, &name)?;
    let line = Line {
        model: name,
        created_at: now_rfc3339(),
        message: chat.then(|| Message { role: "assistant", ..Message::default() }),
        response: (!chat).then(String::new),
        done: true,
        done_reason: Some("load"),
        ..Line::default()
    };
    Ok((StatusCode::OK, Json(line)).into_response())
}

struct Answer {
    id: RequestId,
    model: String,
    chat: bool,
    arrived: Instant,
    /// Calls that are not whole yet: they are told in one piece.
    calls: Vec<Called>,
    end: End,
    usage: Usage,
}

impl Answer {
    fn line(&self) -> Line {
        Line { model: self.model.clone(), created_at: now_rfc3339(), ..Line::default() }
    }

    fn said(&self, content: String, thinking: Option<String>, tool_calls: Vec<ToolCall>) -> Line {
        if self.chat {
            let message = Message { role: "assistant", content, thinking, tool_calls };
            Line { message: Some(message), ..self.line() }
        } else {
            Line { response: Some(content), thinking, ..self.line() }
        }
    }

    fn tool_call(&self, index: usize, call: Called) -> ToolCall {
        let function = Function { index, name: call.name, arguments: arguments(&call.arguments) };
        ToolCall { id: super::chat::call_id(self.id, 0, index), function }
    }

    fn ended(&self, line: Line, timings: &Timings) -> Line {
        let ns = |span: std::time::Duration| u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        let segment = |segment| ns(timings.get(segment).unwrap_or_default());
        let spent = Spent {
            total_duration: ns(self.arrived.elapsed()),
            load_duration: 0,
            prompt_eval_count: self.usage.prompt_tokens,
            prompt_eval_duration: segment(Segment::FirstToken),
            eval_count: self.usage.completion_tokens,
            eval_duration: segment(Segment::Stream),
        };
        let done_reason = match self.end {
            End::Stop | End::Calls => "stop",
            End::Length => "length",
        };
        Line { done: true, done_reason: Some(done_reason), spent: Some(spent), ..line }
    }

    fn whole(mut self, got: Whole) -> Line {
        self.usage = got.usage;
        let choice = got.choices.into_iter().next().unwrap_or_else(Choice::empty);
        self.end = choice.end;
        let calls = choice.calls.into_iter().enumerate();
        let calls = calls.map(|(index, call)| self.tool_call(index, call)).collect();
        let thinking = (!choice.reasoning.is_empty()).then_some(choice.reasoning);
        let mut line = self.said(choice.content, thinking, calls);
        line.logprobs = choice.logprobs.map(logprobs);
        self.ended(line, &got.timings)
    }

    fn put(line: &Line, out: &mut BytesMut) {
        put_json(out, line);
        out.extend_from_slice(b"\n");
    }
}

fn logprobs(list: Vec<TokenLogprob>) -> Vec<Value> {
    list.into_iter().map(|of| json!(TokenLogprobs::from(of))).collect()
}

impl Shape for Answer {
    const CONTENT_TYPE: &'static str = "application/x-ndjson";

    fn part(&mut self, _: u32, part: Part, with: Option<Vec<TokenLogprob>>, out: &mut BytesMut) {
        let mut line = match part {
            Part::Content(text) => self.said(text, None, Vec::new()),
            Part::Reasoning(text) => self.said(String::new(), Some(text), Vec::new()),
            Part::Call { index, .. } | Part::Arguments { index, .. } => {
                let mut choice = Choice { calls: std::mem::take(&mut self.calls), ..Choice::empty() };
                debug_assert!(index <= choice.calls.len());
                choice.add(part, None);
                self.calls = choice.calls;
                return;
            }
            Part::CallEnd { index } => {
                let Some(call) = self.calls.get_mut(index).map(std::mem::take) else { return };
                let call = self.tool_call(index, call);
                self.said(String::new(), None, vec![call])
            }
        };
        line.logprobs = with.map(logprobs);
        Self::put(&line, out);
    }

    fn end(&mut self, _: u32, end: End, _: Option<String>, _: &mut BytesMut) {
        self.end = end;
    }

    fn complete(&mut self, usage: Usage, _: &mut BytesMut) {
        self.usage = usage;
    }

    fn done(&mut self, timings: &Timings, out: &mut BytesMut) {
        let line = self.ended(self.said(String::new(), None, Vec::new()), timings);
        Self::put(&line, out);
    }

    fn failed(&mut self, problem: &Problem, out: &mut BytesMut) {
        put_json(out, &ErrorBody { error: problem.to_string() });
        out.extend_from_slice(b"\n");
    }

    /// Lines are all that there is: nothing can be said before the first.
    fn waiting(&mut self, _: &mut BytesMut) {}
}
