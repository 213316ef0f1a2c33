//! Anthropic's Messages API: requests read strictly into the one typed request, and the bodies that go back.

mod request;
pub mod response;

pub use request::{parse_count, parse_message};
