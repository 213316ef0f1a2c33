//! Models that this machine takes from others because its coordinator wants them here: one thread a model, for every
//! assignment that waits for it.

mod work;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use base::{Bytes, Epoch, InstanceId, ModelName};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use link::Cancel;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use trust::MachineKeys;
use wire::control::{
    AssignmentPhase, AssignmentReport, FetchModel, FetchReport, FromProvider, HELD_MAX, Peer,
};

use crate::assignment::AssignNews;
use crate::stock::Stock;
pub(crate) use work::Ended;
use work::{Holder, Work};

/// Models that are taken at once: more would share the same links.
const AT_ONCE_MAX: usize = 4;

/// How far a fetch is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) done: Bytes,
    pub(crate) of: Bytes,
    pub(crate) bytes_per_s: u64,
}

/// An assignment that waits for a model.
type Wanted = (InstanceId, Epoch, u32);

struct Fetch {
    wanted: Vec<Wanted>,
    holders: Arc<Mutex<Vec<Holder>>>,
    cancel: Cancel,
    progress: Progress,
}

/// All of them.
pub(crate) struct Fetches {
    keys: Arc<MachineKeys>,
    /// The folder of models that they are put into; nothing where the owner does not want that.
    into: Option<Stock>,
    /// What models that were fetched may take of the disk together.
    budget: Option<Bytes>,
    /// The provider's data folder.
    folder: PathBuf,
    of: BTreeMap<ModelName, Fetch>,
    threads: Vec<JoinHandle<()>>,
    news: mpsc::Sender<AssignNews>,
}

impl Fetches {
    pub(crate) fn new(
        keys: Arc<MachineKeys>,
        (into, budget): (Option<PathBuf>, Option<Bytes>),
        folder: PathBuf,
        news: mpsc::Sender<AssignNews>,
    ) -> Self {
        let into = into.map(Stock::new);
        Self { keys, into, budget, folder, of: BTreeMap::new(), threads: Vec::new(), news }
    }

    /// The coordinator wants a model here; what is said to that at once.
    pub(crate) fn fetch(&mut self, wanted: FetchModel) -> Option<FromProvider> {
        let about = (wanted.instance, wanted.epoch, wanted.rank);
        let Some(into) = self.into.clone() else {
            let why = "this machine takes no models from others: its provider runs with --no-fetch";
            return Some(ended(about, AssignmentPhase::Refused, why.to_owned()));
        };
        if !wire::link::is_placeable(wanted.model.as_str()) {
            let why =
                "a model of this name cannot be put into a folder of models: NAME or ORGANISATION/NAME can";
            return Some(ended(about, AssignmentPhase::Refused, why.to_owned()));
        }
        let holders: Vec<Holder> = wanted.holders.into_iter().filter_map(holder).collect();
        // An older assignment of the same instance is over.
        for fetch in self.of.values_mut() {
            fetch.wanted.retain(|(instance, ..)| *instance != wanted.instance);
        }
        self.let_go();
        if let Some(fetch) = self.of.get_mut(&wanted.model) {
            *fetch.holders.lock() = holders;
            if fetch.wanted.len() < HELD_MAX {
                fetch.wanted.push(about);
            }
            // One that is being ended begins anew once it has.
            return Some(report(about, fetch.progress));
        }
        if self.of.len() >= AT_ONCE_MAX {
            let why = format!(
                "{AT_ONCE_MAX} models are being taken from other machines, which is the most at once"
            );
            return Some(ended(about, AssignmentPhase::Refused, why));
        }
        let failed = self.begin(wanted.model, vec![about], Arc::new(Mutex::new(holders)), into).err();
        failed.map(|why| ended(about, AssignmentPhase::Failed, why))
    }

