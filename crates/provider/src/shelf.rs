//! The models whose files this machine has: found in named folders and the Hugging Face cache, by their headers alone, and
//! looked for again at intervals.

mod gauging;
pub(crate) mod place;
mod scan;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use base::{Bytes, ModelName};
use engine::{KvFormat, LoadedModel, ModelSource};
use wire::control::{MODEL_CONFIG_BYTES_MAX, ModelOnDisk};

use crate::load::chain;
use crate::stock::Stock;
pub(crate) use gauging::Gauging;
use scan::{Candidate, Fingerprint};

/// A model that could be held.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Shelved {
    pub(crate) source: ModelSource,
    /// What the coordinator is told of it; what was measured when it ran here is added later.
    pub(crate) facts: ModelOnDisk,
    /// What a token takes in the cache.
    pub(crate) kv_bytes_per_token: Bytes,
}

/// What one look found.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Shelf {
    /// By name, each once.
    pub(crate) models: Vec<Shelved>,
    /// What looked like a model and is none, by where it is, and why.
    pub(crate) broken: Vec<(String, String)>,
    /// Bytes that models taken from other machines may fill, so far as one look needs to know.
    pub(crate) fetch_room: Bytes,
}

impl Shelf {
    pub(crate) fn find(&self, name: &ModelName) -> Option<&Shelved> {
        self.models.iter().find(|model| model.facts.name == *name)
    }
}

/// Where to look.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    /// Models that were named one by one.
    pub(crate) given: Vec<(ModelName, ModelSource)>,
    /// Folders of models, searched in this order; of two with one name the first counts.
    pub(crate) folders: Vec<PathBuf>,
    /// How keys and values are held.
    pub(crate) kv: KvFormat,
    /// The folder of models that those of other machines are put into.
    pub(crate) fetch_into: Option<(Stock, Option<Bytes>)>,
}

/// Looks, and remembers what has not changed since.
pub(crate) struct Looker {
    places: Places,
    seen: HashMap<PathBuf, (Fingerprint, Result<Shelved, String>)>,
}

impl Looker {
    pub(crate) fn new(places: Places) -> Self {
        Self { places, seen: HashMap::new() }
    }

    /// Looks now. Files that have not changed since the last look are not opened.
    pub(crate) fn look(&mut self) -> Shelf {
        let mut shelf = Shelf::default();
        let given = self.places.given.iter().map(|(name, source)| Candidate::given(name, source));
        let mut candidates: Vec<Candidate> = given.collect();
        for folder in &self.places.folders {
            scan::candidates(folder, &mut candidates);
        }
        let mut seen = HashMap::with_capacity(candidates.len());
        for candidate in candidates {
            let name = candidate.name.as_str();
            if shelf.models.iter().any(|model| model.facts.name == candidate.name) {
                continue;
            }
            let known = self.seen.remove(&candidate.path);
            let fingerprint = scan::fingerprint(&candidate);
            let looked = match known {
                Some((before, looked)) if before == fingerprint && !fingerprint.is_empty() => looked,
                _ => measure(&candidate, self.places.kv),
            };
            match &looked {
                Ok(model) => {
                    let facts = ModelOnDisk { name: candidate.name.clone(), ..model.facts.clone() };
                    shelf.models.push(Shelved { facts, ..model.clone() });
                }
                Err(why) => {
                    shelf.broken.push((format!("{name} ({})", candidate.path.display()), why.clone()))
                }
            }
            seen.insert(candidate.path, (fingerprint, looked));
        }
        self.seen = seen;
        shelf.fetch_room = self
            .places
            .fetch_into
            .as_ref()
            .map_or(Bytes(0), |(stock, budget)| rounded(stock.fetch_room(*budget)));
        shelf.models.sort_by(|a, b| a.facts.name.as_str().cmp(b.facts.name.as_str()));
        shelf
    }
}

