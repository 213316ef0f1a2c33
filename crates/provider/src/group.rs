//! This machine's ranks: lives of groups that the coordinator assigns, each in a thread of its own, one after the other.

pub(crate) mod desk;
mod life;
mod reference;
mod spans;

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use base::{Epoch, InstanceId, ModelName};
use engine::Engine;
use link::{Cancel, Stopper};
use tokio::sync::mpsc;
use trust::MachineKeys;
use wire::control::{
    AssignGroup, FromCoordinator, GroupPhase, GroupPorts, GroupReport, GroupRoster, Held, ModelDescriptor,
};
use wire::trace::Span;

use crate::config::ModelConfig;
use crate::probe::Proved;
use desk::{Desk, Do, Input};

/// News of ranks that wait for the provider's task. Each life says a handful; telemetry is dropped where it is full.
const NEWS_MAX: usize = 64;

/// Ranks say once a second how much they computed: what did in this time is taken to serve.
const WORKS: Duration = Duration::from_secs(3);

/// A rank's thread ends within the links' and the engine's own deadlines; beyond this it is left to the process's end.
const END_MAX: Duration = Duration::from_secs(10);

/// What a rank says.
pub(crate) enum GroupNews {
    /// Others dial it here.
    Ports(GroupPorts),
    /// How far it is.
    Report(GroupReport),
    /// Rank 0 takes requests.
    Up(Box<Up>),
    /// Its life is over: the last word of it.
    Over { instance: InstanceId, epoch: Epoch },
}

/// An instance that a group makes, on the machine of its rank 0.
pub(crate) struct Up {
    pub(crate) instance: InstanceId,
    pub(crate) epoch: Epoch,
    pub(crate) ranks: u32,
    pub(crate) engine: Engine,
    pub(crate) descriptor: ModelDescriptor,
    pub(crate) kit: Arc<[u8]>,
}

/// What this machine has said that it holds of a model. The files on its disk may be others by now.
pub(crate) struct Own {
    pub(crate) weights_sha256: String,
    /// Its engine, where it computes the model alone: the reference of the self-test.
    pub(crate) alone: Option<Engine>,
}

/// What every life on this machine works with.
pub(crate) struct Ground {
    pub(crate) keys: Arc<MachineKeys>,
    /// Where to listen for other ranks.
    pub(crate) listen: Vec<IpAddr>,
    /// Where references of self-tests are kept.
    pub(crate) folder: PathBuf,
    /// Which addresses of other machines are known to be reached.
    pub(crate) proved: Arc<Proved>,
    pub(crate) news: mpsc::Sender<GroupNews>,
    /// Where spans go, where anybody collects them.
    pub(crate) spans: OnceLock<mpsc::Sender<Span>>,
}

/// What ends a life from outside.
#[derive(Clone, Default)]
pub(crate) struct Ending {
    pub(crate) cancel: Cancel,
    stopper: Arc<Mutex<Option<Stopper>>>,
}

impl Ending {
    /// From now on the links end with the life.
    pub(crate) fn hold(&self, stopper: Stopper) {
        *self.stopper.lock().unwrap_or_else(PoisonError::into_inner) = Some(stopper);
    }

    fn end(&self, why: &str) {
        self.cancel.cancel();
        if let Some(stopper) = self.stopper.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            stopper.stop(why);
        }
    }
}

/// A life that goes on.
struct Life {
    ending: Ending,
    roster: SyncSender<GroupRoster>,
    thread: JoinHandle<()>,
    model: ModelName,
    /// Its links stand: it takes what the machine has.
    stands: bool,
    held: Held,
}

/// Every rank of this machine.
pub(crate) struct Groups {
    ground: Arc<Ground>,
    desk: Desk,
    lives: HashMap<InstanceId, Life>,
    /// Threads of lives that were ended, to be waited for.
    ended: Vec<JoinHandle<()>>,
    /// The last word about each rank, to be said again on a new connection.
    last: HashMap<InstanceId, GroupReport>,
    /// When a rank last said that it computed something.
    worked: Option<Instant>,
}

