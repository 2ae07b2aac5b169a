//! Words of several meanings: are the texts of the asked meaning found?

use std::collections::BTreeMap;

use ner_retriever_engine::{
    corpus::{self, Document},
    error::{EngineError, ErrorKind, Result, compute},
    eval::{
        self,
        bm25::KeywordIndex,
        index::Index,
        ranking::{best_per_text, r_precision},
        report::Spans,
    },
    projection::Side,
};

use super::left_out;
use crate::{
    context::Context,
    options::SectionName,
    plot::{self, Method},
    section::{Figure, Section, Table, mean_and_deviation, score},
};

const TITLE: &str = "Ambiguous words";

/// A meaning that is asked for.
struct Meaning {
    word: String,
    query: String,
    /// Texts with the word, and whether the word means this there.
    texts: BTreeMap<usize, bool>,
}

/// Each text's score for each meaning, from the texts that a method finds.
type Found = Vec<Vec<(usize, f32)>>;

pub fn measure(context: &Context) -> Result<Section> {
    let Some(path) = &context.options.ambiguous else {
        let why = "no --ambiguous FILE was given.";
        return Ok(left_out(SectionName::Ambiguous, TITLE, why, context));
    };
    let documents = corpus::read(path)?;
    let meanings = meanings(&documents).map_err(|problem| {
        let message = format!("cannot use \"{}\": {problem}", path.display());
        EngineError::new(ErrorKind::InvalidSetting, message)
            .hint("Its types are \"word: query\", such as \"bank: river bank\".")
    })?;
    let names: Vec<String> = meanings.iter().map(|m| m.query.clone()).collect();
    let (by_head, _) = head(context, &documents, &names, Spans::Gold)?;
    let detected = context.embedder.detects();
    let detected = detected.then(|| head(context, &documents, &names, Spans::Detected));
    let (by_detected, coverage) = detected.transpose()?.unzip();
    let methods = [
        ("head, given spans", Some(by_head)),
        ("head, detected spans", by_detected),
        ("MiniLM", minilm(context, &documents, &names)?),
        ("BM25", Some(keywords(&documents, &names))),
    ];
    let methods: Vec<(&str, Found)> = methods
        .into_iter()
        .filter_map(|(name, found)| Some((name, found?)))
        .collect();
    let among_word = scored(&methods, &meanings, |meaning, found| meaning.score(found));
    let among_all = scored(&methods, &meanings, |meaning, found| {
        meaning.score_among_all(&meanings, found, documents.len())
    });
    let labels: Vec<String> = meanings.iter().map(Meaning::label).collect();
    let figure = |name, caption: &str, methods: &[Method]| {
        Ok(Figure {
            name,
            caption: caption.to_owned(),
            svg: plot::dots(&labels, methods, "share of the first R")?,
        })
    };
    Ok(Section {
        id: SectionName::Ambiguous.id(),
        title: TITLE,
        explanation: vec![explanation(&documents, &meanings, coverage)],
        figures: vec![
            figure("", "Among the texts with the word.", &among_word)?,
            figure("-all", "Among all texts.", &among_all)?,
        ],
        tables: vec![table(&meanings, &among_word, &among_all, documents.len())],
        command: context.options.command(SectionName::Ambiguous),
    })
}

/// `coverage` is that of the head's detector, if it has one.
fn explanation(documents: &[Document], meanings: &[Meaning], coverage: Option<f64>) -> String {
    let detector = coverage.map_or_else(String::new, |coverage| {
        format!(
            " The words are mostly common nouns, and the head's detector \
             covers {coverage:.3} of them; a text is then found by what else is detected in it."
        )
    });
    format!(
        "{} texts, written for this, with {} meanings of ambiguous words; the word is the labelled \
         mention. Asked for a meaning with R texts, a method ranks the texts that hold the word; the \
         score is the share of the meaning's texts among the first R (by chance about a half; a text \
         that is not found is a miss). In the columns \"all texts\" it ranks all of them, where texts \
         with other words may answer as well, such as those with a mole if the query is \
         \"rodent\".{detector}",
        documents.len(),
        meanings.len()
    )
}

