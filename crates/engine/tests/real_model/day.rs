//! A short day of random requests on real weights: no page is lost, every request has one end, and each answer is what it
//! would have been alone.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base::{Bytes, Rng};
use engine::{Engine, EngineConfig, ModelSource, Refusal};
use model::synth::{Synth, SynthRequest};
use wire::chunk::FinishReason;
use wire::job::{Job, Sampling};

use crate::harness::{Reader, answer, config, job, prompt, start, submit_gated};

const CONTEXT: u32 = 144;
const REQUESTS: usize = 120;
/// More than there are places for, so that some wait and some are refused.
const AT_ONCE_MAX: usize = 9;

/// A small model of `family` with heads of an odd number.
fn synthetic(folder: &Path, family: &str) -> ModelSource {
    let request = SynthRequest {
        family: family.to_owned(),
        hidden: 48,
        // A whole pattern of the hybrids'.
        layers: 4,
        heads: 6,
        kv_heads: 3,
        head_dim: Some(16),
        feed_forward: 40,
        vocabulary: 300,
        context: 256,
        ..SynthRequest::default()
    };
    let synth = Synth::new(&request).unwrap();
    let kit = synth.kit();
    let (mut bytes, _) = synth.header();
    (0..synth.tensors()).for_each(|at| synth.chunks(at).for_each(|chunk| bytes.extend(chunk)));
    for (name, bytes) in [
        ("config.json", kit.config.as_slice()),
        ("tokenizer.json", &kit.tokenizer),
        ("tokenizer_config.json", kit.tokenizer_config.as_deref().unwrap()),
        ("model.safetensors", &bytes),
    ] {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
    ModelSource::Folder(folder.to_owned())
}

/// One of a few beginnings, then anything; greedy or drawn.
fn request(rng: &mut Rng, number: usize) -> Job {
    let mut tokens = prompt(rng.below(3) as usize, rng.below(70) as usize);
    tokens.extend(prompt(100 + number, 1 + rng.below(40) as usize));
    let drawn = Sampling { temperature: 1.2, top_p: 0.9, seed: rng.next_u64(), ..Sampling::default() };
    let sampling = if rng.below(2) == 0 { Sampling::default() } else { drawn };
    job(&tokens, 1 + rng.below(30) as u32, sampling)
}

/// A request on its way.
struct Under {
    job: Job,
    reader: Reader,
    room: Arc<AtomicU64>,
    cancelled: bool,
}

/// Reads it to its end, and holds it to what it says alone.
fn finish(tight: &Engine, roomy: &Engine, under: Under) {
    let Under { job, reader, room, cancelled } = under;
    room.store(u64::MAX, Ordering::SeqCst);
    tight.room_again();
    let said = reader.rest().expect("it is answered, or ends as cancelled");
    let alone = answer(roomy, job);
    if said.finish.reason == FinishReason::Cancelled {
        assert!(cancelled, "nobody cancelled it");
        assert_eq!(
            said.tokens,
            alone.tokens[..said.tokens.len()],
            "what came before the end is no other answer"
        );
    } else {
        assert_eq!((said.tokens, said.text), (alone.tokens, alone.text));
        assert_eq!(said.finish.reason, alone.finish.reason);
    }
}

fn day(source: &ModelSource, seed: u64) -> (u64, u64) {
    let loaded = engine::load(source, &Default::default()).unwrap();
    let per_token = loaded.kv_bytes_per_token(Default::default()).0;
    // Room for little more than two contexts, where up to six requests run.
    let kv_bytes = Some(Bytes(per_token * 336));
    let sizes = EngineConfig { context: Some(CONTEXT), kv_bytes, batch_max: 6, waiting_max: 3, ..config() };
    let tight = start(source, EngineConfig { step_tokens_max: 48, speculate: 4, ..sizes });
    let roomy = start(source, EngineConfig { context: Some(CONTEXT), ..config() });
    let all = tight.load_now().kv_tokens_free;
    let mut rng = Rng::new(seed);
    let (mut under, mut refused): (Vec<Under>, u64) = (Vec::new(), 0);
    for number in 0..REQUESTS {
        let job = request(&mut rng, number);
        let room = Arc::new(AtomicU64::new(if rng.below(3) == 0 { rng.below(6) } else { u64::MAX }));
        match submit_gated(&tight, job.clone(), room.clone()) {
            Ok(reader) => under.push(Under { job, reader, room, cancelled: false }),
            Err(Refusal::NoSlot { .. } | Refusal::NoKvRoom { .. }) => refused += 1,
            Err(refusal) => panic!("{refusal}"),
        }
        if rng.below(4) == 0 && !under.is_empty() {
            let at = rng.below(under.len() as u64) as usize;
            tight.cancel(under[at].reader.attempt);
            under[at].cancelled = true;
        }
        while under.len() > rng.below(AT_ONCE_MAX as u64) as usize {
            let at = rng.below(under.len() as u64) as usize;
            finish(&tight, &roomy, under.swap_remove(at));
        }
    }
    under.into_iter().for_each(|under| finish(&tight, &roomy, under));
    let report = tight.load_now();
    assert_eq!(
        (report.running, report.waiting, report.kv_tokens_free),
        (0, 0, all),
        "{source}: pages are lost"
    );
    (report.preemptions, refused)
}

#[test]
fn a_day_of_random_requests_loses_no_page_and_mixes_nothing_up() {
    let (mut preemptions, mut refused) = (0, 0);
    for (seed, family) in [(1, "llama"), (2, "qwen3_5"), (3, "gpt_oss"), (4, "gemma4"), (5, "gemma3")] {
        let folder = tempfile::tempdir().unwrap();
        let (more, other) = day(&synthetic(folder.path(), family), seed);
        preemptions += more;
        refused += other;
    }
    assert!(preemptions > 0 && refused > 0, "a quiet day: {preemptions} preemptions, {refused} refusals");
}
