//! The groups: instances that several machines make together. Each has a state machine (`fleet::group`); this carries what
//! happens to it, and does what it says.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use base::{Epoch, Incarnation, InstanceId, MachineId, Micros, ModelName};
use fleet::group::{Effect, Group, Input, RankPhase};
use fleet::reconcile::RankReport;
use parking_lot::Mutex;
use tokio::sync::Notify;
use wire::admin::group::{CreateGroup, GroupStatus, PastLife, RankStatus};
use wire::control::{
    AssignGroup, FromCoordinator, GroupMember, GroupPorts, GroupReport, GroupRoster, InstanceOffer, RANKS_MAX,
};
use wire::link::WireType;

use crate::core::Core;
use crate::deployments::GroupTerms;
use crate::metrics::Metrics;
use crate::problem::Problem;

/// Groups at a time. An operator makes them, one by one.
const GROUPS_MAX: usize = 1024;

/// How long members may take to find each other.
const FORM_US_MAX: u64 = 30_000_000;

/// How long a rank of a deployment's group may be waited for within a step.
const PATIENCE_MS: u64 = 2_000;

/// What a rank needs to be told of another.
struct Member {
    machine: MachineId,
    name: String,
    signing_key: String,
}

struct Entry {
    instance: InstanceId,
    asked: CreateGroup,
    members: Vec<Member>,
    group: Group,
    /// What a deployment says of it, and how far its ranks were told to be.
    deployed: Option<(GroupTerms, Vec<RankPhase>)>,
}

/// The groups, oldest first, and where each is: each request asks whether its instance is one.
#[derive(Default)]
struct Entries {
    list: Vec<Entry>,
    at: HashMap<InstanceId, usize>,
}

impl Entries {
    fn get(&self, instance: InstanceId) -> Option<&Entry> {
        self.at.get(&instance).map(|at| &self.list[*at])
    }

    fn push(&mut self, entry: Entry) {
        self.at.insert(entry.instance, self.list.len());
        self.list.push(entry);
    }

    fn remove(&mut self, instance: InstanceId) -> Option<Entry> {
        let at = self.at.remove(&instance)?;
        let removed = self.list.remove(at);
        for (at, entry) in self.list.iter().enumerate().skip(at) {
            self.at.insert(entry.instance, at);
        }
        Some(removed)
    }
}

/// Every group. Its lock is never held while a machine or a pool is told something.
#[derive(Default)]
pub(crate) struct Groups {
    entries: Mutex<Entries>,
    /// Of deployments' instances between two lives: the life before, for what went wrong in it and in those before it.
    ended: Mutex<VecDeque<(InstanceId, Group)>>,
    sooner: Notify,
}

/// Something to do once no lock is held.
enum Todo {
    Say(MachineId, FromCoordinator),
    Withdraw(InstanceId),
    /// A deployment's instance came so far.
    Tell(fleet::reconcile::Input),
    Log(Effect, InstanceId, ModelName),
}

