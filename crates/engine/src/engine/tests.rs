//! The engine around a scripted model, which says given tokens and breaks down on demand.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use base::{Micros, RequestId};
use wire::chunk::{Chunk, FinishReason};
use wire::control::AttemptRefusal;
use wire::job::{Ask, Sampling};

use super::*;
use crate::compute::Work;
use model::tokenizer::Tokenizer;
use nn::LogitRows;

/// The fixture's tokenizer has a token for each byte, then special ones.
const VOCABULARY: usize = 264;
const STOP: u32 = 256;
/// Instead of a token: the logits are no numbers, the step fails, the model panics.
const DAMAGE: u32 = 1000;
const FAIL: u32 = 1001;
const PANIC: u32 = 1002;

/// Answers a prompt of one token with the script of that number.
struct Script {
    answers: Vec<Vec<u32>>,
    /// Which script the sequence in a first page follows.
    first_pages: HashMap<u32, usize>,
    /// Pages that were written since they were last wiped, and by which script.
    written: HashMap<u32, usize>,
    rows: Vec<Vec<f32>>,
}

impl Compute for Script {
    fn wipe(&mut self, pages: &[u32]) {
        assert_eq!(pages.iter().collect::<HashSet<_>>().len(), pages.len(), "a page was wiped twice");
        for page in pages {
            self.written.remove(page);
        }
    }

    fn step(&mut self, work: &[Work<'_>]) -> Result<Vec<&[f32]>, String> {
        self.rows.clear();
        for work in work {
            let end = work.position + work.tokens.len();
            if work.position == 0 {
                self.first_pages.insert(work.pages[0], work.tokens[0] as usize);
            }
            let script = self.first_pages[&work.pages[0]];
            for page in &work.pages[work.position / 16..] {
                assert_eq!(*self.written.entry(*page).or_insert(script), script, "a page was not wiped");
            }
            let drawn = match work.logits {
                LogitRows::None => end..end,
                LogitRows::Last => end - 1..end,
                LogitRows::All => work.position..end,
            };
            for position in drawn {
                let mut row = vec![0.0; VOCABULARY];
                match self.answers[script].get(position).copied().unwrap_or(STOP) {
                    DAMAGE => row[5] = f32::NAN,
                    FAIL => return Err("the script says so".to_owned()),
                    PANIC => panic!("the script says so"),
                    token => row[token as usize] = 1.0,
                }
                self.rows.push(row);
            }
        }
        Ok(self.rows.iter().map(Vec::as_slice).collect())
    }

    fn logits(&mut self, _tokens: &[u32], _all: bool) -> Result<Vec<Vec<f32>>, String> {
        Err("a script has no logits".to_owned())
    }
}

fn scripted(answers: &[&[u32]]) -> Engine {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny/llama-f32");
    let tokenizer = Tokenizer::from_json(&std::fs::read(folder.join("tokenizer.json")).unwrap()).unwrap();
    let terms = Terms {
        vocabulary: VOCABULARY,
        stop_tokens: vec![STOP, 258],
        tokenizer: Some(tokenizer),
        pooling: None,
    };
    let compute = Script {
        answers: answers.iter().map(|answer| answer.to_vec()).collect(),
        first_pages: HashMap::new(),
        written: HashMap::new(),
        rows: Vec::new(),
    };
    let limits = Limits {
        pages: 8,
        page_tokens: 16,
        context: 64,
        running_max: 4,
        waiting_max: 4,
        step_tokens_max: 16,
        pause_us_max: Micros::ZERO,
    };
    let ready = Ready { compute, limits, speed: Speed::default(), notice: None, speculate: 0 };
    Engine::start_with("script".into(), terms, || Ok(ready)).unwrap()
}

type Event = Result<Chunk, String>;

struct ChannelSink {
    sender: Sender<Event>,
    room: bool,
}

impl Sink for ChannelSink {
    fn room(&self) -> bool {
        self.room
    }

    fn deliver(&mut self, chunk: Chunk) {
        self.sender.send(Ok(chunk)).unwrap();
    }

