//! Every sum of the ledger is conserved: under many callers at once, in any order of events, across crashes.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use base::{AccountId, Rng};
use store::{LedgerEntry, Reservation, Store, Usage};

use super::*;

pub(super) async fn sums_are_conserved_under_many_callers_and_a_crash_at_any_point<F: Form>() {
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

pub(super) async fn ten_thousand_orders_of_events_conserve_every_sum_across_crashes<F: Form>() {
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
