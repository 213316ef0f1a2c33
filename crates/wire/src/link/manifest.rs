//! What a model's files are, piece by piece: two machines whose manifests are the same bytes have the same model.
//!
//! ```text
//! u16 version, u32 bytes of a piece, u32 files; then of each file
//!   u16 length and path, u64 bytes, and of each piece its SHA-256 (the last piece is shorter, an empty file has none)
//! ```
//! Numbers are little-endian. Paths are relative and plain: whoever takes a model writes them below one folder.

use crate::reader::{DecodeError, Reader};

/// The version that this build writes, and the only one it reads.
const VERSION: u16 = 1;
/// Most files of a model.
pub const MANIFEST_FILES_MAX: usize = 4096;
/// Most pieces of all its files: with these a manifest has 64 MiB.
pub const MANIFEST_PIECES_MAX: u64 = 1 << 21;
/// What all of it takes at most.
pub const MANIFEST_BYTES_MAX: usize = (MANIFEST_PIECES_MAX as usize) * 32 + (2 << 20);
/// Pieces are of a power of two between these.
const PIECE_BYTES: std::ops::RangeInclusive<u32> = (1 << 16)..=(1 << 24);
/// Longest path.
const PATH_BYTES_MAX: usize = 255;
/// Folders in a path, its file included.
const DEPTH_MAX: usize = 3;

/// A model's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Bytes of a piece.
    pub piece_bytes: u32,
    /// In the order in which they are fetched.
    pub files: Vec<ManifestFile>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestFile {
    /// Relative, with `/` between its parts.
    pub path: String,
    /// How long it is.
    pub bytes: u64,
    /// SHA-256 of each piece.
    pub pieces: Vec<[u8; 32]>,
}

impl Manifest {
    /// The bytes of a piece that suit a model of so many bytes.
    pub fn piece_bytes_for(bytes: u64) -> u32 {
        let large = |piece: &u32| bytes / u64::from(*piece) <= MANIFEST_PIECES_MAX / 8;
        [1u32 << 20, 1 << 22].into_iter().find(large).unwrap_or(1 << 24)
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// How long a piece of a file is; 0 where there is none of that number.
    pub fn piece_len(&self, file: usize, piece: usize) -> usize {
        let Some(file) = self.files.get(file) else { return 0 };
        let before = (piece as u64).saturating_mul(u64::from(self.piece_bytes));
        file.bytes.saturating_sub(before).min(u64::from(self.piece_bytes)) as usize
    }

    /// All of it, as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.piece_bytes.to_le_bytes());
        out.extend_from_slice(&u32::try_from(self.files.len()).unwrap_or(u32::MAX).to_le_bytes());
        for file in &self.files {
            out.extend_from_slice(&u16::try_from(file.path.len()).unwrap_or(u16::MAX).to_le_bytes());
            out.extend_from_slice(file.path.as_bytes());
            out.extend_from_slice(&file.bytes.to_le_bytes());
            file.pieces.iter().for_each(|hash| out.extend_from_slice(hash));
        }
        out
    }

    /// Reads one, whoever wrote it.
    ///
    /// # Errors
    /// Not a manifest, too large a one, or one with a path that leads elsewhere.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let version = reader.u16("manifest's version")?;
        if version != VERSION {
            let (what, allowed) = ("manifest's version", "1: run the same Phalanx on every machine");
            return Err(DecodeError::Value { what, value: version.into(), allowed });
        }
        let piece_bytes = reader.u32("bytes of a piece")?;
        if !PIECE_BYTES.contains(&piece_bytes) || !piece_bytes.is_power_of_two() {
            let (what, allowed) = ("bytes of a piece", "a power of two from 65536 to 16777216");
            return Err(DecodeError::Value { what, value: piece_bytes.into(), allowed });
        }
        let count = reader.u32("files of a model")? as usize;
        if count == 0 || count > MANIFEST_FILES_MAX {
            let (what, allowed) = ("files of a model", "1 to 4096");
            return Err(DecodeError::Value { what, value: count as u64, allowed });
        }
        let (mut files, mut pieces) = (Vec::with_capacity(count), 0u64);
        for _ in 0..count {
            let length = usize::from(reader.u16("length of a path")?);
            let path = std::str::from_utf8(reader.take("a path", length)?)
                .map_err(|_| DecodeError::Utf8 { what: "a path" })?;
            if !is_plain_path(path) {
                return Err(refused(path, "a relative path of plain names is allowed"));
            }
            let bytes = reader.u64("bytes of a file")?;
            let of_file = bytes.div_ceil(u64::from(piece_bytes));
            pieces = pieces.saturating_add(of_file);
            if pieces > MANIFEST_PIECES_MAX {
                let (what, allowed) = ("pieces of a model", "2097152 at most");
                return Err(DecodeError::Value { what, value: pieces, allowed });
            }
            let hashes = reader.take("hashes of a file", of_file as usize * 32)?;
            let hashes = hashes.chunks_exact(32).map(|hash| std::array::from_fn(|at| hash[at])).collect();
            files.push(ManifestFile { path: path.to_owned(), bytes, pieces: hashes });
        }
        reader.end("manifest")?;
        apart(&files)?;
        Ok(Self { piece_bytes, files })
    }
}

/// No two files in one place, on disks that do not tell upper case from lower, too; none where another's folder is.
fn apart(files: &[ManifestFile]) -> Result<(), DecodeError> {
    let mut paths: Vec<String> = files.iter().map(|file| file.path.to_lowercase()).collect();
    paths.sort_unstable();
    let mut folders: Vec<&str> = Vec::new();
    for path in &paths {
        folders.extend(path.match_indices('/').map(|(at, _)| &path[..at]));
    }
    folders.sort_unstable();
    for (at, path) in paths.iter().enumerate() {
        if paths.get(at + 1) == Some(path) || folders.binary_search(&path.as_str()).is_ok() {
            return Err(refused(path, "another file has its place"));
        }
    }
    Ok(())
}

fn refused(path: &str, why: &str) -> DecodeError {
    let path: String = path.chars().take(80).collect();
    DecodeError::Json { what: "a manifest's path", detail: format!("{path:?} is refused: {why}") }
}

/// Whether a path leads below the folder that it is put into, and nowhere else, on every system: plain names, none hidden.
pub fn is_plain_path(path: &str) -> bool {
    path.len() <= PATH_BYTES_MAX && path.split('/').count() <= DEPTH_MAX && path.split('/').all(is_plain_name)
}

fn is_plain_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.+ ()=,@".contains(c);
    !name.is_empty()
        && !name.starts_with(['.', ' '])
        && !name.ends_with(['.', ' '])
        && name.chars().all(plain)
}

/// Whether a model of that name can be put into a folder of models, and be found there under it: `NAME` or
/// `ORGANISATION/NAME`.
pub fn is_placeable(model: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    // The Hugging Face cache has a layout of its own under such names.
    let name = |name: &str| is_plain_name(name) && !name.starts_with("models--");
    model.len() <= 128
        && model.chars().all(plain)
        && model.split('/').count() <= 2
        && model.split('/').all(name)
}
