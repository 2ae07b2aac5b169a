//! The command line.

use std::path::{Path, PathBuf};

use clap::{Parser, ValueEnum};
use ner_retriever_engine::sources::Sources;

/// Writes the retrieval quality of a head on a corpus as one HTML page with figures.
#[derive(Parser)]
#[command(version)]
pub struct Options {
    #[command(flatten)]
    pub sources: Sources,
    /// JSON lines with labelled mentions, plain or gzip
    #[arg(long)]
    pub corpus: PathBuf,
    /// JSON object from corpus type to query name, null = indexed but not queried
    #[arg(long)]
    pub types: PathBuf,
    /// HTML file to write; it is written again after each section
    #[arg(long, default_value = "report.html")]
    pub out: PathBuf,
    /// Folder that the figures are written to as well, as SVG files
    #[arg(long)]
    pub figures: Option<PathBuf>,
    /// Only these sections
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = SectionName::ALL)]
    pub sections: Vec<SectionName>,
    /// Random texts of the corpus
    #[arg(long, default_value_t = 1000)]
    pub limit: usize,
    /// Random texts for the sweep over the blocks
    #[arg(long, default_value_t = 500)]
    pub sweep_limit: usize,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Folder of all-MiniLM-L6-v2, the dense baseline
    #[arg(long)]
    pub minilm: Option<PathBuf>,
    /// Texts with ambiguous words: types are "word: query"
    #[arg(long)]
    pub ambiguous: Option<PathBuf>,
    /// Corpus for the section that trains; its types should not be those of --corpus
    #[arg(long)]
    pub train_corpus: Option<PathBuf>,
    /// Random texts of it
    #[arg(long, default_value_t = 1500)]
    pub train_limit: usize,
    /// Most optimizer steps of each training
    #[arg(long, default_value_t = 200)]
    pub train_steps: usize,
    /// Triplets of a step
    #[arg(long, default_value_t = 128)]
    pub train_batch: usize,
    /// Each training is repeated with this many seeds
    #[arg(long, default_value_t = 3)]
    pub train_seeds: u64,
    /// Folder that keeps the base model's features of --train-corpus between runs
    #[arg(long)]
    pub cache: Option<PathBuf>,
}

/// A section by its name on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SectionName {
    /// R-Precision by type beside other methods
    Types,
    /// AUC and R-Precision by block
    Sweep,
    /// Projection dimensions and hard negatives (trains)
    Training,
    /// What a detector's coverage costs
    Coverage,
    /// Words of several meanings
    Ambiguous,
    /// Mention vectors in two dimensions
    Map,
    /// Vectors in half precision
    Halfvec,
}

impl SectionName {
    /// In the report's order.
    pub const ALL: [Self; 7] = [
        Self::Types,
        Self::Sweep,
        Self::Training,
        Self::Coverage,
        Self::Ambiguous,
        Self::Map,
        Self::Halfvec,
    ];

    /// As the command line names it.
    pub fn id(self) -> &'static str {
        match self {
            Self::Types => "types",
            Self::Sweep => "sweep",
            Self::Training => "training",
            Self::Coverage => "coverage",
            Self::Ambiguous => "ambiguous",
            Self::Map => "map",
            Self::Halfvec => "halfvec",
        }
    }
}

impl Options {
    /// What computes a section again with `make report`, whose defaults are left out; of a path only
    /// the last part, which means something on another machine too.
    pub fn command(&self, section: SectionName) -> String {
        let mut words = vec![
            format!("--corpus {}", last_part(&self.corpus)),
            format!("--types {}", last_part(&self.types)),
            format!("--sections {}", section.id()),
        ];
        match section {
            SectionName::Sweep => words.push(format!("--sweep-limit {}", self.sweep_limit)),
            // It has texts of its own.
            SectionName::Ambiguous => {}
            _ => words.push(format!("--limit {}", self.limit)),
        }
        if section == SectionName::Training {
            let corpus = self
                .train_corpus
                .as_deref()
                .map_or("FILE".into(), last_part);
            words.push(format!("--train-corpus {corpus}"));
            words.push(format!("--train-limit {}", self.train_limit));
            words.push(format!("--train-steps {}", self.train_steps));
            words.push(format!("--train-batch {}", self.train_batch));
            words.push(format!("--train-seeds {}", self.train_seeds));
        }
        words.push(format!("--seed {}", self.seed));
        format!("make report ARGS='{}'", words.join(" "))
    }
}

/// A path's last part.
pub fn last_part(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn sections_are_named_as_the_command_line_reads_them() {
        <Options as CommandFactory>::command().debug_assert();
        for section in SectionName::ALL {
            assert_eq!(SectionName::from_str(section.id(), false), Ok(section));
        }
    }

    #[test]
    fn a_section_is_computed_again_by_the_command_it_shows() {
        let words = "report --model /m/a.gguf --head /h/x --corpus /data/c.jsonl.gz --types t.json \
                     --out /tmp/r.html --train-corpus /data/d.jsonl --limit 7 --seed 3";
        let options = Options::parse_from(words.split_whitespace());
        let command = options.command(SectionName::Training);
        let arguments = command.strip_prefix("make report ARGS='").unwrap();
        let arguments = arguments.strip_suffix('\'').unwrap();
        let again = format!("report --model a --head b {arguments}");
        let again = Options::parse_from(again.split_whitespace());
        assert_eq!(again.sections, [SectionName::Training]);
        assert_eq!((again.limit, again.seed), (7, 3));
        assert_eq!(again.corpus, Path::new("c.jsonl.gz"));
        assert_eq!(again.train_corpus.as_deref(), Some(Path::new("d.jsonl")));
    }
}
