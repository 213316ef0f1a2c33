//! What requests ask of deployments: rates over the last half minute or so, refused ones included.

use std::collections::{BTreeMap, HashMap};

use base::Micros;
use fleet::plan::Demand;
use fleet::reconcile::Controller;

use crate::core::Core;

/// How often rates are taken.
pub(super) const EVERY: Micros = Micros::from_secs(5);
/// What the newest span counts against those before it.
const NEWEST: f64 = 0.3;

#[derive(Default, Clone, Copy)]
struct Seen {
    taken: u64,
    refused: u64,
    demand: Demand,
}

/// Rates, by model.
#[derive(Default)]
pub(super) struct Rates {
    by_model: HashMap<String, Seen>,
    at: Micros,
}

impl Rates {
    /// When rates are taken next.
    pub(super) fn due(&self) -> Micros {
        self.at + EVERY
    }

    /// Takes them, where it is time.
    pub(super) fn take(&mut self, core: &Core, now: Micros) {
        if now < self.due() {
            return;
        }
        let span = now.saturating_sub(self.at).as_secs_f64();
        let first = self.at == Micros::ZERO;
        self.at = now;
        let mut turned_away = std::mem::take(&mut *core.deployments.turned_away.lock());
        for served in core.pools.all() {
            let name = served.name.as_str().to_owned();
            let ((taken, tokens), refused) = served.look(|pool, _| (pool.asked(), pool.refused().total));
            let early = turned_away.remove(&name).unwrap_or(0);
            self.see(name, (taken, refused, early), tokens, if first { 0.0 } else { span });
        }
        for (name, early) in turned_away {
            let seen = self.by_model.get(&name).copied().unwrap_or_default();
            self.see(name, (seen.taken, seen.refused, early), 0.0, if first { 0.0 } else { span });
        }
    }

    fn see(&mut self, name: String, (taken, refused, early): (u64, u64, u64), tokens: f64, span: f64) {
        let seen = self.by_model.entry(name).or_default();
        if span > 0.0 {
            let rate = |new: u64, old: u64| new.saturating_sub(old) as f64 / span;
            let blend = |old: f64, new: f64| {
                let mixed = old + NEWEST * (new - old);
                // What dies away is nothing some time.
                if mixed < 1e-4 { 0.0 } else { mixed }
            };
            let demand = &mut seen.demand;
            demand.requests_per_s = blend(demand.requests_per_s, rate(taken, seen.taken));
            demand.refused_per_s =
                blend(demand.refused_per_s, rate(refused, seen.refused) + early as f64 / span);
            demand.tokens_per_request = tokens;
        }
        (seen.taken, seen.refused) = (taken, refused);
    }

    /// What is asked of each deployment: several of one model share what is asked of it.
    pub(super) fn of(&self, controller: &Controller) -> BTreeMap<String, Demand> {
        let mut sharing: HashMap<&str, u32> = HashMap::new();
        for (_, deployment) in controller.deployments() {
            *sharing.entry(deployment.spec.model.as_str()).or_default() += 1;
        }
        let mut all = BTreeMap::new();
        for (name, deployment) in controller.deployments() {
            let model = deployment.spec.model.as_str();
            if let Some(seen) = self.by_model.get(model) {
                let share = f64::from(sharing.get(model).copied().unwrap_or(1).max(1));
                let mut demand = seen.demand;
                demand.requests_per_s /= share;
                demand.refused_per_s /= share;
                all.insert(name.clone(), demand);
            }
        }
        all
    }
}
