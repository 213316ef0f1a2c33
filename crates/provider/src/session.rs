//! One connection to a coordinator: the socket's two halves, the two lanes of its writer, and the terms it goes by.

use std::future::pending;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::StreamExt;
use futures_util::stream::SplitStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::{self, Message};
use trust::Registration;
use wire::control::{ASSIGNMENTS, CREDIT, FromProvider, GROUPS, Hello, PROTOCOL, REOFFER};

use crate::attempt::lane::Lane;
use crate::attempt::table::Table;
use crate::config::JoinToken;
use crate::identity::Identity;
use crate::uplink::machine::{Input, Terms};
use crate::uplink::socket::Socket;
use crate::uplink::writer::{self, CONTROL_MAX, Control};

/// Until the coordinator names a limit.
const CONTROL_BYTES_FIRST: usize = 64 << 10;

/// What this provider can do beyond protocol 1: go on after tokens that an earlier attempt delivered, report
/// log-probabilities, keep attempts beyond their connection, and send no more of an answer than it has credit for.
const CAPABILITIES: [&str; 5] = ["resume", "logprobs", REOFFER, CREDIT, GROUPS];

/// A connection.
pub(crate) struct Session {
    reader: SplitStream<Socket>,
    control: Option<mpsc::Sender<Control>>,
    lane: Arc<Lane>,
    writer: Option<JoinHandle<Result<(), tungstenite::Error>>>,
    control_bytes_max: usize,
    data_bytes_max: usize,
    adopted: bool,
    reoffer: bool,
    credit: Option<u64>,
}

/// What a session was heard to do.
pub(crate) enum Ear {
    Heard(Option<Result<Message, tungstenite::Error>>),
    Written(Result<(), tungstenite::Error>),
}

impl Session {
    pub(crate) fn start(socket: Socket, table: Arc<Table>) -> Self {
        let (sink, reader) = socket.split();
        let (control, queue) = mpsc::channel(CONTROL_MAX);
        let lane = Lane::new();
        let writer = tokio::spawn(writer::write(sink, queue, Arc::clone(&lane), table));
        Self {
            reader,
            control: Some(control),
            lane,
            writer: Some(writer),
            control_bytes_max: CONTROL_BYTES_FIRST,
            data_bytes_max: 0,
            adopted: false,
            reoffer: false,
            credit: None,
        }
    }

    /// Goes by these terms from now on.
    pub(crate) fn adopt(&mut self, terms: &Terms) {
        self.control_bytes_max = terms.control_bytes_max;
        self.data_bytes_max = terms.data_bytes_max;
        self.lane.limit(terms.data_bytes_max);
        let has = |capability: &str| terms.capabilities.iter().any(|c| c == capability);
        self.adopted = true;
        self.reoffer = has(REOFFER);
        self.credit = has(CREDIT).then_some(terms.credit_chunks).filter(|chunks| *chunks > 0);
    }

    /// Whether terms were agreed on.
    pub(crate) fn is_adopted(&self) -> bool {
        self.adopted
    }

    /// Whether attempts outlive this session.
    pub(crate) fn reoffers(&self) -> bool {
        self.reoffer
    }

    /// Chunks of an attempt that may be sent before there is credit.
    pub(crate) fn credit(&self) -> Option<u64> {
        self.credit
    }

    pub(crate) fn lane(&self) -> &Arc<Lane> {
        &self.lane
    }

    pub(crate) fn control_bytes_max(&self) -> usize {
        self.control_bytes_max
    }

    pub(crate) fn data_bytes_max(&self) -> usize {
        self.data_bytes_max
    }

    /// The next thing that `session` does; never where there is none.
    pub(crate) async fn listen(session: &mut Option<Self>) -> Ear {
        let Some(session) = session else { return pending().await };
        let Some(writer) = &mut session.writer else { return Ear::Heard(session.reader.next().await) };
        tokio::select! {
            message = session.reader.next() => Ear::Heard(message),
            written = writer => {
                session.writer = None;
                // A writer that panicked has said so; to the session it is gone like its socket.
                Ear::Written(written.unwrap_or(Err(tungstenite::Error::AlreadyClosed)))
            }
        }
    }

    /// Puts a message into the control lane; an input where the session cannot go on for it.
    pub(crate) fn say(&self, message: &FromProvider) -> Option<Input> {
        let text = message.encode();
        if text.len() > self.control_bytes_max {
            let detail = format!(
                "a message of {} bytes is over the coordinator's limit of {}",
                text.len(),
                self.control_bytes_max
            );
            return Some(Input::Closed { detail });
        }
        self.queue(Control::Text(text))
    }

    pub(crate) fn ping(&self) -> Option<Input> {
        self.queue(Control::Ping)
    }

    fn queue(&self, control: Control) -> Option<Input> {
        match self.control.as_ref()?.try_send(control) {
            // A writer that ended is heard of by itself.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => None,
            Err(mpsc::error::TrySendError::Full(_)) => {
                let detail = format!("the coordinator took none of the last {CONTROL_MAX} messages");
                Some(Input::Closed { detail })
            }
        }
    }

    /// Nothing more is said: what was is sent, and the WebSocket closed.
    pub(crate) fn finish(&mut self) {
        self.control = None;
    }

    /// Ends the writer, and waits until it has.
    pub(crate) async fn end(mut self) {
        self.lane.close();
        if let Some(writer) = self.writer.take() {
            writer.abort();
            // Cancelled or done: both are an end.
            let _ = writer.await;
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.lane.close();
        if let Some(writer) = &self.writer {
            writer.abort();
        }
    }
}

/// The first message of a connection.
pub(crate) fn hello(identity: &Identity, token: &JoinToken, name: &str, managed: bool) -> Hello {
    let assignments = managed.then_some(ASSIGNMENTS);
    Hello {
        protocol: PROTOCOL,
        token: token.0.to_string(),
        machine: identity.keys.machine(),
        incarnation: identity.incarnation,
        name: name.to_owned(),
        agent: format!("phalanx/{}", env!("CARGO_PKG_VERSION")),
        signing_key: BASE64.encode(identity.keys.signing_key()),
        sealing_key: BASE64.encode(identity.keys.sealing_key()),
        capabilities: CAPABILITIES.into_iter().chain(assignments).map(str::to_owned).collect(),
    }
}

/// The answer to a challenge.
pub(crate) fn proof(
    identity: &Identity,
    token: &JoinToken,
    (name, managed): (&str, bool),
    nonce: &str,
) -> Result<FromProvider, String> {
    let nonce = BASE64.decode(nonce).map_err(|_| "a challenge that is not base64".to_owned())?;
    if nonce.len() != trust::NONCE_BYTES {
        return Err(format!("a challenge of {} bytes, not {}", nonce.len(), trust::NONCE_BYTES));
    }
    let hello = hello(identity, token, name, managed);
    let registration = Registration {
        nonce: &nonce,
        protocol: hello.protocol,
        token: &hello.token,
        machine: hello.machine,
        incarnation: hello.incarnation,
        name: &hello.name,
        agent: &hello.agent,
        signing_key: &identity.keys.signing_key(),
        sealing_key: &identity.keys.sealing_key(),
        capabilities: &hello.capabilities,
    };
    Ok(FromProvider::Proof { signature: BASE64.encode(registration.prove(&identity.keys)) })
}
