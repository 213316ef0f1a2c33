//! Instances that assignments make: described, started, drained, taken out.

use std::sync::Arc;
use std::time::Instant;

use base::{Epoch, InstanceId};
use wire::control::{InstanceReport, ModelDescriptor};

use super::{Instance, Instances, State};
use crate::assignment::desk::Life;
use crate::host::Host;

impl Instances {
    /// The files of an assignment's model are whole and known: it is offered, loading.
    pub(crate) fn describe_assigned(
        &mut self,
        life: Life,
        (id, epoch): (InstanceId, Epoch),
        descriptor: ModelDescriptor,
        kit: Arc<[u8]>,
    ) {
        self.list.retain(|instance| instance.life.is_none() || instance.id != id);
        self.list.push(Instance {
            id,
            model: descriptor.name.clone(),
            state: State::Loading,
            descriptor: Some(descriptor),
            kit: Some(kit),
            generation: 0,
            began: Instant::now(),
            seat: Some((epoch, 1)),
            aside: false,
            life: Some(life),
            leaving: false,
        });
    }

    /// It takes requests.
    pub(crate) fn start_assigned(&mut self, life: Life, host: Host) {
        if let Some(instance) = self.list.iter_mut().find(|instance| instance.life == Some(life)) {
            if let Some(descriptor) = &mut instance.descriptor {
                // Memory may hold less than the model's own context: the offer must not promise more.
                descriptor.context = host.load_now().context;
            }
            instance.state = State::Ready(host);
        }
    }

    /// It goes on under another epoch.
    pub(crate) fn restamp(&mut self, life: Life, epoch: Epoch) {
        if let Some(instance) = self.list.iter_mut().find(|instance| instance.life == Some(life)) {
            instance.seat = Some((epoch, 1));
        }
    }

    /// It takes nothing new from now on; how it is, to be said.
    pub(crate) fn drain_assigned(&mut self, life: Life) -> Option<InstanceReport> {
        let draining = self.draining;
        let instance = self.list.iter_mut().find(|instance| instance.life == Some(life))?;
        instance.leaving = true;
        Some(instance.report(draining))
    }

    /// Assignments that finish what they have.
    pub(crate) fn draining_lives(&self) -> Vec<Life> {
        self.list.iter().filter(|instance| instance.leaving).filter_map(|instance| instance.life).collect()
    }

    /// The instance that an assignment makes.
    pub(crate) fn of_life(&self, life: Life) -> Option<InstanceId> {
        self.list.iter().find(|instance| instance.life == Some(life)).map(|instance| instance.id)
    }

    /// Takes it out; its engine, to be stopped.
    pub(crate) fn take_assigned(&mut self, life: Life) -> Option<Host> {
        let at = self.list.iter().position(|instance| instance.life == Some(life))?;
        match self.list.remove(at).state {
            State::Ready(host) => Some(host),
            State::Loading | State::InGroups(_) | State::Failed(_) => None,
        }
    }

    /// It never came to be; whether it was offered.
    pub(crate) fn forget_assigned(&mut self, life: Life) -> bool {
        let before = self.list.len();
        self.list.retain(|instance| instance.life != Some(life));
        self.list.len() < before
    }

    /// Assignments whose engine broke down, and why.
    pub(crate) fn broken_lives(&self) -> Vec<(Life, String)> {
        let broken = |instance: &Instance| match &instance.state {
            State::Ready(host) => Some((instance.life?, host.load_now().failed?)),
            _ => None,
        };
        self.list.iter().filter_map(broken).collect()
    }
}
