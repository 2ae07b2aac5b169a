//! The report's drawings, as SVG.

use std::{fmt::Display, ops::Range};

use ner_retriever_engine::error::{EngineError, ErrorKind, Result};
use plotters::{
    coord::{Shift, types::RangedCoordf64},
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

/// Okabe and Ito's colours, which people with any colour vision can tell apart.
const COLORS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
    RGBColor(150, 130, 0),
];
const WIDTH: u32 = 800;
const FONT: &str = "sans-serif";
const DOT: i32 = 4;

type Chart<'a> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// One method's scores for a list of things, 0 to 1; `None` where it has none.
pub struct Method {
    pub name: String,
    pub scores: Vec<Option<f64>>,
}

/// Points that belong together.
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
    /// Whether a line goes through the points.
    pub line: bool,
}

/// What the axes of a chart show.
pub struct Axes<'a> {
    pub x: Range<f64>,
    pub y: Range<f64>,
    pub x_label: &'a str,
    pub y_label: &'a str,
}

/// A row of dots for each name, one for each method.
pub fn dots(names: &[String], methods: &[Method], x_label: &str) -> Result<String> {
    let height = 22 * names.len() as u32 + 110;
    draw(height, |area| {
        let rows = names.len() as f64;
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(40)
            .y_label_area_size(170)
            .build_cartesian_2d(0.0..1.0, 0.0..rows + 0.5)
            .map_err(failed)?;
        let mut mesh = chart.configure_mesh();
        mesh.disable_y_mesh()
            .disable_y_axis()
            .light_line_style(WHITE);
        mesh.x_desc(x_label).x_labels(11).draw().map_err(failed)?;
        let right = Pos::new(HPos::Right, VPos::Center);
        let style = (FONT, 14).into_font().color(&BLACK).pos(right);
        // The first name is the highest row.
        let y = |row: usize| rows - row as f64 - 0.5;
        for (row, name) in names.iter().enumerate() {
            let rule = PathElement::new([(0.0, y(row)), (1.0, y(row))], BLACK.mix(0.15));
            let label =
                EmptyElement::at((0.0, y(row))) + Text::new(name.clone(), (-8, 0), style.clone());
            chart.draw_series([rule]).map_err(failed)?;
            chart.draw_series([label]).map_err(failed)?;
        }
        for (number, method) in methods.iter().enumerate() {
            let color = color(number);
            let scored = method.scores.iter().enumerate();
            let points = scored.filter_map(|(row, score)| {
                Some(Circle::new(((*score)?, y(row)), DOT, color.filled()))
            });
            let series = chart.draw_series(points).map_err(failed)?;
            series
                .label(&method.name)
                .legend(move |at| Circle::new(at, DOT, color.filled()));
        }
        legend(&mut chart, SeriesLabelPosition::LowerRight)
    })
}

/// Points, with lines through those that say so.
pub fn lines(axes: &Axes, series: &[Series]) -> Result<String> {
    draw(380, |area| {
        let mut chart = axes.chart(area)?;
        for (number, series) in series.iter().enumerate() {
            let color = color(number);
            if series.line {
                let line = LineSeries::new(series.points.iter().copied(), color.stroke_width(2));
                chart.draw_series(line).map_err(failed)?;
            }
            let points = series
                .points
                .iter()
                .map(|at| Circle::new(*at, DOT, color.filled()));
            let drawn = chart.draw_series(points).map_err(failed)?;
            drawn
                .label(&series.name)
                .legend(move |at| Circle::new(at, DOT, color.filled()));
        }
        legend(&mut chart, SeriesLabelPosition::LowerRight)
    })
}

/// Small transparent points without a scale, coloured by their group.
pub fn map(groups: &[Series]) -> Result<String> {
    let all = || groups.iter().flat_map(|group| &group.points);
    let axes = Axes {
        x: span(all().map(|point| point.0)),
        y: span(all().map(|point| point.1)),
        x_label: "first principal component",
        y_label: "second",
    };
    draw(520, |area| {
        let mut chart = axes.chart(area)?;
        for (number, group) in groups.iter().enumerate() {
            let color = color(number);
            let point = |at: &(f64, f64)| Circle::new(*at, 3, color.mix(0.6).filled());
            let points = group.points.iter().map(point);
            let drawn = chart.draw_series(points).map_err(failed)?;
            drawn
                .label(&group.name)
                .legend(move |at| Circle::new(at, DOT, color.filled()));
        }
        legend(&mut chart, SeriesLabelPosition::UpperRight)
    })
}

/// The range of values with a margin around it.
pub fn span(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    if low > high {
        return 0.0..1.0;
    }
    let margin = ((high - low) * 0.08).max(0.005);
    low - margin..high + margin
}

impl Axes<'_> {
    fn chart<'a>(&self, area: &Area<'a>) -> Result<Chart<'a>> {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d(self.x.clone(), self.y.clone())
            .map_err(failed)?;
        let mut mesh = chart.configure_mesh();
        mesh.x_desc(self.x_label).y_desc(self.y_label);
        mesh.light_line_style(WHITE).draw().map_err(failed)?;
        Ok(chart)
    }
}

fn draw(height: u32, drawing: impl Fn(&Area) -> Result<()>) -> Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        drawing(&area)?;
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

fn legend(chart: &mut Chart, position: SeriesLabelPosition) -> Result<()> {
    let mut labels = chart.configure_series_labels();
    labels.position(position).label_font((FONT, 13));
    labels
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3));
    labels.draw().map_err(failed)
}

fn color(number: usize) -> RGBColor {
    COLORS[number % COLORS.len()]
}

fn failed(error: impl Display) -> EngineError {
    EngineError::new(
        ErrorKind::Internal,
        format!("a figure cannot be drawn: {error}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_a_width_whatever_the_values() {
        assert_eq!(span(std::iter::empty()), 0.0..1.0);
        let one = span([0.5].into_iter());
        assert!(one.start < 0.5 && one.end > 0.5);
        let two = span([0.0, 1.0].into_iter());
        assert!(two.start < 0.0 && two.end > 1.0);
    }
}
