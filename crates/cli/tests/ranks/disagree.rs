//! Ranks that were told otherwise than the others, or are somebody else: real processes refuse each other, and each says why.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base::{Epoch, Incarnation, InstanceId};
use engine::group::GroupMode;
use engine::{EngineConfig, LoadOptions, ModelSource};
use link::{Cancel, Gathering, Listener, Member, Place, Timing, form};
use serde_json::{Value, json};
use trust::MachineKeys;
use wire::link::{LinkHello, Mode, WireType};

use crate::PHALANX;

/// How long both sides try: what trying again could mend is tried again until then.
const FORM: Duration = Duration::from_millis(1_500);

fn fixture(name: &str) -> String {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/fixtures/tiny");
    tiny.join(name).display().to_string()
}

/// Another rank: a process of its own.
struct Process {
    child: Child,
    door: Value,
}

impl Process {
    fn start(rank: usize, model: &str) -> Self {
        let mut child = Command::new(PHALANX)
            .arg("rank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let config = EngineConfig { threads: Some(1), ..EngineConfig::default() };
        let task = json!({
            "model": fixture(model), "config": config, "mode": "tensor", "rank": rank, "ranks": 2, "core": null,
            "tokenizer_needed": false, "form_ms": FORM.as_millis() as u64,
        });
        writeln!(child.stdin.as_mut().unwrap(), "{task}").unwrap();
        let mut door = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut door).unwrap();
        Self { child, door: serde_json::from_str(&door).unwrap() }
    }

    fn key(&self) -> [u8; 32] {
        serde_json::from_value(self.door["key"].clone()).unwrap()
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        serde_json::from_value(self.door["addresses"].clone()).unwrap()
    }

    fn is_told(&mut self, doors: &[Value]) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{}", json!({ "doors": doors })).unwrap();
    }

    /// What it says of why there is no group.
    fn end(mut self) -> String {
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(!self.child.wait().unwrap().success(), "it took part: {said}");
        said
    }
}

/// This test's own place: rank 0 of two that divide llama-f32.
fn place() -> Place {
    let source = ModelSource::Folder(fixture("llama-f32").into());
    let model = engine::load(&source, &LoadOptions { tokenizer_needed: false }).unwrap();
    let map = model.divide(GroupMode::Tensor, &[engine::group::Member::default(); 2]).unwrap();
    Place {
        instance: InstanceId(1),
        epoch: Epoch(1),
        rank: 0,
        model: trust::sha256_of_files(model.weight_files()),
        shard_map: trust::sha256(map.encode().as_bytes()),
        mode: Mode::Tensor,
        dtype: WireType::F32,
    }
}

fn member(rank: u64, key: [u8; 32], addresses: Vec<SocketAddr>) -> Member {
    let (machine, incarnation) = (trust::machine_of(&key), Incarnation(rank));
    Member { machine, incarnation, key, addresses, meeting: Vec::new() }
}

/// What rank 0, here, and rank 1, a process that holds `model`, say of each other.
fn meet(place: &Place, model: &str, known_as: Option<[u8; 32]>) -> Result<(), (String, String)> {
    let mut other = Process::start(1, model);
    let keys = MachineKeys::generate();
    let listener = Listener::bind(&[IpAddr::V4(Ipv4Addr::LOCALHOST)]).unwrap();
    let own = json!({ "key": keys.signing_key(), "addresses": listener.addresses() });
    let doors = [own, other.door.clone()];
    other.is_told(&doors);
    let roster = [
        member(0, keys.signing_key(), listener.addresses()),
        member(1, known_as.unwrap_or(other.key()), other.addresses()),
    ];
    let timing = Timing { total: FORM, ..Timing::default() };
    let cancel = Cancel::new();
    let gathering =
        Gathering { listener: &listener, keys: &keys, place, roster: &roster, timing, cancel: &cancel };
    match form(&gathering) {
        Ok(group) => {
            drop(group);
            let _ = other.child.wait();
            Ok(())
        }
        Err(error) => Err((error.to_string(), other.end())),
    }
}

#[test]
fn processes_that_mean_another_group_refuse_each_other_and_both_name_what_differs() {
    assert_eq!(meet(&place(), "llama-f32", None), Ok(()), "nothing differs");
    type Bend = fn(&mut Place);
    let bends: [(&str, Bend); 5] = [
        ("instance differs", |place| place.instance = InstanceId(2)),
        ("epoch differs", |place| place.epoch = Epoch(2)),
        ("shard map differs", |place| place.shard_map[0] ^= 1),
        ("mode differs", |place| place.mode = Mode::Pipeline),
        ("element type differs", |place| place.dtype = WireType::Bf16),
    ];
    for (what, bend) in bends {
        let mut bent = place();
        bend(&mut bent);
        let (here, there) = meet(&bent, "llama-f32", None).unwrap_err();
        assert!(here.contains(what) && here.contains("rank 1 (m_"), "{what}: {here}");
        assert!(there.contains(what) && there.contains("rank 0 (m_"), "{what}: {there}");
    }
    let (here, there) = meet(&place(), "llama-bf16-tied", None).unwrap_err();
    assert!(here.contains("model differs") && there.contains("model differs"), "{here}\n{there}");
}

#[test]
fn a_process_with_another_key_than_the_rosters_is_no_rank() {
    let another = MachineKeys::generate().signing_key();
    let (here, there) = meet(&place(), "llama-f32", Some(another)).unwrap_err();
    assert!(here.contains("holds the key of m_"), "{here}");
    assert!(there.contains("its roster does not name it"), "{there}");
}

fn record(socket: &mut TcpStream) -> Vec<u8> {
    let mut record = vec![0; 5];
    socket.read_exact(&mut record).unwrap();
    let length = usize::from(u16::from_be_bytes([record[3], record[4]]));
    record.resize(5 + length, 0);
    socket.read_exact(&mut record[5..]).unwrap();
    record
}

/// A rank of a newer Phalanx: its key is right, its hello is none that this one reads.
#[test]
fn a_rank_of_another_version_is_refused_with_that_reason() {
    let mut first = Process::start(0, "llama-f32");
    let newer = MachineKeys::generate();
    let own = json!({ "key": newer.signing_key(), "addresses": ["127.0.0.1:9"] });
    let doors = [first.door.clone(), own];
    first.is_told(&doors);
    let mut socket = TcpStream::connect(first.addresses()[0]).unwrap();
    let mut handshake = trust::LinkHandshake::dial(&newer, first.key());
    loop {
        let mut out = Vec::new();
        handshake.outgoing(&mut out);
        socket.write_all(&out).unwrap();
        if handshake.is_done() {
            break;
        }
        handshake.record(&record(&mut socket)).unwrap();
    }
    let mut link = handshake.finish().unwrap();
    let place = place();
    let mut hello = LinkHello {
        machine: trust::machine_of(&newer.signing_key()),
        incarnation: Incarnation(1),
        instance: place.instance,
        epoch: place.epoch,
        rank: 1,
        ranks: 2,
        model: place.model,
        shard_map: place.shard_map,
        mode: place.mode,
        dtype: place.dtype,
        control: false,
    }
    .encode();
    hello[4] += 1;
    let mut sealed = Vec::new();
    link.sealer.seal(&hello, &mut sealed);
    socket.write_all(&sealed).unwrap();
    // Its own hello, and then its verdict.
    link.opener.open(&mut record(&mut socket)).unwrap();
    let mut verdict = record(&mut socket);
    let verdict = String::from_utf8(link.opener.open(&mut verdict).unwrap().to_vec()).unwrap();
    for said in [verdict, first.end()] {
        assert!(said.contains("version"), "{said}");
    }
}
