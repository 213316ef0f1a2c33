//! Constraints as sets of tokens: what may come next so that an answer gets the form that was asked for.
//!
//! `llguidance` does the work, on a tokenizer's bytes. Its grammars come from callers, so everything that it may take is
//! bounded: the source here, its automata by its own fuel.

use std::sync::OnceLock;

use base::{Constraint, Grammar};
use llguidance::api::{GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use model::tokenizer::Tokenizer;

/// A grammar's or schema's source at most: the largest schemas in use are a tenth of it.
const SOURCE_BYTES_MAX: usize = 256 << 10;
/// Brackets within brackets at most: parsers recurse.
const SOURCE_DEPTH_MAX: usize = 120;
/// Choices at most.
const CHOICES_MAX: usize = 4096;
/// The text that a constraint waits for at most.
const AFTER_BYTES_MAX: usize = 1024;
/// Errors are cut to this: they may cite a grammar at length.
const DETAIL_LETTERS_MAX: usize = 300;

/// What grammars may take. Fuel is spent at some 15,000 to 50,000 units a millisecond: 40 ms to compile, 15 ms for one
/// step, and some 50 MB for what a lexer remembers.
fn limits() -> ParserLimits {
    ParserLimits {
        max_items_in_row: 2000,
        initial_lexer_fuel: 1_000_000,
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        max_lexer_states: 30_000,
        max_grammar_size: 200_000,
        precompute_large_lexemes: false,
        verbose_errors: false,
    }
}

/// Makes guides for one model.
pub(crate) struct Grammars {
    tokenizer: Tokenizer,
    vocabulary: usize,
    stop_tokens: Vec<u32>,
    /// Made for the first constraint: it takes some hundred milliseconds for a large vocabulary.
    factory: OnceLock<Result<ParserFactory, String>>,
}

/// The tokens that may come next.
#[derive(Clone)]
pub(crate) struct Mask {
    /// A bit for each token.
    words: Vec<u32>,
    /// The form is complete and nothing can be added.
    pub(crate) over: bool,
}

/// Follows one answer.
pub(crate) struct Guide {
    matcher: Matcher,
    stop_tokens: Vec<u32>,
    tokenizer: Tokenizer,
    /// The text that the constraint waits for, until it has come.
    after: Option<String>,
    /// The answer's last bytes, while it is waited for.
    tail: Vec<u8>,
}

impl Mask {
    /// Leaves only what may come next.
    pub(crate) fn apply(&self, row: &mut [f32]) {
        for (logits, word) in row.chunks_mut(32).zip(self.words.iter().chain(std::iter::repeat(&0))) {
            match *word {
                0 => logits.fill(f32::NEG_INFINITY),
                u32::MAX => {}
                word => {
                    for (bit, logit) in logits.iter_mut().enumerate() {
                        if word >> bit & 1 == 0 {
                            *logit = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
    }
}

impl Grammars {
    pub(crate) fn new(tokenizer: Tokenizer, vocabulary: usize, stop_tokens: Vec<u32>) -> Self {
        Self { tokenizer, vocabulary, stop_tokens, factory: OnceLock::new() }
    }

    /// A guide for an answer of which `generated` is there.
    ///
    /// # Errors
    /// The constraint is none, or too complex, in words.
    pub(crate) fn guide(&self, constraint: &Constraint, generated: &[u32]) -> Result<Guide, String> {
        let after = constraint.after.clone().filter(|text| !text.is_empty());
        if let Some(after) = &after
            && after.len() > AFTER_BYTES_MAX
        {
            return Err(format!(
                "it waits for a text of {} bytes; at most {AFTER_BYTES_MAX} are taken",
                after.len()
            ));
        }
        let grammar = top_level(&constraint.grammar)?;
        let factory = self.factory.get_or_init(|| self.factory()).as_ref().map_err(Clone::clone)?;
        let parser = factory.create_parser(grammar).map_err(|error| shortened(&error.to_string()))?;
        let mut guide = Guide {
            matcher: Matcher::new(Ok(parser)),
            stop_tokens: self.stop_tokens.clone(),
            tokenizer: self.tokenizer.clone(),
            after,
            tail: Vec::new(),
        };
        guide.checked()?;
        for &token in generated {
            guide.advance(token)?;
        }
        Ok(guide)
    }

    fn factory(&self) -> Result<ParserFactory, String> {
        // One more than there are, as the end of answers of a model that knows none.
        let none = self.stop_tokens.is_empty();
        let count = self.vocabulary + usize::from(none);
        let word = |token: u32| {
            let mut bytes = self.tokenizer.token_bytes(token);
            if self.tokenizer.is_special(token) {
                // So llguidance tells marks from texts that spell them.
                bytes.insert(0, TokTrie::SPECIAL_TOKEN_MARKER);
            }
            bytes
        };
        let words: Vec<Vec<u8>> = (0..count as u32).map(word).collect();
        let ends = if none { vec![self.vocabulary as u32] } else { self.stop_tokens.clone() };
        let trie = TokTrie::from(&TokRxInfo::new(count as u32, ends[0]), &words).with_eos_tokens(&ends);
        let env: TokEnv = std::sync::Arc::new(ApproximateTokEnv::new(trie));
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices)
            .map_err(|error| shortened(&error.to_string()))?;
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(factory)
    }
}

impl Guide {
    /// Notes that `token` is in the answer.
    ///
    /// # Errors
    /// The form does not allow it, or has become too complex.
    pub(crate) fn advance(&mut self, token: u32) -> Result<(), String> {
        if let Some(after) = &self.after {
            self.tail.extend(self.tokenizer.token_bytes(token));
            let came = self.tail.windows(after.len()).any(|window| window == after.as_bytes());
            if came {
                self.after = None;
                self.tail = Vec::new();
            } else {
                let surplus = self.tail.len().saturating_sub(after.len() - 1);
                self.tail.drain(..surplus);
            }
            return Ok(());
        }
        let result = self.matcher.consume_token(token);
        result.map_err(|error| shortened(&error.to_string()))
    }

    /// Whether the constraint binds already.
    pub(crate) fn binds(&self) -> bool {
        self.after.is_none()
    }

    /// What may come next; anything where the constraint does not bind yet. With `endless`, the model's stop tokens only
    /// where nothing else may.
    ///
    /// # Errors
    /// The form has become too complex.
    pub(crate) fn mask(&mut self, endless: bool) -> Result<Option<Mask>, String> {
        if !self.binds() {
            return Ok(None);
        }
        let mut allowed =
            self.matcher.compute_mask_or_eos().map_err(|error| shortened(&error.to_string()))?;
        let stops = self.stop_tokens.iter().filter(|&&stop| allowed.is_allowed(stop)).count();
        // A model without stop tokens has one in the table that it never draws.
        let stops = if self.stop_tokens.is_empty() {
            usize::from(self.matcher.is_accepting().unwrap_or(false))
        } else {
            stops
        };
        let over = stops > 0 && allowed.num_set() == stops || self.matcher.is_stopped();
        if endless && !over {
            self.stop_tokens.iter().for_each(|&stop| allowed.disallow_token(stop));
        }
        Ok(Some(Mask { words: allowed.as_slice().to_vec(), over }))
    }

    fn checked(&self) -> Result<(), String> {
        self.matcher.get_error().map_or(Ok(()), |error| Err(shortened(&error)))
    }
}

fn shortened(error: &str) -> String {
    let error = error.split("<non-verbose/>").next().unwrap_or_default().trim();
    let mut text: String = error
        .chars()
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .take(DETAIL_LETTERS_MAX)
        .collect();
    if error.chars().nth(DETAIL_LETTERS_MAX).is_some() {
        text.push_str("...");
    }
    text
}

fn top_level(grammar: &Grammar) -> Result<TopLevelGrammar, String> {
    let grammar = match grammar {
        Grammar::JsonObject => GrammarWithLexer::from_json_schema(serde_json::json!({"type": "object"})),
        Grammar::JsonSchema { schema } => {
            bounded("the JSON schema", schema)?;
            let schema =
                serde_json::from_str(schema).map_err(|e| format!("the JSON schema is no JSON: {e}"))?;
            GrammarWithLexer::from_json_schema(schema)
        }
        Grammar::Regex { pattern } => {
            bounded("the regular expression", pattern)?;
            GrammarWithLexer::from_regex(pattern)
        }
        Grammar::Lark { grammar } => {
            bounded("the grammar", grammar)?;
            GrammarWithLexer::from_lark(grammar.clone())
        }
        Grammar::Choice { choices } => {
            if choices.is_empty() || choices.len() > CHOICES_MAX {
                return Err(format!("{} choices; 1 to {CHOICES_MAX} are taken", choices.len()));
            }
            let bytes: usize = choices.iter().map(String::len).sum();
            if bytes > SOURCE_BYTES_MAX {
                return Err(format!("the choices have {bytes} bytes; at most {SOURCE_BYTES_MAX} are taken"));
            }
            let choices: Vec<String> =
                choices.iter().map(|text| serde_json::Value::from(text.as_str()).to_string()).collect();
            GrammarWithLexer::from_lark(format!("start: {}", choices.join(" | ")))
        }
    };
    Ok(TopLevelGrammar::from_grammar(grammar))
}

fn bounded(what: &str, source: &str) -> Result<(), String> {
    let bytes = source.len();
    if bytes > SOURCE_BYTES_MAX {
        return Err(format!("{what} has {bytes} bytes; at most {SOURCE_BYTES_MAX} are taken"));
    }
    // Brackets in texts count too: no honest source has so many open at once.
    let (mut depth, mut deepest) = (0usize, 0);
    for byte in source.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    if deepest > SOURCE_DEPTH_MAX {
        return Err(format!(
            "{what} has {deepest} brackets within each other; at most {SOURCE_DEPTH_MAX} are taken"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod dialect_tests;
#[cfg(test)]
mod tests;
