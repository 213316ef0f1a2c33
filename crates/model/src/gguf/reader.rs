//! The file's structure: header, metadata, tensor infos, data. Nothing is believed before it is held to what is left.

use std::collections::{HashMap, HashSet};
use std::fmt;

use super::value::{ARRAY, Array, TEXT, Value, fixed, fixed_bytes};
use crate::checkpoint::{CheckpointError, DType, TensorView};

const MAGIC: [u8; 4] = *b"GGUF";
/// More than any tensor has; the format itself knows four.
const SIDES_MAX: u32 = 4;
/// Keys and names beyond it are damage.
const NAME_BYTES_MAX: usize = 65_535;
const ALIGNMENT_DEFAULT: u64 = 32;

/// Whether `bytes` begin like a GGUF file.
pub fn is_gguf(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

/// A parsed GGUF file over borrowed bytes.
pub struct GgufFile<'a> {
    file_name: String,
    metadata: HashMap<&'a str, Value<'a>>,
    tensors: Vec<Entry<'a>>,
    tensor_bytes: u64,
}

struct Entry<'a> {
    name: &'a str,
    /// Outermost first: the file has them the other way round.
    shape: Vec<usize>,
    kind: u32,
    /// What the bytes are, where this build reads it.
    stored: Option<DType>,
    bytes: &'a [u8],
}

/// A tensor's entry before its place is known to exist.
struct Info<'a> {
    name: &'a str,
    shape: Vec<usize>,
    kind: u32,
    offset: u64,
}

/// Bytes that are left, and where they begin.
struct Cursor<'f, 'a> {
    file: &'f str,
    whole: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'_, 'a> {
    fn take(&mut self, len: u64, what: &str) -> Result<&'a [u8], CheckpointError> {
        let left = self.whole.len() - self.at;
        match usize::try_from(len) {
            Ok(len) if len <= left => {
                self.at += len;
                Ok(&self.whole[self.at - len..self.at])
            }
            _ => Err(self.bad(format!(
                "at byte {}, {what} would take {len} bytes, and {left} are left: the file is truncated or damaged; \
                 fetch or copy it again",
                self.at
            ))),
        }
    }

    fn u32(&mut self, what: &str) -> Result<u32, CheckpointError> {
        let bytes = self.take(4, what)?;
        Ok(u32::from_le_bytes(bytes.try_into().expect("four bytes were taken")))
    }

    fn u64(&mut self, what: &str) -> Result<u64, CheckpointError> {
        let bytes = self.take(8, what)?;
        Ok(u64::from_le_bytes(bytes.try_into().expect("eight bytes were taken")))
    }

