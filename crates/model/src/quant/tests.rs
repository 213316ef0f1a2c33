//! Golden bytes from other implementations, and what the readers owe each other.

use std::path::PathBuf;

use base::Rng;

use super::*;
use crate::checkpoint::Parts;

const ROWS: usize = 3;
const COLUMNS: usize = 512;

fn fixture(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quants").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn golden(name: &str) -> Vec<f32> {
    let mut out = vec![0.0; ROWS * COLUMNS];
    floats(DType::F32, &fixture(&format!("{name}.f32")), &mut out);
    out
}

const GGML: [DType; 11] = [
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q8_0,
    DType::Q2K,
    DType::Q3K,
    DType::Q4K,
    DType::Q5K,
    DType::Q6K,
    DType::Mxfp4,
];

#[test]
fn ggml_blocks_read_as_gguf_reads_them_bit_for_bit() {
    for dtype in GGML {
        let bytes = fixture(&format!("{}.codes", dtype.name()));
        let view = TensorView::new("t", dtype, &[ROWS, COLUMNS], &bytes);
        let (found, expected) = (dequantise_all(&view), golden(dtype.name()));
        for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
            // Zeros may differ in their sign.
            assert!(found == expected, "{dtype} at {at}: {found} for {expected}");
        }
    }
}

#[test]
fn mlx_groups_read_as_mlx_reads_them() {
    let cases = [
        (4, 32, DType::F16, "float16"),
        (4, 64, DType::BF16, "bfloat16"),
        (4, 128, DType::F32, "float32"),
        (8, 64, DType::F16, "float16"),
        (8, 32, DType::BF16, "bfloat16"),
        (2, 64, DType::F16, "float16"),
        (3, 64, DType::F16, "float16"),
        (5, 32, DType::F16, "float16"),
        (6, 64, DType::BF16, "bfloat16"),
    ];
    for (bits, group, dtype, spelled) in cases {
        let name = format!("mlx{bits}-{group}-{spelled}");
        let read = |part: &str| fixture(&format!("{name}.{part}"));
        let (codes, scales, biases) = (read("codes"), read("scales"), read("biases"));
        let mut view = TensorView::new("t", DType::Mlx { bits, group }, &[ROWS, COLUMNS], &codes);
        view.parts = Some(Parts { scales: &scales, biases: &biases, dtype });
        for (at, (found, expected)) in dequantise_all(&view).iter().zip(golden(&name)).enumerate() {
            // Theirs may multiply and add in one rounding.
            assert!((found - expected).abs() <= 1e-7, "{name} at {at}: {found} for {expected}");
        }
    }
}

#[test]
fn split_mxfp4_reads_as_mlx_reads_it() {
    let (codes, scales) = (fixture("mlx-mxfp4.codes"), fixture("mlx-mxfp4.scales"));
    let mut view = TensorView::new("t", DType::Mxfp4Split, &[ROWS, COLUMNS], &codes);
    view.parts = Some(Parts { scales: &scales, biases: &[], dtype: DType::F32 });
    assert_eq!(dequantise_all(&view), golden("mlx-mxfp4"));
}

/// Any cut and any order of a tensor reads as the same cut and order of its numbers.
#[test]
fn slices_and_orders_read_what_they_show() {
    let mut rng = Rng::new(5);
    for dtype in GGML.into_iter().chain([DType::F32, DType::BF16]) {
        let (elements, size) = dtype.block();
        let bytes = match dtype.is_float() {
            true => (0..ROWS * COLUMNS / elements * size).map(|_| rng.below(120) as u8).collect(),
            false => fixture(&format!("{}.codes", dtype.name())),
        };
        let whole = TensorView::new("t", dtype, &[ROWS, COLUMNS], &bytes);
        let numbers = dequantise_all(&whole);
        let rows = [2, 0, 1, 0];
        let columns = [3, 0, 2];
        let width = 128;
        let mut view = whole;
        view.shape = &[4, 384];
        view.order =
            Order { rows: Some(&rows), columns: Columns::Blocks { width, order: &columns, stored: COLUMNS } };
        let expected: Vec<f32> = rows
            .iter()
            .flat_map(|&row| columns.iter().map(move |&block| (row, block)))
            .flat_map(|(row, block)| {
                let first = row as usize * COLUMNS + block as usize * width;
                numbers[first..first + width].to_vec()
            })
            .collect();
        assert_eq!(dequantise_all(&view), expected, "{dtype}");
        let shape = [2, 256];
        let part = slice(&view, 1..3, 128..384, &shape).unwrap();
        let of_row = |row: usize| expected[row * 384 + 128..(row + 1) * 384].to_vec();
        assert_eq!(dequantise_all(&part), [of_row(1), of_row(2)].concat(), "{dtype}");

        let unit = grouping(dtype).map_or(1, |g| g.group);
        let (first, last) = (unit * 3, unit * 11);
        let shape = [2, last - first];
        let part = slice(&whole, 1..3, first..last, &shape).unwrap();
        let inner_shape = [1, last - first - unit];
        let inner = slice(&part, 1..2, unit..last - first, &inner_shape).unwrap();
        let of_row = |row: usize, first: usize| numbers[row * COLUMNS + first..row * COLUMNS + last].to_vec();
        assert_eq!(dequantise_all(&part), [of_row(1, first), of_row(2, first)].concat(), "{dtype}");
        assert_eq!(dequantise_all(&inner), of_row(2, first + unit), "{dtype}");
        if unit > 1 {
            assert!(slice(&whole, 0..1, 1..unit, &[1, unit - 1]).is_err());
        }
        if dtype.is_float() || width.is_multiple_of(elements) {
            let mut plain = view;
            let ordered = view.ordered_bytes();
            (plain.bytes, plain.order) = (&ordered, Order::default());
            assert_eq!(dequantise_all(&plain), expected, "{dtype}");
        }
    }
}

#[test]
fn a_scale_that_is_no_number_is_found() {
    let mut bytes = fixture("Q4_K.codes");
    let view = TensorView::new("t", DType::Q4K, &[ROWS, COLUMNS], &bytes);
    assert!((0..ROWS).all(|row| row_is_finite(&view, row)));
    bytes[144 * 3 + 1] = 0x7c;
    let view = TensorView::new("t", DType::Q4K, &[ROWS, COLUMNS], &bytes);
    assert_eq!((0..ROWS).map(|row| row_is_finite(&view, row)).collect::<Vec<_>>(), [true, false, true]);
    let view = TensorView::new("t", DType::Mxfp4, &[1, 32], &[255; 17]);
    assert!(!row_is_finite(&view, 0));
}
