//! What a provider tells whoever started it, as it happens: the source of its log lines and of `--ready-file`.

use std::time::Duration;

use base::{Bytes, Incarnation, MachineId, ModelName};
use wire::control::RefusalCode;

/// Something that a person at this machine wants to know. None holds a prompt, an answer or a key.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The machine's identity was read, or made.
    Identified {
        /// Who this machine is.
        machine: MachineId,
        /// Which of its starts this is.
        incarnation: Incarnation,
        /// The name that people see.
        name: String,
    },
    /// A model's files are being read.
    Loading {
        /// Which.
        model: ModelName,
    },
    /// A model takes requests.
    Ready {
        /// Which.
        model: ModelName,
        /// How long that took.
        took: Duration,
        /// Requests that it computes together at most.
        slots: u32,
        /// Tokens that its KV cache can hold.
        kv_tokens: u64,
    },
    /// A model is served, but not quite as its files would allow.
    Notice {
        /// Which.
        model: ModelName,
        /// What its owner should know, for example a context that had to be shortened.
        text: String,
    },
    /// A model's files are here, and its weights are read only as part of a group.
    InGroups {
        /// Which.
        model: ModelName,
        /// Why.
        detail: String,
    },
    /// A model cannot be served; the provider goes on with the others.
    Failed {
        /// Which.
        model: ModelName,
        /// Why: names the file and the tensor where there is one.
        detail: String,
    },
    /// This managed machine's disk was looked through, or has changed.
    Shelved {
        /// How many models it has.
        models: usize,
    },
    /// Files look like a model, and are none that can be held.
    Broken {
        /// Which, and where.
        name: String,
        /// Why not.
        why: String,
    },
    /// A model that others have is not wanted here any more, before all of it came.
    FetchEnded {
        /// Which.
        model: ModelName,
    },
    /// A model is on this machine's disk that others had.
    Fetched {
        /// Which.
        model: ModelName,
    },
    /// The coordinator wanted something held that cannot be.
    Declined {
        /// Why.
        detail: String,
    },
    /// A model's memory was given back.
    Unloaded {
        /// What this process held before and after, where the system tells.
        resident: Option<(Bytes, Bytes)>,
    },
    /// A coordinator is being dialled.
    Connecting {
        /// Where.
        url: String,
    },
    /// The coordinator let this provider in.
    Joined {
        /// Where.
        url: String,
    },
    /// The coordinator did not.
    Refused {
        /// For programs.
        code: RefusalCode,
        /// What is wrong.
        reason: String,
        /// What to do.
        remedy: String,
        /// Whether the provider ends because of it. Otherwise `Reconnecting` follows.
        ends: bool,
    },
    /// There is no connection now, and another try after a pause.
    Reconnecting {
        /// Why there is none.
        detail: String,
        /// How long the pause is.
        pause: Duration,
    },
    /// What the coordinator thinks of this provider, one line for each of its instances (P1).
    Standing {
        /// The lines.
        lines: Vec<String>,
    },
    /// Nothing new is taken; what runs is being finished.
    Draining {
        /// How many attempts run.
        in_flight: usize,
    },
}
