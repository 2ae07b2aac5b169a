//! What `train` can be asked for.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::invalid;
use crate::{
    error::Result,
    projection::ProjectionKind,
    representation::{MENTION_PLACE, Representation, TYPE_PLACE},
};

/// Options of `train`. The defaults are the paper's recipe where it gives one (arXiv 2509.04011,
/// section 3.2 and the authors' `mlp.py`); what the shipped heads use instead is in their
/// provenance.
#[derive(Debug, Clone, Args, Serialize)]
pub struct TrainOptions {
    /// GGUF file or Hugging Face folder of the base model
    #[arg(long)]
    pub model: PathBuf,
    /// What the base model computes in, as ner_retriever.dtype
    #[arg(long, default_value = "f32")]
    pub dtype: String,
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
    /// 0-based block whose values at the mention's last token in its suffix represent it, where what follows the
    /// mention in its text has been read; the suffix up to there
    #[arg(long)]
    pub echo_block: Option<usize>,
    /// 0-based block whose values at the end of the mention's suffix represent it; with --block or
    /// --echo-block, side by side
    #[arg(long)]
    pub suffix_block: Option<usize>,
    /// The suffix
    #[arg(long, default_value = "\n\"{mention}\" is a")]
    pub suffix: String,
    /// What is embedded for a type in the place of the mention's end, and of its echo's
    #[arg(long, default_value = TYPE_PLACE)]
    pub query_form: String,
    /// What is embedded for a type in the place of the suffix
    #[arg(long, default_value = "\n\"It\" is a {type}")]
    pub suffix_query_form: String,
    /// 0-based block whose incoming hidden states the probe reads
    #[arg(long, required_unless_present = "companion")]
    pub probe_block: Option<usize>,
    /// Head whose detector finds the mentions, and whose embeddings stand beside the new head's: a sibling of
    /// the folder of --out by the time that the head is loaded
    #[arg(long, requires = "companion_model", conflicts_with_all = ["probe_block", "probe_of", "probe_corpus"])]
    pub companion: Option<PathBuf>,
    /// Its base model
    #[arg(long, requires = "companion")]
    pub companion_model: Option<PathBuf>,
    /// The share of its cosines in those of both; 0: it finds the mentions alone
    #[arg(long, default_value_t = 0.0, requires = "companion")]
    pub companion_weight: f64,
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
    /// File of nouns, one a line, over which a base model's next-token distribution is distilled
    #[arg(long)]
    pub type_nouns: Option<PathBuf>,
    /// Base model (GGUF file or folder) whose next token is distilled instead of the model's own; of
    /// several, given one by one, the mean
    #[arg(long)]
    pub teacher: Vec<PathBuf>,
    /// What they compute in, as ner_retriever.dtype
    #[arg(long, default_value = "f32")]
    pub teacher_dtype: String,
    /// Temperature of the teacher's distribution in distillation
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
    /// Most optimizer steps of the projection; what is held out decides how many are taken
    #[arg(long, default_value_t = 1000)]
    pub steps: usize,
    /// Share of the types held out to decide that, where labels are learned
    #[arg(long, default_value_t = 0.2)]
    pub held_out_types: f64,
    /// Share of the texts held out to decide that, where a teacher is
    #[arg(long, default_value_t = 0.25)]
    pub held_out_texts: f64,
    /// Take the probe of this head, which is for the same base model, instead of training one
    #[arg(long)]
    pub probe_of: Option<PathBuf>,
    /// Corpus for the probe instead of those of --corpus (may be given several times)
    #[arg(long)]
    pub probe_corpus: Vec<PathBuf>,
    /// Random texts of each of them (once for all, or once per corpus in their order)
    #[arg(long)]
    pub probe_limit: Vec<usize>,
    /// Share of their texts that are lower-cased
    #[arg(long, default_value_t = 0.5)]
    pub probe_lower_case: f64,
    /// Learn from the lower-cased ones as they are written, too
    #[arg(long)]
    pub probe_both_forms: bool,
    /// Hidden units of the probe
    #[arg(long, default_value_t = 64)]
    pub probe_units: usize,
    /// Probes that are trained from other random numbers each; the mean of their log-odds counts
    #[arg(long, default_value = "1")]
    pub probe_networks: NonZeroUsize,
    /// Share of the hidden states' numbers that it does without at each step
    #[arg(long, default_value_t = 0.0)]
    pub probe_dropout: f64,
    #[arg(long, default_value_t = 4)]
    pub probe_epochs: usize,
    #[arg(long, default_value_t = 1e-3)]
    pub probe_learning_rate: f64,
    /// After the first epoch, unlabelled spans above this probability are not taken for negatives:
    /// a corpus labels only some types
    #[arg(long, default_value_t = 1.0)]
    pub trust_unlabelled_below: f32,
    /// In the probe's texts as they are written names are capitalized: what a first probe finds among
    /// capitalized words counts as labelled too, what it is unsure of neither way
    #[arg(long)]
    pub names_are_capitalized: bool,
    /// Also distil what the trained probe finds in the texts beside the labelled mentions
    #[arg(long)]
    pub distil_detected: bool,
    /// Least probability of what --distil-detected adds; that of --threshold if absent
    #[arg(long)]
    pub distil_threshold: Option<f32>,
    /// Least probability of a detected mention; chosen for the best F1 on held-out texts if absent
    #[arg(long)]
    pub threshold: Option<f32>,
    /// Least probability of one where none reaches the threshold; beside a likelier one the same share of
    /// its probability, up to the threshold. Absent: the threshold
    #[arg(long)]
    pub floor: Option<f32>,
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
    /// The cosines of mentions with --type-nouns agree with what the teacher says next; labels
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
        let upto_mention = self
            .suffix
            .find(MENTION_PLACE)
            .map(|at| at + MENTION_PLACE.len());
        let echo = self.echo_block.map(|block| Representation::Suffix {
            block,
            text: self.suffix[..upto_mention.unwrap_or(0)].to_owned(),
            query_form: self.query_form.clone(),
        });
        let suffix = self.suffix_block.map(|block| Representation::Suffix {
            block,
            text: self.suffix.clone(),
            query_form: self.suffix_query_form.clone(),
        });
        span_end.into_iter().chain(echo).chain(suffix).collect()
    }

    /// The nouns over which a teacher is distilled, if one is.
    pub fn nouns(&self) -> Option<&Path> {
        let path = self.type_nouns.as_deref();
        path.filter(|_| self.loss == Loss::Distillation)
    }

    /// The last block that is read, of a model with so many.
    ///
    /// # Errors
    /// `InvalidSetting` for options that do not fit each other or the model.
    pub fn last_block(&self, blocks: usize) -> Result<usize> {
        let representations = self.representations();
        let distils = self.loss == Loss::Distillation;
        let problem = if representations.is_empty() {
            Some("give --block, --echo-block or --suffix-block")
        } else if distils && self.suffix_block.is_none() {
            Some("distillation needs --suffix-block")
        } else if distils && self.type_nouns.is_none() {
            Some("distillation needs --type-nouns")
        } else if !distils && !self.teacher.is_empty() {
            Some("--teacher needs --loss distillation")
        } else if !distils && self.distil_detected {
            Some("--distil-detected needs --loss distillation")
        } else if self.distil_threshold.is_some() && !self.distil_detected {
            Some("--distil-threshold needs --distil-detected")
        } else if self.probe_of.is_some() && !self.probe_corpus.is_empty() {
            Some("--probe-of trains no probe: it goes without --probe-corpus")
        } else if !(0.0..1.0).contains(&self.companion_weight) {
            Some("--companion-weight is from 0 to below 1")
        } else if self.names_are_capitalized && self.probe_corpus.is_empty() {
            // Some of the others are lower-cased before the probe sees them.
            Some("--names-are-capitalized needs --probe-corpus")
        } else {
            None
        };
        if let Some(problem) = problem {
            return Err(invalid(problem.to_owned()));
        }
        self.check_shares()?;
        if let Some(problem) = representations.iter().find_map(Representation::problem) {
            return Err(invalid(format!("of a representation, {problem}")));
        }
        let last = representations.iter().map(Representation::block);
        let last = last.max().max(self.probe_block).unwrap_or(0);
        if last >= blocks {
            let message = format!("block {last} of a model with {blocks} blocks");
            return Err(invalid(message));
        }
        Ok(last)
    }

    fn check_shares(&self) -> Result<()> {
        let shares = [
            ("--lower-case", self.lower_case),
            ("--hard-negatives", self.hard_negatives),
            ("--dropout", self.dropout),
            ("--held-out-types", self.held_out_types),
            ("--held-out-texts", self.held_out_texts),
            ("--probe-lower-case", self.probe_lower_case),
            ("--probe-dropout", self.probe_dropout),
        ];
        match shares
            .iter()
            .find(|(_, share)| !(0.0..=1.0).contains(share))
        {
            Some((name, share)) => Err(invalid(format!("{name} {share} is no share of 1"))),
            None => Ok(()),
        }
    }
}

impl From<ProjectionForm> for ProjectionKind {
    fn from(form: ProjectionForm) -> Self {
        match form {
            ProjectionForm::Mlp => Self::Mlp,
            ProjectionForm::Residual => Self::Residual,
        }
    }
}
