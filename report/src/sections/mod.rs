//! One file for each section of the report.

mod ambiguous;
mod coverage;
mod halfvec;
mod map;
mod sweep;
mod training;
mod types;

use ner_retriever_engine::error::Result;

use crate::{context::Context, options::SectionName, section::Section};

/// Measures a section.
///
/// # Errors
/// The model's errors and those of the files that the section reads.
pub fn measure(name: SectionName, context: &Context) -> Result<Section> {
    match name {
        SectionName::Types => types::measure(context),
        SectionName::Sweep => sweep::measure(context),
        SectionName::Training => training::measure(context),
        SectionName::Coverage => coverage::measure(context),
        SectionName::Ambiguous => ambiguous::measure(context),
        SectionName::Map => map::measure(context),
        SectionName::Halfvec => halfvec::measure(context),
    }
}

/// A section whose input was not given.
fn left_out(name: SectionName, title: &'static str, why: &str, context: &Context) -> Section {
    Section {
        id: name.id(),
        title,
        explanation: vec![format!("Left out: {why}")],
        figures: Vec::new(),
        tables: Vec::new(),
        command: context.options.command(name),
    }
}
