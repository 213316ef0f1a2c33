//! The provider's task and other machines: whom it tries, and what the coordinator hears of it.

use wire::control::{FromProvider, LINKS_MAX, LinkReports};

use super::Provider;
use crate::probe::desk::Input as Probing;
use crate::uplink::machine::Input;

impl Provider {
    /// Something happened to tries, or is due.
    pub(super) fn probe(&mut self, input: Probing) -> Option<Input> {
        let now = self.now();
        let busy = self.table.len() > 0 || self.groups.work();
        let probes = self.probes.as_mut()?;
        if let Probing::Ended(outcome) = &input {
            probes.note(outcome);
        }
        probes.set_busy(busy);
        let effects = probes.desk.handle(now, busy, input);
        let links = probes.perform(effects);
        // Where there is no connection it is said on the next, which begins with whom to try.
        let says = |links: &[_]| FromProvider::Links(LinkReports { links: links.to_vec() });
        links.chunks(LINKS_MAX).find_map(|links| self.say_if_up(&says(links)))
    }

    /// Whom the coordinator says to try.
    pub(super) fn listed(&mut self, peers: wire::control::Peers) {
        let Some(probes) = &self.probes else { return };
        let input = probes.listed(peers);
        self.probe(input);
    }
}