impl Groups {
    /// Whether `machine` may offer this instance: nothing of a group that is not its own, and no rank but 0 (E3, A3).
    pub(crate) fn admits(&self, machine: MachineId, offer: &InstanceOffer) -> Result<(), &'static str> {
        let entries = self.entries.lock();
        match entries.get(offer.instance) {
            Some(entry) if entry.asked.model != offer.model.name => Err("its model is not its group's"),
            Some(entry) => entry.group.admits(machine, offer.epoch, offer.rank, offer.ranks),
            None if offer.rank == 0 && offer.ranks == 1 => Ok(()),
            None => Err("it is a rank of a group that this coordinator does not know"),
        }
    }

    /// Whether this instance is a group's.
    pub(crate) fn contains(&self, instance: InstanceId) -> bool {
        self.entries.lock().at.contains_key(&instance)
    }

    /// The life that this group is in.
    pub(crate) fn life(&self, instance: InstanceId) -> Option<Epoch> {
        self.entries.lock().get(instance).map(|entry| entry.group.epoch())
    }

    /// Whether this life of a group stood before the coordinator started, and is waited for.
    pub(crate) fn is_awaited(&self, instance: InstanceId, epoch: Epoch) -> bool {
        let entries = self.entries.lock();
        entries.get(instance).is_some_and(|entry| entry.group.epoch() == epoch && entry.group.is_adopted())
    }

    /// As an operator sees them, oldest first.
    pub(crate) fn status(&self, now: Micros) -> Vec<GroupStatus> {
        let entries = self.entries.lock();
        let status = |entry: &Entry| {
            let (faults, last_fault) = entry.group.faults();
            let ranks = entry.members.iter().zip(entry.group.seats()).map(|(member, seat)| RankStatus {
                machine: member.machine,
                name: member.name.clone(),
                connected: seat.incarnation.is_some(),
                phase: seat.shown().to_owned(),
                telemetry: seat.telemetry,
                standing: seat.standing.clone(),
            });
            let past = entry.group.past().map(|life| PastLife {
                epoch: life.epoch,
                fault: life.fault.clone(),
                phase: life.phase.to_owned(),
                lasted_us: life.ended.saturating_sub(life.since).0,
                ago_us: now.saturating_sub(life.ended).0,
            });
            GroupStatus {
                instance: entry.instance,
                model: entry.asked.model.clone(),
                mode: entry.asked.mode.clone(),
                epoch: entry.group.epoch(),
                phase: entry.group.phase_name().to_owned(),
                detail: entry.group.detail(),
                since_us: now.saturating_sub(entry.group.since()).0,
                faults,
                last_fault: last_fault.to_owned(),
                past: past.collect(),
                ranks: ranks.collect(),
            }
        };
        entries.list.iter().map(status).collect()
    }

    /// Takes an instance's entry out, and remembers what went wrong with it.
    fn take_out(&self, instance: InstanceId, entries: &mut Entries) {
        let Some(entry) = entries.remove(instance) else { return };
        if entry.deployed.is_some() && entry.group.faults().0 > 0 {
            let mut ended = self.ended.lock();
            ended.retain(|(of, _)| *of != instance);
            ended.truncate(GROUPS_MAX - 1);
            ended.push_front((instance, entry.group));
        }
    }

    /// The life of an instance before this one, where it ended in a fault.
    fn life_before(&self, instance: InstanceId) -> Option<Group> {
        let mut ended = self.ended.lock();
        let at = ended.iter().position(|(of, _)| *of == instance)?;
        ended.remove(at).map(|(_, group)| group)
    }

    /// When time alone changes something.
    fn next_deadline(&self) -> Option<Micros> {
        self.entries.lock().list.iter().filter_map(|entry| entry.group.next_deadline()).min()
    }

    /// Gives an input to one group, or to all, and collects what is to be done.
    fn step(&self, now: Micros, only: Option<InstanceId>, input: &Input) -> Vec<Todo> {
        let mut todo = Vec::new();
        let mut entries = self.entries.lock();
        for entry in entries.list.iter_mut().filter(|e| only.is_none_or(|only| only == e.instance)) {
            let mut effects = Vec::new();
            entry.group.handle(now, input.clone(), &mut effects);
            todo.extend(effects.into_iter().flat_map(|effect| entry.todo(effect)));
            entry.tell(&mut todo);
        }
        drop(entries);
        self.sooner.notify_one();
        todo
    }
}

