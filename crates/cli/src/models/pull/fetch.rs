//! One file: gone on with where it was left, held to its length and hash, and moved to its name once it is whole.

use std::fs::{self, File as DiskFile, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use indicatif::ProgressBar;
use provider::beside;
use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode, Url};

use super::hub::{Failure, File, Hub, Tries, unreachable};

/// Wrong contents are fetched anew so often: a cache on the way may be stale once.
const WRONG_MAX: u32 = 2;

/// A file to fetch.
pub(super) struct Fetch {
    pub(super) hub: Arc<Hub>,
    pub(super) url: Url,
    pub(super) file: File,
    /// Where it lies once it is whole; beside it, with `.part`, until then.
    pub(super) place: PathBuf,
    pub(super) bar: ProgressBar,
}

/// What the content so far hashes to.
#[derive(Clone)]
enum Hash {
    Sha256(trust::Sha256),
    Blob(trust::GitBlob),
    /// The hub names none: its length is all there is to go by.
    Length,
}

impl Hash {
    fn of(file: &File) -> Self {
        match (&file.sha256, &file.blob) {
            (Some(_), _) => Self::Sha256(trust::Sha256::new()),
            (None, Some(_)) => Self::Blob(trust::GitBlob::new(file.size)),
            (None, None) => Self::Length,
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Blob(hash) => hash.update(bytes),
            Self::Length => {}
        }
    }

    /// What differs from what the hub says, in words.
    fn differs(self, file: &File) -> Option<String> {
        let (found, said) = match self {
            Self::Sha256(hash) => (trust::hex(&hash.finish()), file.sha256.clone()?),
            Self::Blob(hash) => (hash.finish(), file.blob.clone()?),
            Self::Length => return None,
        };
        (found != said).then(|| format!("what came has the hash {found}, and the hub says {said}"))
    }
}

/// A file that is being written.
struct Part {
    path: PathBuf,
    file: DiskFile,
    bytes: u64,
    hash: Hash,
}

impl Fetch {
    /// Fetches it; how many bytes came over the network.
    pub(super) async fn run(self) -> anyhow::Result<u64> {
        if fs::metadata(&self.place).is_ok_and(|found| found.len() == self.file.size) {
            // Its name was given to it after it was verified.
            self.bar.inc(self.file.size);
            return Ok(0);
        }
        let (file, bar) = (self.file.clone(), self.bar.clone());
        self.fetch().await.with_context(|| file.path.clone()).inspect_err(|_| bar.abandon())
    }

    async fn fetch(self) -> anyhow::Result<u64> {
        if let Some(folder) = self.place.parent() {
            fs::create_dir_all(folder).with_context(|| format!("making the folder {}", folder.display()))?;
        }
        let mut part = self.open()?;
        self.bar.inc(part.bytes);
        let (mut tries, mut wrong, mut fetched) = (Tries::new(self.hub.patience), 0, 0u64);
        let went_on = part.bytes > 0;
        loop {
            if part.bytes == self.file.size {
                match part.hash.clone().differs(&self.file) {
                    None => break,
                    Some(why) if wrong < WRONG_MAX => {
                        // The part of an earlier time may be to blame; what comes now is hashed from its first byte.
                        tracing::warn!(file = self.file.path, why, went_on, "fetched anew");
                        wrong += 1;
                        self.again(&mut part)?;
                    }
                    Some(why) => {
                        drop(fs::remove_file(&part.path));
                        bail!("{why}, {} times: the hub or something on the way damages it", wrong + 1);
                    }
                }
            }
            let before = part.bytes;
            let outcome = self.take(&mut part).await;
            fetched += part.bytes.saturating_sub(before);
            if part.bytes > before {
                tries.progress();
            }
            match outcome {
                Ok(()) => {}
                Err(Failure::Never(why)) => bail!(why),
                Err(Failure::Again { detail, pause }) => tries.wait(&detail, pause).await?,
            }
        }
        part.file.sync_all().context("writing it to the disk")?;
        fs::rename(&part.path, &self.place).with_context(|| format!("naming it {}", self.place.display()))?;
        Ok(fetched)
    }

    /// What an earlier time left, read once for its hash.
    fn open(&self) -> anyhow::Result<Part> {
        let path = beside(&self.place);
        let said = || format!("opening {}", path.display());
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(said)?;
        let (mut hash, mut bytes) = (Hash::of(&self.file), 0u64);
        if file.metadata().with_context(said)?.len() > self.file.size {
            file.set_len(0).with_context(said)?;
        }
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer).with_context(said)? {
                0 => break,
                read => {
                    hash.update(&buffer[..read]);
                    bytes += read as u64;
                }
            }
        }
        Ok(Part { path, file, bytes, hash })
    }

    /// From the first byte.
    fn again(&self, part: &mut Part) -> anyhow::Result<()> {
        part.file.set_len(0).and_then(|()| part.file.seek(SeekFrom::Start(0))).context("beginning anew")?;
        self.bar.set_position(self.bar.position().saturating_sub(part.bytes));
        (part.bytes, part.hash) = (0, Hash::of(&self.file));
        Ok(())
    }

    /// One answer of the hub, as far as it comes.
    async fn take(&self, part: &mut Part) -> Result<(), Failure> {
        if part.bytes == self.file.size {
            return Ok(());
        }
        let mut answer = self.hub.file(&self.url, part.bytes).await?;
        if !goes_on(&answer, part.bytes) {
            // A hub that knows no ranges, or gave another one.
            self.again(part).map_err(|error| Failure::Never(format!("{error:#}")))?;
            if answer.status() != StatusCode::OK {
                return Err(Failure::again(format!("the hub gives another part ({})", answer.status())));
            }
        }
        loop {
            match answer.chunk().await {
                Ok(Some(piece)) => self.append(part, &piece)?,
                Ok(None) if part.bytes < self.file.size => {
                    let (have, size) = (part.bytes, self.file.size);
                    return Err(Failure::again(format!("the hub ended after {have} of {size} bytes")));
                }
                Ok(None) => return Ok(()),
                Err(error) => return Err(unreachable(&error)),
            }
        }
    }

    fn append(&self, part: &mut Part, piece: &[u8]) -> Result<(), Failure> {
        let size = self.file.size;
        if part.bytes + piece.len() as u64 > size {
            return Err(Failure::Never(format!("the hub gives more than the {size} bytes that it lists")));
        }
        // What is on the disk is what is gone on with: a disk that is full keeps it.
        part.file.write_all(piece).map_err(|error| {
            Failure::Never(format!(
                "writing {}: {error}; make room, and the same command goes on",
                part.path.display()
            ))
        })?;
        part.hash.update(piece);
        part.bytes += piece.len() as u64;
        self.bar.inc(piece.len() as u64);
        Ok(())
    }
}

/// Whether an answer begins at byte `from`.
fn goes_on(answer: &Response, from: u64) -> bool {
    match answer.status() {
        StatusCode::OK => from == 0,
        StatusCode::PARTIAL_CONTENT => {
            let range = answer.headers().get(CONTENT_RANGE).and_then(|text| text.to_str().ok());
            let first =
                range.and_then(|text| text.trim().strip_prefix("bytes ")?.split('-').next()?.parse().ok());
            first == Some(from)
        }
        _ => false,
    }
}
