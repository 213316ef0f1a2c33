//! What is said of deployments: conditions that are so, each with its reason.

use super::instance::{Instance, Phase, RankState};
use super::{Controller, Effect, HEALTHY};
use crate::deployment::{ConditionType, Verdict};
use crate::plan::{Plan, Snapshot};

/// Instances that a message names; it counts the others.
const NAMED_MAX: usize = 4;

/// How the instances of one deployment are.
#[derive(Default)]
struct Counts {
    have: usize,
    /// Take requests.
    serve: usize,
    /// Of these, as the spec says now.
    current: usize,
    away: usize,
    outdated: usize,
    /// Failed since they were healthy.
    failing: bool,
    /// Some wait for a model's files.
    fetching: bool,
    /// What those that do not serve are doing.
    pending: Vec<String>,
}

impl Controller {
    fn counts(&self, name: &str) -> Counts {
        let mut counts = Counts::default();
        let spec = self.deployments.get(name).map(|deployment| &deployment.spec);
        for instance in self.instances.values().filter(|i| i.deployment == name) {
            let outdated = spec.is_some_and(|spec| instance.terms.differ(spec));
            counts.have += 1;
            counts.outdated += usize::from(outdated);
            counts.failing |= instance.failures + instance.losses > 0;
            counts.away += usize::from(instance.away_since.is_some());
            counts.serve += usize::from(instance.serves());
            counts.current += usize::from(instance.serves() && !outdated);
            counts.fetching |= instance.ranks.iter().any(|rank| matches!(rank, RankState::Fetching(_)));
            if !instance.serves() && counts.pending.len() < NAMED_MAX {
                counts.pending.push(self.doing(instance));
            }
        }
        counts
    }

    /// What an instance that takes no requests is doing, and where.
    fn doing(&self, instance: &Instance) -> String {
        let name = |rank: usize| {
            let known = instance.places.get(rank).and_then(|(machine, _)| self.machines.get(machine));
            known.map_or("a machine", |known| known.name.as_str())
        };
        let away = |rank: &usize| {
            let known = instance.places.get(*rank).and_then(|(machine, _)| self.machines.get(machine));
            known.is_none_or(|known| known.incarnation.is_none())
        };
        if let Some(rank) = (0..instance.places.len()).find(away) {
            return format!("{} is not connected", name(rank));
        }
        if let Phase::Retrying(at) = instance.phase {
            let wait = at.saturating_sub(self.now).as_secs_f64();
            return format!("{} is tried again in {wait:.1} s", name(0));
        }
        let is_fetching = |state: &RankState| matches!(state, RankState::Fetching(_));
        let fetching = instance.ranks.iter().position(is_fetching);
        let behind = instance.ranks.iter().position(|state| *state != RankState::Ready);
        let behind = fetching.or(behind).unwrap_or(0);
        match instance.ranks.get(behind) {
            Some(RankState::Draining(done)) => format!("{} makes room ({done} %)", name(behind)),
            Some(RankState::Fetching(fetched)) => {
                format!("{} takes the model from other machines ({fetched})", name(behind))
            }
            Some(RankState::Loading(done)) => format!("{} loads ({done} %)", name(behind)),
            _ => format!("{} was told", name(behind)),
        }
    }

    /// Says how every deployment is.
    pub(super) fn say_conditions(&mut self, effects: &mut Vec<Effect>) {
        let names: Vec<String> = self.deployments.keys().cloned().collect();
        for name in names {
            let counts = self.counts(&name);
            if self.say_of(&name, &counts) {
                effects.push(Effect::Store(name));
            }
        }
        // A healthy instance's past is forgotten.
        let now = self.now;
        for instance in self.instances.values_mut() {
            if instance.phase == Phase::Ready && now.saturating_sub(instance.since) >= HEALTHY {
                (instance.failures, instance.losses) = (0, 0);
                if let Some(deployment) = self.deployments.get_mut(&instance.deployment) {
                    deployment.crashes = 0;
                }
            }
        }
    }

