//! From the typed request to work that can be served: model, prompt, limits, sampling; one for each answer asked for.

mod pool;

use std::sync::Arc;
use std::time::Instant;

use axum::http::{HeaderName, HeaderValue};
use base::{AccountId, ModelName, RequestId, Tokens};
use model::kit::OpenKit;
use serde_json::{Value, json};
use store::{KeyInfo, Name};
use tokio::sync::mpsc;
use wire::RequestError;
use wire::job::{Ask, Constraint, Sampling};
use wire::request::{Generation, Prompt, Request, Source};

use super::answer::Answering;
use super::call::{Call, RESUME, Resume};
use super::prompt::{Asked, tokens};
use super::reader::Reading;
use super::stream::Said;
use super::tools::{Form, Manner};
use crate::clock::unix_us;
use crate::core::Core;
use crate::dispatch::{Event, Work, serve};
use crate::limits::Wanted;
use crate::pools::Served;
use crate::problem::Problem;
use crate::segments::Segment;
use crate::streams::{Keep, Named};

pub(super) use pool::{kit_of, ready, served};

/// OpenAI's default for completions.
const COMPLETION_TOKENS_DEFAULT: u32 = 16;

/// How long tokens of an answer that goes out in one piece may wait where they are computed: a frame for each would be most of
/// what such an answer costs here. What is lost with a machine is computed again elsewhere, so that this is also how much
/// longer a move may take; the first token is never held, since waits and estimates go by it.
const WHOLE_HOLD_MS: u32 = 100;

/// How long a caller's own name for a request stands for what was paid: a day, as such keys are held elsewhere.
pub(super) const PAID_FOR_US: u64 = 24 * 3600 * 1_000_000;

/// A request whose every answer is ready to be served.
pub(super) struct Prepared {
    /// The first answer's: the one that the caller comes back to, where it does.
    pub(super) request: RequestId,
    pub(super) served: Arc<Served>,
    pub(super) said: Said,
    /// The text of each prompt, where the answers begin with it.
    pub(super) echo: Vec<String>,
    /// Tokens of the longest prompt.
    pub(super) prompt_tokens: u32,
    works: Vec<Work>,
    reading: Reading,
    resume: Resume,
    /// Whether another run of it would give the same answer.
    repeatable: bool,
}

impl Prepared {
    /// What the answer's header says.
    pub(super) fn take_said(&mut self) -> Said {
        Said {
            seed: self.said.seed,
            ignored: std::mem::take(&mut self.said.ignored),
            more: std::mem::take(&mut self.said.more),
        }
    }

    /// Others read it while it is written, though its caller does not.
    pub(super) fn as_it_comes(&mut self) {
        self.works.iter_mut().for_each(|work| work.ask.hold_ms = 0);
    }

    /// Where its one answer is kept: with what its API needs to write it again.
    pub(super) fn keep(&mut self, shape: &Value) {
        if let [work] = self.works.as_mut_slice()
            && let Some(keep) = &mut work.keep
        {
            keep.shape = json!({"reading": self.reading.kept(), "shape": shape}).to_string().into();
        }
    }

    /// Serves it, or comes back to it.
    pub(super) fn begin(mut self, core: &Arc<Core>) -> Answering {
        let keeps = self.resume != Resume::Off && self.works.len() == 1;
        let (Resume::Back { from }, [work]) = (self.resume, self.works.as_slice()) else {
            let events = self.works.into_iter().map(|work| serve(core, work)).collect();
            return Answering::new(events, &self.reading).marked(keeps);
        };
        let events = match core.attach(work.request, work.key.account) {
            Some(attached) => attached.events,
            // It was computed by a coordinator that is no more, or is long forgotten. Computed again it is the same.
            None if self.repeatable && !core.streams.has(work.request) => {
                let key = work.key.clone();
                match allow(core, &key, &mut self.works) {
                    Ok(_) => serve(core, self.works.remove(0)),
                    Err(problem) => failed(problem),
                }
            }
            None => {
                let id = format!("{:032x}", work.request.0);
                failed(Problem::Missing { what: "answer that could be gone on with and has the id", id })
            }
        };
        Answering::new(vec![events], &self.reading).marked(true).after(from)
    }
}

