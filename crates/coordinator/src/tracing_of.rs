//! Where a call stands in a trace: in its caller's, or at the beginning of one of its own.

use axum::http::HeaderMap;
use base::RequestId;
use tokio::sync::mpsc::error::TrySendError;
use wire::trace::{Span, TraceContext};

use crate::core::Core;
use crate::metrics::Metrics;

const TRACEPARENT: &str = "traceparent";

/// A request's place in a trace.
#[derive(Debug, Clone)]
pub(crate) struct Tracing {
    /// The trace, and the request's own span in it; where nothing is recorded here, its caller's.
    pub(crate) at: TraceContext,
    /// Its caller's span.
    pub(crate) parent: Option<u64>,
    /// Whether its spans are told.
    pub(crate) records: bool,
}

impl Core {
    /// Of a call: nothing where its caller names no trace and nobody collects any.
    pub(crate) fn tracing_of(&self, request: RequestId, headers: &HeaderMap) -> Option<Tracing> {
        let named = headers.get(TRACEPARENT).and_then(|value| value.to_str().ok());
        let named = named.and_then(TraceContext::parse);
        let records = self.spans.is_some() && named.is_none_or(|at| at.sampled);
        match (named, records) {
            (None, false) => None,
            (Some(at), false) => Some(Tracing { at, parent: None, records }),
            (named, true) => {
                let trace = named.map_or(request.0, |at| at.trace).max(1);
                let at = TraceContext { trace, span: self.span_id(), sampled: true };
                Some(Tracing { at, parent: named.map(|at| at.span), records })
            }
        }
    }

    /// A new span's identity; 0 is none.
    pub(crate) fn span_id(&self) -> u64 {
        self.seed().max(1)
    }

    /// Tells a span to whoever collects them. Never waits: what finds no room is counted and gone.
    pub(crate) fn tell_span(&self, span: Span) {
        let Some(spans) = &self.spans else { return };
        if let Err(TrySendError::Full(_)) = spans.try_send(span) {
            Metrics::count(&self.metrics.spans_dropped, "full");
        }
    }
}
