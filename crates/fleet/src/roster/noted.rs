//! What the indexes hold of one instance, so that it can be taken out again.

use base::{Micros, Tokens};

use super::shelves::Place;
use crate::cost;
use crate::eligibility::{Ask, Ineligible};
use crate::instance::{Contents, Instance};

/// What the indexes are made with.
#[derive(Debug, Clone)]
pub(crate) struct Like {
    pub(crate) now: Micros,
    pub(crate) grace: Micros,
    /// A request of mean size: the pace of the queue is told in these.
    pub(crate) mean: Ask,
}

/// What is noted of one instance in the indexes, so that it can be taken out again.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Noted {
    pub(super) path: Option<Tokens>,
    pub(super) serving: Option<Tokens>,
    pub(super) open: Option<Place>,
    pub(super) own_open: Option<Place>,
    pub(super) barred_until: Option<Micros>,
    pub(super) wakes: Option<Micros>,
    pub(super) same: bool,
    pub(super) code: Option<usize>,
    pub(super) per_s: f64,
}

impl Noted {
    /// Of `instance` now, but for its places on shelves; `reason` says why it takes nothing.
    pub(super) fn of(instance: &Instance, reason: Option<Ineligible>, like: &Like) -> Self {
        // One too short even for the least of requests is still an answer to "how long may it be?".
        let on_path = reason.is_none_or(|r| r.time_cures() || matches!(r, Ineligible::TooLong { .. }));
        let serving = reason.is_none_or(|r| r.is_load());
        let barred = matches!(reason, Some(Ineligible::BreakerOpen { .. }));
        let lost = instance.lost_at.map(|at| at.saturating_add(like.grace));
        let pauses = [instance.full_until, instance.barred_until, lost];
        Self {
            path: on_path.then(|| instance.limit()),
            serving: serving.then(|| instance.limit()),
            open: None,
            own_open: None,
            barred_until: instance.barred_until.filter(|_| barred),
            wakes: pauses.into_iter().flatten().filter(|at| *at > like.now || lost == Some(*at)).min(),
            same: instance.contents == Contents::Same && instance.lost_at.is_none(),
            code: Some(reason.map_or(Ineligible::CODES.len(), |r| r.number())),
            per_s: if serving { cost::drain_per_s(instance, &like.mean) } else { 0.0 },
        }
    }
}
