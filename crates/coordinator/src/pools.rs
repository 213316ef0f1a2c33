//! Every model's pool behind its own lock: inputs in, effects carried to whoever waits for them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base::{InstanceId, MachineId, Micros, ModelName, RequestId, Rng};
use fleet::{Effect, Enqueue, Ineligible, Input, Policy, Pool, Refusal, Suspect};
use model::dialect::Dialect;
use model::kit::OpenKit;
use parking_lot::{Mutex, RwLock};
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, unix_s};

/// Models at a time. Each is offered by a machine that proved itself; this bounds a machine gone wrong.
const MODELS_MAX: usize = 4096;

/// What a pool decided for a waiting request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Decision {
    /// Send it there.
    Granted(Grant),
    /// Tell its caller.
    Refused(Refusal),
}

/// Where a request goes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Grant {
    pub(crate) instance: InstanceId,
    pub(crate) machine: MachineId,
    /// How long the decision took, waiting for the pool's lock included.
    pub(crate) decided_in: Duration,
}

/// Something that a pool says about an instance, for logs and for its machine.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Notice {
    pub(crate) machine: MachineId,
    pub(crate) instance: InstanceId,
    pub(crate) model: ModelName,
    pub(crate) about: About,
}

/// What is said.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum About {
    Standing(Option<Ineligible>),
    Suspect(Suspect),
    Rejected(&'static str),
}

/// A kit and its hash.
#[derive(Clone)]
pub(crate) struct KitOf {
    pub(crate) hash: Arc<str>,
    pub(crate) kit: Arc<OpenKit>,
    /// The most bytes that one of its tokens stands for.
    pub(crate) longest_token: usize,
    /// How the model writes reasoning and calls.
    pub(crate) dialect: Arc<Dialect>,
}

struct State {
    pool: Pool,
    waiting: HashMap<RequestId, oneshot::Sender<Decision>>,
    kit: Option<KitOf>,
    /// When the ticker wakes next.
    alarm: Option<Micros>,
}

/// One model, as long as the coordinator runs.
pub(crate) struct Served {
    pub(crate) name: ModelName,
    /// When it was first served, seconds since 1970.
    pub(crate) created_unix: u64,
    clock: Clock,
    state: Mutex<State>,
    sooner: Notify,
}

impl Served {
    fn new(name: ModelName, policy: Policy, rng: Rng, clock: Clock) -> Self {
        Self {
            name: name.clone(),
            created_unix: unix_s(),
            clock,
            state: Mutex::new(State {
                pool: Pool::new(name, policy, rng),
                waiting: HashMap::new(),
                kit: None,
                alarm: None,
            }),
            sooner: Notify::new(),
        }
    }

    /// Gives the pool an input, carries its decisions to those who wait, and gives back what it says of instances.
    pub(crate) fn handle(&self, input: Input) -> Vec<Notice> {
        let start = Instant::now();
        let mut state = self.state.lock();
        self.step(&mut state, input, start)
    }

    fn step(&self, state: &mut State, input: Input, start: Instant) -> Vec<Notice> {
        let mut effects = Vec::new();
        state.pool.handle(self.clock.now(), input, &mut effects);
        let mut notices = Vec::new();
        // A grant whose request is gone without a word is taken back, which may grant its place to another.
        let mut lost = Vec::new();
        while !effects.is_empty() || !lost.is_empty() {
            for effect in std::mem::take(&mut effects) {
                if let Some(request) = self.carry(state, effect, start, &mut notices) {
                    lost.push(request);
                }
            }
            for request in std::mem::take(&mut lost) {
                state.pool.handle(self.clock.now(), Input::Withdraw { request }, &mut effects);
            }
        }
        let next = state.pool.next_deadline();
        if next.is_some_and(|next| state.alarm.is_none_or(|alarm| next < alarm)) {
            state.alarm = next;
            self.sooner.notify_one();
        }
        notices
    }

