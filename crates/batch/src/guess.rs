//! Guesses at what an answer says next, so that several of its tokens can be computed in one step (prompt lookup).
//!
//! Text repeats itself: names, quotations, code that is edited. The last few tokens are looked for in what came before
//! (prompt and answer), and what followed them there is the guess. The model computes all guessed tokens in one step,
//! and a token is drawn from each row as it would have been without: as far as the guesses are what is drawn, they
//! were right, and what was drawn after the last of those is drawn from a row that is right too. So guesses change how
//! long an answer takes, and nothing else.

use crate::tokens::PrivateTokens;

/// The longest run of last tokens that is looked for: longer ones say no more about what follows.
const RUN_MAX: usize = 8;
/// The shortest one. A single token is found anywhere and followed by anything.
const RUN_MIN: usize = 2;
/// How far back to look, in tokens: some 20 µs, against steps of milliseconds.
const LOOK_BACK: usize = 1 << 15;
/// How much the last guess counts in how good guesses have been: the last ten or so decide.
const WEIGHT: f64 = 0.1;
/// How good guesses are held for before there was one.
const FIRST: f64 = 0.6;
/// By how much a guessed token must be worth more than it costs: what is measured scatters, and not guessing is never
/// wrong.
const MARGIN: f64 = 1.15;

/// What guesses cost now, and how many there may be.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Guessing {
    /// Guessed tokens of one sequence in a step at most; 0 guesses nothing.
    pub tokens_max: usize,
    /// What computing one token more in a step takes, in parts of what a token of a running answer takes now (the step's
    /// time, shared by the sequences that decode). Above 1 no guess pays.
    pub cost: f64,
}

/// Where what follows the end of `tokens` is to be read: right behind the longest run that is their end too, of equals
/// behind the last.
pub(crate) fn find(tokens: &[u32]) -> Option<usize> {
    let end = tokens.len();
    let (&last, before) = tokens.split_last()?;
    let oldest = end.saturating_sub(LOOK_BACK);
    let (mut best, mut found) = (RUN_MIN - 1, None);
    for at in (oldest..end - 1).rev() {
        if tokens[at] != last {
            continue;
        }
        let earlier = tokens[oldest..at].iter().rev().zip(before.iter().rev());
        let run = 1 + earlier.take(RUN_MAX - 1).take_while(|(one, two)| one == two).count();
        if run > best {
            (best, found) = (run, Some(at + 1));
            if run == RUN_MAX {
                break;
            }
        }
    }
    found
}

/// How good the guesses at one answer have been.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Record {
    /// How likely a guess is right if the one before it was.
    right: f64,
}

impl Record {
    pub(crate) fn new() -> Self {
        Self { right: FIRST }
    }

    /// How many guesses are worth computing.
    pub(crate) fn worth(self, guessing: &Guessing) -> usize {
        let least = guessing.cost * MARGIN;
        let mut chance = 1.0;
        let pays = |_: &usize| {
            chance *= self.right;
            chance > least
        };
        (0..guessing.tokens_max).take_while(pays).count()
    }

    /// Compares `guesses` with what was drawn: the first `accepted` were, and then `drawn`. Those that were not computed
    /// teach as well: nothing is wasted to find out that they would have paid.
    pub(crate) fn learn(&mut self, guesses: &[u32], accepted: usize, drawn: Option<u32>) {
        let next = guesses.get(accepted).map(|&guess| drawn == Some(guess));
        for right in std::iter::repeat_n(true, accepted).chain(next) {
            self.right += WEIGHT * (f64::from(u8::from(right)) - self.right);
        }
    }
}

/// Puts guesses behind `tokens`, `most` of them; a run that reaches the end goes on from its beginning.
pub(crate) fn guess(tokens: &mut PrivateTokens, most: usize) {
    tokens.drop_guesses();
    if most == 0 {
        return;
    }
    if let Some(from) = find(tokens.as_slice()) {
        tokens.guess_from(from, most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guessed(tokens: &[u32], most: usize) -> Vec<u32> {
        let mut tokens = PrivateTokens::new(tokens.to_vec(), tokens.len() + most);
        let known = tokens.len();
        guess(&mut tokens, most);
        assert_eq!(tokens.len(), known);
        tokens.with_guesses()[known..].to_vec()
    }

    #[test]
    fn the_longest_run_is_followed_and_of_equals_the_last() {
        // 1 2 comes twice; only the first time after 9.
        assert_eq!(guessed(&[9, 1, 2, 3, 7, 1, 2, 4, 8, 9, 1, 2], 2), [3, 7]);
        assert_eq!(guessed(&[1, 2, 3, 7, 1, 2, 4, 8, 1, 2], 3), [4, 8, 1]);
        assert_eq!(guessed(&[1, 2, 3, 4], 3), []);
        assert_eq!(guessed(&[5, 2, 3, 2], 3), [], "one token is no run");
        assert_eq!(guessed(&[], 3), []);
        assert_eq!(guessed(&[4], 3), []);
        assert_eq!(guessed(&[1, 2, 1, 2], 0), []);
    }

    #[test]
    fn what_repeats_itself_is_guessed_beyond_its_end() {
        assert_eq!(guessed(&[1, 2, 3, 1, 2, 3, 1, 2], 7), [3, 1, 2, 3, 1, 2, 3]);
        assert_eq!(guessed(&[6, 6, 6], 4), [6, 6, 6, 6]);
    }

    #[test]
    fn guesses_are_computed_where_they_are_likely_enough_for_what_they_cost() {
        let mut record = Record::new();
        let cheap = Guessing { tokens_max: 8, cost: 0.1 };
        let dear = Guessing { tokens_max: 8, cost: 0.9 };
        assert_eq!((record.worth(&cheap), record.worth(&dear)), (4, 0));
        assert_eq!(record.worth(&Guessing { tokens_max: 3, cost: 0.0 }), 3);
        for _ in 0..40 {
            record.learn(&[1, 2, 3], 3, Some(4));
        }
        assert_eq!(record.worth(&cheap), 8);
        assert!(record.worth(&Guessing { tokens_max: 8, cost: 0.8 }) > 0);
        for _ in 0..40 {
            record.learn(&[1, 2, 3], 0, Some(7));
        }
        assert_eq!(record.worth(&cheap), 0);
        // What was not computed teaches too, so guessing begins again.
        for _ in 0..40 {
            record.learn(&[1, 2, 3], 0, Some(1));
        }
        assert_eq!(record.worth(&cheap), 8);
    }
}
