//! Attention as batched matrix products over sequences of about the same length, for devices without a
//! kernel of our own. Each group is padded to its longest sequence, and no further.

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::ops::softmax_last_dim;

use super::packed_attention::{KeyValues, Queries, Sequence, scale};

/// A group's shortest sequence has at least this share of the longest one's keys, in percent: more
/// groups cost more launches of kernels, longer padding more memory traffic.
const LEAST_SHARE: usize = 75;
/// Keys by which sequences of a group may differ whatever their share.
const FREE_PADDING: usize = 16;
/// Most products of queries and keys of a group, for each head: with 32 heads of bf16, 256 MiB.
const MAX_SCORES: usize = 1 << 22;

/// Where the sequences of a batch go.
pub struct Padding {
    groups: Vec<Group>,
    /// For each query, its row among the groups' queries; `None` if they are in order.
    order: Option<Tensor>,
}

/// Sequences that are padded to the same length.
struct Group {
    sequences: usize,
    /// Queries of each, padding included.
    queries: usize,
    /// Keys of each, padding included.
    keys: usize,
    query_rows: Rows,
    key_rows: Rows,
    /// Added to the scores, `[sequences, 1, queries, keys]`; `None` if all keys are seen.
    mask: Option<Tensor>,
}

/// Rows of a tensor.
enum Rows {
    /// So many from the first, in order.
    First(usize),
    /// These, u32.
    Some(Tensor),
}

impl Rows {
    fn new(rows: Vec<u32>, device: &Device) -> Result<Self> {
        if rows.iter().copied().eq(0..rows.len() as u32) {
            return Ok(Self::First(rows.len()));
        }
        Tensor::new(rows, device).map(Self::Some)
    }

    fn select(&self, of: &Tensor) -> Result<Tensor> {
        match self {
            Self::First(count) => of.narrow(0, 0, *count),
            Self::Some(rows) => of.index_select(rows, 0),
        }
    }
}

/// A sequence among those that are grouped.
struct Member<'a> {
    sequence: &'a Sequence,
    /// Its first query, and how many it has.
    first: usize,
    queries: usize,
    keys: usize,
}

impl Padding {
    /// Groups sequences that continue an earlier pass of `past_rows` tokens.
    pub fn new(
        sequences: &[Sequence],
        queries: Queries,
        past_rows: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let mut first = 0;
        let mut members: Vec<Member> = sequences
            .iter()
            .map(|sequence| {
                let count = queries.of(&sequence.own);
                first += count;
                Member {
                    sequence,
                    first: first - count,
                    queries: count,
                    keys: sequence.prefix.len() + sequence.own.len(),
                }
            })
            .filter(|member| member.queries > 0)
            .collect();
        // Stable, so that sequences of one length stay in order.
        members.sort_by_key(|member| std::cmp::Reverse((member.keys, member.queries)));
        let mut order = vec![0; first];
        let mut groups = Vec::new();
        let (mut rest, mut row) = (members.as_slice(), 0);
        while !rest.is_empty() {
            let (group, after) = rest.split_at(group_size(rest));
            rest = after;
            let padded = group.iter().map(|member| member.queries).max().unwrap_or(0);
            for member in group {
                for query in 0..member.queries {
                    order[member.first + query] = (row + query) as u32;
                }
                row += padded;
            }
            groups.push(Group::new(group, padded, past_rows, dtype, device)?);
        }
        let in_order = order.iter().copied().eq(0..row as u32);
        Ok(Self {
            groups,
            order: (!in_order)
                .then(|| Tensor::new(order, device))
                .transpose()?,
        })
    }

    /// [`super::packed_attention::Plan::attend`].
    pub fn attend(&self, q: &Tensor, own: KeyValues, past: Option<KeyValues>) -> Result<Tensor> {
        let joined = |past: Option<&Tensor>, own: &Tensor| match past {
            None => Ok(own.clone()),
            Some(past) => Tensor::cat(&[past, own], 0),
        };
        let keys = joined(past.map(|past| past.keys), own.keys)?;
        let values = joined(past.map(|past| past.values), own.values)?;
        let q = (q * f64::from(scale(q.dim(D::Minus1)?)))?;
        let attended = self
            .groups
            .iter()
            .map(|group| group.attend(&q, &keys, &values))
            .collect::<Result<Vec<_>>>()?;
        let attended = match attended.as_slice() {
            [] => return Ok(q),
            [only] => only.clone(),
            several => Tensor::cat(several, 0)?,
        };
        match &self.order {
            None => Ok(attended),
            Some(order) => attended.index_select(order, 0),
        }
    }
}

