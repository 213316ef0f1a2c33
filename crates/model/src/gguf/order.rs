//! Orders in which llama.cpp's converter stores some tensors' rows, columns and numbers, undone.

/// What is to be undone. Orders say which stored row (or block) each row of the family's order is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Reorder {
    /// Rows of each head stored as neighbours that turn together; families know them as halves.
    Pairs { heads: usize, head_dim: usize },
    /// After `before` rows, value heads of `width` rows: stored with one of every key head, then the next of every key
    /// head; families know those of a key head together.
    Tiles { before: usize, keys: usize, per_key: usize, width: usize },
    /// The same for columns, in blocks of `width`.
    Columns { keys: usize, per_key: usize, width: usize },
    /// Numbers stored as `-exp(x)`.
    LogOfNegated,
    /// Both.
    LogOfNegatedTiled { keys: usize, per_key: usize },
}

impl Reorder {
    /// The stored place of each row (or block of columns).
    pub(super) fn order(self) -> Vec<u32> {
        let order: Vec<usize> = match self {
            Self::Pairs { heads, head_dim } => {
                let half = head_dim / 2;
                let of_head = (0..head_dim).map(move |at| 2 * (at % half.max(1)) + at / half.max(1));
                (0..heads).flat_map(|head| of_head.clone().map(move |at| head * head_dim + at)).collect()
            }
            Self::Tiles { before, keys, per_key, width } => {
                let heads = tiles(keys, per_key);
                let rows = heads.flat_map(|head| (0..width).map(move |at| before + head * width + at));
                (0..before).chain(rows).collect()
            }
            Self::Columns { keys, per_key, .. } | Self::LogOfNegatedTiled { keys, per_key } => {
                tiles(keys, per_key).collect()
            }
            Self::LogOfNegated => Vec::new(),
        };
        order
            .into_iter()
            .map(|at| u32::try_from(at).expect("specs are checked against limits below it"))
            .collect()
    }
}

fn tiles(keys: usize, per_key: usize) -> impl Iterator<Item = usize> {
    (0..keys).flat_map(move |key| (0..per_key).map(move |at| at * keys + key))
}

/// `values`, rows of `columns`, put in order.
pub(super) fn apply(reorder: Reorder, values: &[f32], columns: usize) -> Result<Vec<f32>, String> {
    let log = |values: Vec<f32>| -> Result<Vec<f32>, String> {
        let wrong = values.iter().find(|x| !(x.is_finite() && **x < 0.0));
        match wrong {
            Some(wrong) => Err(format!("holds {wrong}, where each number must be below 0")),
            None => Ok(values.into_iter().map(|x| (-x).ln()).collect()),
        }
    };
    let order = reorder.order();
    let picked = |width: usize| -> Vec<f32> {
        let of_row = |row: &[f32]| -> Vec<f32> {
            order.iter().flat_map(|&at| &row[at as usize * width..][..width]).copied().collect()
        };
        values.chunks_exact(columns.max(1)).flat_map(of_row).collect()
    };
    match reorder {
        Reorder::LogOfNegated => log(values.to_vec()),
        Reorder::LogOfNegatedTiled { .. } => log(picked(1)),
        Reorder::Columns { width, .. } => Ok(picked(width)),
        // A vector: each number is what a row is in a matrix.
        Reorder::Pairs { .. } | Reorder::Tiles { .. } => Ok(picked(1)),
    }
}
