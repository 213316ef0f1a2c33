//! The instances that this provider holds: loaded in threads of their own, reported in phases.

mod assigned;

use std::sync::Arc;
use std::time::{Duration, Instant};

use base::{Bytes, Epoch, InstanceId, ModelName, Rng, Tokens};
use engine::EngineReport;
use wire::control::{InstanceOffer, InstancePhase, InstanceReport, ModelDescriptor};

use crate::assignment::desk::Life;
use crate::attempt::lane::Kit;
use crate::group::{Own, Up};
use crate::host::Host;

/// What a loading thread says.
pub(crate) struct Step {
    /// Which of the configured models.
    pub(crate) index: usize,
    pub(crate) news: News,
}

/// How far a load has come.
pub(crate) enum News {
    /// The files are whole and known; the weights are not ready yet.
    Described { descriptor: Box<ModelDescriptor>, kit: Arc<[u8]> },
    /// It takes requests.
    Started { engine: Host },
    /// Its weights are not read here but as part of a group: why.
    InGroups { detail: String },
    /// It never will.
    Failed { detail: String },
}

/// What the coordinator must be told after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// There is an instance that it has not heard of: register again.
    Offer,
    /// One that it knows has changed.
    Report(usize),
}

/// All instances of this provider: one for each model, since an attempt names its model and nothing more.
pub(crate) struct Instances {
    list: Vec<Instance>,
    draining: bool,
}

struct Instance {
    id: InstanceId,
    model: ModelName,
    state: State,
    descriptor: Option<ModelDescriptor>,
    kit: Option<Arc<[u8]>>,
    generation: u64,
    began: Instant,
    /// Which life of a group it is, and of how many ranks; nothing where this machine computes it alone.
    seat: Option<(Epoch, u32)>,
    /// This machine is a rank of a group that computes the same model.
    aside: bool,
    /// Which assignment it carries out, where it does.
    life: Option<Life>,
    /// It finishes what it has, and is then unloaded.
    leaving: bool,
}

enum State {
    Loading,
    Ready(Host),
    InGroups(String),
    Failed(String),
}

/// Whether a model is served here.
pub(crate) enum Serving {
    Ready(InstanceId, Host),
    /// Not now: why.
    NotNow(String),
    /// Another model is meant.
    Never,
}

impl Instances {
    /// One instance for each model, loading. Identities are fresh: an instance of an earlier start is another one.
    pub(crate) fn new(models: impl Iterator<Item = ModelName>, rng: &mut Rng) -> Self {
        let list = models.map(|model| Instance {
            id: InstanceId::random(rng),
            model,
            state: State::Loading,
            descriptor: None,
            kit: None,
            generation: 0,
            began: Instant::now(),
            seat: None,
            aside: false,
            life: None,
            leaving: false,
        });
        Self { list: list.collect(), draining: false }
    }

    /// From now on every report says that nothing new is taken.
    pub(crate) fn drain(&mut self) {
        self.draining = true;
    }

    /// Takes in what a loading thread says.
    pub(crate) fn take(&mut self, step: Step) -> Change {
        let instance = &mut self.list[step.index];
        let known = instance.is_offered();
        match step.news {
            News::Described { descriptor, kit } => {
                instance.descriptor = Some(*descriptor);
                instance.kit = Some(kit);
            }
            News::Started { engine } => {
                // Memory may hold less than the model's own context: the offer must not promise more.
                let context = engine.load_now().context;
                instance.state = State::Ready(engine);
                if let Some(descriptor) = &mut instance.descriptor
                    && descriptor.context != context
                {
                    descriptor.context = context;
                    return Change::Offer;
                }
            }
            News::InGroups { detail } => instance.state = State::InGroups(detail),
            News::Failed { detail } => instance.state = State::Failed(detail),
        }
        if known { Change::Report(step.index) } else { Change::Offer }
    }

    pub(crate) fn model(&self, index: usize) -> &ModelName {
        &self.list[index].model
    }

