//! Metadata values, borrowed from the file's bytes.

/// A value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// Any unsigned type.
    Unsigned(u64),
    /// Any signed type.
    Signed(i64),
    /// `f32` or `f64`.
    Float(f64),
    /// One byte, 0 or 1.
    Flag(bool),
    /// UTF-8.
    Text(&'a str),
    /// Values of one type.
    Array(Array<'a>),
}

/// Values of one type, not yet read one by one: their extent has been checked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Array<'a> {
    pub(super) kind: u32,
    pub(super) len: usize,
    pub(super) bytes: &'a [u8],
}

pub(super) const TEXT: u32 = 8;
pub(super) const ARRAY: u32 = 9;

/// Bytes of a value of type `kind`, where they do not depend on the value.
pub(super) fn fixed_bytes(kind: u32) -> Option<usize> {
    Some(match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        10..=12 => 8,
        _ => return None,
    })
}

/// The value of type `kind` in `bytes`, which are as many as [`fixed_bytes`] says. Flags other than 0 and 1 are none.
pub(super) fn fixed<'a>(kind: u32, bytes: &[u8]) -> Option<Value<'a>> {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let unsigned = u64::from_le_bytes(wide);
    Some(match kind {
        0 | 2 | 4 | 10 => Value::Unsigned(unsigned),
        1 => Value::Signed(i64::from(unsigned as i8)),
        3 => Value::Signed(i64::from(unsigned as i16)),
        5 => Value::Signed(i64::from(unsigned as i32)),
        11 => Value::Signed(unsigned as i64),
        6 => Value::Float(f64::from(f32::from_bits(unsigned as u32))),
        12 => Value::Float(f64::from_bits(unsigned)),
        7 => match unsigned {
            0 => Value::Flag(false),
            1 => Value::Flag(true),
            _ => return None,
        },
        _ => return None,
    })
}

impl<'a> Value<'a> {
    /// A whole number from 0.
    pub fn unsigned(self) -> Option<u64> {
        match self {
            Self::Unsigned(number) => Some(number),
            Self::Signed(number) => u64::try_from(number).ok(),
            _ => None,
        }
    }

    /// Any number.
    pub fn number(self) -> Option<f64> {
        match self {
            Self::Unsigned(number) => Some(number as f64),
            Self::Signed(number) => Some(number as f64),
            Self::Float(number) => Some(number),
            _ => None,
        }
    }

    /// A text.
    pub fn text(self) -> Option<&'a str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A flag.
    pub fn flag(self) -> Option<bool> {
        match self {
            Self::Flag(flag) => Some(flag),
            _ => None,
        }
    }

    /// An array.
    pub fn array(self) -> Option<Array<'a>> {
        match self {
            Self::Array(array) => Some(array),
            _ => None,
        }
    }
}

impl<'a> Array<'a> {
    /// How many values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The values, in order. Texts that are no UTF-8 and flags that are neither 0 nor 1 end it.
    pub fn values(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let (kind, mut rest) = (self.kind, self.bytes);
        (0..self.len).map_while(move |_| {
            if kind == TEXT {
                let (len, after) = rest.split_first_chunk::<8>()?;
                let (text, after) =
                    after.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
                rest = after;
                std::str::from_utf8(text).ok().map(Value::Text)
            } else {
                let (value, after) = rest.split_at_checked(fixed_bytes(kind)?)?;
                rest = after;
                fixed(kind, value)
            }
        })
    }
}
