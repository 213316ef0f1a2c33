//! What every form of the store promises, whatever it is built on: one list of cases, run against each form.
//!
//! A form joins by implementing [`Form`] and adding one line at the end.
#![allow(clippy::unwrap_used, reason = "the cases are tests, though a macro makes them so")]

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use base::{AccountId, KeyId, RequestId, Rng};
use store::{
    AuditEntry, JOIN_TOKEN, KeyInfo, KeyTerms, LedgerEntry, Outcome, Price, Reservation, Settled, Settlement,
    SqliteOptions, SqliteStore, Store, StoreError, Usage,
};

/// A form of the store under test: something durable that can be opened, crashed and opened again.
trait Form: Send + Sync {
    type Store: Store;
    /// A fresh, empty place.
    fn new() -> Self;
    /// Opens it as a coordinator does at its start, at this time.
    fn open(&self, now_unix_us: u64) -> impl Future<Output = Arc<Self::Store>> + Send;
    /// What the disk would hold if the machine lost power now, as a place of its own.
    fn crash(&self) -> Self;
}

struct Sqlite(tempfile::TempDir);

impl Form for Sqlite {
    type Store = SqliteStore;

    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    async fn open(&self, now_unix_us: u64) -> Arc<SqliteStore> {
        let options = SqliteOptions::new(self.0.path().join("store.sqlite"));
        Arc::new(SqliteStore::open(&options, now_unix_us).await.expect("it opens"))
    }

    fn crash(&self) -> Self {
        let other = Self::new();
        for name in ["store.sqlite", "store.sqlite-wal"] {
            std::fs::copy(self.0.path().join(name), other.0.path().join(name)).expect("a copy");
        }
        other
    }
}

const ACCOUNT: AccountId = AccountId(0xacc);

fn reservation(request: u128, account: AccountId) -> Reservation {
    Reservation {
        request: RequestId(request),
        account,
        key: KeyId(7),
        model: "phalanx-mini".into(),
        prompt_tokens: 100,
        max_tokens: 50,
        price: Price::default(),
        at_unix_us: 1_000,
    }
}

fn settlement(request: u128, prompt_tokens: u32, generated_tokens: u32) -> Settlement {
    Settlement {
        request: RequestId(request),
        prompt_tokens,
        generated_tokens,
        outcome: Outcome::Completed,
        at_unix_us: 2_000,
    }
}

fn key(id: u128, name: &str) -> KeyInfo {
    KeyInfo {
        id: KeyId(id),
        account: ACCOUNT,
        name: name.to_owned(),
        admin: id == 1,
        created_unix: 1_700_000_000,
        revoked_unix: None,
        ends_with: "wxyz".to_owned(),
        terms: KeyTerms::default(),
    }
}

async fn whole_ledger(store: &impl Store) -> Vec<LedgerEntry> {
    let mut entries: Vec<LedgerEntry> = Vec::new();
    loop {
        let after = entries.last().map_or(0, |entry| entry.sequence);
        let page = store.ledger(after, 64).await.expect("it reads");
        if page.is_empty() {
            return entries;
        }
        entries.extend(page);
    }
}

async fn a_key_is_found_by_its_hash_listed_and_revoked_across_restarts<F: Form>() {
    let form = F::new();
    let store = form.open(1).await;
    store.create_key(key(1, "first \"quoted\" ключ"), [1; 32]).await.unwrap();
    store.create_key(key(2, "second"), [2; 32]).await.unwrap();
    assert_eq!(store.key_by_hash([1; 32]).await.unwrap(), Some(key(1, "first \"quoted\" ключ")));
    assert_eq!(store.key_by_hash([3; 32]).await.unwrap(), None);
    let revoked = KeyInfo { revoked_unix: Some(1_800_000_000), ..key(2, "second") };
    assert_eq!(store.revoke_key(KeyId(2), 1_800_000_000).await.unwrap(), Some(revoked.clone()));
    // Revoked twice keeps the first time, since that is when it stopped working.
    assert_eq!(store.revoke_key(KeyId(2), 1_900_000_000).await.unwrap(), Some(revoked.clone()));
    assert_eq!(store.revoke_key(KeyId(9), 1).await.unwrap(), None);
    let expected = vec![key(1, "first \"quoted\" ключ"), revoked];
    assert_eq!(store.keys().await.unwrap(), expected);
    store.close().await.unwrap();
    let store = form.open(2).await;
    assert_eq!(store.keys().await.unwrap(), expected);
    assert_eq!(store.key_by_hash([2; 32]).await.unwrap(), Some(expected[1].clone()));
}

