//! The report as one HTML page: no script, nothing that is fetched.

use crate::section::{Section, Table};

const STYLE: &str = "
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 3rem; border-bottom: 1px solid #ccc; }
figure { margin: 1rem 0; overflow-x: auto; }
figcaption { color: #555; font-size: 0.9rem; }
table { border-collapse: collapse; font-size: 0.9rem; margin: 1rem 0; }
th, td { border-bottom: 1px solid #ddd; padding: 0.2rem 0.7rem; text-align: right; }
th:first-child, td:first-child { text-align: left; }
pre { background: #f4f4f4; padding: 0.7rem; overflow-x: auto; font-size: 0.85rem; }
";

/// The page; `facts` are label and value of what was measured.
pub fn page(title: &str, facts: &[(&str, String)], sections: &[Section]) -> String {
    let title = escape(title);
    let facts: String = facts
        .iter()
        .map(|(label, value)| {
            let value = escape(value);
            format!("<tr><th>{label}</th><td style=\"text-align: left\">{value}</td></tr>\n")
        })
        .collect();
    let contents: String = sections
        .iter()
        .map(|s| format!("<li><a href=\"#{}\">{}</a></li>\n", s.id, escape(s.title)))
        .collect();
    let sections: String = sections.iter().map(section).collect();
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n<table>\n{facts}</table>\n\
         <ol>\n{contents}</ol>\n{sections}</body>\n</html>\n"
    )
}

fn section(section: &Section) -> String {
    let mut html = format!("<h2 id=\"{}\">{}</h2>\n", section.id, escape(section.title));
    for paragraph in &section.explanation {
        html += &format!("<p>{}</p>\n", escape(paragraph));
    }
    for figure in &section.figures {
        // The drawing library escapes what it writes.
        html += &format!(
            "<figure>\n{}\n<figcaption>{}</figcaption>\n</figure>\n",
            figure.svg,
            escape(&figure.caption)
        );
    }
    html += &section.tables.iter().map(table).collect::<String>();
    html + &format!("<pre>{}</pre>\n", escape(&section.command))
}

fn table(table: &Table) -> String {
    let line = |cells: &[String], tag: &str| {
        let cells = cells
            .iter()
            .map(|cell| format!("<{tag}>{}</{tag}>", escape(cell)));
        format!("<tr>{}</tr>\n", cells.collect::<String>())
    };
    let rows: String = table.rows.iter().map(|row| line(row, "td")).collect();
    format!("<table>\n{}{rows}</table>\n", line(&table.head, "th"))
}

/// Text that may stand between tags and in attributes.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{plot, section::Figure};

    /// Type names are a user's: nothing in them becomes markup, wherever they appear.
    #[test]
    fn names_are_text_wherever_they_stand() {
        let name = "<script>alert('x')</script> & \"co\"";
        let mut numbers = Table::new([name]);
        numbers.row([name]);
        let scores = [plot::Method {
            name: name.to_owned(),
            scores: vec![Some(0.5)],
        }];
        let section = Section {
            id: "types",
            title: "By type",
            explanation: vec![name.to_owned()],
            figures: vec![Figure {
                name: "",
                caption: name.to_owned(),
                svg: plot::dots(&[name.to_owned()], &scores, "score").unwrap(),
            }],
            tables: vec![numbers],
            command: name.to_owned(),
        };
        let html = page(name, &[("corpus", name.to_owned())], &[section]);
        assert!(!html.contains("<script"), "{html}");
        assert!(
            html.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &quot;co&quot;")
        );
        assert!(html.contains("<svg"));
    }
}
