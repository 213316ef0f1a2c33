//! What goes over the wire between ranks, and what damage to it does: a session leaves nothing to read, and a record that was
//! changed, lost, repeated or moved ends the group with a name, never with a wrong token.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use base::{Micros, ModelName, Rng};
use bench::ranks::{ProcessGroup, Wanted};
use engine::group::GroupMode;
use engine::{Engine, EngineConfig, LoadOptions, ModelSource};
use testkit::tap::{Capture, Damage, Tap, Way};

use crate::PHALANX;
use crate::jobs::{Answer, NAME, prompt, submit};

/// The step deadline of these groups: long for two cores that also do something else, short for a test.
const PATIENCE: Duration = Duration::from_millis(1_500);
/// The seed of which records are damaged.
const SEED: u64 = 20_261_121;

fn model() -> ModelSource {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/fixtures/tiny");
    ModelSource::Folder(fixtures.join("llama-f32"))
}

fn config() -> EngineConfig {
    EngineConfig {
        threads: Some(1),
        step_tokens_max: 32,
        group_patience_us: Micros::from(PATIENCE),
        ..EngineConfig::default()
    }
}

fn alone() -> Engine {
    let loaded = engine::load(&model(), &LoadOptions::default()).unwrap();
    Engine::start(ModelName::new(NAME), loaded, config()).unwrap()
}

/// A group whose last rank dials rank 0 through a tap.
fn start(mode: GroupMode, ranks: usize, prepare: impl Fn(&Tap)) -> (anyhow::Result<ProcessGroup>, Tap) {
    let source = model();
    let wanted = Wanted {
        name: ModelName::new(NAME),
        source: &source,
        options: LoadOptions::default(),
        config: config(),
        mode,
        ranks,
        pinned: false,
    };
    let tap = Mutex::new(None);
    let ways = |from: usize, to: usize, door| {
        if (from, to) != (ranks - 1, 0) {
            return door;
        }
        let made = Tap::to(door);
        prepare(&made);
        let address = made.address();
        *tap.lock().unwrap() = Some(made);
        address
    };
    let group = ProcessGroup::start_over(&wanted, &PathBuf::from(PHALANX), &ways);
    (group, tap.into_inner().unwrap().expect("the last rank dials the first"))
}

/// Six prompts of several steps each.
fn prompts() -> Vec<Vec<u32>> {
    (0..6).map(|number| prompt(number, 20 + 13 * number)).collect()
}

const TOKENS: u32 = 24;

fn answers(engine: &Engine, from: u128) -> Vec<Answer> {
    let readers: Vec<_> =
        (from..).zip(prompts()).map(|(attempt, prompt)| submit(engine, attempt, prompt, TOKENS)).collect();
    readers.into_iter().map(crate::jobs::Reader::rest).collect()
}

/// What is not so of answers under damage, where something is not: each is whole and right, or a beginning of what is right
/// with a reason that names a rank.
fn wrong(found: &[Answer], expected: &[Answer], culprits: &[usize]) -> Option<String> {
    let names = |text: &str| {
        text.contains("not ready") || culprits.iter().any(|rank| text.contains(&format!("rank {rank}")))
    };
    for (found, expected) in found.iter().zip(expected) {
        let right = match &found.failed {
            None => found == expected,
            Some(why) => expected.tokens.starts_with(&found.tokens) && names(why),
        };
        if !right {
            return Some(format!("{found:?} instead of {expected:?}"));
        }
    }
    None
}

