//! Which weights a machine holds, as a hash, computed once for each content of the files: to hash a model is to read all
//! of it, and a rank that only needs a part, or a process that starts again, should not.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use engine::LoadedModel;
use serde::{Deserialize, Serialize};

/// The file of hashes, in the provider's data folder.
const FILE: &str = "weights.json";
/// Models that are remembered.
const KEPT_MAX: usize = 256;
/// Files that changed later than this ago may change again without their time showing it: times come from a clock that
/// ticks every few milliseconds, on some file systems every two seconds.
const SETTLED_NS: i128 = 3_000_000_000;

/// What was hashed: the key is a hash of the files' names and stamps.
#[derive(Default, Serialize, Deserialize)]
struct Kept {
    sha256: BTreeMap<String, String>,
}

/// The hash of `loaded`'s weights, 64 hexadecimal digits: from `folder` where these files were hashed before.
pub(crate) fn sha256(loaded: &LoadedModel, folder: &Path) -> String {
    let now_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i128);
    sha256_at(loaded, folder, now_ns)
}

fn sha256_at(loaded: &LoadedModel, folder: &Path, now_ns: i128) -> String {
    let hash = || trust::hex(&trust::sha256_of_files(loaded.weight_files()));
    let Some(stamps) = loaded.weight_stamps() else { return hash() };
    // The index is small, and part of what is hashed: the files' stamps say nothing of it.
    let index: Vec<_> =
        loaded.weight_files().filter(|(name, _)| stamps.iter().all(|(file, _)| file != name)).collect();
    let key = format!("{stamps:?} {}", trust::hex(&trust::sha256_of_files(index.into_iter())));
    let key = trust::hex(&trust::sha256(key.as_bytes()));
    let path = folder.join(FILE);
    if let Some(known) = read(&path).sha256.remove(&key) {
        return known;
    }
    let hashed = hash();
    if stamps.iter().all(|(_, stamp)| now_ns - stamp.changed_ns.max(stamp.modified_ns) > SETTLED_NS) {
        let mut kept = read(&path);
        while kept.sha256.len() >= KEPT_MAX {
            kept.sha256.pop_first();
        }
        kept.sha256.insert(key, hashed.clone());
        // A folder that cannot be written costs the next start some time, nothing else.
        let _ = write(&path, &kept);
    }
    hashed
}

fn read(path: &Path) -> Kept {
    std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// By rename: two ranks of one machine may write at once, and neither may read half a file.
fn write(path: &Path, kept: &Kept) -> std::io::Result<()> {
    let beside = path.with_extension(format!("{:?}.tmp", std::thread::current().id()));
    std::fs::write(&beside, serde_json::to_vec(kept)?)?;
    std::fs::rename(beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::{LoadOptions, ModelSource};
    use model::synth::{Synth, SynthRequest};

    /// Replaced, not rewritten: a mapping of what was there stays whole.
    fn synthetic(folder: &Path, seed: u64) {
        let synth = Synth::new(&SynthRequest { seed, ..SynthRequest::default() }).unwrap();
        let kit = synth.kit();
        let (mut bytes, _) = synth.header();
        (0..synth.tensors()).for_each(|at| synth.chunks(at).for_each(|chunk| bytes.extend(chunk)));
        for (name, bytes) in [("config.json", &kit.config), ("model.safetensors", &bytes)] {
            std::fs::write(folder.join("next"), bytes).unwrap();
            std::fs::rename(folder.join("next"), folder.join(name)).unwrap();
        }
    }

    fn load(folder: &Path) -> LoadedModel {
        let options = LoadOptions { tokenizer_needed: false };
        engine::load(&ModelSource::Folder(folder.to_owned()), &options).expect("a model")
    }

    fn now_ns() -> i128 {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as i128
    }

    #[test]
    fn weights_are_hashed_once_until_their_file_is_another() {
        let (model, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        synthetic(model.path(), 1);
        let true_hash = trust::hex(&trust::sha256_of_files(load(model.path()).weight_files()));
        // Just written: it may be written again within one tick of the clock.
        assert_eq!(sha256_at(&load(model.path()), data.path(), now_ns()), true_hash);
        assert!(!data.path().join(FILE).exists());
        let later = now_ns() + 2 * SETTLED_NS;
        assert_eq!(sha256_at(&load(model.path()), data.path(), later), true_hash);
        let mut kept = read(&data.path().join(FILE));
        assert_eq!(kept.sha256.values().collect::<Vec<_>>(), [&true_hash]);
        // What is kept is what is answered: nothing is read again.
        kept.sha256.values_mut().for_each(|hash| *hash = "kept".to_owned());
        write(&data.path().join(FILE), &kept).unwrap();
        assert_eq!(sha256_at(&load(model.path()), data.path(), later), "kept");
        synthetic(model.path(), 2);
        let other = sha256_at(&load(model.path()), data.path(), later);
        assert!(other != "kept" && other != true_hash, "{other}");
        std::fs::write(data.path().join(FILE), b"{not json").unwrap();
        assert_eq!(sha256_at(&load(model.path()), data.path(), later), other);
    }
}
