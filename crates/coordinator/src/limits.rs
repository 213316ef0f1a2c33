//! What a key may do: requests and tokens a minute, requests at a time, spend. Looked at before anything queues.
//!
//! Rates are buckets that hold one minute's worth and fill evenly, so that a burst is followed by an even flow. An answer
//! takes its limit from the bucket when it begins, and gives back what it did not use when it ends.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use axum::http::{HeaderName, HeaderValue};
use base::{KeyId, Micros};
use parking_lot::Mutex;
use store::{KeyInfo, KeyUsage, Price};

/// Keys that are remembered; those that are idle go first. Each takes some hundred bytes.
const KEYS_MAX: usize = 100_000;

const MINUTE_US: u128 = 60_000_000;

/// Why a key gets no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    /// Requests a minute.
    Requests,
    /// Tokens a minute.
    Tokens,
    /// Requests at a time.
    Concurrent,
    /// Spend.
    Spend,
}

/// A refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limited {
    pub(crate) limit: Limit,
    /// How much of it there is.
    pub(crate) max: u64,
    /// When trying again may succeed; nothing where time does not cure it.
    pub(crate) retry_after: Option<Micros>,
}

/// A bucket of one minute's worth. Exact: a unit is a count of [`MINUTE_US`] parts.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Parts that are missing to a full one.
    missing: u128,
    at: Micros,
}

impl Bucket {
    /// Lets time fill it.
    fn fill(&mut self, now: Micros, a_minute: u64) {
        // A clock that went back fills nothing, and what was filled stays.
        let since = now.saturating_sub(self.at);
        self.at = self.at.max(now);
        self.missing = self.missing.saturating_sub(u128::from(since.0) * u128::from(a_minute));
    }

    fn left(&self, a_minute: u64) -> u64 {
        let missing = self.missing.div_ceil(MINUTE_US);
        a_minute.saturating_sub(u64::try_from(missing).unwrap_or(u64::MAX))
    }

    /// Until there are `count`.
    fn until(&self, count: u64, a_minute: u64) -> Micros {
        let most = u128::from(a_minute.saturating_sub(count)) * MINUTE_US;
        let over = self.missing.saturating_sub(most);
        Micros(u64::try_from(over.div_ceil(u128::from(a_minute.max(1)))).unwrap_or(u64::MAX))
    }

    fn take(&mut self, count: u64) {
        self.missing = self.missing.saturating_add(u128::from(count) * MINUTE_US);
    }

    fn give_back(&mut self, count: u64) {
        self.missing = self.missing.saturating_sub(u128::from(count) * MINUTE_US);
    }
}

struct Used {
    requests: Bucket,
    tokens: Bucket,
    running: u64,
    /// Charged, and what the running ones may yet cost.
    spent_micros: u64,
}

/// Every key's use.
pub(crate) struct Limits {
    keys: Mutex<HashMap<KeyId, Used>>,
}

/// What one request took of its key. Given back where it is dropped without having been used.
pub(crate) struct Allowance {
    limits: Weak<Limits>,
    key: KeyId,
    tokens: u64,
    micros: u64,
}

/// What one request asks for at most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) prompt_tokens: u32,
    pub(crate) max_tokens: u32,
    pub(crate) price: Price,
}

impl Wanted {
    fn tokens(&self) -> u64 {
        u64::from(self.prompt_tokens) + u64::from(self.max_tokens)
    }
}

/// What was taken, to be given back or charged, and what the answer's headers say.
type Taken = (Vec<Allowance>, Vec<(HeaderName, HeaderValue)>);

impl Limits {
    /// With what keys have spent so far.
    pub(crate) fn new(usage: &[KeyUsage]) -> Arc<Self> {
        let mut keys: HashMap<KeyId, Used> = HashMap::new();
        for entry in usage.iter().filter(|entry| entry.charged_micros > 0) {
            let used = keys.entry(entry.key).or_insert_with(|| Used::new(Micros::ZERO));
            used.spent_micros = used.spent_micros.saturating_add(entry.charged_micros);
        }
        Arc::new(Self { keys: Mutex::new(keys) })
    }

