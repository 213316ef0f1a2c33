//! The planner on random fleets: what must hold of every plan, and a few decisions in words.

use std::collections::{BTreeMap, BTreeSet};

use base::Rng;
use fleet::deployment::{Machines, Replicas};
use fleet::plan::file::{FleetFile, SpecFile, read};
use fleet::plan::{Move, Plan, PlanPolicy, Running, Shape, Snapshot, plan};
use serde_json::{Value, json};

/// 70 B and 1 B at 4.5 bits, and a tiny one.
fn models() -> Value {
    json!({
        "big": {"bits_per_weight": 4.5, "shape": {"layers": 80, "hidden": 8192, "heads": 64, "kv_heads": 8,
                "feed_forward": 28672, "vocabulary": 128256}},
        "middle": {"bits_per_weight": 8.5, "shape": {"layers": 32, "hidden": 4096, "heads": 32, "kv_heads": 8,
                "feed_forward": 14336, "vocabulary": 128256}},
        "small": {"shape": {"layers": 16, "hidden": 2048, "heads": 32, "kv_heads": 8, "feed_forward": 8192,
                "vocabulary": 32000, "tied_head": true}},
        "sparse": {"bits_per_weight": 4.5, "shape": {"layers": 48, "hidden": 2048, "heads": 32, "kv_heads": 4,
                "head_dim": 128, "feed_forward": 768, "vocabulary": 151936, "experts": 128}},
    })
}

fn snapshot(fleet: Value, spec: Value) -> (Snapshot, PlanPolicy) {
    let fleet: FleetFile = serde_json::from_value(fleet).expect("a fleet");
    let spec: SpecFile = serde_json::from_value(spec).expect("a spec");
    let unknown = |name: &str, _: Option<&_>| -> Result<Shape, String> { Err(format!("no {name}")) };
    read(&fleet, &spec, &unknown).expect("both can be planned with")
}

fn machine(name: &str, gib: u64, gb_per_s: u64) -> Value {
    json!({"name": name, "memory": format!("{gib} GiB"), "memory_gb_per_s": gb_per_s})
}

fn names(snapshot: &Snapshot, plan: &Plan, deployment: &str) -> Vec<Vec<String>> {
    let of = |p: &&fleet::plan::Placement| snapshot.wanted[p.deployment].spec.name == deployment;
    let machines = |p: &fleet::plan::Placement| {
        p.ranks.iter().map(|rank| snapshot.fleet.name(rank.machine).to_owned()).collect()
    };
    plan.placements.iter().filter(of).map(machines).collect()
}

