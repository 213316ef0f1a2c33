//! Writes what comes before a GGUF file's tensors.

use super::reader::kind_of;
use super::value::TEXT;
use crate::checkpoint::DType;

const ALIGNMENT: u64 = 32;

/// A GGUF file's metadata and tensor infos; the tensors' bytes follow, each padded by [`GgufWriter::padding`].
#[derive(Debug, Default)]
pub struct GgufWriter {
    entries: u64,
    metadata: Vec<u8>,
    tensors: u64,
    infos: Vec<u8>,
    at: u64,
}

impl GgufWriter {
    /// Adds a text.
    pub fn text(&mut self, key: &str, value: &str) {
        self.begin(key, TEXT);
        text(&mut self.metadata, value);
    }

    /// Adds a whole number.
    pub fn unsigned(&mut self, key: &str, value: u32) {
        self.begin(key, 4);
        self.metadata.extend(value.to_le_bytes());
    }

    /// Adds a number.
    pub fn float(&mut self, key: &str, value: f32) {
        self.begin(key, 6);
        self.metadata.extend(value.to_le_bytes());
    }

    /// Adds a flag.
    pub fn flag(&mut self, key: &str, value: bool) {
        self.begin(key, 7);
        self.metadata.push(u8::from(value));
    }

    /// Adds a list of flags.
    pub fn flags(&mut self, key: &str, values: impl ExactSizeIterator<Item = bool>) {
        self.begin_array(key, 7, values.len());
        self.metadata.extend(values.map(u8::from));
    }

    /// Adds a list of texts.
    pub fn texts<'t>(&mut self, key: &str, values: impl ExactSizeIterator<Item = &'t str>) {
        self.begin_array(key, TEXT, values.len());
        for value in values {
            text(&mut self.metadata, value);
        }
    }

    /// Adds a list of whole numbers.
    pub fn signeds(&mut self, key: &str, values: impl ExactSizeIterator<Item = i32>) {
        self.begin_array(key, 5, values.len());
        for value in values {
            self.metadata.extend(value.to_le_bytes());
        }
    }

    /// Adds a list of numbers.
    pub fn floats(&mut self, key: &str, values: impl ExactSizeIterator<Item = f32>) {
        self.begin_array(key, 6, values.len());
        for value in values {
            self.metadata.extend(value.to_le_bytes());
        }
    }

    /// Adds a tensor after those that were added before; `shape` is outermost first.
    ///
    /// # Panics
    /// Where the format has no such type, or rows are no whole blocks: the caller chose them.
    pub fn tensor(&mut self, name: &str, dtype: DType, shape: &[usize]) {
        let kind = kind_of(dtype).expect("the caller chose a type that GGUF has");
        let (columns, rows) = shape.split_last().expect("a tensor has a side");
        let row = dtype.row_bytes(*columns).expect("the caller chose rows of whole blocks") as u64;
        self.tensors += 1;
        text(&mut self.infos, name);
        self.infos.extend((shape.len() as u32).to_le_bytes());
        for &side in shape.iter().rev() {
            self.infos.extend((side as u64).to_le_bytes());
        }
        self.infos.extend(kind.to_le_bytes());
        self.infos.extend(self.at.to_le_bytes());
        let bytes = row * rows.iter().map(|&side| side as u64).product::<u64>();
        self.at += bytes + Self::padding(bytes) as u64;
    }

    /// How many zero bytes follow a tensor of `bytes`.
    pub fn padding(bytes: u64) -> usize {
        (bytes.next_multiple_of(ALIGNMENT) - bytes) as usize
    }

    /// The bytes before the tensors, and how long the whole file will be.
    pub fn finish(self) -> (Vec<u8>, u64) {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend(self.tensors.to_le_bytes());
        out.extend(self.entries.to_le_bytes());
        out.extend(self.metadata);
        out.extend(self.infos);
        let padding = Self::padding(out.len() as u64);
        out.resize(out.len() + padding, 0);
        let total = out.len() as u64 + self.at;
        (out, total)
    }

    fn begin(&mut self, key: &str, kind: u32) {
        self.entries += 1;
        text(&mut self.metadata, key);
        self.metadata.extend(kind.to_le_bytes());
    }

    fn begin_array(&mut self, key: &str, kind: u32, len: usize) {
        self.begin(key, super::value::ARRAY);
        self.metadata.extend(kind.to_le_bytes());
        self.metadata.extend((len as u64).to_le_bytes());
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}
