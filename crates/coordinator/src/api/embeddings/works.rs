//! A call's texts as work: one request each, so many of them at a time, each with its own way through queue and ledger.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use axum::http::{HeaderName, HeaderValue};
use base::{ModelName, RequestId, Tokens};
use model::spec::PoolingSpec;
use store::Name;
use tokio::sync::{mpsc, watch};
use wire::RequestError;
use wire::job::{Ask, Sampling};
use wire::openai::embedding::EmbeddingRequest;
use wire::request::Prompt;

use super::Embedded;
use crate::api::call::{Call, RESUME, Resume, beside};
use crate::api::prepare::{PAID_FOR_US, may_use, ready};
use crate::api::prompt::{Asked, tokens};
use crate::clock::unix_us;
use crate::core::Core;
use crate::dispatch::{Delivery, Event, Work, serve};
use crate::limits::{Allowance, Wanted};
use crate::pools::{KitOf, Served};
use crate::problem::Problem;
use crate::segments::{Segment, Timings};

/// Texts of one call that are on their way at a time: enough to fill the batches of several machines, few enough that a call
/// with thousands leaves room in the queue.
const TEXTS_AT_ONCE: usize = 64;

/// A call whose every text is ready to be served.
pub(super) struct Embedding {
    /// E.
    pub(super) dimensions: usize,
    call: Call,
    served: Arc<Served>,
    vocabulary: u32,
    texts: VecDeque<Vec<u32>>,
    allowance: Allowance,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Says that the caller gets all of it. Dropped without that, it gets nothing, and pays nothing.
    delivered: watch::Sender<bool>,
    delivery: Delivery,
}

/// The pooling of a model, or the refusal of one that has none.
fn pooling(served: &Served, of: &KitOf) -> Result<PoolingSpec, Problem> {
    of.kit.spec.pooling.ok_or_else(|| {
        let lacks = of.kit.no_embeddings.as_deref().unwrap_or("it gives text");
        let message = format!(
            "the model '{}' gives no embeddings: {lacks}; use a model that is made for them",
            served.name
        );
        let param = Some("model".to_owned());
        Problem::Request(RequestError { message, param, code: "embeddings_not_supported" })
    })
}

/// Makes work of a call: all texts are looked at before any is served, so that one bad text refuses the whole.
pub(super) async fn prepare(
    core: &Arc<Core>,
    mut call: Call,
    asked: EmbeddingRequest,
) -> Result<Embedding, Problem> {
    if !may_use(&call.key, &ModelName::new(asked.model.as_str())) {
        return Err(Problem::ModelNotAllowed { model: asked.model.chars().take(100).collect() });
    }
    let (served, of) = ready(core, &mut call, &asked.model).await?;
    pooling(&served, &of)?;
    if call.resume != Resume::Off {
        let detail = "embeddings cannot be come back to: ask for them again";
        return Err(Problem::Header { name: RESUME, detail });
    }
    let start = Instant::now();
    let count = asked.inputs.len();
    let mut texts = VecDeque::with_capacity(count);
    for (index, input) in asked.inputs.into_iter().enumerate() {
        let param = if count == 1 { "input".to_owned() } else { format!("input[{index}]") };
        texts.push_back(text(core, (&served, &of), (input, asked.truncate), &param).await?);
        // Thousands of short texts would else hold this thread for a second.
        tokio::task::yield_now().await;
    }
    call.timings.since(Segment::Tokenize, start);
    let prompt_tokens = texts.iter().map(Vec::len).sum::<usize>();
    let wanted = Wanted {
        prompt_tokens: u32::try_from(prompt_tokens).unwrap_or(u32::MAX),
        max_tokens: 0,
        price: core.prices.of(&served.name),
    };
    let taken = core.limits().take(&call.key, core.clock.now(), &[wanted]).map_err(Problem::Limited)?;
    let (mut allowances, headers) = taken;
    let allowance = allowances.pop().expect("one was asked for, and one is given");
    let (delivered, delivery) = Delivery::new();
    Ok(Embedding {
        dimensions: of.kit.spec.hidden,
        call,
        served,
        vocabulary: u32::try_from(of.kit.spec.vocabulary).unwrap_or(u32::MAX),
        texts,
        allowance,
        headers,
        delivered,
        delivery,
    })
}

/// The tokens of one text.
async fn text(
    core: &Arc<Core>,
    (served, of): (&Arc<Served>, &KitOf),
    (input, truncate): (Prompt, bool),
    param: &str,
) -> Result<Vec<u32>, Problem> {
    let vocabulary = u32::try_from(of.kit.spec.vocabulary).unwrap_or(u32::MAX);
    let refused = |message: String| {
        Problem::Request(RequestError { message, param: Some(param.to_owned()), code: "invalid_value" })
    };
    if let Prompt::Tokens(tokens) = &input
        && let Some(token) = tokens.iter().find(|token| **token >= vocabulary)
    {
        return Err(refused(format!("'{param}' names token {token}, and this model has {vocabulary}")));
    }
    let context = u32::try_from(of.kit.spec.context).unwrap_or(u32::MAX);
    let limit = served.look(|pool, _| pool.limit()).map_or(context, |Tokens(limit)| limit.min(context));
    let mut tokens = tokens(core, of, &served.name, Asked::Input(input)).await?;
    let count = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
    if count == 0 {
        return Err(refused(format!("'{param}' has no tokens: there must be at least one")));
    }
    if count > limit && !truncate {
        return Err(Problem::ContextLength { context: limit, prompt: count, param: "input" });
    }
    if count > limit {
        shorten(&mut tokens, limit as usize, of);
    }
    Ok(tokens)
}

