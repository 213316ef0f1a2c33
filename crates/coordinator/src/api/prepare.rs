//! From a typed request to one that can be served: model, tokens, limits, sampling.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::Request;
use axum::http::HeaderMap;
use base::{Micros, ModelName, RequestId, Tokens};
use bytes::Bytes;
use fleet::Refusal;
use model::kit::{KitError, OpenKit};
use model::template::ChatExtra;
use store::KeyInfo;
use tokio::sync::OwnedSemaphorePermit;
use wire::job::{Ask, Sampling};
use wire::openai::{Generation, Prompt, RequestError};

use crate::clock::unix_s;
use crate::core::Core;
use crate::dispatch::Work;
use crate::pools::Served;
use crate::problem::Problem;
use crate::segments::{Segment, Timings};

/// Texts below this are tokenized where they are (some tens of microseconds); longer ones away from the threads that
/// serve connections.
const TOKENIZED_HERE_BYTES_MAX: usize = 1024;

/// OpenAI's default for completions.
const COMPLETION_TOKENS_DEFAULT: u32 = 16;

const DEADLINE: &str = "x-phalanx-deadline-ms";

/// `off`: an answer that loses its machine after the first token ends with an error instead of going on elsewhere.
const FAILOVER: &str = "x-phalanx-failover";

/// What a call said beside its body.
pub(super) struct Call {
    pub(super) request: RequestId,
    pub(super) api: &'static str,
    pub(super) key: KeyInfo,
    pub(super) deadline: Option<Micros>,
    pub(super) failover: bool,
    pub(super) timings: Timings,
    pub(super) arrived: Instant,
    pub(super) place: OwnedSemaphorePermit,
}

impl Call {
    /// Lets a call in, and reads its body.
    pub(super) async fn admit(
        core: &Arc<Core>,
        id: RequestId,
        api: &'static str,
        request: Request,
    ) -> Result<(Self, Bytes), Problem> {
        match Self::admit_head(core, id, api, request.headers()).await {
            Ok(call) => Ok((call, super::body::read(core, request).await?)),
            Err(problem) => {
                super::body::discard(core, request.into_body());
                Err(problem)
            }
        }
    }

    /// By its head alone: its key, and a place among the requests that may be here.
    async fn admit_head(
        core: &Arc<Core>,
        request: RequestId,
        api: &'static str,
        headers: &HeaderMap,
    ) -> Result<Self, Problem> {
        let arrived = Instant::now();
        let now = core.clock.now();
        let key = super::auth::caller(core, headers).await?;
        if core.draining.is_cancelled() {
            return Err(Problem::Draining);
        }
        let deadline = match headers.get(DEADLINE) {
            None => None,
            Some(value) => {
                let ms = value.to_str().ok().and_then(|text| text.trim().parse::<u64>().ok());
                let detail = "expected a number of milliseconds up to 86400000; 0 is off";
                let ms =
                    ms.filter(|ms| *ms <= 86_400_000).ok_or(Problem::Header { name: DEADLINE, detail })?;
                (ms > 0).then(|| now + Micros::from_millis(ms))
            }
        };
        let failover = match headers.get(FAILOVER).map(|value| value.as_bytes()) {
            None | Some(b"on") => true,
            Some(b"off") => false,
            Some(_) => return Err(Problem::Header { name: FAILOVER, detail: "expected on or off" }),
        };
        let place = Arc::clone(&core.places).try_acquire_owned().map_err(|_| {
            let max = core.config.requests.running_max;
            Problem::Busy { running: max - core.places.available_permits().min(max), max }
        })?;
        Ok(Self { request, api, key, deadline, failover, timings: Timings::default(), arrived, place })
    }

    /// The same call's place for one of several prompts.
    pub(super) fn another(&self, core: &Arc<Core>) -> Result<Self, Problem> {
        let place = Arc::clone(&core.places).try_acquire_owned().map_err(|_| {
            let max = core.config.requests.running_max;
            Problem::Busy { running: max, max }
        })?;
        Ok(Self {
            request: core.request_id(),
            api: self.api,
            key: self.key.clone(),
            deadline: self.deadline,
            failover: self.failover,
            timings: self.timings.clone(),
            arrived: self.arrived,
            place,
        })
    }
}

/// What is to be continued. Not `Debug`.
pub(super) enum Source {
    Chat(Vec<serde_json::Value>, serde_json::Map<String, serde_json::Value>),
    Completion(Prompt),
}

impl Source {
    fn param(&self) -> &'static str {
        match self {
            Self::Chat(..) => "messages",
            Self::Completion(_) => "prompt",
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Chat(messages, _) => {
                let content = |m: &serde_json::Value| m["content"].as_str().map_or(0, str::len) + 32;
                messages.iter().map(content).sum()
            }
            Self::Completion(Prompt::Text(text)) => text.len(),
            Self::Completion(Prompt::Tokens(_)) => 0,
        }
    }
}

/// The pool of `model`, if there is one.
pub(super) fn served(core: &Core, model: &str) -> Result<Arc<Served>, Problem> {
    core.pools
        .get(&ModelName::new(model))
        .ok_or_else(|| Problem::Model { model: model.chars().take(100).collect() })
}

