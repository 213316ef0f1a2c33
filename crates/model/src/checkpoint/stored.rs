//! The tensors of a safetensors checkpoint as they are stored: what belongs together, how it is quantised, and which parts
//! of stacks there are.

use std::collections::HashMap;

use super::spellings::Part;
use super::{
    CheckpointError, Columns, DType, Order, Parts, Quantisation, SafetensorsFile, TensorView, names,
};

/// File, and place in the file.
pub(super) type Place = (usize, usize);

/// A tensor, with the scales and biases that belong to it.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) place: Place,
    /// Nothing where weights may not be of its type.
    dtype: Option<DType>,
    /// As readers see it, and the same of one of a stack, of half of one, of one turned, and of half of one turned.
    shape: Vec<usize>,
    one: Vec<usize>,
    half: Vec<usize>,
    turned: Vec<usize>,
    turned_half: Vec<usize>,
    scales: Option<Place>,
    biases: Option<Place>,
}

/// Orders of rows, as long as any stack needs them.
#[derive(Debug, Default)]
pub(super) struct Orders {
    all: Vec<u32>,
    even: Vec<u32>,
    odd: Vec<u32>,
}

/// How a delta net's convolution is called in every checkpoint.
const CONVOLUTION: &str = ".linear_attn.conv1d.weight";

/// `shape` of the tensor called `name`; MLX has the taps of a convolution before its side of one, which is the same
/// numbers in the same order.
fn shape_of(name: &str, shape: &[usize]) -> Vec<usize> {
    match *shape {
        [channels, taps, 1] if name.ends_with(CONVOLUTION) => vec![channels, 1, taps],
        _ => shape.to_vec(),
    }
}

/// Whether the checkpoint went through MLX, which turns convolutions and adds one to the norms beside them.
pub(super) fn is_sanitised(files: &[SafetensorsFile<'_>]) -> bool {
    let names = |file: &SafetensorsFile<'_>| {
        let place = file.names().position(|name| name.ends_with(CONVOLUTION))?;
        Some(matches!(*file.raw(place).1, [_, taps, 1] if taps != 1))
    };
    files.iter().find_map(names).unwrap_or(false)
}

/// Every tensor by its usual name, and the orders that their parts need.
pub(super) fn collect(
    files: &[SafetensorsFile<'_>],
    quantisation: &Quantisation,
) -> Result<(HashMap<String, Stored>, Orders), CheckpointError> {
    let mut places: HashMap<&str, Place> = HashMap::new();
    for (number, file) in files.iter().enumerate() {
        for (place, name) in file.names().enumerate() {
            if let Some((other, _)) = places.insert(name, (number, place)) {
                return Err(CheckpointError::InTwoFiles {
                    tensor: name.to_owned(),
                    first: files[other].file_name().to_owned(),
                    second: file.file_name().to_owned(),
                });
            }
        }
    }
    let prefix = names::prefix(|name| places.contains_key(name));
    let mut tensors = HashMap::with_capacity(places.len());
    let mut longest = 0;
    for (name, &place) in &places {
        let kind = files[place.0].raw(place.1).0;
        if is_beside(name, |other| places.get(other).map(|&(file, place)| files[file].raw(place).0)) {
            continue;
        }
        let beside = |part: &str| places.get(part).copied();
        let stored = match kind {
            "U32" => mlx(files, name, place, quantisation, beside)?,
            "U8" if name.ends_with("_blocks") => blocks(files, name, place, beside)?,
            _ => Stored::new(place, files[place.0].view(place.1).ok().map(|view| view.dtype), {
                shape_of(name, files[place.0].raw(place.1).1)
            }),
        };
        if name.contains(".experts.gate_up_proj") || name.contains(".experts.down_proj") {
            longest = longest.max(stored.one.iter().copied().max().unwrap_or(0));
        }
        tensors.insert(names::usual(name, prefix), stored);
    }
    let count = u32::try_from(longest).unwrap_or(0);
    let orders = Orders {
        all: (0..count).collect(),
        even: (0..count).step_by(2).collect(),
        odd: (1..count).step_by(2).collect(),
    };
    Ok((tensors, orders))
}

/// Whether `name` is the scales or biases of another tensor; `kind` gives a tensor's stored type.
fn is_beside<'a>(name: &str, kind: impl Fn(&str) -> Option<&'a str>) -> bool {
    let mlx = name.strip_suffix(".scales").or_else(|| name.strip_suffix(".biases"));
    if let Some(stem) = mlx {
        return kind(&format!("{stem}.weight")) == Some("U32");
    }
    name.strip_suffix("_scales").is_some_and(|stem| kind(&format!("{stem}_blocks")) == Some("U8"))
}

