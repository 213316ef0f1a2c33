//! A provider's life: one task that owns its state, waits for what happens, and does what the uplink decides.

mod assigned;
mod fetches;
mod heard;
mod kept;
mod own;
mod probes;
mod ranks;

use std::collections::VecDeque;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use base::{MachineId, Micros, Rng};
use tokio::sync::mpsc;
use tokio_tungstenite::Connector;
use tokio_tungstenite::tungstenite::{self, Message};
use wire::control::{FromProvider, HELD_MAX, Hardware, Heartbeat, RefusalCode, Refused, Register};
use wire::trace::Span;

use crate::assignment::desk::Input as Desk;
use crate::assignment::{AssignNews, Managed};
use crate::attempt::table::Table;
use crate::config::{Config, ConfigError};
use crate::event::Event;
use crate::group::{GroupNews, Groups};
use crate::identity::{Identity, IdentityError};
use crate::instance::{Instances, Step};
use crate::load::Loaders;
use crate::probe::desk::{Input as Probing, Outcome};
use crate::probe::{Probes, Proved};
use crate::session::{Ear, Session};
use crate::uplink::machine::{Effect, Ending, Input, Timing, Uplink, clipped};
use crate::uplink::socket::{self, OpenError, Socket};
use crate::uplink::target::Target;

/// Why a provider ended that was not asked to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Its settings cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its data folder cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The coordinator does not want it, and trying again would not help.
    #[error("the coordinator refuses this provider: {reason}; {remedy}")]
    Refused {
        /// For programs.
        code: RefusalCode,
        /// What is wrong.
        reason: String,
        /// What to do.
        remedy: String,
    },
}

/// What is left to say of a provider that was asked to leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Farewell {
    /// Who it was.
    pub machine: MachineId,
    /// Attempts that were cut off because they took longer than the drain may.
    pub abandoned: usize,
}

/// Serves until `shutdown` is ready, then drains, says goodbye, and ends everything it started.
///
/// `on_event` is called on the provider's own task and must not block.
///
/// # Errors
/// The settings or the data folder cannot be used, or the coordinator refuses for good. A model that cannot be loaded,
/// a coordinator that cannot be reached and a connection that is lost are no errors: they are told as events, and the
/// provider goes on.
pub async fn run(
    config: Config,
    shutdown: impl Future<Output = ()> + Send,
    on_event: impl FnMut(Event) + Send + 'static,
) -> Result<Farewell, RunError> {
    let shutdown = async {
        shutdown.await;
        "left by its owner".to_owned()
    };
    run_traced(config, shutdown, on_event, None).await
}

/// As [`run`], and `shutdown` says why, which the coordinator is told; and tells `spans` what was computed for requests that
/// stand in a trace. Spans that find no room are gone.
///
/// # Errors
/// As [`run`].
pub async fn run_traced(
    config: Config,
    shutdown: impl Future<Output = String> + Send,
    on_event: impl FnMut(Event) + Send + 'static,
    spans: Option<mpsc::Sender<Span>>,
) -> Result<Farewell, RunError> {
    config.check()?;
    let target = Target::parse(&config.join).map_err(ConfigError::from)?;
    let connector = match &config.ca_file {
        Some(file) => Some(socket::connector(file).map_err(ConfigError::from)?),
        None => None,
    };
    let now_us = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64);
    let identity = Identity::open(&config.data_dir, now_us)?;
    if !target.tls && !target.is_loopback() {
        tracing::warn!(
            url = %target.url,
            "the join token travels unencrypted: prompts and answers are sealed, but https is needed to keep the token"
        );
    }
    let mut provider = Provider::new(config, target, connector, identity, Box::new(on_event));
    if let Some(spans) = &spans {
        provider.groups.tell_spans(spans);
    }
    provider.spans = spans;
    let ending = provider.live(shutdown).await;
    let farewell = provider.end().await;
    match ending {
        Ending::Left => Ok(farewell),
        Ending::Refused(Refused { code, reason, remedy }) => {
            Err(RunError::Refused { code, reason: clipped(&reason), remedy: clipped(&remedy) })
        }
    }
}