/// Makes a request of a call.
pub(super) async fn work(
    core: &Arc<Core>,
    mut call: Call,
    served: Arc<Served>,
    source: Source,
    generation: &Generation,
) -> Result<Work, Problem> {
    let kit = served.kit().ok_or(Problem::Refused(Refusal::NoServingPath))?.kit;
    let param = source.param();
    let chat = matches!(source, Source::Chat(..));
    let vocabulary = u32::try_from(kit.spec.vocabulary).unwrap_or(u32::MAX);
    check_tokens(&source, generation, vocabulary)?;
    let start = Instant::now();
    let prompt = tokens(core, &kit, &served.name, source).await?;
    call.timings.since(Segment::Tokenize, start);
    let count = u32::try_from(prompt.len()).unwrap_or(u32::MAX);
    if count == 0 {
        let message = format!("'{param}' has no tokens: there must be at least one");
        let error = RequestError { message, param: Some(param.to_owned()), code: "invalid_value" };
        return Err(Problem::Request(error));
    }
    let context = u32::try_from(kit.spec.context).unwrap_or(u32::MAX);
    if count >= context {
        return Err(Problem::ContextLength { context, prompt: count, param });
    }
    // Where the caches hold less than the context, the pool refuses what can never fit, with its own numbers.
    let limit = served.look(|pool, now| pool.limit(now)).map_or(context, |Tokens(limit)| limit.min(context));
    let room = limit.saturating_sub(count).max(1);
    let default = match (chat, core.config.requests.answer_tokens_default) {
        (false, _) => COMPLETION_TOKENS_DEFAULT,
        (true, 0) => room,
        (true, some) => some,
    };
    let max_tokens = generation.max_tokens.unwrap_or(default).min(room);
    let ask = Ask {
        request: call.request,
        model: served.name.clone(),
        max_tokens,
        sampling: sampling(core, generation),
        stop: generation.stop.clone(),
        ignore_stop_tokens: generation.ignore_stop_tokens,
        logprobs: generation.logprobs,
        deadline_us: 0,
        constraint: None,
        special_tokens: false,
    };
    Ok(Work {
        request: call.request,
        api: call.api,
        key: call.key,
        served,
        ask,
        prompt,
        vocabulary,
        deadline: call.deadline,
        failover: call.failover,
        timings: call.timings,
        arrived: call.arrived,
        _place: call.place,
    })
}

/// Tokens that the caller names must be the model's.
fn check_tokens(source: &Source, generation: &Generation, vocabulary: u32) -> Result<(), Problem> {
    let beyond = |param: String, token: u32| {
        let message = format!("'{param}' names token {token}, and this model has {vocabulary}");
        Err(Problem::Request(RequestError { message, param: Some(param), code: "invalid_value" }))
    };
    if let Some((token, _)) = generation.logit_bias.iter().find(|(token, _)| *token >= vocabulary) {
        return beyond(format!("logit_bias.{token}"), *token);
    }
    if let Source::Completion(Prompt::Tokens(tokens)) = source
        && let Some(at) = tokens.iter().position(|token| *token >= vocabulary)
    {
        return beyond(format!("prompt[{at}]"), tokens[at]);
    }
    Ok(())
}

async fn tokens(
    core: &Arc<Core>,
    kit: &Arc<OpenKit>,
    name: &ModelName,
    source: Source,
) -> Result<Vec<u32>, Problem> {
    let long = source.bytes() > TOKENIZED_HERE_BYTES_MAX;
    let encoded = if long {
        let _place = core.tokenizers.acquire().await.expect("the semaphore is never closed");
        let kit = Arc::clone(kit);
        match tokio::task::spawn_blocking(move || encode(&kit, source)).await {
            Ok(encoded) => encoded,
            Err(_) => return Err(Problem::Internal("tokenizing the prompt failed")),
        }
    } else {
        encode(kit, source)
    };
    encoded.map_err(|error| match error {
        KitError::NoTemplate => Problem::NoTemplate { model: name.as_str().to_owned() },
        KitError::Template(error) => Problem::Template { detail: error.to_string() },
        _ => Problem::Internal("the model's tokenizer failed on this prompt"),
    })
}

fn encode(kit: &OpenKit, source: Source) -> Result<Vec<u32>, KitError> {
    match source {
        Source::Chat(messages, variables) => {
            let now_unix_s = i64::try_from(unix_s()).unwrap_or(i64::MAX);
            kit.encode_chat(&messages, None, &ChatExtra { now_unix_s, variables })
        }
        Source::Completion(Prompt::Text(text)) => kit.encode_text(&text),
        Source::Completion(Prompt::Tokens(tokens)) => Ok(tokens),
    }
}

fn sampling(core: &Core, generation: &Generation) -> Sampling {
    let default = Sampling::default();
    Sampling {
        // OpenAI's defaults: 1 for both.
        temperature: generation.temperature.unwrap_or(1.0),
        top_p: generation.top_p.unwrap_or(1.0),
        top_k: generation.top_k.unwrap_or(default.top_k),
        min_p: generation.min_p.unwrap_or(default.min_p),
        repetition_penalty: generation.repetition_penalty.unwrap_or(default.repetition_penalty),
        presence_penalty: generation.presence_penalty.unwrap_or(default.presence_penalty),
        frequency_penalty: generation.frequency_penalty.unwrap_or(default.frequency_penalty),
        seed: generation.seed.unwrap_or_else(|| core.seed()),
        logit_bias: generation.logit_bias.clone(),
    }
}
