//! What projection dimensions and hard negatives do: projections trained for the purpose.

use clap::Parser;
use ner_retriever_engine::{
    corpus::{self, Document, TypeNames},
    error::{EngineError, ErrorKind, Result, compute},
    eval::ranking::macro_average,
    features::{Features, Kept},
    projection::Side,
    representation::Representation,
    train::{self, TrainOptions},
};

use super::left_out;
use crate::{
    context::Context,
    options::SectionName,
    plot::{self, Axes, Series},
    section::{Figure, Section, Table, mean_and_deviation},
};

const TITLE: &str = "Projection dimensions and hard negatives";
const DIMS: [usize; 4] = [128, 256, 500, 768];
/// The paper's, which are also the defaults of the engine's `train`.
const PAPER_DIMS: usize = 500;
const PAPER_HARD_NEGATIVES: f64 = 0.1;
const OTHER_HARD_NEGATIVES: [f64; 2] = [0.0, 0.5];

/// The engine's training options as its command line reads them.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: TrainOptions,
}

/// What all trainings share.
struct Bench<'a> {
    context: &'a Context,
    documents: Vec<Document>,
    names: TypeNames,
    features: Features,
}

/// One setting's scores, a seed each.
struct Trained {
    dims: usize,
    hard_negatives: f64,
    scores: Vec<f64>,
}

pub fn measure(context: &Context) -> Result<Section> {
    let (Some(path), Some(cache)) = (&context.options.train_corpus, &context.options.cache) else {
        let why =
            "no --train-corpus FILE to train on (and --cache FOLDER for its features) was given.";
        return Ok(left_out(SectionName::Training, TITLE, why, context));
    };
    if context.embedder.companion().is_some() {
        let why = "it trains the projection of one model, and this head has a companion.";
        return Ok(left_out(SectionName::Training, TITLE, why, context));
    }
    let documents = corpus::sample(
        corpus::read(path)?,
        Some(context.options.train_limit),
        context.options.seed,
    );
    let representations = context.embedder.head().description.representations.clone();
    let kept = Kept {
        representations,
        hidden: None,
    };
    let bench = Bench {
        context,
        features: Features::compute(context.embedder.model(), None, &documents, &kept, cache)?,
        names: corpus::read_type_names(&context.options.types, path)?,
        documents,
    };
    let by_dims = DIMS.map(|dims| (dims, PAPER_HARD_NEGATIVES));
    let by_share = OTHER_HARD_NEGATIVES.map(|share| (PAPER_DIMS, share));
    let settings = by_dims.into_iter().chain(by_share);
    let trained = settings
        .map(|(dims, hard_negatives)| bench.train(dims, hard_negatives))
        .collect::<Result<Vec<_>>>()?;
    bench.section(&trained)
}

