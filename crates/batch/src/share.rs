//! How the prefill budget of a step is shared between prompts.

/// Gives each of `remaining` (tokens still to prefill, oldest sequence first) its part of `budget`.
///
/// The oldest gets half, whatever else is there, so that it always gets on; the other half goes to the shortest
/// first, so that a short prompt does not wait behind a long one. What nobody else needs goes to the oldest. Sharing
/// equally instead would finish equal prompts all at the very end; first come first served alone would make a
/// greeting wait for a book.
pub(crate) fn share(budget: usize, remaining: &[usize]) -> Vec<usize> {
    let mut parts = vec![0; remaining.len()];
    let Some((&oldest, others)) = remaining.split_first() else {
        return parts;
    };
    parts[0] = oldest.min(budget.div_ceil(2));
    let mut left = budget - parts[0];
    let mut shortest_first: Vec<usize> = (1..=others.len()).collect();
    shortest_first.sort_by_key(|&at| (remaining[at], at));
    for at in shortest_first {
        parts[at] = remaining[at].min(left);
        left -= parts[at];
    }
    parts[0] += left.min(oldest - parts[0]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_prompt_passes_a_long_one_which_still_gets_half() {
        assert_eq!(share(64, &[4000, 3000, 10]), [32, 22, 10]);
    }

    #[test]
    fn what_the_others_do_not_need_goes_to_the_oldest() {
        assert_eq!(share(64, &[4000, 10]), [54, 10]);
        assert_eq!(share(64, &[5, 10]), [5, 10]);
        assert_eq!(share(0, &[5, 10]), [0, 0]);
        assert_eq!(share(1, &[5, 10]), [1, 0]);
        assert!(share(9, &[]).is_empty());
    }
}
