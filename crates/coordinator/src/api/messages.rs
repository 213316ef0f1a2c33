//! `POST /v1/messages` and `POST /v1/messages/count_tokens`: Anthropic's API.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use axum::{Extension, Json};
use base::RequestId;
use bytes::BytesMut;
use serde_json::{Map, Value, json};
use wire::anthropic::response::{Block, Message, MessageUsage};
use wire::anthropic::{parse_count, parse_message};
use wire::chunk::TokenLogprob;
use wire::openai::response::Usage;
use wire::request::Source;

use super::answer::{Choice, End, Part, Whole, collect};
use super::call::Call;
use super::prepare::{count, prepare};
use super::speech::anthropic_error;
use super::stream::{Shape, put_named, put_timings, respond, whole};
use crate::core::Core;
use crate::problem::Problem;
use crate::segments::Timings;

/// Thinking is signed by those who check it later; nobody does here, and clients want a text.
const SIGNATURE: &str = "phalanx";

/// Answers a conversation.
pub(super) async fn create(
    State(core): State<Arc<Core>>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Result<Response, Problem> {
    let (mut call, body) = Call::admit(&core, id, "messages", request).await?;
    let asked = call.parse(body, parse_message).await?;
    let stream = asked.generation.stream;
    let thinks = matches!(&asked.source, Source::Chat(chat) if chat.effort != Some("none"));
    let mut prepared = prepare(&core, call, asked).await?;
    let answer = Answer {
        id,
        model: prepared.served.name.as_str().to_owned(),
        prompt_tokens: prepared.prompt_tokens,
        thinks,
        open: None,
        blocks: 0,
        end: End::Stop,
        stop_text: None,
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

/// Counts a prompt's tokens, as the model would be given them.
pub(super) async fn count_tokens(
    State(core): State<Arc<Core>>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let (mut call, body) = Call::admit(&core, id, "count_tokens", request).await?;
    let asked = call.parse(body, parse_count).await?;
    let tokens = count(&core, asked).await?;
    Ok(Json(json!({"input_tokens": tokens})))
}

/// What kind of block is being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Thinking,
    Call,
}

struct Answer {
    id: RequestId,
    model: String,
    prompt_tokens: u32,
    thinks: bool,
    open: Option<Kind>,
    blocks: usize,
    end: End,
    stop_text: Option<String>,
}

fn call_id(id: RequestId, index: usize) -> String {
    format!("toolu_{:032x}_{index}", id.0)
}

impl Answer {
    fn stop_reason(&self) -> &'static str {
        match self.end {
            End::Length => "max_tokens",
            End::Calls => "tool_use",
            End::Stop if self.stop_text.is_some() => "stop_sequence",
            End::Stop => "end_turn",
        }
    }

    fn message(
        &self,
        content: Vec<Block>,
        stop_reason: Option<&'static str>,
        usage: MessageUsage,
    ) -> Message {
        Message {
            id: format!("msg_{:032x}", self.id.0),
            kind: "message",
            role: "assistant",
            model: self.model.clone(),
            content,
            stop_reason,
            stop_sequence: self.stop_text.clone(),
            usage,
        }
    }

    fn whole(mut self, got: Whole) -> Message {
        let usage = got.usage.into();
        let choice = got.choices.into_iter().next().unwrap_or_else(Choice::empty);
        self.end = choice.end;
        self.stop_text = choice.stop_text;
        let mut content = Vec::new();
        if self.thinks && !choice.reasoning.is_empty() {
            let signature = SIGNATURE.to_owned();
            content.push(Block::Thinking { thinking: choice.reasoning, signature });
        }
        if !choice.content.is_empty() {
            content.push(Block::Text { text: choice.content });
        }
        for (index, call) in choice.calls.into_iter().enumerate() {
            let input = arguments(&call.arguments);
            content.push(Block::ToolUse { id: call_id(self.id, index), name: call.name, input });
        }
        self.message(content, Some(self.stop_reason()), usage)
    }

    fn start(&mut self, kind: Kind, block: &Value, out: &mut BytesMut) {
        self.stop(out);
        let event = json!({"type": "content_block_start", "index": self.blocks, "content_block": block});
        put_named(out, "content_block_start", &event);
        self.open = Some(kind);
    }

    fn delta(&self, delta: &Value, out: &mut BytesMut) {
        let event = json!({"type": "content_block_delta", "index": self.blocks, "delta": delta});
        put_named(out, "content_block_delta", &event);
    }

    fn stop(&mut self, out: &mut BytesMut) {
        let Some(kind) = self.open.take() else { return };
        if kind == Kind::Thinking {
            self.delta(&json!({"type": "signature_delta", "signature": SIGNATURE}), out);
        }
        let event = json!({"type": "content_block_stop", "index": self.blocks});
        put_named(out, "content_block_stop", &event);
        self.blocks += 1;
    }
}

/// Arguments as the object that they should be; an answer that was cut may have half of one.
pub(super) fn arguments(text: &str) -> Map<String, Value> {
    serde_json::from_str(text).unwrap_or_default()
}

impl Shape for Answer {
    fn begin(&mut self, _choices: u32, out: &mut BytesMut) {
        let usage = MessageUsage {
            input_tokens: self.prompt_tokens,
            cache_creation_input_tokens: 0,
            cache_read_input_tokens: 0,
            output_tokens: 0,
        };
        let message = self.message(Vec::new(), None, usage);
        put_named(out, "message_start", &json!({"type": "message_start", "message": message}));
    }

    fn part(&mut self, _: u32, part: Part, _: Option<Vec<TokenLogprob>>, out: &mut BytesMut) {
        match part {
            Part::Content(text) => {
                if text.is_empty() {
                    return;
                }
                if self.open != Some(Kind::Text) {
                    self.start(Kind::Text, &json!({"type": "text", "text": ""}), out);
                }
                self.delta(&json!({"type": "text_delta", "text": text}), out);
            }
            Part::Reasoning(text) => {
                if !self.thinks {
                    return;
                }
                if self.open != Some(Kind::Thinking) {
                    let block = json!({"type": "thinking", "thinking": "", "signature": ""});
                    self.start(Kind::Thinking, &block, out);
                }
                self.delta(&json!({"type": "thinking_delta", "thinking": text}), out);
            }
            Part::Call { index, name } => {
                let id = call_id(self.id, index);
                self.start(
                    Kind::Call,
                    &json!({"type": "tool_use", "id": id, "name": name, "input": {}}),
                    out,
                );
            }
            Part::Arguments { text, .. } => {
                self.delta(&json!({"type": "input_json_delta", "partial_json": text}), out);
            }
            Part::CallEnd { .. } => self.stop(out),
        }
    }

    fn end(&mut self, _: u32, end: End, stop_text: Option<String>, out: &mut BytesMut) {
        self.stop(out);
        self.end = end;
        self.stop_text = stop_text;
    }

    fn complete(&mut self, usage: Usage, out: &mut BytesMut) {
        let delta = json!({"stop_reason": self.stop_reason(), "stop_sequence": self.stop_text});
        let event = json!({"type": "message_delta", "delta": delta, "usage": MessageUsage::from(usage)});
        put_named(out, "message_delta", &event);
    }

    fn done(&mut self, timings: &Timings, out: &mut BytesMut) {
        put_timings(timings, out);
        put_named(out, "message_stop", &json!({"type": "message_stop"}));
    }

    fn failed(&mut self, problem: &Problem, out: &mut BytesMut) {
        put_named(out, "error", &anthropic_error(problem, Some(self.id)));
    }

    fn waiting(&mut self, out: &mut BytesMut) {
        put_named(out, "ping", &json!({"type": "ping"}));
    }
}
