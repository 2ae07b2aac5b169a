//! What a detector's coverage costs: labelled mentions thinned at random.

use candle_core::Tensor;
use ner_retriever_engine::{
    error::{Result, compute},
    eval::{index::Index, ranking::macro_average},
};
use rand::{SeedableRng, rngs::StdRng, seq::index};

use crate::{
    context::{Context, rows},
    options::SectionName,
    plot::{self, Axes, Series},
    section::{Figure, Section, Table, mean_and_deviation},
};

const SHARES: [f64; 5] = [0.7, 0.8, 0.9, 0.95, 1.0];
/// Random subsets for each share.
const DRAWS: u64 = 20;

pub fn measure(context: &Context) -> Result<Section> {
    let mut table = Table::new(["mentions kept", "macro R-Precision", "deviation", "of all"]);
    let all = macro_average(&context.score(context.gold()?)?);
    let of_all = |score: f64| format!("{:.0} %", 100.0 * score / all);
    let mut means = Vec::new();
    for share in SHARES {
        let (mean, deviation) = mean_and_deviation(&scores(context, share)?);
        means.push((share, mean));
        let cells = [
            format!("{share}"),
            format!("{mean:.3}"),
            format!("{deviation:.3}"),
        ];
        table.row(cells.into_iter().chain([of_all(mean)]));
    }
    let mut series = vec![Series {
        name: "labelled mentions, thinned".to_owned(),
        points: means,
        line: true,
    }];
    let mut tables = Vec::new();
    if let Some(detected) = context.detected()? {
        let coverage = detected.detection.scores().coverage;
        let score = macro_average(&context.score(detected)?);
        series.push(Series {
            name: "the head's detector".to_owned(),
            points: vec![(coverage, score)],
            line: false,
        });
        let name = format!("detector, lenient coverage {coverage:.3}");
        table.row([name, format!("{score:.3}"), "–".to_owned(), of_all(score)]);
        tables.push(losses(context, context.gold()?, detected, of_all)?);
    }
    tables.insert(0, table);
    let points = || series.iter().flat_map(|series| &series.points);
    let axes = Axes {
        x: plot::span(points().map(|point| point.0)),
        y: plot::span(points().map(|point| point.1)),
        x_label: "share of the labelled mentions that is indexed",
        y_label: "macro R-Precision",
    };
    Ok(Section {
        id: SectionName::Coverage.id(),
        title: "Coverage of detection",
        explanation: vec![
            format!(
                "A mention that is not detected is not indexed. Here labelled mentions are left out at \
             random ({DRAWS} draws for each share; deviation: between the draws), so that the curve \
             shows what coverage alone costs. The detector's own point differs from it by what wrong \
             boundaries and mentions of other things cost, and because what a detector misses is not \
             random."
            ),
            "Where the detector's loss comes from: what it misses (the labelled mentions without those \
             that no detected one overlaps), other boundaries (the detected mentions that overlap a \
             labelled one), and what it finds elsewhere, beside the labelled mentions."
                .to_owned(),
        ],
        figures: vec![Figure {
            name: "",
            caption: "R-Precision by the share of mentions that is indexed.".to_owned(),
            svg: plot::lines(&axes, &series)?,
        }],
        tables,
        command: context.options.command(SectionName::Coverage),
    })
}

/// The head's macro R-Precision over parts of what is labelled and what is detected.
fn losses(
    context: &Context,
    gold: &Index,
    detected: &Index,
    of_all: impl Fn(f64) -> String,
) -> Result<Table> {
    let (found, _) = apart(gold.overlapping(detected));
    let (on_labelled, elsewhere) = apart(detected.overlapping(gold));
    let all = |index: &Index| (0..index.texts.len()).collect::<Vec<_>>();
    let (all_gold, all_detected, nothing) = (all(gold), all(detected), Vec::new());
    let types = context.types()?;
    let vectors = [context.embeddings(gold)?, context.embeddings(detected)?];
    let mut table = Table::new(["indexed", "mentions", "macro R-Precision", "of all"]);
    for (name, of_gold, of_detected) in [
        ("labelled", &all_gold, &nothing),
        ("labelled that the detector finds", &found, &nothing),
        ("detected there", &nothing, &on_labelled),
        ("labelled, and detected elsewhere", &all_gold, &elsewhere),
        ("detected", &nothing, &all_detected),
    ] {
        let gold = of_gold.iter().map(|&mention| gold.texts[mention]);
        let detected = of_detected.iter().map(|&mention| detected.texts[mention]);
        let texts: Vec<usize> = gold.chain(detected).collect();
        let parts = [rows(&vectors[0], of_gold)?, rows(&vectors[1], of_detected)?];
        let mentions = Tensor::cat(&parts, 0).map_err(compute)?;
        let score = macro_average(&context.queries.score(&texts, &mentions, &types)?);
        table.row([
            name.to_owned(),
            texts.len().to_string(),
            format!("{score:.3}"),
            of_all(score),
        ]);
    }
    Ok(table)
}

/// The places of the flags that are set, and of the others.
fn apart(flags: Vec<bool>) -> (Vec<usize>, Vec<usize>) {
    (0..flags.len()).partition(|&place| flags[place])
}

/// The head's macro R-Precision with a share of the labelled mentions, a draw each.
fn scores(context: &Context, share: f64) -> Result<Vec<f64>> {
    let gold = context.gold()?;
    let (mentions, types) = (context.embeddings(gold)?, context.types()?);
    let score = |draw| {
        let kept = thinned(gold.texts.len(), share, context.options.seed + draw);
        let texts: Vec<usize> = kept.iter().map(|&mention| gold.texts[mention]).collect();
        let scores = context
            .queries
            .score(&texts, &rows(&mentions, &kept)?, &types)?;
        Ok(macro_average(&scores))
    };
    (0..DRAWS).map(score).collect()
}

/// A random subset of `count` things of the size nearest to `share`, in their order.
fn thinned(count: usize, share: f64, seed: u64) -> Vec<usize> {
    let kept = (count as f64 * share).round() as usize;
    let mut kept =
        index::sample(&mut StdRng::seed_from_u64(seed), count, kept.min(count)).into_vec();
    kept.sort_unstable();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_keeps_the_share_in_order_and_repeats() {
        for share in SHARES {
            let kept = thinned(1000, share, 3);
            assert_eq!(kept.len(), (1000.0 * share) as usize);
            assert!(kept.windows(2).all(|pair| pair[0] < pair[1]));
            assert!(kept.iter().all(|&mention| mention < 1000));
            assert_eq!(kept, thinned(1000, share, 3));
        }
        assert_ne!(thinned(1000, 0.9, 3), thinned(1000, 0.9, 4));
        assert_eq!(thinned(3, 0.7, 1).len(), 2);
        assert!(thinned(0, 0.7, 1).is_empty());
    }

    #[test]
    fn every_mention_is_left_out_as_often_as_the_others() {
        let mut times = [0; 50];
        for seed in 0..400 {
            for mention in thinned(50, 0.8, seed) {
                times[mention] += 1;
            }
        }
        // 320 expected, deviation 8.
        assert!(
            times.iter().all(|&times| (280..=360).contains(&times)),
            "{times:?}"
        );
    }
}
