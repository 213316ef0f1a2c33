//! The small connection beside a lane: pings, goodbyes and faults, never stuck behind data.
//!
//! One thread for each peer reads it. It is what notices a dead process at once (the connection closes), a frozen one
//! within the patience (no ping comes back), and what carries the word of a fault to ranks that wait for someone else.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use collective::{Cause, Fault};
use trust::{RecordOpener, RecordSealer, record_bytes};
use wire::link::{LinkHeader, LinkKind, WireType, decode};

use crate::alarm::Alarm;

/// Control frames that cannot be read before the link is ended: one may be a newer peer's, many are a broken one's.
const MALFORMED_MAX: u64 = 8;

/// The longest control frame: all are far below one record.
const TEXT_BYTES_MAX: usize = 4 << 10;

/// No rank: what stands for it in a fault that is nobody's.
const NOBODY: u32 = u32::MAX;

/// The sending half, shared by the thread that reads and the one that computes.
pub(crate) struct ControlSender {
    out: Mutex<Out>,
    /// The socket again, to end it from outside.
    stream: TcpStream,
}

struct Out {
    stream: TcpStream,
    sealer: RecordSealer,
    epoch: u64,
    sequence: u64,
    buffer: Vec<u8>,
}

impl ControlSender {
    fn send(&self, kind: LinkKind, payload: &[u8]) -> std::io::Result<()> {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        let (rows, columns) = (1, payload.len() as u64);
        let (epoch, sequence) = (out.epoch, out.sequence);
        out.sequence += 1;
        let header = LinkHeader { kind, dtype: WireType::Bytes, epoch, sequence, request: 0, rows, columns };
        let mut frame = Vec::with_capacity(128);
        header.put(payload.len(), &mut frame);
        frame.extend_from_slice(payload);
        let Out { stream, sealer, buffer, .. } = &mut *out;
        buffer.clear();
        sealer.seal(&frame, buffer);
        // A write that stops in the middle leaves half a record; the peer then takes this rank for gone, which it is.
        stream.write_all(buffer)
    }

    /// Tells the peer that the group is over.
    pub(crate) fn fault(&self, fault: &Fault) {
        let culprit = fault.culprit.and_then(|rank| u32::try_from(rank).ok()).unwrap_or(NOBODY);
        let mut payload = culprit.to_le_bytes().to_vec();
        payload.extend(clipped(&fault.cause.to_string()).bytes());
        // A peer that takes nothing is beyond telling.
        let _ = self.send(LinkKind::Fault, &payload);
    }

    /// Tells the peer that this rank leaves.
    pub(crate) fn goodbye(&self, why: &str) {
        let _ = self.send(LinkKind::Goodbye, clipped(why).as_bytes());
    }

    /// Ends the connection, so that the thread that reads it returns.
    pub(crate) fn close(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

fn clipped(text: &str) -> &str {
    let end = (0..=text.len().min(TEXT_BYTES_MAX)).rev().find(|&at| text.is_char_boundary(at));
    &text[..end.unwrap_or_default()]
}

/// The reading half.
pub(crate) struct ControlReader {
    stream: TcpStream,
    opener: RecordOpener,
    pub(crate) peer: usize,
    epoch: u64,
    expected: u64,
    raw: Vec<u8>,
    sender: Arc<ControlSender>,
    alarm: Arc<Alarm>,
    over: Arc<AtomicBool>,
    patience: Duration,
}

/// What both halves need to know.
pub(crate) struct ControlTerms {
    pub(crate) peer: usize,
    pub(crate) epoch: u64,
    pub(crate) patience: Duration,
    pub(crate) alarm: Arc<Alarm>,
    /// Set when this rank's links are being taken down.
    pub(crate) over: Arc<AtomicBool>,
}

/// Both halves of a control connection.
///
/// # Errors
/// The socket cannot be shared or does not take its options.
pub(crate) fn control(
    stream: TcpStream,
    sealer: RecordSealer,
    opener: RecordOpener,
    terms: ControlTerms,
) -> std::io::Result<(Arc<ControlSender>, ControlReader)> {
    let ControlTerms { peer, epoch, patience, alarm, over } = terms;
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(tick(patience)))?;
    stream.set_write_timeout(Some(tick(patience)))?;
    let out = Out { stream: stream.try_clone()?, sealer, epoch, sequence: 0, buffer: Vec::new() };
    let sender = Arc::new(ControlSender { out: Mutex::new(out), stream: stream.try_clone()? });
    let reader = ControlReader {
        stream,
        opener,
        peer,
        epoch,
        expected: 0,
        raw: Vec::new(),
        sender: Arc::clone(&sender),
        alarm,
        over,
        patience,
    };
    Ok((sender, reader))
}

/// How often to ping, and to look whether anything came: eight chances before the patience is up.
fn tick(patience: Duration) -> Duration {
    (patience / 8).clamp(Duration::from_millis(5), Duration::from_millis(500))
}

impl ControlReader {
    /// Reads until the link is over.
    pub(crate) fn run(mut self) {
        let mut pinged = Instant::now();
        let mut chunk = [0; 4096];
        while !self.over.load(Ordering::Acquire) {
            if pinged.elapsed() >= tick(self.patience) {
                pinged = Instant::now();
                self.ping();
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => return self.closed(),
                Ok(count) => {
                    self.alarm.heard(self.peer);
                    self.raw.extend_from_slice(&chunk[..count]);
                    if let Err(cause) = self.records() {
                        return self.raise(Fault::of(self.peer, cause));
                    }
                }
                Err(error) if is_wait(&error) => {
                    if self.alarm.silence(self.peer) > self.patience {
                        let fault = self.alarm.blame(self.peer, usize::MAX, self.patience);
                        return self.raise(fault);
                    }
                }
                Err(_) => return self.closed(),
            }
        }
    }

