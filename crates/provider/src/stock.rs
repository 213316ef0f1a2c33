//! The folder of models that Phalanx itself fills: what is in it, what goes when room is needed, and what stays whatever
//! happens: what is held, what is being fetched, and what is somebody's own.
//!
//! ```text
//! ORGANISATION/NAME    a model, with a manifest where Phalanx fetched it
//! .pulling/            what is under way, and its locks
//! .held/               one file for each model that was used: who holds it, and when it was used
//! .going/              what is being removed: out of sight in one step, then deleted
//! .budget              what all that was fetched may take together, in bytes
//! ```

mod choose;
mod hold;
mod manifest;
mod room;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base::Bytes;

pub use hold::Hold;
pub use manifest::{Entry, Manifest};
pub use room::{NoRoom, RemoveError, Removed, Wanted};

/// What is under way.
const UNDER_WAY: &str = ".pulling";
const HELD: &str = ".held";
const GOING: &str = ".going";
const BUDGET: &str = ".budget";
/// `ORGANISATION/NAME`, and a folder or two of files below it.
const DEPTH_MAX: u32 = 6;
/// Files of one model that are looked at; a folder with more was not fetched here.
const FILES_MAX: usize = 20_000;

/// Files beside the weights that make a model, where they are there: what is fetched from a hub, and given to other machines.
/// Whatever else an owner keeps beside them is nobody's.
pub const MODEL_FILES_BESIDE: [&str; 12] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "modules.json",
    "tokenizer.model",
    "model.safetensors.index.json",
];

/// The folder.
#[derive(Debug, Clone)]
pub struct Stock {
    folder: PathBuf,
}

/// What is in it of one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stocked {
    /// The name that requests and deployments call it by.
    pub name: String,
    /// Where it lies.
    pub place: PathBuf,
    /// What it takes; where it is being fetched, what it will.
    pub bytes: Bytes,
    /// When it was last held, or else fetched.
    pub last_used: SystemTime,
    /// How it is.
    pub state: State,
    /// Who holds it, as far as they are known.
    pub held_by: Vec<String>,
    /// Why it may not go, where it may not.
    pub kept: Option<String>,
}

/// How a model in the folder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Every file that was fetched is there at its length.
    Whole,
    /// Files are missing, or have another length.
    Damaged,
    /// It is being fetched.
    UnderWay,
    /// Its fetching was left off, and can be gone on with.
    LeftOff,
    /// Phalanx did not fetch it, or not all of it: it never goes, and does not count.
    Own,
}

impl State {
    fn was_fetched(self) -> bool {
        self != Self::Own
    }
}

impl Stock {
    /// The one at `folder`, which need not be there yet.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Marks a model as used, and keeps it on the disk for as long as what is returned lives; nothing where it is just
    /// being removed. It need not be there yet.
    pub fn hold(&self, name: &str, by: &str) -> Option<Hold> {
        let hold = Hold::take(&self.hold_file(name), by);
        if hold.is_none() {
            tracing::warn!(model = name, "it could not be marked as held: it may be removed to make room");
        }
        hold
    }

    /// As [`Stock::hold`], of the model at `path`, in whichever such folder it is; nothing where Phalanx did not fetch it.
    pub fn hold_at(path: &Path, by: &str) -> Option<Hold> {
        let path = fs::canonicalize(path).ok()?;
        let is_fetched = |folder: &&Path| folder.join(manifest::FILE).is_file();
        let place = path.ancestors().take(DEPTH_MAX as usize).find(is_fetched)?;
        let is_stock = |folder: &&Path| folder.join(UNDER_WAY).is_dir();
        let folder = place.ancestors().skip(1).take(2).find(is_stock)?;
        let name = place.strip_prefix(folder).ok()?.to_str()?;
        let hold = Self::new(folder).hold(name, by)?;
        // It may have gone while it was waited for.
        place.join(manifest::FILE).is_file().then_some(hold)
    }

    /// Where a model lies once it is whole.
    pub fn place(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Where it is put together, hidden, so that nobody takes it for a model.
    pub fn place_under_way(&self, name: &str) -> PathBuf {
        self.under_way().join(flat(name))
    }

    /// The right to fetch a model, for as long as what is returned lives; nothing where another has it: two that write
    /// into one file would both be wrong.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn fetching(&self, name: &str) -> io::Result<Option<File>> {
        fs::create_dir_all(self.under_way())?;
        let lock = File::create(self.under_way().join(format!("{}.lock", flat(name))))?;
        // Whoever looks what is fetched has it for a moment.
        Ok(hold::locked_soon(hold::TRIES, || lock.try_lock()).then_some(lock))
    }

