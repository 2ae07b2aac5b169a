//! Which block's vectors tell types (the paper's figure).

use candle_core::Device;
use ner_retriever_engine::{
    corpus, error::Result, model::Checkpoint, representation::Representation, sweep,
};

use crate::{
    context::Context,
    options::SectionName,
    plot::{self, Axes, Series},
    section::{Figure, Section, Table},
};

pub fn measure(context: &Context) -> Result<Section> {
    let options = &context.options;
    let documents = corpus::sample(
        corpus::read(&options.corpus)?,
        Some(options.sweep_limit),
        options.seed,
    );
    let checkpoint = Checkpoint::open(&options.sources.model, &Device::Cpu)?;
    let last = checkpoint.config().blocks - 1;
    let form = sweep::Form::default();
    let scores = sweep::sweep(&checkpoint.load(last)?, &documents, &context.names, form)?;

    let mut table = Table::new(["block", "macro R-Precision", "AUC"]);
    for (block, score) in scores.iter().enumerate() {
        table.row([
            block.to_string(),
            format!("{:.3}", score.r_precision),
            format!("{:.3}", score.auc),
        ]);
    }
    let curve = |name: &str, value: &dyn Fn(&sweep::BlockScore) -> f64| Series {
        name: name.to_owned(),
        points: scores
            .iter()
            .enumerate()
            .map(|(block, score)| (block as f64, value(score)))
            .collect(),
        line: true,
    };
    let axes = Axes {
        x: -0.5..scores.len() as f64 - 0.5,
        y: 0.0..1.0,
        x_label: "block",
        y_label: "score",
    };
    let curves = [
        curve("AUC of \"same type\"", &|score| score.auc),
        curve("macro R-Precision", &|score| score.r_precision),
    ];
    Ok(Section {
        id: SectionName::Sweep.id(),
        title: "Block by block",
        explanation: vec![explanation(context, documents.len())],
        figures: vec![Figure {
            name: "",
            caption: "AUC and R-Precision of every block's untrained V vectors.".to_owned(),
            svg: plot::lines(&axes, &curves)?,
        }],
        tables: vec![table],
        command: options.command(SectionName::Sweep),
    })
}

fn explanation(context: &Context, texts: usize) -> String {
    let used = context.embedder.head().description.representations.iter();
    let used: Vec<String> = used
        .map(|representation| match representation {
            Representation::SpanEnd { block, .. } => format!("{block} at the span's end"),
            Representation::Suffix { block, .. } if representation.is_echo() => {
                format!("{block} where a suffix repeats the mention")
            }
            Representation::Suffix { block, .. } => format!("{block} at the end of a suffix"),
        })
        .collect();
    format!(
        "V at the end of the labelled mentions of {texts} texts, without its mean and without any \
         training. AUC: the probability that two mentions of one type have a higher cosine than two \
         of different types. R-Precision: against V of the bare type name. The head uses block {}.",
        used.join(" and ")
    )
}