    /// How long the instance has been loading.
    pub(crate) fn age(&self, index: usize) -> Duration {
        self.list[index].began.elapsed()
    }

    /// What serves `model` here.
    pub(crate) fn serving(&self, model: &ModelName) -> Serving {
        // A group's instance comes first: this machine's own stands aside for it.
        let of_group = |i: &&Instance| i.seat.is_some() && i.model == *model;
        let found = self.list.iter().find(of_group);
        match found.or_else(|| self.list.iter().find(|instance| instance.model == *model)) {
            None => Serving::Never,
            Some(Instance { leaving: true, .. }) => Serving::NotNow("it is being unloaded".into()),
            Some(Instance { id, state: State::Ready(engine), .. }) => Serving::Ready(*id, engine.clone()),
            Some(Instance { state: State::Loading, .. }) => {
                Serving::NotNow("its weights are being read".into())
            }
            Some(Instance { state: State::InGroups(detail), .. }) => Serving::NotNow(detail.clone()),
            Some(Instance { state: State::Failed(detail), .. }) => {
                Serving::NotNow(format!("it could not be loaded: {detail}"))
            }
        }
    }

    /// The kit with this hash, ready to be sent.
    pub(crate) fn kit(&self, sha256: &str) -> Option<Kit> {
        let instance =
            self.list.iter().find(|i| i.descriptor.as_ref().is_some_and(|d| d.kit_sha256 == sha256))?;
        Some(Kit {
            sha256: sha256.to_owned(),
            bytes: Arc::clone(instance.kit.as_ref()?),
            sent: 0,
            counter: 0,
        })
    }

    /// What is offered to the coordinator: every instance whose model is known, and every one that failed before it
    /// was, so that an operator sees it.
    pub(crate) fn offers(&mut self) -> Vec<InstanceOffer> {
        let draining = self.draining;
        let offered = self.list.iter_mut().filter(|instance| instance.is_offered());
        let offer = |instance: &mut Instance| InstanceOffer {
            instance: instance.id,
            epoch: instance.seat.map_or(Epoch(0), |(epoch, _)| epoch),
            rank: 0,
            ranks: instance.seat.map_or(1, |(_, ranks)| ranks),
            model: instance.descriptor.clone().unwrap_or_else(|| unknown(&instance.model)),
            report: instance.report(draining),
        };
        offered.map(offer).collect()
    }

    /// How each offered instance is.
    pub(crate) fn reports(&mut self) -> Vec<InstanceReport> {
        let draining = self.draining;
        self.list.iter_mut().filter(|i| i.is_offered()).map(|i| i.report(draining)).collect()
    }

    /// How one instance is.
    pub(crate) fn report(&mut self, index: usize) -> InstanceReport {
        let draining = self.draining;
        self.list[index].report(draining)
    }

    /// The instances whose engine broke down since the last call.
    pub(crate) fn broken(&mut self) -> Vec<(usize, String)> {
        let mut broken = Vec::new();
        // A group's engine ends with its life, which says so itself: the group forms anew, so it is no failed instance.
        for (index, instance) in self.list.iter_mut().enumerate().filter(|(_, i)| i.seat.is_none()) {
            if let State::Ready(engine) = &instance.state
                && let Some(detail) = engine.load_now().failed
            {
                broken.push((index, detail.clone()));
                instance.state = State::Failed(detail);
            }
        }
        broken
    }

    /// A group whose rank 0 is here takes requests.
    pub(crate) fn group_up(&mut self, up: Up) {
        self.list.retain(|instance| instance.id != up.instance);
        self.list.push(Instance {
            id: up.instance,
            model: up.descriptor.name.clone(),
            state: State::Ready(Host::Engine(up.engine)),
            descriptor: Some(up.descriptor),
            kit: Some(up.kit),
            generation: 0,
            began: Instant::now(),
            seat: Some((up.epoch, up.ranks)),
            aside: false,
            life: None,
            leaving: false,
        });
    }

