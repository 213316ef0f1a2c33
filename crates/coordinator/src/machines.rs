//! The machines: who is connected, what each offers, and which of it its model's pool was told of.

mod offers;

use std::collections::HashMap;
use std::sync::Arc;

use base::{AccountId, Incarnation, InstanceId, MachineId, Micros, ModelName};
use fleet::Input;
use parking_lot::Mutex;
use wire::admin::{InstanceStatus, MachineStatus};
use wire::control::{
    FromCoordinator, Hardware, Hello, InstanceOffer, InstancePhase, InstanceReport, RefusalCode, Refused,
    Register,
};

use crate::clock::Clock;
use crate::pools::{About, Notice, Pools, Served};
use crate::uplink::kit::{Kits, Known};
use crate::uplink::session::Session;
use offers::{nothing_known, owner_of, waiting_status};

/// Instances that one machine may offer.
const INSTANCES_MAX: usize = 256;

/// Machines that are remembered after they left, for `status`.
const GONE_MAX: usize = 1024;

struct Offer {
    offer: InstanceOffer,
    /// Whether its pool was told.
    admitted: bool,
}

struct Machine {
    name: String,
    agent: String,
    hardware: Hardware,
    incarnation: Incarnation,
    since: Micros,
    draining: bool,
    /// Who lends it.
    owner: Option<AccountId>,
    session: Option<Arc<Session>>,
    /// Why it is away.
    left: Option<String>,
    offers: Vec<Offer>,
}

#[derive(Default)]
struct Table {
    machines: HashMap<MachineId, Machine>,
    /// Which machine holds which instance now.
    holders: HashMap<InstanceId, MachineId>,
    /// How many of them are connected.
    connected: usize,
}

/// Every machine that is or was connected. Its lock is taken before a pool's, never the other way round.
pub(crate) struct Machines {
    table: Mutex<Table>,
    pools: Arc<Pools>,
    kits: Arc<Kits>,
    clock: Clock,
    machines_max: usize,
    kit_bytes_max: u64,
}

/// What is to be done after a change, once no lock is held.
#[derive(Default)]
pub(crate) struct After {
    /// What pools said.
    pub(crate) notices: Vec<Notice>,
    /// Pools that are new and need their time.
    pub(crate) new_pools: Vec<Arc<Served>>,
    /// What to tell the machine itself.
    pub(crate) messages: Vec<FromCoordinator>,
    /// Kits that it was asked for: hash and length.
    pub(crate) asked: Vec<(String, usize)>,
}

impl After {
    fn line(&mut self, line: String) {
        self.messages.push(FromCoordinator::Standing { lines: vec![line] });
    }
}

impl Machines {
    pub(crate) fn new(
        pools: Arc<Pools>,
        kits: Arc<Kits>,
        clock: Clock,
        machines_max: usize,
        kit_bytes_max: u64,
    ) -> Self {
        Self { table: Mutex::default(), pools, kits, clock, machines_max, kit_bytes_max }
    }

    /// A machine that proved itself takes its place; an older connection of it is ended.
    pub(crate) fn connect(&self, session: &Arc<Session>, hello: &Hello) -> Result<After, Refused> {
        let mut after = After::default();
        let mut table = self.table.lock();
        let connected = table.connected;
        if let Some(machine) = table.machines.get(&hello.machine) {
            if let Some(older) = machine.session.clone() {
                if machine.incarnation > hello.incarnation {
                    return Err(superseded());
                }
                older.lanes.control(FromCoordinator::Refused(superseded()));
                older.lanes.close.cancel();
                self.leave(&mut table, &older, (true, "a newer connection of it"), &mut after);
            }
        } else if connected >= self.machines_max {
            return Err(Refused {
                code: RefusalCode::Unavailable,
                reason: format!("{connected} machines are connected and {} may", self.machines_max),
                remedy: "raise uplink.machines_max on the coordinator, or disconnect a machine".to_owned(),
            });
        }
        let machine = Machine {
            name: hello.name.clone(),
            agent: hello.agent.clone(),
            hardware: Hardware::default(),
            incarnation: hello.incarnation,
            since: self.clock.now(),
            draining: false,
            owner: session.owner,
            session: Some(Arc::clone(session)),
            left: None,
            offers: Vec::new(),
        };
        table.machines.insert(hello.machine, machine);
        table.connected += 1;
        Self::forget_oldest(&mut table);
        Ok(after)
    }

    fn forget_oldest(table: &mut Table) {
        let gone = table.machines.iter().filter(|(_, m)| m.session.is_none());
        if table.machines.len() - table.connected > GONE_MAX
            && let Some(oldest) = gone.min_by_key(|(_, m)| m.since).map(|(id, _)| *id)
        {
            table.machines.remove(&oldest);
        }
    }

