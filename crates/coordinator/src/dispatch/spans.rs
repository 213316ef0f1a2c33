//! A request as a trace: a span of the whole, one for each segment, one for each attempt, which its machine goes on from.

use std::time::{Duration, Instant};

use base::MachineId;
use serde_json::Value;
use store::Outcome;
use wire::trace::{Span, SpanKind, TraceContext};

use super::{AttemptEnd, Serving};
use crate::segments::Segment;

impl Serving {
    /// An attempt begins; gives what its machine is told of the trace.
    pub(super) fn begin_span(&mut self) -> Option<String> {
        let tracing = self.work.trace.as_ref()?;
        // Where nothing is recorded here, the machine goes on from the caller's own span.
        let span = if tracing.records { self.core.span_id() } else { tracing.at.span };
        self.attempt_span = Some((span, Instant::now()));
        Some(TraceContext { span, ..tracing.at }.to_string())
    }

    /// The attempt is over.
    pub(super) fn end_span(&mut self, machine: MachineId, ended: &AttemptEnd) {
        let Some((span, began)) = self.attempt_span.take() else { return };
        let error = match ended {
            AttemptEnd::Completed(_) => None,
            AttemptEnd::Again(_) => Some("it goes on elsewhere".to_owned()),
            AttemptEnd::Stop(_) => Some("it ended with its request".to_owned()),
        };
        let tokens = self.generated().saturating_sub(self.resumed_at);
        let attributes =
            vec![("phalanx.machine", Value::from(machine.to_string())), ("phalanx.tokens", tokens.into())];
        self.tell_span((span, "attempt", SpanKind::Client), (began, began.elapsed()), attributes, error);
    }

    /// The request is over: the span of the whole, and of each segment.
    pub(super) fn tell_trace(&self, outcome: Outcome) {
        let Some(tracing) = self.work.trace.as_ref().filter(|tracing| tracing.records) else { return };
        for segment in Segment::ALL {
            let timings = &self.work.timings;
            if let (Some(began), Some(span)) = (timings.began(segment), timings.get(segment)) {
                let id = self.core.span_id();
                let about = (id, segment.name(), SpanKind::Internal);
                self.tell_span(about, (began, span), Vec::new(), None);
            }
        }
        let attributes = vec![
            ("phalanx.request", Value::from(self.work.request.to_string())),
            ("phalanx.api", self.work.api.into()),
            ("phalanx.outcome", outcome.as_str().into()),
            ("gen_ai.request.model", self.work.served.name.as_str().into()),
            ("gen_ai.usage.input_tokens", self.prompt_tokens().into()),
            ("gen_ai.usage.output_tokens", self.generated().into()),
        ];
        let error = (outcome != Outcome::Completed).then(|| outcome.as_str().to_owned());
        let (start, end) = times(self.work.arrived, self.work.arrived.elapsed());
        self.core.tell_span(Span {
            at: tracing.at,
            parent: tracing.parent,
            name: "request",
            kind: SpanKind::Server,
            start_unix_ns: start,
            end_unix_ns: end,
            attributes,
            error,
        });
    }

    fn tell_span(
        &self,
        (span, name, kind): (u64, &'static str, SpanKind),
        (began, took): (Instant, Duration),
        attributes: Vec<(&'static str, Value)>,
        error: Option<String>,
    ) {
        let Some(tracing) = self.work.trace.as_ref().filter(|tracing| tracing.records) else { return };
        let (start_unix_ns, end_unix_ns) = times(began, took);
        let at = TraceContext { span, ..tracing.at };
        let parent = Some(tracing.at.span);
        self.core.tell_span(Span { at, parent, name, kind, start_unix_ns, end_unix_ns, attributes, error });
    }
}

/// Wall time of a span that began at `began`, in nanoseconds since 1970.
fn times(began: Instant, took: Duration) -> (u64, u64) {
    let nanos = |span: Duration| u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
    let now = crate::clock::unix_us().saturating_mul(1_000);
    let start = now.saturating_sub(nanos(began.elapsed()));
    (start, start.saturating_add(nanos(took)))
}