    /// A group's life is over; whether its instance was offered here.
    pub(crate) fn group_over(&mut self, id: InstanceId) -> bool {
        let before = self.list.len();
        self.list.retain(|instance| instance.id != id || instance.seat.is_none());
        self.list.len() < before
    }

    /// What this machine offers of `model` by itself, as far as it is known.
    pub(crate) fn own(&self, model: &ModelName) -> Option<Own> {
        let mut own = self.list.iter().filter(|i| i.seat.is_none() && i.life.is_none() && i.model == *model);
        own.find_map(|instance| {
            let weights_sha256 = instance.descriptor.as_ref()?.weights_sha256.clone();
            let alone = match &instance.state {
                State::Ready(Host::Engine(engine)) => Some(engine.clone()),
                _ => None,
            };
            Some(Own { weights_sha256, alone })
        })
    }

    /// Lets own instances stand aside for groups, or come back; those that changed.
    pub(crate) fn set_aside(&mut self, computed: impl Fn(&ModelName) -> bool) -> Vec<usize> {
        let mut changed = Vec::new();
        for (index, instance) in self.list.iter_mut().enumerate().filter(|(_, i)| i.seat.is_none()) {
            let aside = computed(&instance.model);
            if instance.aside != aside && instance.is_offered() {
                changed.push(index);
            }
            instance.aside = aside;
        }
        changed
    }

    /// Takes every engine out, to be stopped.
    pub(crate) fn engines(&mut self) -> Vec<Host> {
        let leave = |instance: &mut Instance| match std::mem::replace(
            &mut instance.state,
            State::Failed("the provider is leaving".into()),
        ) {
            State::Ready(engine) => Some(engine),
            State::Loading | State::InGroups(_) | State::Failed(_) => None,
        };
        self.list.iter_mut().filter_map(leave).collect()
    }
}

impl Instance {
    fn is_offered(&self) -> bool {
        self.descriptor.is_some() || matches!(self.state, State::Failed(_))
    }

    fn report(&mut self, draining: bool) -> InstanceReport {
        self.generation += 1;
        let (phase, detail, load) = match &self.state {
            State::Loading => (InstancePhase::Loading, String::new(), EngineReport::default()),
            State::Failed(detail) => (InstancePhase::Failed, detail.clone(), EngineReport::default()),
            State::InGroups(detail) => (InstancePhase::InGroups, detail.clone(), EngineReport::default()),
            State::Ready(engine) => {
                let (phase, detail) = match (draining, engine.down()) {
                    (true, _) => (InstancePhase::Draining, "the provider is leaving".into()),
                    (false, _) if self.leaving => {
                        (InstancePhase::Draining, "the coordinator takes it off this machine".into())
                    }
                    (false, Some(detail)) => (InstancePhase::Loading, detail),
                    (false, None) if self.aside => {
                        (InstancePhase::Draining, "its machine is a rank of a group that serves it".into())
                    }
                    (false, None) => (InstancePhase::Ready, String::new()),
                };
                (phase, detail, engine.load_now())
            }
        };
        InstanceReport {
            instance: self.id,
            generation: self.generation,
            phase,
            detail,
            slots: load.slots,
            running: load.running,
            waiting: load.waiting,
            kv_tokens: load.kv_tokens,
            kv_tokens_free: load.kv_tokens_free,
            prefill_tokens_waiting: load.prefill_tokens_waiting,
            prefill_tokens_per_s: load.prefill_tokens_per_s,
            decode_tokens_per_s: load.decode_tokens_per_s,
        }
    }
}

/// What is said of a model whose files could not be read: its name.
fn unknown(model: &ModelName) -> ModelDescriptor {
    ModelDescriptor {
        name: model.clone(),
        family: String::new(),
        parameters: 0,
        weight_bytes: Bytes::ZERO,
        context: Tokens::ZERO,
        vocabulary: 0,
        weights_sha256: String::new(),
        kit_sha256: String::new(),
        kit_bytes: Bytes::ZERO,
    }
}
