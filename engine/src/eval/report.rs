//! What `eval` prints.

use std::{collections::BTreeMap, fmt};

use clap::ValueEnum;
use serde::Serialize;

use super::{detection::DetectionScores, examples::ExampleScores, ranking::TypeScore};

/// Which spans are indexed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Spans {
    /// The labelled ones.
    Gold,
    /// Those that the head's detector finds.
    Detected,
}

/// A head's scores on a corpus.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub fingerprint: String,
    pub spans: Spans,
    pub texts: usize,
    pub mentions: usize,
    pub macro_r_precision: f64,
    /// With relevance feedback, as `ner_search` searches.
    pub macro_r_precision_with_feedback: f64,
    /// Present where examples were asked for.
    pub with_examples: Option<ExampleScores>,
    /// Macro R-Precision of other methods on the same texts.
    pub baselines: Baselines,
    /// By the corpus's name of the type.
    pub types: BTreeMap<String, TypeReport>,
    /// Present with detected spans.
    pub detection: Option<DetectionScores>,
    pub seconds: f64,
}

#[derive(Debug, Clone, Serialize)]
pub struct Baselines {
    pub bm25: f64,
    /// The same V vectors without the head's projection.
    pub unprojected: f64,
}

#[derive(Debug, Clone, Serialize)]
pub struct TypeReport {
    pub query: String,
    #[serde(flatten)]
    pub score: TypeScore,
    pub with_feedback: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:>11}  {:>13}  {:>10}  type",
            "R-Precision", "with feedback", "gold texts"
        )?;
        for report in self.types.values() {
            let TypeScore {
                r_precision,
                gold_texts,
            } = report.score;
            writeln!(
                f,
                "{r_precision:>11.3}  {:>13.3}  {gold_texts:>10}  {}",
                report.with_feedback, report.query
            )?;
        }
        writeln!(
            f,
            "\nmacro R-Precision over {} types, {} texts, {} {} mentions:",
            self.types.len(),
            self.texts,
            self.mentions,
            match self.spans {
                Spans::Gold => "labelled",
                Spans::Detected => "detected",
            }
        )?;
        writeln!(f, "{:>11.3}  this head", self.macro_r_precision)?;
        writeln!(
            f,
            "{:>11.3}  this head, with relevance feedback as in ner_search",
            self.macro_r_precision_with_feedback
        )?;
        writeln!(
            f,
            "{:>11.3}  V vectors without projection",
            self.baselines.unprojected
        )?;
        writeln!(f, "{:>11.3}  BM25", self.baselines.bm25)?;
        if let Some(scores) = &self.with_examples {
            writeln!(
                f,
                "\nnamed and shown by {} mentions, {} types over the other texts: {:.3} (named alone {:.3})",
                scores.examples, scores.types, scores.macro_r_precision, scores.by_name
            )?;
        }
        if let Some(detection) = &self.detection {
            writeln!(
                f,
                "\ndetection: exact precision {:.3} recall {:.3} F1 {:.3}, lenient coverage {:.3}, \
                 {:.2} mentions a text",
                detection.precision,
                detection.recall,
                detection.f1,
                detection.coverage,
                detection.mentions_per_text
            )?;
        }
        write!(f, "\n{:.0} s", self.seconds)
    }
}
