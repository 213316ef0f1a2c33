//! The OpenAI API's bodies: requests read strictly into types, answers written as its clients expect them.
//!
//! A request is parsed once. What it says is either understood, or named in an error with the path of the parameter
//! (`messages[2].content[0].type`), or known to be harmless and reported as ignored: nothing that changes the answer
//! is dropped in silence. Start with [`ChatRequest::parse`] and [`CompletionRequest::parse`]; [`response`] holds
//! what goes back.

mod fields;
pub mod request;
pub mod response;

pub use fields::RequestError;
pub use request::{ChatRequest, CompletionRequest, Generation, Prompt};