/// How long attempts go on without a connection: a coordinator's restart, and some.
const KEPT_FOR: Micros = Micros::from_secs(60);

/// What the provider's task waits for.
enum Occurrence {
    Shutdown(String),
    Step(Step),
    Rank(GroupNews),
    Assign(AssignNews),
    AssignDue,
    Probed(Outcome),
    ProbeDue,
    Dialled(Box<Result<Socket, OpenError>>),
    Heard(Option<Result<Message, tungstenite::Error>>),
    Written(Result<(), tungstenite::Error>),
    AttemptEnded,
    Due,
    KeptTooLong,
}

type Dial = Pin<Box<dyn Future<Output = Result<Socket, OpenError>> + Send>>;

struct Provider {
    config: Config,
    target: Target,
    connector: Option<Connector>,
    identity: Identity,
    name: String,
    hardware: Hardware,
    on_event: Box<dyn FnMut(Event) + Send>,
    /// The origin of this task's time.
    origin: Instant,
    uplink: Uplink,
    instances: Instances,
    loaders: Loaders,
    steps: mpsc::Receiver<Step>,
    groups: Groups,
    rank_news: mpsc::Receiver<GroupNews>,
    /// Where a coordinator decides what is held.
    managed: Option<Managed>,
    assign_news: mpsc::Receiver<AssignNews>,
    /// Where it may be in groups that a coordinator makes.
    probes: Option<Probes>,
    probe_news: mpsc::Receiver<Outcome>,
    table: Arc<Table>,
    /// Where spans go, where anybody collects them.
    spans: Option<mpsc::Sender<Span>>,
    dial: Option<Dial>,
    session: Option<Session>,
    leaving: bool,
    /// Attempts that the drain cut off.
    abandoned: usize,
    /// When attempts without a connection are let go of.
    kept_until: Option<Micros>,
}

impl Provider {
    fn new(
        config: Config,
        target: Target,
        connector: Option<Connector>,
        identity: Identity,
        mut on_event: Box<dyn FnMut(Event) + Send>,
    ) -> Self {
        let mut rng = Rng::new(u64::from_le_bytes(trust::random_bytes()));
        let name = config.name.clone().unwrap_or_else(crate::hardware::machine_name);
        on_event(Event::Identified {
            machine: identity.keys.machine(),
            incarnation: identity.incarnation,
            name: name.clone(),
        });
        let hardware = crate::hardware::probe();
        let (managed, assign_news) = match config.managed.clone() {
            Some(managed) => {
                let (given, keys) = ((&config.models[..], name.as_str()), Arc::clone(&identity.keys));
                let started = Managed::start(managed, given, config.data_dir.clone(), &hardware, keys);
                (Some(started.0), started.1)
            }
            None => (None, mpsc::channel(1).1),
        };
        // A managed machine loads nothing by itself.
        let own = if managed.is_some() { &[][..] } else { &config.models[..] };
        let instances = Instances::new(own.iter().map(|model| model.name.clone()), &mut rng);
        for model in own {
            on_event(Event::Loading { model: model.name.clone() });
        }
        let (loaders, steps) = Loaders::start(own, &name, &config.data_dir);
        let listen = crate::hardware::group_listen(&config.group_listen, target.is_loopback());
        let (proved, keys) = (Arc::new(Proved::default()), Arc::clone(&identity.keys));
        let (probes, probe_news) = match &managed {
            Some(managed) => {
                let lending = Arc::clone(&managed.lending);
                let (probes, news) = Probes::start(Arc::clone(&keys), &listen, Arc::clone(&proved), lending);
                (Some(probes), news)
            }
            None => (None, mpsc::channel(1).1),
        };
        let (groups, rank_news) = Groups::new(keys, listen, config.data_dir.clone(), proved);
        let timing = Timing { drain_max: config.drain_max.into(), ..Timing::default() };
        Self {
            uplink: Uplink::new(timing, rng.fork(1)),
            config,
            target,
            connector,
            identity,
            name,
            hardware,
            on_event,
            origin: Instant::now(),
            instances,
            loaders,
            steps,
            groups,
            rank_news,
            managed,
            assign_news,
            probes,
            probe_news,
            table: Arc::new(Table::default()),
            spans: None,
            dial: None,
            session: None,
            leaving: false,
            abandoned: 0,
            kept_until: None,
        }
    }

