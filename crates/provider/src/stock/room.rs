//! Room is made: under one lock for the folder, out of sight in one step, then deleted.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use base::Bytes;

use super::choose::{DISK_SPARE, Model, Need, Room, Short, choose};
use super::hold::{self, Seen};
use super::{GOING, HELD, State, Stock, Stocked, files, flat, since_1970};

/// Models that somebody takes while they are about to go are so often replaced by others.
const ROUNDS_MAX: u32 = 16;
/// Whoever makes room deletes large files meanwhile: two minutes at the pauses between tries.
const GATE_TRIES: u32 = 4_800;

/// What is to be fetched.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it takes once it is whole.
    pub whole: Bytes,
    /// Of this, what is still to be written.
    pub to_write: Bytes,
}

/// What went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// Its name.
    pub name: String,
    /// What it took.
    pub bytes: Bytes,
    /// When it was last used.
    pub last_used: SystemTime,
}

/// Why there is no room.
#[derive(Debug, thiserror::Error)]
pub enum NoRoom {
    /// The disk is full, and what may go is not enough.
    #[error(
        "{name} needs {to_write} more and {} to spare, and {} has {free} free{}: make room, there or with `phalanx \
         models remove NAME`, or say another folder with --dir",
        Bytes(DISK_SPARE), folder.display(), said(.budgeted, .may_go, .kept)
    )]
    Disk {
        /// What was to be fetched.
        name: String,
        /// What of it is to be written.
        to_write: Bytes,
        /// Where.
        folder: PathBuf,
        /// Free there.
        free: Bytes,
        /// Whether models may go by themselves.
        budgeted: bool,
        /// What may go takes so much.
        may_go: Bytes,
        /// What may not, and why.
        kept: String,
    },
    /// The budget is used up, and what may go is not enough.
    #[error(
        "{name} takes {whole}, and of the budget of {budget} for models in {} {taken} are taken{}: take back what holds \
         them, remove one with `phalanx models remove NAME`, or set a larger budget with `phalanx models budget SIZE`",
        folder.display(), said(&true, .may_go, .kept)
    )]
    Budget {
        /// What was to be fetched.
        name: String,
        /// What it takes.
        whole: Bytes,
        /// What all may take.
        budget: Bytes,
        /// Of what folder.
        folder: PathBuf,
        /// What all that was fetched takes.
        taken: Bytes,
        /// What may go takes so much.
        may_go: Bytes,
        /// What may not, and why.
        kept: String,
    },
    /// Another process makes room, and does not come to an end.
    #[error("another process makes room in {} and does not end: is it stopped?", folder.display())]
    Busy {
        /// Where.
        folder: PathBuf,
    },
    /// The system refused.
    #[error("{doing}")]
    System {
        /// What was being done.
        doing: String,
        /// Why not.
        source: io::Error,
    },
}

/// Why a model is not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// There is none.
    #[error("no model {name:?} was fetched into {}: `phalanx models list` shows what was", folder.display())]
    Unknown {
        /// What was asked for.
        name: String,
        /// Where.
        folder: PathBuf,
    },
    /// It stays.
    #[error("{name} stays: {why}")]
    Kept {
        /// Which.
        name: String,
        /// Why, and what to do.
        why: String,
    },
    /// It could not be done.
    #[error(transparent)]
    Failed(#[from] NoRoom),
}

fn said(budgeted: &bool, may_go: &Bytes, kept: &str) -> String {
    match (budgeted, may_go.0, kept) {
        (false, ..) => " (with a budget, `phalanx models budget SIZE`, room is made by itself)".to_owned(),
        (true, 0, "") => ", and nothing was fetched that may go".to_owned(),
        (true, 0, kept) => format!(", and nothing may go: {kept}"),
        (true, _, "") => format!(", of which {may_go} may go"),
        (true, _, kept) => format!(", of which {may_go} may go: {kept}"),
    }
}

fn doing(what: impl Into<String>) -> impl FnOnce(io::Error) -> NoRoom {
    let doing = what.into();
    |source| NoRoom::System { doing, source }
}

