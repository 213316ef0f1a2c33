//! The model on one of this machine's processors: weights, KV cache, scratch and threads, all owned by the engine's thread.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base::{Bytes, Rng};
use batch::Limits;
use model::checkpoint::{CheckpointError, TensorSource, TensorView};
use model::shard::{Part, ShardedSource};
use model::spec::{ModelSpec, TensorRole};
use nn::backend::Backend;
#[cfg(feature = "candle")]
use nn::candle::Candle;
use nn::{CacheError, Cpu, Decoder, KvCache, LogitRows, Scratch, Span, Team, Weights};

use crate::capacity::{self, Capacity};
use crate::compute::{Compute, Work};
use crate::config::{EngineConfig, WeightFormat};
use crate::device::Device;
use crate::engine::{Ready, StartError};
use crate::load::{LoadedModel, Tensors};
use crate::machine;
use crate::speed::{Speed, Step};

/// Prompts of the self-test, shortest first: the next one runs only where the last was quick enough.
const TEST_PROMPTS: [usize; 2] = [32, 128];
/// How long a part of the self-test may take before it is cut short. The figures are priors; observation replaces them.
const TEST_SPAN: Duration = Duration::from_millis(20);
/// Decode steps of the self-test at most: the first ones wake threads and fill caches, and must not be what counts.
const TEST_DECODES: usize = 64;
/// Room for the self-test where nothing else is computed.
const GAUGED_TOKENS: u32 = 256;

/// Why a model cannot be computed here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The weights.
    #[error("the weights cannot be used")]
    Checkpoint(#[from] CheckpointError),
    /// The weights, or memory for them.
    #[error("the weights in {place} cannot be loaded")]
    Load {
        /// The model and, where one of its files is to blame, that.
        place: String,
        /// Why: names the tensor.
        #[source]
        source: Box<nn::LoadError>,
    },
    /// Somebody wrote to the files while they were read.
    #[error("{place} was written to while it was loaded: replace model files by renaming, and load it again")]
    Changed {
        /// The model and its file.
        place: String,
    },
    /// An instruction set that there is not.
    #[error("instruction set {name:?}: this machine has {available}")]
    InstructionSet {
        /// What was asked for.
        name: String,
        /// What there is.
        available: String,
    },
    /// The KV cache.
    #[error("the kv cache cannot be had")]
    Cache(#[from] CacheError),
    /// A device that this program was built without.
    #[error(
        "device {device}: this program was built without it; build it with `cargo build --release --features {feature}`, \
         or leave --device out"
    )]
    NotBuilt {
        /// What was asked for.
        device: Device,
        /// What it needs.
        feature: &'static str,
    },
    /// A device that is not there, or that does not compute this.
    #[error("device {device} cannot be used: {detail}")]
    Device {
        /// What was asked for.
        device: Device,
        /// Why.
        detail: String,
    },
}

/// A decoder and all that it computes with.
pub(crate) struct OnBackend<B: Backend<Workers = Team>> {
    backend: B,
    team: Team,
    decoder: Decoder<B>,
    scratch: Scratch<B>,
    kv: KvCache<B>,
    step_tokens_max: usize,
}

/// Whether this program can compute on the device that is asked for.
pub(crate) fn built(device: Device) -> Result<(), BackendError> {
    match device.missing_feature() {
        Some(feature) => Err(BackendError::NotBuilt { device, feature }),
        None => Ok(()),
    }
}

/// Opens the model on the CPU.
pub(crate) fn open_cpu(
    model: &LoadedModel,
    config: &EngineConfig,
) -> Result<Ready<OnBackend<Cpu>>, StartError> {
    open(cpu(config)?, model, config)
}

