//! A kit as bytes: one layout per content, so that its hash names it.
//!
//! `PHXKIT1\n`, then for each file that is there, in the order of [`Kit`]'s fields: a `u8` that says which (from 0),
//! its length as `u32` little-endian, its bytes.

use super::Kit;

const MAGIC: &[u8; 8] = b"PHXKIT1\n";

/// The largest tokenizers in use are below 40 MB.
pub const KIT_BYTES_MAX: usize = 128 << 20;

/// The files' names, in their order.
const FILES: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "pooling.json",
];

/// Why bytes are not a kit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KitFormatError {
    /// Something else altogether, or a later version.
    #[error("not a kit, or one of a version that this build does not know")]
    NotAKit,
    /// Too long to be one.
    #[error("a kit of {found} bytes is over the limit of {KIT_BYTES_MAX}")]
    TooLong {
        /// How long.
        found: usize,
    },
    /// Ends inside a file.
    #[error("the kit ends inside {file}")]
    Truncated {
        /// Which.
        file: &'static str,
    },
    /// A file that is unknown, comes twice or out of order.
    #[error("the kit has file number {number} where {expected} or a later one was expected")]
    OutOfOrder {
        /// Which comes.
        number: u8,
        /// Which is next.
        expected: usize,
    },
    /// A file that must be there is not.
    #[error("the kit has no {file}")]
    Missing {
        /// Which.
        file: &'static str,
    },
}

impl Kit {
    /// The kit as bytes: the same kit always gives the same.
    ///
    /// # Panics
    /// Where a file is longer than 4 GiB: such are not read in the first place.
    pub fn to_bytes(&self) -> Vec<u8> {
        let files = [
            Some(&self.config),
            self.generation_config.as_ref(),
            Some(&self.tokenizer),
            self.tokenizer_config.as_ref(),
            self.chat_template.as_ref(),
            self.pooling.as_ref(),
        ];
        let mut out = MAGIC.to_vec();
        for (number, file) in (0u8..).zip(files) {
            let Some(file) = file else { continue };
            out.push(number);
            let length = u32::try_from(file.len()).expect("no file of a kit is longer than 4 GiB");
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(file);
        }
        out
    }

    /// Reads what [`Kit::to_bytes`] wrote.
    ///
    /// # Errors
    /// Anything else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KitFormatError> {
        if bytes.len() > KIT_BYTES_MAX {
            return Err(KitFormatError::TooLong { found: bytes.len() });
        }
        let mut rest = bytes.strip_prefix(MAGIC).ok_or(KitFormatError::NotAKit)?;
        let mut files: [Option<Vec<u8>>; 6] = Default::default();
        let mut expected = 0;
        while let Some((&number, after)) = rest.split_first() {
            let place = usize::from(number);
            if place < expected || place >= FILES.len() {
                return Err(KitFormatError::OutOfOrder { number, expected });
            }
            let truncated = KitFormatError::Truncated { file: FILES[place] };
            let Some((length, after)) = after.split_first_chunk::<4>() else { return Err(truncated) };
            let Some((file, after)) = after.split_at_checked(u32::from_le_bytes(*length) as usize) else {
                return Err(truncated);
            };
            files[place] = Some(file.to_vec());
            expected = place + 1;
            rest = after;
        }
        let [config, generation_config, tokenizer, tokenizer_config, chat_template, pooling] = files;
        Ok(Self {
            config: config.ok_or(KitFormatError::Missing { file: FILES[0] })?,
            generation_config,
            tokenizer: tokenizer.ok_or(KitFormatError::Missing { file: FILES[2] })?,
            tokenizer_config,
            chat_template,
            pooling,
        })
    }
}
