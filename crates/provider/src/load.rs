//! Loading models in a thread of its own, one after the other: each step is told as it happens.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use base::{Bytes, Tokens};
use engine::{Engine, LoadOptions, LoadedModel, ModelSource};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use wire::control::ModelDescriptor;

use crate::cadence::Cadence;
use crate::config::ModelConfig;
use crate::host::Host;
use crate::instance::{News, Step};
use crate::stock::{Hold, Stock};
use crate::upstream::{self, Upstream, UpstreamConfig};
use crate::weights;

/// A load that goes on while the provider leaves is waited for so long; then its thread is left to the process's
/// end.
const LOAD_END_MAX: Duration = Duration::from_secs(10);

/// How long to wait before another server is asked again.
const CONNECT_AGAIN: Duration = Duration::from_secs(2);

/// The thread that loads.
pub(crate) struct Loaders {
    thread: Option<JoinHandle<()>>,
    leaving: Arc<AtomicBool>,
    /// Files that stay on the disk as long as this provider is there.
    holds: Vec<Hold>,
}

impl Loaders {
    /// Begins to load. One after the other, so that each engine measures its speed and the machine's free memory
    /// undisturbed.
    pub(crate) fn start(
        models: &[ModelConfig],
        machine: &str,
        folder: &Path,
    ) -> (Self, mpsc::Receiver<Step>) {
        // Two steps a model at most: the thread never waits for its listener.
        let (sender, receiver) = mpsc::channel((2 * models.len()).max(1));
        let leaving = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&leaving);
        let holds = models.iter().filter_map(|model| match &model.source {
            ModelSource::Folder(path) => Stock::hold_at(path, &format!("provider {machine}")),
            ModelSource::Bundled => None,
        });
        let holds = holds.collect();
        let models = shared_out(models);
        let (runtime, folder) = (Handle::current(), folder.to_owned());
        let work = move || {
            for (index, model) in models.iter().enumerate() {
                if seen.load(Ordering::Relaxed) {
                    return;
                }
                let tell = |news| sender.blocking_send(Step { index, news });
                let loaded = match &model.upstream {
                    Some(upstream) => {
                        connect(model, upstream, &runtime, &seen, |news| drop(tell(news))).map(Loaded::Engine)
                    }
                    None => load(model, &folder, |news| drop(tell(news))),
                };
                match loaded {
                    Ok(Loaded::InGroups(detail)) => drop(tell(News::InGroups { detail })),
                    Ok(Loaded::Engine(engine)) => {
                        if let Err(mpsc::error::SendError(Step { news: News::Started { engine }, .. })) =
                            tell(News::Started { engine })
                        {
                            engine.stop();
                        }
                    }
                    Err(detail) => drop(tell(News::Failed { detail })),
                }
            }
        };
        let thread = std::thread::Builder::new().name("phalanx-load".into()).spawn(work);
        // A machine that cannot start one thread has reported nothing ready, and says so when the channel ends.
        (Self { thread: thread.ok(), leaving, holds }, receiver)
    }

    /// What is held for long is used, too.
    pub(crate) fn mark_used(&mut self) {
        self.holds.iter_mut().for_each(Hold::mark);
    }

    /// Ends the loading and stops `engines`, each thread joined.
    pub(crate) async fn end(self, engines: Vec<Host>) {
        self.leaving.store(true, Ordering::Relaxed);
        let ended = tokio::task::spawn_blocking(move || {
            for engine in engines {
                engine.stop();
            }
            if let Some(thread) = self.thread {
                // A panic there has been said by the panic hook.
                let _ = thread.join();
            }
        });
        if tokio::time::timeout(LOAD_END_MAX, ended).await.is_err() {
            tracing::warn!("an engine or a load did not end in time");
        }
    }
}

