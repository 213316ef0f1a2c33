//! What this machine was measured to do, kept in the data folder: its own ceilings, and each model's speeds.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use base::Bytes;
use serde::{Deserialize, Serialize};
use wire::control::DeviceFacts;

/// The file, in the provider's data folder.
const FILE: &str = "measured.json";
/// Models that are remembered.
const MODELS_MAX: usize = 256;
/// Memory that is read to find how fast that goes: more than any cache, read in tenths of a second.
const READ_BYTES: usize = 128 << 20;

/// A model's speeds, in tokens in a thousand seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Speeds {
    pub(crate) decode_per_ks: u64,
    pub(crate) prefill_per_ks: u64,
}

impl Speeds {
    pub(crate) fn of(report: &engine::EngineReport) -> Self {
        let per_ks = |per_s: f32| (f64::from(per_s.max(0.0)) * 1e3) as u64;
        Self {
            decode_per_ks: per_ks(report.decode_tokens_per_s),
            prefill_per_ks: per_ks(report.prefill_tokens_per_s),
        }
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    /// Which processor and how many threads this is about: another machine's figures are not ours.
    machine: String,
    read_bytes_per_s: u64,
    flops: u64,
    /// By all cores of the host; absent in what earlier versions kept.
    #[serde(default)]
    host_read_bytes_per_s: u64,
    models: BTreeMap<String, Speeds>,
}

impl Kept {
    /// What a file has, where it is about this machine.
    fn read(path: &Path, machine: &str) -> Option<Self> {
        let kept = serde_json::from_slice::<Self>(&std::fs::read(path).ok()?).ok()?;
        (kept.machine == machine && kept.host_read_bytes_per_s > 0).then_some(kept)
    }

    fn measure(machine: String, threads: usize) -> Self {
        let ceilings = engine::machine::ceilings(threads, READ_BYTES);
        let cores = engine::machine::cores();
        let host = if threads >= cores { ceilings } else { engine::machine::ceilings(cores, READ_BYTES) };
        Self {
            machine,
            host_read_bytes_per_s: host.read_bytes_per_s as u64,
            read_bytes_per_s: ceilings.read_bytes_per_s as u64,
            // A multiply-add is two operations.
            flops: (ceilings.f32_per_s * 2.0) as u64,
            models: BTreeMap::new(),
        }
    }
}

/// Waits for its turn among providers that name this folder, until what is given is dropped; nothing where there is no such
/// folder, or the file system knows no locks.
pub(crate) fn alone_on_host(beside: Option<&Path>) -> Option<File> {
    let path = beside?.join(FILE).with_extension("lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path).ok()?;
    file.lock().ok()?;
    Some(file)
}

/// The figures.
#[derive(Debug)]
pub(crate) struct Measured {
    path: PathBuf,
    kept: Kept,
}

impl Measured {
    /// What an earlier start measured of the same machine; else it is measured now, in some tenths of a second. Providers
    /// that stand on one machine name one folder, `beside`: the first of them measures, alone, and all have its figures.
    pub(crate) fn open(folder: &Path, beside: Option<&Path>, cpu: &str, threads: usize) -> Self {
        let path = folder.join(FILE);
        let machine = format!("{cpu}, {threads} threads, {}", env!("CARGO_PKG_VERSION"));
        if let Some(kept) = Kept::read(&path, &machine) {
            return Self { path, kept };
        }
        let measured = match beside {
            None => Self { path, kept: Kept::measure(machine, threads) },
            Some(beside) => {
                // Released when it is dropped, or its process dies. Without it they would measure each other's work.
                let _lock = alone_on_host(Some(beside));
                let shared = beside.join(FILE);
                let kept = Kept::read(&shared, &machine).unwrap_or_else(|| {
                    let measured = Self { path: shared, kept: Kept::measure(machine, threads) };
                    measured.write();
                    measured.kept
                });
                Self { path, kept: Kept { models: BTreeMap::new(), ..kept } }
            }
        };
        measured.write();
        measured
    }

    /// This machine's one device, which models may take `memory` of.
    pub(crate) fn device(&self, memory: Bytes) -> DeviceFacts {
        let Kept { read_bytes_per_s, flops, host_read_bytes_per_s, .. } = self.kept;
        DeviceFacts { name: "cpu0".to_owned(), memory, read_bytes_per_s, flops, host_read_bytes_per_s }
    }

    /// How fast a model ran here; zeros where it has not.
    pub(crate) fn of(&self, model: &str) -> Speeds {
        self.kept.models.get(model).copied().unwrap_or_default()
    }

    /// Models whose speed is known.
    pub(crate) fn models(&self) -> Vec<String> {
        self.kept.models.keys().cloned().collect()
    }

    /// Keeps how fast a model runs here.
    pub(crate) fn note(&mut self, model: &str, speeds: Speeds) {
        if speeds == self.of(model) {
            return;
        }
        while self.kept.models.len() >= MODELS_MAX && !self.kept.models.contains_key(model) {
            self.kept.models.pop_first();
        }
        self.kept.models.insert(model.to_owned(), speeds);
        self.write();
    }

    /// A folder that cannot be written costs the next start some tenths of a second, nothing else.
    fn write(&self) {
        let beside = self.path.with_extension("tmp");
        let bytes = serde_json::to_vec(&self.kept).unwrap_or_default();
        let written = std::fs::write(&beside, bytes).and_then(|()| std::fs::rename(&beside, &self.path));
        if let Err(error) = written {
            tracing::warn!(path = %self.path.display(), %error, "measurements cannot be kept");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_measured_once_for_each_machine_and_kept() {
        let home = tempfile::tempdir().unwrap();
        let mut first = Measured::open(home.path(), None, "a processor", 1);
        assert!(first.kept.read_bytes_per_s > 1 << 20 && first.kept.flops > 1 << 20, "{first:?}");
        let speeds = Speeds { decode_per_ks: 12_500, prefill_per_ks: 90_000 };
        first.note("tiny", speeds);
        let second = Measured::open(home.path(), None, "a processor", 1);
        assert_eq!(second.device(Bytes(7)), first.device(Bytes(7)));
        assert_eq!((second.of("tiny"), second.of("other")), (speeds, Speeds::default()));
        let (beside, third) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let of = |own: &Path| Measured::open(own, Some(beside.path()), "a processor", 1).device(Bytes(7));
        assert_eq!(of(home.path()), first.device(Bytes(7)), "what it has, it has");
        std::fs::copy(home.path().join(FILE), beside.path().join(FILE)).unwrap();
        assert_eq!(of(third.path()), first.device(Bytes(7)), "measured by another on the same machine");
        let third = Measured::open(third.path(), None, "a processor", 1);
        assert_eq!(third.of("tiny"), Speeds::default(), "models' speeds are its own");
        let other = Measured::open(home.path(), None, "another processor", 1);
        assert_eq!(other.of("tiny"), Speeds::default());
        std::fs::write(home.path().join(FILE), b"{damaged").unwrap();
        assert_eq!(Measured::open(home.path(), None, "a processor", 1).of("tiny"), Speeds::default());
    }
}
