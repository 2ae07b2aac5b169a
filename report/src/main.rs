//! The retrieval quality of a head as an HTML page that people can look at.

mod context;
mod html;
mod minilm;
mod options;
mod pca;
mod plot;
mod section;
mod sections;

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use clap::Parser;
use context::Context;
use ner_retriever_engine::{
    backend::Backend,
    error::{EngineError, ErrorKind, Result},
};
use options::{Options, SectionName, last_part};
use section::{Section, Table};

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ner-retriever-report: {error}");
            if let Some(hint) = error.hint {
                eprintln!("hint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> Result<()> {
    if options.train_corpus.is_some() && options.cache.is_none() {
        let message = "--train-corpus needs --cache FOLDER for the base model's features";
        return Err(EngineError::new(ErrorKind::InvalidSetting, message));
    }
    // Found out now rather than after minutes of measuring.
    writable(&options.out)?;
    if let Some(folder) = &options.figures {
        fs::create_dir_all(folder).map_err(|e| unwritable(folder, &e))?;
    }
    let context = Context::load(options)?;
    let mut sections = Vec::new();
    for name in SectionName::ALL {
        if !context.options.sections.contains(&name) {
            continue;
        }
        eprintln!("section {}", name.id());
        let started = Instant::now();
        let section = sections::measure(name, &context)?;
        eprintln!(
            "section {}: {:.0} s",
            name.id(),
            started.elapsed().as_secs_f64()
        );
        print(&section);
        if let Some(folder) = &context.options.figures {
            write_figures(&section, folder, &context)?;
        }
        sections.push(section);
        // After each section, so that what was measured outlives a later failure.
        let page = html::page(&title(&context), &facts(&context), &sections);
        write(&context.options.out, &page)?;
    }
    eprintln!("wrote {}", context.options.out.display());
    Ok(())
}

fn title(context: &Context) -> String {
    format!(
        "{} on {}",
        context.embedder.info().head,
        last_part(&context.options.corpus)
    )
}

fn facts(context: &Context) -> Vec<(&'static str, String)> {
    let info = context.embedder.info();
    let options = &context.options;
    vec![
        (
            "Head",
            format!(
                "{}, {} dimensions, fingerprint {}",
                info.head, info.dims, info.fingerprint
            ),
        ),
        ("Base model", last_part(&options.sources.model)),
        (
            "Corpus",
            format!(
                "{}, {} random texts (seed {}), {} types asked for",
                last_part(&options.corpus),
                context.documents.len(),
                options.seed,
                context.queries.kinds.len()
            ),
        ),
        (
            "Made by",
            format!("ner-retriever-report {}", env!("CARGO_PKG_VERSION")),
        ),
    ]
}

/// The section's numbers as Markdown, for people who keep them in a document. They are in the page
/// too, which a reader who stops reading here must not cost.
fn print(section: &Section) {
    let tables = section.tables.iter().map(Table::markdown);
    let text = format!(
        "## {}\n\n{}\n\n{}\n```sh\n{}\n```\n\n",
        section.title,
        section.explanation.join("\n\n"),
        tables.collect::<Vec<_>>().join("\n"),
        section.command
    );
    if std::io::stdout().write_all(text.as_bytes()).is_err() {
        eprintln!("nobody reads the tables on stdout any more");
    }
}

fn write_figures(section: &Section, folder: &Path, context: &Context) -> Result<()> {
    let corpus = last_part(&context.options.corpus);
    let corpus = corpus.split('.').next().unwrap_or("corpus").to_owned();
    for figure in &section.figures {
        let path: PathBuf = folder.join(format!("{corpus}-{}{}.svg", section.id, figure.name));
        write(&path, &figure.svg)?;
    }
    Ok(())
}

fn write(path: &Path, content: &str) -> Result<()> {
    fs::write(path, content).map_err(|e| unwritable(path, &e))
}

/// Fails if the file cannot be written; makes an empty one if there is none.
fn writable(path: &Path) -> Result<()> {
    let file = fs::OpenOptions::new().create(true).append(true).open(path);
    file.map(|_| ()).map_err(|e| unwritable(path, &e))
}

fn unwritable(path: &Path, error: &std::io::Error) -> EngineError {
    let message = format!("cannot write \"{}\": {error}", path.display());
    EngineError::new(ErrorKind::InvalidSetting, message)
}
