//! Another server as an instance's engine: vLLM, llama-server, Ollama, MLX, or another Phalanx, by `/v1/completions`.
//!
//! The coordinator renders and tokenizes with the model's kit, as for any instance; prompts go upstream as tokens where
//! the server takes them, else as text. What comes back is text: it becomes tokens again by the kit's tokenizer, which
//! is what the journal needs to go on elsewhere. Whether the server is up is asked every few seconds.

mod ask;
mod events;
mod flight;
mod health;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base::{AttemptId, Bytes, ModelName, Tokens};
use engine::{EngineReport, Refusal, Sink};
use model::kit::{Kit, OpenKit};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use wire::control::ModelDescriptor;
use wire::job::Job;

pub(crate) use ask::Prompting;

/// How long a connection may take to stand.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How long an answer may pause: a server under load prefills for minutes.
const SILENCE_MAX: Duration = Duration::from_secs(300);
/// Speeds until some are measured: low, so that machines which know theirs are preferred.
const PREFILL_TOKENS_PER_S: f32 = 200.0;
const DECODE_TOKENS_PER_S: f32 = 10.0;

/// Another server, and what is served of it.
#[derive(Debug, Clone)]
pub struct UpstreamConfig {
    /// `http://HOST:PORT`, with or without `/v1`.
    pub url: String,
    /// What it calls the model.
    pub model: String,
    /// A folder with the model's `config.json`, tokenizer and chat template.
    pub kit: PathBuf,
    /// Sent as a bearer token.
    pub key: Option<UpstreamKey>,
}

/// A key: shown nowhere.
#[derive(Clone)]
pub struct UpstreamKey(pub(crate) String);

impl UpstreamKey {
    /// Takes `key` over.
    pub fn new(key: String) -> Self {
        Self(key)
    }
}

impl std::fmt::Debug for UpstreamKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UpstreamKey(...)")
    }
}

/// A server that answers. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Upstream {
    shared: Arc<Shared>,
}

struct Shared {
    name: ModelName,
    config: UpstreamConfig,
    client: reqwest::Client,
    kit: OpenKit,
    prompting: Prompting,
    slots: u32,
    context: u32,
    /// Sinks have room again.
    room: Notify,
    stopping: watch::Sender<bool>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    flights: HashMap<AttemptId, InFlight>,
    down: Option<String>,
    prefill_tokens_per_s: Option<f32>,
    decode_tokens_per_s: Option<f32>,
    computed_tokens: u64,
}

/// An attempt that the server works on.
struct InFlight {
    tokens: u64,
    cancel: Arc<Notify>,
}

/// The kit's bytes and what the coordinator is told of the model.
pub(crate) fn describe(
    name: &ModelName,
    config: &UpstreamConfig,
    context: Option<u32>,
) -> Result<(Kit, OpenKit, ModelDescriptor), String> {
    // The server is asked for text alone, whatever the model's files say of embeddings.
    let kit =
        Kit { pooling: None, ..engine::load_kit(&config.kit).map_err(|error| crate::load::chain(&error))? };
    let open = kit.open().map_err(|error| crate::load::chain(&error))?;
    let bytes = kit.to_bytes();
    let kit_sha256 = trust::hex(&trust::sha256(&bytes));
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let model_context = number(open.spec.context);
    // Nobody here sees the weights: instances of one kit and one name there count as one model.
    let identity = format!("openai-compatible {} {kit_sha256}", config.model);
    let descriptor = ModelDescriptor {
        name: name.clone(),
        family: open.spec.family.to_owned(),
        parameters: model::checkpoint::parameters(&open.spec),
        weight_bytes: Bytes::ZERO,
        context: Tokens(context.unwrap_or(model_context).min(model_context)),
        vocabulary: number(open.spec.vocabulary),
        weights_sha256: trust::hex(&trust::sha256(identity.as_bytes())),
        kit_sha256,
        kit_bytes: Bytes(bytes.len() as u64),
    };
    Ok((kit, open, descriptor))
}

impl Upstream {
    /// Asks the server whether it serves the model and how it takes prompts, and watches it from then on.
    ///
    /// # Errors
    /// It does not answer, or not like this; in words.
    pub(crate) async fn start(
        name: ModelName,
        config: UpstreamConfig,
        kit: OpenKit,
        (slots, context): (u32, u32),
    ) -> Result<Self, String> {
        let client = reqwest::Client::builder()
            .connect_timeout(CONNECT_MAX)
            .read_timeout(SILENCE_MAX)
            .build()
            .map_err(|error| crate::load::chain(&error))?;
        health::look(&client, &config).await?;
        let prompting = ask::prompting(&client, &config, &kit).await?;
        let shared = Arc::new(Shared {
            name,
            config,
            client,
            kit,
            prompting,
            slots,
            context,
            room: Notify::new(),
            stopping: watch::Sender::new(false),
            state: Mutex::default(),
        });
        tokio::spawn(health::watch(Arc::downgrade(&shared), shared.stopping.subscribe()));
        Ok(Self { shared })
    }

