//! An expression as an automaton whose states are there before the first text comes.
//!
//! Such automata make their states as texts need them, and each thread its own: the first prompts on every thread would pay
//! for it (0.7 ms each, as much as a hundred later ones). Here one is made ready when the tokenizer is read, and each
//! further one begins as its copy.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use regex_automata::Input;
use regex_automata::meta::{Cache, Regex};

/// Goes through most states that prompts need: words, numbers, marks, spaces and line ends, in the scripts and mixtures that
/// are common.
const COMMON: &str = "You are a helpful assistant.\n\nUser: What's 12,345 + 6.78%? It's \"fine\" (really) -- don't ask, \
    we'll see; they've I'd you're I'm can't!\r\n\tfn main() { let x = a[0] != b && c_d->e; } // 100 #tag @you $5 <|x|> \
    http://a.example/b?c=d&e=f\n   * caf\u{e9} na\u{ef}ve \u{dc}ber \u{fc}ber \u{ab}\u{201c}\u{201d}\u{2019}\u{2014}\u{2026} \
    \u{41f}\u{440}\u{438}\u{432}\u{435}\u{442}, \u{43c}\u{438}\u{440} \u{4f60}\u{597d}\u{ff0c}\u{4e16}\u{754c}\u{3002} \
    \u{3053}\u{3093}\u{306b}\u{3061}\u{306f} \u{c548}\u{b155} \u{645}\u{631}\u{62d}\u{628}\u{627} \
    \u{928}\u{92e}\u{938}\u{94d}\u{924}\u{947} \u{1f600}\u{1f44d} \u{a0}  \n \n\n  end  ";

/// Copies that wait for a text. More texts at a time make more, which go when they are through.
const WAITING_MAX: usize = 16;

/// An expression, ready.
pub(super) struct Automaton {
    expression: Regex,
    ready: Cache,
    waiting: Mutex<Vec<Cache>>,
}

impl Automaton {
    /// Nothing where it is no expression of this kind.
    pub(super) fn new(pattern: &str) -> Option<Self> {
        let expression = Regex::new(pattern).ok()?;
        let mut ready = expression.create_cache();
        let mut at = 0;
        while let Some(found) = expression.search_with(&mut ready, &Input::new(COMMON).range(at..)) {
            at = found.end().max(at + 1);
            while !COMMON.is_char_boundary(at) {
                at += 1;
            }
            if at >= COMMON.len() {
                break;
            }
        }
        Some(Self { expression, ready, waiting: Mutex::default() })
    }

    /// To search one text with: keeps its states together for as long as that takes.
    pub(super) fn begin(&self) -> Searching<'_> {
        let cache = self.waiting().pop();
        Searching { automaton: self, cache: Some(cache.unwrap_or_else(|| self.ready.clone())) }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Cache>> {
        // A lock that a panic left is as good: what is in there is only ever whole.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A search that is under way.
pub(super) struct Searching<'a> {
    automaton: &'a Automaton,
    cache: Option<Cache>,
}

impl Searching<'_> {
    /// The first place in `text` from `at` on where it matches.
    pub(super) fn find_at(&mut self, text: &str, at: usize) -> Option<Range<usize>> {
        let cache = self.cache.as_mut()?;
        let found = self.automaton.expression.search_with(cache, &Input::new(text).range(at..));
        found.map(|found| found.range())
    }
}

impl Drop for Searching<'_> {
    fn drop(&mut self) {
        let mut waiting = self.automaton.waiting();
        if waiting.len() < WAITING_MAX {
            waiting.extend(self.cache.take());
        }
    }
}
