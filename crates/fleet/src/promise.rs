//! Places promised to refused requests: each gets one of its own, at the pool's pace, and accounts take turns.

use std::collections::BTreeMap;

use base::{AccountId, Micros};

/// Places are promised at the pool's pace divided by this: the rest is for who comes anew.
const SPACING: f64 = 1.3;
/// No `Retry-After` is shorter: zero would be a busy loop.
const RETRY_MIN: Micros = Micros::from_millis(100);
/// No `Retry-After` is longer: a prediction beyond this is none.
const RETRY_MAX: Micros = Micros::from_secs(3600);
/// Accounts with places promised at a time. Beyond it the one whose places end first is forgotten.
const ACCOUNTS_MAX: usize = 4096;

/// Until when each account's promised places reach.
#[derive(Debug, Clone, Default)]
pub(crate) struct Promises {
    until: BTreeMap<AccountId, Micros>,
}

impl Promises {
    /// When a refused request of `account` should come back, from `now`: not before `base`, and after those of its own
    /// account that were refused before it.
    pub(crate) fn retry_after(&self, account: AccountId, now: Micros, base: Micros) -> Micros {
        let own = self.until.get(&account).copied().unwrap_or_default();
        let at = now.saturating_add(base).max(own);
        at.saturating_sub(now).max(RETRY_MIN).min(RETRY_MAX)
    }

    /// Keeps the place that [`Promises::retry_after`] gave. `each` is the time that the pool takes for one request; of
    /// `n` accounts with places, each gets every n-th.
    pub(crate) fn keep(&mut self, account: AccountId, now: Micros, retry_after: Micros, each: Micros) {
        self.until.retain(|_, until| *until > now);
        if self.until.len() >= ACCOUNTS_MAX && !self.until.contains_key(&account) {
            let first = self.until.iter().min_by_key(|(_, until)| **until).map(|(account, _)| *account);
            first.map(|account| self.until.remove(&account));
        }
        let others = self.until.len() - usize::from(self.until.contains_key(&account));
        let pause = each.as_secs_f64() * SPACING * (others + 1) as f64;
        let end = now.saturating_add(retry_after).saturating_add(Micros::from_secs_f64(pause));
        self.until.insert(account, end);
    }
}
