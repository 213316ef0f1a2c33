//! A provider whose answers are written by the test: the real handshake, the real kit, the real seals.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use base::{AttemptId, Bytes, Epoch, Incarnation, InstanceId, MachineId, Rng, Tokens};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{SinkExt, StreamExt};
use model::synth::{Synth, SynthRequest};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use trust::{MachineKeys, Registration};
use wire::control::*;
use wire::frame::{self, FrameHeader};
use wire::job::Job;

use super::house::{House, PATIENCE, eventually};
pub(crate) use super::script::{Act, Credit, answer, end, perform, token, token_with_logprobs};

pub(crate) type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// What the provider saw.
pub(crate) enum Seen {
    Attempt(AttemptId, Box<Job>),
    Cancel(AttemptId),
    Standing(String),
    Refused(Refused),
    /// It is to be a rank.
    Rank(Box<AssignGroup>),
    /// Its group's ranks may meet.
    Roster,
    Goodbye,
    Closed,
}

/// How a provider presents itself.
pub(crate) struct Offer {
    pub(crate) keys: MachineKeys,
    pub(crate) incarnation: u64,
    pub(crate) model: String,
    pub(crate) slots: u32,
    pub(crate) context: u32,
    pub(crate) kv_tokens: u64,
    pub(crate) capabilities: Vec<String>,
    /// Whether its model gives vectors, and no text.
    pub(crate) pools: bool,
}

impl Default for Offer {
    fn default() -> Self {
        Self {
            keys: MachineKeys::generate(),
            incarnation: 1,
            model: "small".to_owned(),
            slots: 4,
            context: 512,
            kv_tokens: 4096,
            capabilities: vec!["juggling".to_owned()],
            pools: false,
        }
    }
}

type Script = Arc<Mutex<VecDeque<Vec<Act>>>>;

pub(crate) struct Provider {
    pub(crate) seen: mpsc::UnboundedReceiver<Seen>,
    say: mpsc::UnboundedSender<Message>,
    script: Script,
    /// Every byte that came or went, as it was on the wire inside WebSocket messages.
    pub(crate) wire: Arc<Mutex<Vec<u8>>>,
    pub(crate) instance: InstanceId,
    pub(crate) report: InstanceReport,
    pub(crate) credit: Arc<Credit>,
    machine: MachineId,
    model: ModelDescriptor,
}

impl Provider {
    /// Joins, sends its kit and waits until its model is listed.
    pub(crate) async fn join(house: &House) -> Self {
        Self::join_as(house, Offer::default()).await
    }

    pub(crate) async fn join_as(house: &House, offer: Offer) -> Self {
        let machine = offer.keys.machine().to_string();
        let provider = Self::join_unready(house, offer).await;
        let ready = async || {
            let status: wire::admin::FleetStatus = house.get("/api/status").await.json().await.unwrap();
            let mine = status.machines.iter().find(|m| m.machine.to_string() == machine);
            mine.is_some_and(|m| m.instances.iter().any(|i| i.ineligible.is_none()))
        };
        eventually("the provider's instance takes requests", ready).await;
        provider
    }

