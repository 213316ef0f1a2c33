//! A cursor over bytes from a peer: every read is checked, and a failure says what was being read.

/// Why bytes from a peer are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes ended early.
    #[error("{what}: {needed} bytes needed, {left} left")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// How many bytes it takes.
        needed: usize,
        /// How many were there.
        left: usize,
    },
    /// A value outside its closed set or range.
    #[error("{what}: {value} is not allowed ({allowed})")]
    Value {
        /// What was being read.
        what: &'static str,
        /// What was found.
        value: u64,
        /// What would have been right.
        allowed: &'static str,
    },
    /// Text that is not UTF-8.
    #[error("{what}: not UTF-8")]
    Utf8 {
        /// What was being read.
        what: &'static str,
    },
    /// JSON of another shape.
    #[error("{what}: {detail}")]
    Json {
        /// What was being read.
        what: &'static str,
        /// What the parser said (positions and field names, never values).
        detail: String,
    },
    /// Bytes after the end.
    #[error("{what}: {extra} bytes after its end")]
    Trailing {
        /// What was being read.
        what: &'static str,
        /// How many there are.
        extra: usize,
    },
}

/// Reads little-endian values off the front of a slice.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn take(&mut self, what: &'static str, count: usize) -> Result<&'a [u8], DecodeError> {
        if count > self.rest.len() {
            return Err(DecodeError::Truncated { what, needed: count, left: self.rest.len() });
        }
        let (head, rest) = self.rest.split_at(count);
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], DecodeError> {
        let bytes = self.take(what, N)?;
        Ok(std::array::from_fn(|i| bytes[i]))
    }

    pub(crate) fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        Ok(self.array::<1>(what)?[0])
    }

    pub(crate) fn u16(&mut self, what: &'static str) -> Result<u16, DecodeError> {
        self.array(what).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        self.array(what).map(u64::from_le_bytes)
    }

    pub(crate) fn u128(&mut self, what: &'static str) -> Result<u128, DecodeError> {
        self.array(what).map(u128::from_le_bytes)
    }

    /// `u32` length, then so many bytes.
    pub(crate) fn block(&mut self, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let length = self.u32(what)? as usize;
        self.take(what, length)
    }

    /// `u32` count, then so many `u32`.
    pub(crate) fn tokens(&mut self, what: &'static str) -> Result<Vec<u32>, DecodeError> {
        let count = self.u32(what)? as usize;
        // The product is checked before anything is allocated: a count is a claim until its bytes are there.
        let needed = count.checked_mul(4).ok_or(DecodeError::Value {
            what,
            value: count as u64,
            allowed: "a count whose bytes fit in memory",
        })?;
        let bytes = self.take(what, needed)?;
        Ok(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    pub(crate) fn text(&mut self, what: &'static str) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.block(what)?).map_err(|_| DecodeError::Utf8 { what })
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    pub(crate) fn end(&self, what: &'static str) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            extra => Err(DecodeError::Trailing { what, extra }),
        }
    }
}

/// Appends a block: `u32` length, then the bytes.
///
/// # Panics
/// Where `bytes` is longer than 4 GiB, which no frame limit lets through.
pub(crate) fn put_block(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&u32::try_from(bytes.len()).expect("frames are far below 4 GiB").to_le_bytes());
    out.extend_from_slice(bytes);
}

/// Appends `u32` count, then the tokens.
pub(crate) fn put_tokens(out: &mut Vec<u8>, tokens: &[u32]) {
    out.extend_from_slice(&u32::try_from(tokens.len()).expect("frames are far below 4 GiB").to_le_bytes());
    out.extend(tokens.iter().flat_map(|t| t.to_le_bytes()));
}
