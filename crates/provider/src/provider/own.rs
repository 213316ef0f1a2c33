//! The provider's task and its own instances: what their loading threads say, and engines that break down.

use wire::control::FromProvider;

use super::Provider;
use crate::assignment::desk::Input as Desk;
use crate::event::Event;
use crate::instance::{Change, News, Step};
use crate::uplink::machine::Input;

impl Provider {
    /// A loading thread has news: the coordinator is told at once (E4).
    pub(super) fn step(&mut self, step: Step) -> Option<Input> {
        let index = step.index;
        let model = self.instances.model(index).clone();
        let event = match &step.news {
            News::Described { .. } => None,
            News::Started { engine } => {
                if let Some(notice) = engine.notice() {
                    self.tell(Event::Notice { model: model.clone(), text: notice });
                }
                let report = engine.load_now();
                let took = self.instances.age(index);
                Some(Event::Ready { model, took, slots: report.slots, kv_tokens: report.kv_tokens })
            }
            News::InGroups { detail } => Some(Event::InGroups { model, detail: detail.clone() }),
            News::Failed { detail } => Some(Event::Failed { model, detail: detail.clone() }),
        };
        let change = self.instances.take(step);
        if let Some(event) = event {
            self.tell(event);
        }
        if !self.uplink.is_up() {
            return None;
        }
        match change {
            Change::Offer => self.register(),
            Change::Report(index) => {
                let report = self.instances.report(index);
                self.say(&FromProvider::InstanceChanged(report))
            }
        }
    }

    /// An engine that broke down fails its attempts: the coordinator hears of it with them, not at the next heartbeat.
    pub(super) fn look_for_broken(&mut self) -> Option<Input> {
        let mut closed = None;
        for (index, detail) in self.instances.broken() {
            let model = self.instances.model(index).clone();
            tracing::error!(%model, detail, "an engine broke down");
            self.tell(Event::Failed { model, detail });
            if self.uplink.is_up() {
                let report = self.instances.report(index);
                closed = closed.or(self.say(&FromProvider::InstanceChanged(report)));
            }
        }
        for (life, detail) in self.instances.broken_lives() {
            tracing::error!(detail, "an engine broke down");
            closed = closed.or(self.decide(Desk::Broke { life, detail }));
        }
        closed
    }
}
