//! Training a head: the probe that finds mentions and the projection that tells their types.

mod capitals;
mod dataset;
mod examples;
mod finder;
mod hard_negatives;
mod optimizer;
mod options;
mod probe;
mod projection;
mod split;
mod teacher;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use candle_core::{Device, safetensors};

use crate::{
    corpus::{self, Document, TypeNames},
    device,
    error::{EngineError, ErrorKind, Result, compute},
    features::{Features, Kept},
    head::{BaseModelReference, DESCRIPTION, HeadDescription, ProjectionDescription},
    model::{BaseModel, Checkpoint},
};
use dataset::Dataset;
use finder::Finder;
pub use options::{Loss, ProjectionForm, TrainOptions};
pub use projection::Trained as TrainedProjection;
use teacher::Teacher;

/// Trains a head and writes its folder.
///
/// # Errors
/// The model's and the corpora's errors; `InvalidSetting` for options that do not fit.
pub fn train(options: &TrainOptions, command: &str) -> Result<()> {
    let numbers = device::numbers(&options.dtype, &Device::Cpu)?;
    let checkpoint = Checkpoint::open(&options.model, &Device::Cpu)?.in_numbers(numbers);
    let all = checkpoint.config().blocks;
    let last = options.last_block(all)?;
    let kept = Kept {
        representations: options.representations(),
        hidden: None,
    };
    let nouns = options.nouns();
    let teaches_itself = nouns.is_some() && options.teacher.is_empty();
    let readout = teaches_itself.then(|| checkpoint.readout()).transpose()?;
    let model = checkpoint.load(if teaches_itself { all } else { last })?;
    let (mut documents, names) = corpora(options)?;
    let finder = Finder::new(&model, &documents, numbers, options)?;
    if options.distil_detected {
        documents = finder.detect(&model, &documents, options)?;
    }
    let features = Features::compute(&model, readout.as_ref(), &documents, &kept, &options.cache)?;
    let teachers = match (nouns, &readout) {
        (Some(nouns), Some(readout)) => {
            vec![Teacher::new(&model, readout, &features, nouns, options)?]
        }
        (Some(nouns), None) => {
            let paths = options.teacher.iter();
            let teachers = paths.map(|path| Teacher::other(path, &documents, nouns, options));
            teachers.collect::<Result<_>>()?
        }
        (None, _) => Vec::new(),
    };
    let hashes: Vec<String> = teachers
        .iter()
        .map(|teacher| teacher.hash.clone())
        .collect();
    let dataset = Dataset::new(&model, &documents, &names, &features, &teachers, options)?;
    let trained = projection::train(&dataset, options)?;

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
        detector: finder.detector(options),
        companion: finder.companion(),
        provenance: serde_json::json!({
            "command": command,
            "teachers": hashes,
            "texts": documents.len(),
            "mentions": dataset.mentions(),
            "types": dataset.type_names(),
            "projection": trained.summary,
            "probe": finder.summary(),
        }),
    };
    write(&options.out, &description, &trained, &finder)
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
    let dataset = Dataset::new(model, documents, names, features, &[], options)?;
    projection::train(&dataset, options)
}

fn write(
    out: &Path,
    description: &HeadDescription,
    projection: &projection::Trained,
    finder: &Finder,
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
    if let (Some(detector), Finder::Own { probe, .. }) = (&description.detector, finder) {
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

/// Trains the probe on texts of its own, or on those of the projection.
fn train_probe(
    model: &BaseModel,
    documents: &[Document],
    block: usize,
    options: &TrainOptions,
) -> Result<probe::Trained> {
    let mut written = match &options.probe_corpus[..] {
        [] => documents.to_vec(),
        corpora => sampled(corpora, &options.probe_limit, options.seed)?,
    };
    let mut lower = written.clone();
    if !options.probe_corpus.is_empty() {
        corpus::lower_case(&mut lower, options.probe_lower_case, options.seed);
    }
    if !options.names_are_capitalized && !options.probe_both_forms {
        // Nothing asks how they were written.
        written.clone_from(&lower);
    }
    let pairs = lower.iter().zip(&written);
    let lowered: Vec<bool> = pairs.map(|(lower, written)| lower != written).collect();
    let mut is_lowered = lowered.iter();
    lower.retain(|_| is_lowered.next() == Some(&true));
    let texts = probe::Texts {
        written: (&written, &hidden(model, &written, block, options)?),
        lower: (&lower, &hidden(model, &lower, block, options)?),
        lowered: &lowered,
    };
    probe::train(&texts, model.llama.config().hidden_size, options)
}

/// What a probe reads of texts.
fn hidden(
    model: &BaseModel,
    documents: &[Document],
    block: usize,
    options: &TrainOptions,
) -> Result<Features> {
    let kept = Kept {
        representations: Vec::new(),
        hidden: Some(block),
    };
    Features::compute(model, None, documents, &kept, &options.cache)
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

fn invalid(problem: String) -> EngineError {
    EngineError::new(ErrorKind::InvalidSetting, problem)
}

/// A score as the provenance shows it.
fn rounded(score: f64) -> f64 {
    (score * 1e4).round() / 1e4
}