/// The first tokens alone, and the mark that the tokenizer puts behind every text, which is what some models pool.
fn shorten(tokens: &mut Vec<u32>, limit: usize, of: &KitOf) {
    let around = of.kit.encode_text("").unwrap_or_default();
    let end = around.last().filter(|end| tokens.last() == Some(end)).copied();
    tokens.truncate(limit);
    if let (Some(end), Some(last)) = (end, tokens.last_mut()) {
        *last = end;
    }
}

/// What came of one text.
struct Got {
    vector: Vec<f32>,
    timings: Timings,
}

impl Embedding {
    /// Serves every text, in order, and gives all vectors or the first problem. What was not yet served then is not, and what
    /// was is not charged: its caller gets none of it.
    pub(super) async fn serve(mut self, core: &Arc<Core>) -> Result<Embedded, Problem> {
        let (model, count) = (self.served.name.as_str().to_owned(), self.texts.len());
        let mut vectors = Vec::with_capacity(count);
        let (mut prompt_tokens, mut charged) = (0u64, 0u64);
        let mut timings = self.call.timings.clone();
        let mut under_way = VecDeque::with_capacity(TEXTS_AT_ONCE);
        let price = core.prices.of(&self.served.name);
        let mut begun = 0;
        let mut failed = None;
        loop {
            while under_way.len() < TEXTS_AT_ONCE
                && let Some(text) = self.texts.pop_front()
            {
                let tokens = u32::try_from(text.len()).unwrap_or(u32::MAX);
                let work = match self.work(core, text, begun).await {
                    Ok(work) => work,
                    Err(problem) => {
                        failed = Some(problem);
                        break;
                    }
                };
                let paid = work.paid;
                under_way.push_back((tokens, paid, serve(core, work)));
                begun += 1;
            }
            if failed.is_some() {
                break;
            }
            let Some((tokens, paid, events)) = under_way.pop_front() else { break };
            match hear(events).await {
                Ok(got) => {
                    vectors.push(got.vector);
                    timings = got.timings;
                    prompt_tokens += u64::from(tokens);
                    charged += if paid { 0 } else { price.of(tokens, 0) };
                }
                Err(problem) => {
                    failed = Some(problem);
                    break;
                }
            }
        }
        // What was computed counts for the key's rate; what it costs, only where it is delivered.
        self.allowance.settle(prompt_tokens, if failed.is_some() { 0 } else { charged });
        match failed {
            Some(problem) => Err(problem),
            None => {
                self.delivered.send_replace(true);
                Ok(Embedded { model, vectors, prompt_tokens, timings, headers: self.headers })
            }
        }
    }

    /// The `index`-th text's work.
    async fn work(&self, core: &Arc<Core>, prompt: Vec<u32>, index: u64) -> Result<Work, Problem> {
        let call = &self.call;
        let request = beside(call.request, index);
        let (named, paid) = match &call.idempotency {
            Some((name, body)) => self.named(core, (name, *body), index).await?,
            None => (None, false),
        };
        Ok(Work {
            request,
            api: call.api,
            key: call.key.clone(),
            served: Arc::clone(&self.served),
            ask: ask(request, self.served.name.clone()),
            prompt,
            vocabulary: self.vocabulary,
            dimensions: Some(self.dimensions),
            trace: if index == 0 { call.trace.clone() } else { call.trace_beside(core) },
            named,
            paid,
            price: core.prices.of(&self.served.name),
            allowance: None,
            delivery: Some(self.delivery.clone()),
            deadline: call.deadline,
            failover: call.failover,
            owners: call.owners,
            keep: None,
            timings: call.timings.clone(),
            arrived: call.arrived,
            _place: Arc::clone(&call.place),
        })
    }

    /// The caller's own name for the `index`-th text, and whether it was paid under that name before: then it is computed
    /// again, to the same vector, and is free.
    async fn named(
        &self,
        core: &Core,
        (name, body): (&str, [u8; 32]),
        index: u64,
    ) -> Result<(Option<Name>, bool), Problem> {
        let mut hash = trust::Sha256::new();
        hash.update(&self.call.key.account.0.to_be_bytes());
        hash.update(name.as_bytes());
        if index > 0 {
            hash.update(&[0]);
            hash.update(&index.to_be_bytes());
        }
        let name = hash.finish();
        let asked = core.store.asked_as(name, unix_us().saturating_sub(PAID_FOR_US)).await;
        match asked.map_err(|error| crate::api::accounts::failed(&error))? {
            Some(before) if before != body => Err(Problem::IdempotencyReused),
            before => Ok((Some(Name { name, body }), before.is_some())),
        }
    }
}

fn ask(request: RequestId, model: ModelName) -> Ask {
    Ask {
        request,
        model,
        max_tokens: 0,
        sampling: Sampling::default(),
        stop: Vec::new(),
        ignore_stop_tokens: false,
        logprobs: None,
        deadline_us: 0,
        constraint: None,
        special_tokens: false,
        embed: true,
        trace: None,
        hold_ms: 0,
    }
}

/// Waits for a text's vector.
async fn hear(mut events: mpsc::Receiver<Event>) -> Result<Got, Problem> {
    let mut vector = None;
    while let Some(event) = events.recv().await {
        match event {
            Event::Waiting | Event::Started(_) | Event::Settled(_) => {}
            Event::Delta(delta) => vector = vector.or(delta.vector),
            Event::Finished(finished) => {
                let vector = vector.ok_or(Problem::Expired)?;
                return Ok(Got { vector, timings: *finished.timings });
            }
            Event::Failed(problem) => return Err(*problem),
        }
    }
    Err(Problem::Internal("an embedding ended without its end"))
}