/// Opens the model on a device of candle's.
#[cfg(feature = "candle")]
pub(crate) fn open_candle(
    model: &LoadedModel,
    config: &EngineConfig,
) -> Result<Ready<OnBackend<Candle>>, StartError> {
    let device = config.device;
    let opened = match device {
        Device::Metal(ordinal) => Candle::metal(ordinal.into()),
        Device::Cuda(ordinal) => Candle::cuda(ordinal.into()),
        Device::Cpu | Device::CandleCpu => Ok(Candle::cpu()),
    };
    let candle = opened.map_err(|error| BackendError::Device { device, detail: in_words(error) })?;
    open(candle, model, config)
}

/// Loads the weights, takes the memory, and measures the speed.
fn open<B: Backend<Workers = Team> + Clone>(
    backend: B,
    model: &LoadedModel,
    config: &EngineConfig,
) -> Result<Ready<OnBackend<B>>, StartError> {
    let spec = model.spec();
    let team = team(config);
    let decoder = decoder_on(backend.clone(), model, config, None, &team)?;
    let dtype = config.kv.dtype();
    let context = u32::try_from(spec.context).unwrap_or(u32::MAX);
    let per_token = KvCache::bytes_per_token(spec, dtype);
    let Capacity { pages, context, notice } =
        capacity::size(config, context, per_token, left_by_states(spec, config)).map_err(StartError::from)?;
    let limits = limits(config, pages, context);
    limits.check()?;
    let kv = KvCache::on(&backend, spec, pages as usize, config.page_tokens as usize, dtype)
        .map_err(BackendError::from)?;
    let step_tokens_max = config.step_tokens_max as usize;
    let scratch = Scratch::for_backend();
    let mut compute = OnBackend { backend, team, decoder, scratch, kv, step_tokens_max };
    let speed = self_test(&mut compute, &limits, spec.vocabulary);
    let speculate = config.speculate as usize;
    Ok(Ready { compute, limits, speed, notice, speculate })
}

/// How fast a part with an embedding and a head is, on the CPU: the best of the rounds that begin within `span`.
pub(crate) fn gauge(
    model: &LoadedModel,
    config: &EngineConfig,
    part: &Part,
    span: Duration,
) -> Result<Speed, StartError> {
    let (backend, team) = (cpu(config)?, team(config));
    let decoder = decoder_on(backend, model, config, Some(part), &team)?;
    let page_tokens = config.page_tokens.max(1);
    let longest = u32::try_from(part.spec.context).unwrap_or(u32::MAX);
    let context = GAUGED_TOKENS.min(longest).max(1);
    let pages = context.div_ceil(page_tokens);
    let kv = KvCache::on(&backend, &part.spec, pages as usize, page_tokens as usize, config.kv.dtype())
        .map_err(BackendError::from)?;
    let limits = limits(config, pages, context);
    let step_tokens_max = config.step_tokens_max as usize;
    let mut compute =
        OnBackend { backend, team, decoder, scratch: Scratch::for_backend(), kv, step_tokens_max };
    let started = Instant::now();
    let mut best = self_test(&mut compute, &limits, part.spec.vocabulary);
    while started.elapsed() < span {
        best = best.better(self_test(&mut compute, &limits, part.spec.vocabulary));
    }
    Ok(best)
}

/// Memory, without what the states of a full batch take: they come beside the cache.
fn left_by_states(spec: &ModelSpec, config: &EngineConfig) -> Option<machine::Memory> {
    let states = KvCache::bytes_per_sequence(spec).0.saturating_mul(u64::from(config.batch_max));
    machine::memory().map(|memory| machine::Memory {
        available: Bytes(memory.available.0.saturating_sub(states)),
        ..memory
    })
}

/// The threads that compute.
pub(crate) fn team(config: &EngineConfig) -> Team {
    Team::new(config.threads.unwrap_or_else(machine::cores).max(1))
}

/// The bounds of a batch over a cache of so many pages.
pub(crate) fn limits(config: &EngineConfig, pages: u32, context: u32) -> Limits {
    Limits {
        pages,
        page_tokens: config.page_tokens,
        context,
        running_max: config.batch_max,
        waiting_max: config.waiting_max,
        step_tokens_max: config.step_tokens_max,
        pause_us_max: config.pause_us_max,
    }
}

