//! One provider's session: what it says is brought to pools and requests; what makes no sense is counted.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::ws::Message;
use base::{AccountId, Incarnation, KeyId, MachineId};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use parking_lot::Mutex;
use trust::{PreparedAttempt, TrustError};
use wire::control::{AttemptRefusal, CREDIT, FromProvider, GROUPS, REOFFER, RefusalCode, Refused, Welcome};
use wire::frame::{self, FrameHeader, FrameKind};

use super::attempts::{Attempts, Delivery, FromMachine};
use super::handshake::Admitted;
use super::keymaker::KeyMaker;
use super::kit::Pieces;
use super::lanes::{LaneEnds, Lanes};
use crate::clock::unix_s;
use crate::core::{Core, span};
use crate::metrics::Metrics;

/// Key agreements made ahead for a machine, by a thread of their own: a burst of so many attempts waits for none. Each takes
/// some hundred bytes and 40 us, which is nothing for a few machines.
const PREPARED_FOR_FEW: usize = 64;
const FEW_MACHINES: usize = 256;

/// As many where there are more machines, and for one of those that was not sent anything yet: thousands may be connected
/// and idle.
const PREPARED_MAX: usize = 16;
const PREPARED_FIRST: usize = 2;

/// How soon a clock that jumped is noticed.
const CLOCK_LOOKED_AT: Duration = Duration::from_secs(30);

/// A connected provider.
pub(crate) struct Session {
    pub(crate) machine: MachineId,
    pub(crate) name: String,
    /// Whose machine it is: the account whose key it joined with.
    pub(crate) owner: Option<AccountId>,
    /// That key.
    pub(crate) joined_with: Option<KeyId>,
    /// When its time is over, in seconds since 1970; 0 is never.
    key_ends_unix: u64,
    pub(crate) lanes: Lanes,
    pub(crate) attempts: Attempts,
    /// Whether attempts outlive this connection.
    pub(crate) reoffers: bool,
    /// Chunks of an attempt that it sends before there is more credit; nothing where it knows none.
    pub(crate) credit: Option<u64>,
    /// Which start of the provider this is.
    pub(crate) incarnation: Incarnation,
    /// The machine's public key, base64: what other ranks of a group pin their links to.
    pub(crate) signing_key: String,
    /// Whether it can be a rank of a group.
    pub(crate) forms_groups: bool,
    sealing_key: Vec<u8>,
    prepared: Mutex<Vec<PreparedAttempt>>,
    /// Whether it joined as one of few.
    one_of_few: bool,
    /// Whether any of them was used.
    used: AtomicBool,
    /// Whether somebody is about to make more of them.
    restocking: AtomicBool,
    /// Kits that it was asked for, by their frames' subject.
    kits: Mutex<HashMap<u128, Pieces>>,
}

/// How a session ended.
pub(crate) struct Left {
    /// Whether the machine may be back by itself.
    pub(crate) lost: bool,
    /// For the log and for `status`.
    pub(crate) reason: Cow<'static, str>,
    /// What it is told.
    pub(crate) refused: Option<Refused>,
}

impl Left {
    fn lost(reason: &'static str) -> Self {
        Self { lost: true, reason: reason.into(), refused: None }
    }
}

impl Session {
    /// `connected` machines are here already.
    pub(crate) fn new(admitted: &Admitted, terms: &Welcome, connected: usize) -> (Self, LaneEnds) {
        let (lanes, ends) = Lanes::new();
        let has = |capability: &str| terms.capabilities.iter().any(|c| c == capability);
        let session = Self {
            machine: admitted.hello.machine,
            name: admitted.hello.name.clone(),
            owner: admitted.lent.map(|lent| lent.account),
            joined_with: admitted.lent.map(|lent| lent.key),
            key_ends_unix: admitted.lent.map_or(0, |lent| lent.ends_unix),
            lanes,
            attempts: Attempts::default(),
            reoffers: has(REOFFER),
            credit: has(CREDIT).then_some(terms.credit_chunks),
            incarnation: admitted.hello.incarnation,
            signing_key: admitted.hello.signing_key.clone(),
            forms_groups: has(GROUPS),
            sealing_key: admitted.sealing_key.clone(),
            prepared: Mutex::default(),
            one_of_few: connected < FEW_MACHINES,
            used: AtomicBool::new(false),
            restocking: AtomicBool::new(false),
            kits: Mutex::default(),
        };
        (session, ends)
    }

