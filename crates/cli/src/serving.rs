//! What `up`, `coordinator` and `provider` share: the runtime, the listener, which models to serve.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use base::{Bytes, ModelName};
use engine::{ActivationFormat, Device, EngineConfig, KvFormat, ModelSource, WeightFormat};
use tokio::net::TcpListener;

/// The name under which the bundled model is served.
pub(crate) const BUNDLED_NAME: &str = "phalanx-bundled";

/// Runs a verb to its end.
pub(crate) fn block_on(verb: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(verb);
    // Nothing that a verb awaited is left; a blocked read of a terminal would be waited for in vain.
    runtime.shutdown_background();
    result
}

/// Runs a server to its end, as a task like those that it starts: the first task has no thread of its own that each message
/// would have to wake.
pub(crate) fn serve(
    server: impl Future<Output = anyhow::Result<ExitCode>> + Send + 'static,
) -> anyhow::Result<ExitCode> {
    block_on(async {
        match tokio::spawn(server).await {
            Ok(result) => result,
            Err(ended) => std::panic::resume_unwind(ended.into_panic()),
        }
    })
}

/// Listens on `address`, and says what to do where that fails.
pub(crate) async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => bail!(
            "{address} is in use, perhaps by another Phalanx: stop that one, or choose an address with --listen \
             (port 0 takes a free one)"
        ),
        Err(error) => Err(error).with_context(|| format!("listening on {address}")),
    }
}

/// A model to serve and the name to serve it under.
#[derive(Clone, Debug)]
pub(crate) struct ServedModel {
    /// The name.
    pub(crate) name: ModelName,
    /// Where it is.
    pub(crate) source: ModelSource,
    argument: String,
}

impl ServedModel {
    /// The bundled model under its own name.
    pub(crate) fn bundled() -> Self {
        parse_served_model("bundled").expect("a name without '='")
    }

    /// As it was given, for a child process.
    pub(crate) fn argument(&self) -> &str {
        &self.argument
    }
}

/// Reads `NAME=PATH`, `NAME=bundled`, `PATH` or `bundled`.
pub(crate) fn parse_served_model(text: &str) -> Result<ServedModel, String> {
    let (name, source) = match text.split_once('=') {
        Some((name, source)) => (name.to_owned(), source),
        None if text == "bundled" => (BUNDLED_NAME.to_owned(), text),
        None => {
            let folder = std::path::Path::new(text).file_name().and_then(|n| n.to_str());
            (folder.ok_or("name the model: NAME=PATH")?.to_owned(), text)
        }
    };
    let fits = !name.is_empty()
        && name.len() <= 128
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_./:".contains(c));
    if !fits {
        return Err(format!(
            "{name:?} is no name for a model: 1 to 128 letters, digits, '-', '_', '.', '/' or ':'"
        ));
    }
    Ok(ServedModel { name: ModelName::new(name), source: parse_source(source), argument: text.to_owned() })
}

/// Reads `bundled` or a path.
pub(crate) fn parse_source(text: &str) -> ModelSource {
    if text == "bundled" { ModelSource::Bundled } else { ModelSource::Folder(PathBuf::from(text)) }
}

/// How the engine uses this machine.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct EngineOptions {
    /// What computes: cpu, or by candle candle-cpu, metal[:N] or cuda[:N], in a program that was built with the feature
    /// `candle`, `metal` or `candle-cuda` (the last two were never run) [default: cpu].
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<Device>,
    /// Threads that compute [default: one for each core].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) threads: Option<u32>,
    /// Requests computed together at most.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) batch_max: Option<u32>,
    /// Memory for keys and values, as in 2GiB [default: 16 full contexts, or a quarter of what is free].
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub(crate) kv_memory: Option<Bytes>,
    /// The longest context to serve, in tokens [default: the model's].
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(16..))]
    pub(crate) context: Option<u32>,
    /// Hold weights as they are stored (auto), as f32, or as bf16.
    #[arg(long, value_name = "FORMAT", value_parser = parse_weights)]
    pub(crate) weights: Option<WeightFormat>,
    /// Multiply quantised weights with activations rounded to eight bits (int8), bf16 weights with activations rounded to
    /// bf16 too (bf16), or all with activations as they are (f32) [default: int8].
    #[arg(long, value_name = "FORMAT", value_parser = parse_activations)]
    pub(crate) activations: Option<ActivationFormat>,
    /// Guess up to N tokens ahead from what prompt and answer said before, and compute them together where that pays:
    /// faster where text repeats itself, and the same text. Not for recurrent models, and not in groups [default: 0].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=32))]
    pub(crate) speculate: Option<u32>,
    /// Hold keys and values as f32 (auto), f16, bf16, or as bytes with scales (int8): less memory for each token, and
    /// answers that may differ.
    #[arg(long, value_name = "FORMAT", value_parser = parse_kv)]
    pub(crate) kv: Option<KvFormat>,
}

