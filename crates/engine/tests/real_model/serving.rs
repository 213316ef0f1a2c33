//! Many requests at once: none is touched by another, whatever happens to the others.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use base::{AttemptId, Bytes};
use engine::{EngineConfig, ModelSource, Refusal};
use wire::chunk::FinishReason;
use wire::control::AttemptRefusal;
use wire::job::{Job, Sampling};

use crate::harness::{answer, config, job, prompt, start, submit, submit_gated, submit_slow, tiny};

/// Jobs of every kind of sampling, with prompts that need several steps.
fn jobs() -> Vec<Job> {
    (0..8usize)
        .map(|number| {
            let sampling = match number % 4 {
                0 => Sampling::default(),
                1 => Sampling { temperature: 0.9, seed: number as u64, ..Sampling::default() },
                2 => Sampling { temperature: 1.3, top_p: 0.9, seed: 5, ..Sampling::default() },
                _ => Sampling {
                    temperature: 0.7,
                    top_k: 20,
                    repetition_penalty: 1.3,
                    frequency_penalty: 0.2,
                    seed: 99,
                    ..Sampling::default()
                },
            };
            job(&prompt(number, 10 + number * 13), 40, sampling)
        })
        .collect()
}

#[test]
fn eight_interleaved_requests_each_say_what_they_say_alone() {
    for source in [tiny("llama-bf16-biases"), tiny("qwen3-f32")] {
        let alone = start(&source, EngineConfig { batch_max: 1, ..config() });
        let together = start(&source, EngineConfig { step_tokens_max: 24, threads: Some(2), ..config() });
        let readers: Vec<_> = jobs().into_iter().map(|job| submit(&together, job).unwrap()).collect();
        for (job, reader) in jobs().into_iter().zip(readers) {
            let (expected, found) = (answer(&alone, job), reader.rest().unwrap());
            assert_eq!(found.tokens, expected.tokens);
            assert_eq!(found.text, expected.text);
        }
    }
}

#[test]
fn answers_that_outgrow_a_small_cache_are_the_same_as_in_a_large_one() {
    let source = tiny("llama-f32");
    let roomy = start(&source, config());
    let per_token =
        engine::load(&source, &Default::default()).unwrap().kv_bytes_per_token(Default::default());
    // Room for one context and a little: eight answers need about five times that.
    let kv_bytes = Some(Bytes(per_token.0 * 160));
    let tight = start(&source, EngineConfig { context: Some(144), kv_bytes, ..config() });
    let job = |number: usize| job(&prompt(number, 8), 90, Sampling::default());
    // All of them get a token before any gets a second, so that all are there together.
    let room = Arc::new(AtomicU64::new(1));
    let readers: Vec<_> =
        (0..8).map(|number| submit_gated(&tight, job(number), room.clone()).unwrap()).collect();
    let begun: Vec<String> = readers.iter().map(|reader| reader.chunk().text).collect();
    readers[0].resume();
    for (number, (begun, reader)) in begun.into_iter().zip(readers).enumerate() {
        assert_eq!(begun + &reader.rest().unwrap().text, answer(&roomy, job(number)).text);
    }
    assert!(tight.load_now().preemptions > 0, "this is meant to outgrow the cache");
}

#[test]
fn a_lost_answer_goes_on_elsewhere_exactly_as_it_would_have() {
    let (here, elsewhere) = (start(&tiny("qwen3-f32"), config()), start(&tiny("qwen3-f32"), config()));
    let warm =
        Sampling { temperature: 1.1, top_p: 0.95, presence_penalty: 0.5, seed: 4, ..Sampling::default() };
    for sampling in [Sampling::default(), warm] {
        let mut job = job(&prompt(3, 20), 32, sampling);
        job.ask.stop = vec!["no such text".to_owned()];
        let whole = submit(&here, job.clone()).unwrap();
        let mut texts = vec![String::new()];
        let mut tokens = Vec::new();
        let finish = loop {
            let chunk = whole.chunk();
            tokens.extend(chunk.tokens);
            texts.push(texts[texts.len() - 1].clone() + &chunk.text);
            if let Some(finish) = chunk.finish {
                break finish;
            }
        };
        assert_eq!((finish.reason, tokens.len()), (FinishReason::Length, 32));
        for cut in [1, 7, 31, 32] {
            job.generated = tokens[..cut].to_vec();
            let rest = answer(&elsewhere, job.clone());
            assert_eq!(rest.tokens, tokens[cut..]);
            assert_eq!(rest.finish.reason, FinishReason::Length);
            assert_eq!(rest.finish.generated_tokens, 32);
            // At the very end the last chunk of the first attempt had all of it already.
            if cut < 32 {
                assert_eq!(texts[cut].clone() + &rest.text, texts[32]);
            }
        }
    }
}

