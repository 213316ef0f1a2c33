//! Where a request's time goes: ten segments, measured for every request, kept as distributions.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use wire::admin::{SegmentReport, SegmentStats};

/// A part of a request's life. The nine of the design, and `Tokenize` beside them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Segment {
    /// Body to typed request.
    Parse,
    /// Chat template and tokenizer.
    Tokenize,
    /// The ledger's reservation, durable.
    Reserve,
    /// Waiting for an instance.
    Queue,
    /// Deciding which.
    Route,
    /// Encoding and sealing the job.
    Encrypt,
    /// From sealed to written to the machine's socket.
    Dispatch,
    /// From there to the first token.
    FirstToken,
    /// From there to the last.
    Stream,
    /// The ledger's settlement, durable.
    Settle,
}

impl Segment {
    /// In the order of a request's life.
    pub(crate) const ALL: [Self; 10] = [
        Self::Parse,
        Self::Tokenize,
        Self::Reserve,
        Self::Queue,
        Self::Route,
        Self::Encrypt,
        Self::Dispatch,
        Self::FirstToken,
        Self::Stream,
        Self::Settle,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Parse => "parse",
            Self::Tokenize => "tokenize",
            Self::Reserve => "reserve",
            Self::Queue => "queue",
            Self::Route => "route",
            Self::Encrypt => "encrypt",
            Self::Dispatch => "dispatch",
            Self::FirstToken => "first_token",
            Self::Stream => "stream",
            Self::Settle => "settle",
        }
    }
}

/// One request's segments. Several attempts add up.
#[derive(Debug, Clone, Default)]
pub(crate) struct Timings {
    spans: [Option<Duration>; Segment::ALL.len()],
    /// When each first began, for traces.
    began: [Option<Instant>; Segment::ALL.len()],
}

impl Timings {
    pub(crate) fn add(&mut self, segment: Segment, span: Duration) {
        // What is added is just over, where nobody said otherwise.
        self.began[segment as usize]
            .get_or_insert_with(|| Instant::now().checked_sub(span).unwrap_or_else(Instant::now));
        let slot = &mut self.spans[segment as usize];
        *slot = Some(slot.unwrap_or_default() + span);
    }

    /// As [`Self::add`], of a span that began at `start`.
    pub(crate) fn add_from(&mut self, segment: Segment, start: Instant, span: Duration) {
        self.began[segment as usize].get_or_insert(start);
        self.add(segment, span);
    }

    /// When a segment first began.
    pub(crate) fn began(&self, segment: Segment) -> Option<Instant> {
        self.began[segment as usize]
    }

    /// Adds the time since `start`, and gives the time at which that was.
    pub(crate) fn since(&mut self, segment: Segment, start: Instant) -> Instant {
        let now = Instant::now();
        self.add(segment, now - start);
        now
    }

    pub(crate) fn get(&self, segment: Segment) -> Option<Duration> {
        self.spans[segment as usize]
    }

    /// As the header `Server-Timing` has it, in milliseconds: what is known by now. A whole answer is settled after it.
    pub(crate) fn server_timing(&self) -> String {
        use std::fmt::Write as _;
        let mut out = String::with_capacity(160);
        for segment in Segment::ALL {
            if let Some(span) = self.get(segment) {
                let comma = if out.is_empty() { "" } else { ", " };
                let ms = span.as_secs_f64() * 1e3;
                write!(out, "{comma}{};dur={ms:.3}", segment.name()).expect("writing to a string succeeds");
            }
        }
        if self.get(Segment::Stream).is_some() && self.get(Segment::Settle).is_none() {
            // None of it is the answer's time. How long it takes the ledger is in the metrics.
            out.push_str(", settle;dur=0.000;desc=\"after the answer\"");
        }
        out
    }
}

struct Distribution {
    histogram: Histogram<u64>,
    sum: Duration,
    max: Duration,
}

struct Window {
    since: Instant,
    completed: u64,
    other: u64,
    distributions: [Distribution; Segment::ALL.len()],
}

impl Window {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            completed: 0,
            other: 0,
            distributions: std::array::from_fn(|_| Distribution {
                // Nanoseconds up to an hour, within 1 %: 60 KB each.
                histogram: Histogram::new_with_max(3_600_000_000_000, 2)
                    .expect("the bounds are those that the histogram allows"),
                sum: Duration::ZERO,
                max: Duration::ZERO,
            }),
        }
    }
}

/// The segments of every request since the start or the last reset.
pub(crate) struct Segments {
    window: Mutex<Window>,
}

impl Segments {
    pub(crate) fn new() -> Self {
        Self { window: Mutex::new(Window::new()) }
    }

    /// Takes in one ended request.
    pub(crate) fn record(&self, timings: &Timings, completed: bool) {
        let mut window = self.window.lock();
        if completed {
            window.completed += 1;
        } else {
            window.other += 1;
        }
        for segment in Segment::ALL {
            if let Some(span) = timings.get(segment) {
                let distribution = &mut window.distributions[segment as usize];
                distribution.histogram.saturating_record(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX));
                distribution.sum += span;
                distribution.max = distribution.max.max(span);
            }
        }
    }

    pub(crate) fn report(&self) -> SegmentReport {
        let window = self.window.lock();
        let stats = |d: &Distribution| {
            let count = d.histogram.len();
            let at = |quantile: f64| d.histogram.value_at_quantile(quantile) as f64 / 1e3;
            SegmentStats {
                count,
                mean_us: if count == 0 { 0.0 } else { d.sum.as_secs_f64() * 1e6 / count as f64 },
                p50_us: at(0.5),
                p95_us: at(0.95),
                p99_us: at(0.99),
                max_us: d.max.as_secs_f64() * 1e6,
            }
        };
        SegmentReport {
            window_us: u64::try_from(window.since.elapsed().as_micros()).unwrap_or(u64::MAX),
            completed: window.completed,
            other: window.other,
            segments: Segment::ALL
                .iter()
                .map(|segment| (segment.name().to_owned(), stats(&window.distributions[*segment as usize])))
                .collect(),
        }
    }

    pub(crate) fn reset(&self) {
        *self.window.lock() = Window::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_of_one_request_add_up_and_count_once() {
        let segments = Segments::new();
        let mut timings = Timings::default();
        timings.add(Segment::Encrypt, Duration::from_micros(30));
        timings.add(Segment::Encrypt, Duration::from_micros(20));
        assert_eq!(timings.server_timing(), "encrypt;dur=0.050");
        segments.record(&timings, true);
        let report = segments.report();
        assert_eq!((report.completed, report.other), (1, 0));
        assert_eq!(report.segments["encrypt"].count, 1);
        assert!((report.segments["encrypt"].mean_us - 50.0).abs() < 1e-6);
        assert_eq!(report.segments["parse"].count, 0);
        assert_eq!(report.segments.len(), 10);
        segments.reset();
        assert_eq!(segments.report().segments["encrypt"].count, 0);
    }
}
