//! Where models are put: what is under way lies hidden, and is a model's folder in one step once it is whole.

use std::fs::{self, File as DiskFile};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use super::fetch::beside;
use super::hub::File;

/// What is under way, in the folder of models: hidden, so that nobody takes it for a model.
const UNDER_WAY: &str = ".pulling";
/// What was fetched, beside it.
const MANIFEST: &str = ".phalanx-pull.json";

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    revision: String,
    files: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    path: String,
    size: u64,
    sha256: Option<String>,
    blob: Option<String>,
}

impl Entry {
    fn of(file: &File) -> Self {
        let File { path, size, sha256, blob } = file.clone();
        Self { path, size, sha256, blob }
    }
}

/// One model's place.
pub(super) struct Shelf {
    under_way: PathBuf,
    whole: PathBuf,
    /// Held for as long as this is: two that write into one file would both be wrong.
    _lock: DiskFile,
}

impl Shelf {
    /// The place of `name` in `folder`, for this process alone.
    pub(super) fn open(folder: &Path, name: &str) -> anyhow::Result<Self> {
        let all = folder.join(UNDER_WAY);
        fs::create_dir_all(&all).with_context(|| format!("making the folder {}", all.display()))?;
        let flat = name.replace('/', "--");
        let path = all.join(format!("{flat}.lock"));
        let lock = DiskFile::create(&path).with_context(|| format!("opening {}", path.display()))?;
        if lock.try_lock().is_err() {
            bail!("{name} is being fetched into {} by another process", folder.display());
        }
        Ok(Self { under_way: all.join(flat), whole: folder.join(name), _lock: lock })
    }

    /// Where the model is, if it is there whole at this revision.
    pub(super) fn is_there(&self, revision: &str, files: &[File]) -> Option<PathBuf> {
        let manifest = read(&self.whole)?;
        let wanted = Manifest { revision: revision.to_owned(), files: files.iter().map(Entry::of).collect() };
        let whole = |file: &File| {
            fs::metadata(self.whole.join(&file.path)).is_ok_and(|found| found.len() == file.size)
        };
        (manifest == wanted && files.iter().all(whole)).then(|| self.whole.clone())
    }

    /// Begins, or goes on with what an earlier time left, as far as it is of the same content; how much of it is here.
    pub(super) fn begin(&self, revision: &str, files: &[File]) -> anyhow::Result<u64> {
        fs::create_dir_all(&self.under_way)
            .with_context(|| format!("making the folder {}", self.under_way.display()))?;
        let before = read(&self.under_way).map(|manifest| manifest.files).unwrap_or_default();
        for entry in &before {
            // Another content under the same name: nothing of it is of use.
            if !files.iter().any(|file| Entry::of(file) == *entry) {
                let place = self.place_of(&entry.path);
                drop(fs::remove_file(beside(&place)));
                drop(fs::remove_file(place));
            }
        }
        let manifest =
            Manifest { revision: revision.to_owned(), files: files.iter().map(Entry::of).collect() };
        let path = self.under_way.join(MANIFEST);
        fs::write(&path, serde_json::to_vec_pretty(&manifest)?)
            .with_context(|| format!("writing {}", path.display()))?;
        let length = |path: PathBuf| fs::metadata(path).map_or(0, |found| found.len());
        let here = |file: &File| {
            let place = self.place_of(&file.path);
            length(beside(&place)).max(length(place)).min(file.size)
        };
        Ok(files.iter().map(here).sum())
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
            if read(&self.whole).is_none() {
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

fn read(folder: &Path) -> Option<Manifest> {
    serde_json::from_slice(&fs::read(folder.join(MANIFEST)).ok()?).ok()
}
