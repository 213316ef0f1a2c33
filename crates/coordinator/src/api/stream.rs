//! From a request's events to HTTP: server-sent events as they come, or one body at the end.

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::dispatch::{Delta, Event, Finished};
use crate::problem::Problem;
use crate::segments::Timings;

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
const IGNORED: HeaderName = HeaderName::from_static("x-phalanx-ignored-parameters");
const SEED: HeaderName = HeaderName::from_static("x-phalanx-seed");

/// How one API writes a streamed answer.
pub(super) trait Shape: Send + 'static {
    /// What comes before the first piece, if anything.
    fn begin(&mut self, out: &mut BytesMut);
    /// A piece.
    fn delta(&mut self, delta: Delta, out: &mut BytesMut);
    /// The end, with usage where it was asked for.
    fn finish(&mut self, finished: Finished, out: &mut BytesMut);
}

/// Appends one server-sent event.
pub(super) fn put_event(out: &mut BytesMut, value: &impl Serialize) {
    out.extend_from_slice(b"data: ");
    let json = serde_json::to_vec(value).expect("answers have no map keys that JSON lacks");
    out.extend_from_slice(&json);
    out.extend_from_slice(b"\n\n");
}

/// What a call's answer says in its header.
pub(super) struct Said {
    pub(super) seed: u64,
    pub(super) ignored: Vec<String>,
}

impl Said {
    fn put(&self, headers: &mut HeaderMap, timings: Option<&Timings>) {
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
    }
}

/// Answers with server-sent events. The status line waits for the first token, so that whatever fails before it has
/// its own status; only a caller that has waited long gets it sooner.
pub(super) async fn respond(
    mut events: mpsc::Receiver<Event>,
    said: Said,
    shape: impl Shape,
) -> Result<Response, Problem> {
    let first = events.recv().await.unwrap_or(Event::Failed(Problem::Internal("the request's task ended")));
    let timings = match &first {
        Event::Failed(problem) => return Err(problem.clone()),
        Event::Started(timings) => Some(timings.clone()),
        _ => None,
    };
    let writing = Writing { events, shape, pending: VecDeque::from([first]), begun: false, over: false };
    let body = Body::from_stream(futures_util::stream::unfold(writing, Writing::next));
    let mut response = (StatusCode::OK, body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies that buffer would hold tokens back.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    said.put(headers, timings.as_ref());
    Ok(response)
}

struct Writing<S> {
    events: mpsc::Receiver<Event>,
    shape: S,
    pending: VecDeque<Event>,
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
        let mut event = match self.pending.pop_front() {
            Some(event) => Some(event),
            None => self.events.recv().await,
        };
        loop {
            let Some(some) = event else {
                // A task that ends without a terminal has panicked.
                put_event(&mut out, &Problem::Internal("the request's task ended").body());
                self.over = true;
                break;
            };
            self.write(some, &mut out);
            if self.over {
                break;
            }
            match self.events.try_recv() {
                Ok(more) => event = Some(more),
                Err(_) if !out.is_empty() => break,
                Err(_) => event = self.events.recv().await,
            }
        }
        Some((Ok(out.freeze()), self))
    }

    fn write(&mut self, event: Event, out: &mut BytesMut) {
        match event {
            Event::Waiting => out.extend_from_slice(b": waiting for a machine\n\n"),
            Event::Started(_) => self.begin(out),
            Event::Delta(delta) => {
                self.begin(out);
                self.shape.delta(delta, out);
            }
            Event::Finished(finished) => {
                self.begin(out);
                self.shape.finish(finished, out);
            }
            Event::Settled(timings) => {
                out.extend_from_slice(b": server-timing ");
                out.extend_from_slice(timings.server_timing().as_bytes());
                out.extend_from_slice(b"\n\ndata: [DONE]\n\n");
                self.over = true;
            }
            Event::Failed(problem) => {
                put_event(out, &problem.body());
                self.over = true;
            }
        }
    }

    fn begin(&mut self, out: &mut BytesMut) {
        if !self.begun {
            self.begun = true;
            self.shape.begin(out);
        }
    }
}

/// A whole answer. Not `Debug`.
pub(super) struct Whole {
    pub(super) deltas: Vec<Delta>,
    pub(super) finished: Finished,
    pub(super) timings: Timings,
}

/// Waits for the whole answer.
pub(super) async fn collect(mut events: mpsc::Receiver<Event>) -> Result<Whole, Problem> {
    let mut deltas = Vec::new();
    let mut end = None;
    while let Some(event) = events.recv().await {
        match event {
            Event::Waiting | Event::Started(_) => {}
            Event::Delta(delta) => deltas.push(delta),
            Event::Finished(finished) => end = Some(finished),
            Event::Settled(timings) => {
                let finished = end.ok_or(Problem::Internal("an answer was settled before its end"))?;
                return Ok(Whole { deltas, finished, timings });
            }
            Event::Failed(problem) => return Err(problem),
        }
    }
    Err(Problem::Internal("the request's task ended"))
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