impl Entry {
    fn todo(&self, effect: Effect) -> Vec<Todo> {
        match effect {
            Effect::Assign { machine, rank } => {
                vec![Todo::Say(machine, FromCoordinator::AssignGroup(self.assignment(rank)))]
            }
            Effect::Roster => {
                let addresses = self.group.seats().iter().map(|s| s.addresses.clone().unwrap_or_default());
                let roster = GroupRoster {
                    instance: self.instance,
                    epoch: self.group.epoch(),
                    addresses: addresses.collect(),
                };
                let say = |m: &Member| Todo::Say(m.machine, FromCoordinator::GroupRoster(roster.clone()));
                self.members.iter().map(say).collect()
            }
            Effect::Unassign { machine, epoch, reason } => {
                let instance = self.instance;
                vec![Todo::Say(machine, FromCoordinator::UnassignGroup { instance, epoch, reason })]
            }
            Effect::Withdraw => vec![Todo::Withdraw(self.instance)],
            effect @ Effect::Faulted { .. } if self.deployed.is_some() => {
                let Effect::Faulted { epoch, culprit, is_loss, detail } = &effect else { return Vec::new() };
                // Where nobody is to blame rank 0 answers for all.
                let rank = culprit.unwrap_or(0);
                let machine = self.members.get(rank as usize).map_or(MachineId(0), |member| member.machine);
                let report = if *is_loss { RankReport::Lost } else { RankReport::Failed }(detail.clone());
                let (instance, epoch) = (self.instance, *epoch);
                let input = fleet::reconcile::Input::Report { machine, instance, epoch, rank, report };
                vec![Todo::Tell(input), Todo::Log(effect, self.instance, self.asked.model.clone())]
            }
            effect @ (Effect::Faulted { .. } | Effect::Stray { .. }) => {
                vec![Todo::Log(effect, self.instance, self.asked.model.clone())]
            }
        }
    }

    fn assignment(&self, rank: u32) -> AssignGroup {
        let members = self.members.iter().zip(self.group.seats()).map(|(member, seat)| GroupMember {
            machine: member.machine,
            incarnation: seat.assigned.unwrap_or(Incarnation(0)),
            name: member.name.clone(),
            signing_key: member.signing_key.clone(),
            speed: 1,
        });
        AssignGroup {
            instance: self.instance,
            epoch: self.group.epoch(),
            model: self.asked.model.clone(),
            rank,
            members: members.collect(),
            mode: self.asked.mode.clone(),
            dtype: self.asked.dtype.clone(),
            form_us_max: FORM_US_MAX,
            patience_us: self.asked.patience_ms.saturating_mul(1_000),
            shard_map: self.deployed.as_ref().map(|(terms, _)| terms.shard_map.clone()),
            context: self.deployed.as_ref().map_or(0, |(terms, _)| terms.context),
            max_batch: self.deployed.as_ref().map_or(0, |(terms, _)| terms.max_batch),
        }
    }

    /// What a deployment is told of its ranks: what is new.
    fn tell(&mut self, todo: &mut Vec<Todo>) {
        let Some((_, told)) = &mut self.deployed else { return };
        for (rank, seat) in self.group.seats().iter().enumerate() {
            let report = match seat.phase {
                RankPhase::Ready => RankReport::Ready,
                // From here on its links stand, whatever tries find.
                RankPhase::Loading => RankReport::Loading(0),
                RankPhase::Assigned | RankPhase::Forming | RankPhase::Ended => continue,
            };
            if told.get(rank) == Some(&seat.phase) {
                continue;
            }
            told[rank] = seat.phase;
            let (machine, instance, epoch) = (seat.machine, self.instance, self.group.epoch());
            let rank = u32::try_from(rank).unwrap_or(u32::MAX);
            todo.push(Todo::Tell(fleet::reconcile::Input::Report { machine, instance, epoch, rank, report }));
        }
    }
}

