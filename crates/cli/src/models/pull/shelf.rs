//! Where models are put: what is under way lies hidden, and is a model's folder in one step once it is whole.

use std::fs::{self, File as DiskFile};
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use provider::stock::{Entry, Manifest, Stock};

use super::fetch::beside;
use super::hub::File;

fn entry(file: &File) -> Entry {
    let File { path, size, sha256, blob } = file.clone();
    Entry { path, size, sha256, blob }
}

/// One model's place.
pub(super) struct Shelf {
    under_way: PathBuf,
    whole: PathBuf,
    /// Held for as long as this is.
    _lock: DiskFile,
}

impl Shelf {
    /// The place of `name` in a folder of models, for this process alone.
    pub(super) fn open(stock: &Stock, name: &str) -> anyhow::Result<Self> {
        let folder = stock.folder().display();
        let lock = stock.fetching(name).with_context(|| format!("making the folder {folder}"))?;
        let Some(lock) = lock else { bail!("{name} is being fetched into {folder} by another process") };
        Ok(Self { under_way: stock.place_under_way(name), whole: stock.place(name), _lock: lock })
    }

    /// Where the model is, if it is there whole at this revision.
    pub(super) fn is_there(&self, revision: &str, files: &[File]) -> Option<PathBuf> {
        let manifest = Manifest::read(&self.whole)?;
        let wanted = Manifest { revision: revision.to_owned(), files: files.iter().map(entry).collect() };
        let whole = |file: &File| {
            fs::metadata(self.whole.join(&file.path)).is_ok_and(|found| found.len() == file.size)
        };
        (manifest == wanted && files.iter().all(whole)).then(|| self.whole.clone())
    }

    /// Begins, or goes on with what an earlier time left, as far as it is of the same content; how much of it is here.
    pub(super) fn begin(&self, revision: &str, files: &[File]) -> anyhow::Result<u64> {
        fs::create_dir_all(&self.under_way)
            .with_context(|| format!("making the folder {}", self.under_way.display()))?;
        let before = Manifest::read(&self.under_way).map(|manifest| manifest.files).unwrap_or_default();
        for before in &before {
            // Another content under the same name: nothing of it is of use.
            if !files.iter().any(|file| entry(file) == *before) {
                let place = self.place_of(&before.path);
                drop(fs::remove_file(beside(&place)));
                drop(fs::remove_file(place));
            }
        }
        let manifest = Manifest { revision: revision.to_owned(), files: files.iter().map(entry).collect() };
        manifest
            .write(&self.under_way)
            .with_context(|| format!("writing what is fetched into {}", self.under_way.display()))?;
        let length = |path: PathBuf| fs::metadata(path).map_or(0, |found| found.len());
        let here = |file: &File| {
            let place = self.place_of(&file.path);
            length(beside(&place)).max(length(place)).min(file.size)
        };
        Ok(files.iter().map(here).sum())
    }

    /// Nothing is fetched after all; what an earlier time left stays.
    pub(super) fn leave(&self, here: u64) {
        if here == 0 {
            drop(fs::remove_dir_all(&self.under_way));
        }
    }

    /// Where a file is put.
    pub(super) fn place_of(&self, path: &str) -> PathBuf {
        self.under_way.join(path)
    }

    /// It is whole: gives it its name, in one step. What had the name before is removed after.
    pub(super) fn finish(&self) -> anyhow::Result<PathBuf> {
        let said = || format!("putting the model at {}", self.whole.display());
        if let Some(parent) = self.whole.parent() {
            fs::create_dir_all(parent).with_context(said)?;
        }
        let old = self.under_way.with_extension("old");
        drop(fs::remove_dir_all(&old));
        if self.whole.exists() {
            if Manifest::read(&self.whole).is_none() {
                bail!(
                    "{} is there, and was not made by this command: move it away first",
                    self.whole.display()
                );
            }
            fs::rename(&self.whole, &old).with_context(said)?;
        }
        fs::rename(&self.under_way, &self.whole).with_context(said)?;
        drop(fs::remove_dir_all(old));
        Ok(self.whole.clone())
    }
}
