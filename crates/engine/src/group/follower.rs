//! The ranks above 0: load their part, and compute what the leader says until it says goodbye.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use collective::{Cause, Communicator, Fault};
use parking_lot::Mutex;
use wire::step::{StepCommand, StepOrder};

use super::rank::{self, Rank};
use super::report::{GroupReport, StepTimes};
use super::{GroupEnd, GroupError, GroupSeat, LOAD_WAIT, SILENCE_MAX, pooling_of, settings_of};
use crate::config::EngineConfig;
use crate::load::LoadedModel;
use crate::machine;

/// How often a follower that waits for work looks whether it shall stop.
const LOOK: Duration = Duration::from_millis(250);
/// How often a follower's account is laid out for others to read: every so many commands.
const REPORT_EVERY: u64 = 16;

/// Steps whose times are remembered, to tell what of them a traced request took: more than the longest answers have.
const STEPS_KEPT: usize = 8192;
/// A `traceparent` has 55 bytes.
const TRACE_BYTES_MAX: usize = 128;
/// Traced requests that wait for whoever collects them.
const TRACED_MAX: usize = 64;

/// A rank's part of a request that stands in a trace.
#[derive(Debug, Clone)]
pub struct Traced {
    /// Where it stands, as a `traceparent`. A peer's word.
    pub at: String,
    /// When its first step began here.
    pub began: Instant,
    /// When its last one was through.
    pub ended: Instant,
    /// What this rank did in between, other requests' share of the same steps included.
    pub times: StepTimes,
}

/// What others see of a rank that follows, and how they end it.
#[derive(Clone, Default)]
pub struct Following {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    ready: AtomicBool,
    report: Mutex<GroupReport>,
    traced: Mutex<Vec<Traced>>,
}

impl Following {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The rank shall leave; the group ends with it.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }

    /// Whether it has loaded its part and takes steps.
    pub fn is_ready(&self) -> bool {
        self.shared.ready.load(Ordering::Relaxed)
    }

    /// Where its time went, as of a moment ago.
    pub fn report(&self) -> GroupReport {
        self.shared.report.lock().clone()
    }

    /// Its parts of traced requests that were through since this was asked last.
    pub fn traced(&self) -> Vec<Traced> {
        std::mem::take(&mut self.shared.traced.lock())
    }
}

/// Takes part in a group as a rank above 0: loads this rank's part of `model` and computes until the leader says goodbye.
/// Blocks; give it a thread of its own.
///
/// # Errors
/// How the group ended otherwise. The cache has been wiped then, and every other rank knows the same culprit.
pub fn follow(
    model: &LoadedModel,
    config: &EngineConfig,
    seat: GroupSeat,
    following: &Following,
) -> Result<(), GroupEnd> {
    machine::yield_to_others();
    let GroupSeat { map, mut communicator } = seat;
    let settings = match receive_settings(model, communicator.as_mut(), &map) {
        Ok(settings) => settings,
        Err(error) => return Err(error.end(communicator.as_mut())),
    };
    let mut rank = match rank::open(model, config, &map, communicator, &settings) {
        Ok((rank, ..)) => rank,
        Err((error, mut communicator)) => return Err(error.end(communicator.as_mut())),
    };
    following.shared.ready.store(true, Ordering::Relaxed);
    let ended = serve(&mut rank, following);
    following.shared.ready.store(false, Ordering::Relaxed);
    let ended = ended.map_err(|error| error.end(rank.communicator.as_mut()));
    rank.wipe_all();
    *following.shared.report.lock() = rank.report.clone();
    ended
}