    /// A connection ended. Changes nothing where a newer one has taken its place.
    pub(crate) fn disconnect(&self, session: &Arc<Session>, lost: bool, why: &str) -> After {
        let mut after = After::default();
        let mut table = self.table.lock();
        self.leave(&mut table, session, (lost, why), &mut after);
        after
    }

    fn leave(&self, table: &mut Table, session: &Arc<Session>, (lost, why): (bool, &str), after: &mut After) {
        let Some(machine) = table.machines.get_mut(&session.machine) else { return };
        if !machine.session.as_ref().is_some_and(|current| Arc::ptr_eq(current, session)) {
            return;
        }
        machine.session = None;
        machine.left = Some(why.to_owned());
        machine.since = self.clock.now();
        table.connected -= 1;
        // Pools first: what is in flight there counts as one fault of the machine, not as one for each request.
        for offer in std::mem::take(&mut machine.offers) {
            table.holders.remove(&offer.offer.instance);
            self.gone(&offer, lost, after);
        }
        session.attempts.close();
        self.kits.forget_asks(session.machine);
    }

    fn gone(&self, offer: &Offer, lost: bool, after: &mut After) {
        if !offer.admitted {
            return;
        }
        if let Some(served) = self.pools.get(&offer.offer.model.name) {
            let input = Input::InstanceGone { instance: offer.offer.instance, lost };
            after.notices.extend(served.handle(input));
            if served.refresh_kit(|hash| self.kits.opened(hash)) {
                self.pools.tell_news();
            }
        }
    }

    /// A machine says what it is and serves; replaces what it said before.
    /// `admits` says why an offer is not what the machine was assigned, where it is not (E3, A3).
    pub(crate) fn register(
        &self,
        session: &Arc<Session>,
        register: Register,
        admits: impl Fn(&InstanceOffer) -> Result<(), &'static str>,
    ) -> After {
        let mut after = After::default();
        let mut guard = self.table.lock();
        let table = &mut *guard;
        let Some(machine) = current(&mut table.machines, session) else { return after };
        machine.hardware = register.hardware;
        let mut old = std::mem::take(&mut machine.offers);
        let mut new = Vec::new();
        for offer in register.instances.into_iter().take(INSTANCES_MAX) {
            let holder = table.holders.get(&offer.instance);
            let taken = holder.is_some_and(|holder| *holder != session.machine)
                || new.iter().any(|o: &Offer| o.offer.instance == offer.instance);
            let stray = admits(&offer).err();
            if stray.is_some() && offer.ranks > 1 {
                // It goes on with a group that is over: it must know, or it would for good.
                let (instance, epoch) = (offer.instance, offer.epoch);
                let reason = "the coordinator knows no such life of this group".to_owned();
                after.messages.push(FromCoordinator::UnassignGroup { instance, epoch, reason });
            }
            if let Some(wrong) =
                self.wrong(&offer).or(stray).or(taken.then_some("another offer has the same identity"))
            {
                after.line(format!("{}: not accepted: {wrong}", shown_name(&offer.model.name)));
                continue;
            }
            let before = old.iter().position(|o| o.offer.instance == offer.instance);
            let before = before.map(|i| old.swap_remove(i));
            // The same instance with other contents is another one.
            let admitted = match before {
                Some(before) if before.offer.model == offer.model => before.admitted,
                Some(before) => {
                    self.gone(&before, false, &mut after);
                    false
                }
                None => false,
            };
            if admitted && let Some(served) = self.pools.get(&offer.model.name) {
                let (machine, owner) = (session.machine, owner_of(machine.owner, &offer));
                let input = Input::InstanceUp { machine, owner, offer: Box::new(offer.clone()) };
                after.notices.extend(served.handle(input));
            }
            new.push(Offer { offer, admitted });
        }
        for offer in old {
            table.holders.remove(&offer.offer.instance);
            self.gone(&offer, false, &mut after);
        }
        table.holders.extend(new.iter().map(|o| (o.offer.instance, session.machine)));
        machine.offers = new;
        self.admit(machine, session.machine, &mut after);
        after
    }

    /// Whether a pool was told of this instance.
    pub(crate) fn is_offered(&self, instance: InstanceId) -> bool {
        let table = self.table.lock();
        let holder = table.holders.get(&instance).and_then(|holder| table.machines.get(holder));
        holder.is_some_and(|m| m.offers.iter().any(|o| o.admitted && o.offer.instance == instance))
    }

