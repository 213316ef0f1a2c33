//! How much a batch may hold, compute and keep waiting.

use base::Micros;

/// The bounds of a [`crate::Batch`]. Every queue in it has its bound here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Pages in the KV cache.
    pub pages: u32,
    /// P: token places in a page.
    pub page_tokens: u32,
    /// The longest sequence, prompt and answer together, in tokens.
    pub context: u32,
    /// Sequences computed together at most.
    pub running_max: u32,
    /// Sequences that wait for a place among those at most.
    pub waiting_max: u32,
    /// Tokens in one step at most. It bounds the scratch memory of a step and how long a step takes.
    pub step_tokens_max: u32,
    /// A sequence whose reader takes nothing for so long is ended; zero is never.
    pub pause_us_max: Micros,
}

/// Why bounds cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitsError {
    /// A bound that must be positive is not.
    #[error("{what} is 0; it must be at least 1")]
    Zero {
        /// Which.
        what: &'static str,
    },
    /// The cache is too small for one sequence of full length.
    #[error(
        "the KV cache holds {pages} pages of {page_tokens} tokens, but one context of {context} tokens needs \
         {needed}; allow more KV memory or a shorter context"
    )]
    Cache {
        /// Pages there are.
        pages: u32,
        /// Tokens in each.
        page_tokens: u32,
        /// Tokens of one context.
        context: u32,
        /// Pages that one context needs.
        needed: u32,
    },
    /// A step could not hold one token of each running sequence.
    #[error(
        "a step of {step_tokens_max} tokens cannot hold one of each of {running_max} sequences; raise the step or \
         lower the batch"
    )]
    Step {
        /// Tokens in a step.
        step_tokens_max: u32,
        /// Sequences running at most.
        running_max: u32,
    },
}

impl Limits {
    /// Checks that a batch within these bounds always gets on.
    ///
    /// # Errors
    /// A zero, a cache below one context, or a step below one token for each running sequence.
    pub fn check(&self) -> Result<(), LimitsError> {
        let positive = [
            ("the number of KV pages", self.pages),
            ("the number of tokens in a page", self.page_tokens),
            ("the context", self.context),
            ("the number of running sequences", self.running_max),
            ("the number of tokens in a step", self.step_tokens_max),
        ];
        for (what, value) in positive {
            if value == 0 {
                return Err(LimitsError::Zero { what });
            }
        }
        let needed = self.context.div_ceil(self.page_tokens);
        if needed > self.pages {
            return Err(LimitsError::Cache {
                pages: self.pages,
                page_tokens: self.page_tokens,
                context: self.context,
                needed,
            });
        }
        if self.step_tokens_max < self.running_max {
            return Err(LimitsError::Step {
                step_tokens_max: self.step_tokens_max,
                running_max: self.running_max,
            });
        }
        Ok(())
    }

    /// Pages that `tokens` tokens take.
    pub fn pages_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.page_tokens as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            pages: 8,
            page_tokens: 4,
            context: 32,
            running_max: 4,
            waiting_max: 4,
            step_tokens_max: 16,
            pause_us_max: Micros::ZERO,
        }
    }

    #[test]
    fn a_cache_below_one_context_is_refused_with_the_numbers() {
        let error = Limits { context: 33, ..limits() }.check().unwrap_err().to_string();
        assert!(error.contains("8 pages of 4") && error.contains("33 tokens needs 9"), "{error}");
        assert_eq!(limits().check(), Ok(()));
    }

    #[test]
    fn a_step_must_hold_a_token_of_each_sequence() {
        let error = Limits { step_tokens_max: 3, ..limits() }.check().unwrap_err();
        assert_eq!(error, LimitsError::Step { step_tokens_max: 3, running_max: 4 });
    }
}
