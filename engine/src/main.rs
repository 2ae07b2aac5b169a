//! The engine's command line.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use candle_core::Device;
use clap::{Args, Parser, Subcommand};
use ner_retriever_engine::{
    backend::Backend,
    bench::{self, BenchOptions},
    corpus, device,
    embedder::Embedder,
    error::{EngineError, ErrorKind},
    eval::{self, Protocol, report::Spans},
    model::Checkpoint,
    representation::TYPE_PLACE,
    server::{self, ServeOptions},
    sources::Sources,
    startup::Startup,
    sweep,
    train::{self, TrainOptions},
};

/// Finds and embeds entity mentions for the PostgreSQL extension ner_retriever.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve requests on an inherited listening socket (the extension's supervisor starts this)
    Serve(Serve),
    /// Train a head: mention probe and projection
    Train(Box<TrainOptions>),
    /// Score a head on a corpus with gold spans
    Eval(Eval),
    /// Measure a model's speed without a server
    Bench(BenchOptions),
    /// Score the untrained V vectors of every block on a corpus with gold spans
    Sweep(Sweep),
}

#[derive(Args)]
struct Serve {
    /// Descriptor of the listening socket
    #[arg(long)]
    listen_fd: i32,
    /// Path of a socket to listen on as well, which ends with this engine
    #[arg(long)]
    status_socket: Option<PathBuf>,
    #[command(flatten)]
    sources: Sources,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
    #[arg(long, default_value = "auto")]
    dtype: String,
    #[arg(long, default_value = "probe")]
    detector: String,
    /// Exit after this time without a request, ms; 0 = never
    #[arg(long, default_value_t = 600_000)]
    idle_timeout_ms: u64,
    /// Tokens of a batch; 0 = what suits the device
    #[arg(long, default_value_t = 0)]
    batch_tokens: usize,
    /// Threads of the forward pass; 0 = as many as this process may use
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Largest text, bytes
    #[arg(long, default_value_t = 256 * 1024)]
    max_text_bytes: usize,
    /// Most requests that wait
    #[arg(long, default_value_t = 1024)]
    max_queue: usize,
    /// Log to standard output: standard error is read by who starts this, to learn why it cannot run.
    /// With device auto it ends when the device cannot be used, so that another engine can serve
    #[arg(long)]
    explain: bool,
}

