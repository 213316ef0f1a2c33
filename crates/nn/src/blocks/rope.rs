//! Rotary position embedding: the angles of positions.

use std::f64::consts::TAU;

use model::spec::{RopeScaling, RopeSpec};

/// The frequencies of one rope.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rope {
    /// Of the rotated half: radians a position.
    frequencies: Vec<f32>,
    /// Multiplies sines and cosines.
    factor: f32,
}

impl Rope {
    /// The frequencies of `spec`, in f32 as the reference implementation has them: at far positions the rounding
    /// of a frequency is a visible part of the angle.
    pub(crate) fn new(spec: &RopeSpec) -> Self {
        let power = |i: usize| {
            let exponent = (2 * i) as f32 / spec.dims as f32;
            f64::from(spec.theta).powf(f64::from(exponent)) as f32
        };
        let frequencies = (0..spec.dims / 2).map(|i| scaled(i, power(i), spec)).collect();
        Self { frequencies, factor: spec.attention_factor }
    }

    /// How many of a head's dimensions turn.
    pub(crate) fn dims(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// Appends cosines and sines for `positions`.
    pub(crate) fn angles(&self, positions: std::ops::Range<usize>, cos: &mut Vec<f32>, sin: &mut Vec<f32>) {
        for position in positions {
            for &frequency in &self.frequencies {
                // The product is rounded to f32 as the reference does; sine and cosine of it are exact.
                let angle = f64::from(frequency * position as f32);
                let (of_sin, of_cos) = angle.sin_cos();
                cos.push(of_cos as f32 * self.factor);
                sin.push(of_sin as f32 * self.factor);
            }
        }
    }
}

/// The frequency of pair `i`, whose wave is `power` positions a radian long.
fn scaled(i: usize, power: f32, spec: &RopeSpec) -> f32 {
    let frequency = 1.0 / power;
    match &spec.scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Each { factors } => 1.0 / (factors[i] * power),
        RopeScaling::Proportional { turning, factor } => {
            if i < *turning {
                frequency / factor
            } else {
                0.0
            }
        }
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            let original = *original_context as f32;
            let wavelength = (TAU / f64::from(frequency)) as f32;
            if wavelength < original / high_freq_factor {
                frequency
            } else if wavelength > original / low_freq_factor {
                frequency / factor
            } else {
                let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                (1.0 - smooth) * (frequency / factor) + smooth * frequency
            }
        }
        RopeScaling::Yarn { factor, .. } => {
            let (low, high) = yarn_ramp(spec);
            let ramp = ((i as f32 - low) / (high - low)).clamp(0.0, 1.0);
            let kept = 1.0 - ramp;
            1.0 / (factor * power) * (1.0 - kept) + frequency * kept
        }
    }
}

/// Between which dimensions YaRN goes from keeping to dividing.
fn yarn_ramp(spec: &RopeSpec) -> (f32, f32) {
    let RopeScaling::Yarn { beta_fast, beta_slow, original_context, truncate, .. } = spec.scaling else {
        return (0.0, 0.0);
    };
    let dims = spec.dims as f64;
    let turning = |turns: f32| {
        let length = original_context as f64 / (f64::from(turns) * TAU);
        dims * length.ln() / (2.0 * f64::from(spec.theta).ln())
    };
    let (low, high) = (turning(beta_fast), turning(beta_slow));
    let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
    let (low, high) = (low.max(0.0), high.min(dims - 1.0));
    // Where both are the same there is a step, and no division by nothing.
    let high = if low == high { high + 0.001 } else { high };
    (low as f32, high as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(scaling: RopeScaling) -> RopeSpec {
        RopeSpec { scaling, ..RopeSpec::plain(8, 10_000.0) }
    }

    #[test]
    fn frequencies_fall_from_one_by_powers_of_theta() {
        let rope = Rope::new(&spec(RopeScaling::None));
        assert_eq!(rope.frequencies, [1.0, 0.1, 0.01, 0.001]);
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        rope.angles(2..3, &mut cos, &mut sin);
        assert!((cos[1] - 0.2f32.cos()).abs() < 1e-7 && (sin[0] - 2f32.sin()).abs() < 1e-7);
    }

    #[test]
    fn llama3_keeps_short_waves_divides_long_ones_and_ramps_between() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 1000,
        };
        let [a, b, c, d] = Rope::new(&spec(scaling)).frequencies[..] else { panic!("four frequencies") };
        assert_eq!((a, b), (1.0, 0.1));
        // A wave of 628 positions lies between 250 and 1000: part of the way.
        let smooth = (1000.0 / (std::f32::consts::TAU / 0.01) - 1.0) / 3.0;
        assert!((c - ((1.0 - smooth) * 0.01 / 8.0 + smooth * 0.01)).abs() < 1e-8);
        assert!((d - 0.001 / 8.0).abs() < 1e-10);
        assert_eq!(Rope::new(&spec(RopeScaling::Linear { factor: 4.0 })).frequencies[0], 0.25);
    }
}
