//! What can be wrong with a configuration, each naming file, field, value and what would be accepted.

/// Why a configuration describes no model that can be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Not a JSON object.
    #[error("{file} is not a JSON object: {detail}")]
    NotJson {
        /// Which file.
        file: &'static str,
        /// What is wrong, and where.
        detail: String,
    },
    /// A field that must be there is not.
    #[error("{file}: field {field:?} is missing")]
    Missing {
        /// Which file.
        file: &'static str,
        /// Which field.
        field: String,
    },
    /// A field of another type.
    #[error("{file}: field {field:?} is {found}, expected {expected}")]
    WrongType {
        /// Which file.
        file: &'static str,
        /// Which field.
        field: String,
        /// The value, shortened.
        found: String,
        /// What is accepted.
        expected: &'static str,
    },
    /// A number that makes no sense there.
    #[error("{file}: field {field:?} is {found}, expected {expected}")]
    OutOfRange {
        /// Which file.
        file: &'static str,
        /// Which field.
        field: String,
        /// The value.
        found: String,
        /// What is accepted.
        expected: String,
    },
    /// A model that can exist but that this build cannot run.
    #[error("{file}: field {field:?} is {found}, which is not supported: {remedy}")]
    Unsupported {
        /// Which file.
        file: &'static str,
        /// Which field.
        field: String,
        /// The value, shortened.
        found: String,
        /// What is.
        remedy: String,
    },
}
