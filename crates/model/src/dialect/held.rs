//! Text that is not told yet, because what it is depends on what comes next.

use super::pieces::{Piece, Pieces};

/// The part of an answer that was pushed and not consumed.
#[derive(Default)]
pub(super) struct Held {
    text: String,
}

/// What [`Held::until`] found.
pub(super) enum Until {
    /// The marker with this index; what came before it, and it, are consumed.
    Found(usize, String),
    /// None yet: this much certainly belongs to none, and is consumed.
    Open(String),
}

/// What [`Held::expect`] found.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    /// The marker with this index, which is consumed.
    Found(usize),
    /// What there is may begin one.
    Unclear,
    /// None comes here.
    No,
}

impl Held {
    pub(super) fn push(&mut self, text: &str) {
        self.text.push_str(text);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// Puts `text` back, to be read again.
    pub(super) fn unread(&mut self, text: &str) {
        self.text.insert_str(0, text);
    }

    /// Everything, consumed.
    pub(super) fn take(&mut self) -> String {
        std::mem::take(&mut self.text)
    }

    /// The first `bytes`, consumed.
    pub(super) fn take_first(&mut self, bytes: usize) -> String {
        let rest = self.text.split_off(bytes);
        std::mem::replace(&mut self.text, rest)
    }

    /// The next character, consumed.
    pub(super) fn next(&mut self) -> Option<char> {
        let letter = self.text.chars().next()?;
        self.text.drain(..letter.len_utf8());
        Some(letter)
    }

    /// Takes away white space that comes first.
    pub(super) fn trim(&mut self) {
        let white = self.text.len() - self.text.trim_start().len();
        self.text.drain(..white);
    }

    /// Text up to the first of `markers`, none of which may be part of another. With `end`, nothing is kept back.
    pub(super) fn until(&mut self, markers: &[&str], end: bool) -> Until {
        let found =
            markers.iter().enumerate().filter_map(|(i, marker)| Some((self.text.find(marker)?, i))).min();
        if let Some((at, which)) = found {
            let before = self.take_first(at);
            self.text.drain(..markers[which].len());
            return Until::Found(which, before);
        }
        let keep = if end { 0 } else { self.may_begin(markers) };
        Until::Open(self.take_first(self.text.len() - keep))
    }

    /// Whether one of `markers` comes first. With `end`, an incomplete one is none.
    pub(super) fn expect(&mut self, markers: &[&str], end: bool) -> Expected {
        if let Some(which) = markers.iter().position(|marker| self.text.starts_with(marker)) {
            self.text.drain(..markers[which].len());
            return Expected::Found(which);
        }
        let unclear = !end && markers.iter().any(|marker| marker.starts_with(self.text.as_str()));
        if unclear { Expected::Unclear } else { Expected::No }
    }

    /// Bytes at the end that may begin a marker.
    fn may_begin(&self, markers: &[&str]) -> usize {
        let longest = markers.iter().map(|marker| marker.len()).max().unwrap_or(0);
        let from = self.text.len().saturating_sub(longest.saturating_sub(1));
        (from..self.text.len())
            .filter(|&at| self.text.is_char_boundary(at))
            .find(|&at| markers.iter().any(|marker| marker.starts_with(&self.text[at..])))
            .map_or(0, |at| self.text.len() - at)
    }
}

/// Content whose white space before a call, and after one, is not told.
#[derive(Default)]
pub(super) struct Prose {
    /// White space that may turn out to come before a call.
    white: String,
    /// White space that comes next is none of the content's.
    trims: bool,
}

impl Prose {
    pub(super) fn push(&mut self, text: &str, out: &mut Pieces) {
        let text = if self.trims { text.trim_start() } else { text };
        let solid = text.trim_end().len();
        if solid > 0 {
            self.trims = false;
            out.push(Piece::Content(std::mem::take(&mut self.white)));
            out.push(Piece::Content(text[..solid].to_owned()));
        }
        self.white.push_str(&text[solid..]);
    }

    /// A call comes: white space on either side of it goes.
    pub(super) fn call(&mut self) {
        self.white.clear();
        self.trims = true;
    }

    /// What was taken for a call is none: text goes on.
    pub(super) fn no_call(&mut self) {
        self.trims = false;
    }

    pub(super) fn finish(&mut self, out: &mut Pieces) {
        out.push(Piece::Content(std::mem::take(&mut self.white)));
    }
}
