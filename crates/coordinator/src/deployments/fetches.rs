//! Models that machines take from each other before they are assigned: who is asked to, from whom, and who is told to give.
//! Nothing of it is kept on the disk: it follows from what is placed and from what machines say that they have.

use std::collections::{BTreeMap, HashMap};

use base::{Epoch, InstanceId, MachineId, ModelName};
use fleet::reconcile::{Instance, Phase};
use fleet::topology::Links;
use wire::control::{FetchModel, FromCoordinator, HOLDERS_MAX, LENDS_MAX, Lend, Lends};

use super::inbox::{AllFacts, Facts};
use super::reach::peer_of;
use super::writer::Writer;

/// What waits, and what was said for it.
#[derive(Default)]
pub(super) struct Fetches {
    /// Instances that are assigned once all their machines have the model.
    waiting: BTreeMap<InstanceId, Epoch>,
    /// What machines were asked to take, on which of their connections.
    asked: HashMap<(InstanceId, MachineId), (usize, FetchModel)>,
    /// What machines were told to give.
    told: HashMap<MachineId, (usize, Vec<Lend>)>,
}

impl Writer {
    /// Whether an instance's assignment waits until its machines have its model.
    pub(super) fn waits_for_files(&mut self, instance: &Instance) -> bool {
        let waits = !lacking(instance, &self.worlds.facts).is_empty();
        if waits {
            self.fetches.waiting.insert(instance.id, instance.epoch);
        }
        waits
    }

    /// Assigns what waits no more, and tells machines what they do not know yet.
    pub(super) fn follow_fetches(&mut self) {
        let mut wanted: Vec<(MachineId, FetchModel)> = Vec::new();
        for (id, epoch) in std::mem::take(&mut self.fetches.waiting) {
            let current = self.controller.instance(id);
            let current = current.filter(|of| of.epoch == epoch && of.phase == Phase::Assigned);
            let Some(instance) = current.cloned() else { continue };
            let lacking = lacking(&instance, &self.worlds.facts);
            if lacking.is_empty() {
                for (rank, (machine, _)) in (0u32..).zip(&instance.places) {
                    self.assign(*machine, id, rank);
                }
                continue;
            }
            self.fetches.waiting.insert(id, epoch);
            for (rank, machine) in lacking {
                let model = ModelName::new(instance.terms.model.as_str());
                let holders = holders(&self.worlds.facts, &self.world.links, machine, &model);
                wanted.push((machine, FetchModel { instance: id, epoch, rank, model, holders }));
            }
        }
        self.tell_lends(&wanted);
        self.tell_fetches(wanted);
    }

    /// Who gives is told before whoever asks.
    fn tell_lends(&mut self, wanted: &[(MachineId, FetchModel)]) {
        let facts = &self.worlds.facts;
        let mut lends: BTreeMap<MachineId, Vec<Lend>> =
            self.fetches.told.keys().map(|holder| (*holder, Vec::new())).collect();
        for (machine, fetch) in wanted {
            let Some(signing_key) = facts.get(machine).map(|facts| facts.signing_key.clone()) else {
                continue;
            };
            for holder in &fetch.holders {
                let (machine, signing_key) = (*machine, signing_key.clone());
                let lend = Lend { machine, signing_key, model: fetch.model.clone() };
                lends.entry(holder.machine).or_default().push(lend);
            }
        }
        for (holder, mut lends) in lends {
            lends.sort_unstable();
            lends.dedup();
            lends.truncate(LENDS_MAX);
            let connection = facts.get(&holder).filter(|facts| facts.here).map(|facts| facts.connection);
            let Some(connection) = connection else { continue };
            let said = (connection, lends);
            if self.fetches.told.get(&holder) == Some(&said) {
                continue;
            }
            if let Some(session) = self.core.machines.session(holder) {
                session.lanes.control(FromCoordinator::Lend(Lends { lends: said.1.clone() }));
                self.fetches.told.insert(holder, said);
            }
        }
        let known = |holder: &MachineId| facts.get(holder).is_some_and(|facts| facts.here);
        self.fetches.told.retain(|holder, (_, lends)| !lends.is_empty() && known(holder));
    }

    fn tell_fetches(&mut self, wanted: Vec<(MachineId, FetchModel)>) {
        let mut asked = HashMap::with_capacity(wanted.len());
        for (machine, fetch) in wanted {
            let Some(connection) = self.worlds.facts.get(&machine).map(|facts| facts.connection) else {
                continue;
            };
            let key = (fetch.instance, machine);
            let said = (connection, fetch);
            if self.fetches.asked.get(&key) != Some(&said) {
                let Some(session) = self.core.machines.session(machine) else { continue };
                let (model, holders) = (&said.1.model, said.1.holders.len());
                tracing::info!(%machine, %model, holders, "asked to take a model from others");
                session.lanes.control(FromCoordinator::FetchModel(said.1.clone()));
            }
            asked.insert(key, said);
        }
        self.fetches.asked = asked;
    }
}

/// The ranks of an instance whose machines have said that they have not its model, and that they would take it.
fn lacking(instance: &Instance, facts: &AllFacts) -> Vec<(u32, MachineId)> {
    let lacks = |facts: &Facts| {
        let Some(inventory) = facts.inventory.as_deref().filter(|_| facts.managed) else { return false };
        let has = inventory.models.iter().any(|model| model.name.as_str() == instance.terms.model);
        !has && inventory.fetch_room.0 > 0
    };
    let places = (0u32..).zip(&instance.places).map(|(rank, (machine, _))| (rank, *machine));
    places.filter(|(_, machine)| facts.get(machine).is_some_and(lacks)).collect()
}

/// Who gives a model to a machine: those that it is proved to reach before others, the fastest first. Those that it was
/// tried to reach, and does not, are none.
fn holders(facts: &AllFacts, links: &Links, to: MachineId, model: &ModelName) -> Vec<wire::control::Peer> {
    let number =
        |machine: MachineId| facts.keys().position(|of| *of == machine).and_then(|at| u32::try_from(at).ok());
    let Some(here) = number(to) else { return Vec::new() };
    let gives = |facts: &Facts| {
        let Some(inventory) = facts.inventory.as_deref() else { return false };
        let has = inventory.models.iter().any(|of| of.lent && of.name == *model);
        facts.here && facts.managed && has && !inventory.probe_addresses.is_empty()
    };
    let mut found: Vec<(bool, u64, MachineId)> = Vec::new();
    for (at, (machine, _)) in (0u32..).zip(facts).filter(|(_, (of, facts))| **of != to && gives(facts)) {
        if !links.is_down(here, at) {
            let up = links.up(here, at);
            found.push((up.is_none(), u64::MAX - up.map_or(0.0, |link| link.bandwidth) as u64, *machine));
        }
    }
    found.sort_unstable();
    let peers = found.into_iter().take(HOLDERS_MAX);
    peers.filter_map(|(.., machine)| Some(peer_of(machine, facts.get(&machine)?))).collect()
}