    /// Fresh keys for one attempt, made ahead where some are left.
    pub(crate) fn prepared(self: &Arc<Self>, makers: &KeyMaker) -> Result<PreparedAttempt, TrustError> {
        self.used.store(true, Ordering::Relaxed);
        let ready = {
            let mut prepared = self.prepared.lock();
            let ready = prepared.pop();
            let few = prepared.len() < self.ahead() / 2;
            drop(prepared);
            if few {
                self.stock(makers);
            }
            ready
        };
        ready.map_or_else(|| PreparedAttempt::new(&self.sealing_key), Ok)
    }

    /// How many there should be.
    fn ahead(&self) -> usize {
        match (self.one_of_few, self.used.load(Ordering::Relaxed)) {
            (true, _) => PREPARED_FOR_FEW,
            (false, true) => PREPARED_MAX,
            (false, false) => PREPARED_FIRST,
        }
    }

    /// Has attempts' keys made ahead.
    fn stock(self: &Arc<Self>, makers: &KeyMaker) {
        if !self.restocking.swap(true, Ordering::Relaxed) {
            makers.restock(self);
        }
    }

    /// Makes attempts' keys ahead, until there are enough.
    pub(crate) fn restock(&self) {
        self.restocking.store(false, Ordering::Relaxed);
        while self.prepared.lock().len() < self.ahead() {
            // A key that cannot be used is found out, and told, when an attempt needs it.
            let Ok(fresh) = PreparedAttempt::new(&self.sealing_key) else { return };
            self.prepared.lock().push(fresh);
            // A stock takes some milliseconds, in which requests that run already must not wait for a core.
            std::thread::yield_now();
        }
    }

    pub(crate) fn expect_kits(&self, asked: Vec<(String, usize)>) {
        let mut kits = self.kits.lock();
        for (hash, total) in asked {
            if let Some(header) = FrameHeader::of_kit(&hash, 0) {
                kits.insert(header.subject, Pieces::new(hash, total));
            }
        }
    }
}