/// An answer that is a problem.
fn failed(problem: Problem) -> mpsc::Receiver<Event> {
    let (to, from) = mpsc::channel(1);
    let sent = to.try_send(Event::Failed(Box::new(problem)));
    debug_assert!(sent.is_ok(), "a new channel has room");
    from
}

/// Refuses a model that gives no text.
fn generates<'k>(served: &Served, kit: &'k OpenKit) -> Result<&'k OpenKit, Problem> {
    if kit.spec.pooling.is_none() {
        return Ok(kit);
    }
    let message = format!("the model '{}' gives embeddings and no text: use /v1/embeddings", served.name);
    let param = Some("model".to_owned());
    Err(Problem::Request(RequestError { message, param, code: "generation_not_supported" }))
}

/// Makes work of a call: all of it is looked at before any is served, so that one bad prompt refuses the whole.
pub(super) async fn prepare(core: &Arc<Core>, mut call: Call, request: Request) -> Result<Prepared, Problem> {
    if !may_use(&call.key, &ModelName::new(request.model.as_str())) {
        return Err(Problem::ModelNotAllowed { model: request.model.chars().take(100).collect() });
    }
    let (served, of) = ready(core, &mut call, &request.model).await?;
    let kit = generates(&served, &of.kit)?;
    let mut generation = request.generation;
    let (mut resume, idempotency) = (call.resume, call.idempotency.clone());
    let repeatable = generation.seed.is_some() || generation.temperature == Some(0.0);
    // One seed for all answers, so that the header can name it; those after the first count on from it.
    let seed = *generation.seed.get_or_insert_with(|| core.seed());
    let (asked, form) = match request.source {
        Source::Chat(chat) => {
            let form = Form::of(kit, &chat, &mut generation)?;
            (vec![Asked::Chat(Box::new(chat))], Some(form))
        }
        Source::Texts(list) => (list.into_iter().map(Asked::Text).collect(), None),
    };
    let vocabulary = u32::try_from(kit.spec.vocabulary).unwrap_or(u32::MAX);
    check_tokens(&asked, &generation, vocabulary)?;
    let start = Instant::now();
    let mut prompts = Vec::with_capacity(asked.len());
    let mut echo = Vec::new();
    for one in asked {
        let chat = matches!(one, Asked::Chat(_));
        if generation.echo {
            echo.push(text_of(kit, &one));
        }
        let prompt = tokens(core, &of, &served.name, one).await?;
        let max_tokens = limit(core, kit, &served, &generation, (chat, prompt.len()))?;
        prompts.push((prompt, max_tokens));
    }
    call.timings.since(Segment::Tokenize, start);
    let longest = prompts.iter().map(|(prompt, _)| prompt.len()).max().unwrap_or(0);
    let prompt_tokens = u32::try_from(longest).unwrap_or(u32::MAX);
    let manner = match (form, prompts.first()) {
        (Some(form), Some((prompt, _))) => form.manner(kit, &of.dialect, &generation.format, prompt),
        _ => Manner::of_texts(&generation.format),
    };
    let mut said = Said { seed, ignored: std::mem::take(&mut generation.ignored), more: Vec::new() };
    let shared = Shared { core, served: &served, generation, constraint: manner.constraint, vocabulary };
    let key = call.key.clone();
    let mut works = shared.works(call, prompts, seed, manner.special_tokens)?;
    if let (Some(named), [work]) = (idempotency, works.as_mut_slice())
        && let Some(back) = named_before(core, key.account, named, work).await?
    {
        resume = back;
    }
    // Who comes back to an answer took its part when it began; what begins anew takes it then.
    if !matches!(resume, Resume::Back { .. }) {
        let allowed = allow(core, &key, &mut works);
        if allowed.is_err() {
            works.iter().for_each(|work| core.streams.unname(work.request));
        }
        said.more.extend(allowed?);
    }
    let request = works.first().map_or(RequestId(0), |work| work.request);
    Ok(Prepared {
        served,
        request,
        said,
        echo,
        prompt_tokens,
        works,
        reading: manner.reading,
        resume,
        repeatable,
    })
}

