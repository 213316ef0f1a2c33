//! The safetensors format: `u64` little-endian header length, a JSON header, the tensors back to back.
//!
//! Our own reader of <https://github.com/huggingface/safetensors> (format section of its README), so that every
//! offset is checked here and every refusal names file and tensor.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::{CheckpointError, DType, TensorView};

/// The format's own limit. A header of this size would describe about a million tensors.
const HEADER_BYTES_MAX: u64 = 100_000_000;
/// Ours: no tensor of a language model has more sides.
const RANK_MAX: usize = 8;

/// A parsed safetensors file over borrowed bytes.
pub struct SafetensorsFile<'a> {
    file_name: String,
    tensors: Vec<Entry>,
    /// After the header.
    data: &'a [u8],
}

struct Entry {
    name: String,
    stored: String,
    shape: Vec<usize>,
    begin: usize,
    end: usize,
}

#[derive(Deserialize, Serialize)]
struct EntryJson {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The header's entries in file order. A map would hide a name that comes twice.
struct HeaderJson(Vec<(String, EntryJson)>);

impl<'de> Deserialize<'de> for HeaderJson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = HeaderJson;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<HeaderJson, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        let entry = map
                            .next_value::<EntryJson>()
                            .map_err(|e| serde::de::Error::custom(format_args!("tensor {name:?}: {e}")))?;
                        entries.push((name, entry));
                    }
                }
                Ok(HeaderJson(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

impl<'a> SafetensorsFile<'a> {
    /// Reads the header of `bytes` and holds every entry to the file's length; `file_name` is what errors call it.
    ///
    /// # Errors
    /// Anything that is not exactly a safetensors file: truncated or trailing bytes, a header that is too long or no
    /// JSON, names that come twice, offsets that overflow, overlap, leave holes or do not fit shape and type.
    pub fn parse(file_name: &str, bytes: &'a [u8]) -> Result<Self, CheckpointError> {
        let file = || file_name.to_owned();
        let found = bytes.len() as u64;
        let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
            return Err(CheckpointError::Truncated { file: file(), expected: 8, found });
        };
        let length = u64::from_le_bytes(*length);
        if length > HEADER_BYTES_MAX {
            return Err(CheckpointError::HeaderTooLong {
                file: file(),
                found: length,
                limit: HEADER_BYTES_MAX,
            });
        }
        let header_bytes = usize::try_from(length).expect("the limit fits any address space");
        if header_bytes > rest.len() {
            return Err(CheckpointError::Truncated { file: file(), expected: 8 + length, found });
        }
        let (header, data) = rest.split_at(header_bytes);
        let HeaderJson(entries) = serde_json::from_slice(header)
            .map_err(|e| CheckpointError::BadHeader { file: file(), detail: format!("bad header: {e}") })?;

        let mut names = HashSet::new();
        let mut tensors = Vec::with_capacity(entries.len());
        for (name, entry) in entries {
            let bad =
                |detail: String| CheckpointError::BadTensor { file: file(), tensor: name.clone(), detail };
            if !names.insert(name.clone()) {
                return Err(bad("comes twice".to_owned()));
            }
            tensors.push(
                check_entry(&entry, data.len())
                    .map(|(shape, begin, end)| Entry {
                        name: name.clone(),
                        stored: entry.dtype,
                        shape,
                        begin,
                        end,
                    })
                    .map_err(bad)?,
            );
        }
        tensors.sort_by_key(|t| (t.begin, t.end));
        check_contiguous(file_name, &tensors, data.len())?;
        Ok(Self { file_name: file(), tensors, data })
    }

    /// What errors call this file.
    pub fn file_name(&self) -> &str {
        &self.file_name
    }

    /// The tensors' names, in the order of their places in the file.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|t| t.name.as_str())
    }

    /// How many bytes its tensors take.
    pub fn tensor_bytes(&self) -> u64 {
        self.data.len() as u64
    }

    /// The tensor called `name`, if there is one.
    ///
    /// # Errors
    /// Not there, or of a type that weights may not have.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>, CheckpointError> {
        match self.tensors.iter().position(|t| t.name == name) {
            Some(place) => self.view(place),
            None => {
                Err(CheckpointError::MissingTensor { tensor: name.to_owned(), file: self.file_name.clone() })
            }
        }
    }

    /// The name of the `place`-th of [`SafetensorsFile::names`].
    pub(super) fn name(&self, place: usize) -> &str {
        &self.tensors[place].name
    }

    /// As it is stored: type, shape, bytes.
    pub(super) fn raw(&self, place: usize) -> (&str, &[usize], &'a [u8]) {
        let entry = &self.tensors[place];
        (&entry.stored, &entry.shape, &self.data[entry.begin..entry.end])
    }

    /// The `place`-th of [`SafetensorsFile::names`].
    pub(super) fn view(&self, place: usize) -> Result<TensorView<'_>, CheckpointError> {
        let entry = &self.tensors[place];
        let dtype = match entry.stored.as_str() {
            "F32" => DType::F32,
            "F16" => DType::F16,
            "BF16" => DType::BF16,
            _ => {
                return Err(CheckpointError::UnsupportedType {
                    file: self.file_name.clone(),
                    tensor: entry.name.clone(),
                    found: entry.stored.clone(),
                });
            }
        };
        Ok(TensorView::new(&entry.name, dtype, &entry.shape, &self.data[entry.begin..entry.end]))
    }
}

