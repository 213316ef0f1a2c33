//! What coordinator and provider say to each other: JSON objects with a `type`, one a WebSocket text message.
//!
//! Unknown fields and unknown types are tolerated, so that a newer peer can say more: what must be understood is
//! negotiated as a capability. The order on a new connection:
//!
//! ```text
//! provider                          coordinator
//!   hello  ------------------------->            who I am, my keys, my join token
//!          <-------------------------  challenge  a nonce       (or refused, and the connection closes)
//!   proof  ------------------------->            signature over the transcript
//!          <-------------------------  welcome    limits        (or refused)
//!   register ----------------------->            hardware, instances
//!          <-------------------------  want_kit   for a model whose tokenizer is not known here
//!   (kit frames) ------------------->
//!   heartbeat, instance_changed ---->            until the end
//! ```

mod assignment;
mod group;
pub mod hardware;
mod probe;
mod weights;

use base::{AttemptId, Bytes, Epoch, Incarnation, InstanceId, MachineId, ModelName, Tokens};
use serde::{Deserialize, Serialize};

pub use assignment::{
    ASSIGNMENTS, Assignment, AssignmentPhase, AssignmentReport, DEVICES_MAX, DeviceFacts, HELD_MAX, Held,
    Inventory, LABEL_BYTES_MAX, LABELS_MAX, Label, Lease, Leases, MODEL_CONFIG_BYTES_MAX, MODELS_ON_DISK_MAX,
    ModelOnDisk, Unassignment,
};
pub use group::{
    AssignGroup, GROUPS, GroupAddress, GroupLink, GroupMember, GroupPhase, GroupPorts, GroupReport,
    GroupRoster, GroupStanding, GroupTelemetry, RANKS_MAX,
};
pub use hardware::Hardware;
pub use probe::{
    LINK_ERROR_BYTES_MAX, LINKS_MAX, LinkOver, LinkReport, LinkReports, PEER_ADDRESSES_MAX, PEERS_MAX, Peer,
    Peers,
};
pub use weights::{FetchModel, FetchReport, HOLDERS_MAX, LENDS_MAX, Lend, Lends};

use crate::reader::DecodeError;

/// The protocol this build speaks. Raised only when a peer of the older one could not go on; everything else is a
/// capability.
pub const PROTOCOL: u32 = 1;

/// Capability: attempts outlive their connection, and are offered again on the next.
pub const REOFFER: &str = "reoffer";

/// Capability: an attempt's chunks are sent only as far as its credit goes ([`Welcome::credit_chunks`] to begin with).
pub const CREDIT: &str = "credit";

/// A message from a provider.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromProvider {
    /// The first message on a connection.
    Hello(Hello),
    /// The answer to a challenge.
    Proof {
        /// Ed25519 over `trust`'s registration transcript, base64.
        signature: String,
    },
    /// What this machine is and serves. Replaces what it said before.
    Register(Register),
    /// Still here; and how it goes.
    Heartbeat(Heartbeat),
    /// Something about one instance changed and must not wait for the next heartbeat.
    InstanceChanged(InstanceReport),
    /// An attempt that was not taken. Nothing was computed.
    AttemptRefused {
        /// Which.
        attempt: AttemptId,
        /// Why.
        reason: AttemptRefusal,
        /// In words, without any of the prompt.
        message: String,
    },
    /// An attempt that was taken and ended without a final chunk.
    AttemptFailed {
        /// Which.
        attempt: AttemptId,
        /// In words, without prompt or answer.
        message: String,
    },
    /// The attempts that outlived the last connection, running or just ended: all of them, and none where it has
    /// none. Said once, after the first `register` of a session that has the capability [`REOFFER`].
    Kept {
        /// Each.
        attempts: Vec<KeptAttempt>,
    },
    /// Where this machine's rank of a group is dialled.
    GroupPorts(GroupPorts),
    /// How far this machine's rank has come, or why its group is over.
    GroupReport(GroupReport),
    /// How far this machine is with an assignment.
    AssignmentReport(AssignmentReport),
    /// What a managed machine has to hold models with. Replaces what it said before.
    Inventory(Inventory),
    /// What came of trying other machines.
    Links(LinkReports),
    /// How far this machine is with a model that it takes from others.
    FetchReport(FetchReport),
    /// No new attempts, please: this provider is going. Attempts in flight are finished.
    Draining,
    /// The last message on a connection.
    Goodbye {
        /// In words.
        reason: String,
    },
    /// A type that this build does not know.
    #[serde(other)]
    Unknown,
}

