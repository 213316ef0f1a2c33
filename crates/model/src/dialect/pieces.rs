//! What an answer turns out to consist of.

/// A piece of an answer. Not `Debug`: it holds an answer.
#[derive(Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text for the reader.
    Content(String),
    /// Reasoning before the answer.
    Reasoning(String),
    /// A call begins.
    ToolCall {
        /// Counts an answer's calls from 0.
        index: usize,
        /// The tool's name.
        name: String,
    },
    /// More of a call's arguments: JSON, as it is generated.
    ToolArguments {
        /// Which call.
        index: usize,
        /// The next part of the JSON text.
        text: String,
    },
    /// A call's arguments are complete, or the answer ended within them.
    ToolEnd {
        /// Which call.
        index: usize,
    },
}

/// Pieces in order; neighbours of one kind become one.
pub(super) struct Pieces<'a> {
    out: &'a mut Vec<Piece>,
}

impl<'a> Pieces<'a> {
    pub(super) fn new(out: &'a mut Vec<Piece>) -> Self {
        Self { out }
    }

    pub(super) fn push(&mut self, piece: Piece) {
        match (self.out.last_mut(), piece) {
            (_, Piece::Content(text) | Piece::Reasoning(text) | Piece::ToolArguments { text, .. })
                if text.is_empty() => {}
            (Some(Piece::Content(before)), Piece::Content(text))
            | (Some(Piece::Reasoning(before)), Piece::Reasoning(text)) => before.push_str(&text),
            (
                Some(Piece::ToolArguments { index: of, text: before }),
                Piece::ToolArguments { index, text },
            ) if *of == index => {
                before.push_str(&text);
            }
            (_, piece) => self.out.push(piece),
        }
    }

    /// One more letter of call `index`'s arguments.
    pub(super) fn arguments(&mut self, index: usize, letter: char) {
        match self.out.last_mut() {
            Some(Piece::ToolArguments { index: of, text }) if *of == index => text.push(letter),
            _ => self.out.push(Piece::ToolArguments { index, text: letter.to_string() }),
        }
    }
}
