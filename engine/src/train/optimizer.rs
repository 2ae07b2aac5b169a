//! AdamW over named parameters, with the learning rate warmed up and decayed to zero.

use candle_core::{Result, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};

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

    /// One step down the gradient of a scalar loss.
    pub fn step(&mut self, loss: &Tensor) -> Result<()> {
        let progress = self.step as f64 / self.steps.max(1) as f64;
        let rate = (progress / WARM_UP).min((1.0 - progress) / (1.0 - WARM_UP));
        self.optimizer
            .set_learning_rate(self.peak * rate.clamp(0.01, 1.0));
        self.step += 1;
        self.optimizer.backward_step(loss)
    }
}
