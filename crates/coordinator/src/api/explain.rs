//! `GET /api/explain/{request}` and `GET /api/why/{machine}`: why there, why then, why refused, why no work.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Uri};
use base::{MachineId, Micros, RequestId};
use fleet::{Ask, Happening, Outcome, Verdict, eligible};
use wire::admin::MachineStatus;
use wire::admin::explain::{Candidate, ExplainedEvent, Explanation, InstanceReasons, MachineReasons};

use crate::core::Core;
use crate::problem::Problem;
use crate::turned_away::TurnedAway;

type Part = Result<Path<String>, PathRejection>;

/// One of the last requests.
pub(super) async fn request(
    State(core): State<Arc<Core>>,
    headers: HeaderMap,
    uri: Uri,
    path: Part,
) -> Result<Json<Explanation>, Problem> {
    super::auth::operator(&core, &headers).await?;
    let part = super::part(path, &uri)?;
    let missing =
        || Problem::Missing { what: "request among the last", id: part.chars().take(100).collect() };
    let request: RequestId = part.parse().map_err(|_| missing())?;
    let found = core.pools.all().into_iter().find_map(|served| {
        let story = served.look(|pool, _| pool.story(request).cloned())?;
        Some((served.name.clone(), story))
    });
    let turned_away = core.turned_away.of(request);
    if found.is_none() && turned_away.is_none() {
        return Err(missing());
    }
    let mut explanation = Explanation {
        request,
        model: None,
        account: None,
        prompt_tokens: None,
        max_tokens: None,
        events: Vec::new(),
    };
    if let Some((model, story)) = found {
        explanation.model = Some(model);
        explanation.account = Some(story.account);
        explanation.prompt_tokens = Some(story.prompt_tokens);
        explanation.max_tokens = Some(story.max_tokens);
        let events = story.events.into_iter().map(|(at, happening)| event(&core, at, happening));
        explanation.events = events.collect();
    }
    if let Some(TurnedAway { at, status, code, text, .. }) = turned_away {
        explanation.events.push(ExplainedEvent {
            at_us: at.0,
            what: "turned_away".to_owned(),
            text: format!("refused with {status} ({code}): {text}"),
            machine: None,
            candidates: Vec::new(),
            instances: BTreeMap::new(),
        });
    }
    Ok(Json(explanation))
}

fn event(core: &Core, at: Micros, happening: Happening) -> ExplainedEvent {
    let mut out = ExplainedEvent {
        at_us: at.0,
        what: String::new(),
        text: String::new(),
        machine: None,
        candidates: Vec::new(),
        instances: BTreeMap::new(),
    };
    let counts = |reasons: Vec<(&'static str, u32)>| {
        reasons.into_iter().map(|(reason, count)| (reason.to_owned(), count)).collect()
    };
    let (what, text) = match happening {
        Happening::Waits { ahead, predicted, reasons } => {
            out.instances = counts(reasons);
            let when = predicted.map_or("nobody could say when".to_owned(), |p| {
                format!("predicted to start in {:.1} s", p.as_secs_f64())
            });
            ("waits", format!("no instance had room; {ahead} stood before it; {when}"))
        }
        Happening::Dispatched { machine, waited, predicted, cached, candidates, reasons, .. } => {
            out.machine = Some(machine);
            out.candidates = candidates.into_iter().map(|verdict| candidate(core, verdict)).collect();
            out.instances = counts(reasons);
            let held = match cached.0 {
                0 => String::new(),
                tokens => format!(", {tokens} tokens of its prompt thought to be in cache there"),
            };
            let name = core.machines.name(machine).unwrap_or_else(|| machine.to_string());
            let (first, cost) = (predicted.first_token_s, predicted.cost_s);
            let waited = waited.as_secs_f64();
            (
                "dispatched",
                format!(
                    "sent to {name} after {waited:.3} s: least cost, {cost:.3} s (first token in {first:.3} s{held})"
                ),
            )
        }
        Happening::FirstToken { after } => {
            ("first_token", format!("first token {:.3} s after it was sent", after.as_secs_f64()))
        }
        Happening::Ended { outcome, generated, .. } => {
            let how = match outcome {
                Outcome::Completed => "completed".to_owned(),
                Outcome::Cancelled => "cancelled: nobody wanted it any more".to_owned(),
                Outcome::Refused(reason) => format!("its machine did not take it ({reason:?})"),
                Outcome::Faulted => "its machine failed it".to_owned(),
                Outcome::Lost => "its machine's connection ended".to_owned(),
            };
            ("ended", format!("{how}, after {} tokens", generated.0))
        }
        Happening::Refused { refusal, candidates, reasons } => {
            out.candidates = candidates.into_iter().map(|verdict| candidate(core, verdict)).collect();
            out.instances = counts(reasons);
            ("refused", refusal.to_string())
        }
        Happening::Withdrawn => ("withdrawn", "its caller gave it up while it waited".to_owned()),
    };
    out.what = what.to_owned();
    out.text = text;
    out
}

