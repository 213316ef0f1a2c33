//! What a coordinator has this machine hold: loads and unloads in threads, as the desk decides.

pub(crate) mod desk;
mod work;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use base::{Bytes, Epoch, InstanceId, ModelName};
use engine::{EngineConfig, ModelSource};
use tokio::sync::mpsc;
use trust::MachineKeys;
use wire::control::{
    AssignGroup, Assignment, FromCoordinator, FromProvider, GroupAddress, Inventory, LABELS_MAX, Label,
    MODELS_ON_DISK_MAX, ModelDescriptor, ModelOnDisk,
};

use crate::config::{ManagedConfig, ModelConfig};
use crate::fetch::{Ended, Fetches, Progress};
use crate::host::Host;
use crate::lend::Lending;
use crate::measured::{Measured, Speeds};
use crate::shelf::{Gauging, Places, Shelf, Watcher};
use crate::stock::{Hold, Stock};
use desk::{Desk, Life};

/// News that waits for the provider's task. Progress is dropped where it is full; everything else waits.
const NEWS_MAX: usize = 64;
/// Ranks of groups that wait until what was held here is gone.
const WAITING_GROUPS_MAX: usize = 16;
/// A load or an unload that goes on while the provider leaves is waited for so long.
const END_MAX: Duration = Duration::from_secs(10);

/// What threads say.
pub(crate) enum AssignNews {
    /// What is on the disk, where that changed.
    Shelf(Shelf),
    /// The files are whole and known; the weights are not read yet.
    Described { life: Life, descriptor: Box<ModelDescriptor>, kit: Arc<[u8]> },
    /// So much of the weights is read, in hundredths.
    Progress { life: Life, percent: u8 },
    /// It takes requests.
    Loaded { life: Life, host: Host, took: Duration },
    /// It does not, and its memory is free.
    LoadEnded { life: Life, failed: String },
    /// So much of a model that other machines have is here.
    Fetching { model: ModelName, progress: Progress },
    /// It is not fetched any more.
    FetchEnded { model: ModelName, how: Ended },
    /// Its memory is free; what this process held before and after, where the system tells.
    Unloaded { life: Life, resident: Option<(Bytes, Bytes)> },
}

/// A load that goes on.
struct Loading {
    cancelled: Arc<AtomicBool>,
    assignment: Assignment,
}

/// Everything about assignments on this machine.
pub(crate) struct Managed {
    config: ManagedConfig,
    /// The provider's data folder.
    folder: PathBuf,
    pub(crate) desk: Desk,
    pub(crate) shelf: Shelf,
    /// Whether it was looked what is on the disk: before that, nothing is said of it.
    pub(crate) looked: bool,
    pub(crate) measured: Measured,
    loading: HashMap<Life, Loading>,
    threads: Vec<JoinHandle<()>>,
    news: mpsc::Sender<AssignNews>,
    /// Ranks of groups that begin once this machine's memory is free.
    waiting: VecDeque<AssignGroup>,
    limit: Bytes,
    /// What was said of broken models: each is told once.
    told: Vec<(String, String)>,
    /// Whether anything is held: nobody is held up by measurements then.
    busy: Arc<AtomicBool>,
    /// Who says so of models that stay on the disk.
    held_by: String,
    /// Files that stay on the disk, by model.
    holds: BTreeMap<String, Hold>,
    watcher: Option<Watcher>,
    pub(crate) fetches: Fetches,
    pub(crate) lending: Arc<Lending>,
}

