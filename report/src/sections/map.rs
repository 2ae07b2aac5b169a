//! Mention vectors in two dimensions.

use std::collections::BTreeMap;

use candle_core::Tensor;
use ner_retriever_engine::error::{Result, compute};

use crate::{
    context::{Context, rows},
    options::SectionName,
    pca,
    plot::{self, Series},
    section::{Figure, Section, Table},
};

/// Types that are drawn, and mentions of each.
const TYPES: usize = 8;
const MENTIONS: usize = 60;

/// Drawn mentions: their rows of the index and, in the same order, the place of their type.
struct Sample {
    names: Vec<String>,
    rows: Vec<usize>,
    types: Vec<usize>,
}

pub fn measure(context: &Context) -> Result<Section> {
    let gold = context.gold()?;
    let sample = Sample::new(context, &context.kinds(gold));
    let drawn = |vectors: &Tensor| rows(vectors, &sample.rows);
    let before = drawn(&context.embedder.unprojected(&gold.values)?)?;
    let after = drawn(&context.embeddings(gold)?)?;

    let mut table = Table::new([
        "vectors",
        "first component",
        "second",
        "nearest of the same type",
    ]);
    let mut figures = Vec::new();
    for (name, file, vectors) in [("V, unprojected", "-v", before), ("head", "-head", after)] {
        let vectors: Vec<Vec<f32>> = vectors.to_vec2().map_err(compute)?;
        let plane = pca::plane(&vectors);
        table.row([
            name.to_owned(),
            format!("{:.1} %", 100.0 * plane.shares[0]),
            format!("{:.1} %", 100.0 * plane.shares[1]),
            format!("{:.3}", nearest_of_same(&vectors, &sample.types)),
        ]);
        figures.push(Figure {
            name: file,
            caption: format!("{name}: mentions by type in the plane of largest variance."),
            svg: plot::map(&sample.groups(&plane.points))?,
        });
    }
    let mut drawn = Table::new(["type", "mentions drawn"]);
    for (number, name) in sample.names.iter().enumerate() {
        let count = sample.types.iter().filter(|kind| **kind == number).count();
        drawn.row([name.clone(), count.to_string()]);
    }
    Ok(Section {
        id: SectionName::Map.id(),
        title: "A map of mentions",
        explanation: vec![
            "The first labelled mentions of the most frequent types, in the plane of the two \
             principal components of what is drawn. The plane holds only a small part of the \
             variance (table): what is mixed here may well be apart in all dimensions. \"Nearest \
             of the same type\": the share of drawn mentions whose nearest by cosine in all \
             dimensions is of their own type."
                .to_owned(),
        ],
        figures,
        tables: vec![table, drawn],
        command: context.options.command(SectionName::Map),
    })
}

impl Sample {
    /// `kinds` are the types of the index's mentions.
    fn new(context: &Context, kinds: &[Option<&str>]) -> Self {
        let mut by_kind: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (row, kind) in kinds.iter().enumerate() {
            if let Some(kind) = kind {
                by_kind.entry(kind).or_default().push(row);
            }
        }
        let queries = &context.queries;
        let named = queries.kinds.iter().zip(&queries.names);
        let mut named: Vec<(&String, Vec<usize>)> = named
            .filter_map(|(kind, name)| Some((name, by_kind.remove(kind.as_str())?)))
            .collect();
        named.sort_by_key(|(_, rows)| std::cmp::Reverse(rows.len()));
        named.truncate(TYPES);
        let mut sample = Self {
            names: Vec::new(),
            rows: Vec::new(),
            types: Vec::new(),
        };
        for (number, (name, mut rows)) in named.into_iter().enumerate() {
            rows.truncate(MENTIONS);
            sample.names.push(name.clone());
            sample.types.extend(std::iter::repeat_n(number, rows.len()));
            sample.rows.extend(rows);
        }
        sample
    }

    fn groups(&self, points: &[(f64, f64)]) -> Vec<Series> {
        let of = |number: usize| {
            let points = points.iter().zip(&self.types);
            points
                .filter(|(_, kind)| **kind == number)
                .map(|(point, _)| *point)
                .collect()
        };
        let names = self.names.iter().enumerate();
        names
            .map(|(number, name)| Series {
                name: name.clone(),
                points: of(number),
                line: false,
            })
            .collect()
    }
}

/// The share of vectors, of length 1, whose nearest other one is of the same type.
fn nearest_of_same(vectors: &[Vec<f32>], types: &[usize]) -> f64 {
    let cosine = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let same = (0..vectors.len()).filter(|&a| {
        let others = (0..vectors.len()).filter(|&b| b != a);
        let nearest = others.max_by(|&b, &c| {
            cosine(&vectors[a], &vectors[b]).total_cmp(&cosine(&vectors[a], &vectors[c]))
        });
        nearest.is_some_and(|nearest| types[nearest] == types[a])
    });
    same.count() as f64 / vectors.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_is_not_its_own_nearest() {
        let vectors = [
            vec![1.0, 0.0],
            vec![0.8, 0.6],
            vec![0.0, 1.0],
            vec![-1.0, 0.0],
        ];
        // 0 and 1 are each other's nearest; 2's is 1; 3's is 2.
        assert_eq!(nearest_of_same(&vectors, &[0, 0, 1, 1]), 0.75);
        assert_eq!(nearest_of_same(&[], &[]), 0.0);
    }
}
