//! What two machines say to each other where one takes a model's files from the other: sealed records, one message each,
//! on a connection of their own.
//!
//! ```text
//! who takes                      who gives
//!   want  -------------------->  (preparing ...)   version, the model's name; it reads what it has for the first time
//!                                offer, data ...   the manifest: its hash and length, then its bytes
//!   get   -------------------->  data, data ...    pieces of one file, one after the other: as long as the manifest says
//!                                refused           instead of any of these: why, in words
//!                                                  until it closes
//! ```
//! Every message begins with its kind, one byte, none of which a probe has; numbers are little-endian.

use crate::reader::{DecodeError, Reader};

/// The version that this build speaks, and the only one.
pub const TRANSFER_VERSION: u16 = 1;
/// Longest name of a model.
const NAME_BYTES_MAX: usize = 128;
/// Longest text of why something is refused.
pub const REFUSAL_BYTES_MAX: usize = 1000;

/// A message of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransferMessage<'a> {
    /// Kind 32: `u16` version, then the model's name.
    Want(&'a str),
    /// Kind 33: `u8` hundredths of what must be read before the offer.
    Preparing(u8),
    /// Kind 34: SHA-256 of the manifest, `u32` its bytes.
    Offer {
        /// What two machines with the same content say alike.
        root: [u8; 32],
        /// Bytes of manifest in the data that follow.
        bytes: u32,
    },
    /// Kind 35: three `u32`.
    Get {
        /// Which file of the manifest.
        file: u32,
        /// The first piece of it.
        first: u32,
        /// How many.
        count: u32,
    },
    /// Kind 36: bytes.
    Data(&'a [u8]),
    /// Kind 37: why, in words.
    Refused(&'a str),
}

impl<'a> TransferMessage<'a> {
    /// Whether a message is one of a transfer, and not of a probe.
    pub fn is_one(bytes: &[u8]) -> bool {
        bytes.first().is_some_and(|kind| (32..48).contains(kind))
    }

    /// The bytes to send.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(48);
        match *self {
            Self::Want(model) => {
                out.push(32);
                out.extend_from_slice(&TRANSFER_VERSION.to_le_bytes());
                out.extend_from_slice(model.as_bytes());
            }
            Self::Preparing(percent) => out.extend_from_slice(&[33, percent]),
            Self::Offer { root, bytes } => {
                out.push(34);
                out.extend_from_slice(&root);
                out.extend_from_slice(&bytes.to_le_bytes());
            }
            Self::Get { file, first, count } => {
                out.push(35);
                [file, first, count].iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
            }
            Self::Data(bytes) => {
                out.push(36);
                out.extend_from_slice(bytes);
            }
            Self::Refused(why) => {
                out.push(37);
                out.extend_from_slice(why.as_bytes());
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
        let kind = reader.u8("transfer's kind")?;
        let message = match kind {
            32 => {
                let version = reader.u16("transfer's version")?;
                if version != TRANSFER_VERSION {
                    let (what, allowed) = ("transfer's version", "1: run the same Phalanx on every machine");
                    return Err(DecodeError::Value { what, value: version.into(), allowed });
                }
                Self::Want(text(&mut reader, "a wanted model's name", NAME_BYTES_MAX)?)
            }
            33 => {
                let percent = reader.u8("transfer's percent")?;
                if percent > 100 {
                    let (what, allowed) = ("transfer's percent", "0 to 100");
                    return Err(DecodeError::Value { what, value: percent.into(), allowed });
                }
                Self::Preparing(percent)
            }
            34 => {
                let hash = reader.take("manifest's hash", 32)?;
                let root = std::array::from_fn(|at| hash[at]);
                Self::Offer { root, bytes: reader.u32("manifest's bytes")? }
            }
            35 => Self::Get {
                file: reader.u32("wanted file")?,
                first: reader.u32("first piece")?,
                count: reader.u32("pieces")?,
            },
            36 => Self::Data(reader.rest()),
            37 => Self::Refused(text(&mut reader, "a refusal", REFUSAL_BYTES_MAX)?),
            _ => {
                let (what, allowed) = ("transfer's kind", "32 to 37");
                return Err(DecodeError::Value { what, value: kind.into(), allowed });
            }
        };
        reader.end("transfer message")?;
        Ok(message)
    }
}

fn text<'a>(reader: &mut Reader<'a>, what: &'static str, most: usize) -> Result<&'a str, DecodeError> {
    let bytes = reader.rest();
    if bytes.len() > most {
        let detail = format!("{} bytes; {most} are allowed", bytes.len());
        return Err(DecodeError::Json { what, detail });
    }
    std::str::from_utf8(bytes).map_err(|_| DecodeError::Utf8 { what })
}