    /// Carries out one effect; gives the request back whose decision nobody waits for.
    fn carry(
        &self,
        state: &mut State,
        effect: Effect,
        start: Instant,
        notices: &mut Vec<Notice>,
    ) -> Option<RequestId> {
        let mut say = |machine, instance, about| {
            notices.push(Notice { machine, instance, model: self.name.clone(), about });
        };
        match effect {
            Effect::Dispatch { request, instance, machine, .. } => {
                let grant = Grant { instance, machine, decided_in: start.elapsed() };
                let waiting = state.waiting.remove(&request);
                let told = waiting.is_some_and(|to| to.send(Decision::Granted(grant)).is_ok());
                return (!told).then_some(request);
            }
            Effect::Refuse { request, refusal } => {
                if let Some(to) = state.waiting.remove(&request) {
                    // A caller that went away needs no refusal.
                    let _ = to.send(Decision::Refused(refusal));
                }
            }
            Effect::Standing { instance, machine, ineligible } => {
                say(machine, instance, About::Standing(ineligible));
            }
            Effect::Suspect { instance, machine, suspect } => say(machine, instance, About::Suspect(suspect)),
            Effect::Rejected { instance, machine, reason } => say(machine, instance, About::Rejected(reason)),
        }
        None
    }

    /// Puts a request into the pool; the decision comes through the receiver.
    pub(crate) fn enqueue(&self, enqueue: Enqueue) -> (oneshot::Receiver<Decision>, Vec<Notice>) {
        let start = Instant::now();
        let (to, from) = oneshot::channel();
        let mut state = self.state.lock();
        state.waiting.insert(enqueue.ask.request, to);
        let notices = self.step(&mut state, Input::Enqueue(enqueue), start);
        (from, notices)
    }

    /// The refusal that a request would get at once, counted as demand; nothing where it would be let in.
    pub(crate) fn refused_now(&self, enqueue: &Enqueue) -> Option<Refusal> {
        let start = Instant::now();
        let mut state = self.state.lock();
        // Time first, so that the pool's answer and what it then does agree.
        let _ = self.step(&mut state, Input::Tick, start);
        let refusal = state.pool.preflight(self.clock.now(), enqueue).err()?;
        let _ = self.step(&mut state, Input::Enqueue(enqueue.clone()), start);
        let _ = self.step(&mut state, Input::Withdraw { request: enqueue.ask.request }, start);
        Some(refusal)
    }

    /// Takes a request out of the pool, wherever it is.
    pub(crate) fn withdraw(&self, request: RequestId) -> Vec<Notice> {
        let start = Instant::now();
        let mut state = self.state.lock();
        state.waiting.remove(&request);
        self.step(&mut state, Input::Withdraw { request }, start)
    }

    /// Looks at the pool.
    pub(crate) fn look<T>(&self, at: impl FnOnce(&Pool, Micros) -> T) -> T {
        let state = self.state.lock();
        at(&state.pool, self.clock.now())
    }

    /// What prompts are rendered and tokenized with.
    pub(crate) fn kit(&self) -> Option<KitOf> {
        self.state.lock().kit.clone()
    }

    /// Sets the kit to that of the contents which the pool serves, found by `open`. Whether it is another now.
    pub(crate) fn refresh_kit(&self, open: impl FnOnce(&str) -> Option<Arc<OpenKit>>) -> bool {
        let mut state = self.state.lock();
        let same = state.pool.instances().find(|i| i.contents == fleet::instance::Contents::Same);
        let Some(hash) = same.map(|i| i.model.kit_sha256.clone()) else { return false };
        if state.kit.as_ref().is_some_and(|kit| *kit.hash == *hash) {
            return false;
        }
        let opened = open(&hash);
        let other = opened.is_some();
        if let Some(kit) = opened {
            let tokens = 0..u32::try_from(kit.tokenizer.vocabulary_len()).unwrap_or(u32::MAX);
            let longest_token = tokens.map(|token| kit.tokenizer.token_bytes(token).len()).max().unwrap_or(1);
            state.kit =
                Some(KitOf { hash: hash.into(), dialect: Arc::new(Dialect::of(&kit)), kit, longest_token });
        }
        other
    }