    pub(crate) async fn join_unready(house: &House, offer: Offer) -> Self {
        let mut socket = connect(house).await;
        say(&mut socket, &hello(&offer, &house.token)).await;
        prove(&mut socket, &offer, &house.token).await;
        let Some(FromCoordinator::Welcome(welcome)) = hear(&mut socket).await else { panic!("not welcome") };
        let known = welcome.capabilities.iter().any(|capability| capability == CREDIT);
        let first = if known { welcome.credit_chunks } else { 0 };
        let credit = Arc::new(Credit::new(first));
        let request = SynthRequest { context: offer.context as usize, ..SynthRequest::default() };
        let mut kit = Synth::new(&request).unwrap().kit();
        kit.pooling = offer.pools.then(|| br#"{"pooling_type": 1}"#.to_vec());
        let kit = kit.to_bytes();
        let instance = InstanceId(u128::from_le_bytes(trust::random_bytes()));
        let report = report(instance, &offer);
        let (machine, model) = (offer.keys.machine(), descriptor(&offer, &kit));
        say(&mut socket, &register(&model, &report, (Epoch(1), 1))).await;
        let (seen_to, seen) = mpsc::unbounded_channel();
        let (out, out_from) = mpsc::unbounded_channel();
        let script = Script::default();
        let wire = Arc::new(Mutex::new(Vec::new()));
        let work = Work {
            keys: offer.keys,
            kit,
            seen: seen_to,
            out: out.clone(),
            script: Arc::clone(&script),
            wire: Arc::clone(&wire),
            credit: Arc::clone(&credit),
        };
        tokio::spawn(work.run(socket, out_from));
        Self { seen, say: out, script, wire, instance, report, credit, machine, model }
    }

    pub(crate) fn machine(&self) -> MachineId {
        self.machine
    }

    /// Offers, in place of its own instance, a group's that it leads.
    pub(crate) fn lead(&self, group: InstanceId, epoch: Epoch, ranks: u32) {
        let report = InstanceReport { instance: group, ..self.report.clone() };
        self.send(&register(&self.model, &report, (epoch, ranks)));
    }

    /// What to do with the next attempt that nothing was said about yet. Attempts without a script are answered.
    pub(crate) fn next(&self, acts: Vec<Act>) {
        self.script.lock().unwrap().push_back(acts);
    }

    pub(crate) fn send(&self, message: &FromProvider) {
        self.say.send(Message::Text(message.encode().into())).unwrap();
    }

    /// Sends whatever it is; after the connection's end, nothing.
    pub(crate) fn send_raw(&self, message: Message) {
        let _ = self.say.send(message);
    }

    /// The next thing it sees that `pick` wants.
    pub(crate) async fn sees<T>(&mut self, pick: impl Fn(Seen) -> Option<T>) -> T {
        let wanted = async {
            loop {
                let seen = self.seen.recv().await.expect("the provider has ended");
                if let Some(found) = pick(seen) {
                    return found;
                }
            }
        };
        tokio::time::timeout(PATIENCE, wanted).await.expect("the provider never saw it")
    }

    pub(crate) async fn attempt(&mut self) -> (AttemptId, Job) {
        self.sees(|seen| match seen {
            Seen::Attempt(attempt, job) => Some((attempt, *job)),
            _ => None,
        })
        .await
    }
}

struct Work {
    keys: MachineKeys,
    kit: Vec<u8>,
    seen: mpsc::UnboundedSender<Seen>,
    out: mpsc::UnboundedSender<Message>,
    script: Script,
    wire: Arc<Mutex<Vec<u8>>>,
    credit: Arc<Credit>,
}

impl Work {
    async fn run(self, socket: Socket, mut out: mpsc::UnboundedReceiver<Message>) {
        let (mut sink, mut stream) = socket.split();
        loop {
            tokio::select! {
                Some(message) = out.recv() => {
                    // An empty close is how a script says "die".
                    if matches!(message, Message::Close(None)) {
                        return;
                    }
                    self.wire.lock().unwrap().extend_from_slice(&message.clone().into_data());
                    if sink.send(message).await.is_err() {
                        break;
                    }
                }
                message = stream.next() => match message {
                    Some(Ok(Message::Text(text))) => self.control(&text),
                    Some(Ok(Message::Binary(bytes))) => {
                        self.wire.lock().unwrap().extend_from_slice(&bytes);
                        self.attempt(&bytes);
                    }
                    Some(Ok(Message::Close(_)) | Err(_)) | None => break,
                    Some(Ok(_)) => {}
                },
            }
        }
        let _ = self.seen.send(Seen::Closed);
    }

    fn control(&self, text: &str) {
        let seen = match FromCoordinator::decode(text).unwrap() {
            FromCoordinator::WantKit { kit_sha256 } => {
                for (counter, piece) in (0u64..).zip(self.kit.chunks(20_000)) {
                    let header = FrameHeader::of_kit(&kit_sha256, counter).unwrap();
                    self.out.send(Message::Binary(frame::encode(header, piece).into())).unwrap();
                }
                return;
            }
            FromCoordinator::Credit { attempt, until_counter } => {
                self.credit.grant(attempt, until_counter);
                return;
            }
            FromCoordinator::Cancel { attempt } => Seen::Cancel(attempt),
            FromCoordinator::Standing { lines } => Seen::Standing(lines.join("; ")),
            FromCoordinator::Refused(refused) => Seen::Refused(refused),
            FromCoordinator::AssignGroup(assigned) => Seen::Rank(Box::new(assigned)),
            FromCoordinator::GroupRoster(_) => Seen::Roster,
            FromCoordinator::Goodbye { .. } => Seen::Goodbye,
            _ => return,
        };
        let _ = self.seen.send(seen);
    }

