//! Whose machines a request may go to: machines that were lent by an account, and the account's own requests.

use base::AccountId;

/// Whose machines a request may go to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Owners {
    /// Anybody's.
    #[default]
    Any,
    /// This account's first, and anybody's where those have no room: then whichever comes first.
    Prefer(AccountId),
    /// This account's alone.
    Only(AccountId),
}

impl Owners {
    /// Whose machines it is tried on first.
    pub fn own(self) -> Option<AccountId> {
        match self {
            Self::Any => None,
            Self::Prefer(account) | Self::Only(account) => Some(account),
        }
    }

    /// Whether it never goes to a machine of `owner`.
    pub fn leaves_out(self, owner: Option<AccountId>) -> bool {
        matches!(self, Self::Only(account) if owner != Some(account))
    }
}
