//! Deployments: what operators want is kept, and one task alone decides what machines hold and tells them.
//!
//! What happens (machines, their reports, operators) is put into an inbox; the task takes all of it, lets
//! `fleet::reconcile` look once at everything, keeps what follows on the disk, and only then tells the machines. After a
//! start of the coordinator it begins with what the disk has: instances that are still held are taken on as they are.
//!
//! [`Deployments`] is what everybody shares; `writer.rs` is the task.

mod asked;
mod demand;
mod fetches;
mod inbox;
mod kept;
mod perform;
mod reach;
mod shown;
mod world;
mod writer;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use base::{Epoch, InstanceId, MachineId, ModelName};
use fleet::deployment::{Replicas, Spec};
use fleet::reconcile::{Controller, Mode, World};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, mpsc, oneshot};
use wire::admin::deployment::Accepted;
use wire::control::InstanceOffer;

use crate::core::Core;
use crate::problem::Problem;

pub(crate) use asked::Call;
use inbox::Inbox;
pub use kept::forget_placements;
pub(crate) use writer::{Writer, parse_mode};

/// Operators' calls that may wait. Each is answered after one write to the disk.
const COMMANDS_MAX: usize = 64;

/// How long a call waits for its answer at most: longer than the store's own patience.
const ANSWER_WITHIN: std::time::Duration = std::time::Duration::from_secs(20);

/// Models that were asked for and that no instance serves, counted as demand.
const TURNED_AWAY_MAX: usize = 1024;

/// Models whose deployments were deleted that are remembered.
const OVER_MAX: usize = 1024;

/// What somebody wants of the task.
pub(crate) enum Command {
    /// A change.
    Change(Change, Option<Call>, oneshot::Sender<Result<Accepted, Problem>>),
    /// Whether plans are followed.
    Mode(Mode, oneshot::Sender<Result<(), Problem>>),
    /// A look at how things are.
    Look(Box<dyn FnOnce(&Sight<'_>) + Send>),
}

/// What a group's ranks are told of a deployment's instance.
#[derive(Debug, Clone)]
pub(crate) struct GroupTerms {
    pub(crate) model: ModelName,
    /// Stages x ranks.
    pub(crate) mode: String,
    pub(crate) shard_map: String,
    pub(crate) context: u32,
    pub(crate) max_batch: u32,
}

/// What an operator changes.
#[derive(Debug)]
pub(crate) enum Change {
    /// This should run.
    Apply(Box<Spec>),
    /// So many of it.
    Scale(String, Replicas),
    /// It should not.
    Delete(String),
}

/// How things are.
pub(crate) struct Sight<'a> {
    pub(crate) controller: &'a Controller,
    pub(crate) world: &'a World,
    /// Now, on the controller's clock: microseconds since 1970.
    pub(crate) now: base::Micros,
}

/// By machine: instance, assignment, rank.
type Told = HashMap<MachineId, Vec<(InstanceId, Epoch, u32)>>;

/// What the task shares with everybody.
pub(crate) struct Deployments {
    pub(crate) inbox: Inbox,
    commands: mpsc::Sender<Command>,
    waiting: Mutex<Option<mpsc::Receiver<Command>>>,
    /// Something came in.
    look: Notify,
    /// What each managed machine was told to hold: what it may offer.
    told: RwLock<Told>,
    /// Models that deployments want.
    models: RwLock<BTreeSet<String>>,
    /// Models that they wanted, and none does any more.
    over: RwLock<BTreeSet<String>>,
    /// Requests for them while there was nothing to serve them.
    turned_away: Mutex<HashMap<String, u64>>,
}

impl Default for Deployments {
    fn default() -> Self {
        let (commands, waiting) = mpsc::channel(COMMANDS_MAX);
        Self {
            inbox: Inbox::default(),
            commands,
            waiting: Mutex::new(Some(waiting)),
            look: Notify::new(),
            told: RwLock::default(),
            models: RwLock::default(),
            over: RwLock::default(),
            turned_away: Mutex::default(),
        }
    }
}

impl Deployments {
    /// Whether a managed machine may offer this for requests: only what it was told to hold (A3).
    pub(crate) fn admits(&self, machine: MachineId, offer: &InstanceOffer) -> Result<(), &'static str> {
        let about = (offer.instance, offer.epoch, offer.rank);
        let told = self.told.read();
        if told.get(&machine).is_some_and(|told| told.contains(&about)) {
            Ok(())
        } else {
            Err("it is not what this machine was assigned")
        }
    }

