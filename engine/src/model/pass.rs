//! One forward pass: which rows go through which block, and what is read on the way.

use std::ops::Range;

use candle_core::{Device, Result, Tensor};

use super::{
    attention::Qkv,
    llama::{Activations, Chooser, Llama, Packed, Wanted},
    packed_attention::{Heads, KeyValues, Plan, Queries, Sequence},
    rows,
};

/// The parts of a packed batch that every block uses.
pub struct Batch<'a> {
    sequences: Vec<Sequence>,
    /// Rows of the pass that the sequences continue.
    past_rows: usize,
    /// `[tokens, head_dim / 2]`.
    pub cos: Tensor,
    /// `[tokens, head_dim / 2]`.
    pub sin: Tensor,
    /// Attention of all tokens.
    pub all: Plan,
    /// Cache of the pass that the sequences continue.
    cache: Option<&'a [(Tensor, Tensor)]>,
}

/// Some rows of a batch.
struct Rows {
    numbers: Vec<u32>,
    /// The same, `[rows]` u32; none of no rows, for a GPU has no such tensor.
    tensor: Option<Tensor>,
}

impl Rows {
    fn new(numbers: Vec<u32>, device: &Device) -> Result<Self> {
        let tensor = (!numbers.is_empty()).then(|| Tensor::new(numbers.as_slice(), device));
        Ok(Self {
            tensor: tensor.transpose()?,
            numbers,
        })
    }
}

/// A pass on its way.
pub struct Pass<'a> {
    model: &'a Llama,
    batch: Batch<'a>,
    wanted: &'a Wanted,
    chooser: Option<&'a mut dyn Chooser>,
    /// The only rows that are read, once they are known; of hidden states if they were known before the pass.
    rows: Option<Rows>,
    /// Whether those are the only ones that are left.
    narrowed: bool,
    hidden: Vec<Option<Tensor>>,
    values: Vec<Option<Tensor>>,
    cache: Vec<(Tensor, Tensor)>,
}

impl<'a> Batch<'a> {
    /// Sequences that continue the rows `prefixes` of an earlier pass.
    pub fn new(
        model: &Llama,
        packed: &Packed,
        prefixes: &[Range<usize>],
        cache: Option<&'a [(Tensor, Tensor)]>,
    ) -> Result<Self> {
        let mut sequences = Vec::with_capacity(prefixes.len());
        let mut positions = Vec::new();
        let mut row = 0;
        for (prefix, &length) in prefixes.iter().zip(&packed.lengths) {
            let (prefix, own) = (prefix.clone(), row..row + length);
            row += length;
            positions.extend((prefix.len()..prefix.len() + length).map(|at| at as u32));
            sequences.push(Sequence { prefix, own });
        }
        let past = cache.and_then(|cache| cache.first());
        let past_rows = past.map_or(Ok(0), |(keys, _)| keys.dim(0))?;
        let positions = Tensor::new(positions, model.device())?;
        let (cos, sin) = model.rope.rows(&positions)?;
        Ok(Self {
            all: plan(model, &sequences, Queries::All, past_rows)?,
            sequences,
            past_rows,
            cos,
            sin,
            cache,
        })
    }

    /// The attention of some rows alone: each is the last query of a sequence that ends with it.
    fn attention_of(&self, model: &Llama, rows: &[u32]) -> Result<Plan> {
        let sequences = rows.iter().map(|row| {
            let row = *row as usize;
            let number = self.sequences.partition_point(|s| s.own.end <= row);
            let Some(Sequence { prefix, own }) = self.sequences.get(number) else {
                candle_core::bail!("row {row} is not in the batch");
            };
            Ok(Sequence {
                prefix: prefix.clone(),
                own: own.start..row + 1,
            })
        });
        let sequences = sequences.collect::<Result<Vec<_>>>()?;
        plan(model, &sequences, Queries::Last, self.past_rows)
    }

    /// Keys and values of a block that the sequences continue.
    fn past(&self, block: usize) -> Result<Option<KeyValues<'a>>> {
        let Some(cache) = self.cache else {
            return Ok(None);
        };
        let Some((keys, values)) = cache.get(block) else {
            candle_core::bail!("block {block} was not cached");
        };
        Ok(Some(KeyValues { keys, values }))
    }
}

fn plan(model: &Llama, sequences: &[Sequence], queries: Queries, past_rows: usize) -> Result<Plan> {
    let heads = Heads {
        dim: model.config.head_dim,
        group: model.config.heads / model.config.kv_heads,
    };
    let (dtype, numbers) = (model.dtype(), model.numbers);
    let device = model.device();
    Plan::new(sequences, queries, past_rows, heads, dtype, numbers, device)
}

impl<'a> Pass<'a> {
    pub fn new(
        model: &'a Llama,
        batch: Batch<'a>,
        wanted: &'a Wanted,
        chooser: Option<&'a mut dyn Chooser>,
    ) -> Result<Self> {
        let mut pass = Self {
            model,
            batch,
            wanted,
            chooser,
            rows: None,
            narrowed: false,
            hidden: vec![None; wanted.hidden.len()],
            values: vec![None; wanted.values.len()],
            cache: Vec::with_capacity(wanted.cached_blocks),
        };
        if let Some(rows) = &wanted.rows {
            pass.rows = Some(Rows::new(rows.clone(), model.device())?);
        }
        Ok(pass)
    }