impl Stock {
    /// Makes room for a model: removes what was fetched and least recently used, as far as that is needed to stay within
    /// `budget` (or else the folder's own) and to leave some of the disk free. Without a budget nothing is removed, and the
    /// disk alone decides. What is held, what is being fetched and what is somebody's own stays.
    ///
    /// Whoever calls this for what it fetches has its lock, and its manifest written: then it counts for others.
    ///
    /// # Errors
    /// What may go is not enough: nothing is removed then. Or the folder cannot be read or written.
    pub fn make_room(&self, wanted: Wanted<'_>, budget: Option<Bytes>) -> Result<Vec<Removed>, NoRoom> {
        fs::create_dir_all(self.under_way())
            .map_err(doing(format!("making {}", self.under_way().display())))?;
        let gate = self.gate()?;
        let set = self.budget().map_err(doing(format!("reading the budget in {}", self.folder.display())))?;
        let budget = budget.or(set);
        let mut gone = Vec::new();
        for _ in 0..ROUNDS_MAX {
            let stocked = self.models();
            let mut is_done = true;
            for at in self.going(&stocked, wanted, budget)? {
                match self.take_off(&stocked[at])? {
                    true => gone.push(removed(&stocked[at])),
                    // Somebody took it meanwhile: others go instead, or what may go is not enough.
                    false => is_done = false,
                }
            }
            if is_done {
                // Before the next one looks how much of the disk is free.
                self.sweep()?;
                drop(gate);
                return Ok(gone);
            }
        }
        Err(NoRoom::Busy { folder: self.folder.clone() })
    }

    /// Bytes that a model may take that comes from another machine: what is free, less what is always left so, and what
    /// may go for it within the budget. What is under way counts as room: it is gone on with. 0 where nobody can tell.
    pub(crate) fn fetch_room(&self, budget: Option<Bytes>) -> Bytes {
        let there = self.folder.ancestors().find(|folder| folder.is_dir());
        let Some(Ok(free)) = there.map(|there| Self::new(there).free()) else { return Bytes(0) };
        let stocked = self.models();
        let sum = |which: &dyn Fn(&&Stocked) -> bool, of: &dyn Fn(&Stocked) -> u64| {
            stocked.iter().filter(which).map(of).fold(0, u64::saturating_add)
        };
        let is_begun = |of: &&Stocked| matches!(of.state, State::UnderWay | State::LeftOff);
        let here = |of: &Stocked| files(&of.place).0.iter().map(|of| of.1).sum::<u64>();
        let mut room = free.0.saturating_sub(DISK_SPARE).saturating_add(sum(&is_begun, &here));
        if let Some(budget) = budget.or_else(|| self.budget().ok().flatten()) {
            let is_whole = |of: &&Stocked| of.state.was_fetched() && !is_begun(of);
            room = room.saturating_add(sum(&|of| is_whole(of) && of.kept.is_none(), &|of| of.bytes.0));
            let stays = sum(&|of| is_whole(of) && of.kept.is_some(), &|of| of.bytes.0);
            room = room.min(budget.0.saturating_sub(stays));
        }
        Bytes(room)
    }

    /// Which of `stocked` go.
    fn going(
        &self,
        stocked: &[Stocked],
        wanted: Wanted<'_>,
        budget: Option<Bytes>,
    ) -> Result<Vec<usize>, NoRoom> {
        let own = self.place_under_way(wanted.name);
        let is_own = |of: &Stocked| of.place == own;
        let model = |of: &Stocked| Model {
            name: of.name.clone(),
            // What is wanted counts as wanted.
            bytes: if is_own(of) { 0 } else { of.bytes.0 },
            last_used: since_1970(of.last_used),
            fetched: of.state.was_fetched() && !is_own(of),
            kept: of.kept.clone(),
        };
        let models: Vec<Model> = stocked.iter().map(model).collect();
        let to_come = |of: &&Stocked| of.state == State::UnderWay && !is_own(of);
        let here = |of: &Stocked| files(&of.place).0.iter().map(|of| of.1).sum::<u64>();
        let to_come = stocked.iter().filter(to_come).map(|of| of.bytes.0.saturating_sub(here(of)));
        let free = self.free()?;
        let room = Room {
            budget: budget.map(|budget| budget.0),
            free: free.0.saturating_sub(to_come.fold(0, u64::saturating_add)),
        };
        let need = Need { whole: wanted.whole.0, to_write: wanted.to_write.0 };
        choose(&models, room, need).map_err(|short| self.refusal(wanted, budget, free, short))
    }

    fn refusal(&self, wanted: Wanted<'_>, budget: Option<Bytes>, free: Bytes, short: Short) -> NoRoom {
        let kept = short.kept.iter().map(|(name, bytes, why)| format!("{name} ({}) is {why}", Bytes(*bytes)));
        let kept = kept.take(12).collect::<Vec<_>>().join("; ");
        let (name, folder) = (wanted.name.to_owned(), self.folder.clone());
        let (may_go, taken) = (Bytes(short.may_go), Bytes(short.taken));
        match budget {
            Some(budget) if short.by_budget => {
                NoRoom::Budget { name, whole: wanted.whole, budget, folder, taken, may_go, kept }
            }
            _ => {
                let budgeted = budget.is_some();
                NoRoom::Disk { name, to_write: wanted.to_write, folder, free, budgeted, may_go, kept }
            }
        }
    }

