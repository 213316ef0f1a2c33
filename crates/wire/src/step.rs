//! What the leader of a group tells the other ranks to do: one command a message, each with the next number.
//!
//! A command is a claim until it has been held to the receiver's own model and cache ([`StepBounds`]): only then is
//! anything indexed with it.

use serde::{Deserialize, Serialize};

use crate::reader::{DecodeError, Reader, put_block, put_tokens};

/// Opens every command: a build with other commands must not read these.
const VERSION: u8 = 1;
/// Bounds what a receiver reserves before it has seen the bytes.
const SPANS_MAX: usize = 1 << 16;

/// How the leader wants a group to compute: sent before anybody loads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupSettings {
    /// The shard map, as every rank must have it.
    pub map: String,
    /// V.
    pub vocabulary: u32,
    /// Tokens in a page of the KV cache.
    pub page_tokens: u32,
    /// Tokens in one step at most.
    pub step_tokens_max: u32,
    /// How keys and values are held.
    pub kv: String,
    /// The longest context that is asked for.
    pub context: Option<u32>,
    /// How rows become a vector, of a model that gives embeddings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pooling: Option<String>,
}

/// What one rank's memory allows; then, as the least of all, what the group has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupCapacity {
    /// Pages of the KV cache.
    pub pages: u32,
    /// The longest context.
    pub context: u32,
}

macro_rules! json {
    ($name:ident, $what:literal) => {
        impl $name {
            /// As JSON.
            pub fn encode(&self) -> Vec<u8> {
                serde_json::to_vec(self).expect("numbers and texts are JSON")
            }

            /// Reads what was encoded.
            ///
            /// # Errors
            /// The bytes are something else.
            pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
                serde_json::from_slice(bytes)
                    .map_err(|error| DecodeError::Json { what: $what, detail: error.to_string() })
            }
        }
    };
}

json!(GroupSettings, "a group's settings");
json!(GroupCapacity, "a rank's capacity");

/// One command.
#[derive(Clone, PartialEq, Eq)]
pub struct StepCommand {
    /// One more than the last: a step happens once, in its place, or the group ends.
    pub sequence: u64,
    /// What to do.
    pub order: StepOrder,
}

/// What to do.
#[derive(Clone, PartialEq, Eq)]
pub enum StepOrder {
    /// Overwrite pages, then compute spans; either may be none.
    Run(StepPlan),
    /// Make a cache of so many pages beside the main one, for a question; 0: drop it.
    Beside {
        /// How many.
        pages: u32,
    },
    /// The leader is there and has no work.
    Idle,
    /// A request that somebody traces is through: each rank tells its part of it.
    Trace {
        /// Where the request stands in its trace, as a `traceparent`.
        at: String,
        /// How long ago its first step began, in microseconds.
        took_us: u64,
    },
    /// The group ends in order.
    Goodbye {
        /// For logs.
        reason: String,
    },
}

/// One step. Not `Debug`: it holds prompts.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct StepPlan {
    /// Whether it is computed in the cache beside the main one.
    pub beside: bool,
    /// Pages to overwrite first.
    pub wipe: Vec<u32>,
    /// What to compute.
    pub spans: Vec<StepSpan>,
}

/// Consecutive tokens of one sequence. Not `Debug`: it holds a prompt.
#[derive(Clone, PartialEq, Eq)]
pub struct StepSpan {
    /// Position of the first.
    pub position: u32,
    /// Whose logits are wanted.
    pub logits: StepLogits,
    /// The tokens.
    pub tokens: Vec<u32>,
    /// The pages of all positions up to the last token's.
    pub pages: Vec<u32>,
}

/// Which tokens of a span logits are wanted of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepLogits {
    /// None.
    None,
    /// The last one's.
    Last,
    /// All.
    All,
}

/// What a receiver can compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepBounds {
    /// V.
    pub vocabulary: u32,
    /// Pages of the cache that a plan is for.
    pub pages: u32,
    /// Tokens in each.
    pub page_tokens: u32,
    /// The longest sequence.
    pub context: u32,
    /// Tokens in one step at most.
    pub tokens_max: u32,
}

/// Why a plan cannot be computed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {found}, and at most {allowed} here")]
pub struct StepError {
    /// What is out of bounds.
    pub what: &'static str,
    /// As the plan says.
    pub found: u64,
    /// What there is.
    pub allowed: u64,
}

