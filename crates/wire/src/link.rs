//! What the ranks of a group say to each other: binary frames with a fixed 56-byte header, always inside a sealed link.
//!
//! ```text
//! offset  0  u8   version, 1
//!         1  u8   kind
//!         2  u8   element type of the payload
//!         3  u8   flags, 0 (a receiver refuses flags that it does not know)
//!         4  u32  payload length in bytes
//!         8  u64  epoch of the group
//!        16  u64  sequence: position of this frame among those from this sender to this receiver, from 0
//!        24  u128 request that the frame belongs to; 0 where it serves a whole step
//!        40  u64  rows
//!        48  u64  columns: rows x columns elements of the element type are in the payload
//!        56  payload
//! ```
//! All numbers are little-endian. The seal around it (TLS) makes a changed, repeated or moved frame impossible without
//! ending the link, so the header carries no checksum; what is checked is that peer and receiver *mean* the same.

mod hello;
mod manifest;
mod probe;
mod transfer;

pub use hello::{HELLO_BYTES, HELLO_BYTES_MAX, HELLO_VERSION, LinkHello, Mode};
pub use manifest::{
    MANIFEST_BYTES_MAX, MANIFEST_FILES_MAX, MANIFEST_PIECES_MAX, Manifest, ManifestFile, is_placeable,
    is_plain_path,
};
pub use probe::{PROBE_VERSION, ProbeMessage};
pub use transfer::{REFUSAL_BYTES_MAX, TRANSFER_VERSION, TransferMessage};

use crate::reader::{DecodeError, Reader};

/// The version this build writes and the only one it reads.
pub const VERSION: u8 = 1;

/// Bytes before the payload.
pub const HEADER_BYTES: usize = 56;

/// The longest payload: 1 GiB. Sizes are known from the model long before; this bounds what a broken peer can ask for.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 30;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum LinkKind {
    /// A rank's contribution to a sum.
    Reduce = 1,
    /// A part of a finished sum.
    Sum = 2,
    /// A rank's part of something that is laid side by side.
    Gather = 3,
    /// Bytes from one rank to all.
    Broadcast = 4,
    /// Values from one rank to one other.
    Values = 5,
    /// Bytes from one rank to one other.
    Bytes = 6,
    /// Control: are you there? The payload comes back.
    Ping = 16,
    /// Control: the answer to a ping.
    Pong = 17,
    /// Control: this rank leaves of its own will. Payload: why, UTF-8.
    Goodbye = 18,
    /// Control: the group is over. Payload: `u32` culprit's rank (all ones: nobody's), then the cause, UTF-8.
    Fault = 19,
}

impl LinkKind {
    /// Whether it belongs on the control connection.
    pub fn is_control(self) -> bool {
        self as u8 >= 16
    }

    fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Reduce,
            2 => Self::Sum,
            3 => Self::Gather,
            4 => Self::Broadcast,
            5 => Self::Values,
            6 => Self::Bytes,
            16 => Self::Ping,
            17 => Self::Pong,
            18 => Self::Goodbye,
            19 => Self::Fault,
            _ => return None,
        })
    }
}

/// How numbers travel. A group agrees on one for its sums when it forms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum WireType {
    /// Not numbers: bytes.
    Bytes = 0,
    /// IEEE single precision: nothing is lost.
    #[default]
    F32 = 1,
    /// The upper half of single precision.
    Bf16 = 2,
    /// IEEE half precision; values beyond it saturate.
    F16 = 3,
    /// Blocks of 32 values: an `f32` scale, then 32 signed bytes. The last block may be shorter.
    Int8 = 4,
}

/// Values in a block of [`WireType::Int8`].
pub const INT8_BLOCK: usize = 32;

impl WireType {
    /// What `count` values take; `None` where that does not fit in memory.
    pub fn bytes(self, count: usize) -> Option<usize> {
        match self {
            Self::Bytes => Some(count),
            Self::F32 => count.checked_mul(4),
            Self::Bf16 | Self::F16 => count.checked_mul(2),
            Self::Int8 => count.div_ceil(INT8_BLOCK).checked_mul(4)?.checked_add(count),
        }
    }

    /// Its name, as people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Int8 => "int8",
        }
    }

    /// The type with this name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::F32, Self::Bf16, Self::F16, Self::Int8].into_iter().find(|t| t.name() == name)
    }

    fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Bytes,
            1 => Self::F32,
            2 => Self::Bf16,
            3 => Self::F16,
            4 => Self::Int8,
            _ => return None,
        })
    }
}

