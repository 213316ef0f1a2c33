//! The way to a provider: two lanes into one socket, control before data, each bounded.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::ws::{CloseFrame, Message};
use bytes::Bytes;
use futures_util::{Sink, SinkExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use wire::control::FromCoordinator;

use super::attempts::Shared;

/// Control messages that may wait. They are small and rare (a cancel for each attempt at most): a peer that leaves
/// so many unread is not reading.
const CONTROL_WAITING_MAX: usize = 1024;

/// Attempts that may wait for the socket. Each holds a prompt; whoever comes when it is full waits, which is what
/// back-pressure means.
const DATA_WAITING_MAX: usize = 32;

/// A frame for the data lane.
pub(crate) struct DataFrame {
    /// Header and payload.
    pub(crate) bytes: Bytes,
    /// Learns when it was written.
    pub(crate) about: Arc<Shared>,
}

/// A channel has room for dozens of its messages from its first moment on, and these are large: apart, they take room
/// while they wait, and not for as long as a machine is connected.
type Apart = Box<FromCoordinator>;

/// The sending ends.
#[derive(Clone)]
pub(crate) struct Lanes {
    control: mpsc::Sender<Apart>,
    data: mpsc::Sender<DataFrame>,
    /// Ends the connection, after what waits on the control lane was written.
    pub(crate) close: CancellationToken,
}

/// The receiving ends.
pub(crate) struct LaneEnds {
    control: mpsc::Receiver<Apart>,
    data: mpsc::Receiver<DataFrame>,
    close: CancellationToken,
}

/// The connection is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gone;

impl Lanes {
    pub(crate) fn new() -> (Self, LaneEnds) {
        let (control, control_end) = mpsc::channel(CONTROL_WAITING_MAX);
        let (data, data_end) = mpsc::channel(DATA_WAITING_MAX);
        let close = CancellationToken::new();
        let ends = LaneEnds { control: control_end, data: data_end, close: close.clone() };
        (Self { control, data, close }, ends)
    }

    /// Queues a control message. A full lane ends the connection: its peer does not read.
    pub(crate) fn control(&self, message: FromCoordinator) {
        if self.control.try_send(Box::new(message)).is_err() {
            self.close.cancel();
        }
    }

    /// Queues a data frame; waits while the lane is full.
    pub(crate) async fn data(&self, frame: DataFrame) -> Result<(), Gone> {
        self.data.send(frame).await.map_err(|_| Gone)
    }
}

/// What `sending` came to, and when the write began that the socket took whole. Not when that write returned: the
/// peer has the bytes by then and computes, on a small machine in this thread's stead.
async fn taken_at<T>(sending: impl Future<Output = T>) -> (T, Instant) {
    let mut sending = std::pin::pin!(sending);
    std::future::poll_fn(|cx| {
        let began = Instant::now();
        sending.as_mut().poll(cx).map(|out| (out, began))
    })
    .await
}

/// Writes both lanes into `sink` until the connection is closed or fails. Between messages it pings, so that the
/// peer hears something at least every `ping`; no single write may take longer than `write_max`.
pub(crate) async fn write<S>(mut sink: S, mut ends: LaneEnds, ping: Duration, write_max: Duration)
where
    S: Sink<Message> + Unpin,
{
    let mut pings = tokio::time::interval(ping);
    pings.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let (message, about) = tokio::select! {
            biased;
            Some(message) = ends.control.recv() => (Message::Text(message.encode().into()), None),
            () = ends.close.cancelled() => break,
            Some(frame) = ends.data.recv() => (Message::Binary(frame.bytes), Some(frame.about)),
            _ = pings.tick() => (Message::Ping(Bytes::new()), None),
        };
        let sent = tokio::time::timeout(write_max, taken_at(sink.send(message))).await;
        let Ok((Ok(()), at)) = sent else {
            ends.close.cancel();
            return;
        };
        if let Some(about) = about {
            // Set once: an attempt has one frame.
            let _ = about.written.set(at);
        }
    }
    ends.control.close();
    let rest = async {
        while let Some(message) = ends.control.recv().await {
            if sink.send(Message::Text(message.encode().into())).await.is_err() {
                return;
            }
        }
        let goodbye = CloseFrame { code: axum::extract::ws::close_code::NORMAL, reason: "closed".into() };
        let _ = sink.send(Message::Close(Some(goodbye))).await;
        let _ = sink.close().await;
    };
    let _ = tokio::time::timeout(write_max, rest).await;
}
