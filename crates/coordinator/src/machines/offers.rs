//! What a machine's offer is, before and beside its pool.

use base::AccountId;
use wire::admin::InstanceStatus;
use wire::control::{InstanceOffer, InstancePhase};

/// Whose an offer of a machine is. What several machines compute together is nobody's own: its other ranks may be anybody's.
pub(super) fn owner_of(lent_by: Option<AccountId>, offer: &InstanceOffer) -> Option<AccountId> {
    lent_by.filter(|_| offer.ranks == 1)
}

/// Whether an instance failed before its model could be read: it is shown to operators, and no pool hears of it.
pub(super) fn nothing_known(offer: &InstanceOffer) -> bool {
    offer.report.phase == InstancePhase::Failed && offer.model.kit_sha256.is_empty()
}

/// An instance that no pool knows, as operators see it.
pub(super) fn waiting_status(offer: &InstanceOffer) -> InstanceStatus {
    let why = match offer.report.phase {
        InstancePhase::Failed => {
            let detail = offer.report.detail.chars().filter(|c| !c.is_control()).take(300);
            format!("it failed: {}", detail.collect::<String>())
        }
        _ => "its tokenizer and template are not here yet, or could not be read".to_owned(),
    };
    InstanceStatus {
        instance: offer.instance,
        model: offer.model.name.clone(),
        rank: offer.rank,
        phase: offer.report.phase,
        ineligible: Some(why),
        running: offer.report.running,
        slots: offer.report.slots,
        kv_tokens: (offer.report.kv_tokens, offer.report.kv_tokens_free),
        decode_tokens_per_s: offer.report.decode_tokens_per_s,
    }
}
