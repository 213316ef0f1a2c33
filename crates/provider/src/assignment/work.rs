//! One load, in a thread of its own: files, kit, memory, weights; ended at any tensor.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use base::Bytes;
use engine::{Engine, LoadOptions};
use tokio::sync::mpsc;

use super::AssignNews;
use super::desk::Life;
use crate::config::ModelConfig;
use crate::host::Host;
use crate::load::{chain, describe};

const CANCELLED: &str = "it was not wanted any more";

pub(super) struct Load {
    pub(super) life: Life,
    pub(super) model: ModelConfig,
    /// The provider's data folder: what is known of weights is kept there.
    pub(super) folder: PathBuf,
    /// What it is thought to take.
    pub(super) needs: Bytes,
    /// Threads whose memory must be free first.
    pub(super) before: Vec<JoinHandle<()>>,
    pub(super) cancelled: Arc<AtomicBool>,
    pub(super) news: mpsc::Sender<AssignNews>,
}

impl Load {
    /// Loads; whatever happens, the last word is that it takes requests, or that it does not and why.
    pub(super) fn run(mut self) {
        let started = Instant::now();
        for thread in std::mem::take(&mut self.before) {
            // A panic there has been said by the panic hook.
            let _ = thread.join();
        }
        // A panic must not leave the coordinator with an assignment that nobody carries out.
        let loaded = catch_unwind(AssertUnwindSafe(|| self.load()))
            .unwrap_or_else(|_| Err("loading broke down; see its provider's log".to_owned()));
        let life = self.life;
        let last = match loaded {
            Ok(engine) => AssignNews::Loaded { life, host: Host::Engine(engine), took: started.elapsed() },
            Err(failed) => AssignNews::LoadEnded { life, failed },
        };
        if let Err(mpsc::error::SendError(AssignNews::Loaded { host, .. })) = self.news.blocking_send(last) {
            host.stop();
        }
    }

    fn is_cancelled(&self) -> Result<(), String> {
        if self.cancelled.load(Ordering::Relaxed) { Err(CANCELLED.to_owned()) } else { Ok(()) }
    }

    fn load(&self) -> Result<Engine, String> {
        let loaded = engine::load(&self.model.source, &LoadOptions::default()).map_err(|e| chain(&e))?;
        self.is_cancelled()?;
        let kit: Arc<[u8]> = loaded.kit().to_bytes().into();
        let descriptor = Box::new(describe(&self.model, &loaded, &kit, &self.folder));
        self.is_cancelled()?;
        // The coordinator reads the kit while the weights are read here.
        let _ = self.news.blocking_send(AssignNews::Described { life: self.life, descriptor, kit });
        if let Some(memory) = engine::machine::memory().filter(|memory| memory.available < self.needs) {
            return Err(format!(
                "it takes {} with its cache, and {} of memory are free: other programs hold the rest of what \
                 models may take here",
                self.needs, memory.available
            ));
        }
        let (cancelled, news, life) = (Arc::clone(&self.cancelled), self.news.clone(), self.life);
        let (all, said) = (loaded.weight_bytes().0.max(1), AtomicU8::new(0));
        let watch = move |read: Bytes| {
            // A tied head is read twice.
            let percent = u8::try_from((read.0.min(all) * 99) / all).unwrap_or(99);
            if said.fetch_max(percent, Ordering::Relaxed) < percent {
                // Progress is dropped where nobody reads; the next says more.
                let _ = news.try_send(AssignNews::Progress { life, percent });
            }
            !cancelled.load(Ordering::Relaxed)
        };
        let loaded = loaded.watched(Arc::new(watch));
        let engine = Engine::start(self.model.name.clone(), loaded, self.model.engine.clone());
        engine.map_err(|e| if self.is_cancelled().is_err() { CANCELLED.to_owned() } else { chain(&e) })
    }
}

/// What of this process is in memory; nothing where the system does not say.
pub(super) fn resident() -> Option<Bytes> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| Bytes(kib << 10))
}