/// What is wrong with what an operator asks for, before machines are looked at.
fn check(asked: &CreateGroup) -> Result<(), Problem> {
    let wrong = |param: &str, message: String| {
        let param = Some(param.to_owned());
        Err(wire::openai::RequestError { message, param, code: "invalid_value" }.into())
    };
    let count = asked.machines.len();
    if !(2..=RANKS_MAX).contains(&count) {
        return wrong("machines", format!("a group has 2 to {RANKS_MAX} machines, not {count}"));
    }
    if WireType::named(&asked.dtype).is_none() {
        return wrong("dtype", format!("{:?} is none of f32, bf16, f16, int8", asked.dtype));
    }
    if !(50..=600_000).contains(&asked.patience_ms) {
        return wrong("patience_ms", format!("50 to 600000 are allowed, not {}", asked.patience_ms));
    }
    let grid = asked.mode.split_once('x').and_then(|(stages, ranks)| {
        let (stages, ranks) = (stages.parse::<usize>().ok()?, ranks.parse::<usize>().ok()?);
        stages.checked_mul(ranks)
    });
    match (asked.mode.as_str(), grid) {
        ("tensor" | "pipeline" | "auto", _) => Ok(()),
        (mode, Some(ranks)) if ranks != count => {
            wrong("mode", format!("{mode} is for {ranks} machines, and {count} are named"))
        }
        (_, Some(_)) => Ok(()),
        (mode, None) => {
            let mode: String = mode.chars().take(40).collect();
            wrong("mode", format!("{mode:?} is none of tensor, pipeline, auto, or stages x ranks as in 2x2"))
        }
    }
}

impl Core {
    /// Forms an instance from the machines that `asked` names: the internal call that `POST /api/groups` makes, too.
    pub(crate) fn create_group(self: &Arc<Self>, asked: CreateGroup) -> Result<GroupStatus, Problem> {
        check(&asked)?;
        let mut members: Vec<Member> = Vec::new();
        let mut present = Vec::new();
        for wanted in &asked.machines {
            let wrong = |message| {
                let param = Some("machines".to_owned());
                Problem::from(wire::openai::RequestError { message, param, code: "invalid_value" })
            };
            let shown: String = wanted.chars().take(100).collect();
            let found = self.machines.sessions().into_iter();
            let mut found = found.filter(|s| s.name == *wanted || s.machine.to_string() == *wanted);
            let Some(session) = found.next() else {
                return Err(wrong(format!(
                    "no machine {shown:?} is connected; `phalanx status` lists those that are"
                )));
            };
            if found.next().is_some() {
                return Err(wrong(format!("two machines are called {shown:?}: name them by their ids")));
            }
            if !session.forms_groups {
                return Err(wrong(format!("{shown:?} runs a Phalanx that knows no groups: update it")));
            }
            if members.iter().any(|m| m.machine == session.machine) {
                return Err(wrong(format!("{shown:?} is named twice: a machine is one rank of a group")));
            }
            present.push((session.machine, session.incarnation));
            members.push(Member {
                machine: session.machine,
                name: session.name.clone(),
                signing_key: session.signing_key.clone(),
            });
        }
        let instance = self.instance_id();
        let machines: Vec<MachineId> = members.iter().map(|m| m.machine).collect();
        let now = self.clock.now();
        {
            let mut entries = self.groups.entries.lock();
            if entries.list.len() >= GROUPS_MAX {
                let message = format!(
                    "there are {GROUPS_MAX} groups, and no more may be: remove one (DELETE /api/groups/ID)"
                );
                return Err(
                    wire::openai::RequestError { message, param: None, code: "too_many_groups" }.into()
                );
            }
            let group = Group::new(&machines, now);
            entries.push(Entry { instance, asked, members, group, deployed: None });
        }
        for (machine, incarnation) in present {
            self.group_input(Some(instance), &Input::MachineUp { machine, incarnation });
        }
        let status = self.groups.status(now).into_iter().find(|status| status.instance == instance);
        status.ok_or(Problem::Internal("a group was removed while it was made"))
    }