    /// Removes one model that was fetched, or what is left of a fetching.
    ///
    /// # Errors
    /// There is none, or it stays.
    pub fn remove(&self, name: &str) -> Result<Removed, RemoveError> {
        let gate = self.gate()?;
        let is_meant = |of: &Stocked| of.name == name || flat(&of.name) == flat(name);
        let all: Vec<Stocked> = self.models().into_iter().filter(is_meant).collect();
        if all.is_empty() {
            return Err(RemoveError::Unknown { name: name.to_owned(), folder: self.folder.clone() });
        }
        if let Some((of, why)) = all.iter().find_map(|of| Some((of, of.kept.clone()?))) {
            let remedy = match of.state {
                State::Own => format!("{why}; if it is to go, delete {} yourself", of.place.display()),
                State::UnderWay => format!("it is {why}: end that first"),
                _ => format!("it is {why}: take its deployment back, or end its provider, first"),
            };
            return Err(RemoveError::Kept { name: name.to_owned(), why: remedy });
        }
        for of in &all {
            if !self.take_off(of)? {
                let why = "somebody began to use it just now".to_owned();
                return Err(RemoveError::Kept { name: name.to_owned(), why });
            }
        }
        self.sweep()?;
        drop(gate);
        let bytes = Bytes(all.iter().map(|of| of.bytes.0).sum());
        Ok(Removed { name: name.to_owned(), bytes, last_used: all[0].last_used })
    }

    /// One process at a time makes room.
    fn gate(&self) -> Result<File, NoRoom> {
        let path = self.folder.join(HELD);
        let made = fs::create_dir_all(&path).and_then(|()| File::create(path.join(".lock")));
        let file = made.map_err(doing(format!("opening the lock in {}", path.display())))?;
        match hold::locked_soon(GATE_TRIES, || file.try_lock()) {
            true => Ok(file),
            false => Err(NoRoom::Busy { folder: self.folder.clone() }),
        }
    }

    fn free(&self) -> Result<Bytes, NoRoom> {
        let disk = rustix::fs::statvfs(&self.folder).map_err(io::Error::from);
        let disk = disk.map_err(doing(format!("looking at the disk of {}", self.folder.display())))?;
        Ok(Bytes(disk.f_bavail.saturating_mul(disk.f_frsize)))
    }

    /// Takes a model out of sight, unless somebody has it. What maps its files has them still.
    fn take_off(&self, of: &Stocked) -> Result<bool, NoRoom> {
        // Held until it is out of sight: nobody begins to use it, or to fetch it, meanwhile.
        let _lock = if of.place.starts_with(self.under_way()) {
            let name = of.place.file_name().unwrap_or_default().to_string_lossy();
            let path = self.under_way().join(format!("{name}.lock"));
            let lock = File::create(&path).map_err(doing(format!("opening {}", path.display())))?;
            if lock.try_lock().is_err() {
                return Ok(false);
            }
            Some(lock)
        } else {
            match hold::seize(&self.hold_file(&of.name)) {
                Seen::Free(lock) => lock,
                Seen::Held(_) => return Ok(false),
            }
        };
        let going = self.folder.join(GOING);
        let place =
            (0..1000u32).map(|n| going.join(format!("{}.{}.{n}", flat(&of.name), std::process::id())));
        let said = || format!("removing {}", of.place.display());
        fs::create_dir_all(&going).map_err(doing(said()))?;
        let place = place.into_iter().find(|place| !place.exists());
        let place = place.ok_or_else(|| NoRoom::Busy { folder: self.folder.clone() })?;
        fs::rename(&of.place, place).map_err(doing(said()))?;
        // Its organisation's folder, where it is empty now.
        if let Some(parent) = of.place.parent().filter(|parent| *parent != self.folder) {
            drop(fs::remove_dir(parent));
        }
        Ok(true)
    }

    /// Deletes what is out of sight, what a process left there that was ended in the midst of it too.
    fn sweep(&self) -> Result<(), NoRoom> {
        let going = self.folder.join(GOING);
        let Ok(entries) = fs::read_dir(&going) else { return Ok(()) };
        for entry in entries.filter_map(Result::ok) {
            match fs::remove_dir_all(entry.path()) {
                // Another process is as busy with it.
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(doing(format!("deleting {}", entry.path().display()))(error));
                }
                _ => {}
            }
        }
        drop(fs::remove_dir(going));
        Ok(())
    }
}

fn removed(of: &Stocked) -> Removed {
    Removed { name: of.name.clone(), bytes: of.bytes, last_used: of.last_used }
}
