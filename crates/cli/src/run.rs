//! `phalanx run`: answers one prompt with the engine alone: no network, no coordinator.

use std::process::ExitCode;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use base::{AttemptId, ModelName, RequestId, Rng};
use engine::{LoadOptions, Sink};
use model::template::ChatExtra;
use serde_json::json;
use wire::chunk::Chunk;
use wire::job::{Ask, Job, Sampling};

use crate::ranks::{GroupOptions, Running};
use crate::serving::{EngineOptions, parse_source};
use crate::terminal::{say, say_answer, say_json};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// `bundled`, a model's folder, or a GGUF file.
    model: String,
    /// What to say to it.
    prompt: String,
    /// Take the prompt as a text to go on with, not as a user's turn.
    #[arg(long)]
    raw: bool,
    /// What to tell the model before the prompt.
    #[arg(long, conflicts_with = "raw")]
    system: Option<String>,
    /// At most so many tokens.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// 0 is the same answer every time.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// The smallest set of tokens whose probabilities reach this.
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Repeats an answer drawn with a temperature [default: a new one each time].
    #[arg(long)]
    seed: Option<u64>,
    /// End before this text. May be repeated.
    #[arg(long)]
    stop: Vec<String>,
    #[command(flatten)]
    engine: EngineOptions,
    #[command(flatten)]
    group: GroupOptions,
    /// Print JSON when done: text, tokens, speeds.
    #[arg(long)]
    json: bool,
}

/// Chunks on their way to the terminal: a terminal that does not keep up pauses the engine, which has nothing else to do.
const CHUNKS_WAITING_MAX: usize = 64;

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let name = ModelName::new(options.model.as_str());
    let config = options.engine.config();
    let (source, load) = (parse_source(&options.model), LoadOptions::default());
    let loaded = engine::load(&source, &load)?;
    let kit = loaded.open_kit().context("a model without a tokenizer")?;
    let prompt = if options.raw {
        kit.encode_text(&options.prompt)?
    } else {
        let mut messages = Vec::new();
        if let Some(system) = &options.system {
            messages.push(json!({"role": "system", "content": system}));
        }
        messages.push(json!({"role": "user", "content": options.prompt}));
        kit.encode_chat(&messages, None, &ChatExtra::default())?
    };
    let running = Running::start(name.clone(), (&source, loaded, &load), config, &options.group)?;
    let (sender, chunks) = sync_channel(CHUNKS_WAITING_MAX);
    running.engine().submit(
        AttemptId(1),
        job(options, name, prompt),
        Box::new(Terminal { sender, room: true }),
    )?;
    let result = print(options, &chunks);
    running.stop()?;
    result
}

fn job(options: &Options, model: ModelName, prompt: Vec<u32>) -> Job {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let drawn = Rng::new(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)).next_u64();
    Job {
        ask: Ask {
            request: RequestId(1),
            model,
            max_tokens: options.max_tokens,
            sampling: Sampling {
                temperature: options.temperature,
                top_p: options.top_p,
                seed: options.seed.unwrap_or(drawn),
                ..Sampling::default()
            },
            stop: options.stop.clone(),
            ignore_stop_tokens: false,
            logprobs: None,
            deadline_us: 0,
            constraint: None,
            special_tokens: false,
            embed: false,
            trace: None,
            hold_ms: 0,
        },
        prompt,
        generated: Vec::new(),
    }
}

fn print(options: &Options, chunks: &Receiver<Result<Chunk, String>>) -> anyhow::Result<ExitCode> {
    let (mut text, mut tokens) = (String::new(), Vec::new());
    loop {
        let chunk = match chunks.recv().context("the engine ended without an answer")? {
            Ok(chunk) => chunk,
            Err(message) => bail!("{message}"),
        };
        if !options.json {
            say_answer(&chunk.text)?;
        }
        text.push_str(&chunk.text);
        tokens.extend(chunk.tokens);
        let Some(finish) = chunk.finish else { continue };
        let per_second = |count: u32, us: u64| f64::from(count) * 1e6 / us.max(1) as f64;
        let prefill = per_second(finish.prompt_tokens, finish.prefill_us);
        let decode = per_second(finish.generated_tokens.saturating_sub(1), finish.decode_us);
        if options.json {
            say_json(&json!({
                "text": text,
                "tokens": tokens,
                "finish_reason": finish.reason,
                "prompt_tokens": finish.prompt_tokens,
                "generated_tokens": finish.generated_tokens,
                "prefill_tokens_per_s": prefill,
                "decode_tokens_per_s": decode,
            }))?;
        } else {
            say("")?;
            eprintln!(
                "[{} prompt tokens at {prefill:.0}/s, {} generated at {decode:.0}/s]",
                finish.prompt_tokens, finish.generated_tokens
            );
        }
        return Ok(ExitCode::SUCCESS);
    }
}

/// Hands chunks to the main thread.
struct Terminal {
    sender: SyncSender<Result<Chunk, String>>,
    room: bool,
}

impl Sink for Terminal {
    fn room(&self) -> bool {
        self.room
    }

    fn deliver(&mut self, chunk: Chunk) {
        // The engine has this one answer to compute: waiting for the terminal holds up nobody. A main thread that
        // is gone (its output was closed) wants no more.
        self.room = self.sender.send(Ok(chunk)).is_ok();
    }

    fn failed(&mut self, message: &str) {
        self.room = self.sender.send(Err(message.to_owned())).is_ok();
    }
}
