//! The coordinator's side of an uplink, played by a test; and a provider running beside it.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::path::Path;
use std::time::Duration;

use base::{AttemptId, Bytes, InstanceId, ModelName, RequestId, Rng};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::{SinkExt, StreamExt};
use provider::{Config, Event, Farewell, RunError};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use trust::ResponseOpener;
use wire::chunk::{Chunk, Finish};
use wire::control::{
    AttemptRefusal, FromCoordinator, FromProvider, Hello, InstancePhase, InstanceReport, RefusalCode,
    Refused, Register, Welcome,
};
use wire::frame::{FrameHeader, FrameKind};
use wire::job::{Ask, Job, Sampling};

pub(crate) const TOKEN: &str = "join-phx-test";

/// Nothing in these tests takes nearly so long: what does hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// `what` within the tests' patience.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not happen within {PATIENCE:?}"),
    }
}

/// A coordinator that listens.
pub(crate) struct Fake {
    listener: TcpListener,
    pub(crate) url: String,
}

impl Fake {
    pub(crate) async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        Self { listener, url }
    }

    /// With a receive window of a few kilobytes.
    pub(crate) async fn narrow() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(16).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        Self { listener, url }
    }

    /// The next provider to dial, before its first word.
    pub(crate) async fn accept(&self) -> Peer {
        let (stream, _) = soon("a connection", self.listener.accept()).await.unwrap();
        let socket = soon("a WebSocket", tokio_tungstenite::accept_async(stream)).await.unwrap();
        Peer::new(socket)
    }

    /// The next provider to dial, let in on `terms`.
    pub(crate) async fn join_on(&self, terms: Welcome) -> (Peer, Register) {
        let mut peer = self.accept().await;
        peer.greet().await;
        peer.send(&FromCoordinator::Welcome(terms)).await;
        let register = peer.register().await;
        (peer, register)
    }

    pub(crate) async fn join(&self) -> (Peer, Register) {
        self.join_on(terms()).await
    }
}

pub(crate) fn terms() -> Welcome {
    Welcome {
        capabilities: vec![],
        control_bytes_max: Bytes(1 << 20),
        data_bytes_max: Bytes(1 << 20),
        heartbeat_us: 100_000,
        silence_us_max: 20_000_000,
        credit_chunks: 0,
    }
}

pub(crate) fn refused(code: RefusalCode) -> FromCoordinator {
    FromCoordinator::Refused(Refused {
        code,
        reason: format!("a reason for {code:?}"),
        remedy: "a remedy".into(),
    })
}

/// How an attempt ended, as the coordinator sees it.
pub(crate) enum Outcome {
    Finished(Answer),
    Refused(AttemptRefusal, String),
    Failed(String),
}

pub(crate) struct Answer {
    pub(crate) tokens: Vec<u32>,
    pub(crate) text: String,
    pub(crate) logprobs: usize,
    /// In how many pieces it came.
    pub(crate) chunks: usize,
    pub(crate) finish: Finish,
}

/// One provider's connection.
pub(crate) struct Peer {
    pub(crate) socket: WebSocketStream<TcpStream>,
    pub(crate) hello: Option<Hello>,
    /// Control messages that came while something else was awaited.
    early: VecDeque<FromProvider>,
    frames: VecDeque<(FrameHeader, Vec<u8>)>,
    open: HashMap<AttemptId, (ResponseOpener, Partial)>,
    rng: Rng,
    /// Everything that came, as it came: to look for plaintext in.
    pub(crate) wiretap: Vec<u8>,
}

#[derive(Default)]
struct Partial {
    tokens: Vec<u32>,
    text: String,
    logprobs: usize,
    chunks: usize,
}

impl Peer {
    fn new(socket: WebSocketStream<TcpStream>) -> Self {
        Self {
            socket,
            hello: None,
            early: VecDeque::new(),
            frames: VecDeque::new(),
            open: HashMap::new(),
            rng: Rng::new(u64::from_le_bytes(trust::random_bytes())),
            wiretap: Vec::new(),
        }
    }

    pub(crate) async fn send(&mut self, message: &FromCoordinator) {
        self.raw(Message::Text(message.encode().into())).await;
    }

    pub(crate) async fn raw(&mut self, message: Message) {
        soon("sending", self.socket.send(message)).await.unwrap();
    }

    /// Reads one message into `early` or `frames`; false at the connection's end.
    async fn read(&mut self) -> bool {
        match soon("a message", self.socket.next()).await {
            Some(Ok(Message::Text(text))) => {
                self.wiretap.extend_from_slice(text.as_bytes());
                self.early.push_back(FromProvider::decode(&text).unwrap());
            }
            Some(Ok(Message::Binary(bytes))) => {
                self.wiretap.extend_from_slice(&bytes);
                let (header, payload) = wire::frame::decode(&bytes).unwrap();
                self.frames.push_back((header, payload.to_vec()));
            }
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return false,
        }
        true
    }