#[test]
fn a_seed_repeats_a_run_and_another_seed_makes_another() {
    let engine = start(&tiny("llama-f32"), config());
    let seeded = |seed| {
        let sampling = Sampling { temperature: 1.0, seed, ..Sampling::default() };
        answer(&engine, job(&prompt(1, 12), 40, sampling)).tokens
    };
    assert_eq!(seeded(1), seeded(1));
    assert_ne!(seeded(1), seeded(2));
}

#[test]
fn logprobs_are_the_logarithms_of_the_models_own_probabilities() {
    let engine = start(&tiny("llama-f32"), config());
    let mut asked = job(&prompt(2, 9), 6, Sampling { temperature: 2.0, seed: 3, ..Sampling::default() });
    asked.ask.logprobs = Some(255);
    let said = answer(&engine, asked.clone());
    assert_eq!(said.logprobs.len(), 6);
    let mut tokens = asked.prompt;
    for (token, logprob) in said.tokens.into_iter().zip(said.logprobs) {
        let row = engine.logits(&tokens, false).unwrap().remove(0);
        let normaliser = row.iter().map(|&logit| f64::from(logit).exp()).sum::<f64>().ln();
        assert!((f64::from(row[token as usize]) - normaliser - f64::from(logprob.logprob)).abs() < 1e-4);
        assert_eq!((logprob.token, logprob.top.len()), (token, 255));
        assert!(logprob.top.is_sorted_by(|a, b| a.2 >= b.2));
        let mass: f64 = logprob.top.iter().map(|&(_, _, logprob)| f64::from(logprob).exp()).sum();
        assert!((0.9..1.0001).contains(&mass), "{mass}");
        if token < 256 {
            assert_eq!(logprob.bytes, [token as u8]);
        }
        tokens.push(token);
    }
}

#[test]
fn a_prompt_that_begins_like_an_earlier_one_is_found_in_cache_and_answered_the_same() {
    let engine = start(&tiny("llama-f32"), config());
    let asked = job(&prompt(5, 70), 12, Sampling::default());
    let first = answer(&engine, asked.clone());
    let second = answer(&engine, asked);
    assert_eq!((first.finish.cached_tokens, second.finish.cached_tokens), (0, 64));
    assert_eq!(first.tokens, second.tokens);
}

#[test]
fn a_cancel_ends_one_request_frees_its_pages_and_may_come_twice() {
    let engine = start(&tiny("llama-f32"), config());
    let all = engine.load_now().kv_tokens_free;
    let cancelled = submit_slow(&engine, job(&prompt(0, 30), 200, Sampling::default()), 3).unwrap();
    let other = submit(&engine, job(&prompt(1, 30), 20, Sampling::default())).unwrap();
    (0..3).for_each(|_| drop(cancelled.chunk()));
    assert!(engine.load_now().kv_tokens_free < all);
    engine.cancel(cancelled.attempt);
    engine.cancel(cancelled.attempt);
    let attempt = cancelled.attempt;
    let rest = cancelled.rest().unwrap();
    assert_eq!(rest.finish.reason, FinishReason::Cancelled);
    assert_eq!(rest.finish.generated_tokens, 3);
    engine.cancel(attempt);
    engine.cancel(AttemptId(u128::MAX));
    assert_eq!(other.rest().unwrap().tokens.len(), 20);
    assert_eq!(engine.load_now().kv_tokens_free, all, "whoever hears of an end finds its pages free");
}

#[test]
fn a_deadline_ends_a_request_as_expired() {
    let engine = start(&tiny("llama-f32"), config());
    let mut asked = job(&prompt(0, 30), 200, Sampling::default());
    asked.ask.deadline_us = 1;
    let said = answer(&engine, asked.clone());
    assert_eq!((said.finish.reason, said.tokens.len()), (FinishReason::Expired, 0));
    // Held up by its reader, so that it is still there when its time is over.
    asked.ask.deadline_us = 200_000;
    let slow = submit_slow(&engine, asked, 2).unwrap();
    let said = slow.rest().unwrap();
    assert_eq!((said.finish.reason, said.tokens.len()), (FinishReason::Expired, 2));
}

#[test]
fn a_slow_reader_pauses_its_own_request_only() {
    let engine = start(&tiny("llama-f32"), EngineConfig { batch_max: 2, ..config() });
    let asked = |number| job(&prompt(number, 20), 30, Sampling::default());
    let expected = answer(&engine, asked(0)).text;
    let slow = submit_slow(&engine, asked(0), 1).unwrap();
    for number in 1..6 {
        assert_eq!(answer(&engine, asked(number)).tokens.len(), 30);
    }
    slow.resume();
    engine.room_again();
    assert_eq!(slow.rest().unwrap().text, expected);
}

