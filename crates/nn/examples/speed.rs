//! How fast a decoder of random weights runs here: `cargo run --release -p nn --example speed [threads...]`.
//!
//! Prints decode (tokens/s and GB/s of weights) and prefill (tokens/s and GFLOP/s) for one model of about 200
//! million parameters in bf16. Not a bench with assertions: `phalanx bench engine` is.
#![allow(clippy::print_stdout)]

use std::time::{Duration, Instant};

use base::Rng;
use half::bf16;
use model::checkpoint::{CheckpointError, DType, TensorSource, TensorView, expected_tensors, parameters};
use model::spec::{
    Activation, AttentionSpec, FeedForwardSpec, GatedSpec, LayerSpec, MixerSpec, ModelSpec, NormSpec,
    RopeSpec, TensorRole,
};
use nn::{Decoder, Isa, KvCache, KvDType, LoadOptions, LogitRows, Scratch, Span, Team};

struct Shape {
    name: &'static str,
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    width: usize,
    vocabulary: usize,
}

const SHAPES: [Shape; 2] = [
    Shape { name: "200M", hidden: 1024, layers: 12, heads: 16, kv_heads: 8, width: 3584, vocabulary: 32_000 },
    Shape { name: "5M", hidden: 256, layers: 6, heads: 8, kv_heads: 4, width: 704, vocabulary: 4096 },
];

fn spec(shape: &Shape) -> ModelSpec {
    let norm = NormSpec { epsilon: 1e-5, weight_offset: 0.0 };
    let head_dim = shape.hidden / shape.heads;
    let attention =
        AttentionSpec::plain(shape.heads, shape.kv_heads, head_dim, RopeSpec::plain(head_dim, 10_000.0));
    let feed_forward = GatedSpec { width: shape.width, activation: Activation::Silu, bias: false };
    let layer = LayerSpec::plain(norm, MixerSpec::Attention(attention), FeedForwardSpec::Gated(feed_forward));
    ModelSpec {
        family: "speed",
        hidden: shape.hidden,
        vocabulary: shape.vocabulary,
        context: 4096,
        embedding_scale: 1.0,
        tied_head: true,
        layers: vec![layer; shape.layers],
        layer_inputs: None,
        final_norm: norm,
        logit_soft_cap: None,
        pooling: None,
        stop_tokens: vec![],
        ignored_tensors: &[],
    }
}

/// Random tensors; all roles of one shape share one.
struct Random(Vec<(TensorRole, String, Vec<usize>)>, Vec<u8>);

impl TensorSource for Random {
    fn tensor(&self, role: TensorRole) -> Result<TensorView<'_>, CheckpointError> {
        let (_, name, shape) =
            self.0.iter().find(|(other, ..)| *other == role).expect("every role is listed");
        let bytes = &self.1[..2 * shape.iter().product::<usize>()];
        Ok(TensorView::new(name, DType::BF16, shape, bytes))
    }
}

fn random(spec: &ModelSpec) -> Random {
    let tensors = expected_tensors(spec);
    let largest = tensors.iter().map(|(_, _, shape)| shape.iter().product::<usize>()).max().unwrap_or(0);
    let mut rng = Rng::new(1);
    let bytes =
        (0..largest).flat_map(|_| bf16::from_f32((rng.next_f32() - 0.5) * 0.06).to_le_bytes()).collect();
    Random(tensors, bytes)
}

/// How long this thread has been on a core, where Linux says it: on a busy machine, and with one thread, that is
/// the honest measure.
fn on_core() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(Duration::from_nanos(text.split(' ').next()?.parse().ok()?))
}

/// Mean time of a step: on a core with one thread, by the clock with several.
fn time(threads: usize, mut step: impl FnMut()) -> f64 {
    step();
    let (begun, core_begun, mut steps) = (Instant::now(), on_core(), 0);
    while steps < 3 || begun.elapsed() < Duration::from_secs(1) {
        step();
        steps += 1;
    }
    let on_core = on_core().zip(core_begun).map(|(now, begun)| now - begun);
    let seconds = on_core.filter(|_| threads == 1).unwrap_or(begun.elapsed()).as_secs_f64();
    seconds / f64::from(steps)
}

fn measure(shape: &Shape, isa: Isa, threads: usize) {
    let spec = spec(shape);
    let source = random(&spec);
    let team = Team::new(threads);
    let begun = Instant::now();
    let options = LoadOptions { isa: Some(isa), ..LoadOptions::default() };
    let decoder = Decoder::load(&spec, &source, &options, &team).expect("every tensor is there");
    let load_s = begun.elapsed().as_secs_f64();
    let mut kv = KvCache::new(&spec, 256, 64, KvDType::default()).expect("there is memory");
    let mut scratch = Scratch::new();
    let pages: Vec<u32> = (0..256).collect();
    let mut rng = Rng::new(2);
    let tokens: Vec<u32> = (0..512).map(|_| rng.below(shape.vocabulary as u64) as u32).collect();
    let weights = parameters(&spec) as f64;
    println!(
        "{} {} threads {threads}: {:.1}M parameters, load {load_s:.2} s",
        shape.name,
        isa.name(),
        weights / 1e6
    );
    for (batch, context) in [(1, 32), (1, 1024), (2, 32), (4, 32), (8, 32), (16, 32)] {
        let spans: Vec<_> = (0..batch)
            .map(|at| Span {
                tokens: &tokens[at..=at],
                position: context,
                pages: &pages[at * 16..][..(context + 1).div_ceil(64)],
                logits: LogitRows::Last,
            })
            .collect();
        let seconds = time(threads, || {
            decoder.forward(&team, &mut scratch, &spans, &mut kv).expect("spans are right");
        });
        let rate = batch as f64 / seconds;
        println!(
            "  decode batch {batch:2} context {context:4}: {rate:8.1} tok/s  {:7.3} ms  {:6.1} GB/s  {:6.1} GFLOP/s",
            seconds * 1e3,
            decoder.weight_bytes().0 as f64 / seconds / 1e9,
            2.0 * weights * rate / 1e9,
        );
    }
    for chunk in [16, 64, 128, 512] {
        let span = Span { tokens: &tokens[..chunk], position: 0, pages: &pages, logits: LogitRows::Last };
        let seconds = time(threads, || {
            decoder.forward(&team, &mut scratch, &[span], &mut kv).expect("spans are right");
        });
        // The head sees one row, and the embedding is a look-up.
        let layers = weights - (shape.hidden * shape.vocabulary) as f64;
        println!(
            "  prefill {chunk:3}: {:8.1} tok/s  {:8.3} ms  {:6.1} GFLOP/s",
            chunk as f64 / seconds,
            seconds * 1e3,
            2.0 * layers * chunk as f64 / seconds / 1e9,
        );
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let threads: Vec<usize> = arguments.iter().filter_map(|text| text.parse().ok()).collect();
    let threads = if threads.is_empty() { vec![1, 2] } else { threads };
    let slow = arguments.iter().any(|text| text == "avx2");
    let isa = if slow { Isa::avx2().unwrap_or(Isa::portable()) } else { Isa::detect() };
    println!("{} ({})", isa.name(), nn::features().join(" "));
    for shape in &SHAPES {
        for &threads in &threads {
            measure(shape, isa, threads);
        }
    }
}
