//! The files of this machine's models, for other machines whom the coordinator named: each may have the models that it was
//! named for and nothing else. Bounded in number and rate, and second to requests that this machine serves.

mod files;

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use engine::ModelSource;
use link::{Cancel, Giving, Library};
use parking_lot::{Mutex, RwLock};
use wire::control::Lends;
use wire::link::Manifest;

use files::Lendable;
pub(crate) use files::keep_manifest;

/// Machines that are given something at once; more are told to come again.
const AT_ONCE_MAX: usize = 4;
/// Where this machine serves requests, whoever takes files waits so many times as long as each piece took: at most a
/// quarter of the time goes to it.
const REST_SHARE: u32 = 3;
/// One rest; longer ones are taken in several steps, so that an end is noticed.
const REST_MAX: Duration = Duration::from_secs(1);
/// The slowest that anybody is served: slower, and who takes would give up waiting.
const RATE_MIN: u64 = 64 << 10;

/// What may be given, to whom.
pub(crate) struct Lending {
    /// Key, and model.
    lends: RwLock<Vec<([u8; 32], String)>>,
    models: RwLock<HashMap<String, ModelSource>>,
    /// The provider's data folder: manifests are kept there.
    folder: PathBuf,
    /// Bytes a second to all together, at most.
    rate: Option<u64>,
    /// When the next byte may leave, where there is such a rate.
    next: Mutex<Instant>,
    /// Whether this machine serves requests at the moment.
    busy: AtomicBool,
    giving: AtomicUsize,
    /// One after the other: two that read the same disk are not faster.
    reading: Mutex<()>,
    over: Cancel,
}

impl Lending {
    pub(crate) fn new(folder: PathBuf, rate: Option<u64>) -> Self {
        Self {
            lends: RwLock::default(),
            models: RwLock::default(),
            folder,
            rate: rate.map(|rate| rate.max(RATE_MIN)),
            next: Mutex::new(Instant::now()),
            busy: AtomicBool::new(false),
            giving: AtomicUsize::new(0),
            reading: Mutex::new(()),
            over: Cancel::new(),
        }
    }

    /// Whom the coordinator names. One whose key cannot be read is nobody.
    pub(crate) fn listed(&self, lends: Lends) {
        let read = |lend: wire::control::Lend| {
            let key = BASE64.decode(&lend.signing_key).ok()?.try_into().ok()?;
            Some((key, lend.model.as_str().to_owned()))
        };
        *self.lends.write() = lends.lends.into_iter().filter_map(read).collect();
    }

    /// The keys of all who may have something.
    pub(crate) fn keys(&self) -> Vec<[u8; 32]> {
        self.lends.read().iter().map(|(key, _)| *key).collect()
    }

    /// What this machine has.
    pub(crate) fn shelved<'a>(&self, models: impl Iterator<Item = (&'a str, &'a ModelSource)>) {
        *self.models.write() = models.map(|(name, source)| (name.to_owned(), source.clone())).collect();
    }

    pub(crate) fn set_busy(&self, busy: bool) {
        self.busy.store(busy, Ordering::Relaxed);
    }

    /// Ends whatever is being given.
    pub(crate) fn end(&self) {
        self.over.cancel();
    }

    fn may(&self, key: [u8; 32], model: &str) -> bool {
        self.lends.read().iter().any(|(of, name)| *of == key && name == model)
    }

    /// Waits after so many bytes; whether to go on.
    fn rest(&self, bytes: usize, took: Duration) -> bool {
        let mut until = Instant::now();
        if self.busy.load(Ordering::Relaxed) {
            until += (took * REST_SHARE).min(REST_MAX);
        }
        if let Some(rate) = self.rate {
            let mut next = self.next.lock();
            *next = (*next).max(Instant::now()) + Duration::from_secs_f64(bytes as f64 / rate as f64);
            until = until.max(*next);
        }
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return !self.over.is_cancelled();
            }
            if self.over.wait(left.min(REST_MAX)) {
                return false;
            }
        }
    }
}

impl Library for Lending {
    fn open<'a>(
        &'a self,
        key: [u8; 32],
        model: &str,
        preparing: &mut dyn FnMut(u8) -> bool,
    ) -> Result<Box<dyn Giving + 'a>, String> {
        if !self.may(key, model) {
            return Err("the coordinator has not said that you may have it".to_owned());
        }
        let source = self.models.read().get(model).cloned();
        let source = source.ok_or("it is not on this machine's disk any more")?;
        let place = Counted::take(&self.giving)?;
        let lendable = Lendable::find(&source)?;
        let reading = loop {
            match self.reading.try_lock_for(Duration::from_secs(1)) {
                Some(reading) => break reading,
                None if self.over.is_cancelled() || !preparing(0) => return Err("it is leaving".to_owned()),
                None => {}
            }
        };
        let mut watch = |percent: u8, took: Duration| {
            // Reading is work, too.
            if self.busy.load(Ordering::Relaxed) {
                self.over.wait((took * REST_SHARE).min(REST_MAX));
            }
            !self.over.is_cancelled() && preparing(percent)
        };
        let manifest = lendable.manifest(&self.folder, &mut watch)?;
        drop(reading);
        let decoded = Manifest::decode(&manifest).map_err(|error| error.to_string())?;
        let paths = decoded.files.iter().filter_map(|file| lendable.path_of(&file.path)).collect();
        Ok(Box::new(Given { lending: self, manifest: manifest.into(), paths, open: None, _place: place }))
    }
}

/// A place among those who are given something.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn take(count: &'a AtomicUsize) -> Result<Self, String> {
        if count.fetch_add(1, Ordering::Relaxed) >= AT_ONCE_MAX {
            count.fetch_sub(1, Ordering::Relaxed);
            return Err(format!("{AT_ONCE_MAX} machines are being given something: come again"));
        }
        Ok(Self(count))
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A model that is being given.
struct Given<'a> {
    lending: &'a Lending,
    manifest: Arc<[u8]>,
    /// By the manifest's numbers.
    paths: Vec<PathBuf>,
    open: Option<(usize, File)>,
    _place: Counted<'a>,
}

impl Giving for Given<'_> {
    fn manifest(&self) -> Arc<[u8]> {
        Arc::clone(&self.manifest)
    }

    fn read(&mut self, file: usize, offset: u64, into: &mut [u8]) -> Result<(), String> {
        let gone = |error: std::io::Error| format!("it cannot be read any more: {error}");
        if self.open.as_ref().is_none_or(|(open, _)| *open != file) {
            let path = self.paths.get(file).ok_or("it has no such file")?;
            self.open = Some((file, File::open(path).map_err(gone)?));
        }
        let Some((_, open)) = &mut self.open else { return Err("it has no such file".to_owned()) };
        open.read_exact_at(into, offset).map_err(gone)
    }

    fn rest(&mut self, bytes: usize, took: Duration) -> bool {
        self.lending.rest(bytes, took)
    }
}
