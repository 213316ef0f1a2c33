//! The OpenAI API's bodies: requests read strictly into types, answers written as its clients expect them.
//!
//! A request is parsed once. What it says is either understood, or named in an error with the path of the parameter
//! (`messages[2].content[0].type`), or known to be harmless and reported as ignored: nothing that changes the answer
//! is dropped in silence. Start with [`parse_chat`]; [`response`] holds what goes back.

pub mod chat;
pub mod completion;
pub mod embedding;
pub mod response;
pub mod responses;
pub(crate) mod shared;

pub use crate::fields::RequestError;
pub use chat::parse_chat;
pub use completion::parse_completion;
pub use embedding::{EmbeddingRequest, parse_embedding};
pub use responses::{ResponseRequest, parse_response};
