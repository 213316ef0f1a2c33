//! What is kept of deployments. Specs and records are JSON that the store does not read.

use base::InstanceId;

/// One change. All changes of one call are written together, or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeploymentChange {
    /// An operator wants this, or wants it otherwise.
    Wanted(KeptDeployment),
    /// An operator does not want it any more. Its history stays.
    Deleted {
        /// Which.
        name: String,
    },
    /// A line of history; the last 256 of each name are kept.
    Event(DeploymentEvent),
    /// An instance has this place, under this epoch.
    Placed {
        /// Which.
        instance: InstanceId,
        /// Where.
        record: String,
    },
    /// An instance has no place any more.
    Ended {
        /// Which.
        instance: InstanceId,
    },
    /// No assignment has a larger epoch. A smaller one than is kept changes nothing.
    Epoch(u64),
    /// A call with an idempotency key; the last 4096 are kept.
    Called {
        /// The key, with whose it is.
        key: String,
        /// What was asked, and answered.
        call: DeploymentCall,
    },
}

/// A deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptDeployment {
    /// Its name.
    pub name: String,
    /// Grows with each change.
    pub generation: u64,
    /// JSON.
    pub spec: String,
}

/// A line of history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeploymentEvent {
    /// Of which deployment.
    pub name: String,
    /// At which generation of it.
    pub generation: u64,
    /// When, in microseconds since 1970.
    pub at_unix_us: u64,
    /// In words.
    pub what: String,
}

/// What a call was, and what it was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeploymentCall {
    /// Hash of what was asked.
    pub digest: String,
    /// The answer's body.
    pub answer: String,
}

/// What a coordinator begins with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeptDeployments {
    /// By name.
    pub deployments: Vec<KeptDeployment>,
    /// Instances and their records.
    pub placements: Vec<(InstanceId, String)>,
    /// The largest epoch that was given out.
    pub epoch: u64,
}
