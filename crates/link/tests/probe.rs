//! Probes over real sockets: who is there is proved, and nobody else is let in or believed.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::net::{SocketAddr, TcpListener};
use std::thread::JoinHandle;
use std::time::Duration;

use link::{Answering, Asked, LinkError, answer, probe};
use trust::MachineKeys;

const ASKED: Asked =
    Asked { busy: false, bulk: Some(true), reach: Duration::from_secs(10), measure: Duration::from_secs(20) };

/// Answers one probe.
fn door(
    keys: MachineKeys,
    known: Vec<[u8; 32]>,
    busy: bool,
) -> (SocketAddr, JoinHandle<Result<(), LinkError>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let within = Duration::from_secs(30);
        answer(stream, &keys, Answering { known, busy, within, library: None })
    });
    (address, thread)
}

#[test]
fn a_machine_that_is_there_is_proved_and_measured() {
    let (here, there) = (MachineKeys::generate(), MachineKeys::generate());
    let key = there.signing_key();
    let (address, answered) = door(there, vec![here.signing_key()], false);
    let probed = probe(address, &here, key, ASKED).unwrap();
    answered.join().unwrap().unwrap();
    assert!(probed.round_trip > Duration::ZERO && probed.from.unwrap().ip().is_loopback());
    assert!(probed.bytes_per_s.unwrap() > 1e6, "{probed:?}");
}

#[test]
fn nothing_large_is_sent_where_either_end_serves_unless_it_was_never_measured() {
    for (ours, theirs, bulk, measured) in [
        (false, true, Some(false), false),
        (true, false, Some(false), false),
        (false, false, Some(false), true),
        (true, true, Some(true), true),
        (false, false, None, false),
    ] {
        let (here, there) = (MachineKeys::generate(), MachineKeys::generate());
        let key = there.signing_key();
        let (address, _answered) = door(there, vec![here.signing_key()], theirs);
        let probed = probe(address, &here, key, Asked { busy: ours, bulk, ..ASKED }).unwrap();
        assert_eq!(probed.bytes_per_s.is_some(), measured, "{ours} {theirs} {bulk:?}");
    }
}

#[test]
fn a_stranger_is_neither_believed_nor_let_in() {
    let keys = || MachineKeys::generate();
    let (here, there, other) = (keys(), keys(), keys());
    // Somebody else answers where `there` should.
    let (address, _) = door(other, vec![here.signing_key()], false);
    let error = probe(address, &here, there.signing_key(), ASKED).unwrap_err();
    assert!(matches!(error, LinkError::Handshake(_)), "{error}");
    // Whoever is not on the list is not answered.
    let key = there.signing_key();
    let (address, answered) = door(there, vec![keys().signing_key()], false);
    let error = probe(address, &here, key, ASKED).unwrap_err();
    assert!(answered.join().unwrap().is_err());
    assert!(matches!(error, LinkError::Handshake(_) | LinkError::Broken { .. }), "{error}");
    // Nobody is there at all.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = probe(free, &here, key, ASKED).unwrap_err();
    assert!(matches!(error, LinkError::Connect(_)), "{error}");
}

#[test]
fn bytes_that_are_no_handshake_end_the_answer() {
    use std::io::Write;
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 3, 0xff, 0xff], &[0; 5], &[]] {
        let (address, answered) = door(MachineKeys::generate(), vec![[7; 32]], false);
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(bytes).unwrap();
        drop(stream);
        assert!(answered.join().unwrap().is_err());
    }
}
