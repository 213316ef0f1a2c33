//! Whether one machine reaches another at an address, who answers there, and how well: a connection of its own, proved as
//! the links of groups are, some small messages, and where it is asked for a short bulk.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use trust::{LinkHandshake, MachineKeys};
use wire::link::ProbeMessage;

use crate::establish::LinkError;
use crate::talk::{RECORD_BYTES, Talk};

/// Small messages of a probe: enough for a median.
const PINGS: u32 = 9;
/// What one record of a bulk carries, its two bytes of head included.
const PIECE_BYTES: usize = RECORD_BYTES;
/// The first bulk. Sizes double until one takes long enough to be measured.
const BULK_FIRST: usize = 64 << 10;
/// All bulks of one probe together, at most.
const BULK_BYTES_MAX: usize = 8 << 20;
/// A bulk that takes so long is a measurement.
const BULK_LONG: Duration = Duration::from_millis(15);
/// Messages that are answered on one connection, bulk's pieces included.
const MESSAGES_MAX: usize = 64 + BULK_BYTES_MAX / (PIECE_BYTES - 2) + 64;

/// What a probe is to find out.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// Whether this machine serves requests at the moment.
    pub busy: bool,
    /// Whether bandwidth is measured: always, or where neither end serves.
    pub bulk: Option<bool>,
    /// How long it may take to be connected and proved.
    pub reach: Duration,
    /// And everything after that.
    pub measure: Duration,
}

/// What was found.
#[derive(Debug, Clone, Copy)]
pub struct Probed {
    /// The median.
    pub round_trip: Duration,
    /// The longest less the shortest.
    pub jitter: Duration,
    /// There, where it was measured.
    pub bytes_per_s: Option<f64>,
    /// From which of this machine's addresses.
    pub from: Option<SocketAddr>,
}

/// A proved connection, and what a probe says over it.
struct Probing<'a>(&'a mut Talk);

impl Probing<'_> {
    fn say(&mut self, message: ProbeMessage<'_>) -> Result<(), LinkError> {
        self.0.say(&message.encode())
    }

    /// The next message, given to `take`.
    fn hear<T>(&mut self, take: impl FnOnce(ProbeMessage<'_>) -> T) -> Result<T, LinkError> {
        self.0.hear(|bytes| read(bytes).map(take))?
    }

    fn hello(&mut self) -> Result<bool, LinkError> {
        self.hear(|message| match message {
            ProbeMessage::Hello { busy } => Ok(busy),
            _ => Err(LinkError::Hello("it begins with something else".to_owned())),
        })?
    }

    fn ping(&mut self, number: u32) -> Result<Duration, LinkError> {
        let began = Instant::now();
        self.say(ProbeMessage::Ping(number))?;
        self.hear(|message| match message {
            ProbeMessage::Pong(back) if back == number => Ok(()),
            _ => Err(LinkError::Hello(format!("no answer to ping {number}"))),
        })??;
        Ok(began.elapsed())
    }

    /// Sends `bytes`, and waits until they are there.
    fn bulk(&mut self, bytes: usize) -> Result<Duration, LinkError> {
        let filler = [0x5a; PIECE_BYTES - 2];
        let began = Instant::now();
        let mut left = bytes;
        while left > 0 {
            let piece = left.min(filler.len());
            left -= piece;
            self.say(ProbeMessage::Bulk { last: left == 0, filler: &filler[..piece] })?;
        }
        self.hear(|message| match message {
            ProbeMessage::Took(took) if took == bytes as u64 => Ok(()),
            _ => Err(LinkError::Hello(format!("not all of {bytes} bytes were taken"))),
        })??;
        Ok(began.elapsed())
    }
}

fn read(bytes: &[u8]) -> Result<ProbeMessage<'_>, LinkError> {
    ProbeMessage::decode(bytes).map_err(|e| LinkError::Hello(e.to_string()))
}

/// Dials `address` and finds out whether the machine with `key` is there, and how well it is reached. Blocks for
/// `asked.reach` and `asked.measure` at most.
///
/// # Errors
/// Nobody answers, somebody else does, or not in time.
pub fn probe(
    address: SocketAddr,
    keys: &MachineKeys,
    key: [u8; 32],
    asked: Asked,
) -> Result<Probed, LinkError> {
    let deadline = Instant::now() + asked.reach;
    let stream = TcpStream::connect_timeout(&address, asked.reach)
        .map_err(|error| LinkError::Connect(error.to_string()))?;
    let from = stream.local_addr().ok();
    let (mut link, _) = Talk::begin(stream, LinkHandshake::dial(keys, key), deadline, "probing")?;
    let mut talk = Probing(&mut link);
    talk.say(ProbeMessage::Hello { busy: asked.busy })?;
    let is_busy = talk.hello()? || asked.busy;
    talk.0.within(asked.measure);
    let mut trips = (0..PINGS).map(|number| talk.ping(number)).collect::<Result<Vec<Duration>, _>>()?;
    trips.sort_unstable();
    let round_trip = trips[trips.len() / 2];
    let jitter = trips[trips.len() - 1] - trips[0];
    let bytes_per_s = match asked.bulk {
        Some(always) if always || !is_busy => Some(bandwidth(&mut talk, trips[0])?),
        _ => None,
    };
    Ok(Probed { round_trip, jitter, bytes_per_s, from })
}

/// Bytes a second, from bulks that double until one takes long.
fn bandwidth(talk: &mut Probing<'_>, round_trip: Duration) -> Result<f64, LinkError> {
    let (mut bytes, mut sent) = (BULK_FIRST, 0);
    loop {
        let took = talk.bulk(bytes)?;
        sent += bytes;
        if took >= BULK_LONG || sent + 2 * bytes > BULK_BYTES_MAX {
            // The answer's way back is no part of it.
            let carrying = took.saturating_sub(round_trip).max(Duration::from_micros(1));
            return Ok(bytes as f64 / carrying.as_secs_f64());
        }
        bytes *= 2;
    }
}

/// Answers a probe that began with the message `first`.
pub(crate) fn answer(talk: &mut Talk, first: &[u8], busy: bool) -> Result<(), LinkError> {
    let ProbeMessage::Hello { .. } = read(first)? else {
        return Err(LinkError::Hello("it begins with something else".to_owned()));
    };
    let mut talk = Probing(talk);
    talk.say(ProbeMessage::Hello { busy })?;
    let mut taken = 0u64;
    for _ in 0..MESSAGES_MAX {
        let reply = talk.hear(|message| match message {
            ProbeMessage::Ping(number) => Ok(Some(ProbeMessage::Pong(number))),
            ProbeMessage::Bulk { last, filler } => {
                taken += filler.len() as u64;
                Ok(last.then(|| ProbeMessage::Took(std::mem::take(&mut taken))))
            }
            _ => Err(LinkError::Hello("an answer where a question belongs".to_owned())),
        });
        let reply = match reply {
            Ok(reply) => reply?,
            // Whoever asked knows enough.
            Err(LinkError::Broken { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        if let Some(reply) = reply {
            talk.say(reply)?;
        }
    }
    Ok(())
}