async fn a_key_with_anothers_id_or_secret_is_refused<F: Form>() {
    let form = F::new();
    let store = form.open(1).await;
    store.create_key(key(1, "first"), [1; 32]).await.unwrap();
    for (id, hash) in [(1, [2; 32]), (2, [1; 32])] {
        let refused = store.create_key(key(id, "other"), hash).await;
        assert!(matches!(refused, Err(StoreError::KeyExists)), "{refused:?}");
    }
    assert_eq!(store.keys().await.unwrap().len(), 1);
}

async fn a_setting_is_kept_changed_and_removed<F: Form>() {
    let form = F::new();
    let store = form.open(1).await;
    assert_eq!(store.setting(JOIN_TOKEN).await.unwrap(), None);
    store.put_setting(JOIN_TOKEN, Some("join-phx-1")).await.unwrap();
    store.put_setting(JOIN_TOKEN, Some("join-phx-2")).await.unwrap();
    assert_eq!(store.setting(JOIN_TOKEN).await.unwrap().as_deref(), Some("join-phx-2"));
    store.close().await.unwrap();
    let store = form.open(2).await;
    assert_eq!(store.setting(JOIN_TOKEN).await.unwrap().as_deref(), Some("join-phx-2"));
    store.put_setting(JOIN_TOKEN, None).await.unwrap();
    assert_eq!(store.setting(JOIN_TOKEN).await.unwrap(), None);
}

async fn a_reservation_is_settled_to_what_was_delivered_and_the_rest_comes_back<F: Form>() {
    let form = F::new();
    let store = form.open(1).await;
    store.reserve(reservation(1, ACCOUNT)).await.unwrap();
    let open = Usage { reserved_tokens: 150, ..Usage::default() };
    assert_eq!(store.usage(ACCOUNT).await.unwrap(), open);
    let settled = store.settle(settlement(1, 100, 20)).await.unwrap();
    assert_eq!(settled, Settled { charged_tokens: 120, refunded_tokens: 30 });
    let usage = Usage {
        requests: 1,
        prompt_tokens: 100,
        generated_tokens: 20,
        refunded_tokens: 30,
        reserved_tokens: 0,
        charged_micros: 0,
    };
    assert_eq!(store.usage(ACCOUNT).await.unwrap(), usage);
    assert_eq!(store.usage(AccountId(1)).await.unwrap(), Usage::default());
    let entry = LedgerEntry {
        sequence: 1,
        request: RequestId(1),
        account: ACCOUNT,
        key: KeyId(7),
        model: "phalanx-mini".into(),
        prompt_tokens: 100,
        generated_tokens: 20,
        refunded_tokens: 30,
        charged_micros: 0,
        outcome: Outcome::Completed,
        reserved_unix_us: 1_000,
        settled_unix_us: 2_000,
    };
    assert_eq!(store.ledger(0, 10).await.unwrap(), vec![entry]);
    assert_eq!(store.ledger(1, 10).await.unwrap(), vec![]);
}

