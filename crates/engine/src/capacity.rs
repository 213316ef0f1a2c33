//! How large the KV cache is, and how long a context it holds.

use base::Bytes;

use crate::config::EngineConfig;
use crate::machine::Memory;

/// Below this a context is of no use: a short question and its answer.
const CONTEXT_MIN: u32 = 256;
/// KV memory where the system does not say how much there is.
const KV_BYTES_UNKNOWN: Bytes = Bytes(1 << 30);

/// A KV cache that fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Capacity {
    pub(crate) pages: u32,
    pub(crate) context: u32,
    /// In words, where the context is shorter than the model's for want of memory.
    pub(crate) notice: Option<String>,
}

/// Why no KV cache fits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CapacityError {
    /// The memory holds no useful context.
    #[error(
        "{allowed} of KV cache hold {holds} tokens at {per_token} each, but a context of {wanted} tokens is wanted; \
         allow {needed} or a shorter context"
    )]
    TooSmall {
        /// Memory for it.
        allowed: Bytes,
        /// Tokens that this holds.
        holds: u64,
        /// Memory that a token takes.
        per_token: Bytes,
        /// Tokens of one context.
        wanted: u32,
        /// Memory that this takes.
        needed: Bytes,
    },
    /// A context that the model was not made for.
    #[error("a context of {asked} tokens is asked for; the model has at most {model}")]
    Context {
        /// What was asked for.
        asked: u32,
        /// What the model has.
        model: u32,
    },
}

/// Sizes the cache: `per_token` bytes a token, `memory` as it is with the weights loaded.
pub(crate) fn size(
    config: &EngineConfig,
    model_context: u32,
    per_token: Bytes,
    memory: Option<Memory>,
) -> Result<Capacity, CapacityError> {
    let wanted = config.context.unwrap_or(model_context);
    if wanted > model_context || wanted == 0 {
        return Err(CapacityError::Context { asked: wanted, model: model_context });
    }
    let page_tokens = u64::from(config.page_tokens.max(1));
    let page_bytes = per_token.0.max(1) * page_tokens;
    let context_pages = u64::from(wanted).div_ceil(page_tokens);
    if per_token == Bytes::ZERO {
        // Nothing is kept for each token: pages are numbers only.
        let pages = (context_pages * EngineConfig::KV_CONTEXTS).min(u64::from(u32::MAX));
        return Ok(Capacity { pages: pages as u32, context: wanted, notice: None });
    }
    let allowed = config.kv_bytes.unwrap_or_else(|| {
        let part = memory.map_or(KV_BYTES_UNKNOWN, |memory| {
            Bytes((memory.available.0 as f64 * EngineConfig::KV_MEMORY_PART) as u64)
        });
        part.min(Bytes(context_pages * EngineConfig::KV_CONTEXTS * page_bytes))
    });
    let pages = (allowed.0 / page_bytes).min(u64::from(u32::MAX));
    if pages >= context_pages {
        return Ok(Capacity { pages: pages as u32, context: wanted, notice: None });
    }
    let holds = pages * page_tokens;
    let needed = Bytes(context_pages * page_bytes);
    if config.context.is_some() || holds < u64::from(CONTEXT_MIN.min(wanted)) {
        return Err(CapacityError::TooSmall { allowed, holds, per_token, wanted, needed });
    }
    let notice = format!(
        "the context is {holds} tokens instead of the model's {model_context}, because {allowed} of KV cache hold no \
         more; {needed} would hold all of it"
    );
    Ok(Capacity { pages: pages as u32, context: holds as u32, notice: Some(notice) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PER_TOKEN: Bytes = Bytes(1024);

    fn memory(available: u64) -> Option<Memory> {
        Some(Memory { total: Bytes(1 << 40), available: Bytes(available) })
    }

    #[test]
    fn a_small_model_gets_sixteen_contexts_and_a_large_one_a_quarter_of_memory() {
        let config = EngineConfig::default();
        let small = size(&config, 2048, PER_TOKEN, memory(8 << 30)).unwrap();
        assert_eq!((small.pages, small.context), (2048, 2048));
        let large = size(&config, 131_072, PER_TOKEN, memory(1 << 30)).unwrap();
        assert_eq!((large.pages, large.context), (16_384, 131_072));
    }

    #[test]
    fn too_little_memory_shortens_the_context_and_says_so() {
        let capacity = size(&EngineConfig::default(), 131_072, PER_TOKEN, memory(64 << 20)).unwrap();
        assert_eq!(capacity.context, 16_384);
        let notice = capacity.notice.unwrap();
        assert!(notice.contains("16384 tokens instead of the model's 131072"), "{notice}");
        assert!(notice.contains("16.0 MiB of KV cache") && notice.contains("128.0 MiB would"), "{notice}");
    }

    #[test]
    fn a_context_that_was_asked_for_is_held_or_refused_with_the_numbers() {
        let config = EngineConfig { context: Some(4096), ..EngineConfig::default() };
        let error = size(&config, 131_072, PER_TOKEN, memory(8 << 20)).unwrap_err().to_string();
        assert!(error.contains("2.0 MiB of KV cache hold 2048 tokens at 1.0 KiB each"), "{error}");
        assert!(error.contains("allow 4.0 MiB"), "{error}");
        let error = size(&config, 2048, PER_TOKEN, None).unwrap_err();
        assert_eq!(error, CapacityError::Context { asked: 4096, model: 2048 });
    }

    #[test]
    fn a_model_that_keeps_nothing_for_a_token_has_room_for_its_context_whatever_the_memory() {
        for kv_bytes in [None, Some(Bytes(0)), Some(Bytes(77))] {
            let capacity =
                size(&EngineConfig { kv_bytes, ..EngineConfig::default() }, 4096, Bytes::ZERO, memory(1));
            assert_eq!(capacity, Ok(Capacity { pages: 4096, context: 4096, notice: None }));
        }
    }

    #[test]
    fn a_cache_for_a_handful_of_tokens_is_refused() {
        let config = EngineConfig { kv_bytes: Some(Bytes(100 * 1024)), ..EngineConfig::default() };
        assert!(size(&config, 2048, PER_TOKEN, None).is_err());
        assert_eq!(size(&config, 64, PER_TOKEN, None).unwrap().pages, 6);
    }
}
