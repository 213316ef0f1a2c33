//! `phalanx models synth`: writes a model with random weights, of any shape, for tests and benches.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use model::checkpoint::DType;
use model::synth::{Synth, SynthFormat, SynthRequest};

use crate::terminal::{say, say_json};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The model family: gemma2, gemma3, gemma4, gpt_oss, llama, mistral, qwen2, qwen3, qwen3_moe, qwen3_5 or qwen3_5_moe.
    #[arg(long, default_value = "llama")]
    family: String,
    /// E: width of the residual stream.
    #[arg(long, default_value_t = 256)]
    hidden: usize,
    /// Layers.
    #[arg(long, default_value_t = 4)]
    layers: usize,
    /// H: query heads.
    #[arg(long, default_value_t = 8)]
    heads: usize,
    /// K: key and value heads [default: as many as query heads].
    #[arg(long)]
    kv_heads: Option<usize>,
    /// D: numbers in a head [default: hidden / heads].
    #[arg(long)]
    head_dim: Option<usize>,
    /// F: width of the feed-forward [default: four times hidden].
    #[arg(long)]
    feed_forward: Option<usize>,
    /// X: experts, each as wide as the feed-forward [default: 8, in families that have them].
    #[arg(long)]
    experts: Option<usize>,
    /// How many of them a token has [default: 2].
    #[arg(long)]
    experts_per_token: Option<usize>,
    /// V: different tokens.
    #[arg(long, default_value_t = 1024)]
    vocabulary: usize,
    /// The longest context, in tokens.
    #[arg(long, default_value_t = 4096)]
    context: usize,
    /// What to write: safetensors, gguf or mlx [default: what stores such weights].
    #[arg(long, value_parser = parse_format)]
    format: Option<SynthFormat>,
    /// How weights are stored: f32, f16, bf16; in gguf also q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q4_k_m, q5_k, q5_k_m, q6_k,
    /// mxfp4; in mlx mlx4 or mlx8, with groups of 64 or as in mlx4-32.
    #[arg(long, default_value = "bf16", value_parser = parse_quantisation)]
    quantisation: Quantisation,
    /// Use the embedding as the head.
    #[arg(long)]
    tied: bool,
    /// The same seed gives the same weights.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The folder to write. Must not hold a model yet.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// How weights are stored, and whether some matrices get more bits.
#[derive(Debug, Clone, Copy)]
struct Quantisation {
    dtype: DType,
    mixed: bool,
}

fn parse_format(text: &str) -> Result<SynthFormat, String> {
    let known = [SynthFormat::Safetensors, SynthFormat::Gguf, SynthFormat::Mlx];
    let found = known.into_iter().find(|format| format.name() == text);
    found.ok_or_else(|| "expected safetensors, gguf or mlx".into())
}

fn parse_quantisation(text: &str) -> Result<Quantisation, String> {
    let text = text.to_ascii_lowercase();
    if let Some(rest) = text.strip_prefix("mlx") {
        let (bits, group) = rest.split_once('-').unwrap_or((rest, "64"));
        return match (bits.parse(), group.parse()) {
            (Ok(bits @ (2 | 3 | 4 | 5 | 6 | 8)), Ok(group @ (32 | 64 | 128))) => {
                Ok(Quantisation { dtype: DType::Mlx { bits, group }, mixed: false })
            }
            _ => Err("expected mlx2, 3, 4, 5, 6 or 8, maybe with -32, -64 or -128".into()),
        };
    }
    let (name, mixed) = match text.strip_suffix("_m") {
        Some(name) => (name, true),
        None => (text.as_str(), false),
    };
    let dtype = match name {
        "f32" => DType::F32,
        "f16" => DType::F16,
        "bf16" => DType::BF16,
        "q4_0" => DType::Q4_0,
        "q4_1" => DType::Q4_1,
        "q5_0" => DType::Q5_0,
        "q5_1" => DType::Q5_1,
        "q8_0" => DType::Q8_0,
        "q4_k" => DType::Q4K,
        "q5_k" => DType::Q5K,
        "q6_k" => DType::Q6K,
        "mxfp4" => DType::Mxfp4,
        _ => return Err("expected f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q4_k_m, q5_k, q5_k_m, q6_k, mxfp4, mlx4 or mlx8".into()),
    };
    Ok(Quantisation { dtype, mixed })
}

impl Options {
    /// What stores such weights, unless said.
    fn format(&self) -> SynthFormat {
        let natural = match self.quantisation.dtype {
            DType::F32 | DType::F16 | DType::BF16 => SynthFormat::Safetensors,
            DType::Mlx { .. } => SynthFormat::Mlx,
            _ => SynthFormat::Gguf,
        };
        self.format.unwrap_or(natural)
    }
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let synth = Synth::new(&SynthRequest {
        family: options.family.clone(),
        hidden: options.hidden,
        layers: options.layers,
        heads: options.heads,
        kv_heads: options.kv_heads.unwrap_or(options.heads),
        head_dim: options.head_dim,
        feed_forward: options.feed_forward.unwrap_or(options.hidden.saturating_mul(4)),
        experts: options.experts,
        experts_per_token: options.experts_per_token,
        vocabulary: options.vocabulary,
        context: options.context,
        format: options.format(),
        dtype: options.quantisation.dtype,
        mixed: options.quantisation.mixed,
        tied: options.tied,
        seed: options.seed,
    })?;
    let format = options.format();
    let weights = options.out.join(format.file_name());
    if weights.exists() {
        bail!("{} is there already: choose another folder, or remove it", weights.display());
    }
    fs::create_dir_all(&options.out).with_context(|| format!("making {}", options.out.display()))?;
    if format != SynthFormat::Gguf {
        let kit = synth.kit();
        write(&options.out.join("config.json"), &kit.config)?;
        write(&options.out.join("tokenizer.json"), &kit.tokenizer)?;
        if let Some(tokenizer_config) = &kit.tokenizer_config {
            write(&options.out.join("tokenizer_config.json"), tokenizer_config)?;
        }
    }
    let bytes = write_weights(&synth, &weights).inspect_err(|_| {
        // Half a file would be taken for a whole one next time.
        let _ = fs::remove_file(&weights);
    })?;
    if options.json {
        say_json(&serde_json::json!({
            "path": options.out,
            "parameters": model::checkpoint::parameters(synth.spec()),
            "weight_bytes": bytes,
        }))?;
    } else {
        say(format!(
            "{}: {} weights, {}",
            options.out.display(),
            model::checkpoint::parameters(synth.spec()),
            base::Bytes(bytes)
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    fs::write(path, bytes).with_context(|| format!("writing {}", path.display()))
}

fn write_weights(synth: &Synth, path: &Path) -> anyhow::Result<u64> {
    let (header, tensor_bytes) = synth.header();
    let context = || format!("writing {}", path.display());
    let mut file = BufWriter::new(File::create(path).with_context(context)?);
    file.write_all(&header).with_context(context)?;
    let style = ProgressStyle::with_template("{bar:40} {bytes} of {total_bytes}, {eta} left")?;
    let bar = ProgressBar::new(tensor_bytes).with_style(style);
    for index in 0..synth.tensors() {
        for chunk in synth.chunks(index) {
            file.write_all(&chunk).with_context(context)?;
            bar.inc(chunk.len() as u64);
        }
    }
    bar.finish_and_clear();
    file.into_inner().map_err(|error| error.into_error()).and_then(|f| f.sync_all()).with_context(context)?;
    Ok(tensor_bytes)
}