    /// As an engine's.
    pub(crate) fn submit(&self, attempt: AttemptId, job: Job, sink: Box<dyn Sink>) -> Result<(), Refusal> {
        let shared = &self.shared;
        shared.check(&job)?;
        let cancel = Arc::new(Notify::new());
        {
            let mut state = shared.state.lock();
            if let Some(detail) = &state.down {
                return Err(Refusal::NotReady { detail: detail.clone() });
            }
            if *shared.stopping.borrow() {
                return Err(Refusal::NotReady { detail: "it is stopping".to_owned() });
            }
            let running = state.flights.len() as u32;
            if running >= shared.slots {
                return Err(Refusal::NoSlot { running, waiting: 0 });
            }
            if state.flights.contains_key(&attempt) {
                return Err(Refusal::Unreadable { detail: format!("{attempt} is here already") });
            }
            let tokens = (job.prompt.len() + job.generated.len()) as u64;
            state.flights.insert(attempt, InFlight { tokens, cancel: Arc::clone(&cancel) });
        }
        let Ok(handle) = Handle::try_current() else {
            shared.state.lock().flights.remove(&attempt);
            return Err(Refusal::NotReady { detail: "there is no runtime here".to_owned() });
        };
        handle.spawn(flight::fly(Arc::clone(shared), attempt, job, sink, cancel));
        Ok(())
    }

    /// As an engine's: the connection is dropped, which is how these servers are told.
    pub(crate) fn cancel(&self, attempt: AttemptId) {
        if let Some(flight) = self.shared.state.lock().flights.get(&attempt) {
            flight.cancel.notify_one();
        }
    }

    pub(crate) fn room_again(&self) {
        self.shared.room.notify_waiters();
    }

    pub(crate) fn load_now(&self) -> EngineReport {
        let shared = &self.shared;
        let state = shared.state.lock();
        let kv_tokens = u64::from(shared.slots) * u64::from(shared.context);
        let used: u64 = state.flights.values().map(|flight| flight.tokens).sum();
        EngineReport {
            slots: shared.slots,
            running: state.flights.len() as u32,
            context: Tokens(shared.context),
            kv_tokens,
            kv_tokens_free: kv_tokens.saturating_sub(used),
            prefill_tokens_per_s: state.prefill_tokens_per_s.unwrap_or(PREFILL_TOKENS_PER_S),
            decode_tokens_per_s: state.decode_tokens_per_s.unwrap_or(DECODE_TOKENS_PER_S),
            computed_tokens: state.computed_tokens,
            ..EngineReport::default()
        }
    }

    pub(crate) fn down(&self) -> Option<String> {
        self.shared.state.lock().down.clone()
    }

    /// For its owner.
    pub(crate) fn notice(&self) -> String {
        let Shared { config, prompting, .. } = &*self.shared;
        format!("served by {} as {:?}, which takes prompts as {prompting}", config.url, config.model)
    }

    pub(crate) fn stop(&self) {
        self.shared.stopping.send_replace(true);
    }
}

impl Shared {
    fn check(&self, job: &Job) -> Result<(), Refusal> {
        if job.ask.model != self.name {
            return Err(Refusal::WrongModel { asked: job.ask.model.clone(), serves: self.name.clone() });
        }
        if job.ask.embed {
            let gives = "text alone: the server behind this instance is asked for nothing else";
            return Err(Refusal::OtherKind { serves: self.name.clone(), gives });
        }
        let unreadable = |detail: &str| Err(Refusal::Unreadable { detail: detail.to_owned() });
        if job.prompt.is_empty() {
            return unreadable("the prompt is empty");
        }
        if job.prompt.iter().chain(&job.generated).any(|&token| token as usize >= self.kit.spec.vocabulary) {
            return unreadable("a token is beyond the model's vocabulary");
        }
        let tokens = (job.prompt.len() + job.generated.len()) as u64;
        if tokens >= u64::from(self.context) {
            return Err(Refusal::TooLong { tokens, context: self.context });
        }
        if let Some(constraint) = &job.ask.constraint
            && ask::form(constraint).is_none()
        {
            let detail = "the server behind this instance takes JSON objects and schemas only".to_owned();
            return Err(Refusal::BadConstraint { detail });
        }
        Ok(())
    }
}
