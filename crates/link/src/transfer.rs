//! A model's files from one machine to another: who gives says what it has, piece by piece, and sends what it is asked
//! for; who takes believes no piece that does not have the hash of the manifest.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use trust::{LinkHandshake, MachineKeys};
use wire::link::{MANIFEST_BYTES_MAX, Manifest, REFUSAL_BYTES_MAX, TransferMessage};

use crate::establish::LinkError;
use crate::talk::{RECORD_BYTES, Talk};

/// What one record of data carries beside its kind.
const DATA_BYTES: usize = RECORD_BYTES - 1;
/// Read, sealed and written at once: large enough that system calls do not count, small enough to stop soon.
const BATCH_BYTES: usize = 16 * DATA_BYTES;
/// Each step of either side: whoever is slower than this is taken for gone.
const STEP: Duration = Duration::from_secs(20);
/// Who takes may write and verify for so long between two questions.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// How often whoever waits for an offer hears that it is being made.
const PREPARING_EVERY: Duration = Duration::from_secs(2);
/// Making an offer takes no longer than this: a terabyte is read in it.
const PREPARING_MAX: Duration = Duration::from_secs(3600);
/// Pieces that one question asks for, at most.
pub(crate) const PIECES_MAX: u32 = 64;

/// Models whose files may be given to others.
pub trait Library: Sync {
    /// What `key` may have of `model`. `preparing` is told from time to time, in hundredths, how far that is, and says
    /// whether to go on.
    ///
    /// # Errors
    /// Why it may not, in words.
    fn open<'a>(
        &'a self,
        key: [u8; 32],
        model: &str,
        preparing: &mut dyn FnMut(u8) -> bool,
    ) -> Result<Box<dyn Giving + 'a>, String>;
}

/// A model whose files are given to one machine.
pub trait Giving {
    /// Its manifest, encoded.
    fn manifest(&self) -> Arc<[u8]>;

    /// Fills `into` with what is at `offset` of a file.
    ///
    /// # Errors
    /// It is not there any more, in words.
    fn read(&mut self, file: usize, offset: u64, into: &mut [u8]) -> Result<(), String>;

    /// So many bytes took so long: waits as long as it should be before the next; whether to go on at all.
    fn rest(&mut self, bytes: usize, took: Duration) -> bool;
}

/// Why a model's files are not had from a machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// The link.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// It does not give them.
    #[error("it refuses: {0}")]
    Refused(String),
    /// What it says of them cannot be believed.
    #[error("its manifest is refused: {0}")]
    Manifest(String),
    /// What it sends is not what it says.
    #[error(
        "piece {piece} of {path} does not have the hash that its manifest says: its disk damages it, or it lies"
    )]
    Wrong {
        /// Of which file.
        path: String,
        /// Which piece.
        piece: usize,
    },
    /// Whoever takes wants no more.
    #[error("it was not wanted any more")]
    Stopped,
}

impl TransferError {
    /// Whether this machine's word is worth nothing: another is asked.
    pub fn is_wrong(&self) -> bool {
        matches!(self, Self::Manifest(_) | Self::Wrong { .. })
    }
}

/// A model that is being taken.
pub struct Taking {
    talk: Talk,
    manifest: Manifest,
    root: [u8; 32],
}

