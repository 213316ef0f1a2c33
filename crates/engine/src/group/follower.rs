//! The ranks above 0: load their part, and compute what the leader says until it says goodbye.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use collective::{Cause, Communicator, Fault};
use parking_lot::Mutex;
use wire::step::{StepCommand, StepOrder};

use super::rank::{self, Rank};
use super::report::GroupReport;
use super::{GroupEnd, GroupError, GroupSeat, LOAD_WAIT, SILENCE_MAX, pooling_of, settings_of};
use crate::config::EngineConfig;
use crate::load::LoadedModel;
use crate::machine;

/// How often a follower that waits for work looks whether it shall stop.
const LOOK: Duration = Duration::from_millis(250);
/// How often a follower's account is laid out for others to read: every so many commands.
const REPORT_EVERY: u64 = 16;

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

fn serve(rank: &mut Rank, following: &Following) -> Result<(), GroupError> {
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
                rank.run(&plan)?;
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
            StepOrder::Goodbye { .. } => return Ok(()),
        }
        if sequence % REPORT_EVERY == 0 {
            *following.shared.report.lock() = rank.report.clone();
        }
    }
}