impl Groups {
    pub(crate) fn new(
        keys: Arc<MachineKeys>,
        listen: Vec<IpAddr>,
        folder: PathBuf,
        proved: Arc<Proved>,
    ) -> (Self, mpsc::Receiver<GroupNews>) {
        let (news, heard) = mpsc::channel(NEWS_MAX);
        let ground = Arc::new(Ground { keys, listen, folder, proved, news, spans: OnceLock::new() });
        let (lives, ended, last) = (HashMap::new(), Vec::new(), HashMap::new());
        (Self { ground, desk: Desk::default(), lives, ended, last, worked: None }, heard)
    }

    /// From now on ranks tell `spans` what they computed for requests that stand in a trace.
    pub(crate) fn tell_spans(&self, spans: &mpsc::Sender<Span>) {
        // Told once, at the start.
        let _ = self.ground.spans.set(spans.clone());
    }

    /// The models that are computed by this machine's ranks now: its own instances of them stand aside. Not before a
    /// group's links stand: until then, and where they never do, the machine serves as it can.
    pub(crate) fn computes(&self, model: &ModelName) -> bool {
        self.lives.values().any(|life| life.stands && life.model == *model)
    }

    /// Whether a rank computed something in the last seconds.
    pub(crate) fn work(&self) -> bool {
        self.worked.is_some_and(|at| at.elapsed() < WORKS)
    }

    /// The models of all ranks that are here or about to be.
    pub(crate) fn computed(&self) -> Vec<String> {
        self.lives.values().map(|life| life.model.to_string()).collect()
    }

    /// The threads of ranks that have ended and may hold memory still.
    pub(crate) fn take_ended(&mut self) -> Vec<JoinHandle<()>> {
        std::mem::take(&mut self.ended)
    }

    /// Every rank that is here or about to be.
    pub(crate) fn held(&self) -> Vec<Held> {
        let is_ready = |held: &Held| {
            let last = self.last.get(&held.instance);
            last.is_some_and(|last| last.epoch == held.epoch && last.phase == GroupPhase::Ready)
        };
        self.lives.values().map(|life| Held { ready: is_ready(&life.held), ..life.held.clone() }).collect()
    }

    /// What the coordinator wants of a rank. What comes back is said to it at once.
    ///
    /// `own` is what this machine offers of the model by itself, where it does.
    pub(crate) fn carry(
        &mut self,
        message: FromCoordinator,
        models: &[ModelConfig],
        own: impl Fn(&ModelName) -> Option<Own>,
    ) -> Option<GroupReport> {
        match message {
            FromCoordinator::AssignGroup(assign) => {
                let key = (assign.instance, assign.epoch);
                match self.desk.handle(Input::Assign { instance: key.0, epoch: key.1 }) {
                    Do::Start { instead } => {
                        if instead {
                            self.end_life(key.0, "a newer life of this group begins");
                        }
                        self.begin(assign, models, own)
                    }
                    _ => None,
                }
            }
            FromCoordinator::GroupRoster(roster) => {
                let input = Input::Roster { instance: roster.instance, epoch: roster.epoch };
                if self.desk.handle(input) == Do::Deliver
                    && let Some(life) = self.lives.get(&roster.instance)
                {
                    // A second roster of the same life says nothing new.
                    let _ = life.roster.try_send(roster);
                }
                None
            }
            FromCoordinator::UnassignGroup { instance, epoch, reason } => {
                if self.desk.handle(Input::Unassign { instance, epoch }) == Do::Stop {
                    let reason: String = reason.chars().filter(|c| !c.is_control()).take(200).collect();
                    self.end_life(instance, &reason);
                }
                None
            }
            _ => None,
        }
    }

