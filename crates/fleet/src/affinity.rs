//! Which instances hold a prompt's beginning in their cache: requests that share a prefix prefer them.
//!
//! A prompt is known by hashes of its beginnings, at lengths half an octave apart (64, 96, 128, 192, ... tokens). The
//! pool remembers where each went last. It is a guess: an engine may have evicted the pages since. A wrong guess costs
//! a prefill that was thought to be saved, and a hash that two prompts share costs the same.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use base::{InstanceId, Tokens};
use smallvec::SmallVec;

/// The shortest beginning that is worth remembering, in tokens: below it a prefill takes milliseconds.
const SHORTEST: usize = 64;
/// Beginnings remembered by one pool: at six a prompt, the last ten thousand prompts. About 5 MB.
const REMEMBERED_MAX: usize = 1 << 16;
/// Instances remembered for one beginning.
const HOLDERS_MAX: usize = 4;

/// Hashes of a prompt's beginnings, shortest first; see [`lengths`].
pub type Prefixes = SmallVec<[u64; 8]>;

/// The lengths at which beginnings are hashed, in tokens: half an octave apart.
fn lengths() -> impl Iterator<Item = usize> {
    (0..).map(|n| (SHORTEST << (n / 2)) + if n % 2 == 1 { SHORTEST << (n / 2) >> 1 } else { 0 })
}

/// Hashes of the beginnings of `prompt`. `seed` is the coordinator's own, so that nobody can aim for a collision.
pub fn prefixes(prompt: &[u32], seed: u64) -> Prefixes {
    let mut hash = seed ^ 0x9e37_79b9_7f4a_7c15;
    let mut out = Prefixes::new();
    let mut from = 0;
    for length in lengths().take_while(|length| *length <= prompt.len()) {
        for token in &prompt[from..length] {
            hash = (hash ^ u64::from(*token)).wrapping_mul(0x9fb2_1c65_1e98_df25);
            hash ^= hash >> 32;
        }
        from = length;
        out.push(hash);
    }
    out
}

/// What is a hash already, of a secret seed, is not hashed again.
#[derive(Debug, Clone, Copy, Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
}

/// Where beginnings went.
#[derive(Debug, Clone, Default)]
pub(crate) struct Affinity {
    /// Looked up and never walked: its order decides nothing.
    holders: HashMap<u64, (SmallVec<[InstanceId; 2]>, u64), BuildHasherDefault<Hashed>>,
    /// Oldest first; an entry whose stamp is not its beginning's is out of date.
    order: VecDeque<(u64, u64)>,
    stamp: u64,
}

impl Affinity {
    /// A prompt with these beginnings went to `instance`.
    pub(crate) fn went(&mut self, prefixes: &Prefixes, instance: InstanceId) {
        for hash in prefixes {
            self.stamp += 1;
            let (holders, stamp) = self.holders.entry(*hash).or_default();
            holders.retain(|holder| *holder != instance);
            holders.insert(0, instance);
            holders.truncate(HOLDERS_MAX);
            *stamp = self.stamp;
            self.order.push_back((*hash, self.stamp));
        }
        while self.order.len() > REMEMBERED_MAX {
            let (hash, stamp) = self.order.pop_front().expect("it is longer than the bound");
            if self.holders.get(&hash).is_some_and(|(_, newest)| *newest == stamp) {
                self.holders.remove(&hash);
            }
        }
    }

    /// The instances that the longest known beginning went to, and how long that is.
    pub(crate) fn holders(&self, prefixes: &Prefixes) -> Option<(Tokens, &[InstanceId])> {
        let known = lengths().zip(prefixes).collect::<SmallVec<[_; 16]>>();
        known.into_iter().rev().find_map(|(length, hash)| {
            let (holders, _) = self.holders.get(hash)?;
            Some((Tokens(u32::try_from(length).unwrap_or(u32::MAX)), &holders[..]))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_that_begin_alike_share_the_hashes_of_what_they_share() {
        assert_eq!(lengths().take(6).collect::<Vec<_>>(), [64, 96, 128, 192, 256, 384]);
        let a: Vec<u32> = (0..400).collect();
        let mut b = a.clone();
        b[200] += 1;
        let (of_a, of_b) = (prefixes(&a, 7), prefixes(&b, 7));
        assert_eq!(of_a.len(), 6);
        assert_eq!(of_a[..4], of_b[..4]);
        assert_ne!(of_a[4], of_b[4]);
        assert_ne!(of_a[5], of_b[5]);
        assert_ne!(prefixes(&a, 8)[0], of_a[0], "the seed matters");
        assert!(prefixes(&a[..63], 7).is_empty());
    }

    #[test]
    fn the_longest_known_beginning_is_found_and_old_ones_are_forgotten() {
        let mut affinity = Affinity::default();
        let prompt: Vec<u32> = (0..130).collect();
        let known = prefixes(&prompt, 1);
        affinity.went(&known, InstanceId(5));
        affinity.went(&prefixes(&prompt[..70], 1), InstanceId(6));
        let (length, holders) = affinity.holders(&prefixes(&(0..300).collect::<Vec<_>>(), 1)).unwrap();
        assert_eq!((length, holders), (Tokens(128), &[InstanceId(5)][..]));
        let (length, holders) = affinity.holders(&prefixes(&prompt[..65], 1)).unwrap();
        assert_eq!((length, holders), (Tokens(64), &[InstanceId(6), InstanceId(5)][..]));
        for n in 0..REMEMBERED_MAX as u32 {
            affinity.went(&prefixes(&[n + 1000; 64], 1), InstanceId(7));
        }
        assert!(affinity.holders(&known).is_none());
        assert!(affinity.holders.len() <= REMEMBERED_MAX);
    }
}