impl Managed {
    /// Looks for models, and measures the machine, which is called `name`, where that has not been done. `available` is what models may take where
    /// nobody set a limit.
    pub(crate) fn start(
        config: ManagedConfig,
        (given, name): (&[ModelConfig], &str),
        folder: PathBuf,
        hardware: &wire::control::Hardware,
        keys: Arc<MachineKeys>,
    ) -> (Self, mpsc::Receiver<AssignNews>) {
        let (news, heard) = mpsc::channel(NEWS_MAX);
        let threads = config.engine.threads.unwrap_or_else(engine::machine::cores).max(1);
        let beside = config.measured_beside.as_deref();
        let measured = Measured::open(&folder, beside, &hardware.cpu, threads);
        let limit = config.memory_limit.unwrap_or(hardware.memory_available);
        let own = given.iter().filter(|model| model.upstream.is_none());
        let places = Places {
            given: own.map(|model| (model.name.clone(), model.source.clone())).collect(),
            folders: config.folders.clone(),
            kv: config.engine.kv,
            fetch_into: config.fetch_into.clone().map(|into| (Stock::new(into), config.models_budget)),
        };
        let busy = Arc::new(AtomicBool::new(false));
        let gauging = Gauging {
            engine: config.engine.clone(),
            busy: Arc::clone(&busy),
            beside: config.measured_beside.clone(),
            known: measured.models(),
            found: HashMap::new(),
            rounds: 0,
        };
        let tell = news.clone();
        let watcher = Watcher::start(places, config.look_every, gauging, move |shelf| {
            tell.blocking_send(AssignNews::Shelf(shelf)).is_ok()
        });
        let watcher = watcher.map_err(|error| tracing::error!(%error, "no thread to look for models")).ok();
        let into = config.fetch_into.clone();
        let fetches = Fetches::new(keys, (into, config.models_budget), folder.clone(), news.clone());
        let lending = Arc::new(Lending::new(folder.clone(), config.lend_rate.map(|rate| rate.0)));
        let managed = Self {
            config,
            folder,
            desk: Desk::new(limit),
            shelf: Shelf::default(),
            looked: false,
            measured,
            loading: HashMap::new(),
            threads: Vec::new(),
            news,
            waiting: VecDeque::new(),
            limit,
            told: Vec::new(),
            busy,
            held_by: format!("provider {name}"),
            holds: BTreeMap::new(),
            watcher,
            fetches,
            lending,
        };
        (managed, heard)
    }

    /// What an assignment takes here; or why this machine cannot have the model.
    pub(crate) fn needs(&self, assignment: &Assignment) -> Result<Bytes, String> {
        let Some(model) = self.shelf.find(&assignment.model) else {
            let known = self.shelf.models.len();
            return Err(format!(
                "no model {:?} is on this machine's disk, among the {known} that are: fetch it with `phalanx models \
                 pull`, or name its folder with --models-dir",
                clip(assignment.model.as_str())
            ));
        };
        let cache = cache_bytes(&self.config.engine, assignment, model.kv_bytes_per_token);
        Ok(Bytes(model.facts.memory_bytes.0.saturating_add(cache.map_or(0, |bytes| bytes.0))))
    }

    /// Models for ranks of groups.
    pub(crate) fn models(&self, given: &[ModelConfig]) -> Vec<ModelConfig> {
        let of = |model: &crate::shelf::Shelved| {
            let mut config = ModelConfig::new(model.facts.name.clone(), model.source.clone());
            config.engine = self.config.engine.clone();
            config
        };
        given.iter().cloned().chain(self.shelf.models.iter().map(of)).collect()
    }

    /// Takes in what is on the disk; what is newly broken there.
    pub(crate) fn shelve(&mut self, shelf: Shelf) -> Vec<(String, String)> {
        let new: Vec<_> = shelf.broken.iter().filter(|broken| !self.told.contains(broken)).cloned().collect();
        self.told.clone_from(&shelf.broken);
        for facts in shelf.models.iter().map(|model| &model.facts) {
            let (decode_per_ks, prefill_per_ks) = (facts.decode_tokens_per_ks, facts.prefill_tokens_per_ks);
            if decode_per_ks > 0 && self.measured.of(facts.name.as_str()) == Speeds::default() {
                self.measured.note(facts.name.as_str(), Speeds { decode_per_ks, prefill_per_ks });
            }
        }
        self.lending.shelved(shelf.models.iter().map(|model| (model.facts.name.as_str(), &model.source)));
        (self.shelf, self.looked) = (shelf, true);
        new
    }

