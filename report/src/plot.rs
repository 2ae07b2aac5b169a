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
/// Pixels of a row of dots, of a line of the legend, and of a character, roughly.
const ROW: u32 = 24;
const LEGEND_LINE: i32 = 22;
const CHARACTER: i32 = 8;

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
    let labels: Vec<&str> = methods.iter().map(|method| method.name.as_str()).collect();
    let longest = names
        .iter()
        .map(|name| name.chars().count())
        .max()
        .unwrap_or(0) as u32;
    draw(ROW * names.len() as u32 + 70, &labels, |area| {
        let rows = names.len() as f64;
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(40)
            .y_label_area_size((CHARACTER as u32 * longest + 20).min(WIDTH / 2))
            .build_cartesian_2d(-0.02..1.02, 0.0..rows)
            .map_err(failed)?;
        let mut mesh = chart.configure_mesh();
        mesh.disable_y_mesh()
            .disable_y_axis()
            .light_line_style(WHITE);
        mesh.x_desc(x_label).x_labels(11).x_label_formatter(&number);
        mesh.draw().map_err(failed)?;
        let right = Pos::new(HPos::Right, VPos::Center);
        let style = (FONT, 14).into_font().color(&BLACK).pos(right);
        // The first name is the highest row.
        let y = |row: usize| rows - row as f64 - 0.5;
        for (row, name) in names.iter().enumerate() {
            let rule = PathElement::new([(0.0, y(row)), (1.0, y(row))], BLACK.mix(0.15));
            let label =
                EmptyElement::at((-0.02, y(row))) + Text::new(name.clone(), (-8, 0), style.clone());
            chart.draw_series([rule]).map_err(failed)?;
            chart.draw_series([label]).map_err(failed)?;
        }
        for (number, method) in methods.iter().enumerate() {
            // A little below each other, so that equal scores do not hide each other.
            let below = (number as f64 - (methods.len() - 1) as f64 / 2.0) * 0.16;
            let scored = method.scores.iter().enumerate();
            let points = scored.filter_map(|(row, score)| {
                let at = ((*score)?, y(row) - below);
                Some(Circle::new(at, DOT, color(number).mix(0.9).filled()))
            });
            chart.draw_series(points).map_err(failed)?;
        }
        Ok(())
    })
}

/// Points, with lines through those that say so.
pub fn lines(axes: &Axes, series: &[Series]) -> Result<String> {
    draw(360, &labels(series), |area| {
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
            chart.draw_series(points).map_err(failed)?;
        }
        Ok(())
    })
}

/// Small transparent points, coloured by their group.
pub fn map(groups: &[Series]) -> Result<String> {
    let all = || groups.iter().flat_map(|group| &group.points);
    let axes = Axes {
        x: span(all().map(|point| point.0)),
        y: span(all().map(|point| point.1)),
        x_label: "first principal component",
        y_label: "second",
    };
    draw(520, &labels(groups), |area| {
        let mut chart = axes.chart(area)?;
        for (number, group) in groups.iter().enumerate() {
            let point = |at: &(f64, f64)| Circle::new(*at, 3, color(number).mix(0.6).filled());
            chart
                .draw_series(group.points.iter().map(point))
                .map_err(failed)?;
        }
        Ok(())
    })
}

fn labels(series: &[Series]) -> Vec<&str> {
    series.iter().map(|series| series.name.as_str()).collect()
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
        mesh.x_label_formatter(&number).y_label_formatter(&number);
        mesh.light_line_style(WHITE).draw().map_err(failed)?;
        Ok(chart)
    }
}

/// Draws below a legend, which takes the room that it needs.
fn draw(height: u32, labels: &[&str], drawing: impl Fn(&Area) -> Result<()>) -> Result<String> {
    let places = legend(labels);
    let top = places.last().map_or(0, |(_, y)| y + LEGEND_LINE);
    let mut svg = String::new();
    {
        let size = (WIDTH, height + top as u32);
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let (head, body) = area.split_vertically(top);
        let style = (FONT, 14).into_font().color(&BLACK);
        let style = style.pos(Pos::new(HPos::Left, VPos::Center));
        for (number, (label, (x, y))) in labels.iter().zip(places).enumerate() {
            let (x, y) = (x + 10, y + LEGEND_LINE / 2);
            let dot = Circle::new((x, y), DOT, color(number).filled());
            head.draw(&dot).map_err(failed)?;
            let text = Text::new((*label).to_owned(), (x + 10, y), style.clone());
            head.draw(&text).map_err(failed)?;
        }
        drawing(&body)?;
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

/// Where each label of a legend begins: side by side, in as many lines as they need.
fn legend(labels: &[&str]) -> Vec<(i32, i32)> {
    let (mut x, mut y) = (10, 5);
    let mut places = Vec::with_capacity(labels.len());
    for label in labels {
        let width = CHARACTER * label.chars().count() as i32 + 30;
        if x > 10 && x + width > WIDTH as i32 {
            (x, y) = (10, y + LEGEND_LINE);
        }
        places.push((x, y));
        x += width;
    }
    places
}

/// A label of an axis, without digits that say nothing.
fn number(value: &f64) -> String {
    // Adding zero makes minus zero plus zero.
    format!("{}", (value * 1e4).round() / 1e4 + 0.0)
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
    fn a_legend_breaks_its_line_before_the_edge() {
        let long = "x".repeat(60);
        let places = legend(&[&long, "y", &long]);
        assert_eq!(places[0], (10, 5));
        assert_eq!(places[1].1, 5);
        assert_eq!(places[2], (10, 5 + LEGEND_LINE));
        assert!(legend(&[]).is_empty());
    }

    #[test]
    fn a_range_has_a_width_whatever_the_values() {
        assert_eq!(span(std::iter::empty()), 0.0..1.0);
        let one = span([0.5].into_iter());
        assert!(one.start < 0.5 && one.end > 0.5);
        assert_eq!(number(&-0.0), "0");
        assert_eq!(number(&0.300_000_1), "0.3");
        let two = span([0.0, 1.0].into_iter());
        assert!(two.start < 0.0 && two.end > 1.0);
    }
}
