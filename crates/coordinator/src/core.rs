//! What every part of a running coordinator shares.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use base::{AttemptId, InstanceId, Micros, RequestId, Rng};
use parking_lot::Mutex;
use store::{Store, StoreError};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wire::control::FromCoordinator;

use crate::api::Responses;
use crate::clock::Clock;
use crate::config::Config;
use crate::deployments::Deployments;
use crate::groups::Groups;
use crate::limits::Limits;
use crate::machines::{After, Machines, line};
use crate::metrics::Metrics;
use crate::pools::{About, Notice, Pools};
use crate::prices::Prices;
use crate::segments::Segments;
use crate::streams::Streams;
use crate::turned_away::LastTurnedAway;
use crate::uplink::keymaker::KeyMaker;
use crate::uplink::kit::Kits;
use crate::uplink::returns::Returns;
use crate::uplink::session::Session;

/// The setting that holds the models that are served, one a line.
const MODELS_SERVED: &str = "models_served";

/// How long after a start machines may yet come back: providers dial again every 15 s at the latest.
const BACK_WITHIN: Micros = Micros::from_secs(120);

/// How long sums wait for settlements under way. Under load there are always some; a disk's flush takes milliseconds.
const SETTLED_WITHIN: Duration = Duration::from_millis(50);

/// Where spans go: bounded, and never waited for.
pub(crate) type Spans = tokio::sync::mpsc::Sender<wire::trace::Span>;

/// An answer that is through and not settled yet.
pub(crate) struct Settling(Arc<watch::Sender<usize>>);

impl Settling {
    pub(crate) fn begin(core: &Core) -> Self {
        core.settling.send_modify(|count| *count += 1);
        Self(Arc::clone(&core.settling))
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// A running coordinator.
pub(crate) struct Core {
    pub(crate) config: Config,
    pub(crate) clock: Clock,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) pools: Arc<Pools>,
    pub(crate) kits: Arc<Kits>,
    pub(crate) machines: Machines,
    pub(crate) groups: Groups,
    pub(crate) deployments: Deployments,
    pub(crate) metrics: Metrics,
    pub(crate) segments: Segments,
    pub(crate) streams: Streams,
    pub(crate) prices: Prices,
    /// Where spans of requests go, where anybody collects them.
    pub(crate) spans: Option<Spans>,
    limits: OnceLock<Arc<Limits>>,
    /// What receipts are signed with.
    receipt_keys: OnceLock<trust::MachineKeys>,
    pub(crate) returns: Returns,
    /// Makes attempts' keys ahead.
    pub(crate) keys: KeyMaker,
    /// Answers that are through and not settled yet.
    pub(crate) settling: Arc<watch::Sender<usize>>,
    /// Hash of the token with which machines join.
    pub(crate) join_hash: [u8; 32],
    /// Places for requests.
    pub(crate) places: Arc<Semaphore>,
    /// Places for connections that have not proved themselves.
    pub(crate) handshakes: Semaphore,
    /// Places for rendering and tokenizing away from the async threads.
    pub(crate) tokenizers: Semaphore,
    /// Nothing new is taken.
    pub(crate) draining: CancellationToken,
    /// Everything ends.
    pub(crate) end: CancellationToken,
    /// Every task that must end before the coordinator does.
    pub(crate) tasks: TaskTracker,
    /// What prompts' beginnings are hashed with.
    pub(crate) affinity_seed: u64,
    /// Responses that can be looked at later.
    pub(crate) responses: Responses,
    /// Held while the key of callers without one is looked for, or made.
    pub(crate) keyless: tokio::sync::Mutex<()>,
    pub(crate) turned_away: LastTurnedAway,
    /// Models that were served before this start.
    served_before: OnceLock<HashSet<String>>,
    rng: Mutex<Rng>,
}

impl Core {
    pub(crate) fn new(config: Config, store: Arc<dyn Store>, join_token: &str, spans: Option<Spans>) -> Self {
        let clock = Clock::start();
        let mut rng = Rng::new(u64::from_le_bytes(trust::random_bytes()));
        let pools = Arc::new(Pools::new(config.pool, clock, rng.fork(1)));
        let kits = Arc::new(Kits::default());
        let machines = Machines::new(
            Arc::clone(&pools),
            Arc::clone(&kits),
            clock,
            config.uplink.machines_max,
            config.uplink.kit_bytes_max.0,
        );
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let tokenizers = match config.requests.tokenizers_max {
            0 => cores,
            some => some,
        };
        Self {
            clock,
            store,
            pools,
            kits,
            machines,
            groups: Groups::default(),
            deployments: Deployments::default(),
            metrics: Metrics::new(),
            segments: Segments::new(),
            streams: Streams::default(),
            prices: Prices::default(),
            spans,
            limits: OnceLock::new(),
            receipt_keys: OnceLock::new(),
            returns: Returns::default(),
            keys: KeyMaker::start(),
            settling: Arc::new(watch::Sender::new(0)),
            join_hash: trust::hash_secret(join_token),
            places: Arc::new(Semaphore::new(config.requests.running_max.min(Semaphore::MAX_PERMITS))),
            handshakes: Semaphore::new(config.uplink.handshakes_max.min(Semaphore::MAX_PERMITS)),
            tokenizers: Semaphore::new(tokenizers.min(Semaphore::MAX_PERMITS)),
            draining: CancellationToken::new(),
            end: CancellationToken::new(),
            tasks: TaskTracker::new(),
            affinity_seed: rng.next_u64(),
            responses: Responses::default(),
            keyless: tokio::sync::Mutex::new(()),
            turned_away: LastTurnedAway::new(config.pool.explained_max),
            served_before: OnceLock::new(),
            rng: Mutex::new(rng),
            config,
        }
    }