/// Asks the machine with `key` at `address` for `model`. `reach` is how long it may take to be connected and proved;
/// `preparing` is told how far the other is with reading what it has for the first time, and says whether to go on.
///
/// # Errors
/// See [`TransferError`].
pub fn want(
    address: SocketAddr,
    keys: &MachineKeys,
    key: [u8; 32],
    (model, reach): (&str, Duration),
    preparing: &mut dyn FnMut(u8) -> bool,
) -> Result<Taking, TransferError> {
    let deadline = Instant::now() + reach;
    let stream =
        TcpStream::connect_timeout(&address, reach).map_err(|error| LinkError::Connect(error.to_string()))?;
    let (mut talk, _) = Talk::begin(stream, LinkHandshake::dial(keys, key), deadline, "taking a model")?;
    talk.sleeps();
    talk.say(&TransferMessage::Want(model).encode())?;
    let last = Instant::now() + PREPARING_MAX;
    let (root, bytes) = loop {
        talk.within(STEP);
        let offer = talk.hear(|message| match read(message)? {
            TransferMessage::Preparing(percent) => Ok(Err(percent)),
            TransferMessage::Offer { root, bytes } => Ok(Ok((root, bytes as usize))),
            TransferMessage::Refused(why) => Err(TransferError::Refused(plain(why))),
            _ => Err(unexpected()),
        })??;
        match offer {
            Ok(offer) => break offer,
            Err(_) if Instant::now() > last => {
                return Err(TransferError::Refused("it prepares for ever".into()));
            }
            Err(percent) if !preparing(percent) => return Err(TransferError::Stopped),
            Err(_) => {}
        }
    };
    if bytes > MANIFEST_BYTES_MAX {
        let why = format!("it has {bytes} bytes; {MANIFEST_BYTES_MAX} are allowed");
        return Err(TransferError::Manifest(why));
    }
    let mut encoded = Vec::new();
    while encoded.len() < bytes {
        talk.within(STEP);
        talk.hear(|message| {
            data(message, bytes - encoded.len()).map(|data| encoded.extend_from_slice(data))
        })??;
    }
    if trust::sha256(&encoded) != root {
        return Err(TransferError::Manifest("it does not have the hash that it was offered with".to_owned()));
    }
    let manifest = Manifest::decode(&encoded).map_err(|error| TransferError::Manifest(error.to_string()))?;
    Ok(Taking { talk, manifest, root })
}

impl Taking {
    /// What the model's files are.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The manifest's hash: machines that say the same have the same.
    pub fn root(&self) -> [u8; 32] {
        self.root
    }

    /// Takes the pieces of a file from `first` on, up to `count` of them; as many as one question may ask for. Each that
    /// has its hash is given to `each`, which says whether to go on; how many were.
    ///
    /// # Errors
    /// See [`TransferError`].
    pub fn take(
        &mut self,
        file: usize,
        (first, count): (usize, usize),
        each: &mut dyn FnMut(usize, &[u8]) -> bool,
    ) -> Result<usize, TransferError> {
        let of = self.manifest.files.get(file).map_or(0, |file| file.pieces.len());
        let count = count.min(PIECES_MAX as usize).min(of.saturating_sub(first));
        if count == 0 {
            return Ok(0);
        }
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let get = TransferMessage::Get { file: number(file), first: number(first), count: number(count) };
        self.talk.within(STEP);
        self.talk.say(&get.encode())?;
        let mut bytes = Vec::with_capacity(self.manifest.piece_bytes as usize);
        for piece in first..first + count {
            let length = self.manifest.piece_len(file, piece);
            bytes.clear();
            while bytes.len() < length {
                self.talk.within(STEP);
                let left = length - bytes.len();
                self.talk.hear(|message| data(message, left).map(|data| bytes.extend_from_slice(data)))??;
            }
            let of = &self.manifest.files[file];
            if trust::sha256(&bytes) != of.pieces[piece] {
                return Err(TransferError::Wrong { path: of.path.clone(), piece });
            }
            if !each(piece, &bytes) {
                return Err(TransferError::Stopped);
            }
        }
        Ok(count)
    }
}

fn read(message: &[u8]) -> Result<TransferMessage<'_>, TransferError> {
    TransferMessage::decode(message).map_err(|e| TransferError::Link(LinkError::Hello(e.to_string())))
}

fn unexpected() -> TransferError {
    TransferError::Link(LinkError::Hello("something else than was asked for".to_owned()))
}

/// What a message carries, where it is data and not more than is wanted.
fn data(message: &[u8], most: usize) -> Result<&[u8], TransferError> {
    match read(message)? {
        TransferMessage::Data(data) if !data.is_empty() && data.len() <= most => Ok(data),
        TransferMessage::Refused(why) => Err(TransferError::Refused(plain(why))),
        _ => Err(unexpected()),
    }
}

/// Another machine's words, for a message.
fn plain(why: &str) -> String {
    why.chars().filter(|c| !c.is_control()).take(300).collect()
}