/// How many of the members, from the first, which is the longest, make a group.
fn group_size(members: &[Member]) -> usize {
    let longest = members[0].keys;
    let shortest = (longest * LEAST_SHARE / 100).min(longest.saturating_sub(FREE_PADDING));
    let mut queries = 0;
    members
        .iter()
        .enumerate()
        .take_while(|(index, member)| {
            queries = queries.max(member.queries);
            *index == 0 || member.keys >= shortest && (index + 1) * queries * longest <= MAX_SCORES
        })
        .count()
}

impl Group {
    /// The members with `queries` queries each.
    fn new(
        members: &[Member],
        queries: usize,
        past_rows: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let keys = members[0].keys;
        let mut query_rows = Vec::with_capacity(members.len() * queries);
        let mut key_rows = Vec::with_capacity(members.len() * keys);
        // How many keys each query sees: they are the first ones. Padding sees all, for its row must
        // be a number, and its keys are rows that are there.
        let mut seen = Vec::with_capacity(members.len() * queries);
        for member in members {
            let own = member.first..member.first + member.queries;
            query_rows.extend(own.map(|row| row as u32));
            query_rows.resize(query_rows.len() + queries - member.queries, 0);
            let Sequence { prefix, own } = member.sequence;
            key_rows.extend(prefix.clone().map(|row| row as u32));
            key_rows.extend(own.clone().map(|row| (past_rows + row) as u32));
            key_rows.resize(key_rows.len() + keys - member.keys, 0);
            let unseen = (0..member.queries).rev();
            seen.extend(unseen.map(|later| (member.keys - later) as u32));
            seen.resize(seen.len() + queries - member.queries, keys as u32);
        }
        let mask = if seen.iter().all(|seen| *seen == keys as u32) {
            None
        } else {
            let seen = Tensor::from_vec(seen, (members.len(), 1, queries, 1), device)?;
            Some(mask(&seen, keys, dtype)?)
        };
        Ok(Self {
            sequences: members.len(),
            queries,
            keys,
            query_rows: Rows::new(query_rows, device)?,
            key_rows: Rows::new(key_rows, device)?,
            mask,
        })
    }

    /// `[sequences * queries, heads, head_dim]`.
    fn attend(&self, q: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor> {
        let (_, heads, head_dim) = q.dims3()?;
        let (_, kv_heads, _) = keys.dims3()?;
        let count = self.sequences;
        // The query heads that share a head of the keys are as good as more queries.
        let together = heads / kv_heads * self.queries;
        let by_head = |of: &Tensor, rows: &Rows, length, heads| {
            rows.select(of)?
                .reshape((count, length, heads, head_dim))?
                .transpose(1, 2)?
                .contiguous()
        };
        let q = by_head(q, &self.query_rows, self.queries, heads)?.reshape((
            count * kv_heads,
            together,
            head_dim,
        ))?;
        let flat = |of: &Tensor| {
            by_head(of, &self.key_rows, self.keys, kv_heads)?.reshape((
                count * kv_heads,
                self.keys,
                head_dim,
            ))
        };
        let scores = q.matmul(&flat(keys)?.t()?)?;
        let scores = scores.reshape((count, heads, self.queries, self.keys))?;
        let scores = match &self.mask {
            None => scores,
            Some(mask) => scores.broadcast_add(mask)?,
        };
        let weights = softmax_last_dim(&scores)?;
        weights
            .reshape((count * kv_heads, together, self.keys))?
            .matmul(&flat(values)?)?
            .reshape((count, heads, self.queries, head_dim))?
            .transpose(1, 2)?
            .contiguous()?
            .reshape((count * self.queries, heads, head_dim))
    }
}

/// Zero where a query sees a key, the first of which `seen` `[sequences, 1, queries, 1]` counts, and
/// minus infinity elsewhere: `[sequences, 1, queries, keys]`.
fn mask(seen: &Tensor, keys: usize, dtype: DType) -> Result<Tensor> {
    let device = seen.device();
    let numbers = Tensor::arange(0, keys as u32, device)?.reshape((1, 1, 1, keys))?;
    let seen = numbers.broadcast_lt(seen)?;
    let of = |value: f32| {
        let scalar = Tensor::new(value, device)?.to_dtype(dtype)?;
        scalar.broadcast_as(seen.shape())?.contiguous()
    };
    seen.where_cond(&of(0.0)?, &of(f32::NEG_INFINITY)?)
}
