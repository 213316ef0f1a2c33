//! Which instruction set the loops run with: found at run time, or chosen by a test.

use crate::dots::{DotKernel, Dots, ScalarDots};
use crate::lanes::{Kernel, Scalar};

/// An instruction set that this machine has. There is no way to hold one that it lacks, so whoever has a value
/// may run its loops.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Isa(Level);

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Level {
    #[cfg(target_arch = "x86_64")]
    Amx,
    #[cfg(target_arch = "x86_64")]
    Bf16,
    #[cfg(target_arch = "x86_64")]
    Vnni,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
    Twin,
}

impl std::fmt::Debug for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Isa {
    /// The fastest that this machine has.
    pub fn detect() -> Self {
        Self::available()[0]
    }

    /// The same and matrix tiles (AMX with products of bytes and of bf16), where there are some and the system permits them:
    /// the first time, it is asked to.
    pub fn amx() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if Self::bf16().is_some() && crate::tiles::permitted() {
            return Some(Self(Level::Amx));
        }
        None
    }

    /// 512-bit vectors with byte products and products of pairs of bf16 (AVX-512 BF16), where there are some.
    pub fn bf16() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if Self::vnni().is_some() && is_x86_feature_detected!("avx512bf16") {
            return Some(Self(Level::Bf16));
        }
        None
    }

    /// 512-bit vectors with byte products (AVX-512 VNNI), where there are some.
    pub fn vnni() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if Self::avx512().is_some() && is_x86_feature_detected!("avx512vnni") {
            return Some(Self(Level::Vnni));
        }
        None
    }

    /// 512-bit vectors (AVX-512 F, BW, DQ, VL), where there are some.
    pub fn avx512() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
        {
            return Some(Self(Level::Avx512));
        }
        None
    }

    /// 256-bit vectors (AVX2, FMA, F16C), where there are some.
    pub fn avx2() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
        {
            return Some(Self(Level::Avx2));
        }
        None
    }

    /// Plain Rust, on every machine. Fuses multiply and add only where the target always can (AArch64).
    pub const fn portable() -> Self {
        Self(Level::Portable)
    }

    /// The scalar twin that the others are tested against: plain Rust that always fuses multiply and add, in
    /// software where it must, so that its results are bitwise those of the vector paths. Slow.
    pub const fn twin() -> Self {
        Self(Level::Twin)
    }

    /// All that this machine has, fastest first, the twin left out.
    pub fn available() -> Vec<Self> {
        let all =
            [Self::amx(), Self::bf16(), Self::vnni(), Self::avx512(), Self::avx2(), Some(Self::portable())];
        all.into_iter().flatten().collect()
    }

    /// The one that people call so, where this machine has it.
    pub fn named(name: &str) -> Option<Self> {
        Self::available().into_iter().find(|isa| isa.name() == name)
    }

    /// What people call it.
    pub const fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Level::Amx => "amx",
            #[cfg(target_arch = "x86_64")]
            Level::Bf16 => "avx512bf16",
            #[cfg(target_arch = "x86_64")]
            Level::Vnni => "avx512vnni",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            Level::Portable => "portable",
            Level::Twin => "twin",
        }
    }

    /// Runs `kernel` with this instruction set.
    pub(crate) fn dispatch<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a value of this level exists only where detection found every feature it names.
            Level::Amx | Level::Bf16 | Level::Vnni | Level::Avx512 => unsafe { run_avx512(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Level::Avx2 => unsafe { run_avx2(kernel) },
            // SAFETY: the scalar lanes need no feature.
            Level::Portable => unsafe { kernel.run::<Scalar<{ cfg!(target_arch = "aarch64") }>>() },
            // SAFETY: as above.
            Level::Twin => unsafe { kernel.run::<Scalar<true>>() },
        }
    }

    /// The same for a kernel that multiplies pairs of bf16.
    pub(crate) fn dispatch_pairs<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a value of this level exists only where detection found every feature it names.
            Level::Amx | Level::Bf16 => unsafe { run_avx512_bf16(kernel) },
            _ => self.dispatch(kernel),
        }
    }

    /// Runs `kernel`, which multiplies bytes, with this instruction set.
    pub(crate) fn dispatch_dots<K: DotKernel>(self, kernel: K) -> K::Output {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a value of this level exists only where detection found every feature it names.
            Level::Amx | Level::Bf16 | Level::Vnni => unsafe { dots_vnni(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above; whatever has AVX-512 has AVX2.
            Level::Avx512 | Level::Avx2 => unsafe { dots_avx2(kernel) },
            // SAFETY: arrays need no feature.
            Level::Portable => unsafe { kernel.run::<ScalarDots<{ cfg!(target_arch = "aarch64") }>>() },
            // SAFETY: as above.
            Level::Twin => unsafe { kernel.run::<ScalarDots<true>>() },
        }
    }

    /// Whether there are matrix tiles.
    pub(crate) const fn tiles(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return matches!(self.0, Level::Amx);
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// What the loops over byte products need to know before they run.
    pub(crate) const fn dots(self) -> DotsTraits {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Level::Amx | Level::Bf16 | Level::Vnni => DotsTraits::of::<crate::dots::VnniDots>(),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Avx2 => DotsTraits::of::<crate::dots::Avx2Dots>(),
            Level::Portable | Level::Twin => DotsTraits::of::<ScalarDots<true>>(),
        }
    }
}

/// The constants of [`Dots`].
pub(crate) struct DotsTraits {
    pub(crate) signed: bool,
    pub(crate) direct: bool,
    pub(crate) tile: usize,
    pub(crate) rows: usize,
}

impl DotsTraits {
    const fn of<D: Dots>() -> Self {
        Self { signed: D::SIGNED, direct: D::DIRECT, tile: D::TILE, rows: D::ROWS }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn dots_vnni<K: DotKernel>(kernel: K) -> K::Output {
    // SAFETY: this function is entered only where the features are.
    unsafe { kernel.run::<crate::dots::VnniDots>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn dots_avx2<K: DotKernel>(kernel: K) -> K::Output {
    // SAFETY: this function is entered only where the features are.
    unsafe { kernel.run::<crate::dots::Avx2Dots>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: this function is entered only where the features are.
    unsafe { kernel.run::<crate::lanes::Avx512>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
fn run_avx512_bf16<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: this function is entered only where the features are.
    unsafe { kernel.run::<crate::lanes::Avx512Bf16>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: this function is entered only where the features are.
    unsafe { kernel.run::<crate::lanes::Avx2>() }
}

/// The vector extensions of this machine that matter to language models, by their usual names: for hardware
/// reports, not for dispatch.
pub fn features() -> Vec<&'static str> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! probe {
            ($($name:tt),*) => { $(if is_x86_feature_detected!($name) { found.push($name); })* };
        }
        probe!("avx", "avx2", "fma", "f16c", "avxvnni", "avx512f", "avx512bw", "avx512dq", "avx512vl");
        probe!("avx512vnni", "avx512bf16", "avx512fp16");
        if crate::tiles::permitted() {
            found.push("amx");
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        macro_rules! probe {
            ($($name:tt),*) => {
                $(if std::arch::is_aarch64_feature_detected!($name) { found.push($name); })*
            };
        }
        probe!("neon", "fp16", "dotprod", "bf16", "i8mm", "sve", "sve2");
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_detected_set_is_the_first_of_those_available() {
        assert_eq!(Isa::available().first(), Some(&Isa::detect()));
        assert_eq!(Isa::available().last(), Some(&Isa::portable()));
    }
}
