//! Which life of which group this machine is a rank of: every order of assignments, rosters and endings, decided without
//! a thread or a clock.

use std::collections::HashMap;

use base::{Epoch, InstanceId};

/// Groups whose last epoch is remembered. An operator makes them; the oldest that do not run are forgotten.
const GROUPS_MAX: usize = 1024;

/// What happens.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Input {
    /// The coordinator assigns a rank.
    Assign { instance: InstanceId, epoch: Epoch },
    /// It says where the ranks are dialled.
    Roster { instance: InstanceId, epoch: Epoch },
    /// It takes the rank back.
    Unassign { instance: InstanceId, epoch: Epoch },
    /// The life ended by itself.
    Ended { instance: InstanceId, epoch: Epoch },
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Do {
    /// Begin this life; `instead` of one that must be ended first.
    Start { instead: bool },
    /// Hand the roster to the life.
    Deliver,
    /// End the life.
    Stop,
    /// The life has ended: let go of it.
    Forget,
    /// Nothing: it is about another life.
    Ignore,
}

#[derive(Debug, Default, Clone, Copy)]
struct Known {
    /// The newest life that was heard of: older ones never begin again.
    newest: Epoch,
    running: bool,
}

/// The lives of this machine's ranks.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    groups: HashMap<InstanceId, Known>,
}

impl Desk {
    /// Whether this very life goes on.
    pub(crate) fn is_running(&self, instance: InstanceId, epoch: Epoch) -> bool {
        self.groups.get(&instance).is_some_and(|known| known.running && known.newest == epoch)
    }

    /// Takes in what happened, and says what to do.
    pub(crate) fn handle(&mut self, input: Input) -> Do {
        match input {
            Input::Assign { instance, epoch } => {
                if self.groups.len() >= GROUPS_MAX && !self.groups.contains_key(&instance) {
                    self.groups.retain(|_, known| known.running);
                }
                if epoch <= self.groups.get(&instance).map_or(Epoch(0), |known| known.newest) {
                    return Do::Ignore;
                }
                let known = self.groups.entry(instance).or_default();
                let instead = known.running;
                *known = Known { newest: epoch, running: true };
                Do::Start { instead }
            }
            Input::Roster { instance, epoch } if self.is_running(instance, epoch) => Do::Deliver,
            Input::Roster { .. } => Do::Ignore,
            Input::Unassign { instance, epoch } => {
                let Some(known) = self.groups.get_mut(&instance) else { return Do::Ignore };
                let stops = known.running && known.newest <= epoch;
                known.newest = known.newest.max(epoch);
                known.running &= !stops;
                if stops { Do::Stop } else { Do::Ignore }
            }
            Input::Ended { instance, epoch } => match self.groups.get_mut(&instance) {
                Some(known) if known.running && known.newest == epoch => {
                    known.running = false;
                    Do::Forget
                }
                _ => Do::Ignore,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use base::Rng;

    use super::*;

    /// The definition, in the plainest words: the newest life that was assigned and neither ended nor taken back runs.
    #[test]
    fn in_any_order_of_events_only_the_newest_life_runs_and_none_begins_twice() {
        for seed in 0..2_000 {
            let mut rng = Rng::new(seed);
            let mut desk = Desk::default();
            let mut running: HashMap<u128, u64> = HashMap::new();
            let mut newest: HashMap<u128, u64> = HashMap::new();
            for _ in 0..80 {
                let (id, life) = (u128::from(rng.below(3)), rng.below(8));
                let (instance, epoch) = (InstanceId(id), Epoch(life));
                let top = newest.get(&id).copied().unwrap_or(0);
                let own = running.get(&id).copied();
                match rng.below(4) {
                    0 => {
                        let done = desk.handle(Input::Assign { instance, epoch });
                        if life > top {
                            assert_eq!(done, Do::Start { instead: own.is_some() });
                            running.insert(id, life);
                            newest.insert(id, life);
                        } else {
                            assert_eq!(done, Do::Ignore);
                        }
                    }
                    1 => {
                        let done = desk.handle(Input::Roster { instance, epoch });
                        assert_eq!(done, if own == Some(life) { Do::Deliver } else { Do::Ignore });
                    }
                    2 => {
                        let done = desk.handle(Input::Unassign { instance, epoch });
                        let stops = own.is_some_and(|own| own <= life);
                        assert_eq!(done, if stops { Do::Stop } else { Do::Ignore });
                        if stops {
                            running.remove(&id);
                        }
                        if newest.contains_key(&id) {
                            newest.insert(id, top.max(life));
                        }
                    }
                    _ => {
                        let done = desk.handle(Input::Ended { instance, epoch });
                        assert_eq!(done, if own == Some(life) { Do::Forget } else { Do::Ignore });
                        if own == Some(life) {
                            running.remove(&id);
                        }
                    }
                }
                for id in 0..3u128 {
                    let own = running.get(&id).copied();
                    for life in 0..8 {
                        assert_eq!(desk.is_running(InstanceId(id), Epoch(life)), own == Some(life));
                    }
                }
            }
        }
    }
}