    /// The first control message that `pick` wants; others stay.
    pub(crate) async fn find<T>(&mut self, what: &str, pick: impl Fn(&FromProvider) -> Option<T>) -> T {
        let search = async {
            let mut looked_at = 0;
            loop {
                if let Some(at) = self.early.iter().skip(looked_at).position(|m| pick(m).is_some()) {
                    let message = self.early.remove(looked_at + at).unwrap();
                    return pick(&message).unwrap();
                }
                looked_at = self.early.len();
                assert!(self.read().await, "the connection ended before {what}");
            }
        };
        soon(what, search).await
    }

    pub(crate) async fn register(&mut self) -> Register {
        let pick = |message: &FromProvider| match message {
            FromProvider::Register(register) => Some(register.clone()),
            _ => None,
        };
        self.find("a registration", pick).await
    }

    /// The handshake up to a proof that holds.
    pub(crate) async fn greet(&mut self) {
        let hello = self
            .find("a hello", |m| match m {
                FromProvider::Hello(hello) => Some(hello.clone()),
                _ => None,
            })
            .await;
        let nonce: [u8; 32] = trust::random_bytes();
        self.send(&FromCoordinator::Challenge { nonce: BASE64.encode(nonce) }).await;
        let signature = self
            .find("a proof", |m| match m {
                FromProvider::Proof { signature } => Some(signature.clone()),
                _ => None,
            })
            .await;
        let registration = trust::Registration {
            nonce: &nonce,
            protocol: hello.protocol,
            token: TOKEN,
            machine: hello.machine,
            incarnation: hello.incarnation,
            name: &hello.name,
            agent: &hello.agent,
            signing_key: &BASE64.decode(&hello.signing_key).unwrap(),
            sealing_key: &BASE64.decode(&hello.sealing_key).unwrap(),
            capabilities: &hello.capabilities,
        };
        registration.check(&BASE64.decode(signature).unwrap()).unwrap();
        self.hello = Some(hello);
    }

    /// The first report of an instance in `phase`, in whatever message it comes.
    pub(crate) async fn instance_in(&mut self, phase: InstancePhase) -> InstanceReport {
        let pick = |message: &FromProvider| {
            let reports: Vec<InstanceReport> = match message {
                FromProvider::Register(register) => {
                    register.instances.iter().map(|offer| offer.report.clone()).collect()
                }
                FromProvider::InstanceChanged(report) => vec![report.clone()],
                FromProvider::Heartbeat(heartbeat) => heartbeat.instances.clone(),
                _ => vec![],
            };
            reports.into_iter().find(|report| report.phase == phase)
        };
        self.find(&format!("an instance in {phase:?}"), pick).await
    }

    /// Seals `job` to this provider and sends it.
    pub(crate) async fn attempt(&mut self, job: &Job) -> AttemptId {
        let attempt = AttemptId::random(&mut self.rng);
        let frame = self.sealed(attempt, &job.encode());
        self.raw(Message::Binary(frame.into())).await;
        attempt
    }

    /// The frame of an attempt; its answer can be opened afterwards.
    pub(crate) fn sealed(&mut self, attempt: AttemptId, plain: &[u8]) -> Vec<u8> {
        let key = BASE64.decode(&self.hello.as_ref().unwrap().sealing_key).unwrap();
        let (sealed, opener) = trust::seal_attempt(&key, attempt, plain).unwrap();
        self.open.insert(attempt, (opener, Partial::default()));
        let payload = wire::frame::sealed_attempt(&sealed.encapsulated, &sealed.ciphertext);
        wire::frame::encode(FrameHeader::of_attempt(FrameKind::Attempt, attempt, 0), &payload)
    }

    /// Reads on until `attempt` ends.
    pub(crate) async fn outcome(&mut self, attempt: AttemptId) -> Outcome {
        loop {
            if let Some(chunk) = self.chunk(attempt)
                && let Some(finish) = chunk.finish
            {
                let (_, Partial { tokens, text, logprobs, chunks }) = self.open.remove(&attempt).unwrap();
                return Outcome::Finished(Answer { tokens, text, logprobs, chunks, finish });
            }
            let ended = self.early.iter().position(|message| match message {
                FromProvider::AttemptRefused { attempt: which, .. }
                | FromProvider::AttemptFailed { attempt: which, .. } => *which == attempt,
                _ => false,
            });
            match ended.and_then(|at| self.early.remove(at)) {
                Some(FromProvider::AttemptRefused { reason, message, .. }) => {
                    return Outcome::Refused(reason, message);
                }
                Some(FromProvider::AttemptFailed { message, .. }) => return Outcome::Failed(message),
                _ => {}
            }
            if self.frames.iter().any(|(header, _)| header.attempt() == attempt) {
                continue;
            }
            assert!(self.read().await, "the connection ended before {attempt} did");
        }
    }

    pub(crate) async fn answer(&mut self, attempt: AttemptId) -> Answer {
        match self.outcome(attempt).await {
            Outcome::Finished(answer) => answer,
            Outcome::Refused(reason, message) => panic!("refused: {reason:?}: {message}"),
            Outcome::Failed(message) => panic!("failed: {message}"),
        }
    }