    pub(crate) fn request_id(&self) -> RequestId {
        RequestId::random(&mut self.rng.lock())
    }

    pub(crate) fn attempt_id(&self) -> AttemptId {
        AttemptId::random(&mut self.rng.lock())
    }

    pub(crate) fn instance_id(&self) -> InstanceId {
        InstanceId::random(&mut self.rng.lock())
    }

    pub(crate) fn seed(&self) -> u64 {
        // Half the range, so that clients which read JSON numbers as signed can send it back.
        self.rng.lock().next_u64() >> 1
    }

    /// Reads what the store knows of before: models, prices, spend.
    pub(crate) async fn remember(&self) -> Result<(), StoreError> {
        self.prices.remember(self.store.as_ref()).await?;
        let _ = self.limits.set(Limits::new(&self.store.key_usage().await?));
        let _ = self.receipt_keys.set(crate::bootstrap::receipt_keys(self.store.as_ref()).await?);
        let names = self.store.setting(MODELS_SERVED).await?.unwrap_or_default();
        let _ = self.served_before.set(names.lines().map(str::to_owned).collect());
        Ok(())
    }

    /// Waits, a while, until what was answered before is settled: whoever asks for sums after its answer finds it there.
    pub(crate) async fn settled(&self) {
        let mut count = self.settling.subscribe();
        let none = count.wait_for(|count| *count == 0);
        let _ = tokio::time::timeout(SETTLED_WITHIN, none).await;
    }

    /// What keys may do.
    pub(crate) fn limits(&self) -> &Arc<Limits> {
        self.limits.get_or_init(|| Limits::new(&[]))
    }

    /// What receipts are signed with.
    pub(crate) fn receipt_keys(&self) -> &trust::MachineKeys {
        self.receipt_keys.get_or_init(trust::MachineKeys::generate)
    }

    /// Whether `model` was served before this start, which is so short ago that its machines may yet come back.
    pub(crate) fn was_served(&self, model: &str) -> bool {
        self.clock.now() < BACK_WITHIN && self.served_before.get().is_some_and(|names| names.contains(model))
    }

    /// Keeps which models are served, for the next start.
    fn keep_models(self: &Arc<Self>) {
        let names: Vec<String> =
            self.pools.all().iter().map(|served| served.name.as_str().to_owned()).collect();
        let core = Arc::clone(self);
        self.tasks.spawn(async move {
            let names = names.join("\n");
            if let Err(error) = core.store.put_setting(MODELS_SERVED, Some(&names)).await {
                tracing::warn!(%error, "which models are served could not be kept");
            }
        });
    }

    /// Does what a change among the machines asks for.
    pub(crate) fn carry_out(self: &Arc<Self>, session: Option<&Arc<Session>>, after: After) {
        if !after.new_pools.is_empty() {
            self.keep_models();
        }
        for served in after.new_pools {
            let core = Arc::clone(self);
            self.tasks.spawn(async move {
                served.tick(core.end.clone(), |notices| core.tell(notices)).await;
            });
        }
        if let Some(session) = session {
            session.expect_kits(after.asked);
            for message in after.messages {
                session.lanes.control(message);
            }
        }
        self.tell(after.notices);
        self.metrics.machines.set(i64::try_from(self.machines.connected()).unwrap_or(i64::MAX));
    }

    /// Logs what pools said, and tells the machines that it is about.
    pub(crate) fn tell(&self, notices: Vec<Notice>) {
        for notice in notices {
            let line = line(&notice);
            let (machine, instance) = (notice.machine, notice.instance);
            match notice.about {
                About::Standing(_) => {
                    tracing::info!(%machine, %instance, standing = line, "an instance's standing changed");
                }
                About::Suspect(_) | About::Rejected(_) => {
                    Metrics::count(&self.metrics.uplink_faults, "report");
                    tracing::warn!(%machine, %instance, detail = line, "a machine reported what cannot be");
                }
            }
            if let Some(session) = self.machines.session(machine) {
                session.lanes.control(FromCoordinator::Standing { lines: vec![line] });
            }
        }
    }

    /// Tells every machine that this coordinator goes, and ends their connections.
    pub(crate) fn goodbye(&self) {
        for session in self.machines.sessions() {
            session.lanes.control(FromCoordinator::Goodbye {
                reason: "the coordinator is shutting down".to_owned(),
                retry_after_us: 500_000,
            });
            session.lanes.close.cancel();
        }
    }
}

/// A span as the runtime has it.
pub(crate) fn span(micros: base::Micros) -> Duration {
    Duration::from(micros)
}