async fn a_request_is_reserved_once_and_settled_once<F: Form>() {
    let form = F::new();
    let store = form.open(1).await;
    let unknown = store.settle(settlement(1, 1, 1)).await;
    assert!(matches!(unknown, Err(StoreError::NotReserved { request: RequestId(1) })), "{unknown:?}");
    store.reserve(reservation(1, ACCOUNT)).await.unwrap();
    let again = store.reserve(reservation(1, ACCOUNT)).await;
    assert!(matches!(again, Err(StoreError::AlreadyReserved { request: RequestId(1) })), "{again:?}");
    store.settle(settlement(1, 1, 1)).await.unwrap();
    let again = store.settle(settlement(1, 1, 1)).await;
    assert!(matches!(again, Err(StoreError::NotReserved { .. })), "{again:?}");
    assert_eq!(store.usage(ACCOUNT).await.unwrap().requests, 1);
}

async fn more_than_was_reserved_is_never_charged<F: Form>() {
    let form = F::new();
    let store = form.open(1).await;
    store.reserve(reservation(1, ACCOUNT)).await.unwrap();
    let settled = store.settle(settlement(1, u32::MAX, u32::MAX)).await.unwrap();
    assert_eq!(settled, Settled { charged_tokens: 150, refunded_tokens: 0 });
    let largest = Reservation { prompt_tokens: u32::MAX, max_tokens: u32::MAX, ..reservation(2, ACCOUNT) };
    store.reserve(largest).await.unwrap();
    let settled = store.settle(settlement(2, 0, 0)).await.unwrap();
    assert_eq!(settled.refunded_tokens, 2 * u64::from(u32::MAX));
}

async fn every_outcome_and_the_largest_times_read_back<F: Form>() {
    let form = F::new();
    let store = form.open(1).await;
    for (request, outcome) in (1..).zip(Outcome::ALL) {
        let at = Reservation { at_unix_us: i64::MAX as u64, ..reservation(request, ACCOUNT) };
        store.reserve(at).await.unwrap();
        let end = Settlement { outcome, at_unix_us: u64::MAX, ..settlement(request, 0, 0) };
        store.settle(end).await.unwrap();
    }
    let entries = whole_ledger(&*store).await;
    assert_eq!(entries.iter().map(|entry| entry.outcome).collect::<Vec<_>>(), Outcome::ALL);
    assert!(entries.iter().all(|entry| entry.reserved_unix_us == i64::MAX as u64));
}

async fn what_was_reserved_before_a_crash_is_lost_and_given_back_and_what_was_settled_stays<F: Form>() {
    let form = F::new();
    let store = form.open(1).await;
    for request in 1..=5 {
        store.reserve(reservation(request, ACCOUNT)).await.unwrap();
    }
    store.settle(settlement(2, 100, 50)).await.unwrap();
    store.create_key(key(1, "first"), [1; 32]).await.unwrap();
    // Every answer above was given, so every one must be on the disk now.
    let crashed = form.crash();
    let store = crashed.open(9_000).await;
    let entries = whole_ledger(&*store).await;
    assert_eq!(entries.len(), 5);
    let (lost, settled): (Vec<_>, Vec<_>) = entries.iter().partition(|entry| entry.outcome == Outcome::Lost);
    assert_eq!(settled.iter().map(|entry| entry.request).collect::<Vec<_>>(), [RequestId(2)]);
    assert_eq!(lost.len(), 4);
    assert!(lost.iter().all(|entry| entry.refunded_tokens == 150 && entry.settled_unix_us == 9_000));
    let usage = Usage {
        requests: 5,
        prompt_tokens: 100,
        generated_tokens: 50,
        refunded_tokens: 600,
        reserved_tokens: 0,
        charged_micros: 0,
    };
    assert_eq!(store.usage(ACCOUNT).await.unwrap(), usage);
    assert_eq!(store.keys().await.unwrap().len(), 1);
    let late = store.settle(settlement(1, 1, 1)).await;
    assert!(matches!(late, Err(StoreError::NotReserved { .. })), "{late:?}");
    // A second start finds nothing left to do.
    store.close().await.unwrap();
    let store = crashed.open(10_000).await;
    assert_eq!(whole_ledger(&*store).await, entries);
}