impl EngineOptions {
    /// The engine's settings.
    pub(crate) fn config(&self) -> EngineConfig {
        let mut config = EngineConfig {
            device: self.device.unwrap_or_default(),
            threads: self.threads.map(|count| count as usize),
            kv_bytes: self.kv_memory,
            context: self.context,
            ..EngineConfig::default()
        };
        if let Some(batch_max) = self.batch_max {
            config.batch_max = batch_max;
        }
        if let Some(weights) = self.weights {
            config.weights = weights;
        }
        config.activations = self.activations.unwrap_or_default();
        config.kv = self.kv.unwrap_or_default();
        config.speculate = self.speculate.unwrap_or(config.speculate);
        config
    }

    /// As they were given, for a child process.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let weights = self.weights.map(|weights| match weights {
            WeightFormat::Auto => "auto",
            WeightFormat::F32 => "f32",
            WeightFormat::Bf16 => "bf16",
        });
        let activations = self.activations.map(|activations| match activations {
            ActivationFormat::Int8 => "int8",
            ActivationFormat::Bf16 => "bf16",
            ActivationFormat::F32 => "f32",
        });
        let kv = self.kv.map(|kv| match kv {
            KvFormat::Auto => "auto",
            KvFormat::F32 => "f32",
            KvFormat::F16 => "f16",
            KvFormat::Bf16 => "bf16",
            KvFormat::Int8 => "int8",
        });
        let given = [
            ("--device", self.device.map(|device| device.to_string())),
            ("--threads", self.threads.map(|n| n.to_string())),
            ("--batch-max", self.batch_max.map(|n| n.to_string())),
            ("--kv-memory", self.kv_memory.map(|b| b.0.to_string())),
            ("--context", self.context.map(|n| n.to_string())),
            ("--weights", weights.map(str::to_owned)),
            ("--activations", activations.map(str::to_owned)),
            ("--kv", kv.map(str::to_owned)),
            ("--speculate", self.speculate.map(|n| n.to_string())),
        ];
        given.into_iter().filter_map(|(name, value)| Some([name.to_owned(), value?])).flatten().collect()
    }
}

/// Reads `1073741824`, `1GiB`, `512 MiB`, `64KiB`.
pub(crate) fn parse_bytes(text: &str) -> Result<Bytes, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let count: u64 = text[..digits].parse().map_err(|_| "expected a number, as in 2GiB".to_owned())?;
    let shift = match text[digits..].trim() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        unit => return Err(format!("{unit:?} is no unit: B, KiB, MiB, GiB or TiB")),
    };
    let bytes = count.checked_mul(1 << shift).ok_or("more bytes than there are")?;
    Ok(Bytes(bytes))
}

fn parse_weights(text: &str) -> Result<WeightFormat, String> {
    match text {
        "auto" => Ok(WeightFormat::Auto),
        "f32" => Ok(WeightFormat::F32),
        "bf16" => Ok(WeightFormat::Bf16),
        _ => Err("expected auto, f32 or bf16".into()),
    }
}

fn parse_activations(text: &str) -> Result<ActivationFormat, String> {
    match text {
        "int8" => Ok(ActivationFormat::Int8),
        "bf16" => Ok(ActivationFormat::Bf16),
        "f32" => Ok(ActivationFormat::F32),
        _ => Err("expected int8, bf16 or f32".into()),
    }
}

fn parse_kv(text: &str) -> Result<KvFormat, String> {
    match text {
        "auto" => Ok(KvFormat::Auto),
        "f32" => Ok(KvFormat::F32),
        "f16" => Ok(KvFormat::F16),
        "bf16" => Ok(KvFormat::Bf16),
        "int8" => Ok(KvFormat::Int8),
        _ => Err("expected auto, f32, f16, bf16 or int8".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_served_model_is_named_by_what_is_before_the_sign_or_by_its_folder() {
        let name = |text| parse_served_model(text).map(|m| m.name.to_string());
        assert_eq!(name("bundled").unwrap(), BUNDLED_NAME);
        assert_eq!(name("a=bundled").unwrap(), "a");
        assert_eq!(name("/models/tiny").unwrap(), "tiny");
        assert!(name("=bundled").unwrap_err().contains("no name"));
        assert!(name("a b=x").unwrap_err().contains("no name"));
    }

    #[test]
    fn bytes_are_read_with_their_unit() {
        assert_eq!(parse_bytes("2GiB"), Ok(Bytes(2 << 30)));
        assert_eq!(parse_bytes("512 MiB"), Ok(Bytes(512 << 20)));
        assert_eq!(parse_bytes("77"), Ok(Bytes(77)));
        assert!(parse_bytes("2GB").unwrap_err().contains("GiB"));
        assert!(parse_bytes("99999999999TiB").unwrap_err().contains("more bytes"));
    }
}