/// A model's tensors, in memory only while they are repacked: else loading would need twice the weights.
struct Passing<'a> {
    model: &'a LoadedModel,
    checkpoint: &'a Tensors<'a>,
    /// The one whose tensors were asked for last.
    layer: AtomicUsize,
    /// Bytes of tensors that were asked for.
    read: AtomicU64,
}

impl TensorSource for Passing<'_> {
    fn tensor(&self, role: TensorRole) -> Result<TensorView<'_>, CheckpointError> {
        let layer = match role {
            TensorRole::Layer(layer, _) => layer,
            _ => usize::MAX,
        };
        if self.layer.swap(layer, Ordering::Relaxed) != layer {
            self.model.let_go();
        }
        let view = self.checkpoint.tensor(role)?;
        let apart = view.parts.as_ref().map_or(0, |parts| parts.scales.len() + parts.biases.len());
        let bytes = (view.bytes.len() + apart) as u64;
        self.model.has_read(self.read.fetch_add(bytes, Ordering::Relaxed) + bytes)?;
        Ok(view)
    }
}

/// The instruction set that was asked for, if one was.
fn isa(config: &EngineConfig) -> Result<Option<nn::Isa>, BackendError> {
    let Some(name) = &config.instruction_set else { return Ok(None) };
    let none = || BackendError::InstructionSet {
        name: name.clone(),
        available: nn::Isa::available().iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", "),
    };
    nn::Isa::named(name).map(Some).ok_or_else(none)
}

/// This machine's CPU, used as the settings say.
fn cpu(config: &EngineConfig) -> Result<Cpu, BackendError> {
    let isa = isa(config)?.unwrap_or_else(nn::Isa::detect);
    Ok(Cpu::new(isa).with_activations(config.activations.activations()))
}

/// Loads a part of a model for the CPU.
pub(crate) fn decoder(
    model: &LoadedModel,
    config: &EngineConfig,
    part: &Part,
    team: &Team,
) -> Result<Decoder, BackendError> {
    if config.device != Device::Cpu {
        let detail = "groups compute on CPUs only; leave --device out".to_owned();
        return Err(BackendError::Device { device: config.device, detail });
    }
    decoder_on(cpu(config)?, model, config, Some(part), team)
}

/// Loads all of a model, or a part of it.
fn decoder_on<B: Backend<Workers = Team>>(
    backend: B,
    model: &LoadedModel,
    config: &EngineConfig,
    part: Option<&Part>,
    team: &Team,
) -> Result<Decoder<B>, BackendError> {
    let weights = match config.weights {
        WeightFormat::Auto => Weights::Auto,
        WeightFormat::F32 => Weights::F32,
        WeightFormat::Bf16 => Weights::Bf16,
    };
    let activations = config.activations.activations();
    let options = nn::LoadOptions { weights, activations, isa: isa(config)? };
    let (spec, checkpoint) = (model.spec(), model.checkpoint()?);
    let passing = Passing {
        model,
        checkpoint: &checkpoint,
        layer: AtomicUsize::new(usize::MAX),
        read: AtomicU64::new(0),
    };
    let decoder = match part {
        None => Decoder::load_with(backend, &Part::whole(spec), &passing, &options, team),
        Some(part) => {
            let source = ShardedSource::new(&passing, spec, part)?;
            Decoder::load_with(backend, part, &source, &options, team)
        }
    };
    model.let_go();
    if let Some(file) = model.changed_file() {
        return Err(BackendError::Changed { place: format!("{}, {file}", model.source()) });
    }
    decoder.map_err(|source| {
        let place = match &source {
            nn::LoadError::NotFinite { name } => format!("{}, {},", model.source(), checkpoint.file_of(name)),
            _ => model.source().to_string(),
        };
        BackendError::Load { place, source: Box::new(source) }
    })
}

impl<B: Backend<Workers = Team>> Compute for OnBackend<B> {
    fn is_recurrent(&self) -> bool {
        self.decoder.spec().is_recurrent()
    }

