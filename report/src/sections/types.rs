//! R-Precision by type, beside other methods.

use ner_retriever_engine::{error::Result, eval::bm25::KeywordIndex};

use crate::{
    context::{ByType, Context, macro_score},
    options::SectionName,
    plot::{self, Method},
    section::{Figure, Section, Table, score},
};

pub fn measure(context: &Context) -> Result<Section> {
    let detected = context.detected()?;
    let methods = [
        (
            "head, detected spans",
            detected.map(|index| context.score(index)).transpose()?,
        ),
        (
            "head, labelled spans",
            Some(context.score(context.gold()?)?),
        ),
        (
            "V, detected spans",
            detected
                .map(|index| context.score_unprojected(index))
                .transpose()?,
        ),
        (
            "V, labelled spans",
            Some(context.score_unprojected(context.gold()?)?),
        ),
        ("MiniLM", context.score_minilm()?),
        ("BM25", Some(keywords(context))),
    ];
    let mut table = Table::new(
        ["type", "texts"]
            .into_iter()
            .chain(methods.iter().map(|m| m.0)),
    );
    let averages = methods
        .iter()
        .map(|(_, scores)| macro_score(scores.as_ref()));
    let first = [
        "macro average".to_owned(),
        context.documents.len().to_string(),
    ];
    table.row(first.into_iter().chain(averages));
    let order = best_first(context, &methods);
    for &number in &order {
        let kind = &context.queries.kinds[number];
        let texts = context.queries.gold[number]
            .iter()
            .filter(|gold| **gold)
            .count();
        let cells = methods
            .iter()
            .map(|(_, scores)| score(of(scores.as_ref(), kind)));
        let first = [context.queries.names[number].clone(), texts.to_string()];
        table.row(first.into_iter().chain(cells));
    }
    Ok(Section {
        id: SectionName::Types.id(),
        title: "R-Precision by type",
        explanation: explanation(context),
        figures: vec![figure(context, &methods, &order)?],
        tables: vec![table],
        command: context.options.command(SectionName::Types),
    })
}

type Scores = (&'static str, Option<ByType>);

fn of(scores: Option<&ByType>, kind: &str) -> Option<f64> {
    Some(scores?.get(kind)?.r_precision)
}

/// The queries' numbers, by the first method's score that there is.
fn best_first(context: &Context, methods: &[Scores]) -> Vec<usize> {
    let first = methods.iter().find_map(|(_, scores)| scores.as_ref());
    let value = |number: &usize| of(first, &context.queries.kinds[*number]).unwrap_or(0.0);
    let mut order: Vec<usize> = (0..context.queries.kinds.len()).collect();
    order.sort_by(|a, b| value(b).total_cmp(&value(a)));
    order
}

fn figure(context: &Context, methods: &[Scores], order: &[usize]) -> Result<Figure> {
    let names: Vec<String> = order
        .iter()
        .map(|&number| context.queries.names[number].clone())
        .collect();
    // Two of the six say little that the others do not.
    let shown = methods
        .iter()
        .filter(|(name, scores)| scores.is_some() && *name != "V, detected spans");
    let shown: Vec<Method> = shown
        .map(|(name, scores)| Method {
            name: (*name).to_owned(),
            scores: order
                .iter()
                .map(|&number| of(scores.as_ref(), &context.queries.kinds[number]))
                .collect(),
        })
        .collect();
    Ok(Figure {
        name: "",
        caption: "R-Precision of each type by method.".to_owned(),
        svg: plot::dots(&names, &shown, "R-Precision")?,
    })
}

fn explanation(context: &Context) -> Vec<String> {
    let mut paragraphs = vec![
        "Every mention of the corpus is indexed; for a type with R texts that mention it, texts are \
         ranked by their best mention, and the score is the share of the type's texts among the \
         first R. \"V\" are the same vectors without the head's projection. BM25 ranks whole texts \
         by the words of the type's name."
            .to_owned(),
    ];
    paragraphs.push(if context.minilm.is_some() {
        "MiniLM is a dense sentence encoder (all-MiniLM-L6-v2, mean pooling, cosine) that embeds \
         whole texts and type names."
            .to_owned()
    } else {
        "The dense baseline was left out: no --minilm FOLDER was given (make minilm fetches it)."
            .to_owned()
    });
    if let Ok(Some(index)) = context.detected() {
        let found = index.detection.scores();
        paragraphs.push(format!(
            "The head's detector covers {:.3} of the labelled mentions at {:.2} mentions a text.",
            found.coverage, found.mentions_per_text
        ));
    } else {
        paragraphs.push("The head has no detector: there are no detected spans.".to_owned());
    }
    paragraphs
}

fn keywords(context: &Context) -> ByType {
    let index = KeywordIndex::new(context.documents.iter().map(|d| d.text.as_str()));
    context.queries.score_ranks(|query| index.search(query))
}
