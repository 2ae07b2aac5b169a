//! Against the same in f32 on the CPU, on the GPU that there is; without one the tests say that they skip.

use std::ops::Range;

use candle_core::Device;

use super::*;
use crate::{
    device,
    download::Downloads,
    error::{ErrorKind, compute},
    mentions::{
        candidates::{Candidates, MAX_WORDS},
        probe::Probe,
    },
    model::{
        fused,
        packed_attention::{
            Heads, KeyValues, Plan, Queries,
            tests::{gathered, largest, random, sequences},
        },
        rows,
        weights::Numbers,
    },
    projection::{Centers, Linear, Projection, ProjectionKind, Side},
    text::Word,
};

/// What bf16 rounds, of the largest number.
const ROUNDING: f32 = 1.0 / 128.0;

fn gpu() -> Option<Device> {
    let device = device::select("cuda").ok();
    if device.is_none() {
        println!("skipped: there is no GPU");
    }
    device
}

/// Random numbers that bf16 has, and the same on the GPU.
fn both(shape: &[usize], gpu: &Device) -> (Tensor, Tensor) {
    let on_gpu = Tensor::randn(0f32, 2.0, shape, &Device::Cpu)
        .and_then(|numbers| numbers.to_dtype(DType::BF16)?.to_device(gpu));
    let on_gpu = on_gpu.unwrap();
    (back(&on_gpu), on_gpu)
}

fn back(on_gpu: &Tensor) -> Tensor {
    let numbers = on_gpu.to_device(&Device::Cpu).unwrap();
    numbers.to_dtype(DType::F32).unwrap()
}

fn close(ours: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(ours.dims(), expected.dims(), "{what}");
    let error = largest(&(back(ours) - expected).unwrap()) / largest(expected);
    assert!(error < ROUNDING, "{what}: {error}");
}

#[test]
fn kernels_are_the_cpus() {
    let Some(gpu) = gpu() else { return };
    // The last has more tokens than a grid's second dimension takes blocks.
    for (tokens, inner) in [(1, 8), (7, 64), (300, 4096), (33, 14_336), (70_000, 16)] {
        let ((x, gx), (y, gy)) = (both(&[tokens, inner], &gpu), both(&[tokens, inner], &gpu));
        let (weight, g_weight) = both(&[inner], &gpu);
        assert!(takes(&gx) && takes(&g_weight));
        let ours = fused::rms_norm(&gx, &g_weight, 1e-5).unwrap();
        close(&ours, &fused::rms_norm(&x, &weight, 1e-5).unwrap(), "norm");
        let ours = fused::add(&gx, gy.clone()).unwrap();
        close(&ours, &fused::add(&x, y.copy().unwrap()).unwrap(), "sum");
        let (product, g_product) = both(&[tokens, 40], &gpu);
        let (matrix, g_matrix) = both(&[40, inner], &gpu);
        let expected = (product + x.matmul(&matrix.t().unwrap()).unwrap()).unwrap();
        close(
            &add_product(g_product, &gx, &g_matrix).unwrap(),
            &expected,
            "product",
        );
        let (gate_up, g_gate_up) = both(&[tokens, 2 * inner], &gpu);
        let ours = fused::swiglu(g_gate_up).unwrap();
        let expected = fused::swiglu(gate_up).unwrap().contiguous().unwrap();
        close(&ours, &expected, "swiglu");
    }
}

#[test]
fn heads_are_cut_out_and_rotated() {
    let Some(gpu) = gpu() else { return };
    for (tokens, heads, dim, from) in [(1, 1, 16, 0), (40, 3, 64, 8), (300, 32, 128, 4096)] {
        let (x, gx) = both(&[tokens, from + heads * dim + 24], &gpu);
        let angle = || Tensor::rand(-1f32, 1.0, (tokens, dim / 2), &Device::Cpu).unwrap();
        let (cos, sin) = (angle(), angle());
        let on_gpu = |of: &Tensor| of.to_device(&gpu).unwrap();
        let ours = fused::rotate(&gx, from, heads, &on_gpu(&cos), &on_gpu(&sin)).unwrap();
        close(
            &ours,
            &fused::rotate(&x, from, heads, &cos, &sin).unwrap(),
            "rotated",
        );
        let ours = rows::columns(&gx, from, heads * dim).unwrap();
        close(
            &ours,
            &rows::columns(&x, from, heads * dim).unwrap(),
            "columns",
        );
    }
}