    fn text(&mut self, what: &str) -> Result<&'a str, CheckpointError> {
        let len = self.u64(what)?;
        let bytes = self.take(len, what)?;
        std::str::from_utf8(bytes)
            .map_err(|_| self.bad(format!("at byte {}, {what} is not UTF-8", self.at - bytes.len())))
    }

    fn name(&mut self, what: &str) -> Result<&'a str, CheckpointError> {
        let at = self.at;
        let name = self.text(what)?;
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            let words =
                format!("at byte {at}, {what} has {} bytes, the limit is {NAME_BYTES_MAX}", name.len());
            return Err(self.bad(words));
        }
        Ok(name)
    }

    /// A count of things that take at least `each` bytes.
    fn count(&mut self, each: u64, what: &str) -> Result<usize, CheckpointError> {
        let count = self.u64(what)?;
        let left = (self.whole.len() - self.at) as u64;
        if count.checked_mul(each).is_none_or(|bytes| bytes > left) {
            return Err(self.bad(format!(
                "it announces {count} {what}, which do not fit into the {left} bytes that are left: the file is truncated \
                 or damaged; fetch or copy it again"
            )));
        }
        Ok(usize::try_from(count).expect("no more than there are bytes"))
    }

    fn value(&mut self, key: &str) -> Result<Value<'a>, CheckpointError> {
        let kind = self.u32("a value's type")?;
        self.value_of(kind, key)
    }

    fn value_of(&mut self, kind: u32, key: &str) -> Result<Value<'a>, CheckpointError> {
        match kind {
            TEXT => Ok(Value::Text(self.text(key)?)),
            ARRAY => self.array(key).map(Value::Array),
            _ => {
                let Some(size) = fixed_bytes(kind) else {
                    return Err(self.bad(format!("metadata {key:?} is of type {kind}, which is none")));
                };
                let bytes = self.take(size as u64, key)?;
                fixed(kind, bytes)
                    .ok_or_else(|| self.bad(format!("metadata {key:?} is neither true nor false")))
            }
        }
    }

    fn array(&mut self, key: &str) -> Result<Array<'a>, CheckpointError> {
        let kind = self.u32(key)?;
        if kind == ARRAY {
            return Err(
                self.bad(format!("metadata {key:?} is an array of arrays, which models have no use for"))
            );
        }
        let Some(size) = fixed_bytes(kind).or((kind == TEXT).then_some(8)) else {
            return Err(self.bad(format!("metadata {key:?} is an array of type {kind}, which is none")));
        };
        let len = self.count(size as u64, "values in an array")?;
        let start = self.at;
        if kind == TEXT {
            for _ in 0..len {
                self.text(key)?;
            }
        } else {
            self.take((len * size) as u64, key)?;
        }
        Ok(Array { kind, len, bytes: &self.whole[start..self.at] })
    }

    fn info(&mut self) -> Result<Info<'a>, CheckpointError> {
        let name = self.name("a tensor's name")?;
        let bad = |detail: String| CheckpointError::BadTensor {
            file: self.file.to_owned(),
            tensor: shown(name),
            detail,
        };
        let sides = self.u32("a tensor's sides")?;
        if sides == 0 || sides > SIDES_MAX {
            return Err(bad(format!("has {sides} sides, the limit is {SIDES_MAX}")));
        }
        let mut shape = Vec::with_capacity(SIDES_MAX as usize);
        for _ in 0..sides {
            let side = self.u64("a tensor's side")?;
            shape.push(usize::try_from(side).map_err(|_| bad(format!("has a side of {side}")))?);
        }
        shape.reverse();
        Ok(Info { name, shape, kind: self.u32("a tensor's type")?, offset: self.u64("a tensor's place")? })
    }

    fn bad(&self, detail: String) -> CheckpointError {
        CheckpointError::BadHeader { file: self.file.to_owned(), detail }
    }
}

/// Names come from the file: an error shows no more of one than helps.
fn shown(name: &str) -> String {
    name.chars().take(128).collect()
}

impl<'a> GgufFile<'a> {
    /// Reads everything but the tensors' numbers; `file_name` is what errors call the file.
    ///
    /// # Errors
    /// Anything that is not exactly a GGUF file of version 2 or 3: damage, truncation, names that come twice, tensors
    /// that overlap, lie out of the file or beside their alignment.
    pub fn parse(file_name: &str, bytes: &'a [u8]) -> Result<Self, CheckpointError> {
        let mut cursor = Cursor { file: file_name, whole: bytes, at: 0 };
        if cursor.take(4, "the format's mark")? != MAGIC {
            return Err(cursor.bad("it does not begin with GGUF".to_owned()));
        }
        let version = cursor.u32("the version")?;
        if !(2..=3).contains(&version) {
            let swapped = version.swap_bytes();
            let why = match swapped {
                2 | 3 => "is for big-endian machines; convert it".to_owned(),
                _ => format!("is version {version} of the format, this build reads 2 and 3; convert it anew"),
            };
            return Err(cursor.bad(why));
        }
        let tensors = cursor.u64("the count of tensors")?;
        let entries = cursor.count(8 + 4 + 1, "metadata")?;
        let mut metadata = HashMap::with_capacity(entries);
        for _ in 0..entries {
            let key = cursor.name("a metadata key")?;
            let value = cursor.value(key)?;
            if metadata.insert(key, value).is_some() {
                return Err(cursor.bad(format!("metadata {:?} comes twice", shown(key))));
            }
        }
        let left = (bytes.len() - cursor.at) as u64;
        // A name of one byte, one side, type and place.
        if tensors.checked_mul(8 + 1 + 4 + 8 + 4 + 8).is_none_or(|needed| needed > left) {
            return Err(cursor.bad(format!(
                "it announces {tensors} tensors, which do not fit into the {left} bytes that are left: the file is \
                 truncated or damaged; fetch or copy it again"
            )));
        }
        let infos = (0..tensors).map(|_| cursor.info()).collect::<Result<Vec<_>, _>>()?;
        let (tensors, tensor_bytes) = place(&cursor, alignment(&cursor, &metadata)?, infos)?;
        Ok(Self { file_name: file_name.to_owned(), metadata, tensors, tensor_bytes })
    }

