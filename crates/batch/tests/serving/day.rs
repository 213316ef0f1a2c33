//! A day of random requests.

use super::*;

/// A day in a few seconds: bursts and lulls, prompts that share beginnings, several answers to one prompt, readers that
/// stall, cancels, deadlines, answers that outgrow the cache; the clock runs by the step.
#[test]
fn a_day_of_random_requests_loses_no_page_starves_nobody_and_mixes_nothing_up() {
    let mut rng = base::Rng::new(20_261_121);
    let mut below = |bound: u64| rng.below(bound);
    let limits = Limits { running_max: 6, waiting_max: 24, pause_us_max: Micros(4_000), ..limits(40) };
    let mut harness = Harness::new(limits);
    harness.guessing = Guessing { tokens_max: 4, cost: 0.3 };
    let (mut asked, mut cancelled, mut stalled) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    let mut refused = 0;
    for hour in 0..24u64 {
        // Nights are quiet, noons are more than the machine can do.
        let rate = 1 + 14 * (12 - hour.abs_diff(12)) / 12;
        for _ in 0..1_500 {
            if below(16) < rate {
                let (family, length) = (below(5) as u32, 1 + below(29) as usize);
                let prompt = prompt(family, length, below(3) as u32);
                let generated_max = 1 + below(24) as usize;
                for _ in 0..if below(8) == 0 { 3 } else { 1 } {
                    let attempt = AttemptId(asked.len() as u128);
                    let deadline = (below(12) == 0).then(|| Micros(harness.now + 50 + below(2_000)));
                    let arrival =
                        Arrival { attempt, tokens: prompt.clone(), prompt: length, generated_max, deadline };
                    match harness.batch.submit(Micros(harness.now), arrival) {
                        Ok(()) => {
                            harness.answers.insert(attempt, Vec::new());
                            let hurried = deadline.is_some();
                            asked.push((attempt, prompt.clone(), generated_max, harness.now, hurried));
                        }
                        Err(_) => refused += 1,
                    }
                }
            }
            let recent = |pick: u64| asked.len().checked_sub(1 + pick as usize % asked.len().clamp(1, 30));
            if below(20) == 0
                && let Some(at) = recent(below(30))
                && let Some(ended) = harness.batch.end(Micros(harness.now), asked[at].0, Cause::Cancelled)
            {
                cancelled.insert(asked[at].0);
                harness.end(vec![ended]);
            }
            if below(10) == 0
                && let Some(at) = recent(below(30))
                && !harness.terminals.contains_key(&asked[at].0)
            {
                stalled.insert(asked[at].0);
                harness.paused.insert(asked[at].0);
            }
            if below(4) == 0 {
                // Most stalls end; some readers never come back.
                let back = harness.paused.iter().copied().find(|attempt| attempt.0 % 7 != 0);
                back.map(|attempt| harness.paused.remove(&attempt));
            }
            harness.step(below(9) as usize);
            let live = asked.iter().rev().take(200).filter(|ask| !harness.terminals.contains_key(&ask.0));
            for (attempt, .., arrived, _) in live {
                assert!(harness.now - arrived < 60_000, "{attempt} starves");
            }
        }
    }
    harness.paused.clear();
    harness.finish(8);
    assert!(asked.len() > 10_000 && refused > 1_000, "{} asked, {refused} refused", asked.len());
    check_answers(&harness, &asked, &cancelled, &stalled);
    let preempted = harness.terminals.values().filter(|ended| ended.account.preemptions > 0).count();
    assert!(preempted > 100, "{preempted} were preempted");
    assert_eq!(harness.batch.load().pages_available, 40, "pages were lost");
    harness.batch.forget_prefixes();
    let wipes = harness.batch.drain_wipes();
    harness.wipe(&wipes);
    assert!(harness.places.iter().all(Option::is_none), "something of a sequence stayed");
}

/// An attempt, its prompt, how much it may say, when it came, and whether it had a deadline.
type Asked = (AttemptId, Vec<u32>, usize, u64, bool);

/// Each attempt has one terminal, and has said what it would have said alone, or the beginning of it.
fn check_answers(
    harness: &Harness,
    asked: &[Asked],
    cancelled: &BTreeSet<AttemptId>,
    stalled: &BTreeSet<AttemptId>,
) {
    let (guesses, right) = harness.guesses;
    assert!(right > 500 && guesses > right + 1_000, "{right} of {guesses} guesses were right");
    assert_eq!(harness.terminals.len(), asked.len(), "one terminal each");
    let mut causes = [0; 4];
    for (attempt, prompt, generated_max, _, hurried) in asked {
        let ended = &harness.terminals[attempt];
        let (answer, stops) = alone(prompt, *generated_max, 32);
        let said = &harness.answers[attempt];
        match ended.cause {
            Cause::Stop => assert!(stops && said == &answer),
            Cause::Length => assert!(!stops && said == &answer),
            Cause::Cancelled => assert!(cancelled.contains(attempt) && answer.starts_with(said)),
            Cause::Expired => assert!((*hurried || stalled.contains(attempt)) && answer.starts_with(said)),
        }
        causes[ended.cause as usize] += 1;
    }
    assert!(causes.iter().all(|&count| count > 100), "every kind of end came: {causes:?}");
}