/// A prompt as its caller may have it back.
fn text_of(kit: &OpenKit, asked: &Asked) -> String {
    match asked {
        Asked::Text(Prompt::Text(text)) => text.clone(),
        Asked::Text(Prompt::Tokens(tokens)) => kit.tokenizer.decode(tokens, false),
        Asked::Chat(_) | Asked::Input(_) => String::new(),
    }
}

/// Gives a work the caller's own name; where that name was used for the same body before, the way back to its answer.
async fn named_before(
    core: &Arc<Core>,
    account: AccountId,
    (name, body): (String, [u8; 32]),
    work: &mut Work,
) -> Result<Option<Resume>, Problem> {
    let mut hash = trust::Sha256::new();
    hash.update(&account.0.to_be_bytes());
    hash.update(name.as_bytes());
    let kept = Name { name: hash.finish(), body };
    match core.streams.name(account, name, body, work.request) {
        Named::New => {
            work.keep.get_or_insert_with(|| Keep { shape: "".into(), to_the_end: false });
            work.named = Some(kept);
            // Its answer may be forgotten, or its coordinator gone: what was paid is in the ledger.
            let since = unix_us().saturating_sub(PAID_FOR_US);
            let asked = core.store.asked_as(kept.name, since).await;
            let asked = asked.inspect_err(|_| core.streams.unname(work.request));
            match asked.map_err(|error| super::accounts::failed(&error))? {
                Some(before) if before != body => {
                    core.streams.unname(work.request);
                    return Err(Problem::IdempotencyReused);
                }
                before => work.paid = before.is_some(),
            }
            Ok(None)
        }
        Named::Known(request) => {
            (work.request, work.ask.request) = (request, request);
            Ok(Some(Resume::Back { from: 0 }))
        }
        Named::Other => Err(Problem::IdempotencyReused),
    }
}

/// Takes from the key what the works may use; gives what the header says of the rest.
fn allow(
    core: &Arc<Core>,
    key: &KeyInfo,
    works: &mut [Work],
) -> Result<Vec<(HeaderName, HeaderValue)>, Problem> {
    let wanted: Vec<Wanted> = works
        .iter()
        .map(|work| Wanted {
            prompt_tokens: u32::try_from(work.prompt.len()).unwrap_or(u32::MAX),
            max_tokens: work.ask.max_tokens,
            price: work.price,
        })
        .collect();
    let taken = core.limits().take(key, core.clock.now(), &wanted);
    let (allowances, headers) = taken.map_err(Problem::Limited)?;
    for (work, allowance) in works.iter_mut().zip(allowances) {
        work.allowance = Some(allowance);
    }
    Ok(headers)
}

/// Whether a key may ask a model.
pub(super) fn may_use(key: &KeyInfo, model: &ModelName) -> bool {
    key.terms.models.is_empty() || key.terms.models.contains(model)
}

/// How many tokens a request's prompt has, as the model would be given it.
pub(super) async fn count(core: &Arc<Core>, request: Request) -> Result<u32, Problem> {
    let served = served(core, &request.model)?;
    let of = kit_of(&served)?;
    let asked = match request.source {
        Source::Chat(chat) => vec![Asked::Chat(Box::new(chat))],
        Source::Texts(list) => list.into_iter().map(Asked::Text).collect(),
    };
    let mut count = 0;
    for one in asked {
        count += tokens(core, &of, &served.name, one).await?.len();
    }
    Ok(u32::try_from(count).unwrap_or(u32::MAX))
}

/// What all works of one call have.
struct Shared<'a> {
    core: &'a Arc<Core>,
    served: &'a Arc<Served>,
    generation: Generation,
    constraint: Option<Constraint>,
    vocabulary: u32,
}