fn candidate(core: &Core, verdict: Verdict) -> Candidate {
    let Verdict { instance, machine, verdict } = verdict;
    let predicted = verdict.as_ref().ok();
    Candidate {
        instance,
        machine,
        name: core.machines.name(machine).unwrap_or_default(),
        first_token_s: predicted.map(|p| p.first_token_s),
        cost_s: predicted.map(|p| p.cost_s),
        ineligible: verdict.err().map(|reason| reason.to_string()),
    }
}

/// How a machine stands, by its identity or its name.
pub(super) async fn machine(
    State(core): State<Arc<Core>>,
    headers: HeaderMap,
    uri: Uri,
    path: Part,
) -> Result<Json<MachineReasons>, Problem> {
    super::auth::operator(&core, &headers).await?;
    let part = super::part(path, &uri)?;
    let found = core.machines.status().into_iter().find(|machine| {
        machine.name == part || part.parse::<MachineId>().is_ok_and(|id| id == machine.machine)
    });
    let machine =
        found.ok_or_else(|| Problem::Missing { what: "machine", id: part.chars().take(100).collect() })?;
    let mut instances = Vec::new();
    for served in core.pools.all() {
        served.look(|pool, now| {
            for instance in pool.instances().filter(|i| i.machine == machine.machine) {
                let ineligible =
                    eligible(instance, &Ask::least(), now).err().map(|reason| reason.to_string());
                let fared = pool.fared(instance.id);
                let mut reasons = InstanceReasons {
                    instance: instance.id,
                    model: served.name.clone(),
                    ineligible,
                    placed: fared.placed,
                    placed_here: fared.placed_here,
                    outbid: fared.outbid,
                    outbid_by_s: (fared.outbid > 0).then(|| fared.outbid_by_s / f64::from(fared.outbid)),
                    passed_over: fared.passed_over.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
                    text: String::new(),
                };
                reasons.text = sentence(&reasons);
                instances.push(reasons);
            }
        });
    }
    // What no pool has heard of yet has its reason in the machine's own list.
    for held in &machine.instances {
        if !instances.iter().any(|i| i.instance == held.instance) {
            let why = held.ineligible.clone().unwrap_or_default();
            instances.push(InstanceReasons {
                instance: held.instance,
                model: held.model.clone(),
                ineligible: held.ineligible.clone(),
                placed: 0,
                placed_here: 0,
                outbid: 0,
                outbid_by_s: None,
                passed_over: BTreeMap::new(),
                text: format!("gets no requests: {why}"),
            });
        }
    }
    let MachineStatus { machine, connected, left, name, .. } = machine;
    let managed = core.deployments.inbox.is_managed(machine);
    let deployments = if managed {
        let called = name.clone();
        core.deployments.look(move |sight| sight.why(machine, &called)).await?
    } else {
        Vec::new()
    };
    Ok(Json(MachineReasons { machine, name, connected, left, instances, managed, deployments }))
}

fn sentence(of: &InstanceReasons) -> String {
    let mut text = match &of.ineligible {
        Some(reason) => format!("takes nothing now: {reason}"),
        None => "takes requests".to_owned(),
    };
    match of.placed {
        0 => text.push_str("; nobody asked for this model of late"),
        placed => text.push_str(&format!("; {} of the last {placed} requests came here", of.placed_here)),
    }
    if let Some(by) = of.outbid_by_s {
        text.push_str(&format!("; {} went where {by:.3} s less was predicted", of.outbid));
    }
    for (reason, count) in &of.passed_over {
        text.push_str(&format!("; {count} could not come here: {reason}"));
    }
    text
}
