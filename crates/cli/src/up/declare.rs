//! What `phalanx up` says that should run, as deployments, and how it waits until they do.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use base::Bytes;
use engine::{EngineConfig, LoadedModel};
use fleet::deployment::{CONTEXT_MAX, Division as Shape, NAME_BYTES_MAX, Replicas, Spec};
use wire::admin::FleetStatus;
use wire::admin::deployment::{Accepted, DeploymentList, DeploymentStatus};

use super::division::Division;
use crate::client::Client;
use crate::place::write_private;
use crate::serving::{EngineOptions, ServedModel};

/// The names of what the last start declared, in the data folder.
const FILE: &str = "declared.json";
/// Whole contexts that the cache has room for, at least, where nobody says otherwise: longer ones are cut for them.
const CONTEXTS_MIN: u64 = 4;
/// The shortest context that is served for their sake.
const CONTEXT_MIN: u64 = 512;
/// The cache where the machine does not tell its memory.
const CACHE_UNKNOWN: u64 = 256 << 20;
/// Tokens in a page of the cache.
const PAGE_TOKENS: u64 = 16;
/// Once all providers are there and know their models, a place is found within this, or there is none.
const PLACE_MAX: Duration = Duration::from_secs(20);
/// How often it is looked whether all serve.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// The deployments.
pub(super) struct Declared {
    pub(super) specs: Vec<Spec>,
    /// Every model on each provider alone: what is declared instead where a division that nobody asked for comes to nothing.
    alone: Option<Vec<Spec>>,
    providers: u32,
}

impl Declared {
    /// Looks at the models' files, and says what should run of each.
    pub(super) fn of(
        models: &[ServedModel],
        division: Option<&Division>,
        providers: u32,
        engine: &EngineOptions,
    ) -> anyhow::Result<Self> {
        let mut specs: Vec<Spec> = Vec::new();
        let mut is_whole = division.is_none();
        for model in models {
            let loaded = engine::look(&model.source)
                .map_err(anyhow::Error::new)
                .with_context(|| format!("{} cannot be served", model.name))?;
            if specs.iter().any(|spec| spec.model == model.name.as_str()) {
                bail!("two models are called {}: name one NAME=PATH", model.name);
            }
            let mut spec = Spec::new(name_of(model.name.as_str(), &specs), model.name.as_str());
            spec.exclusive = models.len() == 1;
            let sizes = sizes(engine, &loaded).with_context(|| format!("{} cannot be served", model.name))?;
            (spec.context, spec.max_batch) = (Some(sizes.0), sizes.1);
            (spec.shape, spec.replicas) = (Shape::Single, Replicas::Fixed(providers));
            if let Some(division) = division {
                match division.shape(&loaded) {
                    Ok(shape) => spec.shape = shape,
                    Err(error) if division.is_by_default() => {
                        is_whole = true;
                        eprintln!("{} is not divided ({error:#}): each provider serves it alone", model.name);
                    }
                    Err(error) => {
                        let what =
                            format!("{} cannot be divided over {} ranks", model.name, division.ranks());
                        return Err(error.context(what));
                    }
                }
            }
            specs.push(spec);
        }
        let whole = || {
            let each = specs.iter().cloned();
            each.map(|spec| Spec { shape: Shape::Single, replicas: Replicas::Fixed(providers), ..spec })
                .collect()
        };
        let alone: Option<Vec<Spec>> = division.is_some_and(Division::is_by_default).then(whole);
        if let (true, Some(alone)) = (is_whole, &alone) {
            // A machine that is a rank of one model's group holds no other model alone.
            return Ok(Self { specs: alone.clone(), alone: None, providers });
        }
        if let Some(division) = division {
            specs.iter_mut().for_each(|spec| spec.replicas = Replicas::Fixed(providers / division.ranks()));
        }
        Ok(Self { specs, alone, providers })
    }