    /// Says how one is; whether it became ready, or ceased to be.
    fn say_of(&mut self, name: &str, counts: &Counts) -> bool {
        let now = self.now;
        let Some(deployment) = self.deployments.get_mut(name) else { return false };
        let generation = deployment.generation;
        let floor = deployment.spec.replicas.floor() as usize;
        let want = counts.have.max(floor);
        let placed = deployment.conditions.is(ConditionType::Placed);
        let before = deployment.conditions.is(ConditionType::Ready);
        let is_ready =
            counts.current >= floor.max(usize::from(counts.have > 0)) && (placed || counts.current >= floor);
        let takes = if counts.serve == 1 { "takes" } else { "take" };
        let mut message = format!("{} of {want} instances {takes} requests", counts.serve);
        if counts.outdated > 0 {
            message.push_str(&format!("; {} still on the terms of an earlier generation", counts.outdated));
        }
        let reason = match (is_ready, want, counts.outdated > 0) {
            (true, 0, _) => "Idle",
            (true, ..) => "Ready",
            (false, _, true) => "Updating",
            (false, ..) => "NotReady",
        };
        deployment.was_ready |= is_ready;
        let failing = counts.failing || deployment.crashes > 0;
        let error =
            deployment.errors.last().filter(|_| failing).map(|error| format!("; the last error: {error}"));
        let error = error.unwrap_or_default();
        let degraded = match counts {
            _ if is_ready && counts.away == 0 && counts.serve >= want => None,
            _ if counts.away > 0 => Some("MachineAway"),
            _ if failing => Some("Failing"),
            _ if deployment.was_ready => Some("FewerThanWanted"),
            _ => None,
        };
        let pending = counts.pending.join(", ");
        let progressing = counts.have > counts.serve || counts.outdated > 0;
        let mut say = |kind, status: bool, reason: &str, message: String| {
            deployment.conditions.set(now, generation, kind, (Verdict::from(status), reason, message))
        };
        say(ConditionType::Ready, is_ready, reason, message.clone());
        let detail = if degraded.is_some() { format!("{message}{error}") } else { String::new() };
        say(ConditionType::Degraded, degraded.is_some(), degraded.unwrap_or("AsWanted"), detail);
        let doing = match counts {
            _ if counts.outdated > 0 => "Updating",
            _ if counts.fetching => "Fetching",
            _ => "Loading",
        };
        let detail = if progressing { format!("{pending}{error}") } else { String::new() };
        say(ConditionType::Progressing, progressing, if progressing { doing } else { "Settled" }, detail);
        before != is_ready
    }

    /// Says of every deployment whether it has its places.
    pub(super) fn say_placed(&mut self, snapshot: &Snapshot, decided: &Plan) {
        let now = self.now;
        for (number, wanted) in snapshot.wanted.iter().enumerate() {
            let name = &wanted.spec.name;
            let Some(deployment) = self.deployments.get_mut(name) else { continue };
            let short = decided.short.iter().find(|short| short.deployment == number && short.missing > 0);
            let paused = now < deployment.paused_until;
            let again = || {
                let wait = deployment.paused_until.saturating_sub(now).as_secs_f64();
                let error = deployment.errors.last().map_or("", String::as_str);
                format!("it failed everywhere, and is tried again in {wait:.0} s; the last error: {error}")
            };
            let (status, reason, message) = match short {
                _ if paused => (Verdict::False, "CrashLoop", again()),
                Some(short) if !short.waiting.is_empty() => (Verdict::False, "Waiting", short.reason.clone()),
                Some(short) => (Verdict::False, "NoPlace", short.reason.clone()),
                None => (Verdict::True, "Placed", String::new()),
            };
            let generation = deployment.generation;
            deployment.conditions.set(now, generation, ConditionType::Placed, (status, reason, message));
        }
    }
}