/// What one message came to.
enum Step {
    Fine,
    /// Something that should not be, but harms nobody yet.
    Fault(&'static str),
    /// The connection cannot go on.
    Garbage(&'static str),
    Leave(Left),
}

/// Reads until the connection ends.
pub(crate) async fn read<S>(core: &Arc<Core>, session: &Arc<Session>, mut stream: S) -> Left
where
    S: Stream<Item = Result<Message, axum::Error>> + Unpin,
{
    let silence: Duration = span(core.config.uplink.silence_us_max);
    let mut faults = 0;
    loop {
        let message = tokio::select! {
            // What is there is read without a look at the rest.
            biased;
            message = tokio::time::timeout(silence, stream.next()) => message,
            () = session.lanes.close.cancelled() => return Left::lost("closed from this side"),
            () = over(session.key_ends_unix) => {
                let (lost, reason) = (true, "its key's time is over".into());
                return Left { lost, reason, refused: Some(no_more("expired")) };
            }
        };
        let step = match message {
            Err(_) => return Left::lost("silent for too long"),
            Ok(None | Some(Ok(Message::Close(_)))) => return Left::lost("it closed the connection"),
            Ok(Some(Err(error))) => broken(&error),
            Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => Step::Fine,
            Ok(Some(Ok(Message::Text(text)))) => control(core, session, &text),
            Ok(Some(Ok(Message::Binary(bytes)))) => data(core, session, &bytes),
        };
        match step {
            Step::Fine => {}
            Step::Leave(left) => return left,
            Step::Fault(kind) => {
                Metrics::count(&core.metrics.uplink_faults, kind);
                tracing::warn!(machine = %session.machine, kind, "a provider sent what makes no sense");
                faults += 1;
                if faults > core.config.uplink.faults_max {
                    return garbage("too many senseless messages");
                }
            }
            Step::Garbage(kind) => {
                Metrics::count(&core.metrics.uplink_faults, kind);
                tracing::warn!(machine = %session.machine, kind, "a provider sent garbage");
                return garbage(kind);
            }
        }
    }
}

/// What a machine is told whose key is no more.
pub(super) fn no_more(why: &str) -> Refused {
    Refused {
        code: RefusalCode::BadToken,
        reason: format!("the key that this machine joined with {why}"),
        remedy: "give it another key with the scope join, with --token".to_owned(),
    }
}

/// Returns at a time of the wall clock, which may jump: looked at every so often.
async fn over(at_unix: u64) {
    if at_unix == 0 {
        return std::future::pending().await;
    }
    while let left @ 1.. = at_unix.saturating_sub(unix_s()) {
        tokio::time::sleep(Duration::from_secs(left).min(CLOCK_LOOKED_AT)).await;
    }
}

fn garbage(kind: &'static str) -> Left {
    let refused = Refused {
        code: RefusalCode::BadMessage,
        reason: format!("the connection cannot go on: {kind}"),
        remedy: "update Phalanx on the provider's machine, or look at what changes its traffic".to_owned(),
    };
    Left { lost: true, reason: kind.into(), refused: Some(refused) }
}

/// A WebSocket that broke: by the network's fault, or by what came over it.
fn broken(error: &axum::Error) -> Step {
    if is_loss(error) { Step::Leave(Left::lost("the connection broke")) } else { Step::Garbage("websocket") }
}

/// Whether a connection broke under its messages, rather than by them.
pub(super) fn is_loss(error: &axum::Error) -> bool {
    use std::error::Error as _;
    let mut cause = error.source();
    while let Some(inner) = cause {
        if inner.is::<std::io::Error>() {
            return true;
        }
        cause = inner.source();
    }
    // The library has no kind for a peer that is gone without its goodbye.
    let text = error.to_string();
    text.contains("without closing handshake") || text.contains("closed")
}

fn control(core: &Arc<Core>, session: &Arc<Session>, text: &str) -> Step {
    if text.len() as u64 > core.config.uplink.control_bytes_max.0 {
        return Step::Fault("control_too_long");
    }
    let Ok(message) = FromProvider::decode(text) else { return Step::Garbage("control_unreadable") };
    match message {
        FromProvider::Hello(_) | FromProvider::Proof { .. } => return Step::Fault("handshake_again"),
        FromProvider::Register(register) => {
            core.deployments.inbox.registered(session, &register, core.clock.now());
            let managed = register.managed;
            let after = core.machines.register(session, register, |offer| {
                // What managed machines serve alone is what they were told; the rest is groups' matter.
                if managed && offer.ranks == 1 {
                    core.deployments.admits(session.machine, offer)
                } else {
                    core.groups.admits(session.machine, offer)
                }
            });
            core.carry_out(Some(session), after);
            core.deployments.look_soon();
            session.stock(&core.keys);
        }
        FromProvider::Heartbeat(heartbeat) => return reports(core, session, heartbeat.instances),
        FromProvider::InstanceChanged(report) => return reports(core, session, vec![report]),
        FromProvider::AttemptRefused { attempt, reason, message } => {
            let note: String = message.chars().filter(|c| !c.is_control()).take(500).collect();
            // A constraint is the caller's own, and so are the words about it.
            let shown = if reason == AttemptRefusal::BadConstraint { "" } else { note.as_str() };
            tracing::info!(machine = %session.machine, %attempt, ?reason, shown, "an attempt was refused");
            return delivered(core, session.attempts.deliver(attempt, FromMachine::Refused(reason, note)));
        }
        FromProvider::AttemptFailed { attempt, message } => {
            let note: String = message.chars().filter(|c| !c.is_control()).take(200).collect();
            tracing::warn!(machine = %session.machine, %attempt, note, "an attempt failed");
            return delivered(core, session.attempts.deliver(attempt, FromMachine::Failed));
        }
        FromProvider::Kept { attempts } => core.returned(session, &attempts),
        FromProvider::GroupPorts(ports) => core.group_ports(session.machine, ports),
        FromProvider::GroupReport(report) => core.group_report(session.machine, report),
        FromProvider::Draining => {
            let after = core.machines.draining(session);
            core.carry_out(Some(session), after);
            core.deployments.inbox.leaves(session.machine);
            core.deployments.look_soon();
        }
        FromProvider::Goodbye { reason } => {
            let said: String = reason.chars().filter(|c| !c.is_control()).take(200).collect();
            return Step::Leave(Left { lost: false, reason: said.into(), refused: None });
        }
        FromProvider::AssignmentReport(report) => {
            core.deployments.inbox.reported(session.machine, report);
            core.deployments.look_soon();
        }
        FromProvider::FetchReport(report) => {
            core.deployments.inbox.fetching(session.machine, report);
            core.deployments.look_soon();
        }
        FromProvider::Inventory(inventory) => {
            core.deployments.inbox.inventory(session.machine, inventory);
            core.deployments.look_soon();
        }
        FromProvider::Links(reports) => {
            core.deployments.inbox.links(session.machine, reports, core.clock.now());
            core.deployments.look_soon();
        }
        FromProvider::Unknown => {}
    }
    Step::Fine
}

fn reports(core: &Arc<Core>, session: &Arc<Session>, reports: Vec<wire::control::InstanceReport>) -> Step {
    let (after, strangers) = core.machines.report(session, reports);
    core.carry_out(Some(session), after);
    if strangers > 0 { Step::Fault("report_of_unknown_instance") } else { Step::Fine }
}

fn data(core: &Arc<Core>, session: &Arc<Session>, bytes: &Bytes) -> Step {
    let Ok((header, payload)) = frame::decode(bytes) else { return Step::Garbage("frame_unreadable") };
    match header.kind {
        FrameKind::Attempt => Step::Fault("frame_of_wrong_kind"),
        FrameKind::Chunk => {
            let payload = bytes.slice_ref(payload);
            let what = FromMachine::Chunk { counter: header.counter, payload };
            delivered(core, session.attempts.deliver(header.attempt(), what))
        }
        FrameKind::Kit => kit_piece(core, session, header, payload),
    }
}

/// Whether a frame about an attempt was in order.
fn delivered(core: &Core, delivery: Delivery) -> Step {
    match delivery {
        Delivery::Taken | Delivery::Late => Step::Fine,
        Delivery::Overflow => {
            Metrics::count(&core.metrics.attempts, "overflow");
            Step::Fine
        }
        Delivery::AfterTerminal => {
            Metrics::count(&core.metrics.chunk_violations, "after_terminal");
            Step::Fault("frame_after_terminal")
        }
        Delivery::Foreign => {
            Metrics::count(&core.metrics.chunk_violations, "foreign_attempt");
            Step::Fault("frame_of_foreign_attempt")
        }
    }
}

fn kit_piece(core: &Arc<Core>, session: &Arc<Session>, header: FrameHeader, piece: &[u8]) -> Step {
    let whole = {
        let mut kits = session.kits.lock();
        let Some(pieces) = kits.get_mut(&header.subject) else { return Step::Fault("kit_not_asked_for") };
        match pieces.add(header.counter, piece) {
            Ok(None) => return Step::Fine,
            Ok(Some(bytes)) => kits.remove(&header.subject).map(|pieces| (pieces.hash, bytes)),
            Err(error) => {
                let kind = match error {
                    super::kit::PieceError::Order => "kit_out_of_order",
                    super::kit::PieceError::TooLong => "kit_too_long",
                    super::kit::PieceError::OtherHash => "kit_other_hash",
                };
                return Step::Garbage(kind);
            }
        }
    };
    let Some((hash, bytes)) = whole else { return Step::Fine };
    let core_of_task = Arc::clone(core);
    core.tasks.spawn(async move {
        let core = core_of_task;
        let kits = Arc::clone(&core.kits);
        let name = hash.clone();
        let opened = tokio::task::spawn_blocking(move || kits.open(&name, &bytes)).await;
        if opened.is_err() {
            tracing::error!(kit = hash, "opening a kit panicked");
            core.kits.fail(&hash, "it could not be opened; see the coordinator's log");
        }
        for (session, after) in core.machines.admit_all() {
            core.carry_out(Some(&session), after);
        }
        // What was ready and could not be offered may be so now.
        core.deployments.look_soon();
    });
    Step::Fine
}

/// Whether a refusal is only that there is no room now.
pub(crate) fn is_full(reason: AttemptRefusal) -> bool {
    matches!(reason, AttemptRefusal::NoSlot | AttemptRefusal::NoKvRoom)
}
