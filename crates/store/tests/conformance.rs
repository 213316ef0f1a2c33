//! What every form of the store promises, whatever it is built on: one list of cases, run against each form.
//!
//! A form joins by implementing [`Form`] and adding one line at the end.
#![allow(clippy::unwrap_used, reason = "the cases are tests, though a macro makes them so")]

#[path = "conformance/sums.rs"]
mod sums;

use std::sync::Arc;

use base::{AccountId, InstanceId, KeyId, RequestId};
use store::{
    AuditEntry, DeploymentCall, DeploymentChange, DeploymentEvent, JOIN_TOKEN, KeptDeployment,
    KeptDeployments, KeyInfo, KeyTerms, LedgerEntry, Name, Outcome, Price, Reservation, Settled, Settlement,
    SqliteOptions, SqliteStore, Store, StoreError, Usage,
};
use sums::{
    sums_are_conserved_under_many_callers_and_a_crash_at_any_point,
    ten_thousand_orders_of_events_conserve_every_sum_across_crashes,
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
        evidence: String::new(),
        named: None,
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

async fn what_a_receipt_says_and_a_requests_own_name_are_kept_across_restarts<F: Form>() {
    let form = F::new();
    let store = form.open(1).await;
    let name = Name { name: [7; 32], body: [9; 32] };
    let other = Name { name: [8; 32], body: [1; 32] };
    for (request, named, outcome) in
        [(1, name, Outcome::Completed), (2, other, Outcome::Failed), (3, other, Outcome::Cancelled)]
    {
        store.reserve(reservation(request, ACCOUNT)).await.expect("there is room");
        let evidence = format!("{{\"of\": {request}}}");
        let end = Settlement { evidence, named: Some(named), outcome, ..settlement(request, 5, 6) };
        store.settle(end).await.expect("it is open");
    }
    // What was answered is there after a crash.
    let form = form.crash();
    let store = form.open(2).await;
    let kept = store.settled(RequestId(1)).await.expect("it reads").expect("it was settled");
    assert_eq!((kept.entry.generated_tokens, kept.evidence.as_str()), (6, "{\"of\": 1}"));
    assert_eq!(store.settled(RequestId(99)).await.expect("it reads"), None);
    assert_eq!(store.asked_as(name.name, 0).await.expect("it reads"), Some(name.body));
    // Settled at 2,000; and what was not completed may be asked again under its name.
    assert_eq!(store.asked_as(name.name, 2_000).await.expect("it reads"), None);
    assert_eq!(store.asked_as(other.name, 0).await.expect("it reads"), None);
}

async fn a_clock_that_jumps_changes_no_sum<F: Form>() {
    let mut form = F::new();
    let mut rng = base::Rng::new(3);
    let mut made = 0;
    // The wall clock of each life, and of each write in it, is anywhere: 1970, the far future, back again.
    for life in 0..8u128 {
        let anywhere = |rng: &mut base::Rng| [0, 1, u64::MAX, rng.next_u64()][rng.below(4) as usize];
        let store = form.open(anywhere(&mut rng)).await;
        for n in 0..20 {
            let request = life * 100 + n;
            let at_unix_us = anywhere(&mut rng);
            store.reserve(Reservation { at_unix_us, ..reservation(request, ACCOUNT) }).await.expect("room");
            made += 1;
            if rng.below(3) > 0 {
                let end = Settlement { at_unix_us: anywhere(&mut rng), ..settlement(request, 10, 20) };
                store.settle(end).await.expect("it is open");
            }
        }
        form = form.crash();
    }
    let store = form.open(1).await;
    let entries = whole_ledger(&*store).await;
    assert_eq!(entries.len(), made);
    let usage = store.usage(ACCOUNT).await.expect("it reads");
    let charged: u64 =
        entries.iter().map(|e| u64::from(e.prompt_tokens) + u64::from(e.generated_tokens)).sum();
    assert_eq!((usage.requests, usage.reserved_tokens), (made as u64, 0));
    assert_eq!(usage.prompt_tokens + usage.generated_tokens, charged);
    assert_eq!(charged + usage.refunded_tokens, made as u64 * reservation(0, ACCOUNT).tokens());
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

async fn deployments_are_kept_whole_or_not_at_all_with_history_placements_and_the_largest_epoch<F: Form>() {
    let form = F::new();
    let store = form.open(1).await;
    assert_eq!(store.deployments().await.unwrap(), KeptDeployments::default());
    let wanted = |name: &str, generation| {
        let spec = format!("{{\"name\": \"{name}\"}}");
        KeptDeployment { name: name.to_owned(), generation, spec }
    };
    let event = |at: u64| DeploymentEvent {
        name: "a".to_owned(),
        generation: 1,
        at_unix_us: at,
        what: format!("'; DROP TABLE placements; -- {at}"),
    };
    let call = DeploymentCall { digest: "d".to_owned(), answer: "{}".to_owned() };
    let placed = |id, record: &str| DeploymentChange::Placed { instance: id, record: record.to_owned() };
    let mut changes = vec![
        DeploymentChange::Wanted(wanted("b", 1)),
        DeploymentChange::Wanted(wanted("a", 1)),
        DeploymentChange::Wanted(wanted("a", 2)),
        placed(InstanceId(1), "one"),
        placed(InstanceId(2), "two"),
        placed(InstanceId(1), "one again"),
        DeploymentChange::Epoch(u64::from(u32::MAX) * 4),
        DeploymentChange::Epoch(9),
        DeploymentChange::Called { key: "k".to_owned(), call: call.clone() },
    ];
    changes.extend((0..300).map(|at| DeploymentChange::Event(event(at))));
    store.keep_deployments(changes).await.unwrap();
    // As the machine would find it after a loss of power.
    let crashed = form.crash();
    let store = crashed.open(2).await;
    let kept = store.deployments().await.unwrap();
    assert_eq!(kept.deployments, [wanted("a", 2), wanted("b", 1)]);
    assert_eq!(kept.placements, [(InstanceId(1), "one again".to_owned()), (InstanceId(2), "two".to_owned())]);
    assert_eq!(kept.epoch, u64::from(u32::MAX) * 4);
    assert_eq!(store.deployment_call("k").await.unwrap(), Some(call));
    assert_eq!(store.deployment_call("l").await.unwrap(), None);
    let history = store.deployment_history("a", 1000).await.unwrap();
    assert_eq!((history.len(), &history[0], &history[255]), (256, &event(44), &event(299)));
    assert_eq!(store.deployment_history("a", 1).await.unwrap(), [event(299)]);
    assert_eq!(store.deployment_history("b", 10).await.unwrap(), []);
    let gone = vec![
        DeploymentChange::Deleted { name: "a".to_owned() },
        DeploymentChange::Deleted { name: "never".to_owned() },
        DeploymentChange::Ended { instance: InstanceId(1) },
    ];
    store.keep_deployments(gone).await.unwrap();
    let kept = store.deployments().await.unwrap();
    assert_eq!((kept.deployments, kept.placements.len()), (vec![wanted("b", 1)], 1));
    assert_eq!(store.deployment_history("a", 1000).await.unwrap().len(), 256);
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
            what_a_receipt_says_and_a_requests_own_name_are_kept_across_restarts,
            a_clock_that_jumps_changes_no_sum,
            what_operators_did_is_kept_in_order_across_restarts,
            deployments_are_kept_whole_or_not_at_all_with_history_placements_and_the_largest_epoch,
        })*
    };
}

forms! { sqlite: super::Sqlite }
