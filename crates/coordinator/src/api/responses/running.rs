//! A response on its way: its pieces as numbered events, kept, and read by whoever listens.

use std::convert::Infallible;
use std::sync::Arc;

use base::RequestId;
use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use serde_json::{Value, json};
use wire::chunk::TokenLogprob;
use wire::openai::response::TokenLogprobs;

use super::kept::Kept;
use super::object::{self, ResponseBody};
use crate::api::answer::{Answering, End, Part, Told};
use crate::api::chat::call_id;
use crate::api::stream::put_named;
use crate::clock::unix_s;
use crate::core::{Core, span};

/// An item that is being written.
enum Open {
    Message { text: String, logprobs: Vec<Value> },
    Reasoning { text: String },
    Call { index: usize, name: String, arguments: String },
}

/// Writes a response.
pub(super) struct Writer {
    request: RequestId,
    pub(super) body: ResponseBody,
    pub(super) kept: Arc<Kept>,
    open: Option<Open>,
    events: Vec<Bytes>,
    sequence: u64,
    end: End,
    begun: bool,
    /// What of the response was told last.
    published: Option<(&'static str, usize, bool)>,
}

impl Writer {
    pub(super) fn new(request: RequestId, body: ResponseBody, kept: Arc<Kept>) -> Self {
        Self {
            request,
            body,
            kept,
            open: None,
            events: Vec::new(),
            sequence: 0,
            end: End::Stop,
            begun: false,
            published: None,
        }
    }

    fn event(&mut self, kind: &str, mut event: Value) {
        event["type"] = json!(kind);
        event["sequence_number"] = json!(self.sequence);
        self.sequence += 1;
        let mut out = BytesMut::new();
        put_named(&mut out, kind, &event);
        self.events.push(out.freeze());
    }

    fn whole_event(&mut self, kind: &str) {
        let response = serde_json::to_value(&self.body).unwrap_or(Value::Null);
        self.event(kind, json!({"response": response}));
    }

    /// The first events. What runs in the background is queued at first.
    pub(super) fn begin(&mut self, queued: bool) {
        if std::mem::replace(&mut self.begun, true) {
            return;
        }
        self.body.status = if queued { "queued" } else { "in_progress" };
        self.whole_event("response.created");
        if queued {
            self.whole_event("response.queued");
        } else {
            self.whole_event("response.in_progress");
        }
        self.publish(false);
    }

    /// Takes what comes, and tells it.
    pub(super) fn take(&mut self, told: Told) {
        self.begin(false);
        let mut over = false;
        match told {
            Told::Waiting => return,
            Told::Started(_) => {
                if self.body.status == "queued" {
                    self.body.status = "in_progress";
                    self.whole_event("response.in_progress");
                }
            }
            Told::Part { part, logprobs, .. } | Told::Had { part, logprobs, .. } => self.part(part, logprobs),
            Told::End { end, .. } => {
                self.end = end;
                self.close(end == End::Length);
            }
            Told::Complete(usage, _) => self.body.usage = Some(object::usage(usage)),
            Told::Settled(_) => {
                self.finish();
                over = true;
            }
            Told::Failed(problem) => {
                self.close(true);
                self.body.status = "failed";
                self.body.error = Some(object::error(&problem));
                self.whole_event("response.failed");
                over = true;
            }
        }
        self.publish(over);
    }

    fn finish(&mut self) {
        let kind = if self.end == End::Length {
            self.body.status = "incomplete";
            self.body.incomplete_details = Some(json!({"reason": "max_output_tokens"}));
            "response.incomplete"
        } else {
            self.body.status = "completed";
            self.body.completed_at = Some(unix_s());
            "response.completed"
        };
        self.whole_event(kind);
    }

    /// It was cancelled.
    fn cancelled(&mut self) {
        self.begin(false);
        self.close(true);
        self.body.status = "cancelled";
        // This API has no event of its own for it; its status says what it was.
        self.whole_event("response.incomplete");
        self.publish(true);
    }

    /// Tells what there is. The response itself is written anew only where it changed: not with every piece.
    fn publish(&mut self, over: bool) {
        let complete = matches!(self.body.status, "completed" | "incomplete");
        let state = (self.body.status, self.body.output.len(), self.body.usage.is_some());
        let changed = self.published.replace(state) != Some(state);
        let body = changed.then(|| serde_json::to_value(&self.body).unwrap_or(Value::Null));
        self.kept.add(std::mem::take(&mut self.events), body, complete, over);
    }

    fn item_id(&self, kind: &str) -> String {
        format!("{kind}_{:032x}_{}", self.request.0, self.body.output.len())
    }

    /// Where events say that they belong.
    fn place(&self, kind: &str) -> Value {
        json!({"item_id": self.item_id(kind), "output_index": self.body.output.len(), "content_index": 0})
    }

    fn put(&mut self, name: &str, kind: &str, more: Value) {
        let mut event = self.place(kind);
        if kind == "fc"
            && let Some(fields) = event.as_object_mut()
        {
            fields.remove("content_index");
        }
        if let (Some(fields), Value::Object(more)) = (event.as_object_mut(), more) {
            fields.extend(more);
        }
        self.event(name, event);
    }

