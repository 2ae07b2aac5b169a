//! The speed of a loaded model without server, sockets and sessions (`bench/` measures with them).

mod ceiling;
mod vectors;

use std::{
    path::{Path, PathBuf},
    sync::mpsc::sync_channel,
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use ner_retriever_protocol::{Span, TextRequest};
use rayon::prelude::*;
use serde::Serialize;
use unicode_segmentation::UnicodeSegmentation;

use crate::{
    backend::{Backend, Input},
    batches::{batches, parts},
    device,
    embedder::Embedder,
    error::{EngineError, ErrorKind, Result, compute},
    model::llama::{Packed, Wanted},
    prepare::Window,
    server::resident_bytes,
    sources::Sources,
};

/// Calls whose times make a percentile.
const CALLS: usize = 200;
const FEWEST_CALLS: usize = 20;
/// Prepared texts that wait for the model, so that it never waits for them.
const AHEAD: usize = 1024;

#[derive(Args)]
pub struct BenchOptions {
    #[command(flatten)]
    sources: Sources,
    /// A text a line
    #[arg(long)]
    texts: PathBuf,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
    #[arg(long, default_value = "auto")]
    dtype: String,
    /// Tokens of a batch; 0 = what suits the device
    #[arg(long, default_value_t = 0)]
    batch_tokens: usize,
    /// Threads of the forward pass; 0 = as many as this process may use
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// Go over the texts again and again for at least this time
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Embed the first and the last word of each text instead of detecting mentions
    #[arg(long)]
    given_spans: bool,
    /// Leave out how long one type and one text take
    #[arg(long)]
    no_latencies: bool,
    /// Measure nothing, but write what the model gives for the texts (with --given-spans): their token
    /// ids, the rows of the mentions' last tokens, their V vectors and their embeddings
    #[arg(long, requires = "given_spans")]
    vectors: Option<PathBuf>,
}

/// What was measured.
#[derive(Serialize)]
pub struct Figures {
    device: String,
    dtype: String,
    batch_tokens: usize,
    /// From the start of loading to the model's readiness, the rehearsal of a GPU's batch included, s.
    load_s: f64,
    pass: Pass,
    bulk: Bulk,
    #[serde(flatten)]
    latencies: Option<Latencies>,
    resident_bytes: u64,
    /// 10^9 operations/s of a large product alone on a CPU; none where its library is the engine itself.
    ceiling_gops: Option<f64>,
}

#[derive(Serialize)]
struct Latencies {
    /// One type's embedding, ms.
    r#type: Percentiles,
    /// One text's mentions, ms.
    text: Percentiles,
}

/// Throughput; tokens are those of the texts, the first token of each included.
#[derive(Default, Serialize)]
struct Bulk {
    texts: usize,
    tokens: usize,
    mentions: usize,
    seconds: f64,
    texts_per_s: f64,
    tokens_per_s: f64,
}

/// The forward pass alone over the texts' tokens in batches, up to the last block's V.
#[derive(Serialize)]
struct Pass {
    /// Blocks that all tokens go through.
    blocks: usize,
    tokens_per_s: f64,
}

#[derive(Serialize)]
struct Percentiles {
    p50_ms: f64,
    p99_ms: f64,
}

/// Loads the model and measures it; `None` if only its vectors were asked for.
///
/// # Errors
/// The model's errors; `InvalidSetting` for texts that cannot be read or have nothing to embed.
pub fn run(options: &BenchOptions) -> Result<Option<Figures>> {
    let texts = std::fs::read_to_string(&options.texts)
        .map_err(|error| invalid("read", &options.texts, &error))?;
    let inputs: Vec<Input> = texts
        .lines()
        .filter(|text| !text.trim().is_empty())
        .map(|text| input(text, options.given_spans))
        .collect();
    if inputs.is_empty() {
        return Err(invalid("use", &options.texts, &"it has no text"));
    }
    let started = Instant::now();
    let device = device::select(&options.device)?;
    let numbers = device::numbers(&options.dtype, &device)?;
    let embedder = Embedder::load(&options.sources, device, Some(numbers))?;
    let batch_tokens = embedder.batch_tokens(options.batch_tokens)?;
    let load_s = started.elapsed().as_secs_f64();
    if let Some(path) = &options.vectors {
        vectors::write(&embedder, &inputs, batch_tokens, path)?;
        return Ok(None);
    }
    // What the first pass allocates and compiles is not measured.
    bulk(&embedder, &inputs, batch_tokens, 0.0)?;
    let mut figures = Figures {
        device: embedder.info().device.clone(),
        dtype: numbers.to_string(),
        batch_tokens,
        load_s,
        pass: pass(&embedder, &inputs, batch_tokens, options.seconds)?,
        bulk: bulk(&embedder, &inputs, batch_tokens, options.seconds)?,
        latencies: (!options.no_latencies)
            .then(|| latencies(&embedder, &inputs, options.seconds))
            .transpose()?,
        resident_bytes: resident_bytes(),
        ceiling_gops: None,
    };
    if embedder.device().is_cpu() {
        let config = embedder.model().llama.config();
        let rate = ceiling::operations_per_s(config, batch_tokens, numbers, options.seconds / 4.0)?;
        figures.ceiling_gops = rate.map(|rate| rate / 1e9);
    }
    Ok(Some(figures))
}

fn invalid(action: &str, path: &Path, problem: &dyn std::fmt::Display) -> EngineError {
    EngineError::new(
        ErrorKind::InvalidSetting,
        format!("cannot {action} {}: {problem}", path.display()),
    )
}

fn input(text: &str, given_spans: bool) -> Input {
    let spans = given_spans.then(|| first_and_last_word(text));
    Input::Text {
        request: TextRequest {
            text: text.to_owned(),
            spans,
        },
        embed: true,
        threshold: None,
    }
}

fn first_and_last_word(text: &str) -> Vec<Span> {
    let words: Vec<Span> = text
        .unicode_word_indices()
        .map(|(start, word)| {
            let chars = |until: usize| text[..until].chars().count() as u32;
            Span {
                start: chars(start),
                end: chars(start + word.len()),
            }
        })
        .collect();
    let mut ends: Vec<Span> = words
        .first()
        .into_iter()
        .chain(words.last())
        .copied()
        .collect();
    ends.dedup();
    ends
}

fn latencies(embedder: &Embedder, inputs: &[Input], seconds: f64) -> Result<Latencies> {
    Ok(Latencies {
        r#type: latency(seconds, |call| answer(embedder, type_name(call)))?,
        text: latency(seconds, |call| {
            answer(embedder, inputs[call % inputs.len()].clone())
        })?,
    })
}

fn type_name(call: usize) -> Input {
    Input::Type {
        name: format!("kind of thing number {call}"),
    }
}

/// Runs one input alone, as the first request of an idle engine is.
fn answer(embedder: &Embedder, input: Input) -> Result<()> {
    let (prepared, windows) = embedder.prepare(input)?;
    let windows: Vec<&Window> = windows.iter().collect();
    let outputs = embedder.forward(&windows)?;
    embedder.finish(prepared, outputs).map(drop)
}

/// Of [`CALLS`] calls, or of those that begin before `seconds` have passed, but of [`FEWEST_CALLS`].
fn latency(seconds: f64, mut call: impl FnMut(usize) -> Result<()>) -> Result<Percentiles> {
    let mut times = Vec::with_capacity(CALLS);
    let began = Instant::now();
    while times.len() < CALLS
        && (times.len() < FEWEST_CALLS || began.elapsed() < Duration::from_secs_f64(seconds))
    {
        let started = Instant::now();
        call(times.len())?;
        times.push(started.elapsed().as_secs_f64() * 1000.0);
    }
    times.sort_by(f64::total_cmp);
    Ok(Percentiles {
        p50_ms: times[times.len() / 2],
        p99_ms: times[times.len() * 99 / 100],
    })
}

/// Goes over the inputs until `seconds` have passed, at least once.
fn pass(embedder: &Embedder, inputs: &[Input], batch_tokens: usize, seconds: f64) -> Result<Pass> {
    let llama = &embedder.model().llama;
    let wanted = Wanted {
        values: vec![llama.last_block()],
        ..Wanted::default()
    };
    let mut windows = Vec::new();
    for input in inputs {
        windows.extend(embedder.prepare(input.clone())?.1);
    }
    let run = |part: &[Window]| {
        let packed = Packed::new(part.iter().map(|window| window.ids.as_slice()));
        let values = llama.forward(&packed, &wanted).map_err(compute)?.values;
        // Read back, so that a GPU has computed it.
        let first = values
            .iter()
            .map(|values| values.narrow(0, 0, 1)?.to_vec2::<f32>());
        first
            .collect::<candle_core::Result<Vec<_>>>()
            .map_err(compute)?;
        Ok(packed.ids.len())
    };
    let (mut tokens, started) = (0, Instant::now());
    while tokens == 0 || started.elapsed() < Duration::from_secs_f64(seconds) {
        for batch in batches(&windows, batch_tokens, Window::tokens) {
            let parts = parts(batch, embedder.device(), Window::tokens);
            tokens += parts.into_par_iter().map(run).sum::<Result<usize>>()?;
        }
    }
    Ok(Pass {
        blocks: llama.last_block(),
        tokens_per_s: tokens as f64 / started.elapsed().as_secs_f64(),
    })
}

/// Goes over the inputs again and again until `seconds` have passed, at least once.
fn bulk(embedder: &Embedder, inputs: &[Input], batch_tokens: usize, seconds: f64) -> Result<Bulk> {
    let mut sum = Bulk::default();
    let started = Instant::now();
    // As in the server, texts are prepared on another thread than the model's.
    let (sender, prepared) = sync_channel(AHEAD);
    thread::scope(|scope| {
        scope.spawn(move || {
            for input in inputs.iter().cycle() {
                if sender.send(embedder.prepare(input.clone())).is_err() {
                    return;
                }
            }
        });
        let mut batch = Batch::default();
        for text in prepared {
            let (_, windows) = text?;
            for window in windows {
                if batch.tokens + window.tokens() > batch_tokens {
                    batch.run(embedder, &mut sum)?;
                }
                batch.tokens += window.tokens();
                batch.windows.push(window);
            }
            batch.texts += 1;
            let passed = started.elapsed() >= Duration::from_secs_f64(seconds);
            if passed && sum.texts + batch.texts >= inputs.len() {
                break;
            }
        }
        batch.run(embedder, &mut sum)
    })?;
    sum.seconds = started.elapsed().as_secs_f64();
    sum.texts_per_s = sum.texts as f64 / sum.seconds;
    sum.tokens_per_s = sum.tokens as f64 / sum.seconds;
    Ok(sum)
}

/// What is prepared and has not run.
#[derive(Default)]
struct Batch {
    windows: Vec<Window>,
    tokens: usize,
    texts: usize,
}

impl Batch {
    /// Runs and counts it.
    fn run(&mut self, embedder: &Embedder, sum: &mut Bulk) -> Result<()> {
        let batch = std::mem::take(self);
        if batch.windows.is_empty() {
            return Ok(());
        }
        let outputs = embedder.forward(&batch.windows.iter().collect::<Vec<_>>())?;
        sum.mentions += outputs.iter().map(|o| o.mentions.len()).sum::<usize>();
        sum.tokens += batch.tokens;
        sum.texts += batch.texts;
        Ok(())
    }
}