    /// Forms the group that a deployment's instance is, for one life; whether it is a new one. One that `stands` already
    /// is waited for.
    pub(crate) fn form_deployed(
        self: &Arc<Self>,
        instance: InstanceId,
        (epoch, terms): (Epoch, GroupTerms),
        machines: &[MachineId],
        stands: bool,
    ) -> bool {
        let now = self.clock.now();
        let sessions: Vec<_> = machines.iter().map(|machine| self.machines.session(*machine)).collect();
        let members = machines.iter().zip(&sessions).map(|(machine, session)| Member {
            machine: *machine,
            name: session.as_ref().map_or_else(|| machine.to_string(), |session| session.name.clone()),
            signing_key: session.as_ref().map(|session| session.signing_key.clone()).unwrap_or_default(),
        });
        {
            let mut entries = self.groups.entries.lock();
            if entries.get(instance).is_some_and(|entry| entry.group.epoch() == epoch) {
                return false;
            }
            self.groups.take_out(instance, &mut entries);
            let (mode, model) = (terms.mode.clone(), terms.model.clone());
            let asked = CreateGroup {
                model,
                machines: Vec::new(),
                mode,
                dtype: "f32".to_owned(),
                patience_ms: PATIENCE_MS,
            };
            let group = match stands {
                true => Group::adopted(machines, epoch, now),
                false => Group::once(machines, epoch, now),
            };
            let group = match self.groups.life_before(instance) {
                Some(before) => group.after(before),
                None => group,
            };
            let told = vec![RankPhase::Assigned; machines.len()];
            let members = members.collect();
            entries.push(Entry { instance, asked, members, group, deployed: Some((terms, told)) });
        }
        for session in sessions.into_iter().flatten() {
            let (machine, incarnation) = (session.machine, session.incarnation);
            self.group_input(Some(instance), &Input::MachineUp { machine, incarnation });
        }
        true
    }

    /// Removes a group for good; how it was.
    pub(crate) fn remove_group(self: &Arc<Self>, instance: InstanceId) -> Option<GroupStatus> {
        let status = self.groups.status(self.clock.now()).into_iter().find(|s| s.instance == instance)?;
        self.group_input(Some(instance), &Input::Remove);
        self.groups.take_out(instance, &mut self.groups.entries.lock());
        Some(status)
    }

    /// Something happened to one group, or to all.
    pub(crate) fn group_input(self: &Arc<Self>, only: Option<InstanceId>, input: &Input) {
        for todo in self.groups.step(self.clock.now(), only, input) {
            match todo {
                // A machine that is away hears of it when it is back: an assignment is made anew then, and a rank that it
                // still holds is refused when it offers it.
                Todo::Say(machine, message) => {
                    if let Some(session) = self.machines.session(machine) {
                        session.lanes.control(message);
                    }
                }
                Todo::Withdraw(instance) => {
                    let after = self.machines.withdraw(instance, true);
                    self.carry_out(None, after);
                }
                Todo::Tell(input) => {
                    self.deployments.inbox.put(input);
                    self.deployments.look_soon();
                }
                Todo::Log(Effect::Faulted { epoch, culprit, detail, .. }, instance, model) => {
                    Metrics::count(&self.metrics.group_events, "fault");
                    tracing::warn!(%instance, %model, epoch = epoch.0, ?culprit, detail, "a group's life ended in a fault");
                }
                Todo::Log(Effect::Stray { machine, what }, instance, _) => {
                    Metrics::count(&self.metrics.group_events, "stray");
                    tracing::info!(%instance, %machine, what, "a word about a group that is not so");
                }
                Todo::Log(..) => {}
            }
        }
    }

    /// A rank says where it is dialled.
    pub(crate) fn group_ports(self: &Arc<Self>, machine: MachineId, ports: GroupPorts) {
        let GroupPorts { instance, epoch, rank, mut addresses } = ports;
        addresses.truncate(64);
        self.group_input(Some(instance), &Input::Ports { machine, epoch, rank, addresses });
    }

    /// A rank says how far it is.
    pub(crate) fn group_report(self: &Arc<Self>, machine: MachineId, report: GroupReport) {
        self.group_input(Some(report.instance), &Input::Report { machine, report });
    }

    /// Gives the groups their time, as long as the coordinator runs.
    pub(crate) async fn tick_groups(self: Arc<Self>) {
        loop {
            let sleep = async {
                match self.groups.next_deadline() {
                    Some(at) => tokio::time::sleep_until(self.clock.instant(at)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.end.cancelled() => return,
                () = self.groups.sooner.notified() => {
                    // A burst of reports is one reason to look again.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                () = sleep => self.group_input(None, &Input::Tick),
            }
        }
    }
}