    fn part(&mut self, part: Part, logprobs: Option<Vec<TokenLogprob>>) {
        match part {
            Part::Content(text) => {
                if !matches!(self.open, Some(Open::Message { .. })) {
                    if text.is_empty() && logprobs.is_none() {
                        return;
                    }
                    self.start(Open::Message { text: String::new(), logprobs: Vec::new() });
                }
                let fresh: Vec<Value> =
                    logprobs.into_iter().flatten().map(|of| json!(TokenLogprobs::from(of))).collect();
                if let Some(Open::Message { text: all, logprobs }) = &mut self.open {
                    all.push_str(&text);
                    logprobs.extend(fresh.iter().cloned());
                }
                self.put("response.output_text.delta", "msg", json!({"delta": text, "logprobs": fresh}));
            }
            Part::Reasoning(text) => {
                if !matches!(self.open, Some(Open::Reasoning { .. })) {
                    self.start(Open::Reasoning { text: String::new() });
                }
                if let Some(Open::Reasoning { text: all }) = &mut self.open {
                    all.push_str(&text);
                }
                self.put("response.reasoning_text.delta", "rs", json!({"delta": text}));
            }
            Part::Call { index, name } => {
                self.start(Open::Call { index, name, arguments: String::new() });
            }
            Part::Arguments { text, .. } => {
                if let Some(Open::Call { arguments, .. }) = &mut self.open {
                    arguments.push_str(&text);
                }
                self.put("response.function_call_arguments.delta", "fc", json!({"delta": text}));
            }
            Part::CallEnd { .. } => self.close(false),
        }
    }

    fn start(&mut self, open: Open) {
        self.close(false);
        let item = self.item(&open, "in_progress");
        let output_index = self.body.output.len();
        self.event("response.output_item.added", json!({"output_index": output_index, "item": item}));
        match &open {
            Open::Message { .. } => {
                let part = json!({"type": "output_text", "text": "", "annotations": [], "logprobs": []});
                self.put("response.content_part.added", "msg", json!({"part": part}));
            }
            Open::Reasoning { .. } => {
                let part = json!({"type": "reasoning_text", "text": ""});
                self.put("response.content_part.added", "rs", json!({"part": part}));
            }
            Open::Call { .. } => {}
        }
        self.open = Some(open);
    }

    /// An item, as it stands.
    fn item(&self, open: &Open, status: &str) -> Value {
        let begun = status != "in_progress";
        match open {
            Open::Message { text, logprobs } => {
                let part =
                    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs});
                let content = if begun { json!([part]) } else { json!([]) };
                json!({
                    "id": self.item_id("msg"), "type": "message", "role": "assistant", "status": status,
                    "content": content,
                })
            }
            Open::Reasoning { text } => {
                let content =
                    if begun { json!([{"type": "reasoning_text", "text": text}]) } else { json!([]) };
                json!({
                    "id": self.item_id("rs"), "type": "reasoning", "status": status, "summary": [],
                    "content": content,
                })
            }
            Open::Call { index, name, arguments } => json!({
                "id": self.item_id("fc"), "type": "function_call", "status": status,
                "call_id": call_id(self.request, 0, *index), "name": name, "arguments": arguments,
            }),
        }
    }

    /// The open item is whole, or cut.
    fn close(&mut self, cut: bool) {
        let Some(open) = self.open.take() else { return };
        let item = self.item(&open, if cut { "incomplete" } else { "completed" });
        match &open {
            Open::Message { text, logprobs } => {
                self.put("response.output_text.done", "msg", json!({"text": text, "logprobs": logprobs}));
                self.put("response.content_part.done", "msg", json!({"part": item["content"][0]}));
            }
            Open::Reasoning { text } => {
                self.put("response.reasoning_text.done", "rs", json!({"text": text}));
                self.put("response.content_part.done", "rs", json!({"part": item["content"][0]}));
            }
            Open::Call { name, arguments, .. } => {
                let done = json!({"name": name, "arguments": arguments});
                self.put("response.function_call_arguments.done", "fc", done);
            }
        }
        let output_index = self.body.output.len();
        self.event("response.output_item.done", json!({"output_index": output_index, "item": item}));
        self.body.output.push(item);
    }
}

/// Takes an answer to its end, or until it is cancelled.
pub(super) async fn run(mut writer: Writer, mut answering: Answering) {
    let cancel = writer.kept.cancel.clone();
    loop {
        tokio::select! {
            biased;
            () = cancel.cancelled() => {
                writer.cancelled();
                return;
            }
            told = answering.next() => match told {
                Some(told) => writer.take(told),
                None => return,
            },
        }
    }
}

/// Someone reads a response's events.
pub(super) struct Progress {
    kept: Arc<Kept>,
    told: tokio::sync::watch::Receiver<(u64, bool)>,
    from: u64,
    every: std::time::Duration,
    over: bool,
    /// The response ends with its reader.
    owner: bool,
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.owner {
            self.kept.cancel.cancel();
        }
    }
}

impl Progress {
    /// The events from one on, as they come.
    pub(super) fn stream(
        core: &Core,
        kept: Arc<Kept>,
        from: u64,
        owner: bool,
    ) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static {
        let every = span(core.config.requests.keepalive_us);
        let told = kept.watch();
        let progress = Self { kept, told, from, every, over: false, owner };
        futures_util::stream::unfold(progress, Self::next)
    }

    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Self)> {
        while !self.over {
            self.told.mark_unchanged();
            let (events, more) = self.kept.events(self.from);
            self.over = !more;
            if !events.is_empty() {
                self.from += events.len() as u64;
                return Some((Ok(Bytes::from(events.concat())), self));
            }
            if self.over {
                break;
            }
            match tokio::time::timeout(self.every, self.told.changed()).await {
                Ok(Ok(())) => {}
                // The sender lives in `kept`.
                Ok(Err(_)) => break,
                Err(_) => return Some((Ok(Bytes::from_static(b": still working\n\n")), self)),
            }
        }
        None
    }
}