    fn takes_guesses(&self) -> bool {
        // A state cannot be stepped back, as pages can be written over.
        !self.is_recurrent()
    }

    fn wipe(&mut self, pages: &[u32]) {
        for &page in pages {
            self.kv.wipe(page);
        }
    }

    fn step(&mut self, work: &[Work<'_>]) -> Result<Vec<&[f32]>, String> {
        let spans: Vec<Span<'_>> = work
            .iter()
            .map(|work| Span {
                tokens: work.tokens,
                position: work.position,
                pages: work.pages,
                logits: work.logits,
            })
            .collect();
        let logits = self.decoder.forward(&self.team, &mut self.scratch, &spans, &mut self.kv);
        Ok(logits.map_err(in_words)?.rows().collect())
    }

    fn logits(&mut self, tokens: &[u32], all: bool) -> Result<Vec<Vec<f32>>, String> {
        let page_tokens = self.kv.page_tokens();
        let pages = tokens.len().div_ceil(page_tokens);
        let mut kv = KvCache::on(&self.backend, self.decoder.spec(), pages, page_tokens, self.kv.dtype())
            .map_err(in_words)?;
        let pages: Vec<u32> = (0..pages as u32).collect();
        let mut rows = Vec::new();
        for (chunk, at) in tokens.chunks(self.step_tokens_max).zip((0..).step_by(self.step_tokens_max)) {
            let last = at + chunk.len() == tokens.len();
            let logits = match (all, last) {
                (true, _) => LogitRows::All,
                (false, true) => LogitRows::Last,
                (false, false) => LogitRows::None,
            };
            let span = Span { tokens: chunk, position: at, pages: &pages, logits };
            let logits =
                self.decoder.forward(&self.team, &mut self.scratch, &[span], &mut kv).map_err(in_words)?;
            rows.extend(logits.rows().map(<[f32]>::to_vec));
        }
        Ok(rows)
    }
}

/// An error and its causes, for whoever gets only a text.
pub(crate) fn in_words(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Prefills and decodes for some tens of milliseconds, on random tokens in pages that nobody has yet.
pub(crate) fn self_test(compute: &mut impl Compute, limits: &Limits, vocabulary: usize) -> Speed {
    let mut speed = Speed::default();
    let mut rng = Rng::new(limits.pages.into());
    let mut token = || rng.below(vocabulary as u64) as u32;
    let room = limits.context.min(limits.step_tokens_max) as usize;
    let pages: Vec<u32> = (0..limits.pages_for(limits.context as usize) as u32).collect();
    let mut filled = 0;
    for length in TEST_PROMPTS.map(|length| length.min(room)) {
        let tokens: Vec<u32> = (0..length).map(|_| token()).collect();
        // Once more where it is quick, when warming up (memory is taken from the machine as it is first written) shows.
        let mut took = timed_step(compute, &tokens, 0, &pages);
        if took <= TEST_SPAN {
            took = took.min(timed_step(compute, &tokens, 0, &pages));
        }
        speed = Speed::default();
        speed.observe(Step::prefill(tokens.len()), took.into());
        filled = length;
        if took > TEST_SPAN / 4 {
            break;
        }
    }
    let started = Instant::now();
    for position in (filled..limits.context as usize).take(TEST_DECODES) {
        let took = timed_step(compute, &[token()], position, &pages);
        speed.observe(Step::decode(1), took.into());
        if started.elapsed() > TEST_SPAN {
            break;
        }
    }
    compute.wipe(&pages[..limits.pages_for((filled + TEST_DECODES).min(limits.context as usize))]);
    speed
}

fn timed_step(compute: &mut impl Compute, tokens: &[u32], position: usize, pages: &[u32]) -> Duration {
    let started = Instant::now();
    // A failure here shows again with the first request, where somebody can be told.
    let _ = compute.step(&[Work { tokens, position, pages, logits: LogitRows::Last }]);
    started.elapsed()
}
