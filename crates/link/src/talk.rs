//! A proved connection over which two machines talk: one message a sealed record.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use trust::{HandshakeError, LinkHandshake, RecordOpener, RecordSealer, TrustError};

use crate::establish::{LinkError, Timed, secured};
use crate::links::LOOKS;

/// The most that a record carries.
pub(crate) const RECORD_BYTES: usize = 1 << 14;

/// A proved connection, and what goes over it.
pub(crate) struct Talk {
    socket: Timed,
    sealer: RecordSealer,
    opener: RecordOpener,
    /// Records that are sealed and not written.
    sealed: Vec<u8>,
    doing: &'static str,
}

impl Talk {
    /// Proves both ends; the other's key.
    pub(crate) fn begin(
        stream: TcpStream,
        handshake: LinkHandshake,
        deadline: Instant,
        doing: &'static str,
    ) -> Result<(Self, [u8; 32]), LinkError> {
        let (mut socket, link) = secured(stream, handshake, deadline)?;
        socket.doing = doing;
        // As the links of groups do, whose steps are predicted by what a probe finds.
        socket.looks = LOOKS;
        let (sealer, opener) = (link.sealer, link.opener);
        Ok((Self { socket, sealer, opener, sealed: Vec::new(), doing }, link.peer_key))
    }

    /// What follows is large: whoever waits sleeps.
    pub(crate) fn sleeps(&mut self) {
        self.socket.looks = 0;
    }

    /// What follows must be done within `time`.
    pub(crate) fn within(&mut self, time: Duration) {
        self.socket.deadline = Instant::now() + time;
    }

    /// Seals a message, to be written with the next.
    pub(crate) fn add(&mut self, message: &[u8]) {
        self.sealer.seal(message, &mut self.sealed);
    }

    /// Writes what was added.
    pub(crate) fn flush(&mut self) -> Result<(), LinkError> {
        let written = self.socket.write(&self.sealed);
        self.sealed.clear();
        written
    }

    /// Sends a message.
    pub(crate) fn say(&mut self, message: &[u8]) -> Result<(), LinkError> {
        self.add(message);
        self.flush()
    }

    /// The next message, given to `take`.
    pub(crate) fn hear<T>(&mut self, take: impl FnOnce(&[u8]) -> T) -> Result<T, LinkError> {
        let mut record = self.socket.record()?;
        let plain = self.opener.open(&mut record).map_err(|error| match error {
            // In TLS 1.3 the dialling side is done before the other has looked at its key.
            TrustError::Alert { .. } => LinkError::Handshake(HandshakeError::KeyRefused),
            error => LinkError::Broken { doing: self.doing, detail: error.to_string() },
        })?;
        Ok(take(plain))
    }
}
