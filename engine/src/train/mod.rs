//! Training a head: the probe that finds mentions and the projection that tells their types.

mod dataset;
mod hard_negatives;
mod optimizer;
mod probe;
mod projection;
mod teacher;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use candle_core::{Device, safetensors};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::{
    corpus::{self, Document, TypeNames},
    error::{EngineError, ErrorKind, Result, compute},
    features::{Features, Kept},
    head::{
        BaseModelReference, DESCRIPTION, DetectorDescription, HeadDescription,
        ProjectionDescription,
    },
    model::{BaseModel, Checkpoint},
    projection::ProjectionKind,
    representation::{Representation, TYPE_PLACE},
};
use dataset::Dataset;
pub use projection::Trained as TrainedProjection;

/// Options of `train`. The defaults are the paper's recipe where it gives one (arXiv 2509.04011,
/// section 3.2 and the authors' `mlp.py`); what the shipped heads use instead is in their
/// provenance.
#[derive(Debug, Clone, Args, Serialize)]
pub struct TrainOptions {
    /// GGUF file or Hugging Face folder of the base model
    #[arg(long)]
    pub model: PathBuf,
    /// Corpus of JSON lines (may be given several times)
    #[arg(long, required = true)]
    pub corpus: Vec<PathBuf>,
    /// JSON object from corpus type to query name, null = not a training type
    #[arg(long)]
    pub types: PathBuf,
    /// Folder to write the head to
    #[arg(long)]
    pub out: PathBuf,
    /// Folder that keeps the base model's features between runs
    #[arg(long)]
    pub cache: PathBuf,
    /// The head's name
    #[arg(long)]
    pub name: String,
    /// The base model's name, for people
    #[arg(long)]
    pub base_model_name: String,
    /// 0-based block whose values at a mention's last token represent it
    #[arg(long)]
    pub block: Option<usize>,
    /// 0-based block whose values at the end of the mention's suffix represent it; with --block,
    /// both side by side
    #[arg(long)]
    pub suffix_block: Option<usize>,
    /// The suffix
    #[arg(long, default_value = "\n\"{mention}\" is a")]
    pub suffix: String,
    /// What is embedded for a type in the place of the mention's end
    #[arg(long, default_value = TYPE_PLACE)]
    pub query_form: String,
    /// What is embedded for a type in the place of the suffix
    #[arg(long, default_value = "\n\"It\" is a {type}")]
    pub suffix_query_form: String,
    /// 0-based block whose incoming hidden states the probe reads
    #[arg(long)]
    pub probe_block: usize,
    /// Random texts of each corpus (given once for all corpora, or once per corpus in their order)
    #[arg(long)]
    pub limit: Vec<usize>,
    /// Share of the texts that are lower-cased
    #[arg(long, default_value_t = 0.0)]
    pub lower_case: f64,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Form of the projection
    #[arg(long, value_enum, default_value = "mlp")]
    pub projection: ProjectionForm,
    /// Width of the projection's inner layer
    #[arg(long, default_value_t = 500)]
    pub units: usize,
    /// Dimensions of an embedding; a residual projection keeps the base model's
    #[arg(long, default_value_t = 500)]
    pub dims: usize,
    #[arg(long, value_enum, default_value = "triplet")]
    pub loss: Loss,
    /// Margin of the triplet loss on cosine distance (the authors published none)
    #[arg(long, default_value_t = 0.2)]
    pub margin: f64,
    /// Share of negatives taken from texts that keyword search finds for the anchor's type
    #[arg(long, default_value_t = 0.1)]
    pub hard_negatives: f64,
    /// Temperature of the contrastive loss and of distillation
    #[arg(long, default_value_t = 0.07)]
    pub temperature: f64,
    /// File of nouns, one a line, over which the base model's next-token distribution is distilled
    #[arg(long)]
    pub type_nouns: Option<PathBuf>,
    /// Temperature of the base model's distribution in distillation
    #[arg(long, default_value_t = 1.0)]
    pub teacher_temperature: f64,
    #[arg(long, default_value_t = 0.1)]
    pub dropout: f64,
    #[arg(long, default_value_t = 1e-4)]
    pub learning_rate: f64,
    #[arg(long, default_value_t = 0.01)]
    pub weight_decay: f64,
    /// Mentions in a batch
    #[arg(long, default_value_t = 512)]
    pub batch: usize,
    /// Most optimizer steps of the projection; held-out types decide how many are taken
    #[arg(long, default_value_t = 1000)]
    pub steps: usize,
    /// Share of the types held out to decide that
    #[arg(long, default_value_t = 0.2)]
    pub held_out_types: f64,
    /// Corpus for the probe instead of those of --corpus (may be given several times)
    #[arg(long)]
    pub probe_corpus: Vec<PathBuf>,
    /// Random texts of each of them (once for all, or once per corpus in their order)
    #[arg(long)]
    pub probe_limit: Vec<usize>,
    /// Share of their texts that are lower-cased
    #[arg(long, default_value_t = 0.5)]
    pub probe_lower_case: f64,
    /// Hidden units of the probe
    #[arg(long, default_value_t = 64)]
    pub probe_units: usize,
    #[arg(long, default_value_t = 4)]
    pub probe_epochs: usize,
    #[arg(long, default_value_t = 1e-3)]
    pub probe_learning_rate: f64,
    /// After the first epoch, unlabelled spans above this probability are not taken for negatives:
    /// a corpus labels only some types
    #[arg(long, default_value_t = 1.0)]
    pub trust_unlabelled_below: f32,
    /// Least probability of a detected mention; chosen for the best F1 on held-out texts if absent
    #[arg(long)]
    pub threshold: Option<f32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
pub enum ProjectionForm {
    Mlp,
    Residual,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
pub enum Loss {
    /// The paper's: anchors are type names, positives and negatives are mentions
    Triplet,
    /// Cross-entropy of each mention over the names of all training types
    Contrastive,
    /// The cosines of mentions with --type-nouns agree with what the base model says next; labels
    /// only tell where mentions are
    Distillation,
}

impl TrainOptions {
    /// What represents a mention.
    pub fn representations(&self) -> Vec<Representation> {
        let span_end = self.block.map(|block| Representation::SpanEnd {
            block,
            query_form: self.query_form.clone(),
        });
        let suffix = self.suffix_block.map(|block| Representation::Suffix {
            block,
            text: self.suffix.clone(),
            query_form: self.suffix_query_form.clone(),
        });
        span_end.into_iter().chain(suffix).collect()
    }
}

/// Trains a head and writes its folder.
///
/// # Errors
/// The model's and the corpora's errors; `InvalidSetting` for options that do not fit.
pub fn train(options: &TrainOptions, command: &str) -> Result<()> {
    let checkpoint = Checkpoint::open(&options.model, &Device::Cpu)?;
    let distils = options.loss == Loss::Distillation;
    let own_probe_texts = !options.probe_corpus.is_empty();
    let kept = Kept {
        representations: options.representations(),
        hidden: (!own_probe_texts).then_some(options.probe_block),
    };
    if kept.representations.is_empty() {
        return Err(invalid("give --block, --suffix-block or both".to_owned()));
    }
    if distils && options.suffix_block.is_none() {
        return Err(invalid("distillation needs --suffix-block".to_owned()));
    }
    if let Some(problem) = kept
        .representations
        .iter()
        .find_map(Representation::problem)
    {
        return Err(invalid(format!("of a representation, {problem}")));
    }
    let blocks = kept.representations.iter().map(Representation::block);
    let last = blocks.max().unwrap_or(0).max(options.probe_block);
    let all = checkpoint.config().blocks;
    if last >= all {
        return Err(invalid(format!(
            "block {last} of a model with {all} blocks"
        )));
    }
    let readout = distils.then(|| checkpoint.readout()).transpose()?;
    let model = checkpoint.load(if distils { all } else { last })?;
    let (documents, names) = corpora(options)?;
    let compute = |readout, documents: &[Document], kept| {
        Features::compute(&model, readout, documents, kept, &options.cache)
    };
    let features = compute(readout.as_ref(), &documents, &kept)?;
    let dataset = Dataset::new(
        &model,
        &documents,
        &names,
        &features,
        readout.as_ref(),
        options,
    )?;
    let trained = projection::train(&dataset, options)?;

    let hidden_size = model.llama.config().hidden_size;
    let probe = if own_probe_texts {
        let documents = probe_documents(options)?;
        let kept = Kept {
            representations: Vec::new(),
            hidden: Some(options.probe_block),
        };
        probe::train(
            &documents,
            &compute(None, &documents, &kept)?,
            hidden_size,
            options,
        )?
    } else {
        probe::train(&documents, &features, hidden_size, options)?
    };

    let (input_dims, dims) = dataset.dims(options);
    let description = HeadDescription {
        name: options.name.clone(),
        base_model: BaseModelReference {
            name: options.base_model_name.clone(),
            hash: Some(model.hash.clone()),
        },
        representations: kept.representations,
        projection: ProjectionDescription {
            kind: options.projection.into(),
            file: "projection.safetensors".to_owned(),
            input_dims,
            dims,
        },
        detector: Some(DetectorDescription {
            block: options.probe_block,
            file: "mentions.safetensors".to_owned(),
            threshold: probe.threshold,
        }),
        provenance: serde_json::json!({
            "command": command,
            "texts": documents.len(),
            "mentions": dataset.mentions(),
            "types": dataset.type_names(),
            "projection": trained.summary,
            "probe": probe.summary,
        }),
    };
    write(&options.out, &description, &trained, &probe)
}

/// Trains a projection alone, on features computed before: what `train` does for the projection's
/// options, of which a caller tries several. Distillation needs a teacher and is not for this.
///
/// # Errors
/// The model's errors; `InvalidSetting` for options that do not fit.
pub fn train_projection(
    model: &BaseModel,
    documents: &[Document],
    names: &TypeNames,
    features: &Features,
    options: &TrainOptions,
) -> Result<TrainedProjection> {
    if options.loss == Loss::Distillation {
        return Err(invalid(
            "a projection alone is trained with labels".to_owned(),
        ));
    }
    let dataset = Dataset::new(model, documents, names, features, None, options)?;
    projection::train(&dataset, options)
}

fn write(
    out: &Path,
    description: &HeadDescription,
    projection: &projection::Trained,
    probe: &probe::Trained,
) -> Result<()> {
    let unwritable =
        |e: std::io::Error| invalid(format!("cannot write \"{}\": {e}", out.display()));
    fs::create_dir_all(out).map_err(unwritable)?;
    let save = |tensors, file: &str| {
        let path = out.join(file);
        safetensors::save(&tensors, &path).map_err(compute)?;
        // The library makes the file readable by its owner alone; the server is another user.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).map_err(unwritable)
    };
    save(
        projection.projection.tensors(),
        &description.projection.file,
    )?;
    if let Some(detector) = &description.detector {
        save(probe.probe.tensors(), &detector.file)?;
    }
    let json = serde_json::to_string_pretty(description)
        .map_err(|e| invalid(format!("the description cannot be written: {e}")))?;
    fs::write(out.join(DESCRIPTION), json + "\n").map_err(unwritable)
}

/// All corpora's documents, and the query names of their types.
fn corpora(options: &TrainOptions) -> Result<(Vec<Document>, TypeNames)> {
    let mut documents = sampled(&options.corpus, &options.limit, options.seed)?;
    corpus::lower_case(&mut documents, options.lower_case, options.seed);
    let mut names = TypeNames::new();
    for path in &options.corpus {
        names.extend(corpus::read_type_names(&options.types, path)?);
    }
    Ok((documents, names))
}

/// The documents of the corpora for the probe alone.
fn probe_documents(options: &TrainOptions) -> Result<Vec<Document>> {
    let mut documents = sampled(&options.probe_corpus, &options.probe_limit, options.seed)?;
    corpus::lower_case(&mut documents, options.probe_lower_case, options.seed);
    Ok(documents)
}

/// Random documents of each corpus; one limit stands for all.
fn sampled(corpora: &[PathBuf], limits: &[usize], seed: u64) -> Result<Vec<Document>> {
    let mut documents = Vec::new();
    for (number, path) in corpora.iter().enumerate() {
        let limit = limits.get(number).or(limits.first());
        documents.extend(corpus::sample(corpus::read(path)?, limit.copied(), seed));
    }
    Ok(documents)
}

impl From<ProjectionForm> for ProjectionKind {
    fn from(form: ProjectionForm) -> Self {
        match form {
            ProjectionForm::Mlp => Self::Mlp,
            ProjectionForm::Residual => Self::Residual,
        }
    }
}

fn invalid(problem: String) -> EngineError {
    EngineError::new(ErrorKind::InvalidSetting, problem)
}

/// A score as the provenance shows it.
fn rounded(score: f64) -> f64 {
    (score * 1e4).round() / 1e4
}
