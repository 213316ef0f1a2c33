//! Mistakes on purpose: what a checker is tried with, so that one which catches nothing is known.

use base::{Epoch, InstanceId, MachineId};
use fleet::reconcile::Effect as Order;

use super::Sim;

/// A mistake that is planted into a life, between the code that decides and its world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    /// Machines are not told to let go of what they held.
    KeepsTheOld,
    /// An instance is offered to the other model's requests.
    WrongPool,
    /// An assignment bears an epoch that is long over.
    OldEpoch,
    /// The controller's own count of epochs goes back.
    EpochsGoBack,
    /// An answer is told as ended twice.
    EndsTwice,
    /// A refusal is not told to its caller.
    ForgetsARefusal,
    /// What moves is not put into its queue again.
    ForgetsAMove,
    /// A group is offered by its last rank.
    OffersTheLastRank,
    /// Offers promise more places than there are.
    PromisesTooMuch,
    /// What is taken back stays on offer.
    StaysOffered,
    /// What a request reserved and did not use is kept.
    KeepsARefund,
    /// A machine's word that it is ready is never heard.
    NeverReady,
    /// A machine does not let go of what it is told to.
    HoldsOn,
    /// Something fails every ten minutes, in quiet times too.
    Restless,
    /// A start of the coordinator does not read all that was declared.
    LosesADeployment,
    /// A start of the coordinator does not read what was placed.
    ForgetsPlacements,
    /// A start of the coordinator neither reads what was placed nor how far epochs were.
    EpochsStartAgain,
    /// What was open when the coordinator was killed is neither ended nor settled.
    KeepsTheOpen,
    /// A missed try counts as three.
    BelievesOneMiss,
    /// Whoever decides is not told which links are down.
    HidesTheCut,
    /// Ranks of groups whose machines are cut apart do not notice.
    CutIsNotSaid,
}

impl Plant {
    /// All of them, each with the invariant that it breaks.
    pub const ALL: [(Self, &'static str); 21] = [
        (Self::KeepsTheOld, "one model per machine"),
        (Self::WrongPool, "no spill-over"),
        (Self::OldEpoch, "epochs grow"),
        (Self::EpochsGoBack, "epochs grow"),
        (Self::EndsTwice, "one terminal"),
        (Self::ForgetsARefusal, "one terminal"),
        (Self::ForgetsAMove, "one terminal"),
        (Self::OffersTheLastRank, "ranks above 0 are never routed"),
        (Self::PromisesTooMuch, "capacity truth"),
        (Self::StaysOffered, "capacity truth"),
        (Self::KeepsARefund, "ledger conserved"),
        (Self::NeverReady, "convergence"),
        (Self::HoldsOn, "convergence"),
        (Self::Restless, "flapping"),
        (Self::LosesADeployment, "deployments stay"),
        (Self::ForgetsPlacements, "adoption"),
        (Self::EpochsStartAgain, "epochs grow"),
        (Self::KeepsTheOpen, "one terminal"),
        (Self::BelievesOneMiss, "hysteresis"),
        (Self::HidesTheCut, "groups form where links are"),
        (Self::CutIsNotSaid, "cut groups take nothing"),
    ];
}

impl Sim {
    pub(super) fn is_planted(&self, plant: Plant) -> bool {
        self.plant == Some(plant)
    }

    /// What becomes of the controller's orders on their way.
    pub(super) fn garbled(&mut self, orders: Vec<Order>) -> Vec<Order> {
        let garble = |order: Order| match order {
            Order::Unassign { .. } if self.is_planted(Plant::KeepsTheOld) => None,
            Order::Withdraw { .. } if self.is_planted(Plant::StaysOffered) => None,
            Order::Assign { machine, instance, epoch, rank } if self.is_planted(Plant::OldEpoch) => {
                let epoch = if epoch.0 > 9 { Epoch(epoch.0 - 9) } else { epoch };
                Some(Order::Assign { machine, instance, epoch, rank })
            }
            order => Some(order),
        };
        if self.plant.is_none() { orders } else { orders.into_iter().filter_map(garble).collect() }
    }

    /// Which model's requests an instance is offered to, and by whom.
    pub(super) fn misplaced(
        &self,
        (model, instance): (usize, InstanceId),
        machine: MachineId,
    ) -> (usize, MachineId) {
        let last = || self.controller.instance(instance).and_then(|i| i.places.last());
        let by = last().filter(|_| self.is_planted(Plant::OffersTheLastRank));
        let model = if self.is_planted(Plant::WrongPool) { 1 - model } else { model };
        (model, by.map_or(machine, |(machine, _)| *machine))
    }
}