    fn failed(&mut self, message: &str) {
        self.sender.send(Err(message.to_owned())).unwrap();
    }
}

fn ask(script: u32) -> Job {
    let ask = Ask {
        request: RequestId(1),
        model: "script".into(),
        max_tokens: 60,
        sampling: Sampling::default(),
        stop: Vec::new(),
        ignore_stop_tokens: false,
        logprobs: None,
        deadline_us: 0,
        constraint: None,
        special_tokens: false,
        embed: false,
        trace: None,
        hold_ms: 0,
    };
    Job { ask, prompt: vec![script], generated: Vec::new() }
}

fn submit(engine: &Engine, attempt: u128, job: Job) -> Receiver<Event> {
    let (sender, receiver) = channel();
    engine.submit(AttemptId(attempt), job, Box::new(ChannelSink { sender, room: true })).unwrap();
    receiver
}

/// All chunks, or how it failed.
fn chunks(receiver: &Receiver<Event>) -> Result<Vec<Chunk>, String> {
    let mut chunks = Vec::new();
    while let Ok(event) = receiver.recv_timeout(Duration::from_secs(60)) {
        chunks.push(event?);
    }
    assert!(chunks.last().is_some_and(|chunk| chunk.finish.is_some()), "no end");
    Ok(chunks)
}

fn said(engine: &Engine, job: Job) -> (String, Vec<u32>, FinishReason, u32) {
    let chunks = chunks(&submit(engine, 1, job)).unwrap();
    let finish = chunks[chunks.len() - 1].finish.clone().unwrap();
    let text = chunks.iter().map(|chunk| chunk.text.as_str()).collect();
    let tokens = chunks.iter().flat_map(|chunk| chunk.tokens.clone()).collect();
    (text, tokens, finish.reason, finish.generated_tokens)
}

fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

#[test]
fn a_stop_text_across_tokens_ends_the_answer_before_it_and_its_tokens_still_count() {
    let engine = scripted(&[&bytes("one. STOP two")]);
    let mut job = ask(0);
    job.ask.stop = vec!["nothing".to_owned(), " STOP".to_owned()];
    let (text, tokens, reason, generated) = said(&engine, job);
    assert_eq!((text.as_str(), reason), ("one.", FinishReason::Stop));
    assert_eq!((tokens, generated), (bytes("one. STOP"), 9));
}

#[test]
fn a_stop_token_ends_the_answer_and_is_no_part_of_it_unless_ignored() {
    let engine = scripted(&[&[104, 105, STOP, 33, 258]]);
    assert_eq!(said(&engine, ask(0)), ("hi".into(), vec![104, 105], FinishReason::Stop, 2));
    let mut job = ask(0);
    job.ask.ignore_stop_tokens = true;
    job.ask.max_tokens = 5;
    let (text, tokens, reason, _) = said(&engine, job);
    assert_eq!((text.as_str(), tokens), ("hi!", vec![104, 105, STOP, 33, 258]));
    assert_eq!(reason, FinishReason::Length);
}

#[test]
fn text_comes_in_whole_characters_and_what_is_held_back_comes_at_the_end() {
    let engine = scripted(&[&bytes("a🙂b"), &bytes("so E"), &bytes("🙂")]);
    let pieces: Vec<String> =
        chunks(&submit(&engine, 1, ask(0))).unwrap().into_iter().map(|chunk| chunk.text).collect();
    assert_eq!(pieces, ["a", "", "", "", "🙂", "b", ""]);
    let mut job = ask(1);
    job.ask.stop = vec!["END".to_owned()];
    assert_eq!(said(&engine, job).0, "so E");
    let mut job = ask(2);
    job.ask.max_tokens = 2;
    assert_eq!(said(&engine, job).0, "\u{fffd}");
}

#[test]
fn an_answer_that_was_complete_when_its_machine_was_lost_is_only_ended() {
    let engine = scripted(&[&[FAIL]]);
    let mut job = ask(0);
    job.ask.stop = vec!["END".to_owned()];
    job.generated = bytes("one END");
    assert_eq!(said(&engine, job), (String::new(), vec![], FinishReason::Stop, 7));
    let mut job = ask(0);
    job.ask.max_tokens = 3;
    job.generated = bytes("one");
    assert_eq!(said(&engine, job), (String::new(), vec![], FinishReason::Length, 3));
}

#[test]
fn damaged_logits_end_their_own_request_and_no_other() {
    let engine = scripted(&[&[104, DAMAGE], &bytes("all is well here")]);
    let (bad, good) = (submit(&engine, 1, ask(0)), submit(&engine, 2, ask(1)));
    assert!(chunks(&bad).err().unwrap().contains("not finite"));
    assert_eq!(chunks(&good).unwrap().len(), 17);
}

#[test]
fn a_step_that_fails_ends_what_was_in_it_and_the_engine_goes_on() {
    let engine = scripted(&[&[104, FAIL], &bytes("well")]);
    assert_eq!(chunks(&submit(&engine, 1, ask(0))).err().unwrap(), "the script says so");
    assert_eq!(said(&engine, ask(1)).0, "well");
    assert_eq!(engine.load_now().failed, None);
    assert_eq!(
        engine.logits(&[1], true).err().unwrap().to_string().split(": ").last(),
        Some("a script has no logits")
    );
}

#[test]
fn a_breakdown_ends_every_request_and_says_so_from_then_on() {
    let engine = scripted(&[&[104, 104, 104, PANIC], &bytes("never said")]);
    let (sender, held_up) = channel();
    engine.submit(AttemptId(1), ask(1), Box::new(ChannelSink { sender, room: false })).unwrap();
    for reader in [submit(&engine, 2, ask(0)), held_up] {
        assert!(chunks(&reader).err().unwrap().contains("broke down"));
    }
    let (sender, _receiver) = channel();
    let refusal =
        engine.submit(AttemptId(3), ask(1), Box::new(ChannelSink { sender, room: true })).err().unwrap();
    assert_eq!(refusal.reason(), AttemptRefusal::NotReady);
    assert!(engine.load_now().failed.unwrap().contains("broke down"));
    engine.stop();
}

#[test]
fn pages_are_wiped_between_sequences() {
    // The script refuses a page that another sequence wrote and nobody wiped; eight pages are soon used up.
    let texts: Vec<Vec<u32>> = (0..12).map(|at| vec![97 + at; 20 + 3 * at as usize]).collect();
    let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    let engine = scripted(&texts);
    for round in 0..3 {
        let readers: Vec<_> =
            (0u32..6).map(|at| submit(&engine, at.into(), ask((at * 5 + round) % 12))).collect();
        for (at, reader) in (0u32..).zip(readers) {
            let script = (at * 5 + round) % 12;
            let tokens: usize = chunks(&reader).unwrap().iter().map(|chunk| chunk.tokens.len()).sum();
            assert_eq!(tokens, 20 + 3 * script as usize);
        }
    }
}

fn constrained(script: u32, grammar: base::Grammar) -> Job {
    let mut job = ask(script);
    job.ask.constraint = Some(grammar.constraint());
    job
}

#[test]
fn an_answer_is_held_to_its_form_whatever_the_model_would_say() {
    let engine = scripted(&[&bytes("no such thing")]);
    let choices = base::Grammar::Choice { choices: vec!["yes".into(), "maybe".into()] };
    let (text, _, reason, _) = said(&engine, constrained(0, choices));
    assert!(text == "yes" || text == "maybe", "{text}");
    assert_eq!(reason, FinishReason::Stop);
}

#[test]
fn a_form_that_is_none_is_refused_before_anything_runs_and_frees_its_place() {
    struct Told(Sender<Refusal>);
    impl Sink for Told {
        fn room(&self) -> bool {
            true
        }
        fn deliver(&mut self, _chunk: Chunk) {
            panic!("nothing may be computed");
        }
        fn failed(&mut self, message: &str) {
            panic!("not a failure: {message}");
        }
        fn refused(&mut self, refusal: &Refusal) {
            self.0.send(refusal.clone()).unwrap();
        }
    }
    let engine = scripted(&[&[65]]);
    for attempt in 0..20 {
        let (sender, receiver) = channel();
        let job = constrained(0, base::Grammar::Regex { pattern: "(".into() });
        engine.submit(AttemptId(attempt), job, Box::new(Told(sender))).unwrap();
        let refusal = receiver.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(refusal.reason(), AttemptRefusal::BadConstraint);
    }
    let report = engine.load_now();
    assert_eq!((report.running, report.waiting, report.kv_tokens_free), (0, 0, report.kv_tokens));
}

#[test]
fn a_cancel_reaches_an_attempt_whose_form_is_still_read() {
    let engine = scripted(&[&[65; 50]]);
    let choices = (0..4000).map(|at| format!("choice {at}")).collect();
    let receiver = submit(&engine, 1, constrained(0, base::Grammar::Choice { choices }));
    engine.cancel(AttemptId(1));
    let chunks = chunks(&receiver).unwrap();
    assert_eq!(chunks.last().unwrap().finish.as_ref().unwrap().reason, FinishReason::Cancelled);
    assert_eq!(engine.load_now().waiting, 0);
}
