//! Binary frames between coordinator and provider: a fixed 32-byte header, then the payload as it is.
//!
//! ```text
//! offset  0  u8   version, 1
//!         1  u8   kind
//!         2  u16  flags, 0 (a receiver refuses flags that it does not know)
//!         4  u32  payload length in bytes
//!         8  u128 subject: the attempt, or the kit
//!        24  u64  counter: position of this frame among those of its kind and subject, from 0
//!        32  payload
//! ```
//! All numbers are little-endian. One WebSocket message carries exactly one frame. Payloads of attempts and chunks
//! are sealed (AEAD), so the header carries no checksum: its `kind`, `subject` and `counter` are the seal's
//! associated data, and a changed header fails to open.

use base::AttemptId;

use crate::reader::{DecodeError, Reader};

/// The version this build writes and the only one it reads.
pub const VERSION: u8 = 1;

/// Bytes before the payload.
pub const HEADER_BYTES: usize = 32;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// Coordinator to provider: a sealed [`crate::job::Job`]. Payload: [`sealed_attempt`].
    Attempt = 1,
    /// Provider to coordinator: one sealed [`crate::chunk::Chunk`].
    Chunk = 2,
    /// Provider to coordinator: a piece of a model kit (tokenizer, chat template, configuration). Not secret. Pieces
    /// come in order, counted from 0, until together they are as long as the model's descriptor says.
    Kit = 3,
}

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the payload is.
    pub kind: FrameKind,
    /// Which attempt or kit it belongs to.
    pub subject: u128,
    /// Its position among the frames of its kind and subject, from 0.
    pub counter: u64,
}

impl FrameHeader {
    /// The header of a frame about an attempt.
    pub fn of_attempt(kind: FrameKind, attempt: AttemptId, counter: u64) -> Self {
        Self { kind, subject: attempt.0, counter }
    }

    /// The header of piece `counter` of a kit. Its subject is the first 32 hexadecimal digits of `kit_sha256`, as a
    /// number; `None` where these are no such digits.
    pub fn of_kit(kit_sha256: &str, counter: u64) -> Option<Self> {
        let digits = kit_sha256.get(..32).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))?;
        Some(Self { kind: FrameKind::Kit, subject: u128::from_str_radix(digits, 16).ok()?, counter })
    }

    /// The attempt that this frame is about.
    pub fn attempt(&self) -> AttemptId {
        AttemptId(self.subject)
    }
}

/// Header and payload as one message.
pub fn encode(header: FrameHeader, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES + payload.len());
    out.push(VERSION);
    out.push(header.kind as u8);
    out.extend_from_slice(&0u16.to_le_bytes());
    out.extend_from_slice(
        &u32::try_from(payload.len()).expect("frame limits are far below 4 GiB").to_le_bytes(),
    );
    out.extend_from_slice(&header.subject.to_le_bytes());
    out.extend_from_slice(&header.counter.to_le_bytes());
    out.extend_from_slice(payload);
    out
}

/// Reads one message: its header and its payload.
///
/// # Errors
/// Another version, an unknown kind or flag, or a length that disagrees with the message.
pub fn decode(message: &[u8]) -> Result<(FrameHeader, &[u8]), DecodeError> {
    let mut reader = Reader::new(message);
    let version = reader.u8("frame version")?;
    if version != VERSION {
        return Err(DecodeError::Value { what: "frame version", value: version.into(), allowed: "1" });
    }
    let kind = match reader.u8("frame kind")? {
        1 => FrameKind::Attempt,
        2 => FrameKind::Chunk,
        3 => FrameKind::Kit,
        other => {
            return Err(DecodeError::Value { what: "frame kind", value: other.into(), allowed: "1 to 3" });
        }
    };
    let flags = reader.u16("frame flags")?;
    if flags != 0 {
        return Err(DecodeError::Value { what: "frame flags", value: flags.into(), allowed: "0" });
    }
    let length = reader.u32("frame length")? as usize;
    let subject = reader.u128("frame subject")?;
    let counter = reader.u64("frame counter")?;
    let payload = reader.take("frame payload", length)?;
    reader.end("frame")?;
    Ok((FrameHeader { kind, subject, counter }, payload))
}

/// The payload of an attempt's frame: `u16` length of the encapsulated key, that key, the ciphertext.
pub fn sealed_attempt(encapsulated: &[u8], ciphertext: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(2 + encapsulated.len() + ciphertext.len());
    let length = u16::try_from(encapsulated.len()).expect("encapsulated keys are below 2 KiB");
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(encapsulated);
    out.extend_from_slice(ciphertext);
    out
}

/// Splits what [`sealed_attempt`] joined, into (encapsulated key, ciphertext).
///
/// # Errors
/// The payload is shorter than it claims.
pub fn split_sealed_attempt(payload: &[u8]) -> Result<(&[u8], &[u8]), DecodeError> {
    let mut reader = Reader::new(payload);
    let length = reader.u16("encapsulated key's length")?;
    let encapsulated = reader.take("encapsulated key", length.into())?;
    Ok((encapsulated, reader.rest()))
}
