//! Why a candidate was not taken: small while deciding, words when asked.

use super::board::Board;

/// Of a single device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Why {
    Offline,
    Unmanaged,
    Resting,
    NotSelected,
    NotPinned,
    Taken { by: usize },
    Busy { by: usize },
    Memory { needed: u64, room: u64 },
    NoFiles,
    Disk { needed: u64, room: u64 },
    Slower { tokens_per_s: f64, ready_s: f64 },
}

impl Why {
    /// One word, by which those beyond the list are counted.
    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::Offline => "are not connected",
            Self::Unmanaged => "are not managed",
            Self::Resting => "are left alone for a while",
            Self::NotSelected => "do not have the selector's labels",
            Self::NotPinned => "are not pinned",
            Self::Taken { .. } => "hold another deployment",
            Self::Busy { .. } => "hold an instance of its model already",
            Self::Memory { .. } => "have too little memory",
            Self::NoFiles => "have no way to the model's files",
            Self::Disk { .. } => "have no room on their disks for the model",
            Self::Slower { .. } => "are slower, or ready later",
        }
    }

    pub(super) fn say(self, board: &Board<'_>, node: u32) -> String {
        let machine = &board.snapshot.fleet.machines[board.nodes[node as usize].machine as usize];
        let name = |deployment: usize| &board.snapshot.wanted[deployment].spec.name;
        match self {
            Self::Offline => "it is not connected".to_owned(),
            Self::Unmanaged => "it is not managed: what it holds is its owner's choice".to_owned(),
            Self::Resting => {
                machine.resting.clone().unwrap_or_else(|| "it is left alone for a while".to_owned())
            }
            Self::NotSelected => "it does not have the selector's labels".to_owned(),
            Self::NotPinned => "the deployment is pinned to other machines".to_owned(),
            Self::Taken { by } => {
                format!("it holds {:?}, and a machine holds one model unless both may share", name(by))
            }
            Self::Busy { by } if by == board.looking_at => {
                "its device holds an instance of this deployment already".to_owned()
            }
            Self::Busy { by } => {
                format!("its device holds an instance of the same model already, that of {:?}", name(by))
            }
            Self::Memory { needed, room } => super::divide::short(needed, room),
            Self::NoFiles => {
                format!(
                    "it has no files of {:?}, and no way to get them",
                    board.snapshot.wanted[board.looking_at].spec.model
                )
            }
            Self::Disk { needed, room } => {
                let model = &board.snapshot.wanted[board.looking_at].spec.model;
                let nothing = "it would have to take it from another machine, and takes none: its disk is full, or its \
                               provider runs with --no-fetch";
                if room == 0 {
                    return format!("it has no files of {model:?}: {nothing}");
                }
                format!(
                    "it has no files of {model:?}: taken from another machine they fill {} of its disk, and {} are left \
                     there for models: make room",
                    base::Bytes(needed),
                    base::Bytes(room)
                )
            }
            Self::Slower { tokens_per_s, ready_s } => format!(
                "others are better: predicted {tokens_per_s:.1} tokens/s here, ready in {ready_s:.0} s"
            ),
        }
    }
}
