//! One block of the decoder.

use candle_core::{Result, Tensor};

use super::{
    attention::{AttentionInputs, Qkv, norm},
    config::LlamaConfig,
    gated::Gated,
    matrix::Matrix,
    packed_attention::{KeyValues, Plan},
    weights::Weights,
};
use crate::error;

/// A block that the residual stream passes through.
pub struct Block {
    pub inputs: AttentionInputs,
    /// `[heads * head_dim, hidden_size]`.
    output: Matrix,
    mlp_norm: Tensor,
    gate_up: Gated,
    /// `[intermediate_size, hidden_size]`.
    down: Matrix,
}

impl Block {
    /// Reads a block (0-based).
    ///
    /// # Errors
    /// `ModelDamaged` if a tensor is missing, cut off or of another shape.
    pub fn load(weights: &Weights, index: usize) -> error::Result<Self> {
        let config = weights.config();
        let (hidden, q) = (config.hidden_size, config.heads * config.head_dim);
        let inner = config.intermediate_size;
        let tensor = |name: &str, shape: &[usize]| weights.block(index, name, shape);
        let matrix = |of: Tensor| Matrix::new(of, weights.numbers());
        Ok(Self {
            inputs: AttentionInputs::load(weights, index)?,
            output: matrix(tensor("self_attn.o_proj", &[hidden, q])?)?,
            mlp_norm: tensor("post_attention_layernorm", &[hidden])?,
            gate_up: Gated::new(
                &tensor("mlp.gate_proj", &[inner, hidden])?,
                &tensor("mlp.up_proj", &[inner, hidden])?,
                weights.numbers(),
            )?,
            down: matrix(tensor("mlp.down_proj", &[hidden, inner])?)?,
        })
    }

    /// Passes the residual stream `x` `[tokens, hidden_size]` of the tokens that ask `q` `[tokens, heads,
    /// head_dim]` of the keys and values of their sequences. The memory of `x` is not to be used
    /// afterwards.
    pub fn forward(
        &self,
        config: &LlamaConfig,
        x: Tensor,
        q: &Tensor,
        own: &Qkv,
        past: Option<KeyValues>,
        plan: &Plan,
    ) -> Result<Tensor> {
        let own = KeyValues {
            keys: &own.k,
            values: &own.v,
        };
        let attended = plan.attend(q, own, past)?.flatten_from(1)?;
        let after_attention = self.output.add_product(x, &attended)?;
        let normed = norm(config, &after_attention, &self.mlp_norm)?;
        let inner = self.gate_up.product(&normed)?;
        self.down.add_product(after_attention, &inner)
    }

    /// Quantizes the matrices that have measured their activations.
    pub fn quantize(&mut self) -> Result<()> {
        self.inputs.quantize()?;
        self.output.quantize()?;
        self.gate_up.quantize()?;
        self.down.quantize()
    }
}
