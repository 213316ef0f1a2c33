//! The one predicate: can this instance take this request now, and if not, why not.

use std::fmt;

use base::{MachineId, Micros, RequestId, Tokens};
use smallvec::SmallVec;
use wire::control::InstancePhase;

use crate::instance::{Contents, Instance};
use crate::owner::Owners;

/// What of a request matters for where it can go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Which request.
    pub request: RequestId,
    /// Tokens of the prompt, and of the answer so far where it goes on.
    pub prompt_tokens: Tokens,
    /// Tokens of the answer at most.
    pub max_tokens: Tokens,
    /// Tokens that the answer is taken to have, for KV room; the pool sets it.
    pub answer_tokens: Tokens,
    /// Machines that failed it.
    pub excluded: SmallVec<[MachineId; 2]>,
    /// Whose machines it may go to.
    pub owners: Owners,
}

impl Ask {
    /// An ask for `request` that failed nowhere yet.
    pub fn new(request: RequestId, prompt_tokens: Tokens, max_tokens: Tokens) -> Self {
        let (answer_tokens, excluded, owners) = (max_tokens, SmallVec::new(), Owners::Any);
        Self { request, prompt_tokens, max_tokens, answer_tokens, excluded, owners }
    }

    /// The smallest request there is: what can take nothing of this takes nothing.
    pub fn least() -> Self {
        Self::new(RequestId(0), Tokens(1), Tokens(1))
    }

    /// Prompt and answer at its longest.
    pub fn length_max(&self) -> Tokens {
        self.prompt_tokens.saturating_add(self.max_tokens)
    }

    /// KV tokens that it is taken to need. The answer at its expected length, not at its longest: engines preempt
    /// and recompute where answers grow beyond it, and most never do.
    pub fn kv_need(&self) -> u64 {
        u64::from(self.prompt_tokens.0) + u64::from(self.answer_tokens.0.min(self.max_tokens.0))
    }
}

/// Why an instance does not take a request. Permanent reasons come first in the list and in the predicate: what time
/// does not cure is not worth waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ineligible {
    /// Only rank 0 is routed to.
    RankAboveZero {
        /// Its rank.
        rank: u32,
    },
    /// Its weights are not those that the pool serves under this name.
    OtherWeights,
    /// Its tokenizer, template or configuration are not those that the pool serves under this name.
    OtherKit,
    /// The request goes to its account's own machines alone, and this is none of them.
    OwnerOnly,
    /// Its machine takes nothing new.
    Draining,
    /// It said that it cannot serve.
    Failed,
    /// Its machine holds this model as a rank of groups only.
    OnlyInGroups,
    /// It is in a phase that this build does not know.
    UnknownPhase,
    /// This request failed on its machine.
    Excluded,
    /// Prompt and answer do not fit, ever.
    TooLong {
        /// Prompt and answer.
        tokens: Tokens,
        /// What fits.
        limit: Tokens,
    },
    /// Its machine is not connected.
    Offline,
    /// Its weights are being read.
    Loading,
    /// Its machine failed too often of late.
    BreakerOpen {
        /// For how long still.
        left: Micros,
    },
    /// It is kept free for a request that has waited long for its KV room.
    Held,
    /// It computes as many requests as it can.
    NoSlot {
        /// How many it computes.
        taken: u32,
        /// How many it can.
        slots: u32,
    },
    /// It refused a request for lack of room a moment ago.
    Full,
    /// Its KV cache has no room for this request now.
    NoKvRoom {
        /// Tokens needed.
        needed: u64,
        /// Tokens free.
        free: u64,
    },
}

impl Ineligible {
    /// Whether waiting may cure it.
    pub fn time_cures(&self) -> bool {
        match self {
            Self::RankAboveZero { .. }
            | Self::OtherWeights
            | Self::OtherKit
            | Self::OwnerOnly
            | Self::Draining
            | Self::Failed
            | Self::OnlyInGroups
            | Self::UnknownPhase
            | Self::Excluded
            | Self::TooLong { .. } => false,
            Self::Offline
            | Self::Loading
            | Self::BreakerOpen { .. }
            | Self::Held
            | Self::NoSlot { .. }
            | Self::Full
            | Self::NoKvRoom { .. } => true,
        }
    }

    /// Whether it is only that the instance has enough to do.
    pub fn is_load(&self) -> bool {
        matches!(self, Self::Held | Self::NoSlot { .. } | Self::Full | Self::NoKvRoom { .. })
    }

    /// Every word that [`Ineligible::code`] gives, in the list's order.
    pub const CODES: [&'static str; 17] = [
        "rank_above_zero",
        "other_weights",
        "other_kit",
        "draining",
        "failed",
        "unknown_phase",
        "excluded",
        "too_long",
        "offline",
        "loading",
        "breaker_open",
        "held",
        "no_slot",
        "full",
        "no_kv_room",
        "only_in_groups",
        "owner_only",
    ];

