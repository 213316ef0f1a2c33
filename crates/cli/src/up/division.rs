//! How `phalanx up` divides its models over its providers: a group of the first of them for each model.

use std::time::{Duration, Instant};

use anyhow::bail;
use wire::admin::FleetStatus;
use wire::admin::group::{CreateGroup, GroupStatus};

use crate::client::Client;

/// Lives that a new group may lose before `up` says that it does not come to stand.
const FAULTS_MAX: u64 = 4;

/// Ranks of the group that a fleet begins with where nothing is said: the fewest that make one.
const RANKS_FIRST: u32 = 2;

/// What was asked for, where it is a group.
pub(super) struct Division {
    mode: String,
    ranks: u32,
    /// Nobody asked: a model that cannot be divided so is served undivided.
    by_default: bool,
}

impl Division {
    /// Reads `--mode` and `--ranks`; nothing where every provider computes alone. Where neither is said, the first two
    /// providers make a group, if there are two.
    pub(super) fn of(mode: Option<&str>, ranks: Option<u32>, providers: u32) -> anyhow::Result<Option<Self>> {
        let by_default = mode.is_none() && ranks.is_none();
        let (mode, ranks) = match (mode, ranks) {
            (None, None) if providers < RANKS_FIRST => return Ok(None),
            (None, None) => ("auto".to_owned(), RANKS_FIRST),
            (None, Some(1)) | (Some("single"), None | Some(1)) => return Ok(None),
            (Some("single"), Some(ranks)) => bail!("--mode single is one rank, and --ranks says {ranks}"),
            (Some(mode), Some(1)) => bail!("--mode {mode} takes at least two ranks, and --ranks says 1"),
            (mode, ranks) => (mode.unwrap_or("auto").to_owned(), ranks.unwrap_or(providers)),
        };
        if ranks > providers {
            bail!("--ranks {ranks} are more than --providers {providers}: each rank is a provider");
        }
        if ranks < 2 {
            bail!("--mode {mode} takes at least two ranks: start as many --providers");
        }
        Ok(Some(Self { mode, ranks, by_default }))
    }

    /// Forms a group for each model that is served, and waits until all stand.
    pub(super) async fn carry_out(
        &self,
        client: &Client,
        status: FleetStatus,
        deadline: Instant,
    ) -> anyhow::Result<FleetStatus> {
        for pool in &status.models {
            let asked = CreateGroup {
                model: pool.model.clone(),
                machines: (1..=self.ranks).map(|index| format!("machine-{index}")).collect(),
                mode: self.mode.clone(),
                dtype: "f32".to_owned(),
                patience_ms: 2_000,
            };
            let _: GroupStatus = client.post("/api/groups", &asked).await?;
        }
        let mut pace = tokio::time::interval(Duration::from_millis(25));
        loop {
            pace.tick().await;
            let status: FleetStatus = client.get("/api/status").await?;
            let standing = |group: &GroupStatus| {
                let taking =
                    |i: &wire::admin::InstanceStatus| i.instance == group.instance && i.ineligible.is_none();
                group.phase == "ready" && status.machines.iter().flat_map(|m| &m.instances).any(taking)
            };
            if status.groups.iter().all(standing) {
                return Ok(status);
            }
            let lost = status.groups.iter().find(|group| group.faults >= FAULTS_MAX);
            if let Some(group) = lost.filter(|_| self.by_default) {
                eprintln!(
                    "{} is not divided over {} providers ({}): each serves it alone",
                    group.model, self.ranks, group.last_fault
                );
                let _: GroupStatus = client.delete(&format!("/api/groups/{}", group.instance)).await?;
                continue;
            }
            if let Some(group) = lost {
                bail!("{} cannot be divided over {} ranks: {}", group.model, self.ranks, group.last_fault);
            }
            if Instant::now() > deadline {
                let why = status.groups.iter().map(|group| group.detail.as_str()).find(|d| !d.is_empty());
                bail!("the ranks do not come together: {}", why.unwrap_or("no reason"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_done_or_refused() {
        let of = |mode, ranks| Division::of(mode, ranks, 2).map(|d| d.map(|d| (d.mode, d.ranks)));
        assert_eq!(of(None, None).unwrap(), Some(("auto".into(), 2)));
        assert_eq!(of(None, Some(1)).unwrap(), None);
        assert_eq!(of(Some("single"), None).unwrap(), None);
        assert_eq!(of(None, Some(2)).unwrap(), Some(("auto".into(), 2)));
        assert_eq!(of(Some("tensor"), None).unwrap(), Some(("tensor".into(), 2)));
        assert!(of(Some("single"), Some(2)).unwrap_err().to_string().contains("one rank"));
        assert!(of(Some("tensor"), Some(1)).unwrap_err().to_string().contains("at least two ranks"));
        assert!(of(None, Some(3)).unwrap_err().to_string().contains("--providers 2"));
        assert!(Division::of(Some("pipeline"), None, 1).is_err());
        assert!(Division::of(None, None, 1).unwrap().is_none(), "one provider is no group");
        let more = Division::of(None, None, 5).unwrap().unwrap();
        assert_eq!((more.ranks, more.by_default), (2, true));
    }
}