impl StepCommand {
    /// The bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        out.push(VERSION);
        out.extend_from_slice(&self.sequence.to_le_bytes());
        match &self.order {
            StepOrder::Run(plan) => {
                out.push(1);
                plan.encode(out);
            }
            StepOrder::Beside { pages } => {
                out.push(2);
                out.extend_from_slice(&pages.to_le_bytes());
            }
            StepOrder::Idle => out.push(3),
            StepOrder::Goodbye { reason } => {
                out.push(4);
                put_block(out, reason.as_bytes());
            }
            StepOrder::Trace { at, took_us } => {
                out.push(5);
                put_block(out, at.as_bytes());
                out.extend_from_slice(&took_us.to_le_bytes());
            }
        }
    }

    /// Reads what [`StepCommand::encode`] wrote.
    ///
    /// # Errors
    /// The bytes are none of a command.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let version = reader.u8("a command's version")?;
        if version != VERSION {
            return Err(DecodeError::Value {
                what: "a command's version",
                value: version.into(),
                allowed: "1: run the same build on every machine of a group",
            });
        }
        let sequence = reader.u64("a command's sequence")?;
        let order = match reader.u8("a command's kind")? {
            1 => StepOrder::Run(StepPlan::decode(&mut reader)?),
            2 => StepOrder::Beside { pages: reader.u32("pages")? },
            3 => StepOrder::Idle,
            4 => StepOrder::Goodbye { reason: reader.text("a reason")?.to_owned() },
            5 => StepOrder::Trace {
                at: reader.text("a place in a trace")?.to_owned(),
                took_us: reader.u64("how long it took")?,
            },
            kind => {
                let what = "a command's kind";
                return Err(DecodeError::Value { what, value: kind.into(), allowed: "1 to 5" });
            }
        };
        reader.end("a command")?;
        Ok(Self { sequence, order })
    }
}

