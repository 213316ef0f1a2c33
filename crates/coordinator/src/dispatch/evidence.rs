//! What a request's receipt will say of the machines that served it, each with its own signature where it gave one.

use base::AttemptId;
use wire::chunk::Finish;
use wire::receipt::{AttemptUsage, Evidence};

use super::Serving;
use crate::metrics::Metrics;
use crate::uplink::session::Session;

/// Attempts of one request that are kept; what no request comes to, since each further one is a machine lost.
const SERVED_MAX: usize = 256;

impl Serving {
    /// An attempt begins on a machine.
    pub(super) fn begin_evidence(&mut self, session: &Session, attempt: AttemptId) {
        self.serving = Some(AttemptUsage {
            attempt,
            machine: session.machine,
            signing_key: session.signing_key.clone(),
            prompt_tokens: self.prompt_tokens(),
            first_index: self.generated(),
            generated_tokens: 0,
            signature: None,
        });
    }

    /// Its machine says that this was all. A signature over another number of tokens than came is none.
    pub(super) fn sign_evidence(&mut self, finish: &Finish) {
        let generated = self.generated();
        let Some(serving) = &mut self.serving else { return };
        if finish.generated_tokens == generated {
            serving.signature.clone_from(&finish.usage_signature);
        } else {
            Metrics::count(&self.core.metrics.chunk_violations, "usage_differs");
        }
    }

    /// The attempt is over: what it gave is kept, if it gave anything.
    pub(super) fn keep_evidence(&mut self) {
        let generated = self.generated();
        if let Some(mut served) = self.serving.take() {
            served.generated_tokens = generated.saturating_sub(served.first_index);
            let gave = served.generated_tokens > 0 || served.signature.is_some();
            if gave && self.served.len() < SERVED_MAX {
                self.served.push(served);
            }
        }
    }

    /// As the ledger keeps it.
    pub(super) fn evidence(&mut self) -> String {
        let mut served = std::mem::take(&mut self.served);
        if self.work.paid {
            // The receipt of the first one has them; this one says that nothing is owed.
            served.clear();
        }
        let evidence = Evidence { price: self.work.price, served };
        serde_json::to_string(&evidence).expect("numbers and texts only")
    }
}