    /// This instance takes nothing new, and finishes what it has.
    pub(crate) fn drain(&self, instance: InstanceId) -> After {
        let mut after = After::default();
        let mut guard = self.table.lock();
        let table = &mut *guard;
        let Some(&holder) = table.holders.get(&instance) else { return after };
        let Some(machine) = table.machines.get_mut(&holder) else { return after };
        if let Some(of) = machine.offers.iter_mut().find(|o| o.offer.instance == instance && o.admitted)
            && let Some(served) = self.pools.get(&of.offer.model.name)
        {
            of.offer.report.phase = InstancePhase::Draining;
            let report = of.offer.report.clone();
            after.notices.extend(served.handle(Input::InstanceReport { machine: holder, report }));
        }
        after
    }

    /// What this instance served is lost: its requests move. Where it `comes_back`, they may wait for it.
    pub(crate) fn withdraw(&self, instance: InstanceId, comes_back: bool) -> After {
        let mut after = After::default();
        let mut guard = self.table.lock();
        let table = &mut *guard;
        let Some(holder) = table.holders.remove(&instance) else { return after };
        let Some(machine) = table.machines.get_mut(&holder) else { return after };
        if let Some(at) = machine.offers.iter().position(|o| o.offer.instance == instance) {
            let offer = machine.offers.remove(at);
            self.gone(&offer, comes_back, &mut after);
        }
        after
    }

    /// What is wrong with an offer, before any pool sees it.
    fn wrong(&self, offer: &InstanceOffer) -> Option<&'static str> {
        let name = offer.model.name.as_str();
        let hash = |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
        if name.is_empty() || name.len() > 200 || name.chars().any(char::is_control) {
            Some("its model's name is empty, longer than 200 bytes or has control characters")
        } else if nothing_known(offer) {
            None
        } else if offer.model.context.0 == 0 || offer.model.vocabulary == 0 {
            Some("its model has no context or no vocabulary")
        } else if !hash(&offer.model.kit_sha256) || !hash(&offer.model.weights_sha256) {
            Some("its hashes are not 64 hexadecimal digits")
        } else if offer.model.kit_bytes.0 == 0 || offer.model.kit_bytes.0 > self.kit_bytes_max {
            Some("its kit is empty or larger than uplink.kit_bytes_max")
        } else {
            None
        }
    }

    /// Tells pools of every offer whose kit is open, and has the others' kits asked for.
    fn admit(&self, machine: &mut Machine, id: MachineId, after: &mut After) {
        let lent_by = machine.owner;
        for offer in machine.offers.iter_mut().filter(|o| !o.admitted && !nothing_known(&o.offer)) {
            let owner = owner_of(lent_by, &offer.offer);
            let model = &offer.offer.model;
            match self.kits.want(&model.kit_sha256, id) {
                Known::Open => {}
                Known::Coming => continue,
                Known::Ask => {
                    let total = usize::try_from(model.kit_bytes.0).unwrap_or(usize::MAX);
                    after.asked.push((model.kit_sha256.clone(), total));
                    after.messages.push(FromCoordinator::WantKit { kit_sha256: model.kit_sha256.clone() });
                    continue;
                }
                Known::Broken(why) => {
                    after.line(format!("{}: not accepted: its kit: {why}", shown_name(&model.name)));
                    offer.admitted = false;
                    continue;
                }
            }
            let Some((served, new)) = self.pools.get_or_create(&model.name) else {
                after.line(format!("{}: not accepted: too many models", shown_name(&model.name)));
                continue;
            };
            if new {
                after.new_pools.push(Arc::clone(&served));
            }
            let input = Input::InstanceUp { machine: id, owner, offer: Box::new(offer.offer.clone()) };
            offer.admitted = true;
            after.notices.extend(served.handle(input));
            if machine.draining {
                after.notices.extend(served.handle(Input::MachineDraining { machine: id }));
            }
            if served.refresh_kit(|hash| self.kits.opened(hash)) {
                self.pools.tell_news();
            }
        }
    }

    /// Tries again what waited for a kit, on every connected machine.
    pub(crate) fn admit_all(&self) -> Vec<(Arc<Session>, After)> {
        let mut table = self.table.lock();
        let mut out = Vec::new();
        for (id, machine) in &mut table.machines {
            let Some(session) = machine.session.clone() else { continue };
            if machine.offers.iter().all(|o| o.admitted) {
                continue;
            }
            let mut after = After::default();
            self.admit(machine, *id, &mut after);
            out.push((session, after));
        }
        out
    }

    /// Reports about some of a machine's instances; gives how many were about none that it offered.
    pub(crate) fn report(&self, session: &Arc<Session>, reports: Vec<InstanceReport>) -> (After, u32) {
        let mut after = After::default();
        let mut strangers = 0;
        let mut table = self.table.lock();
        let Some(machine) = current(&mut table.machines, session) else { return (after, 0) };
        for report in reports {
            let Some(offer) = machine.offers.iter_mut().find(|o| o.offer.instance == report.instance) else {
                strangers += 1;
                continue;
            };
            if report.generation < offer.offer.report.generation {
                continue;
            }
            offer.offer.report = report.clone();
            if offer.admitted
                && let Some(served) = self.pools.get(&offer.offer.model.name)
            {
                let input = Input::InstanceReport { machine: session.machine, report };
                after.notices.extend(served.handle(input));
            }
        }
        // A kit that was asked of a machine that left since is asked of this one.
        self.admit(machine, session.machine, &mut after);
        after.messages.retain(|message| !matches!(message, FromCoordinator::Standing { .. }));
        (after, strangers)
    }

    /// A machine takes nothing new.
    pub(crate) fn draining(&self, session: &Arc<Session>) -> After {
        let mut after = After::default();
        let mut table = self.table.lock();
        let Some(machine) = current(&mut table.machines, session) else { return after };
        machine.draining = true;
        let mut models: Vec<&ModelName> =
            machine.offers.iter().filter(|o| o.admitted).map(|o| &o.offer.model.name).collect();
        models.sort();
        models.dedup();
        for served in models.into_iter().filter_map(|name| self.pools.get(name)) {
            after.notices.extend(served.handle(Input::MachineDraining { machine: session.machine }));
        }
        after
    }

    /// The living connection of `machine`.
    pub(crate) fn session(&self, machine: MachineId) -> Option<Arc<Session>> {
        self.table.lock().machines.get(&machine)?.session.clone()
    }

    /// What people call `machine`.
    pub(crate) fn name(&self, machine: MachineId) -> Option<String> {
        self.table.lock().machines.get(&machine).map(|m| m.name.clone())
    }

    /// How many are connected.
    pub(crate) fn connected(&self) -> usize {
        self.table.lock().connected
    }

    /// Every living connection.
    pub(crate) fn sessions(&self) -> Vec<Arc<Session>> {
        self.table.lock().machines.values().filter_map(|m| m.session.clone()).collect()
    }

    /// As an operator sees them, by name.
    pub(crate) fn status(&self) -> Vec<MachineStatus> {
        let mut instances: HashMap<MachineId, Vec<InstanceStatus>> = HashMap::new();
        for served in self.pools.all() {
            for (machine, status) in served.look(|pool, now| pool.instance_statuses(now)) {
                instances.entry(machine).or_default().push(status);
            }
        }
        let table = self.table.lock();
        let mut out: Vec<MachineStatus> = table
            .machines
            .iter()
            .map(|(id, machine)| {
                let mut held = instances.remove(id).unwrap_or_default();
                held.extend(machine.offers.iter().filter(|o| !o.admitted).map(|o| waiting_status(&o.offer)));
                MachineStatus {
                    owner: machine.owner,
                    left: machine.left.clone(),
                    machine: *id,
                    name: machine.name.clone(),
                    connected: machine.session.is_some(),
                    since_us: machine.since.0,
                    agent: machine.agent.clone(),
                    hardware: machine.hardware.clone(),
                    instances: held,
                }
            })
            .collect();
        out.sort_by(|a, b| (&a.name, a.machine).cmp(&(&b.name, b.machine)));
        out
    }
}

