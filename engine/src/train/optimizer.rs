//! AdamW with the learning rate warmed up and decayed to zero, and dropout.

use candle_core::{Result, Tensor, Var, backprop::GradStore};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use rand::{Rng, rngs::StdRng};

/// Share of the steps in which the learning rate rises.
const WARM_UP: f64 = 0.1;

pub struct Schedule {
    optimizer: AdamW,
    peak: f64,
    step: usize,
    steps: usize,
}

impl Schedule {
    pub fn new(vars: Vec<Var>, peak: f64, weight_decay: f64, steps: usize) -> Result<Self> {
        let params = ParamsAdamW {
            lr: peak,
            weight_decay,
            ..ParamsAdamW::default()
        };
        Ok(Self {
            optimizer: AdamW::new(vars, params)?,
            peak,
            step: 0,
            steps,
        })
    }

    /// One step down the gradients of a loss.
    pub fn step(&mut self, gradients: &GradStore) -> Result<()> {
        let progress = self.step as f64 / self.steps.max(1) as f64;
        let rate = (progress / WARM_UP).min((1.0 - progress) / (1.0 - WARM_UP));
        self.optimizer
            .set_learning_rate(self.peak * rate.clamp(0.01, 1.0));
        self.step += 1;
        self.optimizer.step(gradients)
    }
}

/// Numbers of which a random share is zero and the others are as much larger; candle's own cannot be seeded.
pub fn dropout(x: &Tensor, share: f64, random: &mut StdRng) -> Result<Tensor> {
    let keep = 1.0 - share;
    let mask: Vec<f32> = (0..x.elem_count())
        .map(|_| {
            if random.random_bool(keep) {
                1.0 / keep as f32
            } else {
                0.0
            }
        })
        .collect();
    x * Tensor::from_vec(mask, x.shape(), x.device())?
}