    fn ping(&self) {
        let now = u64::try_from(self.alarm.elapsed().as_nanos()).unwrap_or(u64::MAX);
        // A peer that takes no ping will be noticed by its silence.
        let _ = self.sender.send(LinkKind::Ping, &now.to_le_bytes());
    }

    fn closed(&self) {
        if !self.over.load(Ordering::Acquire) {
            self.raise(Fault::of(self.peer, Cause::Closed));
        }
    }

    fn raise(&self, fault: Fault) {
        self.alarm.raise(fault);
    }

    fn records(&mut self) -> Result<(), Cause> {
        let malformed = |what: String| Cause::Malformed(what.into());
        let mut raw = std::mem::take(&mut self.raw);
        let mut at = 0;
        while let Some(length) = record_bytes(&raw[at..]).map_err(|e| malformed(e.to_string()))? {
            if raw.len() - at < length {
                break;
            }
            let frame =
                self.opener.open(&mut raw[at..at + length]).map_err(|e| malformed(e.to_string()))?.to_vec();
            at += length;
            self.frame(&frame)?;
        }
        raw.drain(..at);
        self.raw = raw;
        Ok(())
    }

    /// Acts on one frame. One that cannot be read is counted; too many end the link.
    fn frame(&mut self, frame: &[u8]) -> Result<(), Cause> {
        let due = self.expected;
        self.expected += 1;
        let read = decode(frame).ok().filter(|(header, payload)| {
            header.kind.is_control()
                && header.epoch == self.epoch
                && header.sequence == due
                && payload.len() <= TEXT_BYTES_MAX + 4
        });
        let Some((header, payload)) = read else {
            if self.alarm.note_malformed() > MALFORMED_MAX {
                let what = format!("more than {MALFORMED_MAX} control frames that cannot be read");
                return Err(Cause::Malformed(what.into()));
            }
            return Ok(());
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match header.kind {
            LinkKind::Ping => {
                let _ = self.sender.send(LinkKind::Pong, payload);
            }
            LinkKind::Pong => {
                if let Ok(sent) = payload.try_into() {
                    let sent = Duration::from_nanos(u64::from_le_bytes(sent));
                    self.alarm.note_round_trip(self.peer, self.alarm.elapsed().saturating_sub(sent));
                }
            }
            LinkKind::Goodbye => return Err(Cause::Left(text(payload).into())),
            LinkKind::Fault if payload.len() >= 4 => {
                let culprit = u32::from_le_bytes([payload[0], payload[1], payload[2], payload[3]]);
                let cause = Cause::Told(text(&payload[4..]).into());
                let culprit = (culprit != NOBODY).then_some(culprit as usize);
                self.raise(Fault { culprit, cause, operation: 0 });
            }
            _ => drop(self.alarm.note_malformed()),
        }
        Ok(())
    }
}

fn is_wait(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
