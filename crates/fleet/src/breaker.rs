//! Machines that fault are left alone for a growing while. Keyed by the machine's identity, so that connecting again
//! resets nothing.

use std::collections::BTreeMap;

use base::{MachineId, Micros};

use crate::policy::Policy;

/// Machines remembered at most. Beyond it the one whose last fault is oldest is forgotten.
const MACHINES_MAX: usize = 4096;

/// What is remembered of one machine.
#[derive(Debug, Clone, Copy, Default)]
struct Breaker {
    faults: u32,
    openings: u32,
    /// It completed nothing since its breaker was last open.
    probation: bool,
    open_until: Option<Micros>,
    last_fault: Micros,
}

/// The breakers of one pool.
#[derive(Debug, Clone, Default)]
pub struct Breakers {
    machines: BTreeMap<MachineId, Breaker>,
}

impl Breakers {
    /// `machine` failed an attempt through its own fault. Refusals for lack of room do not count here.
    pub fn fault(&mut self, machine: MachineId, now: Micros, policy: &Policy) {
        if policy.breaker_faults == 0 {
            return;
        }
        if self.machines.len() >= MACHINES_MAX && !self.machines.contains_key(&machine) {
            let oldest = self.machines.iter().min_by_key(|(_, b)| b.last_fault).map(|(id, _)| *id);
            oldest.map(|id| self.machines.remove(&id));
        }
        let breaker = self.machines.entry(machine).or_default();
        if now.saturating_sub(breaker.last_fault) > policy.breaker_forget_us {
            *breaker = Breaker::default();
        }
        breaker.last_fault = now;
        breaker.faults += 1;
        // After a cool-down one more fault is enough: the machine is on probation until it completes something.
        let enough = if breaker.probation { 1 } else { policy.breaker_faults };
        let open = breaker.open_until.is_some_and(|until| until > now);
        if breaker.faults >= enough && !open {
            let factor = 1u64.checked_shl(breaker.openings).unwrap_or(u64::MAX);
            let cool = policy.breaker_cool_us.0.saturating_mul(factor).min(policy.breaker_cool_us_max.0);
            breaker.open_until = Some(now.saturating_add(Micros(cool)));
            breaker.openings = breaker.openings.saturating_add(1).min(32);
            breaker.faults = 0;
            breaker.probation = true;
        }
    }

    /// `machine` completed an attempt that began at `began`.
    pub fn success(&mut self, machine: MachineId, began: Micros) {
        // What began before the last fault proves nothing about the time after it.
        if let Some(breaker) = self.machines.get_mut(&machine)
            && began >= breaker.last_fault
        {
            breaker.faults = 0;
            breaker.probation = false;
            breaker.open_until = None;
        }
    }

    /// Until when `machine` is barred, where it is at `now`.
    pub fn barred_until(&self, machine: MachineId, now: Micros) -> Option<Micros> {
        self.machines.get(&machine)?.open_until.filter(|until| *until > now)
    }

    /// Whether no breaker has anything to say.
    pub fn is_empty(&self) -> bool {
        self.machines.is_empty()
    }
}
