//! The provider's task and its ranks: what they say goes to the coordinator, and their instances into the listing.

use wire::control::{FromCoordinator, FromProvider};

use super::Provider;
use crate::event::Event;
use crate::group::GroupNews;
use crate::probe::desk::Input as Probing;
use crate::uplink::machine::Input;

impl Provider {
    /// What the coordinator wants of a rank.
    pub(super) fn carry_group(&mut self, message: FromCoordinator) {
        let Some(message) = self.group_may_begin(message) else { return };
        let models = match &self.managed {
            Some(managed) => managed.models(&self.config.models),
            None => self.config.models.clone(),
        };
        let instances = &self.instances;
        let refused = self.groups.carry(message, &models, |model| instances.own(model));
        if let Some(report) = refused {
            self.say(&FromProvider::GroupReport(report));
        }
        self.stand_aside();
        self.note_groups();
    }

    /// A rank has news.
    pub(super) fn group_news(&mut self, news: GroupNews) -> Option<Input> {
        if !self.groups.note(&news) {
            return None;
        }
        let closed = self.note_groups();
        closed.or_else(|| self.after_group_news(news))
    }

    fn after_group_news(&mut self, news: GroupNews) -> Option<Input> {
        match news {
            GroupNews::Ports(ports) => self.say_if_up(&FromProvider::GroupPorts(ports)),
            GroupNews::Report(report) => {
                self.stand_aside();
                self.say_if_up(&FromProvider::GroupReport(report))
            }
            GroupNews::Up(up) => {
                let report = up.engine.load_now();
                let (model, took) = (up.descriptor.name.clone(), self.origin.elapsed());
                let (slots, kv_tokens) = (report.slots, report.kv_tokens);
                self.instances.group_up(*up);
                self.tell(Event::Ready { model, took, slots, kv_tokens });
                self.uplink.is_up().then(|| self.register()).flatten()
            }
            GroupNews::Over { instance, .. } => {
                // Whatever ended it may be between the machines.
                self.probe(Probing::Doubt);
                let was_offered = self.instances.group_over(instance);
                self.stand_aside();
                (was_offered && self.uplink.is_up()).then(|| self.register()).flatten()
            }
        }
    }

    /// On a new connection: what the coordinator may have missed.
    pub(super) fn say_ranks_again(&mut self) -> Option<Input> {
        let reports = self.groups.again();
        reports.into_iter().find_map(|report| self.say(&FromProvider::GroupReport(report)))
    }

    /// Own instances of models that this machine's ranks compute take nothing new while they do: one machine holds one
    /// model once (A1). They are there again as soon as the group is not.
    fn stand_aside(&mut self) {
        let groups = &self.groups;
        for index in self.instances.set_aside(|model| groups.computes(model)) {
            let report = self.instances.report(index);
            self.say_if_up(&FromProvider::InstanceChanged(report));
        }
    }

    pub(super) fn say_if_up(&mut self, message: &FromProvider) -> Option<Input> {
        if self.uplink.is_up() { self.say(message) } else { None }
    }
}
