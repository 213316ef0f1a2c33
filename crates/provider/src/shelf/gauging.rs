//! How fast models would run here, found out in the thread that looks for them, while nothing is held.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use base::ModelName;
use engine::{EngineConfig, GAUGED_BYTES};

use super::{Places, Shelf, Shelved};
use crate::measured::alone_on_host;

/// Spent on it in the first look, whose models somebody waits for.
const FIRST_MAX: Duration = Duration::from_millis(1_000);
/// Spent on it in each look after that.
const LATER_MAX: Duration = Duration::from_secs(5);

/// Tokens in a thousand seconds: generated, of prompts. Zeros where it could not be found out.
type PerKs = (u64, u64);

/// What it takes.
pub(crate) struct Gauging {
    /// How models are computed here.
    pub(crate) engine: EngineConfig,
    /// Whether this machine holds something, or is about to.
    pub(crate) busy: Arc<AtomicBool>,
    /// The folder in which providers of one machine wait for each other.
    pub(crate) beside: Option<PathBuf>,
    /// Models whose speed is known from an earlier start.
    pub(crate) known: Vec<String>,
    /// What was found out, by name, size and configuration.
    pub(crate) found: HashMap<(ModelName, u64, String), PerKs>,
    pub(crate) rounds: u32,
}

impl Gauging {
    /// Adds what is known of each model's speed, and finds out what is not, as long as there is time.
    pub(crate) fn fill(&mut self, places: &Places, shelf: &mut Shelf) {
        let (begun, most) = (Instant::now(), if self.rounds == 0 { FIRST_MAX } else { LATER_MAX });
        self.rounds = self.rounds.saturating_add(1);
        let given = |model: &Shelved| places.given.iter().any(|(name, _)| *name == model.facts.name);
        let mut order: Vec<usize> = (0..shelf.models.len()).collect();
        order.sort_by_key(|&at| !given(&shelf.models[at]));
        for at in order {
            let model = &mut shelf.models[at];
            if self.known.iter().any(|name| *name == model.facts.name.as_str()) {
                continue;
            }
            let key = (model.facts.name.clone(), model.facts.memory_bytes.0, model.facts.config.clone());
            let idle = !self.busy.load(Ordering::Relaxed) && begun.elapsed() < most;
            let per_ks = match self.found.get(&key) {
                Some(per_ks) => *per_ks,
                None if idle => {
                    let per_ks = self.find_out(model);
                    self.found.insert(key, per_ks);
                    per_ks
                }
                None => continue,
            };
            (model.facts.decode_tokens_per_ks, model.facts.prefill_tokens_per_ks) = per_ks;
        }
    }

    fn find_out(&self, model: &Shelved) -> PerKs {
        let _alone = alone_on_host(self.beside.as_deref());
        // What is wrong with a model's weights is said when it is loaded.
        let gauged = std::panic::catch_unwind(|| {
            let loaded = engine::look(&model.source).ok()?;
            engine::gauge(&loaded, &self.engine, GAUGED_BYTES).ok()?
        });
        let per_ks = |tokens_per_s: f64| (tokens_per_s.max(0.0) * 1e3) as u64;
        let gauged = gauged.ok().flatten();
        gauged.map_or((0, 0), |gauge| (per_ks(gauge.decode_tokens_per_s), per_ks(gauge.prefill_tokens_per_s)))
    }
}
