//! What int8 has to know of the activations of a matrix. A few inputs carry activations that are dozens of
//! times as large as the others, in nearly every token; with one scale for all of them the others lose
//! most of their bits. As in SmoothQuant (arXiv 2211.10438, section 4), a part of the size moves to the
//! weights: each input is divided by the root of the root mean square of its activations. (Its exponent of
//! the weights is 0 here: of those tried it left the least error in all four kinds of matrices.)

use std::sync::{Mutex, PoisonError};

use candle_core::{Result, Tensor};

use super::int8::Int8;
use crate::{error, tokenizer::TextTokenizer};

/// What is measured with. The large activations belong to inputs, not to what is read: more text
/// changes little.
const TEXT: &str = "The museum in Lisbon shows a Portuguese caravel of 1497, two paintings by Josefa de \
    Óbidos and the skull of an allosaurus that Dr. Carla Mendes dug up near Lourinhã. microsoft released \
    windows 95 in august 1995, while \"Gangsta's Paradise\" was number one in the US; aspirin lowers \
    fever, and the river Tagus flows into the Atlantic Ocean. FC Porto beat Bayern 2-1 (Madjer, Juary), \
    said the Social Democratic Party's candidate, a former nurse at St. Mary's Hospital.";

/// Smallest measured activation, as a share of the mean.
const LEAST: f64 = 0.01;

/// The tokens of the text, the model's first token included, as far as they fit the context.
pub fn tokens(tokenizer: &TextTokenizer, context: usize) -> error::Result<Vec<u32>> {
    let mut ids = vec![tokenizer.first()];
    ids.extend(tokenizer.encode(TEXT)?.ids);
    ids.truncate(context);
    Ok(ids)
}

/// A matrix that measures the activations it is multiplied with.
pub struct Measured {
    /// `[out, in]`.
    weight: Tensor,
    /// Squares of each input's activations, `[in]`.
    squares: Mutex<Tensor>,
}

impl Measured {
    pub fn new(weight: Tensor) -> Result<Self> {
        let squares = Tensor::zeros(weight.dim(1)?, weight.dtype(), weight.device())?;
        Ok(Self {
            weight,
            squares: Mutex::new(squares),
        })
    }

    /// The product with activations: `[tokens, in]` to `[tokens, out]`. The first token is not measured:
    /// that of a model has activations like no other.
    pub fn product(&self, x: &Tensor) -> Result<Tensor> {
        let measured = x.narrow(0, 1, x.dim(0)?.saturating_sub(1))?;
        let mut squares = self.squares.lock().unwrap_or_else(PoisonError::into_inner);
        *squares = (&*squares + measured.sqr()?.sum(0)?)?;
        x.matmul(&self.weight.t()?)
    }

    /// The quantized matrix.
    pub fn quantize(&self) -> Result<Int8> {
        let squares = self.squares.lock().unwrap_or_else(PoisonError::into_inner);
        let sizes: Vec<f64> = squares
            .to_vec1::<f32>()?
            .into_iter()
            .map(|x| f64::from(x).sqrt())
            .collect();
        let mean = sizes.iter().sum::<f64>() / sizes.len().max(1) as f64;
        let factors: Vec<f32> = if mean > 0.0 {
            let of_mean = sizes
                .iter()
                .map(|size| (size / mean).max(LEAST).sqrt() as f32);
            of_mean.collect()
        } else {
            vec![1.0; sizes.len()]
        };
        Int8::new(&self.weight, &factors)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::model::int8::tests::error;

    #[test]
    fn large_inputs_take_less_precision_from_the_others() {
        let random = |shape: (usize, usize)| Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap();
        let sizes = (0..64).map(|input| if input == 7 { 40f32 } else { 1.0 });
        let sizes = Tensor::from_iter(sizes, &Device::Cpu).unwrap();
        let activations = || random((50, 64)).broadcast_mul(&sizes).unwrap();
        let weight = random((96, 64)).broadcast_div(&sizes).unwrap();
        let (x, measured) = (activations(), Measured::new(weight.clone()).unwrap());
        let exact = x.matmul(&weight.t().unwrap()).unwrap();
        let unmeasured = error(&measured.quantize().unwrap().product(&x).unwrap(), &exact);
        let product = measured.product(&activations()).unwrap();
        assert_eq!(product.dims(), [50, 96]);
        let ours = error(&measured.quantize().unwrap().product(&x).unwrap(), &exact);
        assert!(ours < 0.5 * unmeasured, "{ours} {unmeasured}");
    }
}
