//! What a section of the report holds, whatever it is written to.

/// A part of the report.
pub struct Section {
    /// Its name on the command line.
    pub id: &'static str,
    pub title: &'static str,
    /// Paragraphs of plain text.
    pub explanation: Vec<String>,
    pub figures: Vec<Figure>,
    pub tables: Vec<Table>,
    /// What computes it again.
    pub command: String,
}

/// A drawing.
pub struct Figure {
    /// Part of the file's name that tells figures of a section apart; may be empty.
    pub name: &'static str,
    pub caption: String,
    pub svg: String,
}

/// Numbers. Every row has as many cells as the head.
#[derive(Default)]
pub struct Table {
    pub head: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new<'a>(head: impl IntoIterator<Item = &'a str>) -> Self {
        Self {
            head: head.into_iter().map(str::to_owned).collect(),
            rows: Vec::new(),
        }
    }

    pub fn row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// The table as Markdown, for docs/quality.md.
    pub fn markdown(&self) -> String {
        let line = |cells: &[String]| {
            let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let rule = format!("|{}\n", " --- |".repeat(self.head.len()));
        let rows: String = self.rows.iter().map(|row| line(row)).collect();
        line(&self.head) + &rule + &rows
    }
}

/// A score as the tables show it; a dash where there is none.
pub fn score(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.3}"))
}

/// Mean and, of two values or more, sample standard deviation.
pub fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (squares / (count - 1.0).max(1.0)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_in_a_cell_does_not_end_it() {
        let mut table = Table::new(["type", "score"]);
        table.row(["a|b", "0.5"]);
        assert_eq!(
            table.markdown(),
            "| type | score |\n| --- | --- |\n| a\\|b | 0.5 |\n"
        );
    }

    #[test]
    fn one_value_has_no_deviation() {
        assert_eq!(mean_and_deviation(&[0.5]), (0.5, 0.0));
        assert_eq!(mean_and_deviation(&[1.0, 3.0]), (2.0, 2f64.sqrt()));
    }
}