    /// Passes tokens up to the last block that anything is wanted of.
    pub fn run(mut self, ids: &[u32]) -> Result<Activations> {
        let wanted = self.wanted;
        let mut x = self.model.embed(ids)?;
        let read = wanted.hidden.iter().chain(&wanted.values).copied().max();
        let end = read.max(wanted.cached_blocks.checked_sub(1)).unwrap_or(0);
        for index in 0..=end {
            self.read_hidden(index, &x)?;
            let cached = index < wanted.cached_blocks;
            if index == end && !cached {
                let nothing = matches!(&self.rows, Some(Rows { tensor: None, .. }));
                if wanted.values.contains(&index) && !nothing {
                    let v = self.last_values(index, &x)?;
                    self.read_values(index, &v)?;
                }
                break;
            }
            let Some(block) = self.model.blocks.get(index) else {
                candle_core::bail!("block {index} was not loaded");
            };
            let (cos, sin) = (&self.batch.cos, &self.batch.sin);
            let qkv = block.inputs.forward(&self.model.config, &x, cos, sin)?;
            if wanted.values.contains(&index) {
                let v = block.inputs.values_beside(&self.model.config, &x, &qkv)?;
                self.read_values(index, &v)?;
            }
            if index < end {
                x = self.advance(index, end, x, &qkv)?;
            }
            if cached {
                self.cache.push((qkv.k, qkv.v));
            }
        }
        self.finish()
    }

    /// V of the last block, of which nothing else is computed.
    fn last_values(&self, index: usize, x: &Tensor) -> Result<Tensor> {
        let config = &self.model.config;
        match (self.model.blocks.get(index), &self.model.values) {
            (Some(block), _) => block.inputs.values(config, x),
            (None, Some(values)) if index == self.model.blocks.len() => values.forward(config, x),
            (None, _) => candle_core::bail!("block {index} was not loaded"),
        }
    }

    /// Passes the residual stream `x` `[tokens, hidden_size]` through a block; through the one before
    /// `end` only the rows that are read behind it.
    fn advance(&mut self, index: usize, end: usize, x: Tensor, qkv: &Qkv) -> Result<Tensor> {
        let (model, past) = (self.model, self.batch.past(index)?);
        let block = &model.blocks[index];
        if index + 1 < end || !self.may_narrow(end) {
            return block.forward(&model.config, x, &qkv.q, qkv, past, &self.batch.all);
        }
        self.choose()?;
        let Some(Rows {
            numbers,
            tensor: Some(rows),
        }) = &self.rows
        else {
            return Ok(x);
        };
        let plan = self.batch.attention_of(model, numbers)?;
        let select = |of: &Tensor| rows::rows(of, rows);
        self.narrowed = true;
        block.forward(
            &model.config,
            select(&x)?,
            &select(&qkv.q)?,
            qkv,
            past,
            &plan,
        )
    }

    /// Whether the block `end` is wanted of some rows alone.
    fn may_narrow(&self, end: usize) -> bool {
        let chosen = self.chooser.is_some() && self.wanted.hidden.iter().all(|block| *block < end);
        (self.wanted.rows.is_some() || chosen) && end >= self.wanted.cached_blocks
    }

    /// Asks the chooser for the rows, unless they are known.
    fn choose(&mut self) -> Result<()> {
        if let (Some(chooser), None) = (&mut self.chooser, &self.rows) {
            let rows = Rows::new(chooser.rows()?, self.model.device())?;
            for slot in &mut self.values {
                *slot = match (slot.take(), &rows.tensor) {
                    (Some(all), Some(rows)) => Some(rows::rows(&all, rows)?),
                    _ => None,
                };
            }
            self.rows = Some(rows);
        }
        Ok(())
    }

    fn read_hidden(&mut self, index: usize, x: &Tensor) -> Result<()> {
        if self.wanted.hidden.contains(&index) {
            let known = self.rows.as_ref().filter(|_| self.wanted.rows.is_some());
            let rows = select(x, known.filter(|_| !self.narrowed))?;
            keep(&mut self.hidden, &self.wanted.hidden, index, &rows)?;
        }
        let last = self.wanted.hidden.iter().copied().max().unwrap_or(0);
        match &mut self.chooser {
            Some(chooser) if index == last => {
                let hidden: Vec<Tensor> = self.hidden.iter().flatten().cloned().collect();
                chooser.see(&hidden)
            }
            _ => Ok(()),
        }
    }

    fn read_values(&mut self, index: usize, v: &Tensor) -> Result<()> {
        let rows = select(v, self.rows.as_ref().filter(|_| !self.narrowed))?;
        keep(&mut self.values, &self.wanted.values, index, &rows)
    }

    fn finish(mut self) -> Result<Activations> {
        self.choose()?;
        Ok(Activations {
            hidden: self.hidden.into_iter().flatten().collect(),
            values: self.values.into_iter().flatten().collect(),
            cache: self.cache,
        })
    }
}

/// Some rows of a tensor, or all.
fn select(of: &Tensor, rows: Option<&Rows>) -> Result<Tensor> {
    match rows.and_then(|rows| rows.tensor.as_ref()) {
        Some(rows) => rows::rows(of, rows),
        None => Ok(of.clone()),
    }
}

/// Keeps rows of a block in f32 in the places that ask for that block.
fn keep(slots: &mut [Option<Tensor>], wanted: &[usize], index: usize, rows: &Tensor) -> Result<()> {
    for (slot, _) in slots.iter_mut().zip(wanted).filter(|(_, at)| **at == index) {
        // V of a block that was loaded whole may be columns of a wider product.
        *slot = Some(rows::in_f32(&rows.contiguous()?)?);
    }
    Ok(())
}
