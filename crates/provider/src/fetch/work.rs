//! One model, taken from whichever of its holders gives it: pieces in order, each verified before it is written, so that
//! what is on the disk is gone on with, by this provider or a later start of it, from this holder or another.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base::{Bytes, MachineId, ModelName};
use engine::ModelSource;
use link::{Cancel, Taking, TransferError, want};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use trust::MachineKeys;
use wire::link::Manifest;

use super::Progress;
use crate::assignment::AssignNews;
use crate::shelf::place::{Place, PlaceError, beside};
use crate::stock::{Entry, NoRoom, Stock, Wanted};

/// To be connected and proved.
const REACH: Duration = Duration::from_secs(5);
/// Where nobody has given anything for so long, it is given up; what came is kept.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two rounds of all holders; doubles while nothing comes.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How often is said how far it is.
const SAY_EVERY: Duration = Duration::from_millis(250);
/// What the rate is measured over.
const RATE_OVER: Duration = Duration::from_secs(2);
/// How a revision begins that stands for a manifest's hash.
const REVISION: &str = "manifest-sha256:";

/// A machine that has it.
#[derive(Debug, Clone)]
pub(super) struct Holder {
    pub(super) machine: MachineId,
    pub(super) key: [u8; 32],
    pub(super) addresses: Vec<SocketAddr>,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It is among this machine's models.
    Here,
    /// Nobody wants it any more.
    Cancelled,
    /// Why not; another try may do.
    Failed(String),
    /// Why not; another machine may do.
    Refused(String),
}

/// What one holder came to.
enum Stop {
    Whole,
    Cancelled,
    Refused(String),
    /// This machine's disk.
    Disk(String),
    /// It has another content than what is under way here.
    Other,
    Holder(TransferError),
}

impl From<TransferError> for Stop {
    fn from(error: TransferError) -> Self {
        match error {
            TransferError::Stopped => Self::Cancelled,
            error => Self::Holder(error),
        }
    }
}

impl From<PlaceError> for Stop {
    fn from(error: PlaceError) -> Self {
        match error {
            PlaceError::Foreign { .. } | PlaceError::Taken { .. } => Self::Refused(error.to_string()),
            PlaceError::Disk { .. } => Self::Disk(error.to_string()),
        }
    }
}

pub(super) struct Work {
    pub(super) keys: Arc<MachineKeys>,
    pub(super) model: ModelName,
    /// The folder of models.
    pub(super) into: Stock,
    /// What models that were fetched may take of the disk together.
    pub(super) budget: Option<Bytes>,
    /// The provider's data folder.
    pub(super) folder: PathBuf,
    pub(super) holders: Arc<Mutex<Vec<Holder>>>,
    pub(super) cancel: Cancel,
    pub(super) news: mpsc::Sender<AssignNews>,
}

/// What is known of the model so far.
struct State {
    place: Place,
    /// Its manifest's hash, and whether a holder has said so in this run.
    root: Option<([u8; 32], bool)>,
    /// Of each file, how many pieces are here: known once a manifest is.
    here: Option<Vec<usize>>,
    meter: Meter,
    moved: Instant,
}

impl Work {
    /// Takes it; whatever happens, the last word is how that ended.
    pub(super) fn run(self) {
        // A panic must not leave the coordinator with a fetch that nobody carries out.
        let ended = catch_unwind(AssertUnwindSafe(|| self.take()))
            .unwrap_or_else(|_| Ended::Failed("taking it broke down; see its provider's log".to_owned()));
        tracing::info!(model = %self.model, ?ended, "taking a model from other machines ended");
        // A provider that is gone needs no news.
        let _ = self.news.blocking_send(AssignNews::FetchEnded { model: self.model.clone(), how: ended });
    }

    fn take(&self) -> Ended {
        let place = match Place::open(&self.into, self.model.as_str()) {
            Ok(place) => place,
            Err(error @ PlaceError::Taken { .. }) => return Ended::Refused(error.to_string()),
            Err(error) => return Ended::Failed(error.to_string()),
        };
        let root = place.begun().and_then(|revision| {
            let hash = trust::unhex(revision.strip_prefix(REVISION)?)?;
            Some((<[u8; 32]>::try_from(hash).ok()?, false))
        });
        let mut state = State { place, root, here: None, meter: Meter::new(), moved: Instant::now() };
        // Whose word is worth nothing, and why each of the others gave nothing last.
        let (mut alone, mut errors) = (HashSet::new(), BTreeMap::new());
        let mut pause = PAUSE_FIRST;
        loop {
            let holders = self.holders.lock().clone();
            let (mut others, moved) = (0, state.moved);
            for holder in
                holders.iter().filter(|holder| !alone.contains(&holder.key)).cloned().collect::<Vec<_>>()
            {
                for address in &holder.addresses {
                    match self.from(&holder, *address, &mut state) {
                        Stop::Whole => return Ended::Here,
                        Stop::Cancelled => return Ended::Cancelled,
                        Stop::Refused(why) => return Ended::Refused(why),
                        Stop::Disk(why) => return Ended::Failed(why),
                        Stop::Other => {
                            others += 1;
                            errors.insert(holder.machine, "it has another model of this name".to_owned());
                            break;
                        }
                        Stop::Holder(error) => {
                            tracing::info!(holder = %holder.machine, %address, %error, "a model's holder is left");
                            errors.insert(holder.machine, error.to_string());
                            if error.is_wrong() {
                                alone.insert(holder.key);
                                break;
                            }
                        }
                    }
                }
            }
            let whose = || said(&errors);
            if !holders.is_empty() && holders.iter().all(|holder| alone.contains(&holder.key)) {
                return Ended::Failed(format!("no machine gives {} whole: {}", self.model, whose()));
            }
            // What an earlier time began nobody has any more: what there is now is taken instead.
            if others > 0 && state.root.is_some_and(|(_, confirmed)| !confirmed) {
                (state.root, state.here) = (None, None);
                continue;
            }
            if state.moved.elapsed() > PATIENCE {
                let patience = PATIENCE.as_secs();
                return Ended::Failed(format!(
                    "no machine has given anything of {} for {patience} s: {}",
                    self.model,
                    whose()
                ));
            }
            pause = if state.moved > moved { PAUSE_FIRST } else { (pause * 2).min(PAUSE_MAX) };
            if self.cancel.wait(pause) {
                return Ended::Cancelled;
            }
        }
    }

