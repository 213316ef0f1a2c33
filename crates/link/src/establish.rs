//! One connection from a bare socket to a proved one: the TLS handshake, both sides' hello, both sides' verdict.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use base::{Incarnation, MachineId};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use trust::{
    HandshakeError, LinkHandshake, MachineKeys, RecordOpener, RecordSealer, SealedLink, TrustError,
    record_bytes,
};
use wire::link::{HELLO_BYTES_MAX, LinkHello};

/// Why one try to connect two ranks failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// Nobody answers there.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// The connection ended, or came to a stand, in the middle.
    #[error("the connection broke while {doing}: {detail}")]
    Broken {
        /// What was going on.
        doing: &'static str,
        /// What the system said.
        detail: String,
    },
    /// Who is there is not who should be, or does not speak this protocol.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// What came after the handshake cannot be read.
    #[error("its hello cannot be read: {0}")]
    Hello(String),
    /// Both are who they should be and do not mean the same group.
    #[error("{what} differs: {ours} here, {theirs} there")]
    Differs {
        /// What.
        what: &'static str,
        /// This side's.
        ours: String,
        /// The other side's.
        theirs: String,
    },
    /// The other side found something that differs.
    #[error("refused by the other end: {0}")]
    Refused(String),
}

impl LinkError {
    /// Whether trying again cannot help: both ends mean the same life of the same group, and differ in what it is.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Differs { what, .. } => {
                matches!(*what, "number of ranks" | "rank" | "model" | "shard map" | "mode" | "element type")
            }
            Self::Hello(_) => true,
            Self::Refused(why) => why.starts_with(FINAL),
            _ => false,
        }
    }
}

/// How a verdict begins that no second try changes.
const FINAL: &str = "finally: ";

/// Who is expected at the other end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected {
    pub(crate) rank: usize,
    pub(crate) machine: MachineId,
    pub(crate) incarnation: Incarnation,
    pub(crate) key: [u8; 32],
}

/// A proved connection.
pub(crate) struct Established {
    pub(crate) rank: usize,
    pub(crate) control: bool,
    pub(crate) stream: TcpStream,
    pub(crate) sealer: RecordSealer,
    pub(crate) opener: RecordOpener,
}

/// A socket with a deadline.
pub(crate) struct Timed {
    pub(crate) stream: TcpStream,
    pub(crate) deadline: Instant,
    pub(crate) doing: &'static str,
    /// How often it looks for more before it sleeps.
    pub(crate) looks: u32,
}

impl Timed {
    fn left(&self) -> Result<Duration, LinkError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let detail = "the other end took too long".into();
            return Err(LinkError::Broken { doing: self.doing, detail });
        }
        Ok(left)
    }

    pub(crate) fn broken(&self, error: &std::io::Error) -> LinkError {
        let detail = match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => "the other end took too long".into(),
            ErrorKind::UnexpectedEof => "the other end closed it".into(),
            _ => error.to_string(),
        };
        LinkError::Broken { doing: self.doing, detail }
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), LinkError> {
        let left = self.left()?;
        self.stream
            .set_write_timeout(Some(left))
            .and_then(|()| self.stream.write_all(bytes))
            .map_err(|e| self.broken(&e))
    }

    /// What is there by the last look, if anything.
    fn looked(&self, bytes: &mut [u8]) -> Option<std::io::Result<usize>> {
        (0..self.looks).find_map(|_| match recv(&self.stream, &mut *bytes, RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN) => {
                std::hint::spin_loop();
                None
            }
            Err(error) => Some(Err(error.into())),
            Ok((count, _)) => Some(Ok(count)),
        })
    }

    /// Fills `bytes`; every wait counts against the one deadline.
    fn read(&mut self, bytes: &mut [u8]) -> Result<(), LinkError> {
        let mut filled = 0;
        while filled < bytes.len() {
            let left = self.left()?;
            let read = self.looked(&mut bytes[filled..]).unwrap_or_else(|| {
                self.stream.set_read_timeout(Some(left)).and_then(|()| self.stream.read(&mut bytes[filled..]))
            });
            match read {
                Ok(0) => return Err(self.broken(&ErrorKind::UnexpectedEof.into())),
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(self.broken(&error)),
            }
        }
        Ok(())
    }

    /// One record, header and all: never a byte more, since what follows may be another's to read.
    pub(crate) fn record(&mut self) -> Result<Vec<u8>, LinkError> {
        let mut record = vec![0; 5];
        self.read(&mut record)?;
        let length = record_bytes(&record)
            .map_err(|e| HandshakeError::Tls(e.to_string()))?
            .expect("five bytes are a record's header");
        record.resize(length, 0);
        self.read(&mut record[5..])?;
        Ok(record)
    }
}

/// Brings `stream` up as the side that dialled `peer`.
pub(crate) fn dialled(
    stream: TcpStream,
    keys: &MachineKeys,
    hello: &LinkHello,
    peer: Expected,
    deadline: Instant,
) -> Result<Established, LinkError> {
    let handshake = LinkHandshake::dial(keys, peer.key);
    let link = establish(stream, handshake, hello, &[peer], deadline)?;
    // Who dials says what the connection is for; the other side's hello says nothing of it.
    Ok(Established { control: hello.control, ..link })
}