    /// What the start before this one declared, and remembers what this one does. What it placed ended with it; what is not
    /// wanted any more is deleted. What operators declared stays as it is: where one has the name of a model, its deployment
    /// gets another.
    pub(super) async fn replace_last(
        &mut self,
        folder: &Path,
        store: &dyn store::Store,
    ) -> anyhow::Result<()> {
        let path = folder.join(FILE);
        let last =
            std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Vec<String>>(&bytes).ok());
        let last = last.unwrap_or_default();
        let wanted = |name: &str| self.specs.iter().any(|spec| spec.name == name);
        let others = coordinator::forget_placements(store, &last, wanted).await;
        self.avoid(&others.context("forgetting what the last start placed")?);
        let names: Vec<&str> = self.specs.iter().map(|spec| spec.name.as_str()).collect();
        write_private(&path, &serde_json::to_vec(&names)?)
    }

    /// Gives every deployment a name that is none of `others`.
    fn avoid(&mut self, others: &[String]) {
        for all in [Some(&mut self.specs), self.alone.as_mut()].into_iter().flatten() {
            for at in 0..all.len() {
                let taken = |name: &str| {
                    others.iter().any(|of| of == name)
                        || all.iter().enumerate().any(|(n, of)| n != at && of.name == name)
                };
                all[at].name = free_name(all[at].name.clone(), taken);
            }
        }
    }

    /// Declares everything, and waits until it takes requests, until `deadline` at most.
    pub(super) async fn carry_out(
        mut self,
        client: &Client,
        deadline: Instant,
    ) -> anyhow::Result<FleetStatus> {
        loop {
            let mut generations = Vec::new();
            for spec in &self.specs {
                let accepted: Accepted = client.post("/api/deployments", spec).await?;
                generations.push(accepted.generation);
            }
            let (spec, why) = match self.await_ready(client, &generations, deadline).await? {
                Ok(status) => return Ok(status),
                Err(failed) => failed,
            };
            let (model, ranks) = (&spec.model, spec.shape.ranks().unwrap_or(1));
            match self.alone.take() {
                Some(alone) => {
                    eprintln!("{model} is not divided over {ranks} providers ({why}): each serves it alone");
                    self.specs = alone;
                }
                None if ranks > 1 => bail!("{model} cannot be divided over {ranks} ranks: {why}"),
                None => bail!("{model} cannot be served: {why}"),
            }
        }
    }

    /// How the fleet is once all serve; or what will not, and why.
    async fn await_ready(
        &self,
        client: &Client,
        generations: &[u64],
        deadline: Instant,
    ) -> anyhow::Result<Result<FleetStatus, (Spec, String)>> {
        let mut pace = tokio::time::interval(LOOK_EVERY);
        let mut complete = None;
        loop {
            pace.tick().await;
            let list: DeploymentList = client.get("/api/deployments").await?;
            let of = |spec: &Spec| list.deployments.iter().find(|of| of.name == spec.name);
            let is_ready = |(spec, generation): (&Spec, &u64)| {
                of(spec).is_some_and(|of| of.generation == *generation && is_ready(of, spec))
            };
            let ready = self.specs.iter().zip(generations).all(is_ready);
            let status: FleetStatus = client.get("/api/status").await?;
            let offered = |spec: &Spec| {
                let pool = status.models.iter().find(|pool| pool.model.as_str() == spec.model);
                pool.is_some_and(|pool| pool.eligible.0 >= spec.replicas.floor())
            };
            if ready && self.specs.iter().all(offered) {
                return Ok(Ok(status));
            }
            if status.machines.len() >= self.providers as usize {
                complete.get_or_insert_with(Instant::now);
            }
            let late = complete.is_some_and(|since| since.elapsed() > PLACE_MAX);
            let failed = self.specs.iter().find_map(|spec| Some((spec, why_never(of(spec)?, late)?)));
            if let Some((spec, why)) = failed {
                return Ok(Err((spec.clone(), why)));
            }
            if Instant::now() > deadline {
                let lines = list.deployments.iter().flat_map(|of| &of.conditions);
                let why =
                    lines.map(|condition| condition.message.as_str()).find(|message| !message.is_empty());
                bail!("not everything serves in time: {}", why.unwrap_or("no provider joined"));
            }
        }
    }
}

