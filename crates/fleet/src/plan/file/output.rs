//! A plan in names, as `phalanx plan --json` prints it.

use serde::{Deserialize, Serialize};

use crate::plan::{Move, Plan, Predicted, Rejected, Snapshot};

/// A plan as `phalanx plan --json` prints it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PlanOutput {
    /// Every instance that should be.
    pub placements: Vec<PlacementOutput>,
    /// Every candidate that was not taken.
    pub rejected: Vec<Rejected>,
    /// What to do now.
    pub moves: Vec<MoveOutput>,
}

/// One instance.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PlacementOutput {
    /// Whose.
    pub deployment: String,
    /// In the order of ranks.
    pub ranks: Vec<RankOutput>,
    /// How fast it would be.
    pub predicted: Predicted,
}

/// One rank.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RankOutput {
    /// Which machine.
    pub machine: String,
    /// Which of its devices.
    pub device: String,
    /// The first layer and the one after the last.
    pub layers: [usize; 2],
    /// Its share of these layers.
    pub tensor_share: f64,
    /// Bytes that it holds.
    pub memory_bytes: u64,
}

/// One change.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MoveOutput {
    /// start or stop.
    pub action: String,
    /// Whose.
    pub deployment: String,
    /// In the order of ranks.
    pub machines: Vec<String>,
    /// Why.
    pub reason: String,
}

/// In names.
pub fn output(snapshot: &Snapshot, plan: &Plan) -> PlanOutput {
    let fleet = &snapshot.fleet;
    let name = |deployment: usize| snapshot.wanted[deployment].spec.name.clone();
    let placements = plan.placements.iter().map(|placement| PlacementOutput {
        deployment: name(placement.deployment),
        ranks: placement
            .ranks
            .iter()
            .map(|rank| RankOutput {
                machine: fleet.name(rank.machine).to_owned(),
                device: fleet.machines[rank.machine as usize].devices[rank.device as usize].name.clone(),
                layers: [rank.layers.start, rank.layers.end],
                tensor_share: rank.tensor_share,
                memory_bytes: rank.memory_bytes,
            })
            .collect(),
        predicted: placement.predicted,
    });
    let moves = plan.moves.iter().map(|m| match m {
        Move::Start { placement, reason, .. } => {
            let placement = &plan.placements[*placement];
            MoveOutput {
                action: "start".to_owned(),
                deployment: name(placement.deployment),
                machines: placement.ranks.iter().map(|rank| fleet.name(rank.machine).to_owned()).collect(),
                reason: reason.clone(),
            }
        }
        Move::Stop { running, reason } => {
            let of = &snapshot.running[*running];
            MoveOutput {
                action: "stop".to_owned(),
                deployment: name(of.deployment),
                machines: of.ranks.iter().map(|(machine, _)| fleet.name(*machine).to_owned()).collect(),
                reason: reason.clone(),
            }
        }
    });
    PlanOutput { placements: placements.collect(), rejected: plan.rejected.clone(), moves: moves.collect() }
}