    fn begin(
        &mut self,
        model: ModelName,
        wanted: Vec<Wanted>,
        holders: Arc<Mutex<Vec<Holder>>>,
        into: Stock,
    ) -> Result<(), String> {
        self.threads.retain(|thread| !thread.is_finished());
        let cancel = Cancel::new();
        let work = Work {
            keys: Arc::clone(&self.keys),
            model: model.clone(),
            into,
            budget: self.budget,
            folder: self.folder.clone(),
            holders: Arc::clone(&holders),
            cancel: cancel.clone(),
            news: self.news.clone(),
        };
        match std::thread::Builder::new().name("phalanx-fetch".into()).spawn(move || work.run()) {
            Ok(thread) => {
                self.threads.push(thread);
                let progress = Progress::default();
                self.of.insert(model, Fetch { wanted, holders, cancel, progress });
                Ok(())
            }
            Err(error) => Err(format!("no thread to take it from other machines: {error}")),
        }
    }

    /// Whether nothing is being taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    /// An assignment is not wanted any more.
    pub(crate) fn unwanted(&mut self, instance: InstanceId, epoch: Epoch) {
        for fetch in self.of.values_mut() {
            fetch.wanted.retain(|(of, at, _)| *of != instance || *at > epoch);
        }
        self.let_go();
    }

    /// Ends what nobody waits for.
    fn let_go(&self) {
        self.of.values().filter(|fetch| fetch.wanted.is_empty()).for_each(|fetch| fetch.cancel.cancel());
    }

    /// A thread says how far it is; what the coordinator is told.
    pub(crate) fn progress(&mut self, model: &ModelName, progress: Progress) -> Vec<FromProvider> {
        let Some(fetch) = self.of.get_mut(model) else { return Vec::new() };
        fetch.progress = progress;
        fetch.wanted.iter().map(|about| report(*about, progress)).collect()
    }

    /// A thread ended; what the coordinator is told.
    pub(crate) fn ended(&mut self, model: &ModelName, how: &Ended) -> Vec<FromProvider> {
        let Some(fetch) = self.of.remove(model) else { return Vec::new() };
        let (phase, why) = match how {
            // The inventory says so.
            Ended::Here => return Vec::new(),
            Ended::Failed(why) => (AssignmentPhase::Failed, why),
            Ended::Refused(why) => (AssignmentPhase::Refused, why),
            Ended::Cancelled => {
                // It was asked for again before its end.
                let again = (!fetch.wanted.is_empty()).then(|| self.into.clone()).flatten();
                let Some(into) = again else { return Vec::new() };
                let begun = self.begin(model.clone(), fetch.wanted.clone(), fetch.holders, into);
                let failed = |why: String| {
                    let of = |about: &Wanted| ended(*about, AssignmentPhase::Failed, why.clone());
                    fetch.wanted.iter().map(of).collect()
                };
                return begun.err().map(failed).unwrap_or_default();
            }
        };
        fetch.wanted.iter().map(|about| ended(*about, phase, why.clone())).collect()
    }

    /// For a coordinator that may have missed it: how far each is.
    pub(crate) fn again(&self) -> Vec<FromProvider> {
        let all = self.of.values().flat_map(|fetch| fetch.wanted.iter().map(|about| (about, fetch.progress)));
        all.map(|(about, progress)| report(*about, progress)).collect()
    }

    /// Ends all of them; their threads, to be waited for.
    pub(crate) fn end(&mut self) -> Vec<JoinHandle<()>> {
        self.of.values().for_each(|fetch| fetch.cancel.cancel());
        std::mem::take(&mut self.threads)
    }
}

fn holder(peer: Peer) -> Option<Holder> {
    let key = BASE64.decode(&peer.signing_key).ok()?.try_into().ok()?;
    let addresses = peer.addresses.into_iter().map(|of| of.address).collect();
    Some(Holder { machine: peer.machine, key, addresses })
}

fn report((instance, epoch, rank): Wanted, progress: Progress) -> FromProvider {
    let Progress { done, of, bytes_per_s } = progress;
    FromProvider::FetchReport(FetchReport { instance, epoch, rank, done, of, bytes_per_s })
}

fn ended((instance, epoch, rank): Wanted, phase: AssignmentPhase, detail: String) -> FromProvider {
    FromProvider::AssignmentReport(AssignmentReport { instance, epoch, rank, phase, percent: 0, detail })
}
