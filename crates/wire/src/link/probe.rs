//! What two machines say to each other to find out whether one reaches the other, and how well: small messages in sealed
//! records, one each, on a connection of their own.
//!
//! ```text
//! who dials                      who is dialled
//!   hello  ------------------->  hello      version, and whether it serves (then nothing large is sent)
//!   ping   ------------------->  pong       the same number; some times
//!   bulk, bulk, ... bulk (last) >  took     how many bytes came since the last `took`; sizes double
//!                                           until it closes
//! ```
//! Every message begins with its kind, one byte; numbers are little-endian.

use crate::reader::{DecodeError, Reader};

/// The version that this build speaks, and the only one.
pub const PROBE_VERSION: u16 = 1;

/// A message of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeMessage<'a> {
    /// Kind 1: `u16` version, `u8` whether the speaker serves requests at the moment.
    Hello {
        /// Whether it has work.
        busy: bool,
    },
    /// Kind 2: `u32`.
    Ping(u32),
    /// Kind 3: the ping's `u32`.
    Pong(u32),
    /// Kind 4: `u8` whether it is the last before a `took`, then anything.
    Bulk {
        /// Whether an answer is wanted.
        last: bool,
        /// What is carried.
        filler: &'a [u8],
    },
    /// Kind 5: `u64` bytes of filler.
    Took(u64),
}

impl<'a> ProbeMessage<'a> {
    /// The bytes to send.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16);
        match *self {
            Self::Hello { busy } => {
                out.push(1);
                out.extend_from_slice(&PROBE_VERSION.to_le_bytes());
                out.push(busy.into());
            }
            Self::Ping(number) => {
                out.push(2);
                out.extend_from_slice(&number.to_le_bytes());
            }
            Self::Pong(number) => {
                out.push(3);
                out.extend_from_slice(&number.to_le_bytes());
            }
            Self::Bulk { last, filler } => {
                out.extend_from_slice(&[4, last.into()]);
                out.extend_from_slice(filler);
            }
            Self::Took(bytes) => {
                out.push(5);
                out.extend_from_slice(&bytes.to_le_bytes());
            }
        }
        out
    }

    /// Reads a message.
    ///
    /// # Errors
    /// Not one, or of another version.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let kind = reader.u8("probe's kind")?;
        let message = match kind {
            1 => {
                let version = reader.u16("probe's version")?;
                if version != PROBE_VERSION {
                    let allowed = "1: run the same Phalanx on every machine";
                    return Err(DecodeError::Value {
                        what: "probe's version",
                        value: version.into(),
                        allowed,
                    });
                }
                Self::Hello { busy: flag(reader.u8("probe's busy")?, "probe's busy")? }
            }
            2 => Self::Ping(reader.u32("probe's number")?),
            3 => Self::Pong(reader.u32("probe's number")?),
            4 => {
                let last = flag(reader.u8("probe's last")?, "probe's last")?;
                return Ok(Self::Bulk { last, filler: bytes.get(2..).unwrap_or_default() });
            }
            5 => Self::Took(reader.u64("probe's bytes")?),
            _ => {
                let allowed = "1 to 5";
                return Err(DecodeError::Value { what: "probe's kind", value: kind.into(), allowed });
            }
        };
        reader.end("probe message")?;
        Ok(message)
    }
}

fn flag(byte: u8, what: &'static str) -> Result<bool, DecodeError> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError::Value { what, value: byte.into(), allowed: "0 or 1" }),
    }
}