    /// Until it is over.
    async fn live(&mut self, shutdown: impl Future<Output = String> + Send) -> Ending {
        let mut shutdown = pin!(shutdown);
        let mut inputs = VecDeque::from([Input::Start]);
        loop {
            while let Some(input) = inputs.pop_front() {
                let mut effects = Vec::new();
                self.uplink.handle(self.now(), input, &mut effects);
                for effect in effects {
                    if let Effect::End(ending) = effect {
                        return ending;
                    }
                    inputs.extend(self.perform(effect));
                }
                if inputs.is_empty() && self.uplink.is_draining() && self.table.len() == 0 {
                    inputs.push_back(Input::Idle);
                }
            }
            let assign_deadline = self.managed.as_ref().and_then(|managed| managed.desk.next_deadline());
            let probe_deadline = self.probes.as_ref().and_then(|probes| probes.desk.next_deadline());
            let occurrence = tokio::select! {
                biased;
                why = &mut shutdown, if !self.leaving => Occurrence::Shutdown(why),
                () = sleep_until(self.uplink.next_deadline(), self.origin) => Occurrence::Due,
                () = sleep_until(self.kept_until, self.origin) => Occurrence::KeptTooLong,
                Some(step) = self.steps.recv() => Occurrence::Step(step),
                Some(news) = self.rank_news.recv() => Occurrence::Rank(news),
                Some(news) = self.assign_news.recv() => Occurrence::Assign(news),
                () = sleep_until(assign_deadline, self.origin) => Occurrence::AssignDue,
                Some(outcome) = self.probe_news.recv() => Occurrence::Probed(outcome),
                () = sleep_until(probe_deadline, self.origin) => Occurrence::ProbeDue,
                dialled = dialled(&mut self.dial) => Occurrence::Dialled(Box::new(dialled)),
                () = self.table.something_ended() => Occurrence::AttemptEnded,
                ear = Session::listen(&mut self.session) => match ear {
                    Ear::Heard(message) => Occurrence::Heard(message),
                    Ear::Written(result) => Occurrence::Written(result),
                },
            };
            inputs.extend(self.digest(occurrence));
        }
    }

    fn now(&self) -> Micros {
        self.origin.elapsed().into()
    }

    fn tell(&mut self, event: Event) {
        (self.on_event)(event);
    }

    /// What an occurrence means to the uplink.
    fn digest(&mut self, occurrence: Occurrence) -> Option<Input> {
        match occurrence {
            Occurrence::Shutdown(why) => Some(self.leave(why)),
            Occurrence::Due => Some(Input::Tick),
            Occurrence::KeptTooLong => {
                self.kept_until = None;
                self.let_go();
                None
            }
            Occurrence::Step(step) => self.step(step),
            Occurrence::Rank(news) => self.group_news(news),
            Occurrence::Assign(news) => self.assign_news(news),
            Occurrence::AssignDue => self.decide(Desk::Tick),
            Occurrence::Probed(outcome) => self.probe(Probing::Ended(outcome)),
            Occurrence::ProbeDue => self.probe(Probing::Tick),
            Occurrence::Dialled(dialled) => {
                self.dial = None;
                Some(match *dialled {
                    Ok(socket) => {
                        self.session = Some(Session::start(socket, Arc::clone(&self.table)));
                        Input::Opened
                    }
                    Err(error) => Input::OpenFailed { detail: error.to_string() },
                })
            }
            // The loop itself looks whether anything is in flight.
            Occurrence::AttemptEnded => self.look_for_broken().or_else(|| self.look_at_drains()),
            Occurrence::Written(Ok(())) => None,
            Occurrence::Written(Err(error)) => {
                Some(Input::Closed { detail: format!("writing failed: {}", clipped(&error.to_string())) })
            }
            Occurrence::Heard(heard) => Some(self.heard(heard)),
        }
    }

    fn leave(&mut self, why: String) -> Input {
        self.leaving = true;
        self.instances.drain();
        self.decide(Desk::Leave);
        if self.uplink.is_up() {
            self.tell(Event::Draining { in_flight: self.table.len() });
        }
        Input::Leave { why }
    }