    fn begin(
        &mut self,
        assign: AssignGroup,
        models: &[ModelConfig],
        own: impl Fn(&ModelName) -> Option<Own>,
    ) -> Option<GroupReport> {
        let refused = |detail: String| GroupReport {
            instance: assign.instance,
            epoch: assign.epoch,
            rank: assign.rank,
            phase: GroupPhase::Ended,
            culprit: Some(assign.rank),
            detail,
            telemetry: None,
            standing: None,
        };
        let Some(model) = models.iter().find(|model| model.name == assign.model && model.upstream.is_none())
        else {
            self.desk.handle(Input::Ended { instance: assign.instance, epoch: assign.epoch });
            let detail = format!(
                "this machine has no model {} that it computes itself: start its provider with --model",
                assign.model
            );
            return Some(refused(detail));
        };
        let (instance, epoch, rank) = (assign.instance, assign.epoch, assign.rank);
        let (roster, rosters) = sync_channel(1);
        let ending = Ending::default();
        let name = assign.model.clone();
        let ranks = u32::try_from(assign.members.len()).unwrap_or(u32::MAX);
        let held = Held { instance, epoch, rank, ranks, model: name.clone(), ready: false };
        let work = life::Work {
            ground: Arc::clone(&self.ground),
            model: model.clone(),
            own: own(&assign.model),
            assign,
            rosters,
            ending: ending.clone(),
            before: std::mem::take(&mut self.ended),
        };
        let thread = std::thread::Builder::new().name(format!("rank-{rank}")).spawn(move || life::live(work));
        match thread {
            Ok(thread) => {
                self.lives
                    .insert(instance, Life { ending, roster, thread, model: name, stands: false, held });
                None
            }
            Err(error) => {
                self.desk.handle(Input::Ended { instance, epoch });
                let (phase, culprit) = (GroupPhase::Ended, Some(rank));
                let detail = format!("no thread for the rank: {error}");
                Some(GroupReport {
                    instance,
                    epoch,
                    rank,
                    phase,
                    culprit,
                    detail,
                    telemetry: None,
                    standing: None,
                })
            }
        }
    }

    fn end_life(&mut self, instance: InstanceId, why: &str) {
        if let Some(life) = self.lives.remove(&instance) {
            life.ending.end(why);
            self.ended.push(life.thread);
        }
    }

    /// Takes note of what a rank says before it is said on; whether it is about a life that still matters.
    pub(crate) fn note(&mut self, news: &GroupNews) -> bool {
        match news {
            GroupNews::Ports(ports) => self.desk.is_running(ports.instance, ports.epoch),
            GroupNews::Up(up) => self.desk.is_running(up.instance, up.epoch),
            GroupNews::Report(report) => {
                let steps = |report: &GroupReport| report.telemetry.map_or(0, |telemetry| telemetry.steps);
                let before = self.last.insert(report.instance, report.clone());
                if steps(report) > before.as_ref().map_or(0, steps) {
                    self.worked = Some(Instant::now());
                }
                let stands = matches!(report.phase, GroupPhase::Loading | GroupPhase::Ready);
                if self.desk.is_running(report.instance, report.epoch)
                    && let Some(life) = self.lives.get_mut(&report.instance)
                {
                    life.stands = stands;
                }
                true
            }
            GroupNews::Over { instance, epoch } => {
                if self.desk.handle(Input::Ended { instance: *instance, epoch: *epoch }) == Do::Forget {
                    self.end_life(*instance, "its life is over");
                }
                true
            }
        }
    }

    /// What was last said of each rank, for a coordinator that may have missed it.
    pub(crate) fn again(&self) -> Vec<GroupReport> {
        self.last.values().cloned().collect()
    }

    /// Ends every life, and waits for its threads.
    pub(crate) async fn end(mut self) {
        for instance in self.lives.keys().copied().collect::<Vec<_>>() {
            self.end_life(instance, "its provider is leaving");
        }
        let threads = std::mem::take(&mut self.ended);
        let joined = tokio::task::spawn_blocking(move || {
            for thread in threads {
                // A panic there has been said by the panic hook.
                let _ = thread.join();
            }
        });
        if tokio::time::timeout(END_MAX, joined).await.is_err() {
            tracing::warn!("a rank did not end in time");
        }
    }
}
