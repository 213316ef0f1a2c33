//! The difference between what runs and what should, in moves within the budgets.

use super::board::Board;
use super::{Move, Plan, Rejected};

/// Ends the plan.
pub(super) fn finish(mut board: Board<'_>) -> Plan {
    let running = &board.snapshot.running;
    let mut stops: Vec<(usize, String)> = std::mem::take(&mut board.ended);
    let mut needed_stops: Vec<usize> = Vec::new();
    for instance in &board.instances {
        if let (Some(reason), Some(kept)) = (&instance.gone, instance.placement.kept) {
            stops.push((kept, reason.clone()));
        }
        needed_stops.extend(&instance.after);
    }
    let mut starts = Vec::new();
    let mut placements = Vec::new();
    for instance in &board.instances {
        if instance.gone.is_some() {
            continue;
        }
        if instance.placement.kept.is_none() {
            starts.push((placements.len(), instance));
        }
        placements.push(instance.placement.clone());
    }
    let loading = running.iter().filter(|running| !running.ready).count();
    let mut budget = board.policy.moves_max.unwrap_or(usize::MAX);
    let mut loads = board.policy.loading_max.map_or(usize::MAX, |most| most.saturating_sub(loading));
    let mut moves = Vec::new();
    let mut held_back = Vec::new();
    let mut stopped: Vec<usize> = Vec::new();
    // What cannot go on is stopped whatever the budgets say: nothing is saved by leaving it.
    let forced = stops.len()
        - board.instances.iter().filter(|i| i.gone.is_some() && i.placement.kept.is_some()).count();
    for (at, (number, reason)) in stops.iter().enumerate() {
        if at < forced {
            stopped.push(*number);
            moves.push(Move::Stop { running: *number, reason: reason.clone() });
        }
    }
    for (placement, instance) in starts {
        let cost = 1 + instance.after.len();
        if budget < cost || loads == 0 {
            held_back.push(instance);
            continue;
        }
        budget -= cost;
        loads -= 1;
        for &number in &instance.after {
            if let Some((_, reason)) = stops.iter().find(|(stop, _)| *stop == number)
                && !stopped.contains(&number)
            {
                stopped.push(number);
                moves.push(Move::Stop { running: number, reason: reason.clone() });
            }
        }
        moves.push(Move::Start { placement, after: instance.after.clone(), reason: instance.reason.clone() });
    }
    for (number, reason) in &stops[forced..] {
        // Those that make room for another go with it, or stay.
        if budget > 0 && !needed_stops.contains(number) {
            budget -= 1;
            moves.push(Move::Stop { running: *number, reason: reason.clone() });
        }
    }
    let held_back: Vec<(usize, Vec<u32>)> =
        held_back.iter().map(|instance| (instance.placement.deployment, instance.nodes.clone())).collect();
    let rejected = rejections(&mut board, &held_back);
    Plan { placements, rejected, moves, short: board.short, targets: board.targets }
}

/// What was not taken, and what was and must wait.
fn rejections(board: &mut Board<'_>, held_back: &[(usize, Vec<u32>)]) -> Vec<Rejected> {
    for (deployment, nodes) in held_back {
        let names: Vec<String> = nodes.iter().map(|&node| board.name(node)).collect();
        let reason = "it fits, and waits: the budget of moves at once is spent".to_owned();
        board.rejected.group(*deployment, names.join(" + "), reason);
    }
    let mut rejected = board.rejected.say(board);
    for short in &board.short {
        if !rejected.iter().any(|rejected| rejected.deployment == short.deployment) {
            let name = &board.snapshot.wanted[short.deployment].spec.name;
            let candidate = format!("{name} on any other machine");
            rejected.push(Rejected { deployment: short.deployment, candidate, reason: short.reason.clone() });
        }
    }
    rejected
}