#[derive(Args)]
struct Eval {
    #[command(flatten)]
    sources: Sources,
    /// JSON lines, plain or gzip
    #[arg(long)]
    corpus: PathBuf,
    /// Corpus that is indexed beside it, without queries of its own (may be given several times)
    #[arg(long)]
    beside: Vec<PathBuf>,
    /// Of those corpora only mentions that share a letter with a labelled one: where they do not label
    /// the types that are asked for, whether another mention is of one is not known
    #[arg(long, requires = "beside", conflicts_with = "limit")]
    beside_labelled: bool,
    /// JSON object from corpus type to query name, null = indexed but not queried
    #[arg(long)]
    types: PathBuf,
    #[arg(long, value_enum)]
    spans: Spans,
    /// Least probability of a detected mention, instead of the head's own
    #[arg(long)]
    threshold: Option<f32>,
    /// Score a random subset of this many texts
    #[arg(long)]
    limit: Option<usize>,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// As ner_retriever.device
    #[arg(long, default_value = "auto")]
    device: String,
    /// As ner_retriever.dtype
    #[arg(long, default_value = "auto")]
    dtype: String,
    /// Also show each type by this many mentions and search the other texts
    #[arg(long, default_value_t = 0)]
    examples: usize,
    /// Also write the mentions' embeddings: the text's number, a tab, the vector, as COPY reads them
    #[arg(long)]
    embeddings: Option<PathBuf>,
    /// Folder that keeps what the base model gives for the texts between runs, so that another
    /// projection of the same representations is scored without its pass
    #[arg(long)]
    cache: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Sweep {
    #[arg(long)]
    model: PathBuf,
    #[arg(long)]
    corpus: PathBuf,
    #[arg(long)]
    types: PathBuf,
    #[arg(long, default_value_t = 1500)]
    limit: usize,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Read V at the end of this suffix, such as ' {mention} is a', instead of the mention's own end
    #[arg(long)]
    suffix: Option<String>,
    /// What is embedded for a type
    #[arg(long, default_value = TYPE_PLACE)]
    query_form: String,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(options) => serve(options),
        Command::Train(options) => train(&options),
        Command::Eval(options) => eval(&options),
        Command::Bench(options) => run_bench(&options),
        Command::Sweep(options) => sweep(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ner-retriever-engine: {error}");
            if let Some(hint) = error.hint {
                eprintln!("hint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}

fn serve(options: Serve) -> Result<(), EngineError> {
    let failed = |e: server::ServeError| EngineError::new(ErrorKind::Internal, e.to_string());
    let startup = startup(&options)?;
    server::prepare_process().map_err(failed)?;
    let mut listeners = vec![server::inherited_listener(options.listen_fd).map_err(failed)?];
    if let Some(path) = &options.status_socket {
        listeners.push(server::own_listener(path).map_err(failed)?);
    }
    set_threads(options.threads)?;
    let serve_options = ServeOptions {
        idle_timeout: (options.idle_timeout_ms > 0)
            .then(|| Duration::from_millis(options.idle_timeout_ms)),
        batch_tokens: options.batch_tokens,
        max_text_bytes: options.max_text_bytes,
        max_queue: options.max_queue,
    };
    let load = move || startup.or_make_way(load(&options));
    server::serve(&listeners, serve_options, load).map_err(failed)
}

/// Call it before anything logs.
fn startup(options: &Serve) -> Result<Startup, EngineError> {
    if !options.explain {
        return Ok(Startup::unobserved());
    }
    let startup = Startup::observed()
        .map_err(|e| EngineError::new(ErrorKind::Internal, format!("cannot log: {e}")))?;
    // Who asks for a GPU by name gets an error when there is none.
    Ok(match options.device.as_str() {
        "auto" => startup,
        _ => Startup::unobserved(),
    })
}

fn load(options: &Serve) -> Result<Embedder, EngineError> {
    device::check_detector(&options.detector)?;
    let device = device::select(&options.device)?;
    let numbers = device::numbers(&options.dtype, &device)?;
    let embedder = Embedder::load(&options.sources, device, Some(numbers))?;
    // Here, where a GPU without enough memory still makes way.
    embedder.batch_tokens(options.batch_tokens)?;
    Ok(embedder)
}

fn train(options: &TrainOptions) -> Result<(), EngineError> {
    let arguments: Vec<String> = std::env::args().skip(1).map(without_folder).collect();
    train::train(options, &arguments.join(" "))
}

/// An argument as the provenance quotes it: of a path only its last part, which means something on
/// another machine too.
fn without_folder(argument: String) -> String {
    let name = Path::new(&argument)
        .file_name()
        .and_then(|name| name.to_str());
    match name {
        Some(name) if argument.contains('/') => name.to_owned(),
        _ => argument,
    }
}

fn eval(options: &Eval) -> Result<(), EngineError> {
    let mut documents = corpus::read(&options.corpus)?;
    let labelled_from = options.beside_labelled.then_some(documents.len());
    for path in &options.beside {
        documents.extend(corpus::read(path)?);
    }
    let documents = corpus::sample(documents, options.limit, options.seed);
    let names = corpus::read_type_names(&options.types, &options.corpus)?;
    let device = device::select(&options.device)?;
    let numbers = device::numbers(&options.dtype, &device)?;
    let embedder = Embedder::load(&options.sources, device, Some(numbers))?;
    let report = eval::evaluate(
        &embedder,
        &documents,
        &names,
        Protocol {
            spans: options.spans,
            threshold: options.threshold,
            labelled_from,
            examples: options.examples,
            seed: options.seed,
            export: options.embeddings.as_deref(),
            cache: options.cache.as_deref(),
        },
    )?;
    if options.json {
        let json = serde_json::to_string(&report)
            .map_err(|e| EngineError::new(ErrorKind::Internal, e.to_string()))?;
        println!("{json}");
    } else {
        println!("{report}");
    }
    Ok(())
}

fn run_bench(options: &BenchOptions) -> Result<(), EngineError> {
    set_threads(options.threads)?;
    let Some(figures) = bench::run(options)? else {
        return Ok(());
    };
    let json = serde_json::to_string_pretty(&figures)
        .map_err(|e| EngineError::new(ErrorKind::Internal, e.to_string()))?;
    println!("{json}");
    Ok(())
}

/// Threads of the forward pass; 0: as many as this process may use.
fn set_threads(threads: usize) -> Result<(), EngineError> {
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .map_err(|e| EngineError::new(ErrorKind::Internal, e.to_string()))
}

fn sweep(options: &Sweep) -> Result<(), EngineError> {
    let documents = corpus::read(&options.corpus)?;
    let documents = corpus::sample(documents, Some(options.limit), options.seed);
    let names = corpus::read_type_names(&options.types, &options.corpus)?;
    let checkpoint = Checkpoint::open(&options.model, &Device::Cpu)?;
    let last = checkpoint.config().blocks - 1;
    let form = sweep::Form {
        suffix: options.suffix.as_deref(),
        query: &options.query_form,
    };
    let scores = sweep::sweep(&checkpoint.load(last)?, &documents, &names, form)?;
    println!("block  macro R-Precision  AUC of same type");
    for (block, score) in scores.iter().enumerate() {
        println!(
            "{block:>5}  {:>17.3}  {:>16.3}",
            score.r_precision, score.auc
        );
    }
    Ok(())
}