    /// Takes from one holder as much as it gives.
    fn from(&self, holder: &Holder, address: SocketAddr, state: &mut State) -> Stop {
        match self.try_from(holder, address, state) {
            Ok(()) => Stop::Whole,
            Err(stop) => stop,
        }
    }

    fn try_from(&self, holder: &Holder, address: SocketAddr, state: &mut State) -> Result<(), Stop> {
        if self.cancel.is_cancelled() {
            return Err(Stop::Cancelled);
        }
        let mut preparing = |percent: u8| {
            tracing::debug!(percent, "a model's holder reads it first");
            state.moved = Instant::now();
            !self.cancel.is_cancelled()
        };
        let asked = (self.model.as_str(), REACH);
        let mut taking = want(address, &self.keys, holder.key, asked, &mut preparing)?;
        let root = taking.root();
        if state.root.is_some_and(|(known, _)| known != root) {
            return Err(Stop::Other);
        }
        state.root = Some((root, true));
        if state.here.is_none() {
            state.here = Some(self.begin(&taking, state)?);
        }
        let manifest = taking.manifest().clone();
        for file in 0..manifest.files.len() {
            self.file(&mut taking, &manifest, file, state)?;
        }
        let path = state.place.finish()?;
        crate::lend::keep_manifest(&self.folder, &ModelSource::Folder(path), &manifest.encode());
        Ok(())
    }

    /// Refuses what does not fit, and finds out what is here: of each file, how many pieces.
    fn begin(&self, taking: &Taking, state: &mut State) -> Result<Vec<usize>, Stop> {
        let manifest = taking.manifest();
        let placed = |file: &wire::link::ManifestFile| Entry {
            path: file.path.clone(),
            size: file.bytes,
            sha256: None,
            blob: None,
        };
        let files: Vec<Entry> = manifest.files.iter().map(placed).collect();
        let revision = format!("{REVISION}{}", trust::hex(&taking.root()));
        if state.place.begun().is_some_and(|begun| begun != revision) {
            // Names and lengths may be the same, and the content another.
            state.place.clear()?;
        }
        let here = state.place.begin(&revision, &files)?;
        let (name, whole) = (self.model.as_str(), Bytes(manifest.bytes()));
        let wanted = Wanted { name, whole, to_write: Bytes(whole.0.saturating_sub(here)) };
        match self.into.make_room(wanted, self.budget) {
            Ok(removed) => removed.iter().for_each(|removed| {
                tracing::info!(model = removed.name, bytes = removed.bytes.0, "removed to make room");
            }),
            Err(error) => {
                state.place.leave(here);
                let why = crate::load::chain(&error);
                return Err(match error {
                    NoRoom::Disk { .. } | NoRoom::Budget { .. } => Stop::Refused(why),
                    NoRoom::Busy { .. } | NoRoom::System { .. } => Stop::Disk(why),
                });
            }
        }
        let mut pieces = Vec::with_capacity(files.len());
        state.meter.of = manifest.bytes();
        for file in 0..manifest.files.len() {
            if self.cancel.is_cancelled() {
                return Err(Stop::Cancelled);
            }
            pieces.push(self.verified(manifest, file, state)?);
        }
        Ok(pieces)
    }