/// One damage at one place: whether it was done, and what was not as it must be.
fn harm(
    (mode, ranks): (GroupMode, usize),
    (damage, way, at): (Damage, Way, u64),
    expected: &[Answer],
) -> Result<(), String> {
    let culprits = [0, ranks - 1];
    // Before the group stands: the first records are hellos and verdicts, on both connections.
    let early = at < 8;
    let (group, tap) = start(mode, ranks, |tap| {
        if early {
            tap.plan(damage, way, at);
        }
    });
    let benign = damage == Damage::Crumble;
    let group = match group {
        Ok(group) => group,
        Err(_) if !early || benign => return Err("it does not form".to_owned()),
        Err(error) => {
            let text = format!("{error:#}");
            let named = text.contains("rank ") && tap.fired();
            return if named { Ok(()) } else { Err(format!("nobody is named: {text}")) };
        }
    };
    if !early {
        tap.plan(damage, way, at);
    }
    let mut asked = 1;
    let (begun, mut ended) = (Instant::now(), None);
    // A hello that is lost is dialled again, so damage before the group stands may leave it whole.
    while ended.is_none() && asked < 40 && !(tap.fired() && (benign || early) && asked > 2) {
        let found = answers(group.engine(), 100 * asked);
        asked += 1;
        if let Some(wrong) = wrong(&found, expected, &culprits) {
            return Err(wrong);
        }
        ended = found.into_iter().find_map(|answer| answer.failed);
    }
    let took = begun.elapsed();
    let (end, accounts) = group.stop();
    if !tap.fired() {
        return Err(format!("record {at} never came"));
    }
    let faults: Vec<Option<String>> = accounts
        .into_iter()
        .map(|account| account.map_or_else(|e| Some(e.to_string()), |a| a.fault))
        .collect();
    match (&ended, benign) {
        (Some(why), true) => Err(format!("it ended: {why}")),
        (None, true) => Ok(()),
        (None, false) if early => Ok(()),
        (None, false) => Err(format!("nothing happened within {took:?}")),
        (Some(_), false) => {
            let culprit = end.and_then(|end| end.culprit);
            if !culprit.is_some_and(|rank| culprits.contains(&rank)) {
                return Err(format!("the leader blames {culprit:?}"));
            }
            let unnamed = faults.iter().find(|fault| !fault.as_ref().is_some_and(|f| f.contains("rank ")));
            unnamed.map_or(Ok(()), |fault| Err(format!("a follower blames nobody: {fault:?}")))
        }
    }
}

fn all_damages(rng: &mut Rng) -> Vec<Damage> {
    let mut some = |most: u64| rng.below(most) as usize;
    vec![
        Damage::Corrupt(some(4096)),
        Damage::Cut(1 + some(64)),
        Damage::Shorten(1 + some(64)),
        Damage::Drop,
        Damage::Duplicate,
        Damage::Replay,
        Damage::Swap,
        Damage::Silence,
        Damage::Mute,
        Damage::Close,
        Damage::Crumble,
    ]
}

fn sweep(shape: (GroupMode, usize), seed: u64, early: bool) {
    let engine = alone();
    let expected = answers(&engine, 1);
    assert!(expected.iter().all(|answer| answer.failed.is_none()));
    let mut rng = Rng::new(SEED ^ seed);
    for damage in all_damages(&mut rng) {
        let way = if rng.below(2) == 0 { Way::Out } else { Way::Back };
        let at = if early { rng.below(4) } else { 8 + rng.below(120) };
        if let Err(what) = harm(shape, (damage, way, at), &expected) {
            panic!("{damage:?} to record {at} {way:?} of {shape:?}: {what}");
        }
    }
}

#[test]
fn damage_on_a_link_of_two_ranks_ends_the_group_with_a_name_and_no_wrong_token() {
    sweep((GroupMode::Tensor, 2), 1, false);
}

#[test]
fn damage_on_one_link_of_three_ranks_is_known_to_all() {
    sweep((GroupMode::Tensor, 3), 2, false);
}

#[test]
fn damage_in_a_pipeline_is_found_as_well() {
    sweep((GroupMode::Pipeline, 2), 3, false);
}

#[test]
fn damage_before_a_group_stands_leaves_it_whole_or_unformed() {
    sweep((GroupMode::Tensor, 2), 4, true);
}

