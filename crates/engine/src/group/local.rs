//! A group whose ranks are threads of this process: one machine that divides a model among its own cores, and tests.

use std::str::FromStr;
use std::thread::JoinHandle;

use base::ModelName;
use collective::{Communicator, Group, GroupTerms, in_memory};
use crossbeam_channel::{Receiver, bounded};
use model::checkpoint::{CheckpointError, parameters};
use model::shard::{Division, Member, ShardError, ShardMap, grain};

use super::{Following, GroupEnd, GroupSeat, follow};
use crate::config::EngineConfig;
use crate::engine::{Engine, StartError};
use crate::load::{LoadError, LoadOptions, LoadedModel, ModelSource, load};
use crate::machine;

/// How somebody wants a model divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GroupMode {
    /// Slices of every layer on every rank.
    Tensor,
    /// Some layers on each rank.
    Pipeline,
    /// Stages of so many, each divided over equally many ranks.
    Both {
        /// Stages.
        stages: usize,
        /// Ranks in each.
        tensor: usize,
    },
    /// Tensor where the model can be divided so, else a pipeline.
    #[default]
    Auto,
}

impl FromStr for GroupMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "tensor" => Ok(Self::Tensor),
            "pipeline" => Ok(Self::Pipeline),
            "auto" => Ok(Self::Auto),
            _ => {
                let both = text.split_once('x').and_then(|(stages, tensor)| {
                    let (stages, tensor) = (stages.parse().ok()?, tensor.parse().ok()?);
                    (stages > 0 && tensor > 0).then_some(Self::Both { stages, tensor })
                });
                both.ok_or_else(|| {
                    format!("{text:?} is no mode: tensor, pipeline, auto, or stages x ranks as in 2x2")
                })
            }
        }
    }
}

impl std::fmt::Display for GroupMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tensor => f.write_str("tensor"),
            Self::Pipeline => f.write_str("pipeline"),
            Self::Both { stages, tensor } => write!(f, "{stages}x{tensor}"),
            Self::Auto => f.write_str("auto"),
        }
    }
}

/// Why a model cannot be divided.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DivideError {
    /// It cannot be divided so.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// Its weights cannot be looked at.
    #[error("the weights cannot be used")]
    Checkpoint(#[from] CheckpointError),
    /// More or fewer machines than the mode is for.
    #[error("{mode} is for {wanted} ranks, and {ranks} are asked for")]
    Ranks {
        /// As asked for.
        mode: GroupMode,
        /// Its product.
        wanted: usize,
        /// As asked for.
        ranks: usize,
    },
}

impl LoadedModel {
    /// Divides this model over `members`. What is asked for is done or refused; only [`GroupMode::Auto`] may choose.
    ///
    /// # Errors
    /// The model cannot be divided so.
    pub fn divide(&self, mode: GroupMode, members: &[Member]) -> Result<ShardMap, DivideError> {
        let checkpoint = self.checkpoint()?;
        let grain = grain(self.spec(), &checkpoint)?;
        let bits = 8.0 * self.weight_bytes().0 as f64 / parameters(self.spec()).max(1) as f64;
        let plan = |division| ShardMap::plan(self.spec(), division, members, (grain, bits));
        match mode {
            GroupMode::Tensor => Ok(plan(Division::Tensor)?),
            GroupMode::Pipeline => Ok(plan(Division::Pipeline)?),
            GroupMode::Auto => Ok(plan(Division::Tensor).or_else(|_| plan(Division::Pipeline))?),
            GroupMode::Both { stages, tensor } => {
                let (wanted, ranks) = (stages.saturating_mul(tensor), members.len());
                if wanted != ranks {
                    return Err(DivideError::Ranks { mode, wanted, ranks });
                }
                Ok(plan(Division::Both { stages })?)
            }
        }
    }
}

