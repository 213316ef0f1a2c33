//! What the commands say that need no fleet: recordings of cabling read, plans made on fleets that files describe, lives lived.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

fn phalanx(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_phalanx")).args(arguments).output().unwrap()
}

fn file(folder: &Path, name: &str, content: &Value) -> String {
    let path = folder.join(name);
    std::fs::write(&path, content.to_string()).unwrap();
    path.display().to_string()
}

fn read(output: &Output) -> Value {
    let error = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no JSON; {error}"))
}

fn bus(n: u32, domain: &str, speed: &str, connected: bool, items: Value) -> Value {
    let status = if connected { "receptacle_connected" } else { "receptacle_no_devices_connected" };
    let mut bus = json!({
        "_name": format!("thunderboltusb4_bus_{n}"),
        "domain_uuid_key": domain,
        "receptacle_1_tag": {"current_speed_key": speed, "receptacle_id_key": (n + 1).to_string(),
                             "receptacle_status_key": status},
    });
    if !items.is_null() {
        bus["_items"] = items;
    }
    bus
}

fn mac(name: &str, domain: &str) -> Value {
    json!({"_name": name, "device_name_key": name, "domain_uuid_key": domain})
}

#[test]
fn a_recording_of_thunderbolt_is_told_with_hubs_between_speeds_and_what_made_no_sense() {
    let folder = tempfile::tempdir().unwrap();
    let parse = |content: &Value, more: &[&str]| {
        let path = file(folder.path(), "recording.json", content);
        phalanx(&[&["topology", "parse", "--thunderbolt", &path], more].concat())
    };
    let inner = json!({"_name": "inner hub", "device_name_key": "Dock 2", "_items": [mac("mini", "C0")]});
    let hub = json!({"_name": "hub", "device_name_key": "Dock 1", "_items": [inner, mac("air", "D0")]});
    let recording = json!({"SPThunderboltDataType": [
        bus(0, "A0", "80 Gb/s", true, json!([mac("pro", "B0")])),
        bus(1, "A1", "40 Gb/s", true, json!([hub])),
        bus(2, "A2", "Up to 120 Gb/s", false, Value::Null),
        bus(3, "A3", "Up to 40 Gb/s", false, Value::Null),
        "no bus at all",
    ]});
    let said = read(&parse(&recording, &["--json"]));
    let of = |port: &Value| {
        (port["connected"] == true, port["speed_gbps"].as_f64(), port["capable_gbps"].as_f64())
    };
    let ports: Vec<_> = said["ports"].as_array().unwrap().iter().map(of).collect();
    assert_eq!((ports[0].0, ports[1].0), (true, true));
    assert_eq!((ports[0].1, ports[1].1), (Some(80.0), Some(40.0)));
    assert_eq!((ports[2].0, ports[2].1, ports[2].2), (false, None, Some(120.0)));
    // Thunderbolt 5 by what was agreed on or by what a port could do, and not what is only as fast as 4.
    let kinds: Vec<_> =
        said["ports"].as_array().unwrap().iter().map(|p| p["thunderbolt_5"] == true).collect();
    assert_eq!(kinds, [true, false, true, false], "{said:#}");
    let links: Vec<_> = said["links"]
        .as_array()
        .unwrap()
        .iter()
        .map(|link| {
            (
                link["local_domain_uuid"].as_str().unwrap(),
                link["peer_domain_uuid"].as_str().unwrap(),
                link["via"].to_string(),
            )
        })
        .collect();
    assert!(links.contains(&("A0", "B0", "[]".to_owned())), "{links:?}");
    assert!(links.contains(&("A1", "C0", r#"["Dock 1","Dock 2"]"#.to_owned())), "{links:?}");
    assert!(links.contains(&("A1", "D0", r#"["Dock 1"]"#.to_owned())), "{links:?}");
    let text = String::from_utf8(parse(&recording, &[]).stdout).unwrap();
    assert!(text.contains("Thunderbolt 5") && text.contains("via Dock 1, Dock 2"), "{text}");
    assert!(text.contains("left out"), "what made no sense is named: {text}");

    let refused = parse(&json!({"SPUSBDataType": []}), &["--json"]);
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && error.contains("SPThunderboltDataType"), "{error}");
}

fn planned(fleet: Value, spec: Value) -> (Output, Value) {
    let folder = tempfile::tempdir().unwrap();
    let (fleet, spec) = (file(folder.path(), "fleet.json", &fleet), file(folder.path(), "spec.json", &spec));
    let output = phalanx(&["plan", "--fleet", &fleet, "--spec", &spec, "--json"]);
    let plan = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output, plan)
}

/// 80 layers, 4.5 bits: some 40 GB.
fn big() -> Value {
    json!({"big": {"bits_per_weight": 4.5, "shape": {"layers": 80, "hidden": 8192, "heads": 64, "kv_heads": 8,
                   "feed_forward": 28672, "vocabulary": 128_256}}})
}

#[test]
fn a_plan_divides_by_memory_and_speed_uses_fast_islands_and_says_why_not_elsewhere() {
    // Two islands of two machines over Thunderbolt, Ethernet between them: no island holds it alone.
    let machine = |name: &str, gib: u64, speed: u64| json!({"name": name, "memory": format!("{gib} GiB"), "memory_gb_per_s": speed});
    let link = |a: &str, b: &str, kind: &str, rtt: f64, gbit: f64| json!({"from": a, "to": b, "kind": kind, "rtt_ms": rtt, "gbit_per_s": gbit});
    let mut links =
        vec![link("a1", "a2", "thunderbolt", 0.03, 50.0), link("b1", "b2", "thunderbolt", 0.03, 50.0)];
    for a in ["a1", "a2"] {
        links.extend(["b1", "b2"].map(|b| link(a, b, "ethernet", 0.5, 1.0)));
    }
    let machines = json!([
        machine("a1", 18, 400),
        machine("a2", 18, 400),
        machine("b1", 12, 200),
        machine("b2", 12, 200),
        machine("alone", 16, 800)
    ]);
    let spec = |shape: &str| {
        json!({"models": big(),
               "deployments": [{"name": "d", "model": "big", "context": 2048, "max_batch": 1, "shape": shape}]})
    };
    let fleet = json!({"machines": machines, "links": links});
    for shape in ["auto", "2x2", "pipeline 4"] {
        let (_, plan) = planned(fleet.clone(), spec(shape));
        let ranks = plan["placements"][0]["ranks"].as_array().unwrap_or_else(|| panic!("{shape}: {plan:#}"));
        // Left to itself it takes the fewest that hold it.
        assert_eq!(ranks.len(), if shape == "auto" { 3 } else { 4 }, "{shape}: {plan:#}");
        let mut layers = 0.0;
        for rank in ranks {
            let (name, memory) = (rank["machine"].as_str().unwrap(), rank["memory_bytes"].as_u64().unwrap());
            let room = if name.starts_with('a') { 18u64 << 30 } else { 12 << 30 };
            assert!(memory > 0 && memory <= room, "{shape}: {name} holds {memory}");
            let [first, end] = [0, 1].map(|at| rank["layers"][at].as_f64().unwrap());
            layers += (end - first) * rank["tensor_share"].as_f64().unwrap();
        }
        assert!((layers - 80.0).abs() < 1.0, "{shape}: each layer is held once: {layers}");
        let predicted = &plan["placements"][0]["predicted"];
        assert!(
            predicted["decode_tokens_per_s"].as_f64().unwrap() > 0.0
                && predicted["ttft_ms"].as_f64().unwrap() > 0.0
        );
        // The machine that nobody reaches is left out, and why is said.
        let rejected = plan["rejected"].as_array().unwrap();
        let alone = rejected.iter().find(|r| r["candidate"].as_str().unwrap().contains("alone"));
        assert!(alone.is_some_and(|r| !r["reason"].as_str().unwrap().is_empty()), "{shape}: {rejected:#?}");
    }
    // Asked for tensor in islands and pipeline between them: ranks of a stage are neighbours.
    let (_, plan) = planned(fleet, spec("2x2"));
    let mut stages: Vec<(u64, Vec<String>)> = Vec::new();
    for rank in plan["placements"][0]["ranks"].as_array().unwrap() {
        let (first, island) =
            (rank["layers"][0].as_u64().unwrap(), rank["machine"].as_str().unwrap()[..1].to_owned());
        match stages.iter_mut().find(|(stage, _)| *stage == first) {
            Some((_, islands)) => islands.push(island),
            None => stages.push((first, vec![island])),
        }
    }
    assert_eq!(stages.len(), 2, "{plan:#}");
    assert!(stages.iter().all(|(_, islands)| islands[0] == islands[1]), "{stages:?}");

    // One more machine: what if?
    let bought = json!({"machines": [machine("alone", 16, 800), machine("bought", 64, 800)]});
    let (_, plan) = planned(bought, spec("auto"));
    assert_eq!(plan["placements"][0]["ranks"].as_array().unwrap().len(), 1, "{plan:#}");
    assert_eq!(plan["placements"][0]["ranks"][0]["machine"], "bought");
}

#[test]
fn a_plan_never_falls_back_from_rdma_and_refuses_what_it_cannot_read() {
    let spec = |transport: &str| json!({"models": big(), "deployments": [{"name": "d", "model": "big", "shape": "tensor 2", "transport": transport}]});
    let machine = |name: &str| json!({"name": name, "memory": "64 GiB"});
    let fleet = |rdma: bool| {
        json!({"machines": [machine("a"), machine("b")],
               "links": [{"from": "a", "to": "b", "kind": "thunderbolt", "rdma": rdma}]})
    };
    let (output, plan) = planned(fleet(false), spec("rdma"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && plan["placements"].as_array().is_some_and(Vec::is_empty), "{plan:#}");
    assert!(said.contains("RDMA") && said.contains("a -> b"), "the link is named: {said}");
    let (output, plan) = planned(fleet(true), spec("rdma"));
    assert!(output.status.success() && plan["placements"].as_array().unwrap().len() == 1, "{plan:#}");

    let mut wrong = fleet(true);
    wrong["machines"][0]["memroy"] = "64 GiB".into();
    let (output, _) = planned(wrong, spec("auto"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("memroy") && said.contains("machines[0]"), "{said}");
}

#[test]
fn pools_keep_a_fast_model_fast_and_lives_with_faults_break_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let traffic = json!({
        "machines": 8, "requests_per_s": 1.5, "hours": 1,
        "models": [{"name": "fast", "share": 83, "decode_tokens_per_s": 57},
                   {"name": "slow", "share": 17, "decode_tokens_per_s": 2.6, "answer_tokens": 64, "machines": 6}],
    });
    let path = file(folder.path(), "traffic.json", &traffic);
    let compared = read(&phalanx(&["simulate", &path, "--json"]));
    let fast = |arrangement: &str| compared[arrangement][0]["latency_s_p50"].as_f64().unwrap();
    assert!(fast("pools") * 3.0 < fast("co_resident"), "{compared:#}");
    let lived = read(&phalanx(&["simulate", "--seeds", "3", "--hours", "1", "--json"]));
    assert_eq!((&lived["seeds"], &lived["violations"]), (&json!(3), &json!([])), "{lived:#}");
    assert!(lived["machine_hours"].as_f64().unwrap() > 3.0 && lived["events"].as_u64().unwrap() > 1000);
    assert!(lived["wall_s"].as_f64().is_some());
    // A seed is lived again as it was.
    let life = || {
        let told = String::from_utf8(phalanx(&["simulate", "--seed", "2", "--hours", "1"]).stdout).unwrap();
        // The last line says how long it took here.
        told.lines().rev().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    let first = life();
    assert!(first.len() > 20 && first == life(), "{first:#?}");
}

#[test]
fn doctor_says_what_is_there_what_is_not_and_why() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().display().to_string();
    let output = phalanx(&["doctor", "--data", &data]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let line = |what: &str| {
        text.lines()
            .find(|line| line.split_whitespace().nth(1) == Some(what))
            .unwrap_or_else(|| panic!("nothing of {what}:\n{text}"))
    };
    assert!(line("processor").starts_with("good") && line("memory").contains("available"), "{text}");
    // What this build cannot do is named, with what would build it in.
    assert!(line("backends").contains("the CPU") && line("backends").contains("features"), "{text}");
    assert!(line("engine").contains("tokens/s"), "{text}");
    assert!(line("coordinator").contains("phalanx up"), "it says what to do: {text}");
}