fn bad(file: &SafetensorsFile<'_>, name: &str, detail: String) -> CheckpointError {
    CheckpointError::BadTensor { file: file.file_name().to_owned(), tensor: name.to_owned(), detail }
}

/// MLX's codes: words of 32 bits, with scales and, where the mode has them, biases beside them.
fn mlx(
    files: &[SafetensorsFile<'_>],
    name: &str,
    place: Place,
    quantisation: &Quantisation,
    beside: impl Fn(&str) -> Option<Place>,
) -> Result<Stored, CheckpointError> {
    let file = &files[place.0];
    let words = file.raw(place.1).1;
    let Some(stem) = name.strip_suffix(".weight") else {
        return Ok(Stored::new(place, None, words.to_vec()));
    };
    let Some(dtype) = quantisation.of(stem) else {
        return Err(bad(
            file,
            name,
            "is stored as U32, and config.json's quantization does not say how".to_owned(),
        ));
    };
    let bits = if let DType::Mlx { bits, .. } = dtype { usize::from(bits) } else { 4 };
    let group = dtype.block().0;
    let Some((&last, outer)) = words.split_last() else {
        return Err(bad(file, name, "is quantised and has no sides".to_owned()));
    };
    let columns = last.checked_mul(32).filter(|all| all % bits == 0).map(|all| all / bits);
    let Some(columns) = columns.filter(|columns| columns.is_multiple_of(group)) else {
        return Err(bad(
            file,
            name,
            format!(
                "has rows of {last} words of 32 bits, which are no whole groups of {group} codes of {bits} bits"
            ),
        ));
    };
    let shape = [outer, &[columns]].concat();
    let groups = [outer, &[columns / group]].concat();
    let find = |part: &str, kinds: &[&str]| {
        let part = format!("{stem}.{part}");
        let Some(place) = beside(&part) else {
            return Err(CheckpointError::MissingTensor { tensor: part, file: file.file_name().to_owned() });
        };
        let (kind, found, _) = files[place.0].raw(place.1);
        if !kinds.contains(&kind) || found != groups {
            let detail = format!("is {kind} {found:?}, but {name:?} needs {} {groups:?}", kinds.join(" or "));
            return Err(bad(&files[place.0], &part, detail));
        }
        Ok(place)
    };
    let mut stored = Stored::new(place, Some(dtype), shape);
    if dtype == DType::Mxfp4Split {
        stored.scales = Some(find("scales", &["U8"])?);
    } else {
        let (scales, biases) =
            (find("scales", &["F16", "BF16", "F32"])?, find("biases", &["F16", "BF16", "F32"])?);
        let kind = |(file, place): Place| files[file].raw(place).0;
        if kind(scales) != kind(biases) {
            return Err(bad(file, name, "has scales and biases of different types".to_owned()));
        }
        (stored.scales, stored.biases) = (Some(scales), Some(biases));
    }
    Ok(stored)
}

/// gpt-oss's MXFP4: `[experts, rows, groups, 16]` bytes, and a scale for each group beside them.
fn blocks(
    files: &[SafetensorsFile<'_>],
    name: &str,
    place: Place,
    beside: impl Fn(&str) -> Option<Place>,
) -> Result<Stored, CheckpointError> {
    let file = &files[place.0];
    let found = file.raw(place.1).1;
    let &[experts, rows, groups, 16] = found else {
        return Err(bad(
            file,
            name,
            format!("has shape {found:?}, where MXFP4 has [experts, rows, groups, 16]"),
        ));
    };
    let part = format!("{}_scales", name.strip_suffix("_blocks").unwrap_or(name));
    let Some(scales) = beside(&part) else {
        return Err(CheckpointError::MissingTensor { tensor: part, file: file.file_name().to_owned() });
    };
    let (kind, shape, _) = files[scales.0].raw(scales.1);
    if kind != "U8" || shape != [experts, rows, groups] {
        let detail = format!("is {kind} {shape:?}, but {name:?} needs U8 {:?}", [experts, rows, groups]);
        return Err(bad(&files[scales.0], &part, detail));
    }
    let Some(columns) = groups.checked_mul(32) else {
        return Err(bad(file, name, format!("has {groups} groups, too many")));
    };
    let mut stored = Stored::new(place, Some(DType::Mxfp4Split), vec![experts, rows, columns]);
    stored.scales = Some(scales);
    Ok(stored)
}

impl Stored {
    fn new(place: Place, dtype: Option<DType>, shape: Vec<usize>) -> Self {
        let one = shape.get(1..).unwrap_or_default().to_vec();
        let halved = |shape: &[usize]| match shape.split_first() {
            Some((first, rest)) => [&[first / 2], rest].concat(),
            None => Vec::new(),
        };
        let turned: Vec<usize> = one.iter().rev().copied().collect();
        Self {
            place,
            dtype,
            half: halved(&one),
            turned_half: halved(&turned),
            one,
            turned,
            shape,
            scales: None,
            biases: None,
        }
    }

    /// `part` of it; nothing where it has no such part.
    pub(super) fn view<'s>(
        &'s self,
        files: &'s [SafetensorsFile<'_>],
        part: Part,
        orders: &'s Orders,
    ) -> Result<Option<TensorView<'s>>, CheckpointError> {
        let file = &files[self.place.0];
        let Some(dtype) = self.dtype else { return file.view(self.place.1).map(Some) };
        let (name, (_, _, bytes)) = (file.name(self.place.1), file.raw(self.place.1));
        let raw = |place: Option<Place>| place.map(|(file, place)| files[file].raw(place));
        let (scales, biases) = (raw(self.scales), raw(self.biases));
        let mut view = TensorView::new(name, dtype, &self.shape, bytes);
        view.parts = scales.map(|(kind, _, scales)| Parts {
            scales,
            biases: biases.map_or(&[], |(_, _, biases)| biases),
            dtype: match kind {
                "F16" => DType::F16,
                "BF16" => DType::BF16,
                _ => DType::F32,
            },
        });
        let (number, half) = match part {
            Part::Whole => return Ok(Some(view)),
            Part::FirstHalf(number) => (number, Some(0)),
            Part::SecondHalf(number) => (number, Some(1)),
            Part::Of(number) | Part::Even(number) | Part::Odd(number) => (number, None),
            Part::Turned(number) | Part::TurnedEven(number) | Part::TurnedOdd(number) => (number, None),
        };
        let stack = self.shape.first().copied().unwrap_or(0);
        if usize::from(number) >= stack || self.one.is_empty() || (part.is_turned() && self.one.len() != 2) {
            return Ok(None);
        }
        let cut = |bytes: &'s [u8]| {
            let of_one = bytes.len() / stack;
            let one = &bytes[usize::from(number) * of_one..][..of_one];
            half.map_or(one, |half| &one[half * (of_one / 2)..][..of_one / 2])
        };
        view.bytes = cut(bytes);
        view.parts =
            view.parts.map(|parts| Parts { scales: cut(parts.scales), biases: cut(parts.biases), ..parts });
        view.shape = match part {
            Part::Whole | Part::Of(_) => &self.one,
            Part::FirstHalf(_) | Part::SecondHalf(_) | Part::Even(_) | Part::Odd(_) => &self.half,
            Part::Turned(_) => &self.turned,
            Part::TurnedEven(_) | Part::TurnedOdd(_) => &self.turned_half,
        };
        let listed = match part {
            Part::Even(_) | Part::TurnedEven(_) => &orders.even,
            Part::Odd(_) | Part::TurnedOdd(_) => &orders.odd,
            Part::Turned(_) => &orders.all,
            _ => return Ok(Some(view)),
        };
        let Some(order) = listed.get(..view.shape[0]) else { return Ok(None) };
        view.order = match (part.is_turned(), self.one.as_slice()) {
            (true, _) => {
                Order { rows: Some(order), columns: Columns::Across { first: 0, stored: self.one[1] } }
            }
            // A vector's numbers are columns.
            (false, &[stored]) => Order { rows: None, columns: Columns::Blocks { width: 1, order, stored } },
            (false, _) => Order { rows: Some(order), columns: Columns::All },
        };
        Ok(Some(view))
    }
}