fn is_ready(of: &DeploymentStatus, spec: &Spec) -> bool {
    let said = of.condition("Ready");
    said.is_some_and(|ready| ready.status == "True" && ready.observed_generation == of.generation)
        && of.instances.iter().filter(|instance| instance.serves).count() >= spec.replicas.floor() as usize
}

/// Why it will not come to be, where it has no place any more: after its failures, or `late`.
fn why_never(of: &DeploymentStatus, late: bool) -> Option<String> {
    let placed = of.condition("Placed").filter(|placed| placed.observed_generation == of.generation)?;
    match of.errors.last() {
        _ if placed.status != "False" => None,
        Some(error) => Some(error.clone()),
        None => late.then(|| placed.message.clone()),
    }
}

/// Tokens of a context, and requests together, each with room for a whole context: what was asked for; else the model's
/// context, and as many as the cache that [`EngineConfig`] describes has room for.
fn sizes(engine: &EngineOptions, model: &LoadedModel) -> anyhow::Result<(u32, u32)> {
    let own = u32::try_from(model.spec().context).unwrap_or(u32::MAX).clamp(1, CONTEXT_MAX);
    let per_token = model.kv_bytes_per_token(engine.kv.unwrap_or_default());
    let free = engine::machine::memory().map(|memory| memory.available);
    sized(engine, own, per_token, free)
}

fn sized(
    engine: &EngineOptions,
    own: u32,
    per_token: Bytes,
    free: Option<Bytes>,
) -> anyhow::Result<(u32, u32)> {
    let most = engine.batch_max.unwrap_or(EngineConfig::default().batch_max).max(1);
    if let Some(asked) = engine.context.filter(|asked| *asked > own) {
        bail!("a context of {asked} tokens is asked for; the model has at most {own}");
    }
    if per_token == Bytes::ZERO {
        return Ok((engine.context.unwrap_or(own), most));
    }
    let part = |free: Bytes| (free.0 as f64 * EngineConfig::KV_MEMORY_PART) as u64;
    let cache = engine.kv_memory.map_or_else(|| free.map_or(CACHE_UNKNOWN, part), |cache| cache.0);
    let pages = |tokens: u64| tokens.div_ceil(PAGE_TOKENS) * PAGE_TOKENS;
    let tokens = cache / per_token.0 / PAGE_TOKENS * PAGE_TOKENS;
    let own = u64::from(own);
    let context = engine.context.map_or_else(
        || {
            let fair = tokens / CONTEXTS_MIN.min(u64::from(most)) / PAGE_TOKENS * PAGE_TOKENS;
            own.min(fair.max(tokens.min(CONTEXT_MIN)).max(PAGE_TOKENS))
        },
        u64::from,
    );
    if let Some(cache) = engine.kv_memory.filter(|_| tokens < pages(context)) {
        bail!(
            "--kv-memory {cache} holds {tokens} tokens, and a context has {context}: say more, or --context less"
        );
    }
    let room = (tokens / pages(context)).clamp(1, u64::from(most));
    // Who says how many has them, unless the cache was said, too.
    let batch = match (engine.batch_max, engine.kv_memory) {
        (Some(asked), None) => asked,
        _ => u32::try_from(room).unwrap_or(most),
    };
    Ok((u32::try_from(context).unwrap_or(u32::MAX), batch))
}

/// A model's name as a deployment may be called, other than those before it.
fn name_of(model: &str, before: &[Spec]) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let name: String = model.chars().map(plain).take(NAME_BYTES_MAX - 3).collect();
    free_name(name, |name| before.iter().any(|spec| spec.name == name))
}

