//! What the uplink's state machine is told, what it says is to be done, and the terms and times that it goes by.

use base::{Bytes, Micros};
use wire::control::{FromCoordinator, FromProvider, Refused, Welcome};

use crate::event::Event;

/// The spans that the uplink goes by.
#[derive(Debug, Clone)]
pub(crate) struct Timing {
    /// Name resolution, TCP, TLS and the WebSocket's own handshake, together.
    pub(crate) connect_max: Micros,
    /// From `hello` to `welcome`.
    pub(crate) handshake_max: Micros,
    /// The pause after the first failure is drawn from zero up to this; it doubles with each further one.
    pub(crate) pause_first: Micros,
    /// Up to here.
    pub(crate) pause_max: Micros,
    /// A session of this length proves that all is well: the next pause is short again.
    pub(crate) healthy_after: Micros,
    /// How long attempts may take to finish once the provider is to leave.
    pub(crate) drain_max: Micros,
    /// How long the goodbye may take to leave this machine.
    pub(crate) goodbye_max: Micros,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect_max: Micros::from_secs(10),
            handshake_max: Micros::from_secs(10),
            pause_first: Micros::from_millis(200),
            pause_max: Micros::from_secs(15),
            healthy_after: Micros::from_secs(60),
            drain_max: Micros::from_secs(30),
            goodbye_max: Micros::from_secs(2),
        }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Input {
    /// The provider began.
    Start,
    /// The socket that was asked for is open.
    Opened,
    /// It could not be opened.
    OpenFailed { detail: String },
    /// Something came in that is no text message: the coordinator is alive.
    Heard,
    /// A text message came in.
    Message(FromCoordinator),
    /// Something came in that cannot be read, or should not have been sent.
    Misread { detail: String },
    /// The socket is gone.
    Closed { detail: String },
    /// The provider is to leave; the coordinator is told why.
    Leave { why: String },
    /// Nothing is in flight, and the last of it has left this machine.
    Idle,
    /// Time passed.
    Tick,
}

/// What to do about it, in order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Effect {
    /// Open a socket; answer with `Opened` or `OpenFailed`.
    Connect,
    /// Say who we are.
    Hello,
    /// Sign the transcript with this nonce.
    Prove { nonce: String },
    /// The session stands: go by these terms, and register.
    Adopt(Terms),
    /// Say how it goes.
    Heartbeat { sequence: u64 },
    /// Make the coordinator's WebSocket answer.
    Ping,
    /// Say this.
    Say(FromProvider),
    /// Do what the coordinator asks: a kit, a cancellation, its opinion of us.
    Carry(FromCoordinator),
    /// Let go of all attempts: none is sent any more of, and none computed on.
    Abandon,
    /// Close the socket now, unsent messages included. Attempts are kept where the session's terms say so.
    Drop,
    /// Close the socket once everything said is sent; answer with `Closed`.
    Finish,
    /// Tell whoever started us.
    Tell(Event),
    /// It is over.
    End(Ending),
}

/// How a provider's life ends.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Ending {
    /// It was asked to leave.
    Left,
    /// The coordinator does not want it, and trying again would not help.
    Refused(Refused),
}

/// The terms of a session, after clamping what the coordinator asked for to what is sane.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Terms {
    /// The largest text message.
    pub(crate) control_bytes_max: usize,
    /// The largest binary message.
    pub(crate) data_bytes_max: usize,
    /// Between heartbeats.
    pub(crate) heartbeat: Micros,
    /// After so long without a message the other side is gone.
    pub(crate) silence_max: Micros,
    /// What both sides can do beyond the protocol.
    pub(crate) capabilities: Vec<String>,
    /// Chunks of an attempt that may be sent before there is credit; 0 is without bound.
    pub(crate) credit_chunks: u64,
}

impl Terms {
    pub(super) fn of(welcome: Welcome) -> Self {
        let within = |bytes: Bytes, low: usize, high: usize| {
            usize::try_from(bytes.0).unwrap_or(usize::MAX).clamp(low, high)
        };
        let silence = welcome.silence_us_max.clamp(100_000, 600_000_000);
        Self {
            control_bytes_max: within(welcome.control_bytes_max, 16 << 10, 16 << 20),
            data_bytes_max: within(welcome.data_bytes_max, 16 << 10, 64 << 20),
            // Slower than a third of the silence allowed, one lost heartbeat would end the session.
            heartbeat: Micros(welcome.heartbeat_us.clamp(20_000, silence / 3)),
            silence_max: Micros(silence),
            capabilities: welcome.capabilities,
            credit_chunks: welcome.credit_chunks,
        }
    }
}