async fn a_closed_store_says_so_and_may_be_closed_again<F: Form>() {
    let form = F::new();
    let store = form.open(1).await;
    store.reserve(reservation(1, ACCOUNT)).await.unwrap();
    store.close().await.unwrap();
    store.close().await.unwrap();
    assert!(matches!(store.reserve(reservation(2, ACCOUNT)).await, Err(StoreError::Closed)));
    assert!(matches!(store.usage(ACCOUNT).await, Err(StoreError::Closed)));
    assert_eq!(form.open(2).await.usage(ACCOUNT).await.unwrap().requests, 1);
}

async fn a_caller_who_goes_before_the_answer_leaves_nothing_reserved<F: Form>() {
    let form = F::new();
    let store = form.open(1).await;
    for request in 1..=100 {
        let mut asked = store.reserve(reservation(request, ACCOUNT));
        // Polled once: it is asked for, and then the caller goes.
        let gone =
            std::future::poll_fn(|cx| std::task::Poll::Ready(asked.as_mut().poll(cx).is_pending())).await;
        drop(asked);
        assert!(gone, "a durable write cannot be ready at once");
    }
    // Writes are taken in order, so once this one is answered the others are on the disk, and their settlements are
    // asked for as their answers are dropped.
    store.reserve(reservation(1_000, ACCOUNT)).await.unwrap();
    store.settle(settlement(1_000, 0, 0)).await.unwrap();
    let usage = until(&*store, |usage| usage.requests == 101).await;
    assert_eq!(usage.reserved_tokens, 0);
    let entries = whole_ledger(&*store).await;
    assert_eq!(entries.iter().filter(|entry| entry.outcome == Outcome::Cancelled).count(), 100);
}

/// Reads an account's sums until they are as wanted; fails by the test runner's patience, not by a clock.
async fn until(store: &impl Store, wanted: impl Fn(&Usage) -> bool) -> Usage {
    for _ in 0..10_000 {
        let usage = store.usage(ACCOUNT).await.expect("it reads");
        if wanted(&usage) {
            return usage;
        }
        tokio::task::yield_now().await;
    }
    panic!("never came: {:?}", store.usage(ACCOUNT).await);
}

async fn sums_are_conserved_under_many_callers_and_a_crash_at_any_point<F: Form>() {
    let form = F::new();
    let store = form.open(1).await;
    let callers: Vec<_> = (0..40u64)
        .map(|caller| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let mut rng = Rng::new(caller);
                let mut reserved = Vec::new();
                for _ in 0..20 {
                    let made = Reservation {
                        request: RequestId::random(&mut rng),
                        prompt_tokens: rng.below(1000) as u32,
                        max_tokens: rng.below(1000) as u32,
                        ..reservation(0, AccountId(u128::from(caller % 7)))
                    };
                    store.reserve(made.clone()).await.expect("there is room");
                    if rng.below(4) > 0 {
                        let end = settlement(made.request.0, rng.below(1200) as u32, rng.below(1200) as u32);
                        store.settle(end).await.expect("it is open");
                    }
                    reserved.push(made);
                }
                reserved
            })
        })
        .collect();
    // Copies taken while the callers write: each is what a crash at that moment would leave.
    let mut crashes = Vec::new();
    for _ in 0..5 {
        let seen = whole_ledger(&*store).await;
        crashes.push((form.crash(), seen));
        tokio::task::yield_now().await;
    }
    let mut made = Vec::new();
    for caller in callers {
        made.extend(caller.await.unwrap());
    }
    crashes.push((form.crash(), whole_ledger(&*store).await));
    for (at, (crashed, seen)) in crashes.iter().enumerate() {
        let store = crashed.open(9_000).await;
        let entries = whole_ledger(&*store).await;
        assert_eq!(entries[..seen.len()], seen[..], "what was read before crash {at} is there after it");
        assert_conserved(&*store, &entries, &made).await;
        if at == crashes.len() - 1 {
            assert_eq!(entries.len(), made.len(), "after the last answer every request is there");
        }
    }
}