    /// What the coordinator is told that this machine could hold, in `bytes_max` as a message, and where others try it.
    pub(crate) fn inventory(&self, bytes_max: usize, probe_addresses: Vec<GroupAddress>) -> FromProvider {
        let labels = self.config.labels.iter().take(LABELS_MAX);
        let models = self.shelf.models.iter().take(MODELS_ON_DISK_MAX).map(|model| {
            let Speeds { decode_per_ks, prefill_per_ks } = self.measured.of(model.facts.name.as_str());
            let (decode_tokens_per_ks, prefill_tokens_per_ks) = (decode_per_ks, prefill_per_ks);
            ModelOnDisk { decode_tokens_per_ks, prefill_tokens_per_ks, ..model.facts.clone() }
        });
        let mut inventory = Inventory {
            labels: labels.map(|(key, value)| Label { key: key.clone(), value: value.clone() }).collect(),
            devices: vec![self.measured.device(self.limit)],
            disk_bytes_per_s: 0,
            download_bytes_per_s: 0,
            models: models.collect(),
            models_left_out: 0,
            probe_addresses,
            fetch_room: self.shelf.fetch_room,
        };
        loop {
            let left_out = self.shelf.models.len() - inventory.models.len();
            inventory.models_left_out = u32::try_from(left_out).unwrap_or(u32::MAX);
            let message = FromProvider::Inventory(inventory.clone());
            if message.encode().len() <= bytes_max || inventory.models.is_empty() {
                return message;
            }
            // A quarter at a time: few rounds, and little is left out that would have had room.
            let keep = inventory.models.len() * 3 / 4;
            inventory.models.truncate(keep);
        }
    }

    /// Looks for models now: one has come.
    pub(crate) fn look_again(&self) {
        if let Some(watcher) = &self.watcher {
            watcher.look();
        }
    }

    /// What the desk decided is what measurements must not hold up, and what stays on the disk.
    pub(crate) fn note_held(&mut self) {
        let is_busy = !self.desk.is_empty() || !self.fetches.is_empty();
        self.busy.store(is_busy, Ordering::Relaxed);
        let waiting = self.waiting.iter().map(|assign| assign.model.as_str());
        let needed: BTreeSet<&str> = self.desk.models().into_iter().chain(waiting).collect();
        self.holds.retain(|model, _| needed.contains(model.as_str()));
        for model in needed {
            if self.holds.contains_key(model) {
                continue;
            }
            let shelved = self.shelf.models.iter().find(|shelved| shelved.facts.name.as_str() == model);
            if let Some(ModelSource::Folder(path)) = shelved.map(|shelved| &shelved.source)
                && let Some(hold) = Stock::hold_at(path, &self.held_by)
            {
                self.holds.insert(model.to_owned(), hold);
            }
        }
    }

    /// What is held for long is used, too.
    pub(crate) fn mark_used(&mut self) {
        self.holds.values_mut().for_each(Hold::mark);
    }

    /// Begins to load, once the threads `before` are done.
    pub(crate) fn load(&mut self, life: Life, assignment: Assignment, before: Vec<JoinHandle<()>>) {
        self.threads.retain(|thread| !thread.is_finished());
        let Some(model) = self.shelf.find(&assignment.model) else {
            let failed = "its files were there a moment ago, and are not now".to_owned();
            return self.ended_at_once(life, failed);
        };
        let mut config = ModelConfig::new(assignment.model.clone(), model.source.clone());
        config.engine = sized(&self.config.engine, &assignment, model.kv_bytes_per_token);
        let cancelled = Arc::new(AtomicBool::new(false));
        let needs = self.needs(&assignment).unwrap_or_default();
        let work = work::Load {
            life,
            model: config,
            folder: self.folder.clone(),
            needs,
            before,
            cancelled: Arc::clone(&cancelled),
            news: self.news.clone(),
        };
        self.loading.insert(life, Loading { cancelled, assignment });
        let spawned = std::thread::Builder::new().name("phalanx-assign".into()).spawn(move || work.run());
        match spawned {
            Ok(thread) => self.threads.push(thread),
            Err(error) => self.ended_at_once(life, format!("no thread to load it: {error}")),
        }
    }

    fn ended_at_once(&self, life: Life, failed: String) {
        let news = self.news.clone();
        // Nobody waits for a place among news on the task that reads them.
        tokio::spawn(async move { news.send(AssignNews::LoadEnded { life, failed }).await });
    }

    /// Ends a load.
    pub(crate) fn cancel(&self, life: Life) {
        if let Some(loading) = self.loading.get(&life) {
            loading.cancelled.store(true, Ordering::Relaxed);
        }
    }

    /// The assignment that a load is for.
    pub(crate) fn assignment(&self, life: Life) -> Option<&Assignment> {
        self.loading.get(&life).map(|loading| &loading.assignment)
    }

    /// It goes on under another epoch.
    pub(crate) fn restamp(&mut self, life: Life, epoch: Epoch) {
        if let Some(loading) = self.loading.get_mut(&life) {
            loading.assignment.epoch = epoch;
        }
    }

    /// A load is over, one way or the other.
    pub(crate) fn load_is_over(&mut self, life: Life) -> Option<Assignment> {
        self.loading.remove(&life).map(|loading| loading.assignment)
    }

