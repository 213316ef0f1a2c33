//! Ollama's API: requests read strictly into the one typed request, and the bodies that go back.

pub mod embed;
mod request;
pub mod response;

pub use request::{Asked, parse_chat, parse_generate, parse_show};
