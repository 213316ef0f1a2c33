//! One model on one machine: loads it, keeps its KV cache, and turns jobs into streams of tokens and text.
//!
//! What it is: a thread that runs the step loop (`batch` decides a step, `nn` computes it), and around it sampling, text,
//! stop texts, deadlines and back-pressure. What it is *not*: it opens no socket, knows no other machine and no cipher.
//! Start with [`load`] and [`Engine::start`]; [`Sink`] is where an answer goes, [`EngineConfig`] has every knob.
//! Inside, `worker` is the loop, `desk` is where callers and the loop meet, `answer` makes one answer.

#![forbid(unsafe_code)]

mod answer;
mod backend;
pub mod bundled;
mod capacity;
mod compute;
mod config;
mod desk;
mod device;
mod engine;
mod files;
mod gauge;
mod grammar;
pub mod group;
mod guides;
mod load;
pub mod machine;
mod pooling;
mod sampling;
mod sink;
mod speed;
mod stop;
mod worker;

pub use backend::BackendError;
pub use batch::LimitsError;
pub use capacity::CapacityError;
pub use config::{ActivationFormat, EngineConfig, KvFormat, WeightFormat};
pub use desk::EngineReport;
pub use device::Device;
pub use engine::{Engine, LogitsError, StartError};
pub use gauge::{GAUGED_BYTES, Gauge, gauge};
pub use load::{LoadError, LoadOptions, LoadedModel, ModelSource, StoredFormat, Watch, load, load_kit, look};
pub use sink::{Refusal, Sink};
