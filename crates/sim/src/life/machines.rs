//! Machines of a life: they connect, are told what to hold, load it, and say so.

use base::{Epoch, InstanceId, MachineId, Micros};
use fleet::reconcile::{Input as News, RankReport};

use super::{Happening, Plant, Sim};
use crate::world::{FAILED, LOADING, READY};

impl Sim {
    pub(super) fn connect(&mut self, machine: MachineId, connection: u64) {
        if self.is_down() {
            // It dials again, and finds the coordinator at last.
            let again = Micros(1_000_000 + self.rng.below(2_000_000));
            return self.after(again, Happening::Connect(machine, connection));
        }
        let now = self.now;
        let provider = self.providers.get_mut(&machine).expect("machines are not forgotten");
        if provider.linked || provider.connection != connection {
            return;
        }
        (provider.linked, provider.linked_since) = (true, now);
        let (name, incarnation, holds) = (provider.name.clone(), provider.incarnation, provider.holds());
        self.say(|| format!("{machine} ({name}) connects, holding {}", holds.len()));
        self.seen(machine);
        self.ask();
        self.news(News::MachineUp { machine, name, incarnation, fresh: true, holds });
    }

    /// A connection that ended is known to have.
    pub(super) fn silent(&mut self, machine: MachineId, connection: u64) {
        let is_so = |provider: &crate::world::Provider| provider.connection == connection && !provider.linked;
        if !self.is_down() && self.providers.get(&machine).is_some_and(is_so) {
            self.news(News::MachineGone(machine));
            self.lose(machine);
        }
    }

    pub(super) fn told(&mut self, machine: MachineId, about: (InstanceId, Epoch, u32), assign: bool) {
        let now = self.now;
        let provider = self.providers.get_mut(&machine).expect("machines are not forgotten");
        if !provider.linked {
            return;
        }
        let (instance, epoch, rank) = about;
        if assign {
            let Some(start) = provider.assign(about, now) else {
                // What ended is said again to whoever asks for it again.
                if let Some(how) = provider.ended((instance, epoch)) {
                    self.after(Micros(1000), Happening::Says(machine, instance, epoch, rank, how));
                }
                return;
            };
            let takes = provider.load_s();
            self.after(Micros::from_secs_f64(takes), Happening::Loaded(machine, instance, epoch, start));
            self.after(Micros(1000), Happening::Says(machine, instance, epoch, rank, LOADING));
        } else if self.plant != Some(Plant::HoldsOn) {
            provider.unassign(instance, epoch);
        }
    }

    pub(super) fn loaded(&mut self, machine: MachineId, instance: InstanceId, epoch: Epoch, start: u64) {
        let by_chance = self.now < self.faults_end && self.rng.below(12) == 0;
        let fails = by_chance || self.cannot_form(instance, epoch);
        let provider = self.providers.get_mut(&machine).expect("machines are not forgotten");
        let Some(rank) = provider.loaded((instance, epoch), start, fails) else { return };
        let phase = if fails { FAILED } else { READY };
        self.after(Micros(1000), Happening::Says(machine, instance, epoch, rank, phase));
    }

    pub(super) fn says(&mut self, machine: MachineId, about: (InstanceId, Epoch, u32), phase: u8) {
        let report = match phase {
            LOADING => RankReport::Loading(50),
            READY => RankReport::Ready,
            FAILED => RankReport::Failed("it ran out of memory".to_owned()),
            _ => RankReport::Lost("another rank went without a word".to_owned()),
        };
        let unheard = phase == READY && machine == MachineId(1) && self.is_planted(Plant::NeverReady);
        if self.providers[&machine].linked && !unheard {
            let (instance, epoch, rank) = about;
            self.news(News::Report { machine, instance, epoch, rank, report });
        }
    }
}
