//! Vectors in half precision, as pgvector's halfvec stores them.

use candle_core::{DType, Tensor};
use ner_retriever_engine::{
    error::{Result, compute},
    eval::ranking::macro_average,
    projection::normalize,
};

use crate::{
    context::Context,
    options::SectionName,
    plot::{self, Axes, Series},
    section::{Figure, Section, Table},
};

pub fn measure(context: &Context) -> Result<Section> {
    let index = match context.detected()? {
        Some(index) => index,
        None => context.gold()?,
    };
    let (mentions, types) = (context.embeddings(index)?, context.types()?);
    let full = context.queries.score(&index.texts, &mentions, &types)?;
    let (half_mentions, half_types) = (rounded(&mentions)?, rounded(&types)?);
    let half = context
        .queries
        .score(&index.texts, &half_mentions, &half_types)?;
    let change = largest_change(&mentions, &types, &half_mentions, &half_types)?;

    let mut table = Table::new(["type", "f32", "f16"]);
    table.row([
        "macro average".to_owned(),
        format!("{:.4}", macro_average(&full)),
        format!("{:.4}", macro_average(&half)),
    ]);
    let mut points = Vec::new();
    for (kind, name) in context.queries.kinds.iter().zip(&context.queries.names) {
        let (full, half) = (full[kind].r_precision, half[kind].r_precision);
        points.push((full, half));
        table.row([name.clone(), format!("{full:.4}"), format!("{half:.4}")]);
    }
    let changed = points.iter().filter(|(full, half)| full != half).count();
    Ok(Section {
        id: SectionName::Halfvec.id(),
        title: "halfvec against vector",
        explanation: vec![format!(
            "Mentions and queries rounded to half precision, as pgvector's halfvec stores them: half \
             the room, and 4,000 dimensions instead of 2,000 can be indexed. The largest change of a \
             cosine is {change:.5}; R-Precision changes for {changed} of {} types.",
            context.queries.kinds.len()
        )],
        figures: vec![Figure {
            name: "",
            caption: "R-Precision of each type in both precisions.".to_owned(),
            svg: figure(points)?,
        }],
        tables: vec![table],
        command: context.options.command(SectionName::Halfvec),
    })
}

/// Each type's R-Precision in both precisions, and where they are the same.
fn figure(points: Vec<(f64, f64)>) -> Result<String> {
    let axes = Axes {
        x: -0.02..1.02,
        y: -0.02..1.02,
        x_label: "R-Precision with vector (f32)",
        y_label: "with halfvec (f16)",
    };
    let types = Series {
        name: "types".to_owned(),
        points,
        line: false,
    };
    let same = Series {
        name: "the same".to_owned(),
        points: vec![(0.0, 0.0), (1.0, 1.0)],
        line: true,
    };
    plot::lines(&axes, &[same, types])
}

/// Rows rounded to f16; of length 1 again, since a cosine divides by the length of what is stored.
fn rounded(rows: &Tensor) -> Result<Tensor> {
    rows.to_dtype(DType::F16)
        .and_then(|rows| normalize(&rows.to_dtype(DType::F32)?))
        .map_err(compute)
}

fn largest_change(
    mentions: &Tensor,
    types: &Tensor,
    half_mentions: &Tensor,
    half_types: &Tensor,
) -> Result<f32> {
    let cosines = |mentions: &Tensor, types: &Tensor| mentions.matmul(&types.t()?);
    let change = || -> candle_core::Result<f32> {
        let change = (cosines(mentions, types)? - cosines(half_mentions, half_types)?)?;
        change.abs()?.flatten_all()?.max(0)?.to_scalar()
    };
    change().map_err(compute)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn rounding_keeps_eleven_bits_and_the_length() {
        // 1/3 of half precision is 0.33325195; 2049 has no half precision, 2048 and 2050 have.
        let tensor = Tensor::new(&[[1.0f32 / 3.0, 0.0], [2049.0, 0.0]], &Device::Cpu).unwrap();
        let half: Vec<Vec<f32>> = tensor
            .to_dtype(DType::F16)
            .and_then(|half| half.to_dtype(DType::F32)?.to_vec2())
            .unwrap();
        assert_eq!(half, [[0.333_251_95, 0.0], [2048.0, 0.0]]);
        let rows: Vec<Vec<f32>> = rounded(&Tensor::new(&[[0.6f32, 0.8]], &Device::Cpu).unwrap())
            .unwrap()
            .to_vec2()
            .unwrap();
        // Rounded each on its own grid, then scaled: not what f32 has, but of length 1.
        assert_ne!(rows[0], [0.6, 0.8]);
        let length = rows[0].iter().map(|x| x * x).sum::<f32>();
        assert!((length - 1.0).abs() < 1e-6, "{length}");
        assert!((rows[0][0] - 0.6).abs() < 5e-4);
    }
}