    /// What errors call this file.
    pub fn file_name(&self) -> &str {
        &self.file_name
    }

    /// The metadata called `key`.
    pub fn get(&self, key: &str) -> Option<Value<'a>> {
        self.metadata.get(key).copied()
    }

    /// The tensors' names, in the file's order.
    pub fn names(&self) -> impl Iterator<Item = &'a str> {
        self.tensors.iter().map(|tensor| tensor.name)
    }

    /// How many bytes its tensors take.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensor_bytes
    }

    /// The shape of the tensor called `name`, outermost side first.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.iter().find(|tensor| tensor.name == name).map(|tensor| tensor.shape.as_slice())
    }

    /// The tensor called `name`, if there is one.
    ///
    /// # Errors
    /// It is of a type that weights may not have.
    pub fn tensor(&self, name: &str) -> Result<Option<TensorView<'_>>, CheckpointError> {
        self.tensors.iter().position(|tensor| tensor.name == name).map(|place| self.view(place)).transpose()
    }

    /// The `place`-th of [`GgufFile::names`].
    pub(super) fn view(&self, place: usize) -> Result<TensorView<'_>, CheckpointError> {
        let entry = &self.tensors[place];
        match entry.stored {
            Some(dtype) => Ok(TensorView::new(entry.name, dtype, &entry.shape, entry.bytes)),
            None => Err(CheckpointError::UnsupportedType {
                file: self.file_name.clone(),
                tensor: entry.name.to_owned(),
                found: kind_name(entry.kind).map_or_else(|| format!("type {}", entry.kind), str::to_owned),
            }),
        }
    }
}

impl fmt::Debug for GgufFile<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} metadata, {} tensors)", self.file_name, self.metadata.len(), self.tensors.len())
    }
}

fn alignment(cursor: &Cursor<'_, '_>, metadata: &HashMap<&str, Value<'_>>) -> Result<u64, CheckpointError> {
    let Some(value) = metadata.get("general.alignment") else { return Ok(ALIGNMENT_DEFAULT) };
    match value.unsigned() {
        Some(alignment) if alignment.is_power_of_two() && alignment <= 1 << 20 => Ok(alignment),
        _ => Err(cursor.bad("general.alignment is no power of two up to a MiB".to_owned())),
    }
}

