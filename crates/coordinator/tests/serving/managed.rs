//! A managed machine: the real handshake and seals; it does what it is told, as the test says.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use base::{Bytes, Epoch, Incarnation, InstanceId, ModelName, Tokens};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{SinkExt, StreamExt};
use model::synth::{Synth, SynthRequest};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;
use trust::{MachineKeys, Registration};
use wire::control::*;
use wire::frame::{self, FrameHeader};
use wire::job::Job;

use super::house::House;
use super::provider::{Act, Socket, answer, connect, hear, perform, say};

/// What a machine makes of an assignment.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Way {
    /// It loads, and is ready.
    Ready,
    /// It loads, and fails.
    Fails(&'static str),
    /// It does not take it.
    Refuses(&'static str),
    /// It loads for ever.
    Stuck,
}

pub(crate) struct State {
    pub(crate) way: Way,
    /// What it holds: assignment, model, whether it is ready.
    pub(crate) holds: BTreeMap<InstanceId, (Epoch, ModelName, bool)>,
    pub(crate) assigned: Vec<Assignment>,
    pub(crate) unassigned: Vec<Unassignment>,
    /// What it does with the next requests; then it answers.
    scripts: VecDeque<Vec<Act>>,
}

pub(crate) struct Managed {
    pub(crate) keys: Arc<MachineKeys>,
    pub(crate) name: String,
    pub(crate) memory: u64,
    models: Vec<String>,
    incarnation: u64,
    pub(crate) state: Arc<Mutex<State>>,
    out: mpsc::UnboundedSender<FromProvider>,
    task: JoinHandle<()>,
}

fn kit() -> Vec<u8> {
    Synth::new(&request()).unwrap().kit().to_bytes()
}

fn request() -> SynthRequest {
    SynthRequest { context: 512, ..SynthRequest::default() }
}

impl Managed {
    /// Joins with 1 GiB for models, and these on its disk.
    pub(crate) async fn join(house: &House, name: &str, models: &[&str]) -> Self {
        Self::with(house, name, models, 1 << 30).await
    }

    pub(crate) async fn with(house: &House, name: &str, models: &[&str], memory: u64) -> Self {
        let state = State {
            way: Way::Ready,
            holds: BTreeMap::new(),
            assigned: Vec::new(),
            unassigned: Vec::new(),
            scripts: VecDeque::new(),
        };
        let mut managed = Self {
            keys: Arc::new(MachineKeys::generate()),
            name: name.to_owned(),
            memory,
            models: models.iter().map(|model| (*model).to_owned()).collect(),
            incarnation: 1,
            state: Arc::new(Mutex::new(state)),
            out: mpsc::unbounded_channel().0,
            task: tokio::spawn(async {}),
        };
        managed.back(house).await;
        managed
    }

    /// What it makes of assignments from now on.
    pub(crate) fn goes(&self, way: Way) {
        self.state.lock().unwrap().way = way;
    }

    /// What it does with the next request that has no script yet.
    pub(crate) fn next(&self, script: Vec<Act>) {
        self.state.lock().unwrap().scripts.push_back(script);
    }

    /// How many assignments and ends it was told.
    pub(crate) fn told(&self) -> (usize, usize) {
        let state = self.state.lock().unwrap();
        (state.assigned.len(), state.unassigned.len())
    }

    /// Says something of its own.
    pub(crate) fn send(&self, message: FromProvider) {
        self.out.send(message).unwrap();
    }

    /// Offers for requests what it holds, as if all of it were ready.
    pub(crate) fn offers_all(&self) {
        self.state.lock().unwrap().holds.values_mut().for_each(|held| held.2 = true);
        let (keys, state) = (Arc::clone(&self.keys), Arc::clone(&self.state));
        Work { keys, state, out: self.out.clone(), raw: mpsc::unbounded_channel().0 }.register();
    }

    /// Its connection breaks without a word.
    pub(crate) async fn cut(&mut self) {
        let task = std::mem::replace(&mut self.task, tokio::spawn(async {}));
        task.abort();
        let _ = task.await;
    }

    /// Its provider dies and starts again.
    pub(crate) async fn restart(&mut self, house: &House) {
        self.cut().await;
        self.incarnation += 1;
        self.state.lock().unwrap().holds.clear();
        self.back(house).await;
    }

    /// Connects, with what it holds.
    pub(crate) async fn back(&mut self, house: &House) {
        let mut socket = connect(house).await;
        self.greet(&mut socket, &house.token).await;
        let (out, mut from) = mpsc::unbounded_channel();
        self.out = out.clone();
        let work = Work {
            keys: Arc::clone(&self.keys),
            state: Arc::clone(&self.state),
            out,
            raw: mpsc::unbounded_channel().0,
        };
        let inventory = self.inventory();
        self.task = tokio::spawn(async move {
            let (raw, mut raw_from) = mpsc::unbounded_channel();
            let work = Work { raw, ..work };
            let (mut sink, mut stream) = socket.split();
            work.register();
            let _ = work.out.send(FromProvider::Inventory(inventory));
            loop {
                tokio::select! {
                    biased;
                    Some(message) = from.recv() => {
                        if sink.send(Message::Text(message.encode().into())).await.is_err() {
                            return;
                        }
                    }
                    Some(message) = raw_from.recv() => {
                        if sink.send(message).await.is_err() {
                            return;
                        }
                    }
                    message = stream.next() => match message {
                        Some(Ok(Message::Text(text))) => work.hears(&text),
                        Some(Ok(Message::Binary(bytes))) => work.attempt(&bytes),
                        Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                        Some(Ok(_)) => {}
                    },
                }
            }
        });
    }

    async fn greet(&self, socket: &mut Socket, token: &str) {
        let capabilities = vec![ASSIGNMENTS.to_owned()];
        let hello = Hello {
            protocol: PROTOCOL,
            token: token.to_owned(),
            machine: self.keys.machine(),
            incarnation: Incarnation(self.incarnation),
            name: self.name.clone(),
            agent: "test/1".to_owned(),
            signing_key: STANDARD.encode(self.keys.signing_key()),
            sealing_key: STANDARD.encode(self.keys.sealing_key()),
            capabilities: capabilities.clone(),
        };
        say(socket, &FromProvider::Hello(hello)).await;
        let Some(FromCoordinator::Challenge { nonce }) = hear(socket).await else { panic!("no challenge") };
        let proof = Registration {
            nonce: &STANDARD.decode(nonce).unwrap(),
            protocol: PROTOCOL,
            token,
            machine: self.keys.machine(),
            incarnation: Incarnation(self.incarnation),
            name: &self.name,
            agent: "test/1",
            signing_key: &self.keys.signing_key(),
            sealing_key: &self.keys.sealing_key(),
            capabilities: &capabilities,
        }
        .prove(&self.keys);
        say(socket, &FromProvider::Proof { signature: STANDARD.encode(proof) }).await;
        let Some(FromCoordinator::Welcome(_)) = hear(socket).await else { panic!("not welcome") };
    }

    fn inventory(&self) -> Inventory {
        let config = String::from_utf8(Synth::new(&request()).unwrap().kit().config).unwrap();
        let on_disk = |name: &String| ModelOnDisk {
            name: name.as_str().into(),
            memory_bytes: Bytes(4 << 20),
            disk_bytes: Bytes(4 << 20),
            parameters: 1 << 20,
            grain: 1,
            config: config.clone(),
            decode_tokens_per_ks: 0,
            prefill_tokens_per_ks: 0,
            lent: false,
        };
        Inventory {
            labels: vec![Label { key: "name".to_owned(), value: self.name.clone() }],
            devices: vec![DeviceFacts {
                host_read_bytes_per_s: 0,
                name: "cpu0".to_owned(),
                memory: Bytes(self.memory),
                read_bytes_per_s: 10_000_000_000,
                flops: 0,
            }],
            disk_bytes_per_s: 0,
            download_bytes_per_s: 0,
            models: self.models.iter().map(on_disk).collect(),
            models_left_out: 0,
            probe_addresses: Vec::new(),
            fetch_room: base::Bytes(0),
        }
    }
}

impl Drop for Managed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Work {
    keys: Arc<MachineKeys>,
    state: Arc<Mutex<State>>,
    out: mpsc::UnboundedSender<FromProvider>,
    raw: mpsc::UnboundedSender<Message>,
}

impl Work {
    /// What it is, serves and holds.
    fn register(&self) {
        let state = self.state.lock().unwrap();
        let held = state.holds.iter().map(|(instance, (epoch, model, ready))| Held {
            instance: *instance,
            epoch: *epoch,
            rank: 0,
            ranks: 1,
            model: model.clone(),
            ready: *ready,
        });
        let ready = state.holds.iter().filter(|(_, (.., ready))| *ready);
        let offers = ready.map(|(instance, (epoch, model, _))| offer(*instance, *epoch, model));
        let register = Register {
            hardware: Hardware::default(),
            instances: offers.collect(),
            managed: true,
            holds: held.collect(),
        };
        let _ = self.out.send(FromProvider::Register(register));
    }

    fn report(&self, instance: InstanceId, epoch: Epoch, phase: AssignmentPhase, percent: u8, detail: &str) {
        let detail = detail.to_owned();
        let report = AssignmentReport { instance, epoch, rank: 0, phase, percent, detail };
        let _ = self.out.send(FromProvider::AssignmentReport(report));
    }

    fn hears(&self, text: &str) {
        match FromCoordinator::decode(text).unwrap() {
            FromCoordinator::Assign(assignment) => {
                let Assignment { instance, epoch, ref model, .. } = assignment;
                let mut state = self.state.lock().unwrap();
                state.assigned.push(assignment.clone());
                match state.way.clone() {
                    Way::Refuses(why) => self.report(instance, epoch, AssignmentPhase::Refused, 0, why),
                    way => {
                        state.holds.insert(instance, (epoch, model.clone(), way == Way::Ready));
                        drop(state);
                        self.report(instance, epoch, AssignmentPhase::Loading, 40, "");
                        match way {
                            Way::Fails(why) => {
                                self.state.lock().unwrap().holds.remove(&instance);
                                self.report(instance, epoch, AssignmentPhase::Failed, 0, why);
                            }
                            Way::Ready => {
                                self.report(instance, epoch, AssignmentPhase::Ready, 0, "");
                                self.register();
                            }
                            Way::Stuck | Way::Refuses(_) => {}
                        }
                    }
                }
            }
            FromCoordinator::Unassign(unassignment) => {
                let (instance, epoch) = (unassignment.instance, unassignment.epoch);
                let mut state = self.state.lock().unwrap();
                state.unassigned.push(unassignment);
                if state.holds.get(&instance).is_some_and(|held| held.0 <= epoch) {
                    state.holds.remove(&instance);
                }
                drop(state);
                self.report(instance, epoch, AssignmentPhase::Gone, 0, "");
                self.register();
            }
            FromCoordinator::WantKit { kit_sha256 } => {
                for (counter, piece) in (0u64..).zip(kit().chunks(20_000)) {
                    let header = FrameHeader::of_kit(&kit_sha256, counter).unwrap();
                    self.raw.send(Message::Binary(frame::encode(header, piece).into())).unwrap();
                }
            }
            _ => {}
        }
    }

    fn attempt(&self, bytes: &[u8]) {
        let (header, payload) = frame::decode(bytes).unwrap();
        let id = header.attempt();
        let (encapsulated, ciphertext) = frame::split_sealed_attempt(payload).unwrap();
        let (plain, sealer) = trust::open_attempt(&self.keys, id, encapsulated, ciphertext).unwrap();
        let prompt = Job::decode(&plain).unwrap().prompt.len() as u32;
        let script = self.state.lock().unwrap().scripts.pop_front().unwrap_or_else(|| answer(&["fine"]));
        tokio::spawn(perform(id, script, sealer, self.raw.clone(), (prompt, Arc::default())));
    }
}

fn offer(instance: InstanceId, epoch: Epoch, model: &ModelName) -> InstanceOffer {
    let kit = kit();
    InstanceOffer {
        instance,
        epoch,
        rank: 0,
        ranks: 1,
        model: ModelDescriptor {
            name: model.clone(),
            family: "llama".to_owned(),
            parameters: 1,
            weight_bytes: Bytes(1),
            context: Tokens(512),
            vocabulary: 1024,
            weights_sha256: trust::hex(&trust::sha256(b"weights")),
            kit_sha256: trust::hex(&trust::sha256(&kit)),
            kit_bytes: Bytes(kit.len() as u64),
        },
        report: InstanceReport {
            instance,
            generation: epoch.0,
            phase: InstancePhase::Ready,
            detail: String::new(),
            slots: 4,
            running: 0,
            waiting: 0,
            kv_tokens: 4096,
            kv_tokens_free: 4096,
            prefill_tokens_waiting: 0,
            prefill_tokens_per_s: 5000.0,
            decode_tokens_per_s: 100.0,
        },
    }
}