/// What `notice` tells its machine, and what goes into the log.
pub(crate) fn line(notice: &Notice) -> String {
    let model = shown_name(&notice.model);
    match &notice.about {
        About::Standing(None) => format!("{model}: takes requests"),
        About::Standing(Some(reason)) => format!("{model}: gets no requests: {reason}"),
        About::Suspect(suspect) => {
            format!("{model}: reported {} = {}, taken as {}", suspect.field, suspect.said, suspect.taken)
        }
        About::Rejected(reason) => format!("{model}: not accepted: {reason}"),
    }
}

fn current<'a>(
    machines: &'a mut HashMap<MachineId, Machine>,
    session: &Arc<Session>,
) -> Option<&'a mut Machine> {
    let machine = machines.get_mut(&session.machine)?;
    machine.session.as_ref().is_some_and(|current| Arc::ptr_eq(current, session)).then_some(machine)
}

fn superseded() -> Refused {
    Refused {
        code: RefusalCode::Superseded,
        reason: "a newer start of this machine's provider is connected".to_owned(),
        remedy: "end one of the two providers, or give the second one its own data folder".to_owned(),
    }
}

/// A name that may come from a stranger, short enough for a line.
fn shown_name(name: &ModelName) -> String {
    name.as_str().chars().filter(|c| !c.is_control()).take(80).collect()
}