    /// Ends an engine in a thread of its own, and says when its memory is free; at once where there is none.
    pub(crate) fn unload(&mut self, life: Life, host: Option<Host>) {
        self.threads.retain(|thread| !thread.is_finished());
        let news = self.news.clone();
        let unload = move || {
            let before = work::resident();
            if let Some(host) = host {
                host.stop();
            }
            let resident = before.zip(work::resident());
            // A provider that is gone needs no news.
            let _ = news.blocking_send(AssignNews::Unloaded { life, resident });
        };
        match std::thread::Builder::new().name("phalanx-unload".into()).spawn(unload) {
            Ok(thread) => self.threads.push(thread),
            Err(error) => {
                tracing::error!(%error, "no thread to end an engine in");
                let news = self.news.clone();
                tokio::spawn(async move { news.send(AssignNews::Unloaded { life, resident: None }).await });
            }
        }
    }

    /// A rank that must wait until this machine's memory is free; refused where too many do.
    pub(crate) fn wait(&mut self, assign: AssignGroup) -> Result<(), Box<AssignGroup>> {
        self.waiting.retain(|other| other.instance != assign.instance || other.epoch > assign.epoch);
        if self.waiting.len() >= WAITING_GROUPS_MAX {
            return Err(Box::new(assign));
        }
        self.waiting.push_back(assign);
        self.note_held();
        Ok(())
    }

    /// The coordinator does not want that rank any more.
    pub(crate) fn wait_no_more(&mut self, instance: InstanceId, epoch: Epoch) {
        self.waiting.retain(|other| other.instance != instance || other.epoch > epoch);
    }

    /// Ranks that can begin now.
    pub(crate) fn waited(&mut self) -> Vec<FromCoordinator> {
        if self.waiting.is_empty() || self.desk.why_no_group() == Err(desk::Busy::Ending) {
            return Vec::new();
        }
        self.waiting.drain(..).map(FromCoordinator::AssignGroup).collect()
    }

    /// Ends loads, and waits for threads.
    pub(crate) async fn end(mut self) {
        for loading in self.loading.values() {
            loading.cancelled.store(true, Ordering::Relaxed);
        }
        self.lending.end();
        let mut threads = std::mem::take(&mut self.threads);
        threads.extend(self.fetches.end());
        // Their last words need no place.
        drop(self);
        let joined = tokio::task::spawn_blocking(move || {
            for thread in threads {
                // A panic there has been said by the panic hook.
                let _ = thread.join();
            }
        });
        if tokio::time::timeout(END_MAX, joined).await.is_err() {
            tracing::warn!("a load did not end in time");
        }
    }
}

/// A peer's words, for a message.
fn clip(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}

/// The engine's settings for an assignment: its context and batch, and a cache that holds a whole context for each.
pub(crate) fn sized(
    config: &EngineConfig,
    assignment: &Assignment,
    kv_bytes_per_token: Bytes,
) -> EngineConfig {
    sized_for(config, (assignment.context, assignment.max_batch), kv_bytes_per_token)
}

/// As [`sized`], of a context and a batch; 0 leaves each to the machine.
pub(crate) fn sized_for(
    config: &EngineConfig,
    (context, batch): (u32, u32),
    kv_bytes_per_token: Bytes,
) -> EngineConfig {
    let mut config = config.clone();
    if context > 0 {
        config.context = Some(context);
    }
    if batch > 0 {
        config.batch_max = batch;
    }
    if context > 0 && batch > 0 {
        let page = u64::from(config.page_tokens.max(1));
        let tokens = u64::from(context).div_ceil(page).saturating_mul(page).saturating_mul(u64::from(batch));
        config.kv_bytes = Some(Bytes(tokens.saturating_mul(kv_bytes_per_token.0)));
    }
    config
}

/// What the cache takes, where the assignment says.
fn cache_bytes(config: &EngineConfig, assignment: &Assignment, kv_bytes_per_token: Bytes) -> Option<Bytes> {
    let asked = assignment.context > 0 && assignment.max_batch > 0;
    sized(config, assignment, kv_bytes_per_token).kv_bytes.filter(|_| asked)
}

/// The name that models are called by in events.
pub(crate) fn name_of(assignment: Option<&Assignment>) -> ModelName {
    assignment.map_or_else(|| ModelName::new("?"), |assignment| assignment.model.clone())
}