impl Shared<'_> {
    fn works(
        &self,
        first: Call,
        prompts: Vec<(Vec<u32>, u32)>,
        seed: u64,
        special_tokens: bool,
    ) -> Result<Vec<Work>, Problem> {
        let choices = self.generation.choices.max(1);
        let count = prompts.len() * choices as usize;
        if count > 1 && first.resume != Resume::Off {
            // Choices interleave as they come: there is no place in them to come back to.
            let detail =
                "an answer of several choices or prompts cannot be come back to: ask for one, or say off";
            return Err(Problem::Header { name: RESUME, detail });
        }
        let mut calls = Vec::with_capacity(count);
        for index in 1..count as u64 {
            calls.push(first.another(self.core, index)?);
        }
        calls.insert(0, first);
        // A machine that holds tokens must not be taken for one that fell silent.
        let silence_ms = self.core.config.requests.pause_us_max.0 / 1000;
        let hold_ms = WHOLE_HOLD_MS.min(u32::try_from(silence_ms / 4).unwrap_or(u32::MAX));
        let mut calls = calls.into_iter();
        let mut works = Vec::with_capacity(calls.len());
        for (prompt, max_tokens) in prompts {
            for choice in 0..choices {
                let Some(call) = calls.next() else { break };
                let ask = Ask {
                    request: call.request,
                    model: self.served.name.clone(),
                    max_tokens,
                    sampling: sampling(&self.generation, seed.wrapping_add(u64::from(choice))),
                    stop: self.generation.stop.clone(),
                    ignore_stop_tokens: self.generation.ignore_stop_tokens,
                    logprobs: self.generation.logprobs,
                    deadline_us: 0,
                    constraint: self.constraint.clone(),
                    special_tokens,
                    embed: false,
                    trace: None,
                    hold_ms: if self.generation.stream { 0 } else { hold_ms },
                };
                works.push(self.work(call, ask, prompt.clone()));
            }
        }
        Ok(works)
    }

    fn work(&self, call: Call, ask: Ask, prompt: Vec<u32>) -> Work {
        Work {
            request: call.request,
            api: call.api,
            key: call.key,
            served: Arc::clone(self.served),
            ask,
            prompt,
            vocabulary: self.vocabulary,
            dimensions: None,
            trace: call.trace,
            named: None,
            paid: false,
            price: self.core.prices.of(&self.served.name),
            allowance: None,
            delivery: None,
            deadline: call.deadline,
            failover: call.failover,
            owners: call.owners,
            keep: (call.resume != Resume::Off).then(|| Keep { shape: "".into(), to_the_end: false }),
            timings: call.timings,
            arrived: call.arrived,
            _place: call.place,
        }
    }
}

/// The most tokens that an answer to a prompt of so many tokens may have.
fn limit(
    core: &Core,
    kit: &OpenKit,
    served: &Served,
    generation: &Generation,
    (chat, prompt): (bool, usize),
) -> Result<u32, Problem> {
    let param = if chat { "messages" } else { "prompt" };
    let count = u32::try_from(prompt).unwrap_or(u32::MAX);
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
    let limit = served.look(|pool, _| pool.limit()).map_or(context, |Tokens(limit)| limit.min(context));
    let room = limit.saturating_sub(count).max(1);
    let default = match (chat, core.config.requests.answer_tokens_default) {
        (false, _) => COMPLETION_TOKENS_DEFAULT,
        (true, 0) => room,
        (true, some) => some,
    };
    Ok(generation.max_tokens.unwrap_or(default).min(room))
}

/// Tokens that the caller names must be the model's.
fn check_tokens(asked: &[Asked], generation: &Generation, vocabulary: u32) -> Result<(), Problem> {
    let beyond = |param: String, token: u32| {
        let message = format!("'{param}' names token {token}, and this model has {vocabulary}");
        Err(Problem::Request(RequestError { message, param: Some(param), code: "invalid_value" }))
    };
    if let Some((token, _)) = generation.logit_bias.iter().find(|(token, _)| *token >= vocabulary) {
        return beyond(format!("logit_bias.{token}"), *token);
    }
    for (index, one) in asked.iter().enumerate() {
        if let Asked::Text(Prompt::Tokens(tokens)) = one
            && let Some(at) = tokens.iter().position(|token| *token >= vocabulary)
        {
            let list = if asked.len() == 1 { "prompt".to_owned() } else { format!("prompt[{index}]") };
            return beyond(format!("{list}[{at}]"), tokens[at]);
        }
    }
    Ok(())
}

fn sampling(generation: &Generation, seed: u64) -> Sampling {
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
        seed,
        logit_bias: generation.logit_bias.clone(),
    }
}
