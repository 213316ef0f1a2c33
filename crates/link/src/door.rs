//! Whoever dials a machine beside its groups: its first message says what for.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use trust::{LinkHandshake, MachineKeys};
use wire::link::TransferMessage;

use crate::establish::LinkError;
use crate::talk::Talk;
use crate::{probe, transfer};

/// What a machine answers with.
pub struct Answering<'a> {
    /// Whoever is let in, by key.
    pub known: Vec<[u8; 32]>,
    /// Whether it serves requests at the moment.
    pub busy: bool,
    /// How long a probe may take, and everybody's first message.
    pub within: Duration,
    /// The models that it gives others the files of, where it does.
    pub library: Option<&'a dyn transfer::Library>,
}

/// Answers whoever dialled: a probe within its time, a transfer for as long as it goes on.
///
/// # Errors
/// Whoever dialled is nobody of those known, or does not speak as it should.
pub fn answer(stream: TcpStream, keys: &MachineKeys, answering: Answering<'_>) -> Result<(), LinkError> {
    let Answering { known, busy, within, library } = answering;
    let deadline = Instant::now() + within;
    let handshake = LinkHandshake::accept(keys, known);
    let (mut talk, key) = Talk::begin(stream, handshake, deadline, "answering")?;
    let first = talk.hear(<[u8]>::to_vec)?;
    match library {
        Some(library) if TransferMessage::is_one(&first) => transfer::serve(&mut talk, &first, key, library),
        _ => probe::answer(&mut talk, &first, busy),
    }
}
