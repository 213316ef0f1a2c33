//! The provider's task and its assignments: what the coordinator wants, what threads say, and what follows for instances
//! and ranks.

use std::collections::VecDeque;
use std::time::Duration;

use base::{Epoch, InstanceId, Micros};
use wire::control::{
    AssignGroup, AssignmentPhase, AssignmentReport, FromCoordinator, FromProvider, GroupPhase, GroupReport,
};

use super::Provider;
use crate::assignment::desk::{Busy, Effect, Input as Desk, Life};
use crate::assignment::{AssignNews, name_of};
use crate::event::Event;
use crate::measured::Speeds;
use crate::uplink::machine::{Input, clipped};

/// Left free in a control message for its frame.
const MESSAGE_SLACK: usize = 1 << 10;

impl Provider {
    /// What the coordinator wants held, or held no more.
    pub(super) fn carry_assignment(&mut self, message: FromCoordinator) {
        let Some(managed) = &mut self.managed else {
            return self.not_managed(message);
        };
        let input = match message {
            FromCoordinator::Assign(assignment) => {
                let needs = managed.needs(&assignment);
                Desk::Assign { assignment, needs }
            }
            FromCoordinator::Unassign(end) => {
                tracing::info!(instance = %end.instance, reason = clipped(&end.reason), "taken back");
                managed.fetches.unwanted(end.instance, end.epoch);
                Desk::Unassign { instance: end.instance, epoch: end.epoch, drain: Micros(end.drain_us) }
            }
            FromCoordinator::RenewLeases(leases) => Desk::Renew(leases),
            _ => return,
        };
        self.decide(input);
    }

    /// A machine whose owner decides what it holds.
    fn not_managed(&mut self, message: FromCoordinator) {
        if let FromCoordinator::Assign(assignment) = message {
            let detail =
                "its owner decides what this machine holds: start its provider with --managed".to_owned();
            let (instance, epoch, rank) = (assignment.instance, assignment.epoch, assignment.rank);
            let phase = AssignmentPhase::Refused;
            let report = AssignmentReport { instance, epoch, rank, phase, percent: 0, detail };
            self.say_if_up(&FromProvider::AssignmentReport(report));
        }
    }

    /// Asks the desk, and does what it says, until nothing follows.
    pub(super) fn decide(&mut self, input: Desk) -> Option<Input> {
        let (mut inputs, mut closed) = (VecDeque::from([input]), None);
        while let Some(input) = inputs.pop_front() {
            let now = self.now();
            let Some(managed) = &mut self.managed else { return None };
            let mut effects = Vec::new();
            managed.desk.handle(now, input, &mut effects);
            managed.note_held();
            for effect in effects {
                let (follows, ended) = self.perform_assigned(effect);
                inputs.extend(follows);
                closed = closed.or(ended);
            }
        }
        let waited = self.managed.as_mut().map(|managed| managed.waited()).unwrap_or_default();
        for message in waited {
            self.carry_group(message);
        }
        closed
    }

    fn perform_assigned(&mut self, effect: Effect) -> (Option<Desk>, Option<Input>) {
        let Some(managed) = &mut self.managed else { return (None, None) };
        match effect {
            Effect::Load { life, assignment } => {
                let model = assignment.model.clone();
                // Their memory must be free first.
                managed.load(life, assignment, self.groups.take_ended());
                self.tell(Event::Loading { model });
                (None, None)
            }
            Effect::Cancel { life } => {
                managed.cancel(life);
                (None, None)
            }
            Effect::Drain { life } => {
                let report = self.instances.drain_assigned(life);
                let closed = report.and_then(|report| self.say_if_up(&FromProvider::InstanceChanged(report)));
                (self.in_flight(life), closed)
            }
            Effect::Unload { life } => {
                let host = self.instances.take_assigned(life);
                managed.unload(life, host);
                (None, self.register_if_up())
            }
            Effect::Restamp { life, epoch } => {
                managed.restamp(life, epoch);
                self.instances.restamp(life, epoch);
                (None, self.register_if_up())
            }
            Effect::Report(report) => {
                self.tell_of(&report);
                (None, self.say_if_up(&FromProvider::AssignmentReport(report)))
            }
        }
    }

    fn tell_of(&mut self, report: &AssignmentReport) {
        let what = match report.phase {
            AssignmentPhase::Refused => "refused",
            AssignmentPhase::Failed => "failed",
            AssignmentPhase::Gone => "gone",
            _ => return,
        };
        tracing::info!(instance = %report.instance, epoch = report.epoch.0, what, detail = report.detail);
        if report.phase == AssignmentPhase::Refused {
            self.tell(Event::Declined { detail: report.detail.clone() });
        }
    }

    /// How many attempts are in flight where a life drains.
    fn in_flight(&self, life: Life) -> Option<Desk> {
        let instance = self.instances.of_life(life)?;
        Some(Desk::InFlight { life, attempts: self.table.of_instance(instance) })
    }

    /// An attempt ended: what drains may be done.
    pub(super) fn look_at_drains(&mut self) -> Option<Input> {
        let draining = self.instances.draining_lives();
        let counts: Vec<Desk> = draining.into_iter().filter_map(|life| self.in_flight(life)).collect();
        counts.into_iter().fold(None, |closed, count| closed.or(self.decide(count)))
    }