/// Rounded down to a sixteenth: a disk on which something is written is no news every time.
fn rounded(room: Bytes) -> Bytes {
    let dropped = room.0.checked_ilog2().unwrap_or(0).saturating_sub(4);
    Bytes((room.0 >> dropped) << dropped)
}

fn measure(candidate: &Candidate, kv: KvFormat) -> Result<Shelved, String> {
    // A file that is damaged in a way that nobody foresaw is one model less, not a provider less.
    let looked = std::panic::catch_unwind(|| engine::look(&candidate.source).map_err(|e| chain(&e)));
    let loaded =
        looked.unwrap_or_else(|_| Err("looking at it broke down; see the provider's log".to_owned()))?;
    let is_files = matches!(candidate.source, ModelSource::Folder(_));
    let lent = is_files && wire::link::is_placeable(candidate.name.as_str());
    let facts = ModelOnDisk { lent, ..facts(&candidate.name, &loaded)? };
    let kv_bytes_per_token = loaded.kv_bytes_per_token(kv);
    Ok(Shelved { source: candidate.source.clone(), facts, kv_bytes_per_token })
}

fn facts(name: &ModelName, loaded: &LoadedModel) -> Result<ModelOnDisk, String> {
    let config = String::from_utf8_lossy(&loaded.kit().config).into_owned();
    if config.len() > MODEL_CONFIG_BYTES_MAX {
        return Err(format!(
            "its configuration has {} bytes; {MODEL_CONFIG_BYTES_MAX} can be told",
            config.len()
        ));
    }
    let (memory_bytes, parameters) = (loaded.memory_bytes(), loaded.parameters());
    let bits = memory_bytes.0 as f64 * 8.0 / parameters.max(1) as f64;
    Ok(ModelOnDisk {
        name: name.clone(),
        memory_bytes,
        disk_bytes: loaded.weight_bytes(),
        parameters,
        // Quantised formats share scales among 32 columns at least.
        grain: if bits >= 15.5 { 1 } else { 32 },
        config,
        decode_tokens_per_ks: 0,
        prefill_tokens_per_ks: 0,
        lent: false,
    })
}

/// The thread that looks.
pub(crate) struct Watcher {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Looks at once, and then `every` so often; `tell` is called with each look that found something else, and ends the
    /// watch by saying no.
    pub(crate) fn start(
        places: Places,
        every: Duration,
        mut gauging: Gauging,
        tell: impl Fn(Shelf) -> bool + Send + 'static,
    ) -> std::io::Result<Self> {
        let (stop, stopped) = channel();
        let watch = move || {
            let mut looker = Looker::new(places);
            let mut last: Option<Shelf> = None;
            loop {
                let mut shelf = looker.look();
                gauging.fill(&looker.places, &mut shelf);
                if last.as_ref() != Some(&shelf) {
                    last = Some(shelf.clone());
                    if !tell(shelf) {
                        return;
                    }
                }
                match stopped.recv_timeout(every) {
                    // Asked for, or time.
                    Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        };
        let thread = std::thread::Builder::new().name("phalanx-shelf".into()).spawn(watch)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }

    /// Looks again now.
    pub(crate) fn look(&self) {
        if let Some(stop) = &self.stop {
            // One that has ended looks no more.
            let _ = stop.send(());
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop = None;
        // It looks at headers only, and is soon done; nobody waits for a slow disk. Its thread ends by itself.
        drop(self.thread.take());
    }
}

/// Where the Hugging Face libraries keep what they download, by the variables that they go by.
pub fn hugging_face_cache(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let set = |name: &str| variable(name).filter(|path| !path.as_os_str().is_empty());
    let home = || set("HOME").map(|home| home.join(".cache"));
    let of_home = |home: &Path| home.join("hub");
    set("HF_HUB_CACHE")
        .or_else(|| set("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| set("HF_HOME").map(|home| of_home(&home)))
        .or_else(|| set("XDG_CACHE_HOME").or_else(home).map(|cache| cache.join("huggingface").join("hub")))
}

#[cfg(test)]
#[path = "shelf/tests.rs"]
mod tests;