#[test]
fn what_cannot_be_taken_is_refused_with_its_reason() {
    let config = EngineConfig { batch_max: 1, waiting_max: 1, ..config() };
    let engine = start(&tiny("llama-f32"), config);
    let refusal = |change: &dyn Fn(&mut Job)| -> Refusal {
        let mut asked = job(&prompt(0, 8), 4, Sampling::default());
        change(&mut asked);
        submit(&engine, asked).err().expect("it is refused")
    };
    let reason = |change: &dyn Fn(&mut Job)| refusal(change).reason();
    assert_eq!(reason(&|job| job.ask.model = "another".into()), AttemptRefusal::WrongModel);
    assert_eq!(reason(&|job| job.prompt.clear()), AttemptRefusal::Unreadable);
    assert_eq!(reason(&|job| job.prompt[3] = 264), AttemptRefusal::Unreadable);
    assert_eq!(reason(&|job| job.ask.stop = vec![String::new()]), AttemptRefusal::Unreadable);
    assert_eq!(reason(&|job| job.ask.sampling.temperature = -1.0), AttemptRefusal::Unreadable);
    assert_eq!(reason(&|job| job.prompt = prompt(0, 256)), AttemptRefusal::TooLong);
    let too_long = refusal(&|job| job.prompt = prompt(0, 300)).to_string();
    assert!(too_long.contains("300 tokens; the context of 256"), "{too_long}");
    let held: Vec<_> = (0..2)
        .map(|number| submit_slow(&engine, job(&prompt(number, 8), 200, Sampling::default()), 1).unwrap())
        .collect();
    assert_eq!(reason(&|_| {}), AttemptRefusal::NoSlot);
    for reader in held {
        engine.cancel(reader.attempt);
        reader.rest().unwrap();
    }
    let report = engine.load_now();
    assert_eq!(report.running + report.waiting, 0, "whoever hears of an end finds its place free");
    assert_eq!(answer(&engine, job(&prompt(0, 8), 4, Sampling::default())).tokens.len(), 4);
}

#[test]
fn a_full_cache_refuses_what_has_no_room_now() {
    let source = tiny("llama-f32");
    let per_token =
        engine::load(&source, &Default::default()).unwrap().kv_bytes_per_token(Default::default());
    let kv_bytes = Some(Bytes(per_token.0 * 256));
    let engine = start(&source, EngineConfig { kv_bytes, ..config() });
    let held = submit_slow(&engine, job(&prompt(0, 200), 50, Sampling::default()), 0).unwrap();
    let refusal = submit(&engine, job(&prompt(1, 100), 10, Sampling::default())).err().unwrap();
    assert_eq!(refusal.reason(), AttemptRefusal::NoKvRoom);
    assert!(refusal.to_string().contains("takes 112 tokens of KV cache"), "{refusal}");
    held.resume();
    assert_eq!(held.rest().unwrap().tokens.len(), 50);
}

#[test]
fn stopping_ends_every_request_and_takes_no_more() {
    let engine = start(&tiny("llama-f32"), EngineConfig { batch_max: 2, ..config() });
    let readers: Vec<_> = (0..4)
        .map(|number| submit_slow(&engine, job(&prompt(number, 8), 240, Sampling::default()), 1).unwrap())
        .collect();
    engine.stop();
    engine.stop();
    for reader in readers {
        let message = reader.rest().err().expect("it was not done");
        assert!(message.contains("stop"), "{message}");
    }
    let refusal = submit(&engine, job(&prompt(0, 8), 4, Sampling::default())).err().unwrap();
    assert_eq!(refusal.reason(), AttemptRefusal::NotReady);
    assert!(engine.logits(&[1], false).is_err());
}

#[test]
fn a_report_says_what_the_engine_holds_and_how_fast_it_is() {
    let engine = start(&ModelSource::Bundled, config());
    let report = engine.load_now();
    assert!(report.prefill_tokens_per_s > 0.0 && report.decode_tokens_per_s > 0.0);
    assert_eq!((report.slots, report.running, report.steps), (16, 0, 0));
    assert_eq!(report.kv_tokens, report.kv_tokens_free);
    let said = answer(&engine, job(&[1, 2, 3], 5, Sampling::default()));
    assert_eq!((said.finish.prompt_tokens, said.finish.generated_tokens), (3, 5));
    assert_eq!(engine.load_now().steps, 5);
}
