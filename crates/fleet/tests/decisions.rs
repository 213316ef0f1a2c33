//! Golden decision scripts: inputs as lines, and under each the effects it had. `UPDATE_GOLDEN=1` writes them anew.

#![allow(clippy::unwrap_used, reason = "clippy sees tests only inside #[test] functions")]

#[path = "world/fixture.rs"]
mod fixture;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use base::{Micros, Rng, Tokens};
use fixture::{Shape, enqueue, instance, machine, model, offer, report, request};
use fleet::{Admission, Effect, Input, Outcome, Policy, Pool, Priority};
use wire::control::{AttemptRefusal, InstancePhase};

/// One line: a time, a verb, a number that names its subject, and `key=value` options.
struct Line<'a> {
    at: Micros,
    verb: &'a str,
    subject: u64,
    options: BTreeMap<&'a str, &'a str>,
}

impl<'a> Line<'a> {
    fn parse(text: &'a str) -> Self {
        let mut words = text.split_whitespace();
        let at = Micros::from_secs_f64(words.next().unwrap().parse().expect("a time in seconds"));
        let verb = words.next().expect("a verb");
        let mut subject = 0;
        let mut options = BTreeMap::new();
        for word in words {
            match word.split_once('=') {
                Some((key, value)) => {
                    options.insert(key, value);
                }
                None => subject = word.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().expect(word),
            }
        }
        Self { at, verb, subject, options }
    }

    fn number(&self, key: &str, otherwise: u64) -> u64 {
        self.options.get(key).map_or(otherwise, |v| v.parse().expect(v))
    }

    fn shape(&self) -> Shape {
        let base = Shape::default();
        Shape {
            slots: self.number("slots", base.slots.into()) as u32,
            kv: self.number("kv", base.kv),
            context: self.number("context", base.context.into()) as u32,
            prefill: self.options.get("prefill").map_or(base.prefill, |v| v.parse().unwrap()),
            decode: self.options.get("decode").map_or(base.decode, |v| v.parse().unwrap()),
            rank: self.number("rank", 0) as u32,
            ranks: self.number("ranks", 1) as u32,
            epoch: self.number("epoch", 1),
            phase: match self.options.get("phase").copied().unwrap_or("ready") {
                "ready" => InstancePhase::Ready,
                "loading" => InstancePhase::Loading,
                "failed" => InstancePhase::Failed,
                "draining" => InstancePhase::Draining,
                _ => InstancePhase::Unknown,
            },
            weights: if self.options.get("weights") == Some(&"other") { "w2" } else { "w1" },
        }
    }

    fn enqueue(&self) -> fleet::Enqueue {
        let (prompt, max) = (self.number("prompt", 100) as u32, self.number("max", 100) as u32);
        let mut wanted = enqueue(self.subject, self.number("account", 1), prompt, max);
        wanted.tried = self.number("tried", 0) as u32;
        wanted.again = wanted.tried > 0 || self.number("again", 0) > 0;
        wanted.weight = self.number("weight", 1) as u32;
        wanted.deadline = self.options.get("deadline").map(|v| Micros::from_secs_f64(v.parse().unwrap()));
        wanted.priority = match self.options.get("priority").copied() {
            Some("urgent") => Priority::Urgent,
            Some("background") => Priority::Background,
            _ => Priority::Normal,
        };
        let excluded = self.options.get("excluded").copied().unwrap_or("");
        wanted.ask.excluded =
            excluded.split(',').filter(|m| !m.is_empty()).map(|m| machine(m.parse().unwrap())).collect();
        wanted
    }

