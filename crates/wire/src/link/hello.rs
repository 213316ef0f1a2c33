//! The first frame on a link: who is at the other end, and for what; anything that both do not say alike refuses.

use base::{Epoch, Incarnation, InstanceId, MachineId};

use super::WireType;
use crate::reader::{DecodeError, Reader};

/// The version of the hello; compared before anything else is read.
pub const HELLO_VERSION: u16 = 1;

/// The longest hello that is read from a stranger.
pub const HELLO_BYTES_MAX: usize = 256;

const MAGIC: &[u8; 4] = b"PHLK";

/// How a group divides its model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Mode {
    /// One rank alone.
    Single = 0,
    /// Every layer is divided among all ranks.
    Tensor = 1,
    /// Each rank has whole layers.
    Pipeline = 2,
    /// Stages of whole layers, each divided among several ranks.
    Grid = 3,
}

impl Mode {
    /// Its name, as people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Tensor => "tensor",
            Self::Pipeline => "pipeline",
            Self::Grid => "grid",
        }
    }

    /// The mode with this name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Single, Self::Tensor, Self::Pipeline, Self::Grid].into_iter().find(|m| m.name() == name)
    }

    fn of(byte: u8) -> Option<Self> {
        [Self::Single, Self::Tensor, Self::Pipeline, Self::Grid].into_iter().find(|m| *m as u8 == byte)
    }
}

/// What a rank says of itself and of the group that it believes to be in.
///
/// ```text
/// offset  0  4 bytes "PHLK"       4  u16 version, 1      6  u8 mode      7  u8 element type of sums
///         8  u32 rank            12  u32 ranks          16  u128 machine
///        32  u64 incarnation     40  u128 instance      56  u64 epoch
///        64  32 bytes SHA-256 of the model's weights
///        96  32 bytes SHA-256 of the shard map
///       128  u8 lane (0 data, 1 control)   129  7 bytes 0
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkHello {
    /// Whose machine this is. The link's key proves it.
    pub machine: MachineId,
    /// Which start of it.
    pub incarnation: Incarnation,
    /// The instance that the group makes.
    pub instance: InstanceId,
    /// Which life of it.
    pub epoch: Epoch,
    /// The speaker's place.
    pub rank: u32,
    /// How many there are.
    pub ranks: u32,
    /// SHA-256 of the model's weights.
    pub model: [u8; 32],
    /// SHA-256 of the shard map.
    pub shard_map: [u8; 32],
    /// How the model is divided.
    pub mode: Mode,
    /// How sums travel.
    pub dtype: WireType,
    /// Whether this connection carries control (small, urgent) or data.
    pub control: bool,
}

/// How long an encoded hello is.
pub const HELLO_BYTES: usize = 136;

impl LinkHello {
    /// The bytes to send.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HELLO_BYTES);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&HELLO_VERSION.to_le_bytes());
        out.push(self.mode as u8);
        out.push(self.dtype as u8);
        out.extend_from_slice(&self.rank.to_le_bytes());
        out.extend_from_slice(&self.ranks.to_le_bytes());
        out.extend_from_slice(&self.machine.0.to_le_bytes());
        out.extend_from_slice(&self.incarnation.0.to_le_bytes());
        out.extend_from_slice(&self.instance.0.to_le_bytes());
        out.extend_from_slice(&self.epoch.0.to_le_bytes());
        out.extend_from_slice(&self.model);
        out.extend_from_slice(&self.shard_map);
        out.push(self.control.into());
        out.extend_from_slice(&[0; 7]);
        out
    }

    /// Reads a hello.
    ///
    /// # Errors
    /// Not a hello, another version, or a field outside its range.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let magic = reader.u32("link hello's first bytes")?;
        if magic.to_le_bytes() != *MAGIC {
            return Err(DecodeError::Value {
                what: "link hello's first bytes",
                value: magic.into(),
                allowed: "\"PHLK\"",
            });
        }
        let version = reader.u16("link hello's version")?;
        if version != HELLO_VERSION {
            return Err(DecodeError::Value {
                what: "link hello's version",
                value: version.into(),
                allowed: "1: run the same Phalanx on every machine of a group",
            });
        }
        let mode = reader.u8("link hello's mode")?;
        let mode = Mode::of(mode).ok_or(DecodeError::Value {
            what: "link hello's mode",
            value: mode.into(),
            allowed: "0 to 3",
        })?;
        let dtype = reader.u8("link hello's element type")?;
        let dtype = WireType::of(dtype).ok_or(DecodeError::Value {
            what: "link hello's element type",
            value: dtype.into(),
            allowed: "0 to 4",
        })?;
        let rank = reader.u32("link hello's rank")?;
        let ranks = reader.u32("link hello's ranks")?;
        let machine = MachineId(reader.u128("link hello's machine")?);
        let incarnation = Incarnation(reader.u64("link hello's incarnation")?);
        let instance = InstanceId(reader.u128("link hello's instance")?);
        let epoch = Epoch(reader.u64("link hello's epoch")?);
        let model = hash(reader.take("link hello's model", 32)?);
        let shard_map = hash(reader.take("link hello's shard map", 32)?);
        let control = match reader.u8("link hello's lane")? {
            0 => false,
            1 => true,
            other => {
                let value = other.into();
                return Err(DecodeError::Value { what: "link hello's lane", value, allowed: "0 or 1" });
            }
        };
        if reader.take("link hello's padding", 7)? != [0; 7] {
            return Err(DecodeError::Value { what: "link hello's padding", value: 1, allowed: "zeros" });
        }
        reader.end("link hello")?;
        Ok(Self {
            machine,
            incarnation,
            instance,
            epoch,
            rank,
            ranks,
            model,
            shard_map,
            mode,
            dtype,
            control,
        })
    }

    /// In what `theirs`, from the machine that should hold `rank`, disagrees with this side: the thing, ours, theirs.
    /// `None` where both mean the same group.
    pub fn disagreement(
        &self,
        theirs: &Self,
        machine: MachineId,
        rank: u32,
    ) -> Option<(&'static str, String, String)> {
        fn differ<T: PartialEq + ToString>(
            what: &'static str,
            ours: &T,
            theirs: &T,
        ) -> Option<(&'static str, String, String)> {
            (ours != theirs).then(|| (what, ours.to_string(), theirs.to_string()))
        }
        differ("instance", &self.instance, &theirs.instance)
            .or_else(|| differ("epoch", &self.epoch.0, &theirs.epoch.0))
            .or_else(|| differ("number of ranks", &self.ranks, &theirs.ranks))
            .or_else(|| differ("machine", &machine, &theirs.machine))
            .or_else(|| differ("rank", &rank, &theirs.rank))
            .or_else(|| differ("model", &Digest(self.model), &Digest(theirs.model)))
            .or_else(|| differ("shard map", &Digest(self.shard_map), &Digest(theirs.shard_map)))
            .or_else(|| differ("mode", &self.mode.name(), &theirs.mode.name()))
            .or_else(|| differ("element type", &self.dtype.name(), &theirs.dtype.name()))
            .or_else(|| differ("lane", &lane(self.control), &lane(theirs.control)))
    }
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    std::array::from_fn(|i| bytes[i])
}

fn lane(control: bool) -> &'static str {
    if control { "control" } else { "data" }
}

/// A hash, compared whole and shown by its ends.
#[derive(PartialEq)]
struct Digest([u8; 32]);

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        write!(f, "{}..{}", hex(&self.0[..6]), hex(&self.0[28..]))
    }
}
