//! What is counted for Prometheus. Label values come from closed sets: never a text that a client sent.

use base::ModelName;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::segments::{Segment, Timings};

/// What a counter counts, from a closed set.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Kind {
    pub(crate) kind: &'static str,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Ended {
    pub(crate) api: &'static str,
    pub(crate) outcome: &'static str,
}

/// A model that is served.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OfModel {
    pub(crate) model: String,
}

/// Ranks of a model's groups that are equally far.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OfRanks {
    pub(crate) model: String,
    pub(crate) phase: String,
}

/// One rank's account. Ranks are few, and their numbers small.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OfRank {
    pub(crate) model: String,
    pub(crate) group: String,
    pub(crate) rank: u32,
    pub(crate) what: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfSegment {
    segment: &'static str,
}

/// 10 µs to 100 s, in steps of 1, 2, 5.
const SECONDS: [f64; 22] = [
    1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
    10.0, 20.0, 50.0, 100.0,
];

/// All metrics of a coordinator.
pub(crate) struct Metrics {
    registry: Registry,
    segment_seconds: [Histogram; Segment::ALL.len()],
    /// What requests took beside what engines did and waiting for them.
    pub(crate) overhead: Histogram,
    /// Requests by API and outcome.
    pub(crate) requests: Family<Ended, Counter>,
    /// Failed calls by their error's code.
    pub(crate) problems: Family<Kind, Counter>,
    /// Attempts by outcome.
    pub(crate) attempts: Family<Kind, Counter>,
    /// Messages from providers that make no sense.
    pub(crate) uplink_faults: Family<Kind, Counter>,
    /// Providers that were not let in.
    pub(crate) uplink_refusals: Family<Kind, Counter>,
    /// What happened to groups.
    pub(crate) group_events: Family<Kind, Counter>,
    /// What happened to deployments.
    pub(crate) deployment_events: Family<Kind, Counter>,
    /// Ranks of groups, by model and how far they are. Set when read.
    pub(crate) group_ranks: Family<OfRanks, Gauge>,
    /// Where ranks' time went in their groups' present lives, by model and rank. Set when read.
    pub(crate) group_rank_us: Family<OfRank, Gauge>,
    /// Chunks that broke the rules of an answer.
    pub(crate) chunk_violations: Family<Kind, Counter>,
    /// Spans that nobody took in time.
    pub(crate) spans_dropped: Family<Kind, Counter>,
    /// Tokens of prompts.
    pub(crate) prompt_tokens: Family<OfModel, Counter>,
    /// Tokens of answers.
    pub(crate) generated_tokens: Family<OfModel, Counter>,
    /// Connected machines.
    pub(crate) machines: Gauge,
    /// Requests in the coordinator now.
    pub(crate) running: Gauge,
    /// Requests that wait, by model. Set when read.
    pub(crate) queued: Family<OfModel, Gauge>,
    /// Instances that take requests, by model. Set when read.
    pub(crate) eligible: Family<OfModel, Gauge>,
    pub(crate) prediction_error: Family<OfModel, Gauge<f64, std::sync::atomic::AtomicU64>>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("phalanx");
        let seconds = Family::<OfSegment, Histogram>::new_with_constructor(|| Histogram::new(SECONDS));
        registry.register_with_unit(
            "request_segment",
            "Where requests' time goes",
            Unit::Seconds,
            seconds.clone(),
        );
        let segment_seconds = std::array::from_fn(|i| {
            seconds.get_or_create(&OfSegment { segment: Segment::ALL[i].name() }).clone()
        });
        let overhead = Histogram::new(SECONDS);
        let help = "What completed requests took, less what engines took and the wait for one";
        registry.register_with_unit("request_overhead", help, Unit::Seconds, overhead.clone());
        let mut all = Self {
            segment_seconds,
            overhead,
            requests: Family::default(),
            problems: Family::default(),
            attempts: Family::default(),
            uplink_faults: Family::default(),
            uplink_refusals: Family::default(),
            group_events: Family::default(),
            deployment_events: Family::default(),
            group_ranks: Family::default(),
            group_rank_us: Family::default(),
            chunk_violations: Family::default(),
            spans_dropped: Family::default(),
            prompt_tokens: Family::default(),
            generated_tokens: Family::default(),
            machines: Gauge::default(),
            running: Gauge::default(),
            queued: Family::default(),
            eligible: Family::default(),
            prediction_error: Family::default(),
            registry,
        };
        all.register();
        all
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register("requests", "Requests by API and outcome", self.requests.clone());
        registry.register("problems", "Failed calls by their error's code", self.problems.clone());
        registry.register("attempts", "Attempts by outcome", self.attempts.clone());
        registry.register("uplink_faults", "Senseless messages from providers", self.uplink_faults.clone());
        registry.register("uplink_refusals", "Providers that were not let in", self.uplink_refusals.clone());
        registry.register(
            "chunk_violations",
            "Chunks that broke an answer's rules",
            self.chunk_violations.clone(),
        );
        registry.register("spans_dropped", "Spans that found no room", self.spans_dropped.clone());
        registry.register("group_events", "What happened to groups", self.group_events.clone());
        let help = "What happened to deployments: words that are not so (stray), or too many (dropped)";
        registry.register("deployment_events", help, self.deployment_events.clone());
        registry.register("group_ranks", "Ranks of groups, by how far they are", self.group_ranks.clone());
        let help = "Ranks in their groups' present lives: how long these stand and where time went, in microseconds; \
                    bytes and messages sent, frames not understood, links tried in vain";
        registry.register("group_rank", help, self.group_rank_us.clone());
        registry.register("prompt_tokens", "Tokens of prompts", self.prompt_tokens.clone());
        registry.register("generated_tokens", "Tokens of answers", self.generated_tokens.clone());
        registry.register("machines", "Connected machines", self.machines.clone());
        registry.register("requests_running", "Requests being served now", self.running.clone());
        registry.register("queued", "Requests that wait, by model", self.queued.clone());
        registry.register("eligible_instances", "Instances that take requests", self.eligible.clone());
        registry.register(
            "prediction_error",
            "Mean |ln(observed / predicted)| of the last times to the first token: 0.7 is a factor of two",
            self.prediction_error.clone(),
        );
    }

    /// Takes in one ended request's segments.
    pub(crate) fn segments(&self, timings: &Timings) {
        for segment in Segment::ALL {
            if let Some(span) = timings.get(segment) {
                self.segment_seconds[segment as usize].observe(span.as_secs_f64());
            }
        }
    }

    pub(crate) fn count(family: &Family<Kind, Counter>, kind: &'static str) {
        family.get_or_create(&Kind { kind }).inc();
    }

    pub(crate) fn of_model(model: &ModelName) -> OfModel {
        OfModel { model: model.as_str().to_owned() }
    }

    /// Sets what is known of groups, before it is read.
    pub(crate) fn set_groups(&self, groups: &[wire::admin::group::GroupStatus]) {
        self.group_ranks.clear();
        self.group_rank_us.clear();
        for group in groups {
            let model = group.model.as_str().to_owned();
            let is_up = matches!(group.phase.as_str(), "ready" | "degraded");
            for (rank, status) in (0u32..).zip(&group.ranks) {
                let labels = OfRanks { model: model.clone(), phase: status.phase.clone() };
                self.group_ranks.get_or_create(&labels).inc();
                let Some(t) = status.telemetry else { continue };
                let account = [
                    ("up_us", if is_up { group.since_us } else { 0 }),
                    ("steps", t.steps),
                    ("compute_us", t.compute_us),
                    ("seal_us", t.seal_us),
                    ("wire_us", t.wire_us),
                    ("wait_us", t.wait_us),
                    ("bytes_sent", t.bytes_sent),
                    ("messages_sent", t.messages_sent),
                    ("malformed", t.malformed),
                    ("retries", status.standing.as_ref().map_or(0, |standing| standing.retries)),
                ];
                for (what, value) in account {
                    let group = group.instance.to_string();
                    let labels = OfRank { model: model.clone(), group, rank, what };
                    self.group_rank_us.get_or_create(&labels).set(i64::try_from(value).unwrap_or(i64::MAX));
                }
            }
        }
    }

    /// In Prometheus' text form.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        encode(&mut out, &self.registry).expect("writing to a string succeeds");
        out
    }
}
