//! Traces: where a request stands in its caller's trace (W3C Trace Context), and spans as collectors take them (OTLP, as JSON).

use std::fmt;

use serde_json::{Value, json};

/// A place in a trace: what the header `traceparent` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace; never 0.
    pub trace: u128,
    /// The span that is the parent of what comes; never 0.
    pub span: u64,
    /// Whether somebody records it.
    pub sampled: bool,
}

impl TraceContext {
    /// Reads a header's value; nothing where it is none, which is then as if it had not come (W3C Trace Context, 3.2).
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let lower = |part: &str| part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let mut parts = text.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let shaped = version.len() == 2 && trace.len() == 32 && span.len() == 16 && flags.len() == 2;
        if !shaped || ![version, trace, span, flags].into_iter().all(lower) || version == "ff" {
            return None;
        }
        // Later versions may say more; the first may not.
        if version == "00" && parts.next().is_some() {
            return None;
        }
        let (trace, span) = (u128::from_str_radix(trace, 16).ok()?, u64::from_str_radix(span, 16).ok()?);
        let sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
        (trace != 0 && span != 0).then_some(Self { trace, span, sampled })
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }
}

/// What a span is to its neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanKind {
    /// Work inside a program.
    Internal = 1,
    /// A call that a program answers.
    Server = 2,
    /// A call that a program makes.
    Client = 3,
}

/// A piece of work that is over. Never of a prompt or an answer: numbers, names and identities alone.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// Its trace and itself.
    pub at: TraceContext,
    /// What it is part of.
    pub parent: Option<u64>,
    /// What it is, from a closed list.
    pub name: &'static str,
    /// See [`SpanKind`].
    pub kind: SpanKind,
    /// When it began, nanoseconds since 1970.
    pub start_unix_ns: u64,
    /// When it ended, nanoseconds since 1970.
    pub end_unix_ns: u64,
    /// What is known of it: texts and whole numbers.
    pub attributes: Vec<(&'static str, Value)>,
    /// Why it failed, in a word; nothing where it did not.
    pub error: Option<String>,
}

/// A body of `POST /v1/traces` (OTLP 1.x, the JSON form: identities in hexadecimal, 64-bit numbers as texts).
pub fn export(service: &str, instance: &str, version: &str, spans: &[Span]) -> String {
    let spans: Vec<Value> = spans.iter().map(Span::json).collect();
    let resource = [
        ("service.name", Value::from(service)),
        ("service.instance.id", instance.into()),
        ("service.version", version.into()),
    ];
    json!({"resourceSpans": [{
        "resource": {"attributes": attributes(&resource)},
        "scopeSpans": [{"scope": {"name": "phalanx", "version": version}, "spans": spans}],
    }]})
    .to_string()
}

fn attributes(of: &[(&'static str, Value)]) -> Vec<Value> {
    of.iter()
        .map(|(key, value)| {
            let value = match value {
                Value::Number(number) => json!({"intValue": number.to_string()}),
                Value::Bool(bool) => json!({"boolValue": bool}),
                Value::String(text) => json!({"stringValue": text}),
                other => json!({"stringValue": other.to_string()}),
            };
            json!({"key": key, "value": value})
        })
        .collect()
}

impl Span {
    fn json(&self) -> Value {
        let mut span = json!({
            "traceId": format!("{:032x}", self.at.trace),
            "spanId": format!("{:016x}", self.at.span),
            "name": self.name,
            "kind": self.kind as u8,
            "startTimeUnixNano": self.start_unix_ns.to_string(),
            "endTimeUnixNano": self.end_unix_ns.max(self.start_unix_ns).to_string(),
            "attributes": attributes(&self.attributes),
            "status": match &self.error {
                Some(error) => json!({"code": 2, "message": error}),
                None => json!({}),
            },
        });
        if let Some(parent) = self.parent {
            span["parentSpanId"] = format!("{parent:016x}").into();
        }
        span
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_in_a_trace_reads_back_and_nothing_else_is_one() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let at = TraceContext::parse(text).unwrap();
        assert_eq!((at.span, at.sampled, at.to_string().as_str()), (0x00f0_67aa_0ba9_02b7, true, text));
        assert!(
            TraceContext::parse("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more").is_some()
        );
        assert!(!TraceContext::parse(&text.replace("-01", "-00")).unwrap().sampled);
        for wrong in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-011",
            "00-4bf92f3577b34da6a3ce929d0e0e47+6-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceContext::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn spans_are_written_as_collectors_read_them() {
        let at = TraceContext { trace: 1, span: 2, sampled: true };
        let span = Span {
            at,
            parent: Some(3),
            name: "queue",
            kind: SpanKind::Internal,
            start_unix_ns: 10,
            end_unix_ns: 5,
            attributes: vec![("tokens", 7.into()), ("model", "tiny".into())],
            error: Some("lost".to_owned()),
        };
        let body: Value =
            serde_json::from_str(&export("phalanx-coordinator", "x", "0.1.0", &[span])).unwrap();
        let expected = json!({
            "traceId": "00000000000000000000000000000001",
            "spanId": "0000000000000002",
            "parentSpanId": "0000000000000003",
            "name": "queue",
            "kind": 1,
            "startTimeUnixNano": "10",
            "endTimeUnixNano": "10",
            "attributes": [
                {"key": "tokens", "value": {"intValue": "7"}},
                {"key": "model", "value": {"stringValue": "tiny"}},
            ],
            "status": {"code": 2, "message": "lost"},
        });
        assert_eq!(body["resourceSpans"][0]["scopeSpans"][0]["spans"][0], expected);
    }
}