    /// The next chunk of `attempt` among the frames that came, opened and added to what came before.
    fn chunk(&mut self, attempt: AttemptId) -> Option<Chunk> {
        let at = self.frames.iter().position(|(header, _)| header.attempt() == attempt)?;
        let (header, payload) = self.frames.remove(at)?;
        assert_eq!(header.kind, FrameKind::Chunk);
        let (opener, partial) = self.open.get_mut(&attempt).expect("a chunk after the end");
        let plain = opener.open(header.counter, &payload).unwrap();
        let chunk = Chunk::decode(&plain).unwrap();
        partial.tokens.extend_from_slice(&chunk.tokens);
        partial.text.push_str(&chunk.text);
        partial.chunks += 1;
        partial.logprobs += chunk.logprobs.as_ref().map_or(0, Vec::len);
        Some(chunk)
    }

    /// Reads until at least one token of `attempt` is here.
    pub(crate) async fn first_token(&mut self, attempt: AttemptId) {
        loop {
            while self.chunk(attempt).is_some() {}
            if !self.open[&attempt].1.tokens.is_empty() {
                return;
            }
            assert!(self.read().await, "the connection ended before a token");
        }
    }

    /// Pieces of a kit, in order, until they are `length` bytes.
    pub(crate) async fn kit(&mut self, sha256: &str, length: usize) -> Vec<u8> {
        let mut whole = Vec::new();
        let mut counter = 0;
        while whole.len() < length {
            let expected = FrameHeader::of_kit(sha256, counter).unwrap();
            match self.frames.iter().position(|(header, _)| header.kind == FrameKind::Kit) {
                Some(at) => {
                    let (header, payload) = self.frames.remove(at).unwrap();
                    assert_eq!(header, expected);
                    whole.extend_from_slice(&payload);
                    counter += 1;
                }
                None => assert!(self.read().await, "the connection ended within a kit"),
            }
        }
        whole
    }

    /// Reads on until the provider closes; everything that it still said.
    pub(crate) async fn until_closed(mut self) -> Vec<FromProvider> {
        while self.read().await {}
        self.early.into()
    }
}

/// What `job` asks for, deterministic and without an early end.
pub(crate) fn job(model: &str, prompt: &[u32], max_tokens: u32) -> Job {
    Job {
        ask: Ask {
            request: RequestId::random(&mut Rng::new(7)),
            model: ModelName::from(model),
            max_tokens,
            sampling: Sampling::default(),
            stop: vec![],
            ignore_stop_tokens: true,
            logprobs: None,
            deadline_us: 0,
            constraint: None,
            special_tokens: false,
            embed: false,
            trace: None,
            hold_ms: 0,
        },
        prompt: prompt.to_vec(),
        generated: vec![],
    }
}

/// A provider that runs in this process.
pub(crate) struct Running {
    task: JoinHandle<Result<Farewell, RunError>>,
    stop: Option<oneshot::Sender<()>>,
    events: mpsc::UnboundedReceiver<Event>,
}

impl Running {
    pub(crate) fn start(config: Config) -> Self {
        let (stop, stopped) = oneshot::channel();
        let (sender, events) = mpsc::unbounded_channel();
        let on_event = move |event: Event| {
            let _ = sender.send(event);
        };
        let task = tokio::spawn(async move {
            let shutdown = async {
                let _ = stopped.await;
            };
            provider::run(config, shutdown, on_event).await
        });
        Self { task, stop: Some(stop), events }
    }

    /// The next event that `pick` wants; others are passed over.
    pub(crate) async fn event<T>(&mut self, what: &str, pick: impl Fn(Event) -> Option<T>) -> T {
        let search = async {
            loop {
                let event =
                    self.events.recv().await.unwrap_or_else(|| panic!("no more events before {what}"));
                if let Some(found) = pick(event) {
                    return found;
                }
            }
        };
        soon(what, search).await
    }

    pub(crate) fn ask_to_leave(&mut self) {
        let _ = self.stop.take().map(|stop| stop.send(()));
    }

    pub(crate) async fn ended(self) -> Result<Farewell, RunError> {
        soon("the provider's end", self.task).await.unwrap()
    }

    /// Leaves while the coordinator reads on, as a real one does.
    pub(crate) async fn leave_from(mut self, peer: Peer) -> Farewell {
        self.ask_to_leave();
        let (farewell, _) = tokio::join!(self.ended(), peer.until_closed());
        farewell.unwrap()
    }

    pub(crate) async fn leave(mut self) -> Farewell {
        self.ask_to_leave();
        self.ended().await.unwrap()
    }
}

/// Settings of a provider that keeps its identity in `home` and serves the tiny model.
pub(crate) fn config(fake: &Fake, home: &Path) -> Config {
    let mut config = Config::new(fake.url.clone(), TOKEN, home.join("provider"));
    config.name = Some("testing".into());
    config.models = vec![crate::models::tiny("tiny", home)];
    config
}

/// The instance that a registration offers; there is one.
pub(crate) fn only_instance(register: &Register) -> InstanceId {
    assert_eq!(register.instances.len(), 1);
    register.instances[0].instance
}