    fn input(&self) -> Input {
        let on = machine(self.number("machine", self.subject));
        match self.verb {
            "up" => Input::InstanceUp { machine: on, owner: None, offer: offer(self.subject, &self.shape()) },
            "report" => {
                let mut report = report(self.subject, self.number("generation", self.at.0), &self.shape());
                report.running = self.number("running", 0) as u32;
                report.kv_tokens_free = self.number("free", report.kv_tokens);
                Input::InstanceReport { machine: on, report }
            }
            "lost" => Input::InstanceGone { instance: instance(self.subject), lost: true },
            "removed" => Input::InstanceGone { instance: instance(self.subject), lost: false },
            "drain" => Input::MachineDraining { machine: machine(self.subject) },
            "enqueue" => Input::Enqueue(self.enqueue()),
            "withdraw" => Input::Withdraw { request: request(self.subject) },
            "first" => Input::FirstToken { request: request(self.subject) },
            "end" => Input::AttemptEnded {
                request: request(self.subject),
                instance: instance(self.number("on", 1)),
                outcome: match self.options.get("how").copied().unwrap_or("completed") {
                    "completed" => Outcome::Completed,
                    "cancelled" => Outcome::Cancelled,
                    "faulted" => Outcome::Faulted,
                    "lost" => Outcome::Lost,
                    "noslot" => Outcome::Refused(AttemptRefusal::NoSlot),
                    "nokv" => Outcome::Refused(AttemptRefusal::NoKvRoom),
                    other => panic!("no outcome {other}"),
                },
                generated: Tokens(self.number("tokens", 100) as u32),
            },
            "tick" => Input::Tick,
            other => panic!("no verb {other}"),
        }
    }
}

fn seconds(span: Micros) -> String {
    format!("{:.3}", span.as_secs_f64())
}

fn show(effect: &Effect) -> String {
    match effect {
        Effect::Dispatch { request, instance, waited, predicted, .. } => format!(
            "dispatch r{} to i{} after {}, first token in {:.3}, all in {:.3}",
            request.0,
            instance.0,
            seconds(*waited),
            predicted.first_token_s,
            predicted.total_s
        ),
        Effect::Refuse { request, refusal } => {
            let again = refusal.retry_after().map(|at| format!(" [again in {}]", seconds(at)));
            format!("refuse r{}: {refusal}{}", request.0, again.unwrap_or_default())
        }
        Effect::Standing { instance, ineligible: None, .. } => format!("i{} is routed to", instance.0),
        Effect::Standing { instance, ineligible: Some(why), .. } => {
            format!("i{} is not routed to: {why}", instance.0)
        }
        Effect::Suspect { instance, suspect, .. } => format!("i{} {suspect}", instance.0),
        Effect::Rejected { instance, machine, reason } => {
            format!("i{} of m{} rejected: {reason}", instance.0, machine.0)
        }
    }
}

fn ask(pool: &Pool, line: &Line<'_>) -> Option<String> {
    match line.verb {
        "preflight" => Some(match pool.preflight(line.at, &line.enqueue()) {
            Ok(Admission::Now) => "starts now".to_owned(),
            Ok(Admission::Waits { predicted, .. }) => {
                format!("waits {}", predicted.map_or("for what loads".to_owned(), seconds))
            }
            Err(refusal) => format!("refused: {refusal}"),
        }),
        "capacity" => {
            let (prompt, max) = (line.number("prompt", 100) as u32, line.number("max", 100) as u32);
            let capacity = pool.capacity(line.at, Tokens(prompt), Tokens(max));
            Some(format!("{} start, {} run, {} wait", capacity.requests, capacity.running, capacity.queued))
        }
        "listing" => Some(pool.listing().map_or("not listed".to_owned(), |l| {
            format!("{} with {} tokens on {} instances", l.model, l.context, l.instances)
        })),
        "explain" => Some(
            pool.explain(line.at, &line.enqueue().ask)
                .iter()
                .map(|v| match &v.verdict {
                    Ok(p) => format!("i{} in {:.3}", v.instance.0, p.total_s),
                    Err(why) => format!("i{}: {why}", v.instance.0),
                })
                .collect::<Vec<_>>()
                .join("; "),
        ),
        "deadline" => Some(pool.next_deadline().map_or("none".to_owned(), seconds)),
        _ => None,
    }
}

