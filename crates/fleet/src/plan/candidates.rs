//! What was looked at and not taken: named one by one up to a bound, counted by reason beyond it.

use std::collections::BTreeMap;

use super::Rejected;
use super::board::Board;
use super::why::Why;

/// Candidates of one deployment that are named.
const NAMED_MAX: usize = 256;
/// What a candidate is called where no machines were found to make one.
pub(super) const ANY_GROUP: &str = "any group";
/// Groups among them.
const GROUPS_MAX: usize = 64;

/// The list.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    of: BTreeMap<usize, Entry>,
}

#[derive(Debug, Default)]
struct Entry {
    singles: Vec<(u32, Why)>,
    gone_through: bool,
    more: BTreeMap<&'static str, usize>,
    groups: Vec<(String, String)>,
}

impl Ledger {
    /// Whether the devices that could hold it whole have been gone through; they have, from now on.
    pub(super) fn gone_through(&mut self, deployment: usize) -> bool {
        std::mem::replace(&mut self.of.entry(deployment).or_default().gone_through, true)
    }

    pub(super) fn begun(&self, deployment: usize) -> bool {
        self.of.contains_key(&deployment)
    }

    pub(super) fn single(&mut self, deployment: usize, node: u32, why: Why) {
        let entry = self.of.entry(deployment).or_default();
        if entry.singles.len() < NAMED_MAX {
            entry.singles.push((node, why));
        } else {
            *entry.more.entry(why.kind()).or_default() += 1;
        }
    }

    /// As [`Self::single`], where nothing was said of that device yet.
    pub(super) fn single_once(&mut self, deployment: usize, node: u32, why: Why) {
        let entry = self.of.entry(deployment).or_default();
        if entry.singles.len() < NAMED_MAX && !entry.singles.iter().any(|(of, _)| *of == node) {
            entry.singles.push((node, why));
        }
    }

    pub(super) fn group(&mut self, deployment: usize, candidate: String, reason: String) {
        let groups = &mut self.of.entry(deployment).or_default().groups;
        if groups.len() < GROUPS_MAX && !groups.iter().any(|(name, why)| *name == candidate && *why == reason)
        {
            groups.push((candidate, reason));
        }
    }

    /// The reason that a deployment without a place is told: of a group where there was one, else the most frequent.
    pub(super) fn nearest(&self, board: &Board<'_>, deployment: usize) -> Option<String> {
        let entry = self.of.get(&deployment)?;
        // That no group was found tells less than why the machines by themselves would not do.
        let named = entry.groups.iter().find(|(candidate, _)| candidate != ANY_GROUP);
        if let Some((candidate, reason)) = named {
            return Some(format!("{candidate}: {reason}"));
        }
        let of_kind = |kind: &str| entry.singles.iter().filter(|(_, why)| why.kind() == kind).count();
        let near = |why: &Why| match why {
            Why::Memory { .. } | Why::Disk { .. } => 2,
            Why::Resting => 1,
            _ => 0,
        };
        let single = entry.singles.iter().max_by_key(|(_, why)| (near(why), of_kind(why.kind())));
        let single = single.map(|(node, why)| format!("{}: {}", board.name(*node), why.say(board, *node)));
        single.or_else(|| entry.groups.first().map(|(candidate, reason)| format!("{candidate}: {reason}")))
    }

    /// In words, leaving out what was taken after all.
    pub(super) fn say(&self, board: &Board<'_>) -> Vec<Rejected> {
        let mut said = Vec::new();
        for (&deployment, entry) in &self.of {
            let name = &board.snapshot.wanted[deployment].spec.name;
            let mut add = |on: &str, reason: String| {
                said.push(Rejected { deployment, candidate: format!("{name} on {on}"), reason });
            };
            for &(node, why) in &entry.singles {
                let machine = board.nodes[node as usize].machine as usize;
                let mine = |r: &super::board::Resident| r.node == node && r.deployment == deployment;
                if !board.residents[machine].iter().any(mine) {
                    add(&board.name(node), why.say(board, node));
                }
            }
            for (candidate, reason) in &entry.groups {
                add(candidate, reason.clone());
            }
            for (kind, count) in &entry.more {
                add(&format!("{count} more machines"), format!("they {kind}"));
            }
        }
        said
    }
}