    fn attempt(&self, bytes: &[u8]) {
        let (header, payload) = frame::decode(bytes).unwrap();
        let id = header.attempt();
        let (encapsulated, ciphertext) = frame::split_sealed_attempt(payload).unwrap();
        let (plain, sealer) = trust::open_attempt(&self.keys, id, encapsulated, ciphertext).unwrap();
        let job = Job::decode(&plain).unwrap();
        let acts = self.script.lock().unwrap().pop_front().unwrap_or_else(|| answer(&["fine"]));
        let prompt = job.prompt.len() as u32;
        let _ = self.seen.send(Seen::Attempt(id, Box::new(job)));
        let credit = Arc::clone(&self.credit);
        tokio::spawn(perform(id, acts, sealer, self.out.clone(), (prompt, credit)));
    }
}

pub(crate) async fn connect(house: &House) -> Socket {
    let url = format!("ws://{}/api/uplink", house.address);
    tokio_tungstenite::connect_async(url).await.unwrap().0
}

pub(crate) async fn say(socket: &mut Socket, message: &FromProvider) {
    socket.send(Message::Text(message.encode().into())).await.unwrap();
}

/// The next control message; nothing at the end of the connection.
pub(crate) async fn hear(socket: &mut Socket) -> Option<FromCoordinator> {
    let next = async {
        loop {
            match socket.next().await {
                Some(Ok(Message::Text(text))) => return Some(FromCoordinator::decode(&text).unwrap()),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                Some(Ok(_)) => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, next).await.expect("the coordinator says nothing")
}

pub(crate) fn hello(offer: &Offer, token: &str) -> FromProvider {
    FromProvider::Hello(Hello {
        protocol: PROTOCOL,
        token: token.to_owned(),
        machine: offer.keys.machine(),
        incarnation: Incarnation(offer.incarnation),
        name: "box".to_owned(),
        agent: "test/1".to_owned(),
        signing_key: STANDARD.encode(offer.keys.signing_key()),
        sealing_key: STANDARD.encode(offer.keys.sealing_key()),
        capabilities: offer.capabilities.clone(),
    })
}

/// Answers the challenge.
pub(crate) async fn prove(socket: &mut Socket, offer: &Offer, token: &str) {
    let Some(FromCoordinator::Challenge { nonce }) = hear(socket).await else { panic!("no challenge") };
    answer_challenge(socket, offer, token, &nonce).await;
}

/// Signs a nonce.
pub(crate) async fn answer_challenge(socket: &mut Socket, offer: &Offer, token: &str, nonce: &str) {
    let proof = Registration {
        nonce: &STANDARD.decode(nonce).unwrap(),
        protocol: PROTOCOL,
        token,
        machine: offer.keys.machine(),
        incarnation: Incarnation(offer.incarnation),
        name: "box",
        agent: "test/1",
        signing_key: &offer.keys.signing_key(),
        sealing_key: &offer.keys.sealing_key(),
        capabilities: &offer.capabilities,
    }
    .prove(&offer.keys);
    say(socket, &FromProvider::Proof { signature: STANDARD.encode(proof) }).await;
}

/// One instance, of one machine or led by it.
fn register(model: &ModelDescriptor, report: &InstanceReport, (epoch, ranks): (Epoch, u32)) -> FromProvider {
    FromProvider::Register(Register {
        hardware: Hardware { cpu: "a test".to_owned(), ..Hardware::default() },
        instances: vec![InstanceOffer {
            instance: report.instance,
            epoch,
            rank: 0,
            ranks,
            model: model.clone(),
            report: report.clone(),
        }],
        managed: false,
        holds: Vec::new(),
    })
}

fn report(instance: InstanceId, offer: &Offer) -> InstanceReport {
    InstanceReport {
        instance,
        generation: 1,
        phase: InstancePhase::Ready,
        detail: String::new(),
        slots: offer.slots,
        running: 0,
        waiting: 0,
        kv_tokens: offer.kv_tokens,
        kv_tokens_free: offer.kv_tokens,
        prefill_tokens_waiting: 0,
        prefill_tokens_per_s: 5000.0,
        decode_tokens_per_s: 100.0,
    }
}

fn descriptor(offer: &Offer, kit: &[u8]) -> ModelDescriptor {
    ModelDescriptor {
        name: offer.model.as_str().into(),
        family: "llama".to_owned(),
        parameters: 1,
        weight_bytes: Bytes(1),
        context: Tokens(offer.context),
        vocabulary: 1024,
        weights_sha256: trust::hex(&trust::sha256(b"weights")),
        kit_sha256: trust::hex(&trust::sha256(kit)),
        kit_bytes: Bytes(kit.len() as u64),
    }
}

/// An identity that nothing else has.
pub(crate) fn nobody() -> AttemptId {
    AttemptId::random(&mut Rng::new(99))
}