#[test]
fn rows_and_f32_are_the_cpus() {
    let Some(gpu) = gpu() else { return };
    let ((x, gx), wanted) = (both(&[50, 3, 16], &gpu), [49u32, 0, 7, 7]);
    let of = |device: &Device| Tensor::new(&wanted, device).unwrap();
    let expected = x.index_select(&of(&Device::Cpu), 0).unwrap();
    let exact = |ours: Tensor| {
        assert_eq!(ours.dims(), expected.dims());
        assert_eq!(largest(&(back(&ours) - &expected).unwrap()), 0.0);
    };
    exact(gather(&gx, &of(&gpu)).unwrap().unwrap());
    let wide = widen(&gx).unwrap().unwrap();
    assert_eq!(wide.dtype(), DType::F32);
    exact(gather(&wide, &of(&gpu)).unwrap().unwrap());
    // Rows that do not divide into loads.
    let odd = x
        .flatten_from(1)
        .unwrap()
        .narrow(1, 0, 7)
        .unwrap()
        .contiguous()
        .unwrap();
    let odd = odd.to_device(&gpu).unwrap();
    assert!(gather(&odd, &of(&gpu)).unwrap().is_none());
    assert_eq!(rows::rows(&odd, &of(&gpu)).unwrap().dims(), [4, 7]);
    let (bias, g_bias) = both(&[48], &gpu);
    let (x, gx) = (x.flatten_from(1).unwrap(), gx.flatten_from(1).unwrap());
    close(
        &fused::add_bias(&gx, &g_bias).unwrap(),
        &fused::add_bias(&x, &bias).unwrap(),
        "bias",
    );
}

fn numbers(shape: &[usize]) -> Tensor {
    Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap()
}

#[test]
fn projections_are_the_cpus() {
    let Some(gpu) = gpu() else { return };
    let linear = |from: usize, to: usize| Linear {
        weight: (numbers(&[to, from]) * 0.1).unwrap(),
        bias: numbers(&[to]),
    };
    let centers = || Centers {
        parts: 2,
        mentions: numbers(&[60]),
        types: numbers(&[60]),
    };
    for (kind, dims, centers) in [
        (ProjectionKind::Mlp, 50, None),
        (ProjectionKind::Residual, 60, Some(centers())),
    ] {
        let projection = Projection {
            kind,
            first: linear(60, 40),
            second: linear(40, dims),
            centers,
        };
        let on_gpu = projection.to_device(&gpu).unwrap();
        for rows in [1, 33] {
            let x = numbers(&[rows, 60]);
            for side in [Side::Mention, Side::Type] {
                let expected = projection.apply(&x, side).unwrap();
                let ours = on_gpu.apply(&x.to_device(&gpu).unwrap(), side).unwrap();
                assert_eq!(ours.dims(), [rows, dims]);
                assert!(
                    largest(&(back(&ours) - expected).unwrap()) < 1e-5,
                    "{kind:?}"
                );
            }
        }
    }
}

#[test]
fn span_scores_are_the_cpus() {
    let Some(gpu) = gpu() else { return };
    for units in [1, 32, 50] {
        let probe = Probe {
            mean: numbers(&[24]),
            scale: numbers(&[24]).abs().unwrap(),
            tokens: (numbers(&[5 * units, 24]) * 0.2).unwrap(),
            width: numbers(&[MAX_WORDS, units]),
            output: numbers(&[units, 1]),
            bias: numbers(&[1]),
        };
        let mut candidates = Candidates::default();
        let word = |token| Word {
            bytes: 0..1,
            first: token,
            last: token,
            alphanumeric: true,
        };
        let words: Vec<Word> = (1..30).map(word).collect();
        candidates.add(0, &words, 0, 30);
        candidates.add(1, &words[..3], 30, 4);
        let hidden = numbers(&[34, 24]);
        let expected = probe.score(&hidden, &candidates).unwrap().unwrap();
        let probe = probe.to_device(&gpu).unwrap();
        let ours = probe
            .score(&hidden.to_device(&gpu).unwrap(), &candidates)
            .unwrap();
        let error = largest(&(back(&ours.unwrap()) - expected).unwrap());
        assert!(error < 1e-5, "{units} units: {error}");
    }
}