/// Brings `stream` up as the side that was dialled, by one of `peers`.
pub(crate) fn accepted(
    stream: TcpStream,
    keys: &MachineKeys,
    hello: &LinkHello,
    peers: &[Expected],
    deadline: Instant,
) -> Result<Established, LinkError> {
    let handshake = LinkHandshake::accept(keys, peers.iter().map(|p| p.key).collect());
    establish(stream, handshake, hello, peers, deadline)
}

fn establish(
    stream: TcpStream,
    handshake: LinkHandshake,
    hello: &LinkHello,
    peers: &[Expected],
    deadline: Instant,
) -> Result<Established, LinkError> {
    let (mut socket, link) = secured(stream, handshake, deadline)?;
    // A key that comes twice on the roster is the same machine twice: the hello says which of its ranks this is.
    let (mut sealer, mut opener) = (link.sealer, link.opener);
    socket.doing = "exchanging hellos";
    let mut say = |socket: &mut Timed, bytes: &[u8]| {
        let mut record = Vec::new();
        sealer.seal(bytes, &mut record);
        socket.write(&record)
    };
    let mut hear = |socket: &mut Timed| {
        let mut record = socket.record()?;
        let plain = opener.open(&mut record).map_err(|error| match error {
            // In TLS 1.3 the dialling side is done before the other has looked at its key.
            TrustError::Alert { .. } => LinkError::Handshake(HandshakeError::KeyRefused),
            // Changed on the way: whoever is there may be who should be, and another try may go through.
            error => LinkError::Broken { doing: socket.doing, detail: error.to_string() },
        })?;
        if plain.len() > HELLO_BYTES_MAX {
            return Err(LinkError::Hello(format!("{} bytes, at most {HELLO_BYTES_MAX}", plain.len())));
        }
        Ok(plain.to_vec())
    };
    say(&mut socket, &hello.encode())?;
    let (rank, control, verdict) = match judge(&hear(&mut socket)?, hello, peers, link.peer_key) {
        Ok((rank, control)) => (rank, control, Ok(())),
        Err(error) => (0, false, Err(error)),
    };
    let sentence = verdict.as_ref().map_or_else(
        |error| {
            let mut sentence = if error.is_final() { FINAL.to_owned() } else { String::new() };
            sentence.push_str(&error.to_string());
            sentence.chars().take(HELLO_BYTES_MAX / 4).collect()
        },
        |()| String::new(),
    );
    // This side's own finding is what it reports, whether or not the other side hears it or found the same.
    let said = say(&mut socket, sentence.as_bytes());
    verdict?;
    said?;
    let theirs = hear(&mut socket)?;
    if !theirs.is_empty() {
        return Err(LinkError::Refused(String::from_utf8_lossy(&theirs).into_owned()));
    }
    Ok(Established { rank, control, stream: socket.stream, sealer, opener })
}

/// A connection after its handshake: who is at its other end is proved.
pub(crate) fn secured(
    stream: TcpStream,
    mut handshake: LinkHandshake,
    deadline: Instant,
) -> Result<(Timed, SealedLink), LinkError> {
    let mut socket = Timed { stream, deadline, doing: "shaking hands", looks: 0 };
    socket
        .stream
        .set_nonblocking(false)
        .and_then(|()| socket.stream.set_nodelay(true))
        .map_err(|e| socket.broken(&e))?;
    shake(&mut socket, &mut handshake)?;
    Ok((socket, handshake.finish()?))
}

/// Carries the handshake's records both ways until it is done, or one side refuses.
fn shake(socket: &mut Timed, handshake: &mut LinkHandshake) -> Result<(), LinkError> {
    let mut out = Vec::new();
    loop {
        out.clear();
        handshake.outgoing(&mut out);
        if !out.is_empty() {
            socket.write(&out)?;
        }
        if handshake.is_done() {
            return Ok(());
        }
        let record = socket.record()?;
        if let Err(error) = handshake.record(&record) {
            // The alert tells the other side why; whether it still listens does not matter.
            out.clear();
            handshake.outgoing(&mut out);
            let _ = socket.write(&out);
            return Err(error.into());
        }
    }
}

/// Who says `bytes`, and on which lane; or why that cannot be.
fn judge(
    bytes: &[u8],
    ours: &LinkHello,
    peers: &[Expected],
    key: [u8; 32],
) -> Result<(usize, bool), LinkError> {
    let theirs = LinkHello::decode(bytes).map_err(|e| LinkError::Hello(e.to_string()))?;
    let known = |peer: &&Expected| peer.key == key;
    let said = |peer: &&Expected| peer.rank == theirs.rank as usize;
    let peer = peers.iter().filter(known).find(said).or_else(|| peers.iter().find(known));
    let Some(peer) = peer else { return Err(HandshakeError::WrongKey { found: theirs.machine }.into()) };
    // The one who dials says which lane it is; the other takes either.
    let ours = LinkHello { control: theirs.control, ..ours.clone() };
    let rank = u32::try_from(peer.rank).unwrap_or(u32::MAX);
    if let Some((what, ours, theirs)) = ours.disagreement(&theirs, peer.machine, rank) {
        return Err(LinkError::Differs { what, ours, theirs });
    }
    if theirs.incarnation != peer.incarnation {
        let (ours, theirs) = (peer.incarnation.0.to_string(), theirs.incarnation.0.to_string());
        return Err(LinkError::Differs { what: "start of the machine", ours, theirs });
    }
    Ok((peer.rank, theirs.control))
}