/// Each method's score for each meaning.
fn scored(
    methods: &[(&str, Found)],
    meanings: &[Meaning],
    score: impl Fn(&Meaning, &[(usize, f32)]) -> f64,
) -> Vec<Method> {
    let each = |found: &Found| {
        let meanings = meanings.iter().zip(found);
        meanings
            .map(|(meaning, found)| Some(score(meaning, found)))
            .collect()
    };
    methods
        .iter()
        .map(|(name, found)| Method {
            name: (*name).to_owned(),
            scores: each(found),
        })
        .collect()
}

fn table(meanings: &[Meaning], among_word: &[Method], among_all: &[Method], texts: usize) -> Table {
    let all_names: Vec<String> = among_all
        .iter()
        .map(|m| format!("{}, all texts", m.name))
        .collect();
    let names = among_word
        .iter()
        .map(|method| &method.name)
        .chain(&all_names);
    let names = names.map(String::as_str);
    let mut table = Table::new(["word: query", "texts"].into_iter().chain(names));
    let methods = || among_word.iter().chain(among_all);
    let average = |method: &Method| {
        let scores: Vec<f64> = method.scores.iter().flatten().copied().collect();
        score(Some(mean_and_deviation(&scores).0))
    };
    let first = ["average".to_owned(), texts.to_string()];
    table.row(first.into_iter().chain(methods().map(average)));
    for (number, meaning) in meanings.iter().enumerate() {
        let first = [meaning.label(), meaning.relevant().to_string()];
        table.row(
            first
                .into_iter()
                .chain(methods().map(|method| score(method.scores[number]))),
        );
    }
    table
}

impl Meaning {
    fn label(&self) -> String {
        format!("{}: {}", self.word, self.query)
    }

    fn relevant(&self) -> usize {
        self.texts.values().filter(|relevant| **relevant).count()
    }

    /// R-Precision among the texts that hold the word.
    fn score(&self, found: &[(usize, f32)]) -> f64 {
        let numbers: BTreeMap<usize, usize> = self.texts.keys().copied().zip(0..).collect();
        let found = found
            .iter()
            .filter_map(|(text, score)| Some((*numbers.get(text)?, *score)));
        let relevant: Vec<bool> = self.texts.values().copied().collect();
        r_precision(found.collect(), &relevant).r_precision
    }

    /// R-Precision among all texts; those of other words that are asked for by the same query count.
    fn score_among_all(&self, meanings: &[Self], found: &[(usize, f32)], texts: usize) -> f64 {
        let mut relevant = vec![false; texts];
        for meaning in meanings
            .iter()
            .filter(|meaning| meaning.query == self.query)
        {
            for (text, means_it) in &meaning.texts {
                relevant[*text] |= means_it;
            }
        }
        r_precision(found.to_vec(), &relevant).r_precision
    }
}

/// The meanings that the documents' types name, in the order of their words.
fn meanings(documents: &[Document]) -> std::result::Result<Vec<Meaning>, String> {
    let mut words: BTreeMap<&str, BTreeMap<&str, Vec<usize>>> = BTreeMap::new();
    for (text, document) in documents.iter().enumerate() {
        for mention in &document.mentions {
            let (word, query) = mention
                .kind
                .split_once(": ")
                .ok_or_else(|| format!("type \"{}\" of line {}", mention.kind, text + 1))?;
            words
                .entry(word)
                .or_default()
                .entry(query)
                .or_default()
                .push(text);
        }
    }
    let mut meanings = Vec::new();
    for (word, queries) in &words {
        for query in queries.keys() {
            let texts = queries
                .iter()
                .flat_map(|(of, texts)| texts.iter().map(move |text| (*text, of == query)));
            meanings.push(Meaning {
                word: (*word).to_owned(),
                query: (*query).to_owned(),
                texts: texts.collect(),
            });
        }
    }
    if meanings.is_empty() {
        return Err("it has no mention".to_owned());
    }
    Ok(meanings)
}