/// Each request is there once, charged and given back what was reserved, and the sums are the sums of the entries.
async fn assert_conserved(store: &impl Store, entries: &[LedgerEntry], made: &[Reservation]) {
    let made: BTreeMap<_, _> = made.iter().map(|reservation| (reservation.request, reservation)).collect();
    let mut seen = HashSet::new();
    let mut sums: BTreeMap<AccountId, Usage> = BTreeMap::new();
    for entry in entries {
        assert!(seen.insert(entry.request), "{} is there twice", entry.request);
        let reserved = made[&entry.request];
        assert_eq!(entry.account, reserved.account);
        let charged = u64::from(entry.prompt_tokens) + u64::from(entry.generated_tokens);
        assert_eq!(charged + entry.refunded_tokens, reserved.tokens());
        let sum = sums.entry(entry.account).or_default();
        sum.requests += 1;
        sum.prompt_tokens += u64::from(entry.prompt_tokens);
        sum.generated_tokens += u64::from(entry.generated_tokens);
        sum.refunded_tokens += entry.refunded_tokens;
    }
    for (account, sum) in sums {
        assert_eq!(store.usage(account).await.expect("it reads"), sum);
    }
}

/// One account's story: requests that are reserved, settled, settled twice, settled before they are reserved or never, in
/// any order; gives what its sums must be once everything open is lost.
async fn live(store: Arc<impl Store>, case: u64) -> (AccountId, Usage, u64) {
    let mut rng = Rng::new(case ^ 0x1ed6e5);
    let account = AccountId(u128::from(case) + 1_000_000);
    let price = Price { prompt_micros: rng.below(3_000_000), generated_micros: rng.below(9_000_000) };
    let (mut expected, mut open): (Usage, Vec<Reservation>) = Default::default();
    for _ in 0..1 + rng.below(7) {
        match rng.below(6) {
            0..=2 => {
                let made = Reservation {
                    request: RequestId::random(&mut rng),
                    prompt_tokens: rng.below(500) as u32,
                    max_tokens: rng.below(500) as u32,
                    price,
                    ..reservation(0, account)
                };
                store.reserve(made.clone()).await.expect("there is room");
                if rng.below(5) == 0 {
                    let again = store.reserve(made.clone()).await;
                    assert!(matches!(again, Err(StoreError::AlreadyReserved { .. })), "{again:?}");
                }
                open.push(made);
            }
            3 | 4 if !open.is_empty() => {
                let made = open.swap_remove(rng.below(open.len() as u64) as usize);
                let end = settlement(made.request.0, rng.below(700) as u32, rng.below(700) as u32);
                let (prompt, generated) =
                    (end.prompt_tokens.min(made.prompt_tokens), end.generated_tokens.min(made.max_tokens));
                store.settle(end.clone()).await.expect("it is open");
                expected.requests += 1;
                expected.prompt_tokens += u64::from(prompt);
                expected.generated_tokens += u64::from(generated);
                expected.refunded_tokens += made.tokens() - u64::from(prompt) - u64::from(generated);
                expected.charged_micros += price.of(prompt, generated);
                let twice = store.settle(end).await;
                assert!(matches!(twice, Err(StoreError::NotReserved { .. })), "{twice:?}");
            }
            _ => {
                let nothing = store.settle(settlement(u128::from(rng.next_u64()), 1, 1)).await;
                assert!(matches!(nothing, Err(StoreError::NotReserved { .. })), "{nothing:?}");
            }
        }
    }
    let reserved = open.iter().map(Reservation::tokens).sum();
    expected.reserved_tokens = reserved;
    let now = store.usage(account).await.expect("it reads");
    assert_eq!(now, expected, "case {case}");
    // What is open at the end is lost with the crash: counted, charged nothing, given back whole.
    expected.requests += open.len() as u64;
    expected.refunded_tokens += reserved;
    expected.reserved_tokens = 0;
    (account, expected, case)
}