fn receive_settings(
    model: &LoadedModel,
    communicator: &mut dyn Communicator,
    map: &model::shard::ShardMap,
) -> Result<wire::step::GroupSettings, GroupError> {
    if communicator.rank() == 0 {
        return Err(GroupError::Task { rank: 0, task: "follow: it leads" });
    }
    if map.ranks() != communicator.ranks() {
        return Err(GroupError::Ranks { map: map.ranks(), group: communicator.ranks() });
    }
    map.check(model.spec())?;
    communicator.set_patience(LOAD_WAIT);
    let mut bytes = Vec::new();
    communicator.broadcast(0, &mut bytes)?;
    let settings = settings_of(&bytes)?;
    let disagrees = |what, theirs: String, ours: String| Err(GroupError::Disagrees { what, theirs, ours });
    if settings.map != map.encode() {
        return disagrees("the shard map", settings.map, map.encode());
    }
    let pooling = pooling_of(model.spec());
    if settings.pooling != pooling {
        let named = |pooling: Option<String>| pooling.unwrap_or_else(|| "none".to_owned());
        return disagrees("a pooling of", named(settings.pooling), named(pooling));
    }
    let vocabulary = model.spec().vocabulary;
    if settings.vocabulary as usize != vocabulary {
        return disagrees("a vocabulary of", settings.vocabulary.to_string(), vocabulary.to_string());
    }
    Ok(settings)
}

/// When steps began, and all that was done before each.
#[derive(Default)]
struct Steps {
    begun: VecDeque<(Instant, StepTimes)>,
    ended: Option<Instant>,
}

impl Steps {
    fn begin(&mut self, report: &GroupReport) {
        if self.begun.len() == STEPS_KEPT {
            self.begun.pop_front();
        }
        self.begun.push_back((Instant::now(), report.whole()));
    }

    /// What was done in the steps of the last `took` before the last one's end; nothing where there were none. By durations
    /// alone: the leader's clock is another. Its first step began before it was told of here, and so counts.
    fn of(&self, at: String, took: Duration, report: &GroupReport) -> Option<Traced> {
        let ended = self.ended.filter(|_| at.len() <= TRACE_BYTES_MAX)?;
        let since = ended.checked_sub(took);
        let first = self.begun.partition_point(|(begun, _)| since.is_some_and(|since| *begun < since));
        let (began, before) = self.begun.get(first).or(self.begun.back())?;
        Some(Traced { at, began: *began, ended, times: report.whole().since(before) })
    }
}

fn serve(rank: &mut Rank, following: &Following) -> Result<(), GroupError> {
    let mut steps = Steps::default();
    let mut bytes = Vec::new();
    let mut sequence = 0;
    let mut heard = Instant::now();
    loop {
        if following.shared.stop.load(Ordering::Relaxed) {
            let fault = Fault::of(rank.report.rank, Cause::Left("it was told to stop".into()));
            rank.communicator.poison(fault.clone());
            return Err(fault.into());
        }
        if !rank.communicator.follow(0, &mut bytes, LOOK)? {
            if heard.elapsed() > SILENCE_MAX {
                let fault = Fault::of(0, Cause::Late(SILENCE_MAX));
                rank.communicator.poison(fault.clone());
                return Err(fault.into());
            }
            continue;
        }
        heard = Instant::now();
        let command = StepCommand::decode(&bytes)?;
        // A prompt may be among it.
        bytes.fill(0);
        sequence += 1;
        if command.sequence != sequence {
            return Err(GroupError::Sequence { expected: sequence, found: command.sequence });
        }
        match command.order {
            StepOrder::Run(plan) => {
                plan.check(&rank.bounds_of(&plan))?;
                steps.begin(&rank.report);
                rank.run(&plan)?;
                steps.ended = Some(Instant::now());
            }
            StepOrder::Beside { pages } => {
                let most = rank.bounds.context.div_ceil(rank.bounds.page_tokens);
                if pages > most {
                    let (found, allowed) = (pages.into(), most.into());
                    let what = "pages of a cache beside the main one";
                    return Err(wire::step::StepError { what, found, allowed }.into());
                }
                rank.set_beside(pages)?;
            }
            StepOrder::Idle => *following.shared.report.lock() = rank.report.clone(),
            StepOrder::Trace { at, took_us } => {
                let traced = steps.of(at, Duration::from_micros(took_us), &rank.report);
                let mut waiting = following.shared.traced.lock();
                if waiting.len() < TRACED_MAX {
                    waiting.extend(traced);
                }
            }
            StepOrder::Goodbye { .. } => return Ok(()),
        }
        if sequence % REPORT_EVERY == 0 {
            *following.shared.report.lock() = rank.report.clone();
        }
    }
}
