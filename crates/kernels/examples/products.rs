//! How fast products with weights of each format are: `products [threads] [rows ...]`. Weights are larger than any cache.
#![allow(clippy::print_stdout, reason = "it is a measurement's output")]

use kernels::{
    Codes, Factors, GroupedFormat, GroupedRows, Isa, PackedMatrix, Store, Team, WeightBytes, WeightElement,
    linear,
};

const COLUMNS: usize = 2048;
const ROWS: usize = 32768;

/// Seconds that the calling thread has run: on a shared machine the clock on the wall says little.
fn on_cpu() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// Codes up to a largest one, scales with factors or not.
struct Random(u8, bool);

impl GroupedRows for Random {
    fn rows(&self) -> usize {
        ROWS
    }
    fn columns(&self) -> usize {
        COLUMNS
    }
    fn read(&self, row: usize, codes: &mut [u8], scales: &mut [f32], mins: &mut [f32]) {
        let mut state = row as u64 + 1;
        for code in codes {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *code = (state >> 56) as u8 & self.0;
        }
        scales.fill(0.001_953_125);
        mins.fill(-0.125);
    }
    fn read_factors(&self, row: usize, out: &mut Factors<'_>) -> bool {
        out.scales.fill(0.000_976_562_5);
        out.mins.fill(-0.001_953_125);
        out.of_scales.fill(row as u8 % 64);
        out.of_mins.fill(33);
        self.1
    }
}

fn main() {
    let only = std::env::var("ISA").unwrap_or_default();
    let mut arguments = std::env::args().skip(1).map(|text| text.parse().expect("a number"));
    let threads: usize = arguments.next().unwrap_or(1);
    let mut counts: Vec<usize> = arguments.collect();
    if counts.is_empty() {
        counts = vec![1, 2, 4, 8, 16, 256];
    }
    let team = Team::new(threads);
    let coded = |codes, group, zero, factors| {
        let format = GroupedFormat { codes, group, zero };
        let largest = match codes {
            Codes::Affine8 => 255,
            Codes::Affine6 => 63,
            Codes::Affine4 | Codes::Mxfp4 => 15,
        };
        PackedMatrix::pack_grouped(&[&Random(largest, factors)], format, &team).expect("memory")
    };
    let grouped = |codes, group, zero| coded(codes, group, zero, false);
    let bytes: Vec<u8> =
        (0..ROWS * COLUMNS).flat_map(|at| ((at % 251) as u16 + 0x3c00).to_le_bytes()).collect();
    let half = |element| {
        let part = WeightBytes { element, rows: ROWS, columns: COLUMNS, bytes: &bytes };
        PackedMatrix::pack(&[part], element, &team).expect("memory")
    };
    let rounded = half(WeightElement::Bf16).with_activations(kernels::Activations::Bf16);
    let formats = [
        ("q4_0", grouped(Codes::Affine4, 32, Some(8))),
        ("q4_1", grouped(Codes::Affine4, 32, None)),
        ("mlx4/64", grouped(Codes::Affine4, 64, None)),
        ("q8_0", grouped(Codes::Affine8, 32, Some(128))),
        ("q4_k", coded(Codes::Affine4, 32, None, true)),
        ("q5_k", coded(Codes::Affine6, 32, None, true)),
        ("q6_k", coded(Codes::Affine6, 16, Some(32), true)),
        ("mxfp4", grouped(Codes::Mxfp4, 32, None)),
        ("bf16", half(WeightElement::Bf16)),
        ("bf16/r", rounded),
    ];
    let isa = Isa::detect();
    let [f32, int8] = [kernels::f32_ceiling(&team, isa), kernels::int8_ceiling(&team, isa)];
    println!("ceilings: {:.0} G f32, {:.0} G int8 multiply-adds/s", f32 / 1e9, int8 / 1e9);
    let format = std::env::var("FORMAT").unwrap_or_default();
    for isa in Isa::available() {
        if !only.is_empty() && !only.split(',').any(|one| one == isa.name()) {
            continue;
        }
        for (name, w) in formats.iter().filter(|(name, _)| format.is_empty() || format == *name) {
            for &rows in counts.iter().filter(|rows| isa != Isa::portable() || **rows <= 4) {
                measure((&team, isa), (name, w), rows);
            }
        }
    }
}

fn measure((team, isa): (&Team, Isa), (name, w): (&str, &PackedMatrix), rows: usize) {
    let x: Vec<f32> = (0..rows * COLUMNS).map(|at| (at % 97) as f32 / 48.0 - 1.0).collect();
    let mut out = vec![0.0; rows * ROWS];
    let runs = if rows > 16 { 3 } else { 7 };
    let mut took: Vec<f64> = (0..=runs)
        .map(|_| {
            let begun = on_cpu();
            linear(team, isa, &x, w, None, Store::Set, &mut out);
            on_cpu() - begun
        })
        .collect();
    took.sort_by(f64::total_cmp);
    let (best, median) = (took[0], took[took.len() / 2]);
    println!(
        "{:10} {name:8} rows {rows:4}: best {:8.3} ms, median {:8.3} ms, {:6.1} GB/s, {:7.1} G multiply-adds/s",
        isa.name(),
        best * 1e3,
        median * 1e3,
        w.bytes() as f64 / best / 1e9,
        (rows * ROWS * COLUMNS) as f64 / best / 1e9,
    );
}