    /// Takes what `wanted` asks for from `key`: all of it, or nothing. Gives what the answer's header says, too.
    pub(crate) fn take(
        self: &Arc<Self>,
        key: &KeyInfo,
        now: Micros,
        wanted: &[Wanted],
    ) -> Result<Taken, Limited> {
        let terms = &key.terms;
        let count = wanted.len() as u64;
        let tokens: u64 = wanted.iter().map(Wanted::tokens).sum();
        let cost = |w: &Wanted| w.price.of(w.prompt_tokens, w.max_tokens);
        let micros = wanted.iter().map(cost).fold(0, u64::saturating_add);
        let mut keys = self.keys.lock();
        if keys.len() >= KEYS_MAX {
            // What is full, idle and unspent is as good as new.
            keys.retain(|_, used| !used.is_idle(now));
        }
        let used = keys.entry(key.id).or_insert_with(|| Used::new(now));
        used.requests.fill(now, terms.requests_per_minute);
        used.tokens.fill(now, terms.tokens_per_minute);
        let refused = |limit, max, retry_after| Err(Limited { limit, max, retry_after });
        if terms.spend_micros > 0 && used.spent_micros.saturating_add(micros) > terms.spend_micros {
            return refused(Limit::Spend, terms.spend_micros, None);
        }
        if terms.concurrent > 0 && used.running + count > terms.concurrent {
            return refused(Limit::Concurrent, terms.concurrent, Some(Micros::from_secs(1)));
        }
        // One request that is larger than the whole bucket may have it where it is full.
        let (request_need, token_need) =
            (count.min(terms.requests_per_minute), tokens.min(terms.tokens_per_minute));
        if terms.requests_per_minute > 0 && used.requests.left(terms.requests_per_minute) < request_need {
            let after = used.requests.until(request_need, terms.requests_per_minute);
            return refused(Limit::Requests, terms.requests_per_minute, Some(after));
        }
        if terms.tokens_per_minute > 0 && used.tokens.left(terms.tokens_per_minute) < token_need {
            let after = used.tokens.until(token_need, terms.tokens_per_minute);
            return refused(Limit::Tokens, terms.tokens_per_minute, Some(after));
        }
        used.requests.take(count);
        used.tokens.take(tokens);
        used.running += count;
        used.spent_micros = used.spent_micros.saturating_add(micros);
        let headers = headers(used, key);
        let allowance = |w: &Wanted| Allowance {
            limits: Arc::downgrade(self),
            key: key.id,
            tokens: w.tokens(),
            micros: cost(w),
        };
        Ok((wanted.iter().map(allowance).collect(), headers))
    }
}

/// OpenAI's names. What has no limit is not named.
fn headers(used: &Used, key: &KeyInfo) -> Vec<(HeaderName, HeaderValue)> {
    let mut out = Vec::new();
    let mut say = |names: [&'static str; 3], bucket: &Bucket, max: u64| {
        if max == 0 {
            return;
        }
        let reset = format!("{}ms", bucket.until(max, max).0.div_ceil(1000));
        out.push((HeaderName::from_static(names[0]), HeaderValue::from(max)));
        out.push((HeaderName::from_static(names[1]), HeaderValue::from(bucket.left(max))));
        out.extend(HeaderValue::from_str(&reset).ok().map(|v| (HeaderName::from_static(names[2]), v)));
    };
    let requests =
        ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"];
    let tokens = ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"];
    say(requests, &used.requests, key.terms.requests_per_minute);
    say(tokens, &used.tokens, key.terms.tokens_per_minute);
    out
}

impl Used {
    fn new(now: Micros) -> Self {
        let full = Bucket { missing: 0, at: now };
        Self { requests: full, tokens: full, running: 0, spent_micros: 0 }
    }

    fn is_idle(&self, now: Micros) -> bool {
        let old = now.saturating_sub(self.requests.at) > Micros::from_secs(60);
        old && self.running == 0 && self.spent_micros == 0
    }
}

impl Allowance {
    /// The request has ended, and used so much of it.
    pub(crate) fn settle(mut self, tokens: u64, micros: u64) {
        self.tokens = self.tokens.saturating_sub(tokens);
        self.micros = self.micros.saturating_sub(micros);
    }
}

impl Drop for Allowance {
    fn drop(&mut self) {
        let Some(limits) = self.limits.upgrade() else { return };
        let mut keys = limits.keys.lock();
        let Some(used) = keys.get_mut(&self.key) else { return };
        used.running = used.running.saturating_sub(1);
        used.tokens.give_back(self.tokens);
        used.spent_micros = used.spent_micros.saturating_sub(self.micros);
    }
}

#[cfg(test)]
mod tests {
    use base::{AccountId, Rng};
    use store::KeyTerms;

    use super::*;

    fn key(terms: KeyTerms) -> KeyInfo {
        KeyInfo {
            id: KeyId(1),
            account: AccountId(1),
            name: "a".to_owned(),
            admin: false,
            created_unix: 0,
            revoked_unix: None,
            ends_with: String::new(),
            terms,
        }
    }