    /// A thread has news.
    pub(super) fn assign_news(&mut self, news: AssignNews) -> Option<Input> {
        match news {
            AssignNews::Shelf(shelf) => {
                let managed = self.managed.as_mut()?;
                let models = shelf.models.len();
                let broken = managed.shelve(shelf);
                for (name, why) in broken {
                    self.tell(Event::Broken { name, why });
                }
                self.tell(Event::Shelved { models });
                self.say_inventory()
            }
            AssignNews::Fetching { model, progress } => self.fetching(&model, progress),
            AssignNews::FetchEnded { model, how } => self.fetch_ended(&model, &how),
            AssignNews::Described { life, descriptor, kit } => {
                let assignment = self.managed.as_ref()?.assignment(life)?;
                let at = (assignment.instance, assignment.epoch);
                self.instances.describe_assigned(life, at, *descriptor, kit);
                self.register_if_up()
            }
            AssignNews::Progress { life, percent } => self.decide(Desk::Progress { life, percent }),
            AssignNews::Loaded { life, host, took } => self.loaded(life, host, took),
            AssignNews::LoadEnded { life, failed } => {
                let assignment = self.managed.as_mut()?.load_is_over(life);
                // Its place in the listing is free before its end is said.
                let was_offered = self.instances.forget_assigned(life);
                let closed = if was_offered { self.register_if_up() } else { None };
                self.tell(Event::Failed { model: name_of(assignment.as_ref()), detail: failed.clone() });
                closed.or(self.decide(Desk::LoadEnded { life, failed: Some(failed) }))
            }
            AssignNews::Unloaded { life, resident } => {
                self.tell(Event::Unloaded { resident });
                self.decide(Desk::Unloaded { life })
            }
        }
    }

    fn loaded(&mut self, life: Life, host: crate::host::Host, took: Duration) -> Option<Input> {
        let report = host.load_now();
        let managed = self.managed.as_mut()?;
        let assignment = managed.load_is_over(life);
        let model = name_of(assignment.as_ref());
        managed.measured.note(model.as_str(), Speeds::of(&report));
        if let Some(text) = host.notice() {
            self.tell(Event::Notice { model: model.clone(), text });
        }
        self.instances.start_assigned(life, host);
        let closed = self.register_if_up();
        let closed = closed.or(self.decide(Desk::Loaded { life }));
        self.tell(Event::Ready { model, took, slots: report.slots, kv_tokens: report.kv_tokens });
        closed.or_else(|| self.say_inventory())
    }

    /// On a new connection, after the registration.
    pub(super) fn say_assignments_again(&mut self) -> Option<Input> {
        let closed = self.say_inventory();
        let again = self.managed.as_ref().map(|managed| managed.desk.again()).unwrap_or_default();
        let say = |report| self.say_if_up(&FromProvider::AssignmentReport(report));
        let closed = closed.or_else(|| again.into_iter().find_map(say));
        closed.or_else(|| self.say_fetches_again())
    }

    pub(super) fn say_inventory(&mut self) -> Option<Input> {
        if !self.uplink.is_up() || !self.managed.as_ref()?.looked {
            return None;
        }
        let bytes_max = self.session.as_ref()?.control_bytes_max().saturating_sub(MESSAGE_SLACK);
        let addresses = self.probes.as_ref().map(crate::probe::Probes::addresses).unwrap_or_default();
        let inventory = self.managed.as_ref()?.inventory(bytes_max, addresses);
        self.say(&inventory)
    }

    fn register_if_up(&mut self) -> Option<Input> {
        if self.uplink.is_up() { self.register() } else { None }
    }

    /// Whether a rank of a group may begin now: else it waits, or what is said instead.
    pub(super) fn group_may_begin(&mut self, message: FromCoordinator) -> Option<FromCoordinator> {
        let Some(managed) = &mut self.managed else { return Some(message) };
        let assign = match message {
            FromCoordinator::AssignGroup(assign) => assign,
            FromCoordinator::UnassignGroup { instance, epoch, reason } => {
                managed.wait_no_more(instance, epoch);
                return Some(FromCoordinator::UnassignGroup { instance, epoch, reason });
            }
            other => return Some(other),
        };
        let refused = match managed.desk.why_no_group() {
            Ok(()) => return Some(FromCoordinator::AssignGroup(assign)),
            Err(Busy::Held(why)) => refused(&assign, why),
            Err(Busy::Ending) => match managed.wait(assign) {
                Ok(()) => return None,
                Err(assign) => refused(&assign, "too many ranks wait for this machine's memory".to_owned()),
            },
        };
        self.say_if_up(&FromProvider::GroupReport(refused));
        None
    }

    /// Ranks of groups came or went.
    pub(super) fn note_groups(&mut self) -> Option<Input> {
        let models = self.groups.computed();
        self.managed.is_some().then(|| self.decide(Desk::Groups(models))).flatten()
    }
}

fn refused(assign: &AssignGroup, detail: String) -> GroupReport {
    let (instance, epoch, rank): (InstanceId, Epoch, u32) = (assign.instance, assign.epoch, assign.rank);
    let (phase, culprit) = (GroupPhase::Ended, Some(rank));
    GroupReport { instance, epoch, rank, phase, culprit, detail, telemetry: None, standing: None }
}
