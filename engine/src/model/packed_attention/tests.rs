//! The kernel against candle's, which gets copies of what each sequence attends to.

use candle_core::Device;

use super::*;

fn random(rows: usize, heads: usize, head_dim: usize, size: f32) -> Tensor {
    Tensor::randn(0f32, size, (rows, heads, head_dim), &Device::Cpu).unwrap()
}

/// Sequences of `(prefix, length)`, their own rows one after the other.
fn sequences(of: &[(Range<usize>, usize)]) -> Vec<Sequence> {
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

fn largest(tensor: &Tensor) -> f32 {
    let all = tensor.abs().unwrap().flatten_all().unwrap();
    all.max(0).unwrap().to_scalar().unwrap()
}

/// Both paths with random numbers of a size, for all queries and for the last ones.
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
        check(&q, own, past, &sequences, queries).unwrap();
        let ours = in_place(&q, own, past, &sequences, queries).unwrap();
        let candles = gathered(&q, own, past, &sequences, queries).unwrap();
        assert_eq!(ours.dims(), q.dims());
        let error = largest(&(&ours - &candles).unwrap()) / largest(&candles);
        assert!(error < 1e-5, "{of:?} {shape:?} {queries:?}: {error}");
        let all = all.get_or_insert(ours.clone());
        if queries == Queries::Last {
            let last = all.index_select(&ends, 0).unwrap();
            assert_eq!(largest(&(last - ours).unwrap()), 0.0);
        }
    }
}

#[test]
fn sequences_of_all_lengths_alone() {
    let alone = |lengths: &[usize]| lengths.iter().map(|&n| (0..0, n)).collect::<Vec<_>>();
    for shape in [[9, 3, 64], [4, 4, 16], [2, 1, 32], [14, 2, 64], [5, 1, 16]] {
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
    for shape in [[9, 3, 64], [4, 4, 16], [14, 2, 64]] {
        compare(&of, 50, shape, 1.0);
    }
    compare(
        &[(100..612, 64), (0..100, 1), (100..612, 3)],
        612,
        [9, 3, 64],
        1.0,
    );
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
        attention(q, own, past, sequences, Queries::All)
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
