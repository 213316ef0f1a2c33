//! Who keeps books of a life beside the code that decides: what machines were told, what requests came, went and ended.
//!
//! It believes nobody's own records: the controller's orders and the pools' effects are what it sees.

use std::collections::{BTreeMap, BTreeSet};

use base::{Epoch, InstanceId, MachineId, RequestId};

/// Requests that an instance computes together, as its machine has it.
pub(crate) const SLOTS: usize = 4;
/// Tokens that are reserved for each request, prompt and answer at its longest.
pub(crate) const RESERVED: u64 = 128 + 64;

/// What was seen so far, and what was wrong with it and nobody was told yet.
#[derive(Default)]
pub(super) struct Witness {
    /// What each machine was told to hold and not told to let go.
    told: BTreeMap<MachineId, BTreeSet<InstanceId>>,
    /// The largest assignment that each machine was told.
    largest: BTreeMap<MachineId, Epoch>,
    /// Where each instance's requests are.
    running: BTreeMap<InstanceId, BTreeSet<RequestId>>,
    ended: BTreeSet<RequestId>,
    ledger: Ledger,
    pub(super) broken: Vec<(&'static str, String)>,
}

/// Tokens: what accounts had at first is what they have, what is reserved and what was paid.
#[derive(Default)]
struct Ledger {
    /// Granted as requests come: as much as each could cost.
    granted: u64,
    free: u64,
    reserved: BTreeMap<RequestId, u64>,
    /// All of `reserved`.
    held: u64,
    paid: u64,
}

impl Witness {
    fn is_wrong(&mut self, invariant: &'static str, what: String) {
        self.broken.push((invariant, what));
    }

    pub(super) fn assigned(&mut self, machine: MachineId, instance: InstanceId, epoch: Epoch) {
        let held = self.told.entry(machine).or_default();
        held.insert(instance);
        if held.len() > 1 {
            let what = format!("{machine} is told to hold {held:?}");
            self.is_wrong("one model per machine", what);
        }
        let largest = self.largest.entry(machine).or_insert(epoch);
        if epoch < *largest {
            let what = format!("{machine} is told {epoch} of {instance} after {largest}");
            self.is_wrong("epochs grow", what);
            return;
        }
        *largest = epoch;
    }

    pub(super) fn unassigned(&mut self, machine: MachineId, instance: InstanceId) {
        if let Some(held) = self.told.get_mut(&machine) {
            held.remove(&instance);
        }
    }

    pub(super) fn arrived(&mut self, request: RequestId) {
        self.ledger.granted += RESERVED;
        self.ledger.held += RESERVED;
        self.ledger.reserved.insert(request, RESERVED);
    }

    pub(super) fn sent(&mut self, request: RequestId, instance: InstanceId) {
        if self.ended.contains(&request) {
            self.is_wrong("one terminal", format!("{request} is sent after its end"));
        }
        let running = self.running.entry(instance).or_default();
        running.insert(request);
        if running.len() > SLOTS {
            let what = format!("{} requests are on {instance}, which computes {SLOTS}", running.len());
            self.is_wrong("capacity truth", what);
        }
    }

    /// An attempt is over, and its request may go on.
    pub(super) fn left(&mut self, request: RequestId, instance: InstanceId) {
        if let Some(running) = self.running.get_mut(&instance) {
            running.remove(&request);
            if running.is_empty() {
                self.running.remove(&instance);
            }
        }
    }

    /// It ended, and cost so many tokens; `lost` of what it had reserved and did not use do not come back.
    pub(super) fn ended(&mut self, request: RequestId, tokens: u64, lost: u64) {
        if !self.ended.insert(request) {
            self.is_wrong("one terminal", format!("{request} ended twice"));
        }
        let Some(reserved) = self.ledger.reserved.remove(&request) else {
            return self
                .is_wrong("ledger conserved", format!("{request} is settled and has nothing reserved"));
        };
        self.ledger.held -= reserved;
        self.ledger.paid += tokens;
        self.ledger.free += (reserved - tokens.min(reserved)).saturating_sub(lost);
    }

    /// The books agree, with themselves and with the requests that pools have.
    pub(super) fn balance(&mut self, in_pools: usize) {
        let Ledger { granted, free, reserved, held, paid } = &self.ledger;
        let (open, sum) = (reserved.len(), free + held + paid);
        if sum != *granted {
            let what = format!("{granted} tokens were granted, and {sum} are free, reserved or paid");
            self.is_wrong("ledger conserved", what);
        }
        if open != in_pools {
            let what = format!("{open} requests are open, and pools have {in_pools}");
            self.is_wrong("one terminal", what);
        }
    }

    /// Everything is over.
    pub(super) fn close(&mut self) {
        let open: Vec<RequestId> = self.ledger.reserved.keys().copied().collect();
        if let Some(first) = open.first() {
            self.is_wrong("one terminal", format!("{} requests never ended, {first} first", open.len()));
        }
    }
}
