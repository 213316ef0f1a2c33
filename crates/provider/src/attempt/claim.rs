//! What a machine says of an attempt when it is over: its half of the receipt, signed with its key; and its part of the
//! trace, where anybody collects one.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use base::{AttemptId, ModelName, RequestId};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use tokio::sync::mpsc;
use trust::MachineKeys;
use wire::chunk::Finish;
use wire::job::Job;
use wire::receipt::AttemptUsage;
use wire::trace::{Span, SpanKind, TraceContext};

/// What is known of an attempt before it is computed.
pub(crate) struct Claim {
    keys: Arc<MachineKeys>,
    request: RequestId,
    model: ModelName,
    served: AttemptUsage,
    trace: Option<(TraceContext, mpsc::Sender<Span>)>,
}

impl Claim {
    pub(crate) fn new(
        keys: &Arc<MachineKeys>,
        spans: Option<&mpsc::Sender<Span>>,
        attempt: AttemptId,
        job: &Job,
    ) -> Self {
        let trace = job.ask.trace.as_deref().and_then(TraceContext::parse).filter(|at| at.sampled);
        let count = |tokens: &[u32]| u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        let served = AttemptUsage {
            attempt,
            machine: keys.machine(),
            signing_key: String::new(),
            prompt_tokens: count(&job.prompt),
            first_index: count(&job.generated),
            generated_tokens: 0,
            signature: None,
        };
        Self {
            keys: Arc::clone(keys),
            request: job.ask.request,
            model: job.ask.model.clone(),
            served,
            trace: trace.zip(spans.cloned()),
        }
    }

    /// Whether anybody collects its part of a trace.
    pub(crate) fn traces(&self) -> bool {
        self.trace.is_some()
    }

    /// Signs for what was computed when it ended. About 25 us, once an attempt, on the writer's task: no engine waits.
    pub(crate) fn sign(&self, finish: &mut Finish) {
        let generated_tokens = finish.generated_tokens.saturating_sub(self.served.first_index);
        let served = AttemptUsage { generated_tokens, ..self.served.clone() };
        let signature = self.keys.sign(&served.statement(self.request, &self.model));
        finish.usage_signature = Some(BASE64.encode(signature));
        self.tell(finish, generated_tokens);
    }

    /// The span of what was computed, and of its parts: waiting, prompt, answer. What finds no room is gone.
    fn tell(&self, finish: &Finish, generated_tokens: u32) {
        let Some((at, spans)) = &self.trace else { return };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let end = u64::try_from(now).unwrap_or(u64::MAX);
        let ns = |us: u64| us.saturating_mul(1_000);
        let parts = [
            ("engine.queue", ns(finish.queue_us)),
            ("engine.prefill", ns(finish.prefill_us)),
            ("engine.decode", ns(finish.decode_us)),
        ];
        let whole = parts.iter().fold(0u64, |sum, (_, took)| sum.saturating_add(*took));
        let id = || u64::from_le_bytes(trust::random_bytes()).max(1);
        let span = |parent: u64, name, start: u64, end: u64, attributes| Span {
            at: TraceContext { span: id(), ..*at },
            parent: Some(parent),
            name,
            kind: SpanKind::Internal,
            start_unix_ns: start,
            end_unix_ns: end,
            attributes,
            error: None,
        };
        let mut start = end.saturating_sub(whole);
        let attributes = vec![
            ("phalanx.request", self.request.to_string().into()),
            ("phalanx.attempt", self.served.attempt.to_string().into()),
            ("phalanx.machine", self.served.machine.to_string().into()),
            ("phalanx.tokens", generated_tokens.into()),
        ];
        let computed = span(at.span, "compute", start, end, attributes);
        let parent = computed.at.span;
        let _ = spans.try_send(computed);
        for (name, took) in parts {
            let _ = spans.try_send(span(parent, name, start, start.saturating_add(took), Vec::new()));
            start = start.saturating_add(took);
        }
    }
}