/// Gives whoever proved `key` and said `first` what it asks for, until it is gone.
pub(crate) fn serve(
    talk: &mut Talk,
    first: &[u8],
    key: [u8; 32],
    library: &dyn Library,
) -> Result<(), LinkError> {
    let wanted = match TransferMessage::decode(first) {
        Ok(TransferMessage::Want(model)) => model,
        Ok(_) => return Err(LinkError::Hello("it begins with something else".to_owned())),
        Err(error) => {
            refuse(talk, &error.to_string())?;
            return Err(LinkError::Hello(error.to_string()));
        }
    };
    talk.sleeps();
    let mut said = Instant::now();
    let mut preparing = |percent: u8| {
        if said.elapsed() < PREPARING_EVERY {
            return true;
        }
        said = Instant::now();
        talk.within(STEP);
        talk.say(&TransferMessage::Preparing(percent.min(100)).encode()).is_ok()
    };
    let mut giving = match library.open(key, wanted, &mut preparing) {
        Ok(giving) => giving,
        Err(why) => return refuse(talk, &why),
    };
    let encoded = giving.manifest();
    let Ok(manifest) = Manifest::decode(&encoded) else {
        return refuse(talk, "its manifest cannot be read");
    };
    let bytes = u32::try_from(encoded.len()).unwrap_or(u32::MAX);
    talk.within(STEP);
    talk.say(&TransferMessage::Offer { root: trust::sha256(&encoded), bytes }.encode())?;
    for batch in encoded.chunks(BATCH_BYTES) {
        send(talk, batch)?;
    }
    loop {
        talk.within(IDLE_MAX);
        let asked = talk.hear(|message| match TransferMessage::decode(message) {
            Ok(TransferMessage::Get { file, first, count }) => Some((file as usize, first as usize, count)),
            _ => None,
        });
        let (file, first, count) = match asked {
            Ok(Some(asked)) => asked,
            Ok(None) => return Err(LinkError::Hello("an answer where a question belongs".to_owned())),
            // Whoever asked has enough.
            Err(LinkError::Broken { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let pieces = manifest.files.get(file).map_or(0, |file| file.pieces.len());
        if count == 0 || count > PIECES_MAX || first.saturating_add(count as usize) > pieces {
            return refuse(talk, "it has no such pieces");
        }
        let offset = first as u64 * u64::from(manifest.piece_bytes);
        let length: u64 =
            (first..first + count as usize).map(|piece| manifest.piece_len(file, piece) as u64).sum();
        if let Err(why) = give(talk, giving.as_mut(), (file, offset, length), manifest.piece_bytes)? {
            return refuse(talk, &why);
        }
    }
}

/// Sends a part of a file; why not all of it, where that is so.
fn give(
    talk: &mut Talk,
    giving: &mut dyn Giving,
    (file, offset, length): (usize, u64, u64),
    piece_bytes: u32,
) -> Result<Result<(), String>, LinkError> {
    let mut batch = vec![0; BATCH_BYTES.min(usize::try_from(length).unwrap_or(BATCH_BYTES))];
    let (mut sent, piece_bytes) = (0u64, u64::from(piece_bytes));
    while sent < length {
        let began = Instant::now();
        // A record belongs to one piece.
        let of_piece = piece_bytes - sent % piece_bytes;
        let now = (batch.len() as u64).min(length - sent).min(of_piece) as usize;
        if let Err(why) = giving.read(file, offset + sent, &mut batch[..now]) {
            return Ok(Err(why));
        }
        send(talk, &batch[..now])?;
        sent += now as u64;
        if !giving.rest(now, began.elapsed()) {
            return Ok(Err("it is leaving".to_owned()));
        }
    }
    Ok(Ok(()))
}

fn send(talk: &mut Talk, batch: &[u8]) -> Result<(), LinkError> {
    talk.within(STEP);
    for data in batch.chunks(DATA_BYTES) {
        talk.add(&TransferMessage::Data(data).encode());
    }
    talk.flush()
}

fn refuse(talk: &mut Talk, why: &str) -> Result<(), LinkError> {
    let mut end = why.len().min(REFUSAL_BYTES_MAX);
    while !why.is_char_boundary(end) {
        end -= 1;
    }
    talk.within(STEP);
    talk.say(&TransferMessage::Refused(&why[..end]).encode())
}