    /// Does what the uplink decided; returns what came of it at once.
    fn perform(&mut self, effect: Effect) -> Option<Input> {
        match effect {
            Effect::Connect => {
                self.tell(Event::Connecting { url: self.target.url.clone() });
                self.dial = Some(Box::pin(socket::open(self.target.clone(), self.connector.clone())));
                None
            }
            Effect::Hello => {
                let managed = self.managed.is_some();
                let hello = crate::session::hello(&self.identity, &self.config.token, &self.name, managed);
                self.say(&FromProvider::Hello(hello))
            }
            Effect::Prove { nonce } => {
                let known_as = (self.name.as_str(), self.managed.is_some());
                match crate::session::proof(&self.identity, &self.config.token, known_as, &nonce) {
                    Ok(proof) => self.say(&proof),
                    Err(detail) => Some(Input::Misread { detail }),
                }
            }
            Effect::Adopt(terms) => {
                tracing::info!(?terms, "session stands");
                if let Some(session) = &mut self.session {
                    session.adopt(&terms);
                }
                let closed = self.register().or_else(|| self.say_assignments_again());
                let closed = closed.or_else(|| self.say_ranks_again()).or_else(|| self.offer_kept());
                self.tell(Event::Joined { url: self.target.url.clone() });
                closed
            }
            Effect::Heartbeat { sequence } => {
                self.loaders.mark_used();
                self.managed.iter_mut().for_each(Managed::mark_used);
                if let Some(closed) = self.look_for_broken() {
                    return Some(closed);
                }
                let instances = self.instances.reports();
                self.say(&FromProvider::Heartbeat(Heartbeat { sequence, instances }))
            }
            Effect::Ping => self.session.as_ref().and_then(Session::ping),
            Effect::Say(message) => self.say(&message),
            Effect::Carry(message) => {
                self.carry(message);
                None
            }
            Effect::Abandon => {
                self.abandon();
                None
            }
            Effect::Drop => {
                self.dial = None;
                self.detach();
                // Dropping the session ends its writer.
                self.session = None;
                None
            }
            Effect::Finish => {
                if let Some(session) = &mut self.session {
                    session.finish();
                }
                None
            }
            Effect::Tell(event) => {
                self.tell(event);
                None
            }
            // Handled by the loop.
            Effect::End(_) => None,
        }
    }

    fn register(&mut self) -> Option<Input> {
        let instances = self.instances.offers();
        let mut holds = self.groups.held();
        holds.extend(self.managed.iter().flat_map(|managed| managed.desk.holds()));
        holds.truncate(HELD_MAX);
        let managed = self.managed.is_some();
        let register = Register { hardware: self.hardware.clone(), instances, managed, holds };
        self.say(&FromProvider::Register(register))
    }

    /// Puts a message into the control lane; an input where the session cannot go on for it.
    fn say(&mut self, message: &FromProvider) -> Option<Input> {
        self.session.as_ref()?.say(message)
    }

    /// Ends everything that was started.
    async fn end(mut self) -> Farewell {
        self.abandon();
        if let Some(session) = self.session.take() {
            session.end().await;
        }
        self.steps.close();
        self.rank_news.close();
        self.assign_news.close();
        self.probe_news.close();
        self.groups.end().await;
        // An engine that was started but not yet announced is in the channel.
        while let Ok(step) = self.steps.try_recv() {
            self.instances.take(step);
        }
        let mut engines = self.instances.engines();
        // So may one that was assigned.
        while let Ok(news) = self.assign_news.try_recv() {
            if let AssignNews::Loaded { host, .. } = news {
                engines.push(host);
            }
        }
        if let Some(managed) = self.managed.take() {
            managed.end().await;
        }
        self.loaders.end(engines).await;
        Farewell { machine: self.identity.keys.machine(), abandoned: self.abandoned }
    }
}

async fn dialled(dial: &mut Option<Dial>) -> Result<Socket, OpenError> {
    match dial {
        Some(dial) => dial.await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<Micros>, origin: Instant) {
    match deadline.and_then(|at| origin.checked_add(at.into())) {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
