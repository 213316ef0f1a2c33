//! Conditions: what is so of a deployment, why, and since when. "Waiting for machine X" is one, not an error.

use base::Micros;
use serde::{Deserialize, Serialize};

/// What a condition is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ConditionType {
    /// Every wanted instance has machines.
    Placed,
    /// Every wanted instance takes requests.
    Ready,
    /// Something that was ready is not, or fewer instances serve than are wanted.
    Degraded,
    /// Something is being done about it.
    Progressing,
}

/// Whether it is so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Verdict {
    /// It is so.
    True,
    /// It is not.
    False,
    /// Nobody knows (yet).
    Unknown,
}

impl From<bool> for Verdict {
    fn from(so: bool) -> Self {
        if so { Self::True } else { Self::False }
    }
}

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// About what.
    #[serde(rename = "type")]
    pub kind: ConditionType,
    /// Whether it is so.
    pub status: Verdict,
    /// Why, in one word for programs.
    pub reason: String,
    /// Why, for people.
    pub message: String,
    /// When `status` last changed.
    pub last_transition: Micros,
    /// Of which generation of the spec this is said.
    pub observed_generation: u64,
}

/// All of a deployment's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Conditions(Vec<Condition>);

impl Conditions {
    /// Says how it is; the time of transition moves only where the status changes. Whether anything changed.
    pub fn set(
        &mut self,
        now: Micros,
        generation: u64,
        kind: ConditionType,
        (status, reason, message): (Verdict, &str, String),
    ) -> bool {
        let new = Condition {
            kind,
            status,
            reason: reason.to_owned(),
            message,
            last_transition: now,
            observed_generation: generation,
        };
        match self.0.iter_mut().find(|condition| condition.kind == kind) {
            None => {
                self.0.push(new);
                self.0.sort_by_key(|condition| condition.kind);
                true
            }
            Some(old) => {
                let last_transition = if old.status == status { old.last_transition } else { now };
                let new = Condition { last_transition, ..new };
                let changed = *old != new;
                *old = new;
                changed
            }
        }
    }

    /// One of them.
    pub fn get(&self, kind: ConditionType) -> Option<&Condition> {
        self.0.iter().find(|condition| condition.kind == kind)
    }

    /// Whether it is so.
    pub fn is(&self, kind: ConditionType) -> bool {
        self.get(kind).is_some_and(|condition| condition.status == Verdict::True)
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Condition> {
        self.0.iter()
    }
}