/// `name`, or the first number after it that is not taken.
fn free_name(name: String, taken: impl Fn(&str) -> bool) -> String {
    let numbered = (2..).map(|number| format!("{name}-{number}"));
    std::iter::once(name.clone()).chain(numbered).find(|name| !taken(name)).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_and_requests_are_as_many_as_the_cache_has_room_for() {
        let of = |context, batch_max, kv_memory: Option<u64>| {
            let options =
                EngineOptions { context, batch_max, kv_memory: kv_memory.map(Bytes), ..Default::default() };
            sized(&options, 4096, Bytes(1 << 10), Some(Bytes(1 << 30)))
        };
        let refused =
            |options: EngineOptions| sized(&options, 4096, Bytes(1 << 10), None).unwrap_err().to_string();
        let small = Some(Bytes(1 << 20));
        assert!(
            refused(EngineOptions { context: Some(4096), kv_memory: small, ..Default::default() })
                .contains("1024 tokens")
        );
        assert!(
            refused(EngineOptions { context: Some(8192), ..Default::default() }).contains("at most 4096")
        );
        let of = |context, batch_max, kv_memory| of(context, batch_max, kv_memory).unwrap();
        // A quarter of a GiB holds 64 contexts of a small model.
        assert_eq!(of(None, None, None), (4096, 16));
        assert_eq!(of(Some(2048), Some(32), None), (2048, 32));
        // 8 MiB are 8,192 tokens: four contexts of 2,048.
        assert_eq!(of(None, None, Some(8 << 20)), (2048, 4));
        assert_eq!(of(Some(4096), None, Some(8 << 20)), (4096, 2));
        assert_eq!(of(None, Some(1), Some(8 << 20)), (4096, 1));
        let large = EngineOptions::default();
        let (context, batch) = sized(&large, 131_072, Bytes(256 << 10), Some(Bytes(32 << 30))).unwrap();
        assert_eq!((context, batch), (8192, 4));
        assert_eq!(sized(&large, 4096, Bytes::ZERO, None).unwrap(), (4096, 16));
    }

    #[test]
    fn models_names_become_names_of_deployments() {
        assert_eq!(name_of("org/model:7b", &[]), "org-model-7b");
        let before = [Spec::new("a-b", "a/b")];
        assert_eq!(name_of("a:b", &before), "a-b-2");
        let mut declared = Declared { specs: before.to_vec(), alone: Some(before.to_vec()), providers: 1 };
        declared.avoid(&["a-b".to_owned(), "a-b-2".to_owned()]);
        assert_eq!((&*declared.specs[0].name, &*declared.alone.unwrap()[0].name), ("a-b-3", "a-b-3"));
        let long = name_of(&"x".repeat(128), &[]);
        assert!(Spec::new(long, "x").check().is_ok());
    }

    #[test]
    fn models_are_declared_as_what_was_asked_for() {
        let bundled = [ServedModel::bundled()];
        let of = |mode, ranks, providers: u32| {
            let division = Division::of(mode, ranks, providers).unwrap();
            Declared::of(&bundled, division.as_ref(), providers, &EngineOptions::default()).unwrap()
        };
        let pair = of(None, None, 2);
        assert_eq!((pair.specs[0].shape, &pair.specs[0].replicas), (Shape::Tensor(2), &Replicas::Fixed(1)));
        assert_eq!(pair.alone.unwrap()[0].replicas, Replicas::Fixed(2));
        let five = of(Some("pipeline"), Some(2), 5);
        assert_eq!((five.specs[0].shape, &five.specs[0].replicas), (Shape::Pipeline(2), &Replicas::Fixed(2)));
        assert!(five.alone.is_none() && five.specs[0].check().is_ok());
        let single = of(Some("single"), None, 3);
        assert_eq!((single.specs[0].shape, &single.specs[0].replicas), (Shape::Single, &Replicas::Fixed(3)));
        let gone = crate::serving::parse_served_model("gone=/no/such/folder").unwrap();
        let error = Declared::of(&[gone], None, 1, &EngineOptions::default()).err().unwrap();
        assert!(format!("{error:#}").contains("gone cannot be served"), "{error:#}");
        let twice = [ServedModel::bundled(), ServedModel::bundled()];
        assert!(Declared::of(&twice, None, 1, &EngineOptions::default()).is_err());
    }
}
