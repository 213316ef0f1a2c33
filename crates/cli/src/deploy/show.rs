//! Deployments for people: tables, and conditions in words.

use base::Bytes;
use wire::admin::deployment::{
    Accepted, DeployedFetch, DeployedInstance, DeploymentHistory, DeploymentList, DeploymentStatus,
};

use crate::terminal::{say, say_table};

/// What a change was answered.
pub(super) fn accepted(accepted: &Accepted) -> anyhow::Result<()> {
    say(format!("{}: {} (generation {})", accepted.name, accepted.outcome, accepted.generation))
}

/// All deployments, one a line.
pub(super) fn all(list: &DeploymentList) -> anyhow::Result<()> {
    if list.mode != "enforce" {
        say(format!("Plans are not followed now (mode {}): `phalanx deploy mode enforce`.", list.mode))?;
    }
    if list.deployments.is_empty() {
        return say("There is no deployment: make one with `phalanx deploy apply -f FILE`.");
    }
    let rows = list.deployments.iter().map(|deployment| {
        let of = |kind: &str| {
            deployment.condition(kind).map_or("Unknown".to_owned(), |condition| {
                let tells = condition.reason != kind && !condition.reason.is_empty();
                if tells {
                    format!("{} ({})", condition.status, condition.reason)
                } else {
                    condition.status.clone()
                }
            })
        };
        let serves = deployment.instances.iter().filter(|instance| instance.serves).count();
        vec![
            deployment.name.clone(),
            deployment.spec["model"].as_str().unwrap_or("?").to_owned(),
            deployment.generation.to_string(),
            format!("{serves} of {}", deployment.instances.len()),
            of("Placed"),
            of("Ready"),
            of("Degraded"),
            why(deployment),
        ]
    });
    say_table(
        &["DEPLOYMENT", "MODEL", "GENERATION", "SERVING", "PLACED", "READY", "DEGRADED", "WHY"],
        rows.collect(),
    )
}

/// The message that tells most.
fn why(deployment: &DeploymentStatus) -> String {
    let of = |kind: &str, status: &str| {
        let condition = deployment.condition(kind)?;
        (condition.status == status && !condition.message.is_empty()).then(|| condition.message.clone())
    };
    of("Placed", "False")
        .or_else(|| of("Degraded", "True"))
        .or_else(|| of("Progressing", "True"))
        .unwrap_or_default()
}

/// One, with everything.
pub(super) fn one(deployment: &DeploymentStatus) -> anyhow::Result<()> {
    say(format!("{} (generation {})", deployment.name, deployment.generation))?;
    say(serde_json::to_string(&deployment.spec)?)?;
    say("")?;
    let rows = deployment.conditions.iter().map(|condition| {
        vec![
            condition.kind.clone(),
            condition.status.clone(),
            condition.reason.clone(),
            ago(condition.last_transition_unix_us),
            condition.message.clone(),
        ]
    });
    say_table(&["CONDITION", "STATUS", "REASON", "SINCE", "MESSAGE"], rows.collect())?;
    if !deployment.instances.is_empty() {
        say("")?;
        let rows = deployment.instances.iter().flat_map(instance);
        say_table(
            &["INSTANCE", "LIFE", "PHASE", "SINCE", "SERVES", "RANK", "MACHINE", "RANK'S PHASE", "LAYERS"],
            rows.collect(),
        )?;
    }
    for error in &deployment.errors {
        say(format!("error: {error}"))?;
    }
    Ok(())
}

/// How far a machine is with taking its model from others.
fn fetching(phase: &str, fetched: &DeployedFetch) -> String {
    let DeployedFetch { done_bytes, bytes, bytes_per_s } = *fetched;
    format!("{phase} {} of {}, {}/s", Bytes(done_bytes), Bytes(bytes), Bytes(bytes_per_s))
}

fn instance(instance: &DeployedInstance) -> Vec<Vec<String>> {
    let rows = instance.ranks.iter().enumerate().map(|(number, rank)| {
        let first = |text: String| if number == 0 { text } else { String::new() };
        let phase = match (rank.connected, rank.phase.as_str(), &rank.fetched) {
            (false, ..) => "not connected".to_owned(),
            (true, phase, Some(fetched)) => fetching(phase, fetched),
            (true, phase @ ("loading" | "draining"), None) => format!("{phase} {} %", rank.percent),
            (true, phase, None) => phase.to_owned(),
        };
        vec![
            first(instance.instance.to_string()),
            first(instance.epoch.0.to_string()),
            first(instance.phase.clone()),
            first(ago(instance.since_unix_us)),
            first(if instance.serves { "yes" } else { "no" }.to_owned()),
            number.to_string(),
            rank.name.clone(),
            phase,
            format!("{}-{}", rank.layers[0], rank.layers[1].saturating_sub(1)),
        ]
    });
    rows.collect()
}

/// What happened.
pub(super) fn history(history: &DeploymentHistory) -> anyhow::Result<()> {
    for event in &history.events {
        say(format!("{} ago (generation {}): {}", ago(event.at_unix_us), event.generation, event.what))?;
    }
    Ok(())
}

fn ago(unix_us: u64) -> String {
    crate::status::span(crate::coordinator::now_us().saturating_sub(unix_us))
}
