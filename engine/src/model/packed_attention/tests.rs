//! Both ways against candle's kernel, which gets copies of what each sequence attends to.

use std::slice::from_ref;

use candle_core::Device;
use candle_nn::attention::flash_attn_varlen_cpu;

use super::*;
use crate::model::int8::{has_int8, may_saturate, tests::error};

/// With a copy of each sequence's keys and values, for candle's kernel.
pub fn gathered(
    q: &Tensor,
    own: KeyValues,
    past: Option<KeyValues>,
    sequences: &[Sequence],
    queries: Queries,
) -> Result<Tensor> {
    let device = q.device();
    let counts = |count: &dyn Fn(&Sequence) -> usize| {
        let counts: Vec<u32> = sequences.iter().map(|s| count(s) as u32).collect();
        let most = counts.iter().copied().max().unwrap_or(0) as usize;
        Ok::<_, candle_core::Error>((Tensor::new(counts, device)?, most))
    };
    let past_rows = past.map_or(Ok(0), |past| past.keys.dim(0))?;
    let rows: Vec<u32> = sequences
        .iter()
        .flat_map(|s| {
            s.prefix
                .clone()
                .chain(s.own.clone().map(|row| past_rows + row))
        })
        .map(|row| row as u32)
        .collect();
    let rows = Tensor::new(rows, device)?;
    let gather = |past: Option<&Tensor>, own: &Tensor| {
        let all: Vec<&Tensor> = past.into_iter().chain([own]).collect();
        Tensor::cat(&all, 0)?.index_select(&rows, 0)
    };
    let (lengths, longest) = counts(&|s| queries.of(&s.own))?;
    let (key_lengths, longest_keys) = counts(&|s| s.prefix.len() + s.own.len())?;
    flash_attn_varlen_cpu(
        q,
        &gather(past.map(|past| past.keys), own.keys)?,
        &gather(past.map(|past| past.values), own.values)?,
        None,
        &lengths,
        &key_lengths,
        longest,
        longest_keys,
        scale(q.dim(2)?),
        true,
        None,
        None,
    )
}

pub fn random(rows: usize, heads: usize, head_dim: usize, size: f32) -> Tensor {
    Tensor::randn(0f32, size, (rows, heads, head_dim), &Device::Cpu).unwrap()
}

/// Sequences of `(prefix, length)`, their own rows one after the other.
pub fn sequences(of: &[(Range<usize>, usize)]) -> Vec<Sequence> {
    let mut row = 0;
    of.iter()
        .map(|(prefix, length)| {
            row += length;
            Sequence {
                prefix: prefix.clone(),
                own: row - length..row,
            }
        })
        .collect()
}

pub fn largest(tensor: &Tensor) -> f32 {
    let all = tensor.abs().unwrap().flatten_all().unwrap();
    all.max(0).unwrap().to_scalar().unwrap()
}

/// Both ways with random numbers of a size, for all queries and for the last ones.
fn compare(of: &[(Range<usize>, usize)], past_rows: usize, shape: [usize; 3], size: f32) {
    let [heads, kv_heads, head_dim] = shape;
    let sequences = sequences(of);
    let rows = of.iter().map(|(_, length)| length).sum();
    let tensor = |rows, heads| random(rows, heads, head_dim, size);
    let (keys, values) = (tensor(rows, kv_heads), tensor(rows, kv_heads));
    let (past_keys, past_values) = (tensor(past_rows, kv_heads), tensor(past_rows, kv_heads));
    let own = KeyValues {
        keys: &keys,
        values: &values,
    };
    let past = (past_rows > 0).then_some(KeyValues {
        keys: &past_keys,
        values: &past_values,
    });
    let q = tensor(rows, heads);
    let ends: Vec<u32> = sequences.iter().map(|s| s.own.end as u32 - 1).collect();
    let ends = Tensor::new(ends, &Device::Cpu).unwrap();
    let mut all = None;
    for queries in [Queries::All, Queries::Last] {
        let q = match queries {
            Queries::All => q.clone(),
            Queries::Last => q.index_select(&ends, 0).unwrap(),
        };
        let candles = gathered(&q, own, past, &sequences, queries).unwrap();
        let close = |ours: &Tensor, way: &str| {
            assert_eq!(ours.dims(), q.dims());
            let error = largest(&(ours - &candles).unwrap()) / largest(&candles);
            // Scores lose more places the larger they are.
            assert!(
                error < 1e-5 * size,
                "{way}: {of:?} {shape:?} {queries:?}: {error}"
            );
        };
        let (dtype, device) = (DType::F32, &Device::Cpu);
        let padding = Padding::new(&sequences, queries, past_rows, dtype, device).unwrap();
        close(&padding.attend(&q, own, past).unwrap(), "padded");
        let numbers = Numbers::F32;
        let of_heads = Heads {
            dim: head_dim,
            group: heads / kv_heads,
        };
        let plan = Plan::new(
            &sequences, queries, past_rows, of_heads, dtype, numbers, device,
        )
        .unwrap();
        let ours = plan.attend(&q, own, past).unwrap();
        close(&ours, "planned");
        if !head_dim.is_multiple_of(LANES) {
            continue;
        }
        let all = all.get_or_insert(ours.clone());
        if queries == Queries::Last {
            let last = all.index_select(&ends, 0).unwrap();
            let error = largest(&(last - &ours).unwrap()) / largest(&ours);
            assert!(error < 1e-5 * size, "alone: {of:?} {shape:?}: {error}");
        }
    }
}

