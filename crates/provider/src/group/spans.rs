//! A rank's part of traced requests, as spans: what rank 0 reports of a request, the other ranks report beside it.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use engine::group::{Following, Traced};
use wire::control::AssignGroup;
use wire::trace::{Span, SpanKind, TraceContext};

use super::Ground;

/// Tells what `following` computed of traced requests since it was asked last. What finds no room is gone.
pub(super) fn tell(ground: &Ground, assign: &AssignGroup, following: &Following) {
    let traced = following.traced();
    let Some(spans) = ground.spans.get() else { return };
    for one in traced {
        if let Some(span) = span(assign, ground.keys.machine().to_string(), &one) {
            let _ = spans.try_send(span);
        }
    }
}

fn span(assign: &AssignGroup, machine: String, traced: &Traced) -> Option<Span> {
    let at = TraceContext::parse(&traced.at).filter(|at| at.sampled)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let unix = |then: Instant| now.saturating_sub(then.elapsed()).as_nanos();
    let ns = |then: Instant| u64::try_from(unix(then)).unwrap_or(u64::MAX);
    let (times, us) = (&traced.times, |ns: u64| ns / 1_000);
    Some(Span {
        at: TraceContext { span: u64::from_le_bytes(trust::random_bytes()).max(1), ..at },
        parent: Some(at.span),
        name: "rank",
        kind: SpanKind::Internal,
        start_unix_ns: ns(traced.began),
        end_unix_ns: ns(traced.ended).max(ns(traced.began)),
        attributes: vec![
            ("phalanx.machine", machine.into()),
            ("phalanx.instance", assign.instance.to_string().into()),
            ("phalanx.rank", assign.rank.into()),
            // Of whole steps: what other requests had of them is in it.
            ("phalanx.steps", times.steps.into()),
            ("phalanx.compute_us", us(times.compute_ns()).into()),
            ("phalanx.seal_us", us(times.seal_ns).into()),
            ("phalanx.wire_us", us(times.wire_ns).into()),
            ("phalanx.wait_us", us(times.wait_ns).into()),
        ],
        error: None,
    })
}