/// A message from the coordinator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromCoordinator {
    /// Prove that the keys are yours.
    Challenge {
        /// 32 random bytes, base64.
        nonce: String,
    },
    /// You are in.
    Welcome(Welcome),
    /// You are not; the connection closes after this.
    Refused(Refused),
    /// Send the kit with this hash.
    WantKit {
        /// SHA-256, hexadecimal.
        kit_sha256: String,
    },
    /// What the coordinator thinks of this provider, for its own log (P1). Sent when it changes.
    Standing {
        /// One line for each instance that is not routable, or that newly is.
        lines: Vec<String>,
    },
    /// Go on with a kept attempt: send its chunks from this counter on, those already sent as they were.
    Resume {
        /// Which.
        attempt: AttemptId,
        /// The first chunk that is wanted.
        from_counter: u64,
    },
    /// Chunks of this attempt may be sent up to here (capability [`CREDIT`]): an answer whose reader is slow waits in its
    /// engine, and not on the way.
    Credit {
        /// Which.
        attempt: AttemptId,
        /// Chunks with a counter below this may be sent.
        until_counter: u64,
    },
    /// The answer is no longer wanted.
    Cancel {
        /// Which.
        attempt: AttemptId,
    },
    /// Be a rank of a group.
    AssignGroup(AssignGroup),
    /// Where the ranks of a group are dialled.
    GroupRoster(GroupRoster),
    /// Be no rank of this group any more.
    UnassignGroup {
        /// The group.
        instance: InstanceId,
        /// Its life; older ones end too.
        epoch: Epoch,
        /// In words.
        reason: String,
    },
    /// Hold a model whole, alone.
    Assign(Assignment),
    /// Hold it no more.
    Unassign(Unassignment),
    /// Go on holding what is listed.
    RenewLeases(Leases),
    /// Try these machines, and let them try you.
    Peers(Peers),
    /// Take a model's files from other machines.
    FetchModel(FetchModel),
    /// Give these machines these models' files.
    Lend(Lends),
    /// This coordinator is going; connect again after the pause.
    Goodbye {
        /// In words.
        reason: String,
        /// When to try again.
        retry_after_us: u64,
    },
    /// A type that this build does not know.
    #[serde(other)]
    Unknown,
}

/// An attempt that outlived its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptAttempt {
    /// Which.
    pub attempt: AttemptId,
    /// The oldest chunk that can still be sent again.
    pub first_counter: u64,
    /// The chunk that has not been made yet.
    pub next_counter: u64,
}

/// Who a provider is.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// See [`PROTOCOL`].
    pub protocol: u32,
    /// The join token. A secret: never logged.
    pub token: String,
    /// Must be the hash of `signing_key`.
    pub machine: MachineId,
    /// Which start of the provider this is.
    pub incarnation: Incarnation,
    /// What people call the machine.
    pub name: String,
    /// Program and version, for people.
    pub agent: String,
    /// Ed25519 public key, base64.
    pub signing_key: String,
    /// X25519 public key that attempts are sealed to, base64.
    pub sealing_key: String,
    /// What this provider can do beyond the protocol.
    #[serde(default)]
    pub capabilities: Vec<String>,
}

impl std::fmt::Debug for Hello {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hello")
            .field("protocol", &self.protocol)
            .field("machine", &self.machine)
            .field("incarnation", &self.incarnation)
            .field("name", &self.name)
            .field("agent", &self.agent)
            .finish_non_exhaustive()
    }
}

/// The terms of a session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// The capabilities that both sides have.
    pub capabilities: Vec<String>,
    /// The largest text message either side may send.
    pub control_bytes_max: Bytes,
    /// The largest binary message either side may send.
    pub data_bytes_max: Bytes,
    /// How often to send a heartbeat.
    pub heartbeat_us: u64,
    /// After so long without a message, either side takes the other for gone.
    pub silence_us_max: u64,
    /// Chunks of an attempt that may be sent before any [`FromCoordinator::Credit`]; 0 is without bound.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub credit_chunks: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Why a provider is not let in, and what to do about it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Refused {
    /// For programs.
    pub code: RefusalCode,
    /// For people: what is wrong.
    pub reason: String,
    /// For people: what to do.
    pub remedy: String,
}

/// Why a provider is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// The join token is not one of ours. Trying again does not help.
    BadToken,
    /// Another protocol version.
    BadProtocol,
    /// The machine's id is not the hash of its key, or the signature is wrong.
    BadIdentity,
    /// A message that should not come now, or is misshapen.
    BadMessage,
    /// A newer start of the same machine is connected.
    Superseded,
    /// The coordinator takes no more machines, or is going.
    Unavailable,
    /// A code that this build does not know.
    #[serde(other)]
    Unknown,
}

/// What a machine is and serves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Register {
    /// What it is made of.
    pub hardware: Hardware,
    /// What it serves.
    pub instances: Vec<InstanceOffer>,
    /// Whether a coordinator decides what it holds: it loads nothing by itself, and takes assignments.
    #[serde(default, skip_serializing_if = "is_false")]
    pub managed: bool,
    /// Every rank that it holds, or is about to, by assignment or in a group: [`HELD_MAX`] at most.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "assignment::at_most::<_, _, HELD_MAX>"
    )]
    pub holds: Vec<Held>,
}

fn is_false(is: &bool) -> bool {
    !*is
}