/// Why a local group does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocalGroupError {
    /// The model's files.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// It cannot be divided so.
    #[error(transparent)]
    Divide(#[from] DivideError),
    /// The leader, or a rank that it lost.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The system gives no thread.
    #[error("cannot start a rank's thread")]
    Thread(#[source] std::io::Error),
}

/// An engine whose model is divided over threads of this process.
pub struct LocalGroup {
    engine: Engine,
    map: ShardMap,
    followers: Vec<(Following, JoinHandle<Result<(), GroupEnd>>)>,
    ended: Receiver<GroupEnd>,
}

/// Ranks that speak over memory.
pub fn over_memory(ranks: usize, config: &EngineConfig) -> Vec<Box<dyn Communicator>> {
    let terms = GroupTerms { patience: config.group_patience_us.into(), ..GroupTerms::default() };
    let communicator = |transport| Box::new(Group::new(transport, terms)) as Box<dyn Communicator>;
    in_memory(ranks).into_iter().map(communicator).collect()
}

impl LocalGroup {
    /// Divides the model at `source` over `ranks` threads and serves it as `name`.
    ///
    /// # Errors
    /// It cannot be loaded or divided so.
    pub fn start(
        name: ModelName,
        (source, options): (&ModelSource, &LoadOptions),
        config: &EngineConfig,
        (mode, ranks): (GroupMode, usize),
    ) -> Result<Self, LocalGroupError> {
        Self::start_among(name, (source, options), config, (mode, &vec![Member::default(); ranks]))
    }

    /// The same over threads that take unequal shares.
    ///
    /// # Errors
    /// As [`LocalGroup::start`].
    pub fn start_among(
        name: ModelName,
        (source, options): (&ModelSource, &LoadOptions),
        config: &EngineConfig,
        (mode, members): (GroupMode, &[Member]),
    ) -> Result<Self, LocalGroupError> {
        let ranks = members.len();
        let model = load(source, options)?;
        let map = model.divide(mode, members)?;
        let config = EngineConfig {
            threads: Some(config.threads.unwrap_or_else(|| (machine::cores() / ranks.max(1)).max(1))),
            ..config.clone()
        };
        let mut communicators = over_memory(ranks, &config).into_iter();
        let first = communicators.next().expect("a map has a rank at least");
        let mut followers = Vec::new();
        for communicator in communicators {
            let (model, config) = (load(source, options)?, config.clone());
            let seat = GroupSeat { map: map.clone(), communicator };
            let following = Following::new();
            let seen = following.clone();
            let body = move || follow(&model, &config, seat, &seen);
            let thread = std::thread::Builder::new().name("rank".to_owned());
            followers.push((following, thread.spawn(body).map_err(LocalGroupError::Thread)?));
        }
        let (tell, ended) = bounded(1);
        let seat = GroupSeat { map: map.clone(), communicator: first };
        let on_end = move |end| {
            // Whoever started the group may have gone.
            let _ = tell.send(end);
        };
        let engine = Engine::start_group(name, model, config, seat, on_end)?;
        Ok(Self { engine, map, followers, ended })
    }

    /// The engine, which takes requests as any other does.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// How the model is divided.
    pub fn map(&self) -> &ShardMap {
        &self.map
    }

    /// The ranks above 0.
    pub fn followers(&self) -> impl Iterator<Item = &Following> {
        self.followers.iter().map(|(following, _)| following)
    }

    /// Stops the engine and joins every rank: how the group ended for the leader, and for each of the others.
    pub fn stop(mut self) -> (Option<GroupEnd>, Vec<Result<(), GroupEnd>>) {
        self.engine.stop();
        let broke = || GroupEnd { culprit: None, reason: "a rank's thread broke down".to_owned() };
        let followers = self.followers.drain(..);
        let ends = followers.map(|(_, thread)| thread.join().unwrap_or_else(|_| Err(broke()))).collect();
        (self.ended.try_recv().ok(), ends)
    }
}
