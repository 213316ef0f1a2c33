//! The load: so many requests, so many at a time, by turns from so many users; every answer checked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use tokio::task::JoinSet;

use super::answer::{self, Answer, Failure, Question};
use super::fleet::Fleet;
use super::plan::Scenario;
use super::prompt::prompt;

/// What became of a scenario's requests.
pub(crate) struct Outcome {
    /// In the order of the requests.
    pub(crate) answers: Vec<Result<Answer, Failure>>,
    /// From the first request's first byte to the last answer's last.
    pub(crate) duration_s: f64,
    /// Pairs of equal questions, and of these those with unequal answers.
    pub(crate) repeated: usize,
    pub(crate) unequal: usize,
}

/// Every fifth question repeats the one four before it: the answers must be equal, wherever and beside whatever they
/// were computed.
fn question_number(index: usize) -> usize {
    if index % 5 == 4 { index - 4 } else { index }
}

/// The question of request `index`.
pub(crate) fn question(url: &str, scenario: &Scenario, keys: &[String], index: usize) -> Question {
    let number = question_number(index);
    let models = scenario.models();
    Question {
        url: url.to_owned(),
        key: keys[index % keys.len()].clone(),
        model: models[number % models.len()].to_owned(),
        prompt: prompt(number as u64, scenario.prompt_bytes),
        max_tokens: scenario.max_tokens,
        stream: scenario.stream,
        exact: number.is_multiple_of(2),
    }
}

/// Runs a scenario's requests, `concurrency` at a time, each begun when another has ended.
pub(crate) async fn closed_loop(fleet: &Fleet, scenario: &Scenario, keys: &[String]) -> Outcome {
    // Prompts are made beforehand: what is timed is the service.
    let questions: Vec<Question> =
        (0..scenario.requests).map(|index| question(&fleet.url, scenario, keys, index)).collect();
    let questions = Arc::new(questions);
    let next = Arc::new(AtomicUsize::new(0));
    let begun = Instant::now();
    let mut workers = JoinSet::new();
    for _ in 0..scenario.concurrency.min(scenario.requests) {
        let (client, questions, next) = (fleet.client.clone(), Arc::clone(&questions), Arc::clone(&next));
        workers.spawn(async move {
            let mut done = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(question) = questions.get(index) else { return done };
                done.push((index, answer::ask(&client, question).await));
            }
        });
    }
    let mut answers = BTreeMap::new();
    while let Some(done) = workers.join_next().await {
        answers.extend(done.expect("a worker does not panic"));
    }
    let duration_s = begun.elapsed().as_secs_f64();
    let answers: Vec<_> = answers.into_values().collect();
    let (repeated, unequal) = compare(&answers);
    Outcome { answers, duration_s, repeated, unequal }
}

fn compare(answers: &[Result<Answer, Failure>]) -> (usize, usize) {
    let (mut repeated, mut unequal) = (0, 0);
    for (index, answer) in answers.iter().enumerate() {
        let number = question_number(index);
        if number != index
            && let (Ok(first), Ok(second)) = (&answers[number], answer)
        {
            repeated += 1;
            unequal += usize::from(
                first.text != second.text
                    || first.completion_tokens != second.completion_tokens
                    || first.prompt_tokens != second.prompt_tokens,
            );
        }
    }
    (repeated, unequal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fifth_question_is_an_earlier_one_of_the_same_model() {
        let scenario = &super::super::plan::scenarios()[2];
        let keys = vec!["a".to_owned(), "b".to_owned(), "c".to_owned()];
        let at = |index| question("", scenario, &keys, index);
        assert_eq!(at(9).prompt, at(5).prompt);
        assert_eq!((at(9).model, at(9).exact), (at(5).model, at(5).exact));
        assert_ne!(at(6).prompt, at(5).prompt);
        assert_ne!(at(6).model, at(5).model);
    }

    #[test]
    fn equal_questions_with_unequal_answers_are_counted() {
        let answer = |text: &str| {
            Ok(Answer {
                text: text.to_owned(),
                prompt_tokens: 1,
                completion_tokens: 1,
                first_token_s: 0.0,
                total_s: 0.0,
            })
        };
        let mut answers: Vec<_> = (0..10).map(|_| answer("same")).collect();
        assert_eq!(compare(&answers), (2, 0));
        answers[9] = answer("other");
        assert_eq!(compare(&answers), (2, 1));
    }
}
