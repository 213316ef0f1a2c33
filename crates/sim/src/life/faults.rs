//! What goes wrong in a life, and what is checked after everything that happens.

use base::{Epoch, InstanceId, MachineId, Micros};

use super::{Happening, Life, MODELS, Plant, Sim};

impl Sim {
    pub(super) fn fault(&mut self) {
        if self.now >= self.faults_end {
            self.heal();
            return self.goes_on_failing();
        }
        let machines: Vec<MachineId> = self.providers.keys().copied().collect();
        let machine = machines[self.rng.below(machines.len() as u64) as usize];
        let kind = self.rng.below(11);
        self.coordinator.disturbed = true;
        let away = Micros(self.rng.below(60_000_000));
        let names = ["is lost", "freezes", "is cut off", "restarts", "slows down", "lies"];
        if let Some(name) = names.get(kind as usize) {
            self.say(|| format!("{machine} {name} ({:.0} s)", away.as_secs_f64()));
        }
        match kind {
            0..=3 => {
                let dies = kind == 0 || kind == 3;
                let provider = self.providers.get_mut(&machine).expect("machines are not forgotten");
                let connection = provider.cut(dies);
                if dies {
                    self.forget_reach(machine);
                }
                let back = if kind == 3 { Micros(away.0 / 20) } else { away };
                self.after(
                    Micros::from_secs(if dies { 0 } else { 6 }),
                    Happening::Silent(machine, connection),
                );
                self.after(back + Micros::from_secs(7), Happening::Connect(machine, connection));
            }
            4 => {
                let slow = 1.0 + self.rng.next_f64() * 5.0;
                self.providers.get_mut(&machine).expect("machines are not forgotten").slow = slow;
            }
            9 if self.network.can_be_cut() => self.cut(machine, 5 + away.0 / 500_000),
            // These need a coordinator.
            _ if self.is_down() => {}
            10 => self.kill_coordinator(Micros::from_secs(2) + Micros(away.0 / 2)),
            6 => {
                self.say(|| format!("the coordinator's clock jumps ({:.0} s)", away.as_secs_f64()));
                self.skew += away;
            }
            7 => self.redeclare(away.0 as usize % MODELS.len()),
            8 => self.delete(away.0 as usize % MODELS.len(), away),
            _ => {
                let (instance, epoch) = (InstanceId(self.rng.next_u64().into()), Epoch(self.rng.below(100)));
                let known = self.controller.instances().map(|i| i.id).nth(self.rng.below(3) as usize);
                self.after(Micros(1), Happening::Says(machine, known.unwrap_or(instance), epoch, 0, 1));
            }
        }
        // Five minutes on average.
        let gap = -(1.0 - self.rng.next_f64()).ln() * 300.0;
        self.after(Micros::from_secs_f64(gap.clamp(1.0, 3600.0)), Happening::Fault);
    }

    /// Faults are over, and yet what stands fails every ten minutes.
    fn goes_on_failing(&mut self) {
        if !self.is_planted(Plant::Restless) {
            return;
        }
        let ready = self.controller.instances().filter(|instance| instance.is_ready());
        for of in ready.map(|i| (i.places[0].0, i.id, i.epoch)).collect::<Vec<_>>() {
            self.after(Micros(1), Happening::Says(of.0, of.1, of.2, 0, 2));
        }
        self.after(Micros::from_secs(600), Happening::Fault);
    }

    /// Faults are over: everybody comes back, as fast as before.
    fn heal(&mut self) {
        self.say(|| "faults are over".to_owned());
        self.mend_all();
        for machine in self.providers.keys().copied().collect::<Vec<_>>() {
            let provider = self.providers.get_mut(&machine).expect("machines are not forgotten");
            provider.slow = 1.0;
            let connection = provider.connection;
            self.after(Micros::from_secs(1), Happening::Connect(machine, connection));
        }
    }

    pub(super) fn check(&mut self) {
        let mut epoch = self.controller.epoch();
        if self.is_planted(Plant::EpochsGoBack) && self.life.events % 100 == 99 {
            epoch = Epoch(epoch.0.saturating_sub(1));
        }
        if epoch < self.largest {
            self.violate("epochs grow", format!("{epoch} after {}", self.largest));
        }
        self.largest = epoch;
        let in_pools = self.pools.iter().map(|pool| pool.running() + pool.queued()).sum();
        self.witness.balance(in_pools);
        self.say_broken();
    }

    /// Whether the controller itself has machines hold one model at most: of those that it has just told something.
    pub(super) fn check_told(&mut self, machine: MachineId) {
        let told = self.controller.told(machine);
        if told.len() > 1 {
            self.witness.broken.push(("one model per machine", format!("{machine} is told {told:?}")));
        }
    }

    /// What the witness saw and nobody was told yet.
    pub(super) fn say_broken(&mut self) {
        for (invariant, what) in std::mem::take(&mut self.witness.broken) {
            self.violate(invariant, what);
        }
    }

    pub(super) fn finish(mut self) -> Life {
        let hours = self.now.as_secs_f64() / 3600.0;
        self.life.machine_hours = hours * self.providers.len() as f64;
        self.check_declared();
        let mut open = Vec::new();
        for (name, deployment) in self.controller.deployments() {
            let of: Vec<_> = self.controller.instances().filter(|i| i.deployment == *name).collect();
            if of.iter().any(|instance| !instance.is_ready()) {
                open.push(format!("{name}: {:?}", of.iter().map(|i| i.phase).collect::<Vec<_>>()));
            }
            let placed = deployment.conditions.is(fleet::deployment::ConditionType::Placed);
            if placed && of.len() as u32 != deployment.spec.replicas.floor() {
                open.push(format!("{name} is called placed with {} instances", of.len()));
            }
        }
        for (machine, provider) in &self.providers {
            let holds: Vec<_> = provider.holds().iter().map(|h| (h.instance, h.epoch, h.rank)).collect();
            if self.controller.told(*machine) != holds {
                open.push(format!(
                    "{machine} holds {holds:?} and was told {:?}",
                    self.controller.told(*machine)
                ));
            }
        }
        for what in open {
            self.violate("convergence", what);
        }
        self.life
    }
}
