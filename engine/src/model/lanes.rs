//! What loops in wide registers compute with.

/// e to the power of `x`, exact to the last place of an f32 as the C library's is, but without a call:
/// a loop over many runs in wide registers. Beyond the range of f32 it stays at the range's end.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    /// Added to a number of less than 2^22, it leaves the nearest integer in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    // The logarithm of 2 in two parts, of which the first has few bits: its multiples are exact.
    const LN_2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let rest = x - n * LN_2.0 - n * LN_2.1;
    // Cephes' expf: a minimax polynomial on [-ln(2) / 2, ln(2) / 2].
    let mut sum = 1.987_569_1e-4;
    for factor in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ] {
        sum = sum * rest + factor;
    }
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    (sum * rest * rest + rest + 1.0) * power
}

/// The larger of two numbers, in one instruction where [`f32::max`], which looks for what is not a number,
/// takes three.
#[inline(always)]
pub fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_to_the_last_place() {
        let errors = (-870_000..880_000).map(|i| {
            let x = i as f32 * 1e-4;
            (f64::from(exp(x)) / f64::from(x).exp() - 1.0).abs()
        });
        let worst = errors.fold(0.0, f64::max);
        assert!(worst < f64::from(f32::EPSILON), "{worst}");
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
        assert!(exp(f32::INFINITY).is_finite());
    }
}
