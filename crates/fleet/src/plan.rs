//! The planner: what should run where, from what is wanted, what there is, what runs, and the time. A pure function.
//!
//! [`plan`] reads as its own table of contents: keep what runs and may go on, fill floors, fill demand by priority, give
//! back what nobody wants any more, and turn the difference into moves within dwell times and budgets. Every candidate
//! that lost says why. What it is *not*: it starts nothing (see [`crate::reconcile`]) and asks nothing (see
//! [`crate::topology`] for what it is told). All steps are polynomial in machines, links and deployments.

mod board;
mod candidates;
mod demand;
mod divide;
pub mod file;
mod group;
mod local;
mod measure;
mod moves;
mod order;
mod shape;
mod singles;
mod steps;
mod why;

use std::ops::Range;
use std::sync::Arc;

use base::Micros;
use serde::{Deserialize, Serialize};

use crate::deployment::Spec;
use crate::topology::Fleet;

pub use demand::Demand;
pub use divide::PROMPT_TOKENS;
pub use shape::Shape;

/// By what the planner decides.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanPolicy {
    /// Share of each device's memory that is never planned with.
    pub head_room: f64,
    /// What has run for less is moved only where it must.
    pub dwell: Micros,
    /// Most moves at once; no bound where absent.
    pub moves_max: Option<usize>,
    /// Most instances that are loading at once, over the whole fleet; no bound where absent.
    pub loading_max: Option<usize>,
    /// Demand is met when instances are used no more than this share of the time.
    pub utilisation: f64,
    /// What is not used more than this share of the time without one of its instances gives that one back.
    pub utilisation_min: f64,
    /// Most ranks of an instance whose shape is `auto`.
    pub ranks_max: usize,
    /// How long an instance is thought to serve: what loading it first may cost is weighed against this.
    pub horizon_s: f64,
    /// Whether machines fetch models from each other's disks.
    pub from_neighbours: bool,
}

impl Default for PlanPolicy {
    fn default() -> Self {
        Self {
            head_room: 0.1,
            dwell: Micros::from_secs(300),
            moves_max: None,
            loading_max: None,
            utilisation: 0.7,
            utilisation_min: 0.4,
            ranks_max: 16,
            horizon_s: 600.0,
            from_neighbours: true,
        }
    }
}

/// A deployment, with what is known of its model and what is asked of it.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// What should run.
    pub spec: Spec,
    /// Its model; why not, where nobody knows it.
    pub shape: Result<Arc<Shape>, String>,
    /// What its requests ask for.
    pub demand: Demand,
}

/// An instance that is there, or on its way.
#[derive(Debug, Clone, PartialEq)]
pub struct Running {
    /// Whose, by number among what is wanted.
    pub deployment: usize,
    /// Machine and device of each rank.
    pub ranks: Vec<(u32, u16)>,
    /// Whether it takes requests.
    pub ready: bool,
    /// When it was placed.
    pub since: Micros,
    /// How the model is divided over it, where that is known; else as the planner would.
    pub stages: Option<Vec<(Range<usize>, Vec<u32>)>>,
}

/// All that a plan follows from.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Machines and links.
    pub fleet: Fleet,
    /// Deployments.
    pub wanted: Vec<Wanted>,
    /// Instances.
    pub running: Vec<Running>,
    /// The time.
    pub now: Micros,
}

/// How fast one request alone would be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Predicted {
    /// Tokens a second.
    pub decode_tokens_per_s: f64,
    /// From a prompt of [`PROMPT_TOKENS`] to the first token.
    pub ttft_ms: f64,
}

/// One rank's place.
#[derive(Debug, Clone, PartialEq)]
pub struct PlacedRank {
    /// Which machine.
    pub machine: u32,
    /// Which of its devices.
    pub device: u16,
    /// Which layers.
    pub layers: Range<usize>,
    /// Its share against those of its stage.
    pub share: u32,
    /// The same, of 1.
    pub tensor_share: f64,
    /// Bytes that it holds: weights, cache, and what it works in.
    pub memory_bytes: u64,
}

/// One instance, placed.
#[derive(Debug, Clone, PartialEq)]
pub struct Placement {
    /// Whose.
    pub deployment: usize,
    /// In the order of ranks.
    pub ranks: Vec<PlacedRank>,
    /// How fast it would be.
    pub predicted: Predicted,
    /// Which running instance it is; a new one where absent.
    pub kept: Option<usize>,
}

impl Placement {
    /// Stage by stage: its layers and shares.
    pub fn stages(&self) -> Vec<(Range<usize>, Vec<u32>)> {
        let mut stages: Vec<(Range<usize>, Vec<u32>)> = Vec::new();
        for rank in &self.ranks {
            match stages.last_mut() {
                Some((layers, shares)) if *layers == rank.layers => shares.push(rank.share),
                _ => stages.push((rank.layers.clone(), vec![rank.share])),
            }
        }
        stages
    }
}

/// A candidate that was not taken, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// Whose, by number; for programs that show one deployment.
    #[serde(skip)]
    pub deployment: usize,
    /// `DEPLOYMENT on MACHINE + MACHINE ...`.
    pub candidate: String,
    /// Why not.
    pub reason: String,
}

/// A change.
#[derive(Debug, Clone, PartialEq)]
pub enum Move {
    /// Place this instance, once these running ones are gone.
    Start {
        /// By number among the placements.
        placement: usize,
        /// Running instances that hold its machines.
        after: Vec<usize>,
        /// Why.
        reason: String,
    },
    /// Give this running instance's machines back.
    Stop {
        /// By number.
        running: usize,
        /// Why.
        reason: String,
    },
}

/// A deployment that has fewer instances than it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Short {
    /// Whose.
    pub deployment: usize,
    /// Instances that have no machines.
    pub missing: u32,
    /// Machines that are waited for, by name, where the spec says to wait.
    pub waiting: Vec<String>,
    /// The nearest reason.
    pub reason: String,
}

/// What should be, and how to get there.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// Every instance that should be.
    pub placements: Vec<Placement>,
    /// Every candidate that was looked at and not taken.
    pub rejected: Vec<Rejected>,
    /// What to do now: within dwell times and budgets.
    pub moves: Vec<Move>,
    /// What is missing.
    pub short: Vec<Short>,
    /// Instances wanted of each deployment, floors and demand together.
    pub targets: Vec<u32>,
}

/// Decides.
pub fn plan(snapshot: &Snapshot, policy: &PlanPolicy) -> Plan {
    let mut board = board::Board::new(snapshot, policy);
    board.keep_what_runs();
    let order = order::by_need(&snapshot.wanted);
    for &deployment in &order {
        board.fill_floor(deployment);
    }
    for &deployment in &order {
        board.fill_demand(deployment);
    }
    board.give_back();
    moves::finish(board)
}
