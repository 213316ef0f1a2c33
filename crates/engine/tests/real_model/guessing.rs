//! Guessing ahead changes how long an answer takes, and nothing of what it says: for every model there is a fixture of,
//! greedy and drawn, with penalties, stop texts, log-probabilities and forms.

use engine::{Engine, EngineConfig, KvFormat, load};
use wire::job::{Grammar, Job, Sampling};

use crate::group::{models, source_of};
use crate::harness::{Answer, answer, config, job, prompt, start, submit, tiny};

/// A prompt that says the same `period` tokens again and again.
fn repeating(number: usize, period: usize, length: usize) -> Vec<u32> {
    prompt(number, period).into_iter().cycle().take(length).collect()
}

fn jobs(formed: bool) -> Vec<Job> {
    let cool = Sampling { temperature: 0.6, seed: 8, ..Sampling::default() };
    let warm = Sampling { temperature: 1.1, top_p: 0.8, seed: 3, ..Sampling::default() };
    let penalised = Sampling { repetition_penalty: 1.1, frequency_penalty: 0.05, ..cool.clone() };
    let mut jobs = vec![
        job(&repeating(1, 5, 37), 50, Sampling::default()),
        job(&prompt(2, 20), 60, Sampling::default()),
        job(&repeating(3, 3, 20), 48, cool),
        job(&repeating(4, 9, 50), 33, warm),
        job(&prompt(5, 12), 40, penalised),
    ];
    jobs[0].ask.logprobs = Some(2);
    jobs[2].ask.logprobs = Some(0);
    jobs[1].ask.stop = vec!["no such text".to_owned(), "zz".to_owned()];
    if formed {
        let mut job = job(&prompt(6, 9), 40, Sampling { temperature: 0.8, seed: 1, ..Sampling::default() });
        let form = Grammar::Regex { pattern: "(abab|cdcd)+!".to_owned() };
        job.ask.constraint = Some(form.constraint());
        job.ask.ignore_stop_tokens = false;
        jobs.push(job);
    }
    jobs
}

fn assert_same(guessed: &Answer, plain: &Answer, what: &str) {
    assert_eq!(guessed.tokens, plain.tokens, "{what}");
    assert_eq!(guessed.text, plain.text, "{what}");
    assert_eq!(guessed.finish.reason, plain.finish.reason, "{what}");
    assert_eq!(guessed.finish.stop_text, plain.finish.stop_text, "{what}");
    assert_eq!(guessed.finish.generated_tokens, plain.finish.generated_tokens, "{what}");
    let logprobs = |answer: &Answer| -> Vec<_> {
        answer
            .logprobs
            .iter()
            .map(|token| (token.token, token.logprob.to_bits(), token.top.clone()))
            .collect()
    };
    assert_eq!(logprobs(guessed), logprobs(plain), "{what}");
}

/// One after the other, then all at once.
fn hold(guessing: &Engine, plain: &Engine, what: &str) {
    // Those have a tokenizer with every letter.
    let jobs = || jobs(what.contains("/tiny/"));
    let expected: Vec<Answer> = jobs().into_iter().map(|job| answer(plain, job)).collect();
    for (number, (job, expected)) in jobs().into_iter().zip(&expected).enumerate() {
        assert_same(&answer(guessing, job), expected, &format!("{what}, job {number} alone"));
    }
    let readers: Vec<_> = jobs().into_iter().map(|job| submit(guessing, job).unwrap()).collect();
    for (number, (reader, expected)) in readers.into_iter().zip(&expected).enumerate() {
        assert_same(&reader.rest().unwrap(), expected, &format!("{what}, job {number} among others"));
    }
}

#[test]
fn answers_with_guesses_are_those_without_for_every_family_and_format() {
    let (mut right, mut guessed, mut recurrent) = (0, 0, 0);
    for path in models() {
        let beside = tempfile::tempdir().unwrap();
        let source = source_of(&path, beside.path());
        let plain = start(&source, config());
        let guessing = start(&source, EngineConfig { speculate: 6, step_tokens_max: 40, ..config() });
        hold(&guessing, &plain, &path.display().to_string());
        let report = guessing.load_now();
        assert_eq!(plain.load_now().guessed_tokens, 0);
        if load(&source, &Default::default()).unwrap().spec().is_recurrent() {
            assert_eq!(report.guessed_tokens, 0, "a state cannot be stepped back");
            recurrent += 1;
        }
        (guessed, right) = (guessed + report.guessed_tokens, right + report.guessed_right);
    }
    let kv = KvFormat::Int8;
    let plain = start(&tiny("qwen3-f32"), EngineConfig { kv, ..config() });
    hold(
        &start(&tiny("qwen3-f32"), EngineConfig { kv, speculate: 4, ..config() }),
        &plain,
        "/tiny/ in bytes",
    );
    assert!(right > 100 && guessed > right && recurrent > 0, "{right} of {guessed} were right");
}