    /// What all that was fetched may take together, as it was set for this folder.
    ///
    /// # Errors
    /// The setting cannot be read.
    pub fn budget(&self) -> io::Result<Option<Bytes>> {
        match fs::read_to_string(self.folder.join(BUDGET)) {
            Ok(text) => match text.trim().parse() {
                Ok(bytes) => Ok(Some(Bytes(bytes))),
                Err(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "it is no number of bytes")),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets it, or takes it back.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn set_budget(&self, budget: Option<Bytes>) -> io::Result<()> {
        let path = self.folder.join(BUDGET);
        match budget {
            Some(budget) => {
                fs::create_dir_all(&self.folder)?;
                let new = path.with_extension(format!("{}", std::process::id()));
                fs::write(&new, format!("{}\n", budget.0))?;
                fs::rename(new, path)
            }
            None => match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        }
    }

    /// What is in it, by name; nothing where the folder is not there.
    pub fn models(&self) -> Vec<Stocked> {
        let mut models = Vec::new();
        for (path, name) in folders(&self.folder) {
            // A folder that only looks like one, by a link, lies elsewhere and is somebody's own.
            if Manifest::read(&path).is_some() || path.join("config.json").is_file() {
                models.push(self.whole(path, &name));
                continue;
            }
            for (path, below) in folders(&path) {
                let of = self.whole(path, &format!("{name}/{below}"));
                if of.bytes > Bytes(0) || of.state.was_fetched() {
                    models.push(of);
                }
            }
        }
        models
            .extend(folders(&self.under_way()).into_iter().filter_map(|(path, flat)| self.part(path, &flat)));
        models.sort_by(|a, b| (&a.name, &a.place).cmp(&(&b.name, &b.place)));
        models
    }

    /// A model that is not under way.
    fn whole(&self, place: PathBuf, name: &str) -> Stocked {
        let ((all, is_all), manifest) = (files(&place), Manifest::read(&place));
        let bytes = Bytes(all.iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes)));
        let known = |path: &str, manifest: &Manifest| {
            path == manifest::FILE || manifest.files.iter().any(|file| file.path == path)
        };
        let there = |file: &Entry| all.iter().any(|(path, bytes)| *path == file.path && *bytes == file.size);
        let (state, own) = match &manifest {
            None => (State::Own, Some("Phalanx did not fetch it".to_owned())),
            Some(_) if !is_all => {
                (State::Own, Some("it has links, or more files than were fetched".to_owned()))
            }
            Some(manifest) => match all.iter().find(|(path, _)| !known(path, manifest)) {
                Some((path, _)) => (State::Own, Some(format!("{path} in it was not fetched with it"))),
                None if manifest.files.iter().all(there) => (State::Whole, None),
                None => (State::Damaged, None),
            },
        };
        let (held_by, held) = match hold::seen(&self.hold_file(name)) {
            hold::Seen::Held(by) => {
                let who = if by.is_empty() { "another process".to_owned() } else { by.join(", ") };
                (by, Some(format!("held by {who}")))
            }
            hold::Seen::Free(_) => (Vec::new(), None),
        };
        let last_used = time(&place.join(manifest::FILE)).max(time(&self.hold_file(name)));
        Stocked { name: name.to_owned(), place, bytes, last_used, state, held_by, kept: held.or(own) }
    }

    /// One whose fetching was begun; nothing where nothing of it is here and nobody fetches it.
    fn part(&self, place: PathBuf, flat: &str) -> Option<Stocked> {
        let lock = File::open(self.under_way().join(format!("{flat}.lock"))).ok();
        let is_fetched = lock.is_some_and(|lock| lock.try_lock().is_err());
        let (here, _) = files(&place);
        let sum = |sum: u64, bytes: u64| sum.saturating_add(bytes);
        let here = here.iter().filter(|(path, _)| path != manifest::FILE).map(|of| of.1).fold(0, sum);
        let (state, bytes, kept) = match (is_fetched, Manifest::read(&place)) {
            (true, manifest) => {
                let all = manifest.map_or(0, |manifest| manifest.bytes());
                (State::UnderWay, all.max(here), Some("being fetched".to_owned()))
            }
            (false, Some(_)) if here > 0 => (State::LeftOff, here, None),
            (false, _) => return None,
        };
        let last_used = time(&place.join(manifest::FILE));
        // Where a name has two lines of its own this is not quite it: it is shown, and found by either.
        let (name, bytes) = (flat.replacen("--", "/", 1), Bytes(bytes));
        Some(Stocked { name, place, bytes, last_used, state, held_by: Vec::new(), kept })
    }

    fn under_way(&self) -> PathBuf {
        self.folder.join(UNDER_WAY)
    }

    fn hold_file(&self, name: &str) -> PathBuf {
        self.folder.join(HELD).join(flat(name))
    }
}

/// A model's name as one file's name.
fn flat(name: &str) -> String {
    name.replace('/', "--")
}

fn time(path: &Path) -> SystemTime {
    fs::metadata(path).and_then(|of| of.modified()).unwrap_or(UNIX_EPOCH)
}

fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The folders in a folder that are neither hidden nor links, with their names.
fn folders(folder: &Path) -> Vec<(PathBuf, String)> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let named = |entry: fs::DirEntry| Some((entry.path(), entry.file_name().into_string().ok()?));
    folders.filter_map(named).filter(|(_, name)| !name.starts_with('.')).collect()
}

/// All files below a folder, with slashes, and their bytes; and whether that is all: no links, not too many to look at.
fn files(folder: &Path) -> (Vec<(String, u64)>, bool) {
    let mut found = Vec::new();
    let is_all = below(folder, "", DEPTH_MAX, &mut found).is_some();
    (found, is_all)
}

fn below(folder: &Path, prefix: &str, depth: u32, found: &mut Vec<(String, u64)>) -> Option<()> {
    let mut is_all = true;
    for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
        let metadata = entry.metadata().ok()?;
        let name = format!("{prefix}{}", entry.file_name().to_str()?);
        if metadata.is_dir() && depth > 0 {
            is_all &= below(&entry.path(), &format!("{name}/"), depth - 1, found).is_some();
        } else if metadata.is_file() && found.len() < FILES_MAX {
            found.push((name, metadata.len()));
        } else {
            is_all = false;
        }
    }
    is_all.then_some(())
}

#[cfg(test)]
#[path = "stock/tests.rs"]
mod tests;
