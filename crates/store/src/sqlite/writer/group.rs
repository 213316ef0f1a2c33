//! What one transaction of the writer holds, and how it is written: all of it, or nothing.

use std::collections::HashMap;

use base::{AccountId, KeyId, ModelName};
use rusqlite::{Connection, TransactionBehavior, params};

use super::{Reply, Unclaimed};
use crate::{Reservation, Settled, Settlement};

/// A settlement and the reservation that it ends.
pub(super) struct Ending {
    pub(super) settlement: Settlement,
    pub(super) reservation: Reservation,
    /// Nobody waits for one that an error was given for already.
    pub(super) reply: Option<Reply<Settled>>,
}

impl Ending {
    /// What is charged is never more than what was reserved, whatever was reported.
    pub(super) fn prompt_tokens(&self) -> u32 {
        self.settlement.prompt_tokens.min(self.reservation.prompt_tokens)
    }

    pub(super) fn generated_tokens(&self) -> u32 {
        self.settlement.generated_tokens.min(self.reservation.max_tokens)
    }

    /// By the prices of its reservation.
    pub(super) fn charged_micros(&self) -> u64 {
        self.reservation.price.of(self.prompt_tokens(), self.generated_tokens())
    }

    pub(super) fn settled(&self) -> Settled {
        let charged_tokens = u64::from(self.prompt_tokens()) + u64::from(self.generated_tokens());
        Settled { charged_tokens, refunded_tokens: self.reservation.tokens() - charged_tokens }
    }
}

/// What one transaction writes.
#[derive(Default)]
pub(super) struct Group {
    pub(super) reserved: Vec<(Reservation, Reply<Unclaimed>)>,
    pub(super) settled: Vec<Ending>,
}

/// Changes to an account's sums. Signed: a settlement lowers what is reserved.
#[derive(Default, Clone, Copy)]
pub(super) struct Change {
    requests: i64,
    prompt: i64,
    generated: i64,
    refunded: i64,
    pub(super) reserved: i64,
    charged: i64,
}

pub(super) const RESERVE: &str = "INSERT INTO reservations
    (request, account, key, model, prompt_tokens, max_tokens, reserved_unix_us, prompt_price, generated_price)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
pub(super) const RELEASE: &str = "DELETE FROM reservations WHERE request = ?1";
pub(super) const ENTER: &str = "INSERT INTO ledger
    (request, account, key, model, prompt_tokens, generated_tokens, refunded_tokens, outcome, reserved_unix_us,
     settled_unix_us, charged_micros, evidence, named)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)";
pub(super) const ADD_UP: &str = "INSERT INTO usage
    (account, requests, prompt_tokens, generated_tokens, refunded_tokens, reserved_tokens, charged_micros)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
    ON CONFLICT (account) DO UPDATE SET
        requests = requests + excluded.requests,
        prompt_tokens = prompt_tokens + excluded.prompt_tokens,
        generated_tokens = generated_tokens + excluded.generated_tokens,
        refunded_tokens = refunded_tokens + excluded.refunded_tokens,
        reserved_tokens = reserved_tokens + excluded.reserved_tokens,
        charged_micros = charged_micros + excluded.charged_micros";
pub(super) const ADD_UP_KEY: &str = "INSERT INTO key_usage
    (key, model, account, requests, prompt_tokens, generated_tokens, charged_micros) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
    ON CONFLICT (key, model) DO UPDATE SET
        requests = requests + excluded.requests,
        prompt_tokens = prompt_tokens + excluded.prompt_tokens,
        generated_tokens = generated_tokens + excluded.generated_tokens,
        charged_micros = charged_micros + excluded.charged_micros";

impl Group {
    pub(super) fn is_empty(&self) -> bool {
        self.reserved.is_empty() && self.settled.is_empty()
    }