fn pick(rng: &mut Rng, words: &[&'static str]) -> &'static str {
    words[rng.below(words.len() as u64) as usize]
}

/// A fleet of up to 24 machines with random links, and up to 5 deployments of all forms.
fn random(seed: u64) -> (Snapshot, PlanPolicy) {
    let mut rng = Rng::new(seed);
    let count = 1 + rng.below(24);
    let mut machines = Vec::new();
    for at in 0..count {
        let name = format!("m{at}");
        let mut entry = machine(&name, [2, 8, 16, 24, 64, 128][rng.below(6) as usize], 20 + rng.below(800));
        if rng.below(5) == 0 {
            entry = json!({"name": name, "memory_gb_per_s": 900, "devices": [
                {"name": "gpu0", "memory": "24 GiB"}, {"name": "gpu1", "memory": "24 GiB"}]});
        }
        entry["labels"] = json!({"site": pick(&mut rng, &["home", "lab"])});
        entry["online"] = (rng.below(10) != 0).into();
        entry["managed"] = (rng.below(12) != 0).into();
        if rng.below(3) == 0 {
            entry["on_disk"] = json!([pick(&mut rng, &["big", "middle", "small", "sparse"])]);
        }
        machines.push(entry);
    }
    let mut links = Vec::new();
    for _ in 0..rng.below(3 * count) {
        let (from, to) = (format!("m{}", rng.below(count)), format!("m{}", rng.below(count)));
        let kind = pick(&mut rng, &["thunderbolt", "ethernet", "wifi"]);
        let state = pick(&mut rng, &["up", "up", "up", "down", "probing", "unknown"]);
        links.push(json!({"from": from, "to": to, "both": rng.below(4) != 0, "kind": kind, "state": state,
            "rdma": rng.below(3) == 0}));
    }
    let networks = if rng.below(2) == 0 { json!([{"rtt_ms": 0.3, "gbit_per_s": 10}]) } else { json!([]) };
    let mut deployments = Vec::new();
    let mut demand = serde_json::Map::new();
    for at in 0..1 + rng.below(5) {
        let name = format!("d{at}");
        let model = pick(&mut rng, &["big", "middle", "small", "sparse"]);
        let shape =
            pick(&mut rng, &["auto", "auto", "single", "tensor 2", "pipeline 3", "tensor 2 x pipeline 2"]);
        let replicas = match rng.below(2) {
            0 => json!(rng.below(4)),
            _ => {
                let floor = rng.below(3);
                demand.insert(
                    name.clone(),
                    json!({"requests_per_s": rng.below(40), "refused_per_s": rng.below(5)}),
                );
                json!({"floor": floor, "ceiling": floor + rng.below(6), "priority": rng.below(3)})
            }
        };
        let machines = match rng.below(6) {
            0 => json!({"selector": {"site": "lab"}}),
            1 => {
                let first = rng.below(count);
                json!({"pinned": [format!("m{first}")]})
            }
            _ => json!("any"),
        };
        deployments.push(json!({"name": name, "model": model, "shape": shape, "replicas": replicas,
            "machines": machines, "exclusive": rng.below(4) != 0, "context": 2048,
            "when_lost": pick(&mut rng, &["wait", "replace"]),
            "transport": pick(&mut rng, &["auto", "tcp", "rdma"]), "max_batch": 1 + rng.below(8)}));
    }
    snapshot(
        json!({"machines": machines, "links": links, "networks": networks, "demand": demand, "models": models()}),
        json!({"deployments": deployments}),
    )
}

/// What must hold of any plan.
fn hold(snapshot: &Snapshot, policy: &PlanPolicy, plan: &Plan, seed: u64) {
    let mut memory: BTreeMap<(u32, u16), u64> = BTreeMap::new();
    let mut sits: BTreeMap<u32, BTreeSet<usize>> = BTreeMap::new();
    let mut counts = vec![0u32; snapshot.wanted.len()];
    for placement in &plan.placements {
        let wanted = &snapshot.wanted[placement.deployment];
        let spec = &wanted.spec;
        let shape = wanted.shape.as_ref().expect("all models are known");
        counts[placement.deployment] += 1;
        if let Some(ranks) = spec.shape.ranks() {
            assert_eq!(placement.ranks.len(), ranks as usize, "seed {seed}: the shape is kept");
        }
        // Layers: stage after stage without a gap, shares adding up to one in each.
        let mut next = 0;
        for (layers, shares) in placement.stages() {
            assert_eq!(layers.start, next, "seed {seed}: {placement:?}");
            assert!(layers.end > layers.start && !shares.is_empty());
            next = layers.end;
        }
        assert_eq!(next, shape.layers(), "seed {seed}: layers cover the model");
        let shares: f64 = placement.ranks.iter().map(|r| r.tensor_share * r.layers.len() as f64).sum();
        assert!((shares - shape.layers() as f64).abs() < 1e-6, "seed {seed}: shares add up: {shares}");
        let held: u64 = placement.ranks.iter().map(|rank| rank.memory_bytes).sum();
        assert!(held >= shape.weight_bytes(0..shape.layers()), "seed {seed}: all weights are held");
        assert!(placement.predicted.decode_tokens_per_s > 0.0 && placement.predicted.ttft_ms > 0.0);
        let mut devices = BTreeSet::new();
        for (number, rank) in placement.ranks.iter().enumerate() {
            let machine = &snapshot.fleet.machines[rank.machine as usize];
            assert!(devices.insert((rank.machine, rank.device)), "seed {seed}: a device is one rank");
            assert!(machine.online && machine.managed, "seed {seed}: {} is there and managed", machine.name);
            *memory.entry((rank.machine, rank.device)).or_default() += rank.memory_bytes;
            sits.entry(rank.machine).or_default().insert(placement.deployment);
            let pinned = matches!(&spec.machines, Machines::Pinned(names) if names.contains(&machine.name));
            match &spec.machines {
                Machines::Pinned(_) if spec.when_lost == fleet::deployment::WhenLost::Wait => {
                    assert!(pinned, "seed {seed}: pins are respected");
                }
                Machines::Selector(labels) => {
                    assert!(labels.iter().all(|(k, v)| machine.labels.get(k) == Some(v)), "seed {seed}");
                }
                _ => {}
            }
            // Each rank has proved that it can dial all before it.
            for before in &placement.ranks[..number] {
                let up = snapshot.fleet.links.up(rank.machine, before.machine);
                assert!(up.is_some(), "seed {seed}: {} dials {}", rank.machine, before.machine);
            }
        }
    }
    hold_together(snapshot, policy, (&memory, &sits), seed);
    hold_counts(snapshot, plan, &counts, seed);
}

type Memory = BTreeMap<(u32, u16), u64>;
type Sits = BTreeMap<u32, BTreeSet<usize>>;

/// Of devices and machines.
fn hold_together(snapshot: &Snapshot, policy: &PlanPolicy, (memory, sits): (&Memory, &Sits), seed: u64) {
    for (&(machine, device), &used) in memory {
        let has = snapshot.fleet.machines[machine as usize].devices[device as usize].memory;
        assert!(
            used as f64 <= has as f64 * (1.0 - policy.head_room) + 1.0,
            "seed {seed}: memory is never exceeded"
        );
    }
    for (machine, deployments) in sits {
        let exclusive = deployments.iter().any(|&d| snapshot.wanted[d].spec.exclusive);
        let models: BTreeSet<&str> =
            deployments.iter().map(|&d| snapshot.wanted[d].spec.model.as_str()).collect();
        assert!(!exclusive || models.len() == 1, "seed {seed}: machine {machine} holds {models:?}");
    }
}

/// Of numbers of instances.
fn hold_counts(snapshot: &Snapshot, plan: &Plan, counts: &[u32], seed: u64) {
    for (deployment, &count) in counts.iter().enumerate() {
        let replicas = &snapshot.wanted[deployment].spec.replicas;
        assert!(count <= replicas.ceiling().max(replicas.floor()), "seed {seed}: ceilings hold");
        if count < replicas.floor() {
            let said = plan.short.iter().any(|s| s.deployment == deployment && !s.reason.is_empty());
            let rejected = plan.rejected.iter().any(|r| r.deployment == deployment && !r.reason.is_empty());
            assert!(
                said && rejected,
                "seed {seed}: what is missing is said, with candidates: {said} {rejected} {:?}",
                snapshot.wanted[deployment].spec
            );
        }
    }
}

/// The fleet after all moves were carried out.
fn after(snapshot: &Snapshot, plan: &Plan) -> Vec<Running> {
    let stopped = |number: usize| {
        plan.moves.iter().any(|m| matches!(m, Move::Stop { running, .. } if *running == number))
    };
    let kept =
        snapshot.running.iter().enumerate().filter(|(number, _)| !stopped(*number)).map(|(_, r)| r.clone());
    let started = plan.moves.iter().filter_map(|m| match m {
        Move::Start { placement, .. } => {
            let placement = &plan.placements[*placement];
            Some(Running {
                deployment: placement.deployment,
                ranks: placement.ranks.iter().map(|rank| (rank.machine, rank.device)).collect(),
                ready: true,
                since: snapshot.now,
                stages: Some(placement.stages()),
            })
        }
        Move::Stop { .. } => None,
    });
    kept.chain(started).collect()
}

#[test]
fn every_plan_of_random_fleets_holds_what_must_hold_and_the_next_one_changes_nothing() {
    for seed in 0..300 {
        let (mut snapshot, policy) = random(seed);
        let first = plan(&snapshot, &policy);
        hold(&snapshot, &policy, &first, seed);
        assert_eq!(first, plan(&snapshot, &policy), "seed {seed}: the same gives the same");
        for round in 0..3u64 {
            let decided = plan(&snapshot, &policy);
            hold(&snapshot, &policy, &decided, seed);
            if round > 0 {
                assert!(
                    decided.moves.is_empty(),
                    "seed {seed}, round {round}: it flaps: {:?}",
                    decided.moves
                );
            }
            snapshot.running = after(&snapshot, &decided);
            // Longer than any dwell: constant input stays without moves all the same.
            snapshot.now += policy.dwell + policy.dwell;
        }
    }
}

#[test]
fn lost_machines_never_break_a_plan_and_budgets_bound_each_step() {
    for seed in 1000..1060 {
        let (mut snapshot, mut policy) = random(seed);
        policy.moves_max = Some(2);
        let mut rng = Rng::new(seed);
        for _ in 0..12 {
            let decided = plan(&snapshot, &policy);
            hold(&snapshot, &policy, &decided, seed);
            let starts = decided.moves.iter().filter(|m| matches!(m, Move::Start { .. })).count();
            assert!(starts <= 2, "seed {seed}: {starts} starts");
            snapshot.running = after(&snapshot, &decided);
            let machine = rng.below(snapshot.fleet.machines.len() as u64) as usize;
            snapshot.fleet.machines[machine].online ^= true;
            snapshot.now += base::Micros::from_secs(rng.below(600));
        }
    }
}

#[test]
fn floors_come_before_demand_and_higher_priority_before_lower() {
    let machines: Vec<Value> = (0..3).map(|at| machine(&format!("m{at}"), 64, 400)).collect();
    let demand = json!({"greedy": {"requests_per_s": 1000}, "humble": {"requests_per_s": 1000}});
    let (snapshot, policy) = snapshot(
        json!({"machines": machines, "models": models(), "demand": demand}),
        json!({"deployments": [
            {"name": "greedy", "model": "small", "replicas": {"floor": 0, "ceiling": 9, "priority": 9}},
            {"name": "humble", "model": "middle", "replicas": {"floor": 1, "ceiling": 9, "priority": 1}},
            {"name": "fixed", "model": "small", "replicas": 1, "exclusive": true},
        ]}),
    );
    let plan = plan(&snapshot, &policy);
    let count = |name| names(&snapshot, &plan, name).len();
    assert_eq!((count("greedy"), count("humble"), count("fixed")), (1, 1, 1), "{:?}", plan.placements);
}

#[test]
fn what_is_loaded_is_preferred_then_what_is_on_disk_then_what_a_neighbour_has() {
    let mut machines: Vec<Value> = (0..4).map(|at| machine(&format!("m{at}"), 64, 400)).collect();
    machines[1]["on_disk"] = json!(["big"]);
    machines[2]["loaded"] = json!(["big"]);
    let links = json!([{"from": "m3", "to": "m1", "gbit_per_s": 10}]);
    let (snapshot, policy) = snapshot(
        json!({"machines": machines, "models": models(), "links": links}),
        json!({"deployments": [{"name": "d", "model": "big", "replicas": 4, "context": 1024, "max_batch": 1}]}),
    );
    let plan = plan(&snapshot, &policy);
    assert_eq!(names(&snapshot, &plan, "d").concat(), ["m2", "m1", "m3", "m0"]);
}

#[test]
fn a_neighbours_model_is_taken_only_where_somebody_gives_it_and_the_disk_has_room_and_else_it_is_said() {
    let mut machines: Vec<Value> = (0..3).map(|at| machine(&format!("m{at}"), 64, 400)).collect();
    machines[0]["on_disk"] = json!(["small"]);
    machines.iter_mut().for_each(|machine| machine["download_mbit_per_s"] = json!(0));
    let links = json!([
        {"from": "m1", "to": "m0", "gbit_per_s": 10, "both": true},
        {"from": "m2", "to": "m0", "gbit_per_s": 1, "both": true},
    ]);
    let spec = json!({"deployments": [
        {"name": "d", "model": "small", "replicas": 3, "context": 1024, "max_batch": 1}
    ]});
    let (given, policy) = snapshot(json!({"machines": machines, "models": models(), "links": links}), spec);
    let placed = |change: &dyn Fn(&mut fleet::plan::Snapshot)| {
        let mut changed = given.clone();
        change(&mut changed);
        let made = plan(&changed, &policy);
        let rejected: Vec<String> =
            made.rejected.iter().map(|r| format!("{}: {}", r.candidate, r.reason)).collect();
        (names(&changed, &made, "d").concat(), rejected.join("\n"))
    };
    let (who, _) = placed(&|_| {});
    assert_eq!(who, ["m0", "m1", "m2"], "the better link first");
    let (who, why) = placed(&|of| of.fleet.machines[1].fetch_room = 1 << 20);
    assert_eq!(who, ["m0", "m2"]);
    assert!(why.contains("d on m1") && why.contains("1.0 MiB are left there for models: make room"), "{why}");
    let (who, why) = placed(&|of| of.fleet.machines[2].fetch_room = 0);
    assert_eq!(who, ["m0", "m1"]);
    assert!(why.contains("d on m2") && why.contains("--no-fetch"), "{why}");
    // Who has it and gives it to nobody, and who is away and gives nothing now.
    let (who, why) = placed(&|of| of.fleet.machines[0].lends.clear());
    assert_eq!(who, ["m0"]);
    assert!(why.contains("d on m1") && why.contains("no way to get them"), "{why}");
    let (who, _) = placed(&|of| of.fleet.machines[0].online = false);
    assert!(who.is_empty(), "{who:?}");
}

#[test]
fn a_model_too_large_for_one_machine_goes_over_linked_ones_after_their_speed() {
    let machines = json!([machine("studio", 48, 800), machine("laptop", 24, 200), machine("far", 64, 800)]);
    let links =
        json!([{"from": "studio", "to": "laptop", "kind": "thunderbolt", "rtt_ms": 0.3, "gbit_per_s": 50}]);
    let spec = json!({"deployments": [{"name": "d", "model": "big", "context": 1024, "max_batch": 1, "shape": "pipeline 2"}]});
    let (snapshot, policy) =
        snapshot(json!({"machines": machines, "models": models(), "links": links}), spec);
    let plan = plan(&snapshot, &policy);
    let ranks = &plan.placements[0].ranks;
    let mut who = names(&snapshot, &plan, "d").concat();
    who.sort();
    assert_eq!(who, ["laptop", "studio"]);
    let layers =
        |name: &str| ranks.iter().find(|r| snapshot.fleet.name(r.machine) == name).map(|r| r.layers.len());
    assert!(layers("studio") > layers("laptop").map(|l| 2 * l), "{ranks:?}");
    assert!(plan.rejected.iter().any(|r| r.candidate.contains("far")), "{:?}", plan.rejected);
}

#[test]
fn what_was_measured_on_a_machine_is_what_is_predicted_of_it_however_quick() {
    for measured in [0.5, 40.0, 2_500.0, 12_000.0] {
        let speeds = json!({"small": {"decode_tokens_per_s": measured, "prefill_tokens_per_s": 9_000.0}});
        let mut alone = machine("alone", 48, 100);
        alone["measured"] = speeds;
        let spec = json!({"deployments": [{"name": "d", "model": "small", "context": 1024, "max_batch": 1}]});
        let (snapshot, policy) = snapshot(json!({"machines": [alone], "models": models()}), spec);
        let plan = plan(&snapshot, &policy);
        let predicted = plan.placements[0].predicted.decode_tokens_per_s;
        // A step's own costs are in what was measured; they are not counted again.
        assert!((predicted / measured - 1.0).abs() < 1e-6, "measured {measured}, predicted {predicted}");
    }
}

#[test]
fn rdma_that_is_required_and_not_there_names_the_link() {
    let machines = json!([machine("a", 64, 400), machine("b", 64, 400)]);
    let links = json!([{"from": "a", "to": "b", "kind": "thunderbolt", "rdma": false}]);
    let spec =
        json!({"deployments": [{"name": "d", "model": "big", "shape": "tensor 2", "transport": "rdma"}]});
    let (snapshot, policy) =
        snapshot(json!({"machines": machines, "models": models(), "links": links}), spec);
    let plan = plan(&snapshot, &policy);
    assert!(plan.placements.is_empty());
    let reason = &plan.short[0].reason;
    assert!(reason.contains("RDMA is required") && reason.contains("a -> b"), "{reason}");
}

#[test]
fn a_link_without_proof_places_nothing_and_says_so() {
    for (state, word) in [("unknown", "not yet probed"), ("probing", "not yet probed"), ("down", "is down")] {
        let machines = json!([machine("a", 32, 400), machine("b", 32, 400)]);
        let links = json!([{"from": "a", "to": "b", "state": state}]);
        let spec = json!({"deployments": [{"name": "d", "model": "big", "context": 1024, "max_batch": 1}]});
        let (snapshot, policy) =
            snapshot(json!({"machines": machines, "models": models(), "links": links}), spec);
        let plan = plan(&snapshot, &policy);
        assert!(plan.placements.is_empty());
        assert!(plan.rejected.iter().any(|r| r.reason.contains(word)), "{state}: {:?}", plan.rejected);
    }
}

#[test]
fn a_lost_pinned_machine_is_waited_for_or_replaced_as_the_spec_says() {
    for (when_lost, places) in [("wait", 0), ("replace", 1)] {
        let mut machines = vec![machine("a", 64, 400), machine("b", 64, 400)];
        machines[0]["online"] = false.into();
        let spec = json!({"deployments": [{"name": "d", "model": "small", "machines": {"pinned": ["a"]}, "when_lost": when_lost}]});
        let (snapshot, policy) = snapshot(json!({"machines": machines, "models": models()}), spec);
        let plan = plan(&snapshot, &policy);
        assert_eq!(plan.placements.len(), places, "{when_lost}");
        if places == 0 {
            assert_eq!(plan.short[0].waiting, ["a"]);
        }
    }
}

#[test]
fn demand_counts_refusals_grows_to_the_ceiling_and_gives_back_only_after_the_dwell() {
    let machines: Vec<Value> = (0..6).map(|at| machine(&format!("m{at}"), 64, 100)).collect();
    let make = |demand: Value| {
        snapshot(
            json!({"machines": machines.clone(), "models": models(), "demand": {"d": demand}}),
            json!({"deployments": [{"name": "d", "model": "middle", "replicas": {"floor": 1, "ceiling": 4}, "max_batch": 1}]}),
        )
    };
    let (idle, policy) = make(json!({}));
    assert_eq!(plan(&idle, &policy).placements.len(), 1);
    let (busy, _) = make(json!({"refused_per_s": 50}));
    let grown = plan(&busy, &policy);
    assert_eq!(grown.placements.len(), 4);
    assert!(grown.moves.iter().all(|m| matches!(m, Move::Start { reason, .. } if !reason.is_empty())));
    // Demand goes: nothing is given back before the dwell, all but the floor after it.
    let mut quiet = idle.clone();
    quiet.running = after(&busy, &grown);
    quiet.now = busy.now + base::Micros::from_secs(10);
    assert!(plan(&quiet, &policy).moves.is_empty());
    quiet.now = busy.now + policy.dwell;
    let given = plan(&quiet, &policy);
    assert_eq!(given.moves.len(), 3);
    assert!(matches!(quiet.wanted[0].spec.replicas, Replicas::Demand(_)));
}