/// The script with what each line did under it.
fn play(script: &str) -> String {
    let mut policy = Policy::default();
    let mut pool = Pool::new(model(), policy, Rng::new(1));
    let mut out = String::new();
    for text in script.lines().filter(|l| !l.starts_with("    ")) {
        writeln!(out, "{text}").unwrap();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let line = Line::parse(text);
        if line.verb == "policy" {
            policy.queue_max = line.number("queue_max", policy.queue_max.into()) as u32;
            policy.attempts_max = line.number("attempts_max", policy.attempts_max.into()) as u32;
            policy.answer_tokens = line.number("answer_tokens", policy.answer_tokens.into()) as u32;
            policy.wait_us_max = Micros(line.number("wait_us_max", policy.wait_us_max.0));
            pool = Pool::new(model(), policy, Rng::new(1));
        } else if let Some(answer) = ask(&pool, &line) {
            writeln!(out, "    = {answer}").unwrap();
        } else {
            let mut effects = Vec::new();
            pool.handle(line.at, line.input(), &mut effects);
            for effect in &effects {
                writeln!(out, "    > {}", show(effect)).unwrap();
            }
        }
    }
    out
}

#[test]
fn the_scripts_decide_as_they_did() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 8, "the scripts are there");
    for path in paths {
        let script = std::fs::read_to_string(&path).unwrap();
        let played = play(&script);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, played).unwrap();
        } else {
            assert_eq!(script, played, "{}", path.display());
        }
    }
}

#[test]
fn a_prompt_goes_where_its_beginning_was_computed_unless_that_machine_has_too_much_to_do() {
    let mut pool = Pool::new(model(), Policy::default(), Rng::new(1));
    let mut effects = Vec::new();
    let mut went = |pool: &mut Pool, n: u64, prompt: &[u32]| {
        let mut asked = enqueue(n, 1, prompt.len() as u32, 20);
        asked.prefixes = fleet::prefixes(prompt, 5);
        effects.clear();
        pool.handle(Micros::from_secs(n), Input::Enqueue(asked), &mut effects);
        let went = effects.iter().find_map(|effect| match effect {
            Effect::Dispatch { instance, .. } => Some(*instance),
            _ => None,
        });
        let instance = went.expect("there is room");
        let (outcome, generated) = (Outcome::Completed, Tokens(20));
        let ended = Input::AttemptEnded { request: request(n), instance, outcome, generated };
        (instance, ended)
    };
    let end = |pool: &mut Pool, ended| pool.handle(Micros::from_secs(1), ended, &mut Vec::new());
    for of in 1..=2 {
        let shape = Shape { slots: 8, kv: 100_000, context: 50_000, ..Shape::default() };
        let up = Input::InstanceUp { machine: machine(of), owner: None, offer: offer(of, &shape) };
        pool.handle(Micros::ZERO, up, &mut Vec::new());
    }
    let long: Vec<u32> = (0..5000).collect();
    let (first, ended) = went(&mut pool, 1, &long);
    end(&mut pool, ended);
    for n in 2..12 {
        let mut like = long[..4100].to_vec();
        like.extend(0..n as u32);
        let (at, ended) = went(&mut pool, n, &like);
        assert_eq!(at, first, "the other machine would compute five seconds of prompt again");
        end(&mut pool, ended);
    }
    // A stranger's prompt puts ten seconds of prefill before it there: now the other machine is quicker.
    let (busy, _) = went(&mut pool, 20, &vec![7; 10_000]);
    let (_, _) = went(&mut pool, 21, &vec![8; 10_000]);
    let (at, _) = went(&mut pool, 22, &long);
    assert!([instance(1), instance(2)].contains(&busy) && at == first, "both are as busy: the cache decides");
    let (_, _) = went(&mut pool, 23, &long);
    let story = pool.story(request(22)).expect("it is one of the last");
    let [(_, fleet::Happening::Dispatched { cached, candidates, .. })] = &story.events[..] else {
        panic!("{story:?}")
    };
    assert_eq!((*cached, candidates.len()), (Tokens(4096), 2));
}