    fn wanted(prompt_tokens: u32, max_tokens: u32) -> [Wanted; 1] {
        let price = Price { prompt_micros: 1_000_000, generated_micros: 2_000_000 };
        [Wanted { prompt_tokens, max_tokens, price }]
    }

    #[test]
    fn zero_is_no_limit() {
        let limits = Limits::new(&[]);
        let key = key(KeyTerms::default());
        let mut held = Vec::new();
        for _ in 0..1000 {
            let (allowance, headers) = limits.take(&key, Micros::ZERO, &wanted(u32::MAX, u32::MAX)).unwrap();
            assert!(headers.is_empty());
            held.push(allowance);
        }
    }

    #[test]
    fn requests_and_tokens_a_minute_flow_evenly_and_what_was_not_used_comes_back() {
        let limits = Limits::new(&[]);
        let key = key(KeyTerms { requests_per_minute: 60, tokens_per_minute: 600, ..KeyTerms::default() });
        let (mut first, headers) = limits.take(&key, Micros::ZERO, &wanted(100, 400)).unwrap();
        let said =
            |name: &str| headers.iter().find(|(n, _)| n == name).unwrap().1.to_str().unwrap().to_owned();
        assert_eq!(said("x-ratelimit-remaining-requests"), "59");
        assert_eq!(said("x-ratelimit-remaining-tokens"), "100");
        let refused = limits.take(&key, Micros::ZERO, &wanted(100, 100)).err().unwrap();
        assert_eq!((refused.limit, refused.retry_after), (Limit::Tokens, Some(Micros::from_secs(10))));
        first.remove(0).settle(150, 250);
        let (_second, _) = limits.take(&key, Micros::ZERO, &wanted(100, 100)).unwrap();
        let later = Micros::from_secs(30);
        for _ in 0..60 {
            drop(limits.take(&key, later, &wanted(0, 1)).unwrap());
        }
        let refused = limits.take(&key, later, &wanted(0, 1)).err().unwrap();
        assert_eq!((refused.limit, refused.retry_after), (Limit::Requests, Some(Micros::from_secs(1))));
    }

    #[test]
    fn one_request_larger_than_a_minutes_tokens_may_have_a_full_bucket_and_no_other() {
        let limits = Limits::new(&[]);
        let key = key(KeyTerms { tokens_per_minute: 100, ..KeyTerms::default() });
        let held = limits.take(&key, Micros::ZERO, &wanted(1000, 0)).unwrap();
        let refused = limits.take(&key, Micros::from_secs(60), &wanted(1, 0)).err().unwrap();
        assert_eq!(refused.limit, Limit::Tokens);
        drop(held);
    }

    #[test]
    fn concurrency_and_spend_hold_whatever_happens() {
        let mut rng = Rng::new(7);
        for _ in 0..2000 {
            let concurrent = 1 + rng.below(4);
            let spend = 1 + rng.below(3000);
            let limits = Limits::new(&[]);
            let key = key(KeyTerms { concurrent, spend_micros: spend, ..KeyTerms::default() });
            let (mut held, mut charged) = (Vec::new(), 0);
            for step in 0..40 {
                let (prompt, most) = (rng.below(100) as u32, rng.below(100) as u32);
                match limits.take(&key, Micros(step), &wanted(prompt, most)) {
                    Ok((mut taken, _)) => held.push((taken.remove(0), prompt, most)),
                    Err(refused) => assert!(matches!(refused.limit, Limit::Concurrent | Limit::Spend)),
                }
                assert!(held.len() as u64 <= concurrent);
                if rng.below(2) == 0 && !held.is_empty() {
                    let at = rng.below(held.len() as u64) as usize;
                    let (allowance, prompt, most) = held.swap_remove(at);
                    if rng.below(2) == 0 {
                        let made = rng.below(u64::from(most) + 1) as u32;
                        let cost = wanted(prompt, made)[0].price.of(prompt, made);
                        charged += cost;
                        allowance.settle(u64::from(prompt + made), cost);
                    }
                }
                assert!(charged <= spend);
            }
        }
    }

    #[test]
    fn a_clock_that_jumps_back_gives_nothing_away() {
        let limits = Limits::new(&[]);
        let key = key(KeyTerms { requests_per_minute: 1, ..KeyTerms::default() });
        drop(limits.take(&key, Micros::from_secs(100), &wanted(0, 0)).unwrap());
        assert!(limits.take(&key, Micros::from_secs(10), &wanted(0, 0)).is_err());
        assert!(limits.take(&key, Micros::from_secs(110), &wanted(0, 0)).is_err());
        assert!(limits.take(&key, Micros::from_secs(160), &wanted(0, 0)).is_ok());
    }
}
