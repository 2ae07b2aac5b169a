//! Attention of packed sequences of any lengths in one launch, without padding.

use candle_core::{
    DType, Device, Result, Tensor,
    cuda_backend::{WrapErr, cudarc::driver::PushKernelArg},
};
use half::bf16;

use super::{input, launch, output};
use crate::model::packed_attention::{Heads, KeyValues, Queries, Sequence, scale};

const MODULE: &str = "ner_retriever attention";
const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/attention.ptx"));
/// Rows of a tile, the kernel's `ROWS`, and threads that compute them.
const ROWS: usize = 64;
const THREADS: u32 = 128;
/// Counts of the kernel's `Tile`.
const TILE: usize = 6;

/// The queries of a batch in tiles of one sequence each.
pub struct Tiles {
    /// `[tiles, TILE]` u32.
    tiles: Tensor,
}

impl Tiles {
    /// Whether there is a kernel for these heads, in numbers of a type.
    pub fn fit(heads: Heads, dtype: DType, device: &Device) -> bool {
        device.is_cuda()
            && dtype == DType::BF16
            && matches!(heads.dim, 64 | 128)
            && (1..=ROWS).contains(&heads.group)
    }

    /// Cuts the queries of sequences whose heads [`Self::fit`], `group` of which share a head of the keys.
    pub fn new(
        sequences: &[Sequence],
        queries: Queries,
        group: usize,
        device: &Device,
    ) -> Result<Self> {
        let most = ROWS / group;
        let mut tiles: Vec<[u32; TILE]> = Vec::new();
        let mut first = 0;
        for Sequence { prefix, own } in sequences {
            let count = queries.of(own);
            let keys = prefix.len() + own.len();
            for start in (0..count).step_by(most) {
                let tile = [
                    first + start,
                    most.min(count - start),
                    keys - (count - start) + 1,
                    prefix.start,
                    prefix.len(),
                    own.start,
                ];
                tiles.push(tile.map(|number| number as u32));
            }
            first += count;
        }
        // The longest first: what begins last should not be what takes longest.
        tiles.sort_by_key(|tile| std::cmp::Reverse(tile[2] + tile[1]));
        let count = tiles.len();
        Ok(Self {
            tiles: Tensor::from_vec(tiles.into_flattened(), (count, TILE), device)?,
        })
    }

    /// [`crate::model::packed_attention::Plan::attend`], which has checked what the tiles index.
    pub fn attend(&self, q: &Tensor, own: KeyValues, past: Option<KeyValues>) -> Result<Tensor> {
        let (queries, heads, head_dim) = q.dims3()?;
        let kv_heads = own.keys.dim(1)?;
        if queries == 0 {
            return Ok(q.clone());
        }
        // Without an earlier pass no tile reads of it.
        let past = past.unwrap_or(own);
        let tensors = [q, own.keys, own.values, past.keys, past.values];
        let inputs = tensors.map(input);
        let [q_in, own_keys, own_values, past_keys, past_values] = inputs;
        let (q_in, own_keys, own_values) = (q_in?, own_keys?, own_values?);
        let (past_keys, past_values) = (past_keys?, past_values?);
        let tiles = input(&self.tiles)?;
        let device = q_in.device()?;
        let name = if head_dim == 64 {
            "attention_64"
        } else {
            "attention_128"
        };
        let function = device.get_or_load_custom_func(name, MODULE, PTX)?;
        // SAFETY: each query is in a tile, whose block writes all of its heads.
        let out = unsafe { device.alloc::<bf16>(q.elem_count()) }?;
        let views = (
            q_in.view::<bf16>()?,
            own_keys.view::<bf16>()?,
            own_values.view::<bf16>()?,
            past_keys.view::<bf16>()?,
            past_values.view::<bf16>()?,
            tiles.view::<u32>()?,
        );
        let (count, scale) = (heads as i32, scale(head_dim) * std::f32::consts::LOG2_E);
        let mut builder = function.builder();
        builder
            .arg(&views.0)
            .arg(&views.1)
            .arg(&views.2)
            .arg(&views.3);
        builder
            .arg(&views.4)
            .arg(&views.5)
            .arg(&out)
            .arg(&count)
            .arg(&scale);
        let grid = (self.tiles.dim(0)?, kv_heads);
        // SAFETY: the caller has seen that the sequences lie within the tensors.
        unsafe { builder.launch(launch(grid, THREADS)) }.w()?;
        Ok(output(out, device, q.shape()))
    }
}
