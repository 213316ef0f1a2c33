//! One tensor where it lies, and in which order its rows and columns are to be read.

use std::borrow::Cow;
use std::ops::Range;

use super::DType;

/// One tensor where it lies: row-major, little-endian. A vector is one row; a tensor of more than two sides is a
/// matrix whose rows are its outermost side.
#[derive(Clone, Copy)]
pub struct TensorView<'a> {
    /// As the checkpoint spells it.
    pub name: &'a str,
    /// How elements are stored.
    pub dtype: DType,
    /// Outermost first; what a reader sees, whatever [`TensorView::order`] does.
    pub shape: &'a [usize],
    /// The stored rows, each of `dtype.row_bytes(stored columns)` bytes, at any alignment.
    pub bytes: &'a [u8],
    /// Scales and biases that lie apart ([`DType::Mxfp4Split`], [`DType::Mlx`]).
    pub parts: Option<Parts<'a>>,
    /// Which stored rows and columns are meant, in which order.
    pub order: Order<'a>,
}

/// What some formats keep beside a tensor's codes, for the same rows: one number for each group of a row.
#[derive(Clone, Copy)]
pub struct Parts<'a> {
    /// For [`DType::Mlx`] of type `dtype`; for [`DType::Mxfp4Split`] one e8m0 byte each.
    pub scales: &'a [u8],
    /// Of type `dtype`; empty for [`DType::Mxfp4Split`].
    pub biases: &'a [u8],
    /// F32, F16 or BF16; means nothing for [`DType::Mxfp4Split`].
    pub dtype: DType,
}

/// Which stored rows and columns a view shows, in which order.
#[derive(Debug, Clone, Copy, Default)]
pub struct Order<'a> {
    /// Row `i` of the view is stored row `rows[i]`; as stored where absent.
    pub rows: Option<&'a [u32]>,
    /// Likewise for columns.
    pub columns: Columns<'a>,
}

/// Which stored columns a view shows.
#[derive(Debug, Clone, Copy, Default)]
pub enum Columns<'a> {
    /// All, as stored.
    #[default]
    All,
    /// As many as the shape says, from `first` on.
    From {
        /// The first that is shown.
        first: usize,
        /// Columns of a stored row.
        stored: usize,
    },
    /// The tensor is stored turned, as floats: column `c` of the view is stored row `first + c`, and row `r` is the stored
    /// column that [`Order::rows`] lists.
    Across {
        /// The first stored row that is shown.
        first: usize,
        /// Columns of a stored row.
        stored: usize,
    },
    /// Blocks of `width` columns: block `i` of the view is stored block `order[i]`.
    Blocks {
        /// Columns of a block: a multiple of the type's group.
        width: usize,
        /// Stored blocks in the order in which they are shown.
        order: &'a [u32],
        /// Columns of a stored row.
        stored: usize,
    },
}

impl std::fmt::Debug for TensorView<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {:?}", self.name, self.dtype, self.shape)
    }
}

impl<'a> TensorView<'a> {
    /// A tensor that is all in `bytes`, read as stored.
    pub fn new(name: &'a str, dtype: DType, shape: &'a [usize], bytes: &'a [u8]) -> Self {
        Self { name, dtype, shape, bytes, parts: None, order: Order::default() }
    }

    /// Rows that a reader sees; one for vectors.
    pub fn rows(&self) -> usize {
        if self.shape.len() < 2 { 1 } else { self.shape[0] }
    }

    /// Columns that a reader sees.
    pub fn columns(&self) -> usize {
        match self.shape {
            [] => 1,
            [columns] => *columns,
            [_, rest @ ..] => rest.iter().product(),
        }
    }

    /// Columns of a stored row.
    pub fn stored_columns(&self) -> usize {
        match self.order.columns {
            Columns::All => self.columns(),
            Columns::From { stored, .. }
            | Columns::Across { stored, .. }
            | Columns::Blocks { stored, .. } => stored,
        }
    }

    /// Where row `row` is stored.
    pub fn stored_row(&self, row: usize) -> usize {
        self.order.rows.map_or(row, |rows| rows[row] as usize)
    }

    /// The stored bytes of row `row`: all its stored columns.
    ///
    /// # Panics
    /// Where there is no such row, or the tensor is stored turned.
    pub fn row_bytes(&self, row: usize) -> &'a [u8] {
        let bytes = self.dtype.row_bytes(self.stored_columns()).expect("stored rows are whole blocks");
        &self.bytes[self.stored_row(row) * bytes..][..bytes]
    }

    /// The stored columns of a row in the order in which they are shown, as ranges.
    pub fn column_runs(&self) -> impl Iterator<Item = Range<usize>> + use<'a> {
        let (order, width, start): (&[u32], usize, usize) = match self.order.columns {
            Columns::All | Columns::Across { .. } => (&[0], self.columns(), 0),
            Columns::From { first, .. } => (&[0], self.columns(), first),
            Columns::Blocks { width, order, .. } => (order, width, 0),
        };
        order.iter().map(move |&block| {
            let first = start + block as usize * width;
            first..first + width
        })
    }

    /// Of a tensor that is stored turned, the bytes of each number of row `row`.
    pub(crate) fn turned_row(&self, row: usize) -> Option<impl Iterator<Item = &'a [u8]> + use<'a>> {
        let Columns::Across { first, stored } = self.order.columns else { return None };
        let (size, bytes, column) = (self.dtype.block().1, self.bytes, self.stored_row(row));
        Some((first..first + self.columns()).map(move |at| &bytes[(at * stored + column) * size..][..size]))
    }

    /// Whether [`TensorView::bytes`] is the tensor as a reader sees it.
    pub fn is_plain(&self) -> bool {
        self.order.rows.is_none() && matches!(self.order.columns, Columns::All)
    }

    /// The bytes of a tensor without [`Parts`] in the order in which a reader sees them: copied where that is not
    /// how they lie.
    pub fn ordered_bytes(&self) -> Cow<'a, [u8]> {
        if self.is_plain() {
            return Cow::Borrowed(self.bytes);
        }
        let part = |columns: usize| self.dtype.row_bytes(columns).expect("columns are cut between blocks");
        let mut out = Vec::with_capacity(self.rows().saturating_mul(part(self.columns())));
        for row in 0..self.rows() {
            if let Some(numbers) = self.turned_row(row) {
                numbers.for_each(|number| out.extend_from_slice(number));
                continue;
            }
            let bytes = self.row_bytes(row);
            for run in self.column_runs() {
                out.extend_from_slice(&bytes[part(run.start)..part(run.end)]);
            }
        }
        Cow::Owned(out)
    }
}
