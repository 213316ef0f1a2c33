//! Where a model is put in a folder of models: what is under way lies hidden, and is a model's folder in one step once it
//! is whole. `phalanx models pull` and what is taken from other machines go the same way.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::stock::{Entry, Manifest, Stock};

/// Why a model is not put there.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// Two that write into one file would both be wrong.
    #[error("{name} is being fetched into {folder} by another process")]
    Taken {
        /// Which model.
        name: String,
        /// Where.
        folder: PathBuf,
    },
    /// There is something of somebody else.
    #[error("{path} is there, and was not fetched: move it away first")]
    Foreign {
        /// Where.
        path: PathBuf,
    },
    /// The disk.
    #[error("{doing} {path}: {error}")]
    Disk {
        /// What was being done.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        #[source]
        error: io::Error,
    },
}

fn disk(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PlaceError {
    let path = path.to_owned();
    move |error| PlaceError::Disk { doing, path, error }
}

/// One model's place, held for as long as this is.
#[derive(Debug)]
pub struct Place {
    under_way: PathBuf,
    whole: PathBuf,
    _lock: File,
}

impl Place {
    /// The place of `name` in a folder of models, for this process alone. `name` is plain: `NAME` or `ORGANISATION/NAME`.
    ///
    /// # Errors
    /// Another process holds it, or the folder cannot be written.
    pub fn open(stock: &Stock, name: &str) -> Result<Self, PlaceError> {
        let folder = stock.folder();
        let lock = stock.fetching(name).map_err(disk("making the folder", folder))?;
        let taken = || PlaceError::Taken { name: name.to_owned(), folder: folder.to_owned() };
        let (under_way, whole) = (stock.place_under_way(name), stock.place(name));
        Ok(Self { under_way, whole, _lock: lock.ok_or_else(taken)? })
    }

    /// Where the model is, if it is there whole at this revision.
    pub fn is_there(&self, revision: &str, files: &[Entry]) -> Option<PathBuf> {
        let found = Manifest::read(&self.whole)?;
        let whole = |file: &Entry| {
            fs::metadata(self.whole.join(&file.path)).is_ok_and(|found| found.len() == file.size)
        };
        let same = found.revision == revision && found.files == files;
        (same && files.iter().all(whole)).then(|| self.whole.clone())
    }

    /// The revision that is under way, where something is.
    pub fn begun(&self) -> Option<String> {
        Manifest::read(&self.under_way).map(|manifest| manifest.revision)
    }

    /// Lets go of whatever is under way.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn clear(&self) -> Result<(), PlaceError> {
        match fs::remove_dir_all(&self.under_way) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(disk("removing", &self.under_way)(error))
            }
            _ => Ok(()),
        }
    }

    /// Begins, or goes on with what an earlier time left, as far as it is of the same content; how much of it is here.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn begin(&self, revision: &str, files: &[Entry]) -> Result<u64, PlaceError> {
        fs::create_dir_all(&self.under_way).map_err(disk("making the folder", &self.under_way))?;
        let before = Manifest::read(&self.under_way).map(|manifest| manifest.files).unwrap_or_default();
        for file in before.iter().filter(|file| !files.contains(file)) {
            // Another content under the same name: nothing of it is of use.
            let place = self.place_of(&file.path);
            drop(fs::remove_file(beside(&place)));
            drop(fs::remove_file(place));
        }
        let manifest = Manifest { revision: revision.to_owned(), files: files.to_vec() };
        manifest.write(&self.under_way).map_err(disk("writing what is fetched into", &self.under_way))?;
        let length = |path: PathBuf| fs::metadata(path).map_or(0, |found| found.len());
        let here = |file: &Entry| {
            let place = self.place_of(&file.path);
            length(beside(&place)).max(length(place)).min(file.size)
        };
        Ok(files.iter().map(here).sum())
    }

    /// Where a file is put.
    pub fn place_of(&self, path: &str) -> PathBuf {
        self.under_way.join(path)
    }

    /// Nothing is fetched after all; what an earlier time left stays.
    pub fn leave(&self, here: u64) {
        if here == 0 {
            drop(fs::remove_dir_all(&self.under_way));
        }
    }

    /// It is whole: gives it its name, in one step. What had the name before is removed after.
    ///
    /// # Errors
    /// What is there was not put there so, or the disk.
    pub fn finish(&self) -> Result<PathBuf, PlaceError> {
        let putting = || disk("putting the model at", &self.whole);
        if let Some(parent) = self.whole.parent() {
            fs::create_dir_all(parent).map_err(putting())?;
        }
        let old = self.under_way.with_extension("old");
        drop(fs::remove_dir_all(&old));
        if self.whole.exists() {
            if Manifest::read(&self.whole).is_none() {
                return Err(PlaceError::Foreign { path: self.whole.clone() });
            }
            fs::rename(&self.whole, &old).map_err(putting())?;
        }
        fs::rename(&self.under_way, &self.whole).map_err(putting())?;
        drop(fs::remove_dir_all(old));
        Ok(self.whole.clone())
    }
}

/// Where a file lies that is not whole.
pub fn beside(place: &Path) -> PathBuf {
    let mut name = place.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    place.with_file_name(name)
}
