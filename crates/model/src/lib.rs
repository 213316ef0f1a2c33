//! What a model *is*, not how it runs: families as data, checkpoints, tokenizer, chat template.
//!
//! What it is: pure code over bytes that somebody else read. What it is *not*: it opens no file and multiplies no
//! matrix (see `nn`). Start with [`spec::ModelSpec`], which every family ends in, then [`family`] for how a
//! `config.json` becomes one, and [`checkpoint`] for where its tensors lie. [`kit::Kit`] is what a coordinator holds of a
//! model: texts to tokens and back ([`tokenizer`]), conversations to texts ([`template`]). [`dialect`] reads calls and
//! reasoning out of answers. [`synth`] makes models, [`shard`] divides them over ranks.

pub mod checkpoint;
pub mod dialect;
pub mod family;
pub mod gguf;
pub mod kit;
pub mod quant;
pub mod shard;
pub mod spec;
pub mod synth;
pub mod template;
pub mod tokenizer;