    /// Writes all of it, or nothing.
    pub(super) fn write(&self, connection: &mut Connection) -> Result<(), rusqlite::Error> {
        // Immediate: a transaction that begins by reading may be refused when it comes to write.
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        {
            let mut reserve = transaction.prepare_cached(RESERVE)?;
            for (r, _) in &self.reserved {
                let (request, account, key) =
                    (r.request.to_string(), r.account.to_string(), r.key.to_string());
                let (model, at) = (r.model.as_str(), whole(r.at_unix_us));
                let prices = (whole(r.price.prompt_micros), whole(r.price.generated_micros));
                let (prompt, most) = (r.prompt_tokens, r.max_tokens);
                reserve
                    .execute(params![request, account, key, model, prompt, most, at, prices.0, prices.1])?;
            }
            let mut enter = transaction.prepare_cached(ENTER)?;
            let mut release = transaction.prepare_cached(RELEASE)?;
            for ending in &self.settled {
                let (r, s) = (&ending.reservation, &ending.settlement);
                let request = r.request.to_string();
                release.execute([&request])?;
                enter.execute(params![
                    request,
                    r.account.to_string(),
                    r.key.to_string(),
                    r.model.as_str(),
                    ending.prompt_tokens(),
                    ending.generated_tokens(),
                    whole(ending.settled().refunded_tokens),
                    s.outcome.as_str(),
                    whole(r.at_unix_us),
                    whole(s.at_unix_us),
                    whole(ending.charged_micros()),
                    s.evidence,
                    s.named.map_or_else(String::new, |n| hex(&n.name) + &hex(&n.body)),
                ])?;
            }
            let mut add_up = transaction.prepare_cached(ADD_UP)?;
            for (account, c) in self.changes() {
                let account = account.to_string();
                add_up.execute(params![
                    account,
                    c.requests,
                    c.prompt,
                    c.generated,
                    c.refunded,
                    c.reserved,
                    c.charged
                ])?;
            }
            let mut add_up_key = transaction.prepare_cached(ADD_UP_KEY)?;
            for ((key, model), (account, c)) in self.key_changes() {
                let (key, account) = (key.to_string(), account.to_string());
                let sums = (c.requests, c.prompt, c.generated, c.charged);
                add_up_key.execute(params![key, model.as_str(), account, sums.0, sums.1, sums.2, sums.3])?;
            }
        }
        transaction.commit()
    }

    fn changes(&self) -> HashMap<AccountId, Change> {
        let mut changes: HashMap<AccountId, Change> = HashMap::new();
        for (reservation, _) in &self.reserved {
            changes.entry(reservation.account).or_default().reserved += reservation.tokens() as i64;
        }
        for ending in &self.settled {
            let change = changes.entry(ending.reservation.account).or_default();
            change.requests += 1;
            change.prompt += i64::from(ending.prompt_tokens());
            change.generated += i64::from(ending.generated_tokens());
            change.refunded += ending.settled().refunded_tokens as i64;
            change.reserved -= ending.reservation.tokens() as i64;
            change.charged = change.charged.saturating_add(whole(ending.charged_micros()));
        }
        changes
    }

    fn key_changes(&self) -> HashMap<(KeyId, &ModelName), (AccountId, Change)> {
        let mut changes: HashMap<_, (AccountId, Change)> = HashMap::new();
        for ending in &self.settled {
            let r = &ending.reservation;
            let (_, change) =
                changes.entry((r.key, &r.model)).or_insert_with(|| (r.account, Change::default()));
            change.requests += 1;
            change.prompt += i64::from(ending.prompt_tokens());
            change.generated += i64::from(ending.generated_tokens());
            change.charged = change.charged.saturating_add(whole(ending.charged_micros()));
        }
        changes
    }
}

/// SQLite's integers are signed: what does not fit (a time beyond the year 292,000) is kept as the last that does.
pub(in crate::sqlite) fn whole(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A hash as text, as the file has it.
pub(crate) fn hex(hash: &[u8; 32]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The hash that `text` shows; nothing where it is something else.
pub(crate) fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    if text.len() != 64 {
        return None;
    }
    for (at, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(out)
}
