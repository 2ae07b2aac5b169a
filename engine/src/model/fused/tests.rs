//! Each pass against candle's operations.

use candle_core::Device;

use super::*;

fn random(shape: &[usize]) -> Tensor {
    Tensor::randn(0f32, 3.0, shape, &Device::Cpu).unwrap()
}

/// The largest distance of two tensors' numbers.
fn distance(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let difference = (a - b).unwrap().abs().unwrap();
    let largest = difference.flatten_all().unwrap().max(0).unwrap();
    largest.to_dtype(DType::F32).unwrap().to_scalar().unwrap()
}

#[test]
fn the_norm_is_candles() {
    for shape in [&[3, 576][..], &[100, 33], &[1, 5], &[2, 3, 16]] {
        // Of bounded numbers: the last place of a large one would be more than the bound.
        let bounded = |shape: &[usize]| Tensor::rand(-1f32, 1.0, shape, &Device::Cpu).unwrap();
        let (x, weight) = (bounded(shape), bounded(&shape[shape.len() - 1..]));
        let expected = ops::rms_norm(&x, &weight, 1e-5).unwrap();
        assert!(distance(&rms_norm(&x, &weight, 1e-5).unwrap(), &expected) < 1e-5);
    }
    assert!(rms_norm(&random(&[2, 4]), &random(&[3]), 1e-5).is_err());
}

#[test]
fn rotated_heads_are_candles() {
    for (tokens, heads, dim) in [(40, 3, 64), (1, 1, 2), (7, 2, 6)] {
        let x = random(&[tokens, 5 + heads * dim]);
        let (cos, sin) = (random(&[tokens, dim / 2]), random(&[tokens, dim / 2]));
        let part = x.narrow(1, 2, heads * dim).unwrap().contiguous().unwrap();
        let part = part.reshape((1, tokens, heads, dim)).unwrap();
        let expected = rope_thd(&part, &cos, &sin).unwrap().squeeze(0).unwrap();
        let rotated = rotate(&x, 2, heads, &cos, &sin).unwrap();
        assert!(distance(&rotated, &expected) < 1e-5);
        assert!(rotate(&x, 6, heads, &cos, &sin).is_err());
    }
}

#[test]
fn sums_are_candles() {
    for shape in [&[40, 576][..], &[1, 3], &[0, 5]] {
        let (x, y) = (random(shape), random(shape));
        let expected = (&x + &y).unwrap();
        assert_eq!(
            add(&x, y).unwrap().to_vec2::<f32>().unwrap(),
            expected.to_vec2::<f32>().unwrap()
        );
    }
    assert!(add(&random(&[2, 4]), random(&[2, 3])).is_err());
}

#[test]
fn swiglu_is_candles() {
    for (tokens, inner) in [(40, 1536), (1, 1), (9, 37)] {
        let gate_up = random(&[tokens, 2 * inner]);
        let gate = gate_up.narrow(1, 0, inner).unwrap().contiguous().unwrap();
        let up = gate_up.narrow(1, inner, inner).unwrap();
        let expected = (ops::silu(&gate).unwrap() * up).unwrap();
        assert!(distance(&swiglu(gate_up).unwrap(), &expected) < 1e-5);
    }
}