impl Bench<'_> {
    fn train(&self, dims: usize, hard_negatives: f64) -> Result<Trained> {
        let mut scores = Vec::new();
        for seed in 1..=self.context.options.train_seeds {
            eprintln!("training: {dims} dimensions, {hard_negatives} hard negatives, seed {seed}");
            let options = self.options(dims, hard_negatives, seed)?;
            let score = self.score(&options)?;
            eprintln!("training: macro R-Precision {score:.4}");
            scores.push(score);
        }
        Ok(Trained {
            dims,
            hard_negatives,
            scores,
        })
    }

    /// Trains a projection and scores it on the report's corpus.
    fn score(&self, options: &TrainOptions) -> Result<f64> {
        let model = self.context.embedder.model();
        let trained =
            train::train_projection(model, &self.documents, &self.names, &self.features, options)?;
        let gold = self.context.gold()?;
        let apply = |values, side| trained.projection.apply(values, side).map_err(compute);
        let mentions = apply(&gold.values, Side::Mention)?;
        let types = apply(self.context.type_values()?, Side::Type)?;
        let scores = self.context.queries.score(&gold.texts, &mentions, &types)?;
        Ok(macro_average(&scores))
    }

    /// The engine's defaults, which are the paper's recipe, with the head's representations.
    fn options(&self, dims: usize, hard_negatives: f64, seed: u64) -> Result<TrainOptions> {
        let given = &self.context.options;
        let mut arguments: Vec<String> = [
            "train",
            "--corpus=-",
            "--types=-",
            "--out=-",
            "--cache=-",
            "--name=-",
        ]
        .map(str::to_owned)
        .into();
        arguments
            .extend(["--base-model-name=-", "--probe-block=0", "--model=-"].map(str::to_owned));
        arguments.push(format!("--dims={dims}"));
        arguments.push(format!("--hard-negatives={hard_negatives}"));
        arguments.push(format!("--steps={}", given.train_steps));
        arguments.push(format!("--batch={}", given.train_batch));
        arguments.push(format!("--seed={seed}"));
        let representations = &self.context.embedder.head().description.representations;
        for representation in representations {
            arguments.extend(match representation {
                Representation::SpanEnd { block, query_form } => {
                    vec![
                        format!("--block={block}"),
                        format!("--query-form={query_form}"),
                    ]
                }
                Representation::Suffix {
                    block, query_form, ..
                } if representation.is_echo() => {
                    vec![
                        format!("--echo-block={block}"),
                        format!("--query-form={query_form}"),
                    ]
                }
                Representation::Suffix {
                    block,
                    text,
                    query_form,
                } => vec![
                    format!("--suffix-block={block}"),
                    format!("--suffix={text}"),
                    format!("--suffix-query-form={query_form}"),
                ],
            });
        }
        let unfit = |problem: String| EngineError::new(ErrorKind::InvalidSetting, problem);
        let options = Arguments::try_parse_from(arguments)
            .map_err(|e| unfit(format!("training options: {e}")))?
            .options;
        if options.representations() != *representations {
            return Err(unfit(
                "training knows no head with these representations in this order".to_owned(),
            )
            .hint("Leave out the section: --sections types,sweep,..."));
        }
        Ok(options)
    }

    fn section(&self, trained: &[Trained]) -> Result<Section> {
        let mut table = Table::new([
            "dimensions",
            "hard negatives",
            "macro R-Precision",
            "deviation",
            "each seed",
        ]);
        for setting in trained {
            let (mean, deviation) = mean_and_deviation(&setting.scores);
            let each: Vec<String> = setting.scores.iter().map(|s| format!("{s:.3}")).collect();
            table.row([
                setting.dims.to_string(),
                format!("{:.0} %", 100.0 * setting.hard_negatives),
                format!("{mean:.3}"),
                format!("{deviation:.3}"),
                each.join(" "),
            ]);
        }
        let dims = curve(trained, "dimensions of the embedding", |t| {
            (t.hard_negatives == PAPER_HARD_NEGATIVES).then_some(t.dims as f64)
        })?;
        let hard = curve(trained, "share of hard negatives", |t| {
            (t.dims == PAPER_DIMS).then_some(t.hard_negatives)
        })?;
        let figure = |name, caption: &str, svg| Figure {
            name,
            caption: caption.to_owned(),
            svg,
        };
        Ok(Section {
            id: SectionName::Training.id(),
            title: TITLE,
            explanation: vec![self.explanation()?],
            figures: vec![
                figure(
                    "-dims",
                    "R-Precision by dimension (a tenth of the negatives are hard).",
                    dims,
                ),
                figure(
                    "-hard",
                    "R-Precision by share of hard negatives (500 dimensions).",
                    hard,
                ),
            ],
            tables: vec![table],
            command: self.context.options.command(SectionName::Training),
        })
    }

    fn explanation(&self) -> Result<String> {
        let context = self.context;
        let gold = context.gold()?;
        Ok(format!(
            "The paper's projection (Linear, SiLU, Linear; a residual projection like the shipped \
             head's keeps the width of its input) trained with its triplet loss on {} texts of \
             another corpus, up to {} steps of {} triplets; types of that corpus that are held out decide how many \
             are taken, and nothing is chosen by the scores below. They are those of the report's \
             corpus with labelled spans. For comparison, there the head has {:.3}, and the same vectors \
             without any projection have {:.3}.",
            self.documents.len(),
            context.options.train_steps,
            context.options.train_batch,
            macro_average(&context.score(gold)?),
            macro_average(&context.score_unprojected(gold)?)
        ))
    }
}

/// Mean over the seeds as a line, and every seed's own score.
fn curve(
    trained: &[Trained],
    x_label: &str,
    x: impl Fn(&Trained) -> Option<f64>,
) -> Result<String> {
    let mut settings: Vec<(f64, &Trained)> = trained
        .iter()
        .filter_map(|setting| Some((x(setting)?, setting)))
        .collect();
    settings.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mean = settings
        .iter()
        .map(|(x, setting)| (*x, mean_and_deviation(&setting.scores).0));
    let each = settings
        .iter()
        .flat_map(|(x, setting)| setting.scores.iter().map(move |score| (*x, *score)));
    let series = [
        Series {
            name: "mean of the seeds".to_owned(),
            points: mean.collect(),
            line: true,
        },
        Series {
            name: "each seed".to_owned(),
            points: each.collect(),
            line: false,
        },
    ];
    let points = || series.iter().flat_map(|series| &series.points);
    let axes = Axes {
        x: plot::span(points().map(|point| point.0)),
        y: plot::span(points().map(|point| point.1)),
        x_label,
        y_label: "macro R-Precision",
    };
    plot::lines(&axes, &series)
}