/// Sequences of `(prefix, length)`, all queries and the last alone.
fn attention(gpu: &Device, of: &[(Range<usize>, usize)], past_rows: usize, shape: [usize; 3]) {
    let [heads, kv_heads, head_dim] = shape;
    let sequences = sequences(of);
    let rows = of.iter().map(|(_, length)| length).sum();
    let tensor = |rows, heads| {
        let on_gpu = random(rows, heads, head_dim, 2.0)
            .to_dtype(DType::BF16)
            .unwrap();
        let on_gpu = on_gpu.to_device(gpu).unwrap();
        (back(&on_gpu), on_gpu)
    };
    let ((keys, g_keys), (values, g_values)) = (tensor(rows, kv_heads), tensor(rows, kv_heads));
    let (past_keys, g_past_keys) = tensor(past_rows.max(1), kv_heads);
    let (past_values, g_past_values) = tensor(past_rows.max(1), kv_heads);
    let (q, g_q) = tensor(rows, heads);
    let ends: Vec<u32> = sequences.iter().map(|s| s.own.end as u32 - 1).collect();
    let select = |of: &Tensor| {
        let ends = Tensor::new(ends.as_slice(), of.device()).unwrap();
        of.index_select(&ends, 0).unwrap()
    };
    for queries in [Queries::All, Queries::Last] {
        let (q, g_q) = match queries {
            Queries::All => (q.clone(), g_q.clone()),
            Queries::Last => (select(&q), select(&g_q)),
        };
        let pair = |keys, values| KeyValues { keys, values };
        let past = (past_rows > 0).then_some(pair(&past_keys, &past_values));
        let own = pair(&keys, &values);
        let expected = gathered(&q, own, past, &sequences, queries).unwrap();
        let of_heads = Heads {
            dim: head_dim,
            group: heads / kv_heads,
        };
        assert!(Tiles::fit(of_heads, DType::BF16, gpu));
        let plan = Plan::new(
            &sequences,
            queries,
            past_rows,
            of_heads,
            DType::BF16,
            Numbers::Bf16,
            gpu,
        );
        let past = (past_rows > 0).then_some(pair(&g_past_keys, &g_past_values));
        let ours = plan
            .unwrap()
            .attend(&g_q, pair(&g_keys, &g_values), past)
            .unwrap();
        close(&ours, &expected, &format!("{of:?} {shape:?} {queries:?}"));
    }
}

#[test]
fn attention_is_the_cpus() {
    let Some(gpu) = gpu() else { return };
    for shape in [
        [32, 8, 128],
        [9, 3, 64],
        [14, 2, 64],
        [4, 4, 128],
        [12, 2, 128],
    ] {
        let alone = |lengths: &[usize]| lengths.iter().map(|&n| (0..0, n)).collect::<Vec<_>>();
        attention(&gpu, &alone(&[1]), 0, shape);
        attention(
            &gpu,
            &alone(&[1, 2, 16, 17, 33, 1, 40, 64, 65, 128]),
            0,
            shape,
        );
        attention(&gpu, &alone(&[512, 3, 130]), 0, shape);
        let shared = [
            (0..30, 5),
            (0..30, 1),
            (30..31, 4),
            (0..0, 7),
            (31..50, 20),
            (0..30, 6),
        ];
        attention(&gpu, &shared, 50, shape);
        attention(
            &gpu,
            &[(100..612, 64), (0..100, 1), (100..612, 3)],
            612,
            shape,
        );
    }
}

#[test]
fn downloads_arrive_whole_and_in_buffers_that_were_used_before() {
    let Some(gpu) = gpu() else { return };
    let downloads = Downloads::default();
    for count in [1, 4096, 5000, 4095, 8192] {
        let expected: Vec<f32> = (0..count)
            .map(|number| (number * 3 + count) as f32)
            .collect();
        let tensor = Tensor::new(expected.as_slice(), &gpu).unwrap();
        // One that nobody waits for.
        drop(downloads.start(&tensor).unwrap());
        let download = downloads.start(&tensor).unwrap();
        assert_eq!(downloads.finish(download).unwrap(), expected);
    }
}

/// Alone in its process: it takes all memory that there is.
#[test]
#[ignore = "takes all of a GPU's memory"]
fn a_full_gpu_is_out_of_memory_and_recovers() {
    let Some(gpu) = gpu() else { return };
    let mut taken = Vec::new();
    let error = loop {
        match Tensor::zeros(1 << 28, DType::F32, &gpu) {
            Ok(tensor) => taken.push(tensor),
            Err(error) => break compute(error),
        }
    };
    assert_eq!(error.kind, ErrorKind::OutOfMemory, "{error}");
    assert!(taken.len() > 1);
    taken.clear();
    let again = Tensor::zeros(1 << 28, DType::F32, &gpu).unwrap();
    assert_eq!(again.sum_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
}

/// Alone in its process: after it the GPU serves this process no more, which is how the engine knows.
#[test]
#[ignore = "makes the GPU useless for its process"]
fn after_a_fault_the_gpu_answers_nothing() {
    let Some(gpu) = gpu() else { return };
    let asks = || Tensor::zeros(1, DType::F32, &gpu)?.to_vec1::<f32>();
    asks().unwrap();
    let x = both(&[1, 64], &gpu).1;
    // A column far outside of the tensor, which callers of `columns` check.
    columns(&x, 1 << 33, 8).unwrap();
    assert!(asks().is_err());
    assert!(asks().is_err());
}