    /// A word for metrics and programs.
    pub fn code(&self) -> &'static str {
        Self::CODES[self.number()]
    }

    /// Its place in [`Ineligible::CODES`].
    pub(crate) fn number(&self) -> usize {
        match self {
            Self::RankAboveZero { .. } => 0,
            Self::OtherWeights => 1,
            Self::OtherKit => 2,
            Self::Draining => 3,
            Self::Failed => 4,
            Self::UnknownPhase => 5,
            Self::Excluded => 6,
            Self::TooLong { .. } => 7,
            Self::Offline => 8,
            Self::Loading => 9,
            Self::BreakerOpen { .. } => 10,
            Self::Held => 11,
            Self::NoSlot { .. } => 12,
            Self::Full => 13,
            Self::NoKvRoom { .. } => 14,
            Self::OnlyInGroups => 15,
            Self::OwnerOnly => 16,
        }
    }
}

impl fmt::Display for Ineligible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RankAboveZero { rank } => write!(f, "rank {rank} of its instance; requests go to rank 0"),
            Self::OtherWeights => f.write_str(
                "its weights differ from those already served under this name; give it another name",
            ),
            Self::OtherKit => f.write_str(
                "its tokenizer, template or configuration differ from those already served under this name; \
                 give it another name",
            ),
            Self::OwnerOnly => f.write_str("not of the account that asks for its own machines alone"),
            Self::Draining => f.write_str("draining: it finishes what it has"),
            Self::Failed => f.write_str("failed"),
            Self::OnlyInGroups => f.write_str("its machine computes this model only together with others"),
            Self::UnknownPhase => f.write_str("in a phase that this coordinator does not know; update it"),
            Self::Excluded => f.write_str("this request failed on its machine"),
            Self::TooLong { tokens, limit } => write!(f, "{tokens} tokens do not fit in {limit}"),
            Self::Offline => f.write_str("offline"),
            Self::Loading => f.write_str("loading"),
            Self::BreakerOpen { left } => {
                write!(f, "failed too often of late; tried again in {:.0} s", left.as_secs_f64().ceil())
            }
            Self::Held => f.write_str("kept free for a long request that waits"),
            Self::NoSlot { taken, slots } => write!(f, "no slot free ({taken} of {slots} taken)"),
            Self::Full => f.write_str("said a moment ago that it is full"),
            Self::NoKvRoom { needed, free } => write!(f, "{needed} KV tokens needed, {free} free"),
        }
    }
}

/// Whether `instance` can take `ask` at `now`.
///
/// # Errors
/// The first reason why not, in [`Ineligible`]'s order.
pub fn eligible(instance: &Instance, ask: &Ask, now: Micros) -> Result<(), Ineligible> {
    if instance.rank != 0 {
        return Err(Ineligible::RankAboveZero { rank: instance.rank });
    }
    match instance.contents {
        Contents::Same => {}
        Contents::OtherWeights => return Err(Ineligible::OtherWeights),
        Contents::OtherKit => return Err(Ineligible::OtherKit),
    }
    if ask.owners.leaves_out(instance.owner) {
        return Err(Ineligible::OwnerOnly);
    }
    if instance.draining {
        return Err(Ineligible::Draining);
    }
    match instance.reported.phase {
        InstancePhase::Ready | InstancePhase::Loading => {}
        InstancePhase::Draining => return Err(Ineligible::Draining),
        InstancePhase::Failed => return Err(Ineligible::Failed),
        InstancePhase::InGroups => return Err(Ineligible::OnlyInGroups),
        InstancePhase::Unknown => return Err(Ineligible::UnknownPhase),
    }
    if ask.excluded.contains(&instance.machine) {
        return Err(Ineligible::Excluded);
    }
    if ask.length_max() > instance.limit() {
        return Err(Ineligible::TooLong { tokens: ask.length_max(), limit: instance.limit() });
    }
    if instance.lost_at.is_some() {
        return Err(Ineligible::Offline);
    }
    if instance.reported.phase == InstancePhase::Loading {
        return Err(Ineligible::Loading);
    }
    room(instance, ask, now)
}

/// The reasons that pass as work ends.
fn room(instance: &Instance, ask: &Ask, now: Micros) -> Result<(), Ineligible> {
    if let Some(until) = instance.barred_until.filter(|until| *until > now) {
        return Err(Ineligible::BreakerOpen { left: until - now });
    }
    if instance.held_for.is_some_and(|held| held != ask.request) {
        return Err(Ineligible::Held);
    }
    let taken = instance.taken();
    if taken >= instance.reported.slots {
        return Err(Ineligible::NoSlot { taken, slots: instance.reported.slots });
    }
    if instance.full_until.is_some_and(|until| until > now) {
        return Err(Ineligible::Full);
    }
    let (needed, free) = (ask.kv_need(), instance.kv_free());
    if needed > free {
        return Err(Ineligible::NoKvRoom { needed, free });
    }
    Ok(())
}
