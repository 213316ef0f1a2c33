//! Recordings of every kind of cabling, written after the published format, and what no machine would say.

use serde_json::json;

use super::*;

fn bus(n: u32, domain: &str, speed: &str, connected: bool, items: Value) -> Value {
    let status = if connected { "receptacle_connected" } else { "receptacle_no_devices_connected" };
    let mut bus = json!({
        "_name": format!("thunderboltusb4_bus_{n}"),
        "device_name_key": "Mac Studio",
        "domain_uuid_key": domain,
        "receptacle_1_tag": {
            "current_speed_key": speed,
            "link_status_key": if connected { "0x2" } else { "0x100" },
            "receptacle_id_key": (n + 1).to_string(),
            "receptacle_status_key": status,
        },
        "route_string_key": "0",
        "switch_uid_key": "0x05ACBB7F6A2C4D00",
        "vendor_name_key": "Apple Inc.",
    });
    if !items.is_null() {
        bus["_items"] = items;
    }
    bus
}

fn mac(name: &str, domain: &str) -> Value {
    json!({"_name": "iocpanel", "device_name_key": name, "domain_uuid_key": domain, "mode_key": "usb_four"})
}

fn read(buses: Value) -> Thunderbolt {
    parse(json!({ "SPThunderboltDataType": buses }).to_string().as_bytes()).unwrap()
}

fn link(local: &str, peer: &str, name: &str, via: &[&str]) -> Link {
    Link {
        local_domain_uuid: local.to_owned(),
        peer_domain_uuid: peer.to_owned(),
        peer_name: name.to_owned(),
        via: via.iter().map(|hub| (*hub).to_owned()).collect(),
    }
}

#[test]
fn a_direct_cable_and_an_idle_port_are_told_apart() {
    let got = read(json!([
        bus(0, "A0", "80 Gb/s", true, json!([mac("MacBook Pro", "B0")])),
        bus(1, "A1", "Up to 120 Gb/s", false, Value::Null),
        bus(2, "A2", "40 Gb/s", true, json!([mac("Mac mini", "C0")])),
        bus(3, "A3", "Up to 40 Gb/s", false, Value::Null),
    ]));
    let ports: Vec<_> = got
        .ports
        .iter()
        .map(|p| (p.receptacle.as_deref(), p.connected, p.speed_gbps, p.capable_gbps, p.thunderbolt_5))
        .collect();
    assert_eq!(
        ports,
        [
            (Some("1"), true, Some(80.0), Some(80.0), true),
            (Some("2"), false, None, Some(120.0), true),
            (Some("3"), true, Some(40.0), Some(40.0), false),
            (Some("4"), false, None, Some(40.0), false),
        ]
    );
    assert_eq!(got.links, [link("A0", "B0", "MacBook Pro", &[]), link("A2", "C0", "Mac mini", &[])]);
    assert!(got.problems.is_empty());
    let shown = serde_json::to_value(&got).unwrap();
    assert_eq!(shown["ports"][0]["speed_gbps"].to_string(), "80");
    assert_eq!(shown["ports"][1]["speed_gbps"], Value::Null);
}

#[test]
fn machines_behind_hubs_are_found_at_any_depth_and_beside_each_other() {
    let inner = json!({"device_name_key": "Dock", "_items": [mac("Mac mini", "D0")]});
    let outer =
        json!({"device_name_key": "Hub", "_items": [inner, mac("MacBook", "C0"), {"_name": "Display"}]});
    let got = read(json!([bus(0, "A0", "80 Gb/s", true, json!([outer, mac("Mac Pro", "B0")]))]));
    assert_eq!(
        got.links,
        [
            link("A0", "D0", "Mac mini", &["Hub", "Dock"]),
            link("A0", "C0", "MacBook", &["Hub"]),
            link("A0", "B0", "Mac Pro", &[]),
        ]
    );
}

#[test]
fn what_makes_no_sense_is_left_out_and_named() {
    let mut nameless = bus(4, "A4", "", true, json!([mac("X", "Y0"), 7, {"device_name_key": "bare"}]));
    nameless.as_object_mut().unwrap().remove("domain_uuid_key");
    let got = read(json!([
        null,
        nameless,
        bus(5, "A5", "fast", true, json!("none")),
        bus(6, "A6", "80 Gb/s", true, json!([mac("self", "a6"), mac("B", "B0"), mac("B", "B0")])),
        {"receptacle_1_tag": 3},
    ]));
    assert_eq!(got.links, [link("A6", "B0", "B", &[])]);
    assert_eq!(got.ports.len(), 3);
    assert_eq!((got.ports[1].speed_gbps, got.ports[1].capable_gbps), (None, None));
    assert_eq!(got.problems.len(), 6, "{:?}", got.problems);
}

#[test]
fn what_is_no_recording_is_refused_with_the_command_that_makes_one() {
    for (bytes, says) in [
        (&b"{"[..], "no JSON at line 1"),
        (b"[]", "no list"),
        (b"{\"SPThunderboltDataType\": {}}", "no list"),
        (b"\xff\xfe", "no JSON"),
    ] {
        let error = parse(bytes).unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("system_profiler"), "{error}");
    }
    assert!(parse(&vec![b' '; BYTES_MAX + 1]).unwrap_err().to_string().contains("16777217 bytes"));
    assert_eq!(read(json!([])), Thunderbolt::default());
    let mut deep = mac("end", "Z0");
    for n in 0..60 {
        deep = json!({"device_name_key": format!("hub {n}"), "_items": [deep]});
    }
    let got = read(json!([bus(0, "A0", "80 Gb/s", true, json!([deep]))]));
    assert!(got.links.is_empty() && got.problems[0].contains("deeper than 32"));
}

#[test]
fn speeds_are_read_as_they_are_written() {
    for (said, gbps) in [
        ("80 Gb/s", Some(80.0)),
        ("Up to 120 Gb/s", Some(120.0)),
        ("Up to 20Gb/s x1", Some(20.0)),
        ("2.5 Gbps", Some(2.5)),
        ("Gb/s", None),
        ("-", None),
        ("1..2 Gb/s", None),
    ] {
        assert_eq!(super::gbps(said), gbps, "{said}");
    }
}
