//! From the rows of a prompt to its vector, piece by piece as the steps give them.

use model::spec::{PooledRows, PoolingSpec};
use nn::LogitRows;

/// The rows of a span of `tokens` from `position` on that pooling needs; `last` where the prompt ends with it.
pub(crate) fn wanted(pooling: &PoolingSpec, position: usize, last: bool) -> LogitRows {
    match pooling.rows {
        PooledRows::Mean => LogitRows::All,
        PooledRows::First if position == 0 => LogitRows::All,
        PooledRows::Last if last => LogitRows::Last,
        PooledRows::First | PooledRows::Last => LogitRows::None,
    }
}

/// The vector of a prompt in the making.
#[derive(Default)]
pub(crate) struct Pooled {
    /// Sums where the mean is wanted: in f64, so that a long prompt's last rows count as much as its first.
    sums: Vec<f64>,
    rows: usize,
}

impl Pooled {
    /// Takes in the rows that the span at `position` gave. One at position 0 begins anew: its sequence may have lost its
    /// pages, and is computed again.
    pub(crate) fn take(&mut self, pooling: &PoolingSpec, position: usize, rows: &[&[f32]]) {
        if position == 0 {
            self.sums.clear();
            self.rows = 0;
        }
        let rows = match pooling.rows {
            PooledRows::Mean => rows,
            PooledRows::First => rows.get(..1).unwrap_or_default(),
            PooledRows::Last => rows.get(rows.len().saturating_sub(1)..).unwrap_or_default(),
        };
        for row in rows {
            self.sums.resize(row.len(), 0.0);
            self.sums.iter_mut().zip(*row).for_each(|(sum, number)| *sum += f64::from(*number));
            self.rows += 1;
        }
    }

    /// The vector; nothing where no row came, or where its numbers are none.
    pub(crate) fn vector(mut self, pooling: &PoolingSpec) -> Option<Vec<f32>> {
        let count = self.rows as f64;
        self.sums.iter_mut().for_each(|sum| *sum /= count);
        if pooling.normalise {
            let length = self.sums.iter().map(|number| number * number).sum::<f64>().sqrt();
            // As torch does: a vector without a direction stays as it is.
            self.sums.iter_mut().for_each(|number| *number /= length.max(1e-12));
        }
        let vector: Vec<f32> = self.sums.iter().map(|number| *number as f32).collect();
        (!vector.is_empty() && vector.iter().all(|number| number.is_finite())).then_some(vector)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(rows: PooledRows, normalise: bool, pieces: &[(usize, &[&[f32]])]) -> Option<Vec<f32>> {
        let pooling = PoolingSpec { rows, normalise };
        let mut pooled = Pooled::default();
        pieces.iter().for_each(|(position, rows)| pooled.take(&pooling, *position, rows));
        pooled.vector(&pooling)
    }

    #[test]
    fn rows_become_one_vector_however_the_prompt_was_cut() {
        let (a, b, c) = ([1.0, 2.0].as_slice(), [3.0, 4.0].as_slice(), [5.0, 9.0].as_slice());
        for pieces in [vec![(0, [a, b, c].as_slice())], vec![(0, [a].as_slice()), (1, [b, c].as_slice())]] {
            assert_eq!(of(PooledRows::Mean, false, &pieces).unwrap(), [3.0, 5.0]);
        }
        assert_eq!(of(PooledRows::First, false, &[(0, &[a, b]), (2, &[])]).unwrap(), a);
        assert_eq!(of(PooledRows::Last, false, &[(0, &[]), (2, &[c])]).unwrap(), c);
        assert_eq!(of(PooledRows::Last, true, &[(0, &[&[3.0, 4.0]])]).unwrap(), [0.6, 0.8]);
    }

    #[test]
    fn what_is_computed_again_counts_once() {
        let (a, b) = ([1.0].as_slice(), [3.0].as_slice());
        assert_eq!(of(PooledRows::Mean, false, &[(0, &[a]), (0, &[a]), (1, &[b])]).unwrap(), [2.0]);
    }

    #[test]
    fn without_rows_or_with_damaged_ones_there_is_no_vector() {
        assert_eq!(of(PooledRows::Last, true, &[(0, &[])]), None);
        assert_eq!(of(PooledRows::Mean, false, &[(0, &[&[f32::NAN]])]), None);
        assert_eq!(of(PooledRows::Mean, true, &[(0, &[&[0.0, 0.0]])]).unwrap(), [0.0, 0.0]);
    }
}