/// Every sealed byte of a session, without the handshakes that must be in the open.
fn sealed(captures: &[Capture]) -> Vec<u8> {
    let mut all = Vec::new();
    for capture in captures {
        let records = capture.records().expect("records of TLS and nothing else");
        let first = records.iter().position(|record| record.kind == 23).expect("something was sealed");
        // The other side's hello, and one change-of-cipher that means nothing, stand before it.
        assert!(first <= 2, "{first} records in the open");
        for record in &records[first..] {
            assert!(matches!(record.kind, 23 | 20), "a record of kind {} after the hello", record.kind);
            if record.kind == 23 {
                all.extend_from_slice(record.body);
            } else {
                assert_eq!(record.body, [1], "a change of cipher says nothing");
            }
        }
    }
    all
}

#[test]
fn a_whole_session_leaves_nothing_to_read_on_the_wire() {
    let (group, tap) = start(GroupMode::Tensor, 2, |_| {});
    let group = group.unwrap();
    let found = answers(group.engine(), 1);
    assert_eq!(found, answers(&alone(), 1));
    let tokens = prompt(9, 80);
    let logits = group.engine().logits(&tokens, true).unwrap();
    let (end, accounts) = group.stop();
    assert_eq!(end.unwrap().culprit, None);
    let sent: u64 = accounts.iter().map(|a| a.as_ref().unwrap().report.decode.bytes_sent).sum();
    let captures = tap.captures();
    assert_eq!(captures.len(), 4, "two connections, two ways");
    let all = sealed(&captures);
    assert!(
        all.len() as u64 > sent && sent > 100_000,
        "{} bytes on the wire, {sent} by the account",
        all.len()
    );

    let spelled = |tokens: &[u32]| tokens.iter().map(|&token| token as u8).collect::<Vec<u8>>();
    let numbers = |tokens: &[u32]| tokens.iter().flat_map(|token| token.to_le_bytes()).collect::<Vec<u8>>();
    let halves =
        |tokens: &[u32]| tokens.iter().flat_map(|&token| (token as u16).to_le_bytes()).collect::<Vec<u8>>();
    let mut secrets: Vec<(String, Vec<u8>)> = Vec::new();
    for (name, tokens) in prompts()
        .iter()
        .chain([&tokens])
        .map(|p| ("a prompt", &p[..8]))
        .chain(found.iter().map(|answer| ("an answer", &answer.tokens[..8])))
    {
        secrets.push((format!("{name} as text"), spelled(tokens)));
        secrets.push((format!("{name} as token ids"), numbers(tokens)));
        secrets.push((format!("{name} as short token ids"), halves(tokens)));
    }
    // Logits travel to rank 0 as they are: every four of them that lie side by side would be found.
    for (position, row) in logits.iter().enumerate().step_by(7) {
        for at in (0..row.len() - 4).step_by(4) {
            let bytes = row[at..at + 4].iter().flat_map(|logit| logit.to_le_bytes()).collect();
            secrets.push((format!("logits {at} of position {position}"), bytes));
        }
    }
    // What stands in the open in each frame and in the shard map.
    for text in ["llama-f32", "\"stages\"", "\"layers\"", "vocabulary", "the engine has stopped"] {
        secrets.push((text.to_owned(), text.as_bytes().to_vec()));
    }
    let index = Index::of(&all);
    for (name, bytes) in &secrets {
        assert!(!index.finds(bytes), "{name} can be read on the wire");
    }
    let there = &all[all.len() / 2..all.len() / 2 + 12];
    assert!(index.finds(there), "the search finds what is there");
}

/// Finds byte strings quickly: where every four bytes stand.
struct Index<'a> {
    bytes: &'a [u8],
    places: std::collections::HashMap<[u8; 4], Vec<u32>>,
}

impl<'a> Index<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        let mut places: std::collections::HashMap<[u8; 4], Vec<u32>> = std::collections::HashMap::new();
        for (at, window) in bytes.windows(4).enumerate() {
            places.entry(window.try_into().unwrap()).or_default().push(at as u32);
        }
        Self { bytes, places }
    }

    fn finds(&self, needle: &[u8]) -> bool {
        assert!(needle.len() >= 8, "too short to mean anything");
        let start: [u8; 4] = needle[..4].try_into().unwrap();
        let places = self.places.get(&start).into_iter().flatten();
        places.map(|&at| &self.bytes[at as usize..]).any(|rest| rest.starts_with(needle))
    }
}