    /// How many pieces of a file are on the disk as the manifest says; what follows them is cut off.
    fn verified(&self, manifest: &Manifest, file: usize, state: &mut State) -> Result<usize, Stop> {
        let of = &manifest.files[file];
        let whole = state.place.place_of(&of.path);
        if fs::metadata(&whole).is_ok_and(|found| found.len() == of.bytes) {
            // Its name was given to it after it was verified.
            state.meter.has(of.bytes);
            return Ok(of.pieces.len());
        }
        let part = beside(&whole);
        let said = |error| Stop::Disk(format!("{}: {error}", part.display()));
        let Ok(mut open) = OpenOptions::new().read(true).write(true).open(&part) else { return Ok(0) };
        let mut bytes = vec![0; manifest.piece_bytes as usize];
        let (mut pieces, mut kept) = (0, 0u64);
        for (piece, hash) in of.pieces.iter().enumerate() {
            let length = manifest.piece_len(file, piece);
            let is_here =
                open.read_exact(&mut bytes[..length]).is_ok() && trust::sha256(&bytes[..length]) == *hash;
            if !is_here || self.cancel.is_cancelled() {
                break;
            }
            (pieces, kept) = (piece + 1, kept + length as u64);
            state.meter.has(length as u64);
            state.moved = Instant::now();
        }
        open.set_len(kept).map_err(said)?;
        Ok(pieces)
    }

    /// Takes what is missing of a file.
    fn file(
        &self,
        taking: &mut Taking,
        manifest: &Manifest,
        file: usize,
        state: &mut State,
    ) -> Result<(), Stop> {
        let of = &manifest.files[file];
        let whole = state.place.place_of(&of.path);
        if fs::metadata(&whole).is_ok_and(|found| found.len() == of.bytes) {
            return Ok(());
        }
        let mut part = Part::open(&whole)?;
        let mut here = state.here.as_ref().and_then(|here| here.get(file)).copied().unwrap_or(0);
        while here < of.pieces.len() {
            let (mut failed, from) = (None, (here, of.pieces.len()));
            let mut each = |piece: usize, bytes: &[u8]| {
                if let Err(error) = part.write(piece as u64 * u64::from(manifest.piece_bytes), bytes) {
                    failed = Some(error);
                    return false;
                }
                here = piece + 1;
                state.moved = Instant::now();
                if state.meter.came(bytes.len() as u64) {
                    self.say(&state.meter);
                }
                !self.cancel.is_cancelled()
            };
            let taken = taking.take(file, from, &mut each);
            if let Some(known) = state.here.as_mut().and_then(|known| known.get_mut(file)) {
                *known = here;
            }
            if let Some(error) = failed {
                return Err(Stop::Disk(error));
            }
            taken?;
        }
        part.name(&whole)
    }

    fn say(&self, meter: &Meter) {
        let (done, of) = (Bytes(meter.done), Bytes(meter.of));
        let progress = Progress { done, of, bytes_per_s: meter.rate() };
        // Progress is dropped where nobody reads; the next says more.
        let _ = self.news.try_send(AssignNews::Fetching { model: self.model.clone(), progress });
    }
}

/// Why each machine gave nothing.
fn said(errors: &BTreeMap<MachineId, String>) -> String {
    if errors.is_empty() {
        return "no machine that has it is connected".to_owned();
    }
    errors.iter().map(|(who, why)| format!("{who}: {why}")).collect::<Vec<_>>().join("; ")
}

/// A file that is being written.
struct Part {
    path: PathBuf,
    file: File,
}

impl Part {
    fn open(whole: &Path) -> Result<Self, Stop> {
        let path = beside(whole);
        let said = |error: std::io::Error| Stop::Disk(format!("opening {}: {error}", path.display()));
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(said)?;
        }
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(said)?;
        Ok(Self { path, file })
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), String> {
        let written = self.file.seek(SeekFrom::Start(offset)).and_then(|_| self.file.write_all(bytes));
        // What is on the disk is gone on with: a disk that is full keeps it.
        written.map_err(|error| format!("writing {}: {error}; what came is kept", self.path.display()))
    }

    /// It is whole.
    fn name(self, whole: &Path) -> Result<(), Stop> {
        let named = self.file.sync_all().and_then(|()| fs::rename(&self.path, whole));
        named.map_err(|error| Stop::Disk(format!("naming {}: {error}", whole.display())))
    }
}

/// How much there is, and how fast it comes.
struct Meter {
    done: u64,
    of: u64,
    said: Option<Instant>,
    /// Since when how much came: the window before this one, and this one.
    window: (Instant, u64),
    per_s: f64,
}

impl Meter {
    fn new() -> Self {
        Self { done: 0, of: 0, said: None, window: (Instant::now(), 0), per_s: 0.0 }
    }

    /// So much is on the disk already.
    fn has(&mut self, bytes: u64) {
        self.done += bytes;
    }

    /// So much came; whether that is to be said.
    fn came(&mut self, bytes: u64) -> bool {
        self.done += bytes;
        self.window.1 += bytes;
        let over = self.window.0.elapsed();
        if over >= RATE_OVER {
            self.per_s = self.window.1 as f64 / over.as_secs_f64();
            self.window = (Instant::now(), 0);
        }
        let is_due = self.done >= self.of || self.said.is_none_or(|at| at.elapsed() >= SAY_EVERY);
        if is_due {
            self.said = Some(Instant::now());
        }
        is_due
    }

    fn rate(&self) -> u64 {
        if self.per_s > 0.0 {
            return self.per_s as u64;
        }
        let over = self.window.0.elapsed().as_secs_f64();
        if over > 0.0 { (self.window.1 as f64 / over) as u64 } else { 0 }
    }
}
