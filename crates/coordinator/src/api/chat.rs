//! `POST /v1/chat/completions`.

use std::sync::Arc;
use std::time::Instant;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use base::RequestId;
use bytes::BytesMut;
use wire::chunk::TokenLogprob;
use wire::openai::ChatRequest;
use wire::openai::response::{
    ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatDelta, ChatLogprobs, ChatMessage,
    TokenLogprobs, TopLogprob, Usage, finish_reason,
};

use super::prepare::{Call, Source, served, work};
use super::stream::{Said, Shape, Whole, collect, put_event, respond, whole};
use crate::clock::unix_s;
use crate::core::Core;
use crate::dispatch::{Delta, Finished, serve};
use crate::problem::Problem;
use crate::segments::Segment;

/// Continues a chat.
pub(super) async fn create(
    State(core): State<Arc<Core>>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Result<Response, Problem> {
    let (mut call, body) = Call::admit(&core, id, "chat", request).await?;
    let start = Instant::now();
    let asked = ChatRequest::parse(&body)?;
    call.timings.since(Segment::Parse, start);
    let pool = served(&core, &asked.model)?;
    let generation = asked.generation;
    let source = Source::Chat(asked.messages, asked.template_variables);
    let work = work(&core, call, pool, source, &generation).await?;
    let said = Said { seed: work.ask.sampling.seed, ignored: generation.ignored };
    let answer = Answer {
        id: format!("chatcmpl-{:032x}", id.0),
        created: unix_s(),
        model: work.served.name.as_str().to_owned(),
        fingerprint: super::fingerprint(&work.served),
        include_usage: generation.include_usage,
    };
    let events = serve(&core, work);
    if generation.stream {
        return respond(events, said, answer).await;
    }
    let got = collect(events).await?;
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
}

impl Answer {
    fn whole(self, got: Whole) -> ChatCompletion {
        let mut content = String::new();
        let mut logprobs: Option<Vec<TokenLogprobs>> = None;
        for delta in got.deltas {
            content.push_str(&delta.text);
            if let Some(more) = delta.logprobs {
                logprobs.get_or_insert_default().extend(more.into_iter().map(token_logprobs));
            }
        }
        ChatCompletion {
            id: self.id,
            object: "chat.completion".to_owned(),
            created: self.created,
            model: self.model,
            choices: vec![ChatChoice {
                index: 0,
                message: ChatMessage { role: "assistant".to_owned(), content, refusal: None },
                logprobs: logprobs.map(|content| ChatLogprobs { content, refusal: None }),
                finish_reason: finish_reason(got.finished.reason).to_owned(),
            }],
            usage: got.finished.usage,
            system_fingerprint: self.fingerprint,
        }
    }

    fn chunk(&self, choices: Vec<ChatChunkChoice>, usage: Option<Usage>) -> ChatChunk {
        ChatChunk {
            id: self.id.clone(),
            object: "chat.completion.chunk".to_owned(),
            created: self.created,
            model: self.model.clone(),
            system_fingerprint: self.fingerprint.clone(),
            choices,
            usage: self.include_usage.then_some(usage),
        }
    }

    fn piece(&self, delta: ChatDelta, logprobs: Option<ChatLogprobs>, end: Option<&str>) -> ChatChunk {
        let choice = ChatChunkChoice { index: 0, delta, logprobs, finish_reason: end.map(str::to_owned) };
        self.chunk(vec![choice], None)
    }
}

impl Shape for Answer {
    fn begin(&mut self, out: &mut BytesMut) {
        let delta = ChatDelta { role: Some("assistant".to_owned()), content: Some(String::new()) };
        put_event(out, &self.piece(delta, None, None));
    }

    fn delta(&mut self, delta: Delta, out: &mut BytesMut) {
        let logprobs = delta.logprobs.map(|list| ChatLogprobs {
            content: list.into_iter().map(token_logprobs).collect(),
            refusal: None,
        });
        if delta.text.is_empty() && logprobs.is_none() {
            return;
        }
        let delta = ChatDelta { role: None, content: Some(delta.text) };
        put_event(out, &self.piece(delta, logprobs, None));
    }

    fn finish(&mut self, finished: Finished, out: &mut BytesMut) {
        put_event(out, &self.piece(ChatDelta::default(), None, Some(finish_reason(finished.reason))));
        if self.include_usage {
            put_event(out, &self.chunk(Vec::new(), Some(finished.usage)));
        }
    }
}

fn token_logprobs(of: TokenLogprob) -> TokenLogprobs {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    TokenLogprobs {
        token: text(&of.bytes),
        logprob: of.logprob,
        bytes: of.bytes,
        top_logprobs: of
            .top
            .into_iter()
            .map(|(_, bytes, logprob)| TopLogprob { token: text(&bytes), logprob, bytes })
            .collect(),
    }
}