    /// Gives the pool its time until `end`; `told` takes what it says.
    pub(crate) async fn tick(&self, end: CancellationToken, told: impl Fn(Vec<Notice>)) {
        loop {
            let alarm = self.state.lock().alarm;
            let sleep = async {
                match alarm {
                    Some(at) => tokio::time::sleep_until(self.clock.instant(at)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = end.cancelled() => return,
                () = self.sooner.notified() => continue,
                () = sleep => {}
            }
            let notices = {
                let start = Instant::now();
                let mut state = self.state.lock();
                state.alarm = None;
                self.step(&mut state, Input::Tick, start)
            };
            told(notices);
        }
    }
}

/// Every model that is or was served.
pub(crate) struct Pools {
    by_model: RwLock<BTreeMap<ModelName, Arc<Served>>>,
    /// Models that deployments want served. Set before pools are told; a pool that is made looks here first.
    wanted: RwLock<BTreeSet<String>>,
    /// Told whenever a model may be ready that was not, or is not wanted any more.
    news: Notify,
    policy: Policy,
    clock: Clock,
    rng: Mutex<Rng>,
}

impl Pools {
    pub(crate) fn new(policy: Policy, clock: Clock, rng: Rng) -> Self {
        Self {
            by_model: RwLock::default(),
            wanted: RwLock::default(),
            news: Notify::new(),
            policy,
            clock,
            rng: Mutex::new(rng),
        }
    }

    pub(crate) fn get(&self, name: &ModelName) -> Option<Arc<Served>> {
        self.by_model.read().get(name).cloned()
    }

    /// The pool for `name`, and whether it is new; nothing where there are too many.
    pub(crate) fn get_or_create(&self, name: &ModelName) -> Option<(Arc<Served>, bool)> {
        if let Some(served) = self.get(name) {
            return Some((served, false));
        }
        let mut by_model = self.by_model.write();
        if let Some(served) = by_model.get(name) {
            return Some((Arc::clone(served), false));
        }
        if by_model.len() >= MODELS_MAX {
            return None;
        }
        let rng = self.rng.lock().fork(by_model.len() as u64);
        let served = Arc::new(Served::new(name.clone(), self.policy, rng, self.clock));
        let wanted = self.is_wanted(name);
        let told = served.handle(Input::Wanted { wanted });
        debug_assert!(told.is_empty(), "an empty pool has nothing to say");
        by_model.insert(name.clone(), Arc::clone(&served));
        Some((served, true))
    }

    /// Whether a deployment wants `model` served: what finds nothing of it waits for its next place.
    pub(crate) fn is_wanted(&self, model: &ModelName) -> bool {
        self.wanted.read().contains(model.as_str())
    }

    /// A model may be ready that was not.
    pub(crate) fn tell_news(&self) {
        self.news.notify_waiters();
    }

    /// Ready once there is news; what is told after this call is not missed.
    pub(crate) fn news(&self) -> Notified<'_> {
        self.news.notified()
    }

    /// Tells every pool whether deployments want its model served; gives what pools say.
    pub(crate) fn set_wanted(&self, wanted: BTreeSet<String>) -> Vec<Notice> {
        let before = std::mem::replace(&mut *self.wanted.write(), wanted);
        self.tell_news();
        let mut told = Vec::new();
        for served in self.all() {
            let wanted = self.is_wanted(&served.name);
            if wanted != before.contains(served.name.as_str()) {
                told.extend(served.handle(Input::Wanted { wanted }));
            }
        }
        told
    }

    /// By name.
    pub(crate) fn all(&self) -> Vec<Arc<Served>> {
        self.by_model.read().values().cloned().collect()
    }
}