/// The texts that the head finds for each meaning, and the lenient coverage of the mentions.
fn head(
    context: &Context,
    documents: &[Document],
    names: &[String],
    spans: Spans,
) -> Result<(Found, f64)> {
    let index = Index::new(&context.embedder, documents, spans, None)?;
    let mentions = context.embeddings(&index)?;
    let types = eval::type_values(&context.embedder, names)?;
    let types = context.embedder.project(&types, Side::Type)?;
    let scores = types
        .matmul(&mentions.t().map_err(compute)?)
        .and_then(|scores| scores.to_vec2());
    let scores: Vec<Vec<f32>> = scores.map_err(compute)?;
    let found = scores
        .iter()
        .map(|scores| best_per_text(&index.texts, scores))
        .collect();
    Ok((found, index.detection.scores().coverage))
}

fn minilm(context: &Context, documents: &[Document], names: &[String]) -> Result<Option<Found>> {
    let Some(minilm) = &context.minilm else {
        return Ok(None);
    };
    let texts = minilm.embed(documents.iter().map(|d| d.text.as_str()))?;
    let types = minilm.embed(names.iter().map(String::as_str))?;
    let scores = types
        .matmul(&texts.t().map_err(compute)?)
        .and_then(|scores| scores.to_vec2());
    let scores: Vec<Vec<f32>> = scores.map_err(compute)?;
    Ok(Some(
        scores
            .into_iter()
            .map(|scores| scores.into_iter().enumerate().collect())
            .collect(),
    ))
}

fn keywords(documents: &[Document], names: &[String]) -> Found {
    let index = KeywordIndex::new(documents.iter().map(|d| d.text.as_str()));
    names.iter().map(|name| index.search(name)).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The committed texts: balanced meanings, the word in the mention.
    #[test]
    fn the_texts_are_what_the_section_says() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("ambiguous.jsonl");
        let documents = corpus::read(&path).unwrap();
        let meanings = meanings(&documents).unwrap();
        assert!(meanings.len() >= 20, "{}", meanings.len());
        for meaning in &meanings {
            let (relevant, texts) = (meaning.relevant(), meaning.texts.len());
            assert!(relevant >= 4, "{}: {}", meaning.word, meaning.query);
            assert!(relevant < texts, "{} has one meaning", meaning.word);
        }
        for document in &documents {
            let [mention] = document.mentions.as_slice() else {
                panic!("not one mention: {}", document.text);
            };
            let (start, end) = (mention.span.start as usize, mention.span.end as usize);
            let found: String = document.text.chars().take(end).skip(start).collect();
            let word = mention.kind.split(": ").next().unwrap();
            assert!(found.to_lowercase().contains(word), "{found} {word}");
        }
    }

    #[test]
    fn a_meaning_is_scored_among_the_texts_with_its_word() {
        let line = |text: &str, kind: &str| {
            format!("{{\"text\": \"{text}\", \"entities\": [[0, 1, \"{kind}\"]]}}\n")
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        let lines = [
            line("a", "crane: bird"),
            line("b", "crane: machine"),
            line("c", "crane: bird"),
            line("d", "jaguar: car"),
            line("e", "jaguar: big cat"),
        ];
        std::fs::write(file.path(), lines.concat()).unwrap();
        let documents = corpus::read(file.path()).unwrap();
        let meanings = meanings(&documents).unwrap();
        let bird = &meanings[0];
        assert_eq!((bird.word.as_str(), bird.query.as_str()), ("crane", "bird"));
        // The car comes first, but has not the word.
        let found = [(3, 0.9), (0, 0.8), (1, 0.7), (2, 0.6)];
        assert_eq!(bird.score(&found), 0.5);
        assert_eq!(bird.score(&[(0, 0.8), (2, 0.7)]), 1.0);
        assert_eq!(
            bird.score_among_all(&meanings, &[(0, 0.8), (2, 0.7)], 5),
            1.0
        );
        assert_eq!(
            bird.score_among_all(&meanings, &[(3, 0.9), (2, 0.7)], 5),
            0.5
        );
    }
}