/// What stands before a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkHeader {
    /// What it carries.
    pub kind: LinkKind,
    /// How its numbers are written.
    pub dtype: WireType,
    /// Which life of the group it belongs to.
    pub epoch: u64,
    /// Position among the frames of its direction.
    pub sequence: u64,
    /// Whose it is; 0: a whole step's.
    pub request: u128,
    /// Rows of the payload.
    pub rows: u64,
    /// Columns of the payload.
    pub columns: u64,
}

impl LinkHeader {
    /// Writes header and payload length in front of a payload of `length` bytes that the caller appends.
    ///
    /// # Panics
    /// Where `length` is beyond [`PAYLOAD_BYTES_MAX`].
    pub fn put(&self, length: usize, out: &mut Vec<u8>) {
        assert!(length <= PAYLOAD_BYTES_MAX, "a payload of {length} bytes, at most {PAYLOAD_BYTES_MAX}");
        let length = u32::try_from(length).expect("the limit is below 4 GiB");
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = VERSION;
        bytes[1] = self.kind as u8;
        bytes[2] = self.dtype as u8;
        bytes[4..8].copy_from_slice(&length.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[24..40].copy_from_slice(&self.request.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.rows.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.columns.to_le_bytes());
        out.extend_from_slice(&bytes);
    }
}

/// How long the whole frame is that begins with `start`; `None` while too little of it is there.
///
/// # Errors
/// Another version, or a payload beyond [`PAYLOAD_BYTES_MAX`]: where the next frame begins is unknown from here.
pub fn frame_bytes(start: &[u8]) -> Result<Option<usize>, DecodeError> {
    let Some(head) = start.get(..8) else { return Ok(None) };
    if head[0] != VERSION {
        return Err(DecodeError::Value {
            what: "link frame version",
            value: head[0].into(),
            allowed: "1: run the same Phalanx on every machine of a group",
        });
    }
    let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
    if length > PAYLOAD_BYTES_MAX {
        return Err(DecodeError::Value {
            what: "link frame length",
            value: length as u64,
            allowed: "at most 1 GiB",
        });
    }
    Ok(Some(HEADER_BYTES + length))
}

/// Reads one frame: its header and its payload.
///
/// # Errors
/// Another version, an unknown kind, element type or flag, or a length that disagrees with the shape or the frame.
pub fn decode(frame: &[u8]) -> Result<(LinkHeader, &[u8]), DecodeError> {
    let mut reader = Reader::new(frame);
    let version = reader.u8("link frame version")?;
    if version != VERSION {
        return Err(DecodeError::Value {
            what: "link frame version",
            value: version.into(),
            allowed: "1: run the same Phalanx on every machine of a group",
        });
    }
    let kind = reader.u8("link frame kind")?;
    let kind = LinkKind::of(kind).ok_or(DecodeError::Value {
        what: "link frame kind",
        value: kind.into(),
        allowed: "1 to 6, 16 to 19",
    })?;
    let dtype = reader.u8("link frame element type")?;
    let dtype = WireType::of(dtype).ok_or(DecodeError::Value {
        what: "link frame element type",
        value: dtype.into(),
        allowed: "0 to 4",
    })?;
    let flags = reader.u8("link frame flags")?;
    if flags != 0 {
        return Err(DecodeError::Value { what: "link frame flags", value: flags.into(), allowed: "0" });
    }
    let length = reader.u32("link frame length")? as usize;
    let epoch = reader.u64("link frame epoch")?;
    let sequence = reader.u64("link frame sequence")?;
    let request = reader.u128("link frame request")?;
    let rows = reader.u64("link frame rows")?;
    let columns = reader.u64("link frame columns")?;
    let shaped = rows
        .checked_mul(columns)
        .and_then(|count| usize::try_from(count).ok())
        .and_then(|count| dtype.bytes(count));
    if shaped != Some(length) {
        return Err(DecodeError::Value {
            what: "link frame length",
            value: length as u64,
            allowed: "rows x columns of its element type",
        });
    }
    let payload = reader.take("link frame payload", length)?;
    reader.end("link frame")?;
    Ok((LinkHeader { kind, dtype, epoch, sequence, request, rows, columns }, payload))
}
