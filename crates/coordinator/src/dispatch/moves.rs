//! Where an answer goes whose machine is lost: elsewhere, within a budget, or nowhere for a while.

use std::time::{Duration, Instant};

use fleet::Refusal;

use super::{Serving, Stop};
use crate::core::span;
use crate::problem::Problem;

/// Machines in a row that an answer which has begun may be lost on without a single token more: what ends an engine each
/// time must not end every engine.
const FRUITLESS_MAX: u32 = 8;

/// Between two looks for a machine that can take a request.
const PAUSE: Duration = Duration::from_millis(100);

impl Serving {
    /// An answer that has begun goes elsewhere, within its budget. One that no machine brings any further, or that takes
    /// machine after machine along, is not tried on all there are.
    pub(super) fn moves(&mut self) -> Result<(), Stop> {
        if !self.started {
            return Ok(());
        }
        self.moved += 1;
        self.fruitless = if self.generated() > self.resumed_at { 0 } else { self.fruitless + 1 };
        let most = self.core.config.requests.moves_max;
        if self.fruitless <= FRUITLESS_MAX && (most == 0 || self.moved <= most) {
            return Ok(());
        }
        let detail = "it was moved as often as requests.moves_max allows, or no machine brought it further";
        Err(Stop::failed(Problem::StreamLost { tokens: self.generated(), detail }))
    }

    /// An answer that has begun is not refused for want of machines, nor is one whose group forms again: it waits for them a
    /// while.
    pub(super) async fn strand(&mut self, refusal: &Refusal) -> Result<(), Stop> {
        let since = *self.stranded.get_or_insert_with(Instant::now);
        // What an operator deleted does not come back (D5).
        let over = matches!(refusal, Refusal::NoServingPath)
            && self.core.deployments.is_over(&self.work.served.name);
        let cured = !over && !matches!(refusal, Refusal::AttemptsFailed { .. } | Refusal::TooLong { .. });
        if !cured || since.elapsed() >= span(self.core.config.requests.stranded_us) {
            if !self.started {
                return Err(Stop::failed(Problem::Refused(*refusal)));
            }
            let detail = if over {
                "the model's deployment was deleted"
            } else {
                "its machine was lost, and no other can go on with it"
            };
            return Err(Stop::failed(Problem::StreamLost { tokens: self.generated(), detail }));
        }
        self.pause().await?;
        self.forgive();
        Ok(())
    }

    /// Between two looks for a machine.
    pub(super) async fn pause(&self) -> Result<(), Stop> {
        let waited = self.wait(tokio::time::sleep(PAUSE), None).await;
        waited.map_err(|interrupt| interrupt.stop(|| Stop::CallerGone))
    }

    /// Whether the end of the current attempt's group is one more: before a coordinator knows that a group's life is over, it
    /// may send the same request there several times.
    pub(super) fn loses_a_life(&mut self) -> bool {
        let Some(life) = self.life.take() else { return true };
        let first = !self.lives_lost.contains(&life);
        if first {
            self.lives_lost.push(life);
        }
        first
    }

    /// Takes back into consideration every machine that failed it, where a deployment wants the model and there is no other
    /// machine to try: what failed there may be over, and another instance may stand there now. Each try counts as before.
    /// False where there are no tries left.
    pub(super) fn forgives_all(&mut self) -> bool {
        let served = &self.work.served;
        let left = self.started || self.tried < self.core.config.pool.attempts_max;
        if !left || self.excluded.is_empty() || !self.core.pools.is_wanted(&served.name) {
            return false;
        }
        self.excluded.clear();
        self.away.clear();
        true
    }

    /// Takes back into consideration the machines that only went away; false where there are none.
    pub(super) fn forgive(&mut self) -> bool {
        let away = std::mem::take(&mut self.away);
        self.excluded.retain(|machine| !away.contains(machine));
        !away.is_empty()
    }
}
