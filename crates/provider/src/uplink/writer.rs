//! The session's one writer: control messages before data, several small messages in one write.

use std::sync::Arc;
use std::time::Instant;

use futures_util::{Sink, SinkExt};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::attempt::lane::{Lane, News, Parcel};
use crate::attempt::table::Table;

/// Control messages that wait for the writer at most. A session says few (heartbeats, refusals); a coordinator that
/// provokes more than this and reads none of them is lost.
pub(crate) const CONTROL_MAX: usize = 1024;

/// A message of the control lane.
#[derive(Debug)]
pub(crate) enum Control {
    Text(String),
    Ping,
}

/// Writes until the control lane's senders are gone and everything of it is sent, then closes the WebSocket.
pub(crate) async fn write(
    mut socket: impl Sink<Message, Error = tungstenite::Error> + Unpin,
    mut control: mpsc::Receiver<Control>,
    lane: Arc<Lane>,
    table: Arc<Table>,
) -> Result<(), tungstenite::Error> {
    loop {
        match control.try_recv() {
            Ok(message) => {
                socket.feed(message.into()).await?;
                continue;
            }
            Err(mpsc::error::TryRecvError::Empty) => {}
            Err(mpsc::error::TryRecvError::Disconnected) => return socket.close().await,
        }
        if let Some(parcel) = lane.next() {
            let news = match parcel {
                Parcel::Frame { bytes, news } => {
                    socket.feed(Message::Binary(bytes)).await?;
                    news
                }
                Parcel::Failure { message, attempt } => {
                    socket.feed(Message::Text(message.into())).await?;
                    // Where the failure was ours (an overrun), the engine still computes.
                    table.cancel(attempt);
                    Some((attempt, News::Ended))
                }
            };
            match news {
                Some((attempt, News::Ended)) => table.ended(attempt),
                Some((attempt, News::RoomAgain)) => table.room_again(attempt),
                None => {}
            }
            continue;
        }
        socket.flush().await?;
        let Some(until) = lane.rest() else { continue };
        tokio::select! {
            message = control.recv() => match message {
                Some(message) => socket.feed(message.into()).await?,
                None => return socket.close().await,
            },
            () = lane.woken() => {}
            () = over(until) => {}
        }
        lane.begins();
    }
}

/// Returns at `until`.
async fn over(until: Option<Instant>) {
    match until {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

impl From<Control> for Message {
    fn from(control: Control) -> Self {
        match control {
            Control::Text(text) => Message::Text(text.into()),
            Control::Ping => Message::Ping(tungstenite::Bytes::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::sink::unfold;
    use parking_lot::Mutex;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::attempt::lane::{Kit, Load};

    #[tokio::test]
    async fn control_messages_overtake_data_that_waits_for_a_slow_link() {
        let gate = Arc::new(Semaphore::new(0));
        let written = Arc::new(Mutex::new(Vec::new()));
        let (passing, log) = (Arc::clone(&gate), Arc::clone(&written));
        let link = Box::pin(unfold((), move |(), message: Message| {
            let (passing, log) = (Arc::clone(&passing), Arc::clone(&log));
            async move {
                passing.acquire().await.expect("never closed").forget();
                log.lock().push(message);
                Ok(())
            }
        }));
        let lane = Lane::new();
        lane.limit(1000 + wire::frame::HEADER_BYTES);
        lane.push(Load::Kit(Kit {
            sha256: "ab".repeat(32),
            bytes: vec![7; 8000].into(),
            sent: 0,
            counter: 0,
        }));
        let (control, queue) = mpsc::channel(CONTROL_MAX);
        let writer = tokio::spawn(write(link, queue, lane, Arc::new(Table::default())));
        tokio::task::yield_now().await;
        control.send(Control::Text("urgent".into())).await.expect("the writer waits");
        gate.add_permits(100);
        let all_there = async {
            while written.lock().len() < 9 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), all_there).await.expect("nine messages");
        drop(control);
        writer.await.expect("no panic").expect("closed in order");
        let at = written.lock().iter().position(Message::is_text).expect("the control message");
        // One piece was in the link's hands, and one in the writer's.
        assert!(at <= 2, "the control message came as number {at} of 9");
    }
}