#[test]
fn sequences_of_all_lengths_alone() {
    let alone = |lengths: &[usize]| lengths.iter().map(|&n| (0..0, n)).collect::<Vec<_>>();
    for shape in [
        [9, 3, 64],
        [4, 4, 16],
        [2, 1, 32],
        [14, 2, 64],
        [5, 1, 16],
        [4, 2, 10],
    ] {
        compare(&alone(&[1]), 0, shape, 1.0);
        compare(&alone(&[1, 2, 16, 17, 33, 1, 40]), 0, shape, 1.0);
    }
    compare(&alone(&[512, 3, 130]), 0, [9, 3, 64], 1.0);
}

#[test]
fn sequences_that_share_what_they_continue() {
    let of = [
        (0..30, 5),
        (0..30, 1),
        (30..31, 4),
        (0..0, 7),
        (31..50, 20),
        (0..30, 6),
    ];
    for shape in [[9, 3, 64], [4, 4, 16], [14, 2, 64], [4, 2, 10]] {
        compare(&of, 50, shape, 1.0);
    }
    compare(
        &[(100..612, 64), (0..100, 1), (100..612, 3)],
        612,
        [9, 3, 64],
        1.0,
    );
}

/// Long sequences alone are computed in int8, whatever is beside them.
#[test]
fn int8_is_near_f32() {
    let sequences = sequences(&[(0..0, 200), (0..0, 20), (0..50, 100), (0..0, 64)]);
    let (heads, kv_heads, head_dim, rows, past_rows) = (4, 2, 32, 384, 50);
    let tensor = |rows, heads| random(rows, heads, head_dim, 1.0);
    let (keys, values) = (tensor(rows, kv_heads), tensor(rows, kv_heads));
    let (past_keys, past_values) = (tensor(past_rows, kv_heads), tensor(past_rows, kv_heads));
    let own = KeyValues {
        keys: &keys,
        values: &values,
    };
    let past = Some(KeyValues {
        keys: &past_keys,
        values: &past_values,
    });
    let q = tensor(rows, heads);
    let attend = |sequences: &[Sequence], numbers, q: &Tensor| {
        let (queries, dtype, device) = (Queries::All, DType::F32, &Device::Cpu);
        let of_heads = Heads {
            dim: head_dim,
            group: heads / kv_heads,
        };
        let plan = Plan::new(
            sequences, queries, past_rows, of_heads, dtype, numbers, device,
        );
        plan.unwrap().attend(q, own, past).unwrap()
    };
    let exact = attend(&sequences, Numbers::F32, &q);
    let ours = attend(&sequences, Numbers::Int8, &q);
    for (number, sequence) in sequences.iter().enumerate() {
        let part = |of: &Tensor| {
            let own = &sequence.own;
            of.narrow(0, own.start, own.len()).unwrap()
        };
        let error = error(&part(&ours), &part(&exact));
        let in_int8 = has_int8() && !may_saturate() && [0, 3].contains(&number);
        // More than the rounding of another order of sums.
        assert_eq!(error > 1e-4, in_int8, "{number}: {error}");
        assert!(error < 0.02, "{number}: {error}");
        let alone = attend(from_ref(sequence), Numbers::Int8, &part(&q));
        assert_eq!(
            largest(&(alone - part(&ours)).unwrap()),
            0.0,
            "alone: {number}"
        );
    }
}

/// Scores in the hundreds, whose exponentials alone would overflow.
#[test]
fn scores_of_any_size() {
    compare(&[(0..9, 12), (0..0, 30)], 9, [6, 2, 64], 10.0);
}

#[test]
fn what_does_not_fit_together_is_an_error() {
    let (keys, past) = (random(6, 2, 16, 1.0), random(3, 2, 16, 1.0));
    let own = KeyValues {
        keys: &keys,
        values: &keys,
    };
    let past = Some(KeyValues {
        keys: &past,
        values: &past,
    });
    let fits = sequences(&[(0..3, 4), (1..2, 2)]);
    let run = |q: &Tensor, own, past, sequences: &[Sequence]| {
        let (dtype, device) = (DType::F32, &Device::Cpu);
        let numbers = Numbers::F32;
        let heads = Heads { dim: 16, group: 2 };
        Plan::new(sequences, Queries::All, 3, heads, dtype, numbers, device)?.attend(q, own, past)
    };
    let q = random(6, 4, 16, 1.0);
    run(&q, own, past, &fits).unwrap();
    assert!(run(&random(5, 4, 16, 1.0), own, past, &fits).is_err());
    assert!(run(&random(6, 3, 16, 1.0), own, past, &fits).is_err());
    assert!(run(&random(6, 4, 32, 1.0), own, past, &fits).is_err());
    assert!(run(&q, own, None, &fits).is_err());
    assert!(run(&q, own, past, &sequences(&[(0..4, 6)])).is_err());
    let values = random(5, 2, 16, 1.0);
    let uneven = KeyValues {
        keys: &keys,
        values: &values,
    };
    assert!(run(&q, uneven, past, &fits).is_err());
}
