//! Ten times what can be served: a bounded queue, honest refusals, fairness between users, and no error else.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::answer::{self, Answer, Failure, Question};
use super::assertion::Assertion;
use super::fleet::Fleet;
use super::load::Outcome;
use super::plan::Scenario;
use super::prompt::prompt;
use super::report::ScenarioReport;
use crate::spread::jain;

/// Its name, for `--only`.
pub(crate) const NAME: &str = "overload";

/// Requests computed together: few, so that ten times as many are not many.
const SLOTS: usize = 4;
/// Requests that may wait.
const QUEUE_MAX: usize = 8;
/// How often a client comes back after a refusal before it gives up.
const RETRIES_MAX: u32 = 20;

struct Client {
    /// When its answer was whole, in seconds from the start.
    ended_s: f64,
    user: usize,
    result: Result<Answer, Failure>,
    /// Refusals before it.
    refusals: u32,
    /// Refusals that named no time to come back.
    silent: u32,
}

fn scenario(quick: bool) -> Scenario {
    // At any time all users together want ten times what is computed and waits.
    let (users, each) = if quick { (2, 10) } else { (10, 12) };
    Scenario {
        name: NAME,
        providers: vec!["phalanx-bundled"],
        users,
        requests: users * each,
        concurrency: users * each,
        stream: true,
        prompt_bytes: 240,
        max_tokens: if quick { 8 } else { 48 },
    }
}

pub(crate) async fn run(quick: bool) -> anyhow::Result<ScenarioReport> {
    let scenario = scenario(quick);
    let (queue, slots) = (format!("pool.queue_max={QUEUE_MAX}"), SLOTS.to_string());
    let fleet = Fleet::with_engine(&scenario.providers, &[&queue], &["--batch-max", &slots]).await?;
    let keys = fleet.user_keys(scenario.users).await?;
    let begun = Instant::now();
    let mut clients = JoinSet::new();
    for index in 0..scenario.requests {
        let user = index % scenario.users;
        let question = Question {
            url: fleet.url.clone(),
            key: keys[user].clone(),
            model: scenario.providers[0].to_owned(),
            prompt: prompt(index as u64, scenario.prompt_bytes),
            max_tokens: scenario.max_tokens,
            stream: true,
            exact: true,
        };
        let client = fleet.client.clone();
        clients.spawn(async move { persist(&client, &question, user, begun).await });
    }
    let mut done = clients.join_all().await;
    let duration_s = begun.elapsed().as_secs_f64();
    let segments = fleet.segments(scenario.requests as u64, Duration::from_secs(5)).await?;
    let started = fleet.started_after;
    let logs = fleet.end().await;
    done.sort_unstable_by(|a, b| a.ended_s.total_cmp(&b.ended_s));
    let assertions = assertions(&scenario, &done);
    let refusals: u64 = done.iter().map(|client| u64::from(client.refusals)).sum();
    let answers = done.into_iter().map(|client| client.result).collect();
    let outcome = Outcome { answers, duration_s, repeated: 0, unequal: 0 };
    let mut report = ScenarioReport::new(&scenario, &outcome, segments, assertions, started);
    report.refusals = Some(refusals);
    if !report.pass() {
        report.logs = Some(logs);
    }
    Ok(report)
}

/// Asks until there is an answer, coming back when the refusal says.
async fn persist(client: &reqwest::Client, question: &Question, user: usize, begun: Instant) -> Client {
    let (mut refusals, mut silent) = (0, 0);
    loop {
        let result = answer::ask(client, question).await;
        match &result {
            Err(failure) if failure.code == "429" && refusals < RETRIES_MAX => {
                refusals += 1;
                silent += u32::from(failure.retry_after_s.is_none());
                let pause = failure.retry_after_s.unwrap_or(1.0).clamp(0.1, 600.0);
                tokio::time::sleep(Duration::from_secs_f64(pause)).await;
            }
            _ => return Client { ended_s: begun.elapsed().as_secs_f64(), user, result, refusals, silent },
        }
    }
}

fn assertions(scenario: &Scenario, done: &[Client]) -> Vec<Assertion> {
    let right = done.iter().filter(|client| client.result.is_ok()).count();
    let mut others = BTreeMap::<&str, usize>::new();
    for failure in done.iter().filter_map(|client| client.result.as_ref().err()) {
        *others.entry(&failure.code).or_default() += 1;
    }
    let refused = done.iter().filter(|client| client.refusals > 0).count();
    let again = done.iter().filter(|client| client.refusals > 2).count();
    let silent: u32 = done.iter().map(|client| client.silent).sum();
    // While all users still want more: the first half of what was served.
    let mut shares = vec![0.0; scenario.users];
    for client in &done[..done.len() / 2] {
        shares[client.user] += 1.0;
    }
    let fairness = jain(&shares);
    vec![
        Assertion::new(
            "every request succeeds in the end",
            right == scenario.requests,
            format!("{right} of {}", scenario.requests),
        ),
        Assertion::new(
            "the queue is bounded: what is beyond it is refused",
            refused > 0,
            format!("{refused} of {} were refused at first", scenario.requests),
        ),
        Assertion::new("no error but 429", others.keys().all(|code| *code == "429"), format!("{others:?}")),
        Assertion::new("every refusal says when to come back", silent == 0, format!("{silent} did not")),
        Assertion::new(
            "who comes back as told is served: at most a tenth is refused more than twice",
            again * 10 <= scenario.requests,
            format!("{again} of {}", scenario.requests),
        ),
        Assertion::new(
            "fair between users while all want more: Jain's index >= 0.95",
            fairness >= 0.95,
            format!("{fairness:.3} over the first {} answers", done.len() / 2),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(user: usize, code: Option<&str>, refusals: u32) -> Client {
        let answer = Answer {
            text: "a".to_owned(),
            prompt_tokens: 1,
            completion_tokens: 1,
            first_token_s: 0.0,
            total_s: 0.0,
        };
        let failure =
            |code: &str| Failure { code: code.to_owned(), detail: String::new(), retry_after_s: None };
        let result = code.map_or(Ok(answer), |code| Err(failure(code)));
        Client { ended_s: 0.0, user, result, refusals, silent: 0 }
    }

    #[test]
    fn an_unfair_half_and_a_foreign_error_fail() {
        let scenario = Scenario { users: 2, requests: 4, ..scenario(true) };
        let good = [client(0, None, 1), client(1, None, 0), client(0, None, 0), client(1, None, 0)];
        assert!(assertions(&scenario, &good).iter().all(|a| a.pass));
        let bad = [client(0, None, 1), client(0, None, 0), client(1, Some("503"), 0), client(1, None, 0)];
        let failed: Vec<String> =
            assertions(&scenario, &bad).into_iter().filter(|a| !a.pass).map(|a| a.name).collect();
        assert_eq!(failed.len(), 3, "{failed:?}");
    }
}
