//! Functions of one number, over lanes: the exponential and the activations made of it.

use crate::lanes::Lanes;

/// `e^x`, within 2 units in the last place between -87.3 and 88.3 and clamped outside; no number stays none.
///
/// Range reduction and polynomial after Cephes' `expf` (Moshier).
///
/// # Safety
/// As for [`Lanes`].
#[inline(always)]
pub(crate) unsafe fn exp<L: Lanes>(x: L::V) -> L::V {
    // Adding and subtracting it rounds to a whole number: above 2^23 floats have no fraction.
    const ROUND: f32 = 12_582_912.0;
    unsafe {
        let x = L::min(L::splat(88.3), L::max(L::splat(-87.3), x));
        let n = L::sub(L::fma(x, L::splat(std::f32::consts::LOG2_E), L::splat(ROUND)), L::splat(ROUND));
        // ln 2 in two parts, the first with so few digits that its product with `n` is exact.
        let r = L::fma(n, L::splat(-0.693_359_4), x);
        let r = L::fma(n, L::splat(2.121_944_4e-4), r);
        let mut p = L::splat(1.987_569_1e-4);
        p = L::fma(p, r, L::splat(1.398_2e-3));
        p = L::fma(p, r, L::splat(8.333_452e-3));
        p = L::fma(p, r, L::splat(4.166_579_6e-2));
        p = L::fma(p, r, L::splat(1.666_666_5e-1));
        p = L::fma(p, r, L::splat(0.5));
        let p = L::fma(L::mul(r, r), p, L::add(r, L::splat(1.0)));
        L::mul(p, L::pow2(n))
    }
}

/// `x * sigmoid(x)`.
///
/// # Safety
/// As for [`Lanes`].
#[inline(always)]
pub(crate) unsafe fn silu<L: Lanes>(x: L::V) -> L::V {
    unsafe { L::div(x, L::add(L::splat(1.0), exp::<L>(L::sub(L::splat(0.0), x)))) }
}

/// GELU in its tanh form: `0.5 x (1 + tanh(u))` is `x * sigmoid(2u)` with `u = sqrt(2/pi) (x + 0.044715 x^3)`.
///
/// # Safety
/// As for [`Lanes`].
#[inline(always)]
pub(crate) unsafe fn gelu_tanh<L: Lanes>(x: L::V) -> L::V {
    unsafe {
        let cubic = L::mul(L::mul(x, x), L::splat(0.044_715));
        let u = L::mul(L::fma(cubic, x, x), L::splat(0.797_884_6));
        let power = L::mul(u, L::splat(-2.0));
        L::div(x, L::add(L::splat(1.0), exp::<L>(power)))
    }
}

/// `cap * tanh(x / cap)`, as `cap * (1 - 2 / (1 + e^(2 x / cap)))`.
///
/// # Safety
/// As for [`Lanes`].
#[inline(always)]
pub(crate) unsafe fn soft_cap<L: Lanes>(x: L::V, cap: f32) -> L::V {
    unsafe {
        let (one, cap) = (L::splat(1.0), L::splat(cap));
        let power = exp::<L>(L::mul(L::div(x, cap), L::splat(2.0)));
        L::mul(cap, L::sub(one, L::div(L::splat(2.0), L::add(one, power))))
    }
}

/// GELU by its definition, `x * cdf(x)` of the normal distribution: `max(x, 0) - |x| * tail(|x|)`, the tail by formula
/// 7.1.26 of Abramowitz and Stegun, which is within 1.5e-7.
///
/// # Safety
/// As for [`Lanes`].
#[inline(always)]
pub(crate) unsafe fn gelu<L: Lanes>(x: L::V) -> L::V {
    unsafe {
        let size = L::max(L::sub(L::splat(0.0), x), x);
        let z = L::mul(size, L::splat(std::f32::consts::FRAC_1_SQRT_2));
        let t = L::div(L::splat(1.0), L::fma(z, L::splat(0.327_591_1), L::splat(1.0)));
        let mut p = L::splat(1.061_405_4);
        p = L::fma(p, t, L::splat(-1.453_152));
        p = L::fma(p, t, L::splat(1.421_413_7));
        p = L::fma(p, t, L::splat(-0.284_496_74));
        p = L::fma(p, t, L::splat(0.254_829_6));
        let power = L::sub(L::splat(0.0), L::mul(z, z));
        let tail = L::mul(L::mul(L::mul(p, t), L::splat(0.5)), exp::<L>(power));
        L::sub(L::max(L::splat(0.0), x), L::mul(size, tail))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::lanes::{Kernel, LANES};

    enum Which {
        Exp,
        Silu,
        Gelu,
    }
    struct Apply<'a>(Which, &'a mut [f32; LANES]);
    impl Kernel for Apply<'_> {
        type Output = ();
        #[inline(always)]
        unsafe fn run<L: Lanes>(self) {
            // SAFETY: sixteen elements are there.
            unsafe {
                let x = L::load(self.1.as_ptr());
                let y = match self.0 {
                    Which::Exp => exp::<L>(x),
                    Which::Silu => silu::<L>(x),
                    Which::Gelu => gelu_tanh::<L>(x),
                };
                L::store(self.1.as_mut_ptr(), y);
            }
        }
    }

    fn at(isa: Isa, which: Which, x: f32) -> f32 {
        let mut lanes = [x; LANES];
        isa.dispatch(Apply(which, &mut lanes));
        assert!(lanes.iter().all(|y| y.to_bits() == lanes[0].to_bits()));
        lanes[0]
    }

    #[test]
    fn the_exponential_is_within_two_units_in_the_last_place_of_the_exact_one() {
        for isa in Isa::available().into_iter().chain([Isa::twin()]) {
            for i in -8700..8800 {
                let x = i as f32 * 0.01 + 0.0037;
                let exact = f64::from(x).exp();
                let got = f64::from(at(isa, Which::Exp, x));
                assert!((got - exact).abs() <= exact * 2.4e-7, "{isa:?}: exp({x}) = {got}, exactly {exact}");
            }
            assert_eq!(at(isa, Which::Exp, 0.0), 1.0);
            assert!(at(isa, Which::Exp, f32::NEG_INFINITY) < 2e-38);
            assert!(at(isa, Which::Exp, f32::NAN).is_nan());
        }
    }

    #[test]
    fn activations_are_those_of_their_definitions() {
        for isa in Isa::available() {
            for i in -400..400 {
                let x = f64::from(i) * 0.05;
                let silu = x / (1.0 + (-x).exp());
                assert!(
                    (f64::from(at(isa, Which::Silu, x as f32)) - silu).abs() <= 1e-6 * (1.0 + silu.abs())
                );
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                let gelu = 0.5 * x * (1.0 + u.tanh());
                assert!(
                    (f64::from(at(isa, Which::Gelu, x as f32)) - gelu).abs() <= 1e-6 * (1.0 + gelu.abs())
                );
            }
        }
    }
}
