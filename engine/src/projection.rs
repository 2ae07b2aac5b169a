//! From a mention's representation to the vector that is stored: L2-normalised, so that cosine
//! distance, inner product and Euclidean distance give the same order.

use std::collections::HashMap;

use candle_core::{D, Device, Result, Tensor};
use candle_nn::ops;
use serde::{Deserialize, Serialize};

use crate::tensor_map::TensorMap;

/// Which form a projection has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProjectionKind {
    /// The paper's: Linear, SiLU, Linear (arXiv 2509.04011, section 3.2). Tensors `net.0` and
    /// `net.3`, as in the authors' checkpoint.
    Mlp,
    /// Centred input plus a correction by the same network, whose last layer starts at zero: with
    /// few training types it keeps what the base model knows of the others.
    Residual,
}

/// A projection's parameters.
#[derive(Clone)]
pub struct Projection {
    pub kind: ProjectionKind,
    pub first: Linear,
    pub second: Linear,
    /// Means of what is projected; the plain form has none.
    pub centers: Option<Centers>,
}

/// `weight` `[out, in]` and `bias` `[out]`.
#[derive(Clone)]
pub struct Linear {
    pub weight: Tensor,
    pub bias: Tensor,
}

/// Type names stand alone and mentions in their texts, so the two have different means.
#[derive(Clone)]
pub struct Centers {
    /// Representations side by side in what is projected; each is centred and normalised on its
    /// own, so that all weigh the same.
    pub parts: usize,
    /// Mean of mentions, `[in]`.
    pub mentions: Tensor,
    /// Mean of type names, `[in]`.
    pub types: Tensor,
}

/// What is projected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Mention,
    Type,
}

impl Linear {
    /// `x` `[n, in]` to `[n, out]`.
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        x.matmul(&self.weight.t()?)?.broadcast_add(&self.bias)
    }
}

impl Projection {
    /// Takes the tensors out of a file; `Err` names what is missing or of a wrong shape.
    pub fn from_tensors(
        kind: ProjectionKind,
        mut tensors: TensorMap,
        input_dims: usize,
        dims: usize,
        parts: usize,
    ) -> std::result::Result<Self, String> {
        if kind == ProjectionKind::Residual && input_dims != dims {
            return Err(format!(
                "a residual projection cannot go from {input_dims} to {dims} dimensions"
            ));
        }
        let units = tensors.elements("net.0.bias");
        Ok(Self {
            kind,
            first: Linear {
                weight: tensors.take("net.0.weight", &[units, input_dims])?,
                bias: tensors.take("net.0.bias", &[units])?,
            },
            second: Linear {
                weight: tensors.take("net.3.weight", &[dims, units])?,
                bias: tensors.take("net.3.bias", &[dims])?,
            },
            centers: match kind {
                ProjectionKind::Mlp => None,
                ProjectionKind::Residual => Some(Centers {
                    parts,
                    mentions: tensors.take("center.mentions", &[input_dims])?,
                    types: tensors.take("center.types", &[input_dims])?,
                }),
            },
        })
    }

    /// The projection's tensors by name.
    pub fn tensors(&self) -> HashMap<String, Tensor> {
        let mut tensors = HashMap::from(
            [
                ("net.0.weight", &self.first.weight),
                ("net.0.bias", &self.first.bias),
                ("net.3.weight", &self.second.weight),
                ("net.3.bias", &self.second.bias),
            ]
            .map(|(name, tensor)| (name.to_owned(), tensor.clone())),
        );
        if let Some(centers) = &self.centers {
            tensors.insert("center.mentions".to_owned(), centers.mentions.clone());
            tensors.insert("center.types".to_owned(), centers.types.clone());
        }
        tensors
    }

    pub fn to_device(&self, device: &Device) -> Result<Self> {
        let linear = |l: &Linear| -> Result<Linear> {
            Ok(Linear {
                weight: l.weight.to_device(device)?,
                bias: l.bias.to_device(device)?,
            })
        };
        Ok(Self {
            kind: self.kind,
            first: linear(&self.first)?,
            second: linear(&self.second)?,
            centers: match &self.centers {
                None => None,
                Some(centers) => Some(Centers {
                    parts: centers.parts,
                    mentions: centers.mentions.to_device(device)?,
                    types: centers.types.to_device(device)?,
                }),
            },
        })
    }

    /// Representations `[n, input_dims]` to embeddings `[n, dims]` of length 1.
    pub fn apply(&self, x: &Tensor, side: Side) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return crate::model::cuda::project(self, x, side);
        }
        normalize(&self.unnormalized(x, side, &mut Ok)?)
    }

    /// [`Projection::apply`] before the normalisation, with `regularize` between the two layers
    /// (training passes dropout).
    pub fn unnormalized(
        &self,
        x: &Tensor,
        side: Side,
        regularize: &mut dyn FnMut(Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let mut network = |x: &Tensor| {
            let hidden = regularize(ops::silu(&self.first.apply(x)?)?)?;
            self.second.apply(&hidden)
        };
        match &self.centers {
            None => network(x),
            Some(centers) => {
                let z = centers.center(x, side)?;
                // Unit variance per dimension suits the network's initialisation.
                let scaled = (&z * (z.dim(D::Minus1)? as f64).sqrt())?;
                z + network(&scaled)?
            }
        }
    }
}

impl Centers {
    /// `x` `[n, in]` without the mean of its side, of length 1.
    pub fn center(&self, x: &Tensor, side: Side) -> Result<Tensor> {
        let centred = x.broadcast_sub(match side {
            Side::Mention => &self.mentions,
            Side::Type => &self.types,
        })?;
        let (rows, dims) = centred.dims2()?;
        let parts = centred.reshape((rows, self.parts, dims / self.parts))?;
        normalize(&parts)?.reshape((rows, dims))? / (self.parts as f64).sqrt()
    }
}

/// Rows divided by their length; a row of zeros stays.
pub fn normalize(x: &Tensor) -> Result<Tensor> {
    let length = x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
    x.broadcast_div(&length.maximum(1e-12)?)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Golden {
        cases: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        k: usize,
        output: Vec<f32>,
    }

    /// The expected outputs come from torch (`tests/golden/README.md`).
    #[test]
    fn the_authors_checkpoint_loads_as_it_is() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../shared/weights/contrastive_projection_head.pth");
        if !path.exists() {
            println!("skipped: the authors' checkpoint is not beside the project");
            return;
        }
        let tensors = TensorMap::read(&path).unwrap();
        let projection =
            Projection::from_tensors(ProjectionKind::Mlp, tensors, 1024, 500, 1).unwrap();
        let golden: Golden =
            serde_json::from_str(include_str!("../tests/golden/projection_pth.json")).unwrap();
        assert_eq!(golden.cases.len(), 2);
        for case in golden.cases {
            let input: Vec<f32> = (0..1024)
                .map(|i| (0.1 * f64::from(i) + case.k as f64).sin() as f32)
                .collect();
            let input = Tensor::from_vec(input, (1, 1024), &Device::Cpu).unwrap();
            let output = projection.apply(&input, Side::Mention).unwrap();
            let output: Vec<f32> = output.squeeze(0).unwrap().to_vec1().unwrap();
            assert_eq!(output.len(), case.output.len());
            for (found, expected) in output.iter().zip(&case.output) {
                assert!((found - expected).abs() < 1e-5, "{found} {expected}");
            }
        }
    }
}
