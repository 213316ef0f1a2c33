//! From an answer's pieces to HTTP: events as they come, or one body at the end.

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use serde::Serialize;
use wire::chunk::TokenLogprob;
use wire::openai::response::Usage;

use super::answer::{Answering, End, Part, Told};
use crate::problem::Problem;
use crate::segments::Timings;

pub(super) const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
pub(super) const IGNORED: HeaderName = HeaderName::from_static("x-phalanx-ignored-parameters");
/// Only these streams have a place for marks.
const EVENTS: &str = "text/event-stream";
const SEED: HeaderName = HeaderName::from_static("x-phalanx-seed");

/// How one API writes a streamed answer.
pub(super) trait Shape: Send + 'static {
    /// What a stream of it is.
    const CONTENT_TYPE: &'static str = "text/event-stream; charset=utf-8";

    /// What comes before the first piece, if anything.
    fn begin(&mut self, _choices: u32, _out: &mut BytesMut) {}

    /// A piece of a choice.
    fn part(&mut self, choice: u32, part: Part, logprobs: Option<Vec<TokenLogprob>>, out: &mut BytesMut);

    /// A choice is whole.
    fn end(&mut self, choice: u32, end: End, stop_text: Option<String>, out: &mut BytesMut);

    /// All choices are.
    fn complete(&mut self, usage: Usage, out: &mut BytesMut);

    /// The last word of an answer that is whole.
    fn done(&mut self, timings: &Timings, out: &mut BytesMut) {
        put_timings(timings, out);
        out.extend_from_slice(b"data: [DONE]\n\n");
    }

    /// The last word of an answer that broke.
    fn failed(&mut self, problem: &Problem, out: &mut BytesMut);

    /// Nothing yet, and the connection is alive.
    fn waiting(&mut self, out: &mut BytesMut) {
        out.extend_from_slice(b": waiting for a machine\n\n");
    }
}

/// The segments of a request, as a comment.
pub(super) fn put_timings(timings: &Timings, out: &mut BytesMut) {
    out.extend_from_slice(b": server-timing ");
    out.extend_from_slice(timings.server_timing().as_bytes());
    out.extend_from_slice(b"\n\n");
}

/// Appends one server-sent event without a name.
pub(super) fn put_event(out: &mut BytesMut, value: &impl Serialize) {
    out.extend_from_slice(b"data: ");
    put_json(out, value);
    out.extend_from_slice(b"\n\n");
}

/// Appends one server-sent event with a name.
pub(super) fn put_named(out: &mut BytesMut, name: &str, value: &impl Serialize) {
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\n");
    put_event(out, value);
}

/// Appends JSON.
pub(super) fn put_json(out: &mut BytesMut, value: &impl Serialize) {
    let json = serde_json::to_vec(value).expect("answers have no map keys that JSON lacks");
    out.extend_from_slice(&json);
}

/// What a call's answer says in its header.
pub(super) struct Said {
    pub(super) seed: u64,
    pub(super) ignored: Vec<String>,
    /// What else there is to say: the one place for further headers.
    pub(super) more: Vec<(HeaderName, HeaderValue)>,
}

impl Said {
    pub(super) fn put(&self, headers: &mut HeaderMap, timings: Option<&Timings>) {
        headers.insert(SEED, HeaderValue::from(self.seed));
        if let Some(timings) = timings
            && let Ok(value) = HeaderValue::from_str(&timings.server_timing())
        {
            headers.insert(SERVER_TIMING, value);
        }
        if !self.ignored.is_empty()
            && let Ok(value) = HeaderValue::from_str(&self.ignored.join(", "))
        {
            headers.insert(IGNORED, value);
        }
        headers.extend(self.more.iter().cloned());
    }
}

/// Answers with a stream. The status line waits for the first token, so that whatever fails before it has its own
/// status; only a caller that has waited long gets it sooner.
pub(super) async fn respond<S: Shape>(
    mut answering: Answering,
    said: Said,
    shape: S,
) -> Result<Response, Problem> {
    let ended = || Told::Failed(Box::new(Problem::Internal("an answer ended without its end")));
    let first = answering.next().await.unwrap_or_else(ended);
    let timings = match &first {
        Told::Failed(problem) => return Err((**problem).clone()),
        Told::Started(timings) => Some(timings.clone()),
        _ => None,
    };
    let choices = answering.choices();
    let pending = VecDeque::from([first]);
    let writing = Writing { choices, answering, shape, pending, begun: false, over: false };
    let body = Body::from_stream(futures_util::stream::unfold(writing, Writing::next));
    Ok(streaming(body, S::CONTENT_TYPE, |headers| said.put(headers, timings.as_deref())))
}

/// A response whose body comes as it is made.
pub(super) fn streaming(body: Body, kind: &'static str, say: impl FnOnce(&mut HeaderMap)) -> Response {
    let mut response = (StatusCode::OK, body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies that buffer would hold tokens back.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    say(headers);
    response
}

struct Writing<S> {
    choices: u32,
    answering: Answering,
    shape: S,
    pending: VecDeque<Told>,
    begun: bool,
    over: bool,
}

impl<S: Shape> Writing<S> {
    /// The next bytes: everything that is there, in one piece.
    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Self)> {
        if self.over {
            return None;
        }
        let mut out = BytesMut::new();
        let mut told = match self.pending.pop_front() {
            Some(told) => Some(told),
            None => self.answering.next().await,
        };
        while let Some(some) = told {
            self.over = self.write(some, &mut out);
            if self.over {
                break;
            }
            told = match self.answering.ready() {
                Some(more) => Some(more),
                None if !out.is_empty() => break,
                None => self.answering.next().await,
            };
        }
        Some((Ok(out.freeze()), self))
    }

    /// Writes one thing; true where it was the last.
    fn write(&mut self, told: Told, out: &mut BytesMut) -> bool {
        if !matches!(told, Told::Waiting | Told::Failed(_)) && !std::mem::replace(&mut self.begun, true) {
            // Who comes back has the beginning.
            let mut had = BytesMut::new();
            let to = if self.answering.is_resumed() { &mut had } else { &mut *out };
            self.shape.begin(self.choices, to);
        }
        match told {
            Told::Waiting => self.shape.waiting(out),
            Told::Started(_) => {}
            Told::Part { choice, part, logprobs } => {
                if let Some(mark) = self.answering.mark().filter(|_| S::CONTENT_TYPE.starts_with(EVENTS)) {
                    // Part of the event that follows: what a client that comes back names.
                    out.extend_from_slice(format!("id: {mark}\n").as_bytes());
                }
                self.shape.part(choice, part, logprobs, out);
            }
            // The shape has to know where it is.
            Told::Had { choice, part, logprobs } => {
                self.shape.part(choice, part, logprobs, &mut BytesMut::new());
            }
            Told::End { choice, end, stop_text } => self.shape.end(choice, end, stop_text, out),
            Told::Complete(usage, timings) => {
                self.shape.complete(usage, out);
                self.shape.done(&timings, out);
                return true;
            }
            Told::Settled(_) => {}
            Told::Failed(problem) => {
                self.shape.failed(&problem, out);
                return true;
            }
        }
        false
    }
}

/// One body.
pub(super) fn whole(value: &impl Serialize, said: &Said, timings: &Timings) -> Response {
    let json = serde_json::to_vec(value).expect("answers have no map keys that JSON lacks");
    let mut response = (StatusCode::OK, json).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    said.put(headers, Some(timings));
    response
}