/// An instance that a provider holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstanceOffer {
    /// Its identity.
    pub instance: InstanceId,
    /// Which assignment it carries out.
    pub epoch: Epoch,
    /// This machine's place in it: 0 leads and is the only one that is routed to.
    pub rank: u32,
    /// How many ranks it has.
    pub ranks: u32,
    /// Its model.
    pub model: ModelDescriptor,
    /// How it is.
    pub report: InstanceReport,
}

/// What a coordinator must know of a model to serve it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelDescriptor {
    /// The name it is served under.
    pub name: ModelName,
    /// Its family, as in `model::family`.
    pub family: String,
    /// How many weights it has.
    pub parameters: u64,
    /// What its weights take on disk.
    pub weight_bytes: Bytes,
    /// The longest context, prompt and answer together.
    pub context: Tokens,
    /// How many different tokens there are.
    pub vocabulary: u32,
    /// SHA-256 over the weights' own index and contents, hexadecimal; instances of one model must agree.
    pub weights_sha256: String,
    /// SHA-256 of the kit (tokenizer, chat template, configuration), hexadecimal.
    pub kit_sha256: String,
    /// How long the kit is.
    pub kit_bytes: Bytes,
}

/// How an instance is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstanceReport {
    /// Which.
    pub instance: InstanceId,
    /// Grows with every change; an older report never replaces a newer one.
    pub generation: u64,
    /// In which phase.
    pub phase: InstancePhase,
    /// Why, where the phase needs a reason.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// Requests it computes together at most.
    pub slots: u32,
    /// Requests it computes now.
    pub running: u32,
    /// Requests that wait inside it.
    pub waiting: u32,
    /// Tokens that its KV cache can hold in all.
    pub kv_tokens: u64,
    /// Of these, free (or held only as reusable prefixes).
    pub kv_tokens_free: u64,
    /// Prompt tokens that wait to be prefilled.
    pub prefill_tokens_waiting: u64,
    /// Measured: prompt tokens a second, one request.
    pub prefill_tokens_per_s: f32,
    /// Measured: generated tokens a second, one request alone.
    pub decode_tokens_per_s: f32,
}

/// In which phase an instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstancePhase {
    /// Its weights are being read.
    Loading,
    /// It takes requests.
    Ready,
    /// It finishes what it has and takes nothing new.
    Draining,
    /// It cannot serve; the report's detail says why.
    Failed,
    /// Its files are there, and its weights are read only as part of a group.
    InGroups,
    /// A phase that this build does not know: never routable.
    #[serde(other)]
    Unknown,
}

/// Still here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Counts from 0 on each connection.
    pub sequence: u64,
    /// How each instance is.
    pub instances: Vec<InstanceReport>,
}

/// Why an attempt was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptRefusal {
    /// The instance serves another model. Harms nobody's reputation.
    WrongModel,
    /// Every slot and waiting place is taken.
    NoSlot,
    /// Its KV cache has no room for it now.
    NoKvRoom,
    /// It can never fit: prompt and answer are longer than the context or the whole cache.
    TooLong,
    /// It is not ready, or going.
    NotReady,
    /// It could not be opened, or is misshapen.
    Unreadable,
    /// The form that it asks of the answer is not one, or too complex: the message says why, and no machine can cure it.
    BadConstraint,
    /// A reason that this build does not know.
    #[serde(other)]
    Unknown,
}

macro_rules! json_message {
    ($type:ty, $what:literal) => {
        impl $type {
            /// The text message.
            pub fn encode(&self) -> String {
                serde_json::to_string(self).expect("messages have no map keys that JSON lacks")
            }

            /// Reads a text message.
            ///
            /// # Errors
            /// Not JSON, or a known type of another shape. The message names field and position, never a value.
            pub fn decode(text: &str) -> Result<Self, DecodeError> {
                // serde would take an array for a tagged object, too.
                if !text.trim_ascii_start().starts_with('{') {
                    return Err(DecodeError::Json { what: $what, detail: "not a JSON object".to_owned() });
                }
                serde_json::from_str(text).map_err(|e| DecodeError::Json { what: $what, detail: detail(&e) })
            }
        }
    };
}

/// What is wrong with a message, without any of its values: one of them is a secret, and this is logged.
fn detail(error: &serde_json::Error) -> String {
    let (line, column) = (error.line(), error.column());
    if error.classify() != serde_json::error::Category::Data {
        return format!("not JSON at line {line} column {column}");
    }
    let text = error.to_string();
    let said = if text.starts_with("missing field") || text.starts_with("duplicate field") {
        Some(text)
    } else if text.starts_with("invalid") || text.starts_with("unknown variant") {
        // "invalid type: string \"...\", expected u32 at line 1 column 9": what comes last is the type's own text.
        text.rsplit_once(", expected ").map(|(_, expected)| format!("expected {expected}"))
    } else {
        None
    };
    said.unwrap_or_else(|| format!("a value of another shape at line {line} column {column}"))
}

json_message!(FromProvider, "a provider's message");
json_message!(FromCoordinator, "a coordinator's message");