impl fmt::Debug for SafetensorsFile<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} tensors)", self.file_name, self.tensors.len())
    }
}

/// Bytes an element of a stored type takes; nothing for types unknown to us or smaller than a byte.
fn element_bytes(stored: &str) -> Option<u64> {
    Some(match stored {
        "F64" | "I64" | "U64" | "C64" => 8,
        "F32" | "I32" | "U32" => 4,
        "F16" | "BF16" | "I16" | "U16" => 2,
        "I8" | "U8" | "BOOL" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" => 1,
        _ => return None,
    })
}

fn check_entry(entry: &EntryJson, data_bytes: usize) -> Result<(Vec<usize>, usize, usize), String> {
    let size = element_bytes(&entry.dtype).ok_or_else(|| {
        format!(
            "is stored as {:?}, which is no type that can be read",
            entry.dtype.chars().take(32).collect::<String>()
        )
    })?;
    if entry.shape.len() > RANK_MAX {
        return Err(format!("has {} sides, the limit is {RANK_MAX}", entry.shape.len()));
    }
    let (begin, end) = entry.data_offsets;
    if begin > end {
        return Err(format!("begins at {begin}, after its end at {end}"));
    }
    if end > data_bytes as u64 {
        return Err(format!(
            "ends at byte {end} of the tensors, but the file has only {data_bytes}; fetch it again"
        ));
    }
    let needed = entry.shape.iter().try_fold(size, |product, &side| product.checked_mul(side));
    let Some(needed) = needed else {
        return Err(format!("has shape {:?}, whose size overflows", entry.shape));
    };
    if needed != end - begin {
        return Err(format!(
            "has shape {:?} of {}, which takes {needed} bytes, but lies in {}",
            entry.shape,
            entry.dtype,
            end - begin
        ));
    }
    let fits =
        |value: u64| usize::try_from(value).map_err(|_| format!("has a side of {value}, too long here"));
    let shape = entry.shape.iter().map(|&side| fits(side)).collect::<Result<Vec<_>, _>>()?;
    Ok((shape, fits(begin)?, fits(end)?))
}

/// `tensors` are sorted by where they begin: each must begin where the one before ends.
fn check_contiguous(file_name: &str, tensors: &[Entry], data: usize) -> Result<(), CheckpointError> {
    let mut at = 0;
    for tensor in tensors {
        if tensor.begin != at {
            let what =
                if tensor.begin < at { "overlaps the tensor before it" } else { "leaves a hole before it" };
            return Err(CheckpointError::BadTensor {
                file: file_name.to_owned(),
                tensor: tensor.name.clone(),
                detail: format!("begins at {}, which {what} (expected {at})", tensor.begin),
            });
        }
        at = tensor.end;
    }
    match data - at {
        0 => Ok(()),
        extra => Err(CheckpointError::Trailing { file: file_name.to_owned(), extra: extra as u64 }),
    }
}

/// A tensor that is to be written.
#[derive(Debug, Clone, Copy)]
pub struct StoredTensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// As the format spells its type.
    pub stored: &'a str,
    /// Outermost first.
    pub shape: &'a [usize],
    /// How many bytes it takes.
    pub bytes: u64,
}

/// The bytes before the tensors of a safetensors file that holds `tensors` (name, type, shape) in this order, and
/// how long the whole file will be. Padded with spaces so that the tensors begin at a multiple of 64.
///
/// # Panics
/// Where the sizes overflow: the caller chose them.
pub fn safetensors_header(tensors: &[(String, DType, Vec<usize>)]) -> (Vec<u8>, u64) {
    let stored = |(name, dtype, shape): &'_ (String, DType, Vec<usize>)| {
        let elements = shape.iter().try_fold(1u64, |product, &side| product.checked_mul(side as u64));
        let bytes = elements.and_then(|n| n.checked_mul(dtype.block().1 as u64));
        (name.clone(), *dtype, shape.clone(), bytes.expect("the caller chose sizes that fit"))
    };
    let owned: Vec<_> = tensors.iter().map(stored).collect();
    let tensors: Vec<StoredTensor<'_>> = owned
        .iter()
        .map(|(name, dtype, shape, bytes)| StoredTensor { name, stored: dtype.name(), shape, bytes: *bytes })
        .collect();
    safetensors_file_header(&tensors)
}

/// As [`safetensors_header`], for tensors of any type.
///
/// # Panics
/// Where the sizes overflow: the caller chose them.
pub fn safetensors_file_header(tensors: &[StoredTensor<'_>]) -> (Vec<u8>, u64) {
    let mut header = String::from(r#"{"__metadata__":{"format":"pt"}"#);
    let mut at = 0u64;
    for tensor in tensors {
        let end = at.checked_add(tensor.bytes).expect("the caller chose sizes that fit");
        let entry = EntryJson {
            dtype: tensor.stored.to_owned(),
            shape: tensor.shape.iter().map(|&side| side as u64).collect(),
            data_offsets: (at, end),
        };
        let name = serde_json::to_string(tensor.name).expect("a text is JSON");
        let entry = serde_json::to_string(&entry).expect("texts and numbers are JSON");
        header.push_str(&format!(",{name}:{entry}"));
        at = end;
    }
    header.push('}');
    while (header.len() + 8) % 64 != 0 {
        header.push(' ');
    }
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    let total = bytes.len() as u64 + at;
    (bytes, total)
}