/// Each tensor's bytes, and how many all of them take.
fn place<'a>(
    cursor: &Cursor<'_, 'a>,
    alignment: u64,
    infos: Vec<Info<'a>>,
) -> Result<(Vec<Entry<'a>>, u64), CheckpointError> {
    let whole = cursor.whole;
    // Without tensors there is no data, and nothing is padded.
    let start = (cursor.at as u64).next_multiple_of(alignment);
    let room = (whole.len() as u64).saturating_sub(start);
    let mut names = HashSet::with_capacity(infos.len());
    let mut extents = Vec::with_capacity(infos.len());
    let mut tensors = Vec::with_capacity(infos.len());
    for info in infos {
        let bad = |detail: String| CheckpointError::BadTensor {
            file: cursor.file.to_owned(),
            tensor: shown(info.name),
            detail,
        };
        if !names.insert(info.name) {
            return Err(bad("comes twice".to_owned()));
        }
        if info.offset % alignment != 0 {
            return Err(bad(format!("begins at {}, which is no multiple of {alignment}", info.offset)));
        }
        let Some((elements, block)) = kind_block(info.kind) else {
            return Err(CheckpointError::UnsupportedType {
                file: cursor.file.to_owned(),
                tensor: shown(info.name),
                found: format!("type {}", info.kind),
            });
        };
        let columns = *info.shape.last().expect("it has at least one side");
        if !columns.is_multiple_of(elements) {
            return Err(bad(format!("has rows of {columns}, which are no whole blocks of {elements}")));
        }
        let rows = info.shape[..info.shape.len() - 1]
            .iter()
            .try_fold(1u64, |all, &side| all.checked_mul(side as u64));
        let bytes =
            rows.and_then(|rows| rows.checked_mul((columns / elements) as u64)?.checked_mul(block as u64));
        let Some(bytes) = bytes else {
            return Err(bad(format!("has shape {:?}, whose size overflows", info.shape)));
        };
        let end = info.offset.checked_add(bytes).filter(|&end| end <= room);
        let Some(end) = end else {
            return Err(bad(format!(
                "has {bytes} bytes from byte {} of the tensors on, but the file has only {room} for them: it is truncated; \
                 fetch or copy it again",
                info.offset
            )));
        };
        extents.push((info.offset, end, info.name));
        let at = |offset: u64| usize::try_from(start + offset).expect("no more than there are bytes");
        tensors.push(Entry {
            name: info.name,
            stored: dtype(info.kind),
            shape: info.shape,
            kind: info.kind,
            bytes: &whole[at(info.offset).min(whole.len())..at(end).min(whole.len())],
        });
    }
    let all = held_apart(cursor, extents)?;
    Ok((tensors, all))
}

/// How many bytes all of `extents` (start, end, name) take, once no two of them overlap.
fn held_apart(cursor: &Cursor<'_, '_>, mut extents: Vec<(u64, u64, &str)>) -> Result<u64, CheckpointError> {
    extents.sort_unstable();
    for two in extents.windows(2) {
        if two[1].0 < two[0].1 {
            return Err(CheckpointError::BadTensor {
                file: cursor.file.to_owned(),
                tensor: shown(two[1].2),
                detail: format!("begins at {}, within tensor {:?}", two[1].0, shown(two[0].2)),
            });
        }
    }
    Ok(extents.iter().map(|(start, end, _)| end - start).sum())
}

/// GGML's types: number, name, elements and bytes of a block.
const KINDS: &[(u32, &str, usize, usize)] = &[
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 40),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
];

fn kind_block(kind: u32) -> Option<(usize, usize)> {
    KINDS.iter().find(|known| known.0 == kind).map(|known| (known.2, known.3))
}

fn kind_name(kind: u32) -> Option<&'static str> {
    KINDS.iter().find(|known| known.0 == kind).map(|known| known.1)
}

fn dtype(kind: u32) -> Option<DType> {
    DTYPES.iter().find(|(number, _)| *number == kind).map(|(_, dtype)| *dtype)
}

/// How GGUF numbers the types that this build reads.
const DTYPES: [(u32, DType); 14] = [
    (0, DType::F32),
    (1, DType::F16),
    (30, DType::BF16),
    (2, DType::Q4_0),
    (3, DType::Q4_1),
    (6, DType::Q5_0),
    (7, DType::Q5_1),
    (8, DType::Q8_0),
    (10, DType::Q2K),
    (11, DType::Q3K),
    (12, DType::Q4K),
    (13, DType::Q5K),
    (14, DType::Q6K),
    (39, DType::Mxfp4),
];

/// GGUF's number for a type that it has.
pub(super) fn kind_of(dtype: DType) -> Option<u32> {
    DTYPES.iter().find(|(_, known)| *known == dtype).map(|(number, _)| *number)
}