/// Where nobody said how many threads a model gets, several models share the cores: more threads than cores only
/// wait for each other.
fn shared_out(models: &[ModelConfig]) -> Vec<ModelConfig> {
    let each = (engine::machine::cores() / models.len().max(1)).max(1);
    let mut models = models.to_vec();
    if models.len() > 1 {
        for model in &mut models {
            model.engine.threads.get_or_insert(each);
        }
    }
    models
}

/// What came of a load.
enum Loaded {
    Engine(Host),
    /// The weights stay on the disk: why.
    InGroups(String),
}

/// Why a model is not computed by this machine alone, where it is not.
fn not_alone(model: &ModelConfig, weights: Bytes) -> Option<String> {
    if model.only_in_groups {
        return Some("this provider computes it only together with others (--only-in-groups)".to_owned());
    }
    // Refused rather than swapped: with others each holds a part. What other programs give back later is not counted on.
    let memory = engine::machine::memory().filter(|memory| memory.available < weights)?;
    Some(format!(
        "its weights take {weights} and {} of memory are free: this machine can hold a part of it, in a group with \
         others (POST /api/groups)",
        memory.available
    ))
}

fn load(model: &ModelConfig, folder: &Path, tell: impl Fn(News)) -> Result<Loaded, String> {
    let loaded = engine::load(&model.source, &LoadOptions::default()).map_err(|e| chain(&e))?;
    let kit: Arc<[u8]> = loaded.kit().to_bytes().into();
    let descriptor = describe(model, &loaded, &kit, folder);
    let context = descriptor.context.0;
    tell(News::Described { descriptor: Box::new(descriptor), kit });
    if let Some(pace) = model.stand_in {
        return Ok(Loaded::Engine(Host::Cadence(Cadence::start(pace, model.engine.batch_max, context))));
    }
    if let Some(detail) = not_alone(model, loaded.weight_bytes()) {
        return Ok(Loaded::InGroups(detail));
    }
    Engine::start(model.name.clone(), loaded, model.engine.clone())
        .map(|engine| Loaded::Engine(Host::Engine(engine)))
        .map_err(|e| chain(&e))
}

/// Waits until another server answers: it may be started after this provider.
fn connect(
    model: &ModelConfig,
    upstream: &UpstreamConfig,
    runtime: &Handle,
    leaving: &AtomicBool,
    tell: impl Fn(News),
) -> Result<Host, String> {
    let (kit, open, descriptor) = upstream::describe(&model.name, upstream, model.engine.context)?;
    let room = (model.engine.batch_max, descriptor.context.0);
    tell(News::Described { descriptor: Box::new(descriptor), kit: kit.to_bytes().into() });
    let mut open = Some(open);
    loop {
        let kit = match open.take() {
            Some(open) => open,
            None => kit.open().map_err(|e| chain(&e))?,
        };
        match runtime.block_on(Upstream::start(model.name.clone(), upstream.clone(), kit, room)) {
            Ok(upstream) => return Ok(Host::Upstream(upstream)),
            Err(detail) if leaving.load(Ordering::Relaxed) => return Err(detail),
            Err(detail) => {
                tracing::warn!(model = %model.name, detail, "the server does not serve this model yet");
                runtime.block_on(tokio::time::sleep(CONNECT_AGAIN));
            }
        }
    }
}

pub(crate) fn describe(
    model: &ModelConfig,
    loaded: &LoadedModel,
    kit: &[u8],
    folder: &Path,
) -> ModelDescriptor {
    let spec = loaded.spec();
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    ModelDescriptor {
        name: model.name.clone(),
        family: spec.family.to_owned(),
        parameters: loaded.parameters(),
        weight_bytes: loaded.weight_bytes(),
        context: Tokens(number(spec.context)),
        vocabulary: number(spec.vocabulary),
        weights_sha256: weights::sha256(loaded, folder),
        kit_sha256: trust::hex(&trust::sha256(kit)),
        kit_bytes: Bytes(kit.len() as u64),
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text.chars().take(1000).collect()
}