async fn ten_thousand_orders_of_events_conserve_every_sum_across_crashes<F: Form>() {
    const CASES: u64 = 10_000;
    const AT_A_TIME: u64 = 500;
    let mut form = F::new();
    let mut expected = Vec::new();
    for round in 0..CASES / AT_A_TIME {
        let store = form.open(1 + round).await;
        let cases = round * AT_A_TIME..(round + 1) * AT_A_TIME;
        let living: Vec<_> = cases.map(|case| tokio::spawn(live(Arc::clone(&store), case))).collect();
        for story in living {
            expected.push(story.await.expect("a story holds"));
        }
        form = form.crash();
    }
    let store = form.open(1_000).await;
    let mut charged = 0;
    for (account, sums, case) in &expected {
        assert_eq!(store.usage(*account).await.expect("it reads"), *sums, "case {case}");
        charged += sums.charged_micros;
    }
    // A replay of the log gives the same balances, and so do the sums by key.
    let entries = whole_ledger(&*store).await;
    assert_eq!(entries.iter().map(|entry| entry.charged_micros).sum::<u64>(), charged);
    let by_key = store.key_usage().await.expect("it reads");
    assert_eq!(by_key.iter().map(|row| row.charged_micros).sum::<u64>(), charged);
    assert_eq!(by_key.iter().map(|row| row.requests).sum::<u64>(), entries.len() as u64);
}

async fn what_operators_did_is_kept_in_order_across_restarts<F: Form>() {
    let form = F::new();
    let store = form.open(1).await;
    let entry = |act: &str| AuditEntry {
        sequence: 0,
        at_unix_us: 5,
        by: KeyId(1),
        act: act.to_owned(),
        subject: "key".to_owned(),
        detail: "'; DROP TABLE audit".to_owned(),
    };
    store.note(entry("one")).await.unwrap();
    store.note(entry("two")).await.unwrap();
    store.writable().await.unwrap();
    store.close().await.unwrap();
    assert!(matches!(store.writable().await, Err(StoreError::Closed)));
    let store = form.open(2).await;
    let all = store.audit(0, 10).await.unwrap();
    assert_eq!(
        all,
        vec![AuditEntry { sequence: 1, ..entry("one") }, AuditEntry { sequence: 2, ..entry("two") }]
    );
    assert_eq!(store.audit(1, 10).await.unwrap(), all[1..]);
}

macro_rules! conformance {
    ($module:ident, $form:ty: $($case:ident),* $(,)?) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    super::$case::<$form>().await;
                }
            )*
        }
    };
}

macro_rules! forms {
    ($($module:ident: $form:ty),* $(,)?) => {
        $(conformance! { $module, $form:
            a_key_is_found_by_its_hash_listed_and_revoked_across_restarts,
            a_key_with_anothers_id_or_secret_is_refused,
            a_setting_is_kept_changed_and_removed,
            a_reservation_is_settled_to_what_was_delivered_and_the_rest_comes_back,
            a_request_is_reserved_once_and_settled_once,
            more_than_was_reserved_is_never_charged,
            every_outcome_and_the_largest_times_read_back,
            what_was_reserved_before_a_crash_is_lost_and_given_back_and_what_was_settled_stays,
            a_closed_store_says_so_and_may_be_closed_again,
            a_caller_who_goes_before_the_answer_leaves_nothing_reserved,
            sums_are_conserved_under_many_callers_and_a_crash_at_any_point,
            ten_thousand_orders_of_events_conserve_every_sum_across_crashes,
            what_operators_did_is_kept_in_order_across_restarts,
        })*
    };
}

forms! { sqlite: super::Sqlite }