    /// Whether a deployment wants `model`: then a request that finds nothing of it counts as demand.
    pub(crate) fn turned_away(&self, model: &ModelName) -> bool {
        let name = model.as_str();
        if !self.models.read().contains(name) {
            return false;
        }
        let mut turned_away = self.turned_away.lock();
        if turned_away.len() < TURNED_AWAY_MAX || turned_away.contains_key(name) {
            *turned_away.entry(name.to_owned()).or_default() += 1;
        }
        true
    }

    /// Whether the last deployment of `model` was deleted: nothing that serves it is waited for.
    pub(crate) fn is_over(&self, model: &ModelName) -> bool {
        self.over.read().contains(model.as_str())
    }

    /// Something came in: the task looks.
    pub(crate) fn look_soon(&self) {
        self.look.notify_one();
    }

    /// Asks the task for a change; it is on the disk when this returns.
    pub(crate) async fn change(&self, change: Change, call: Option<Call>) -> Result<Accepted, Problem> {
        let (to, from) = oneshot::channel();
        self.send(Command::Change(change, call, to)).await?;
        answered(from).await?
    }

    /// Says whether plans are followed.
    pub(crate) async fn set_mode(&self, mode: Mode) -> Result<(), Problem> {
        let (to, from) = oneshot::channel();
        self.send(Command::Mode(mode, to)).await?;
        answered(from).await?
    }

    /// Looks at how things are.
    pub(crate) async fn look<T: Send + 'static>(
        &self,
        at: impl FnOnce(&Sight<'_>) -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let (to, from) = oneshot::channel();
        let look = Box::new(move |sight: &Sight<'_>| {
            // Whoever asked may have gone.
            let _ = to.send(at(sight));
        });
        self.send(Command::Look(look)).await?;
        answered(from).await
    }

    async fn send(&self, command: Command) -> Result<(), Problem> {
        let sent = tokio::time::timeout(ANSWER_WITHIN, self.commands.send(command)).await;
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Problem::Draining),
            Err(_) => Err(Problem::Internal("deployments are not decided about in time")),
        }
    }

    fn publish(&self, controller: &Controller) {
        let mut told = Told::new();
        for instance in controller.instances() {
            for (machine, _) in &instance.places {
                let of = controller.told(*machine);
                if !of.is_empty() {
                    told.insert(*machine, of.to_vec());
                }
            }
        }
        *self.told.write() = told;
        let models = controller.deployments().map(|(_, deployment)| deployment.spec.model.clone());
        let models: BTreeSet<String> = models.collect();
        let before = std::mem::replace(&mut *self.models.write(), models.clone());
        if before != models {
            let mut over = self.over.write();
            over.extend(before);
            over.retain(|model| !models.contains(model));
            while over.len() > OVER_MAX {
                over.pop_first();
            }
        }
    }
}

async fn answered<T>(from: oneshot::Receiver<T>) -> Result<T, Problem> {
    match tokio::time::timeout(ANSWER_WITHIN, from).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => Err(Problem::Draining),
        Err(_) => Err(Problem::Internal("deployments are not decided about in time")),
    }
}

impl Core {
    /// Begins with what the disk has, and decides about deployments as long as the coordinator runs.
    pub(crate) async fn begin_deployments(self: &Arc<Self>) -> Result<(), store::StoreError> {
        let waiting = self.deployments.waiting.lock().take().expect("begun once");
        let mut writer = Writer::restore(Arc::clone(self)).await?;
        writer.await_groups();
        self.tasks.spawn(writer.run(waiting));
        Ok(())
    }
}