impl StepPlan {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.beside));
        put_tokens(out, &self.wipe);
        let spans = u32::try_from(self.spans.len()).expect("a step has fewer spans than tokens");
        out.extend_from_slice(&spans.to_le_bytes());
        for span in &self.spans {
            out.extend_from_slice(&span.position.to_le_bytes());
            out.push(match span.logits {
                StepLogits::None => 0,
                StepLogits::Last => 1,
                StepLogits::All => 2,
            });
            put_tokens(out, &span.tokens);
            put_tokens(out, &span.pages);
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let beside = match reader.u8("a plan's cache")? {
            0 => false,
            1 => true,
            value => {
                let what = "a plan's cache";
                return Err(DecodeError::Value { what, value: value.into(), allowed: "0 or 1" });
            }
        };
        let wipe = reader.tokens("pages to wipe")?;
        let count = reader.u32("spans")? as usize;
        if count > SPANS_MAX {
            return Err(DecodeError::Value { what: "spans", value: count as u64, allowed: "65536 at most" });
        }
        let mut spans = Vec::new();
        for _ in 0..count {
            let position = reader.u32("a span's position")?;
            let logits = match reader.u8("a span's logits")? {
                0 => StepLogits::None,
                1 => StepLogits::Last,
                2 => StepLogits::All,
                value => {
                    let what = "a span's logits";
                    return Err(DecodeError::Value { what, value: value.into(), allowed: "0, 1 or 2" });
                }
            };
            let (tokens, pages) = (reader.tokens("a span's tokens")?, reader.tokens("a span's pages")?);
            spans.push(StepSpan { position, logits, tokens, pages });
        }
        Ok(Self { beside, wipe, spans })
    }

    /// Tokens in all spans together.
    pub fn tokens(&self) -> usize {
        self.spans.iter().map(|span| span.tokens.len()).sum()
    }

    /// Holds the plan to what the receiver has.
    ///
    /// # Errors
    /// The first thing that is out of bounds.
    pub fn check(&self, bounds: &StepBounds) -> Result<(), StepError> {
        let at_most = |what, found: usize, allowed: u32| {
            let (found, allowed) = (found as u64, u64::from(allowed));
            if found > allowed { Err(StepError { what, found, allowed }) } else { Ok(()) }
        };
        at_most("tokens in a step", self.tokens(), bounds.tokens_max)?;
        let pages = |pages: &[u32]| match pages.iter().max() {
            Some(&page) => at_most("a page's number and one", page as usize + 1, bounds.pages),
            None => Ok(()),
        };
        pages(&self.wipe)?;
        for span in &self.spans {
            if span.tokens.is_empty() {
                return Err(StepError { what: "spans without tokens", found: 1, allowed: 0 });
            }
            let end = (span.position as usize).saturating_add(span.tokens.len());
            at_most("the end of a span", end, bounds.context)?;
            at_most(
                "pages that a span needs",
                end.div_ceil(bounds.page_tokens.max(1) as usize),
                span.pages.len() as u32,
            )?;
            at_most("pages of a span", span.pages.len(), bounds.pages)?;
            pages(&span.pages)?;
            let token = span.tokens.iter().max().copied().unwrap_or(0);
            at_most("a token's number and one", token as usize + 1, bounds.vocabulary)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> StepPlan {
        let span = |position, logits, tokens: &[u32], pages: &[u32]| StepSpan {
            position,
            logits,
            tokens: tokens.to_vec(),
            pages: pages.to_vec(),
        };
        StepPlan {
            beside: false,
            wipe: vec![3],
            spans: vec![span(17, StepLogits::Last, &[9], &[0, 3]), span(0, StepLogits::None, &[1, 2], &[1])],
        }
    }

    const BOUNDS: StepBounds =
        StepBounds { vocabulary: 10, pages: 4, page_tokens: 16, context: 64, tokens_max: 8 };

    fn bytes(sequence: u64, order: StepOrder) -> Vec<u8> {
        let mut out = Vec::new();
        StepCommand { sequence, order }.encode(&mut out);
        out
    }

    #[test]
    fn commands_are_these_bytes_and_read_back() {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let golden = [
            (
                StepOrder::Run(plan()),
                "010500000000000000010001000000030000000200000011000000010100000009000000020000000000000003000000\
                 00000000000200000001000000020000000100000001000000",
            ),
            (StepOrder::Beside { pages: 7 }, "0105000000000000000207000000"),
            (StepOrder::Idle, "01050000000000000003"),
            (StepOrder::Goodbye { reason: "bye".into() }, "0105000000000000000403000000627965"),
            (
                StepOrder::Trace { at: "00-1".into(), took_us: 258 },
                "010500000000000000050400000030302d310201000000000000",
            ),
        ];
        for (order, text) in golden {
            let bytes = bytes(5, order.clone());
            assert_eq!(hex(&bytes), text);
            let read = StepCommand::decode(&bytes).unwrap();
            assert!(read.sequence == 5 && read.order == order);
            for end in 0..bytes.len() {
                assert!(StepCommand::decode(&bytes[..end]).is_err(), "cut at {end}");
            }
        }
    }

    #[test]
    fn hostile_commands_are_refused_before_anything_is_reserved() {
        let mut claims = bytes(1, StepOrder::Run(StepPlan::default()));
        let spans = claims.len() - 4;
        claims[spans..].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(StepCommand::decode(&claims).is_err());
        let mut other = bytes(1, StepOrder::Idle);
        other[0] = 9;
        assert!(StepCommand::decode(&other).err().unwrap().to_string().contains("same build"));
    }

    #[test]
    fn a_plan_is_held_to_the_receivers_model() {
        assert_eq!(plan().check(&BOUNDS), Ok(()));
        let wrong = |change: &dyn Fn(&mut StepPlan)| {
            let mut plan = plan();
            change(&mut plan);
            plan.check(&BOUNDS).unwrap_err().what
        };
        assert_eq!(wrong(&|plan| plan.wipe = vec![4]), "a page's number and one");
        assert_eq!(wrong(&|plan| plan.spans[0].pages = vec![0, 9]), "a page's number and one");
        assert_eq!(wrong(&|plan| plan.spans[0].pages = vec![0]), "pages that a span needs");
        assert_eq!(wrong(&|plan| plan.spans[0].tokens = vec![10]), "a token's number and one");
        assert_eq!(wrong(&|plan| plan.spans[0].tokens.clear()), "spans without tokens");
        assert_eq!(wrong(&|plan| plan.spans[0].position = u32::MAX), "the end of a span");
        assert_eq!(wrong(&|plan| plan.spans[1].tokens = vec![0; 9]), "tokens in a step");
    }
}
