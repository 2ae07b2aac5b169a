//! `train` as a user runs it: the real model, a small corpus of the test's own, and the head that
//! comes out loaded and used.

mod companion;
mod distillation;
mod options;
mod probe;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// Types with their texts, the mention in brackets.
const TEXTS: [(&str, [&str; 2]); 6] = [
    (
        "river",
        [
            "We followed the [Danube] downstream.",
            "The [Rhine] had flooded the meadows.",
        ],
    ),
    (
        "composer",
        [
            "She played [Chopin] all evening.",
            "An opera by [Verdi] was on.",
        ],
    ),
    (
        "city",
        [
            "He moved to [Lyon] for work.",
            "The mayor of [Porto] resigned.",
        ],
    ),
    (
        "disease",
        [
            "She recovered from [measles].",
            "A vaccine against [cholera] is ready.",
        ],
    ),
    (
        "company",
        [
            "Shares of [Siemens] fell.",
            "[Toyota] recalled a million cars.",
        ],
    ),
    (
        "animal",
        [
            "A [leopard] slept in the tree.",
            "They counted every [salmon].",
        ],
    ),
];
const NOUNS: &str = "city\nriver\n\nstream\nlake\npianist\ncomposer\nmusician\nillness\ndisease\n\
                     virus\ncompany\nbusiness\nanimal\nfish\nperson\nplace\nextraterrestrials\n";

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        let texts = TEXTS
            .iter()
            .flat_map(|(kind, texts)| texts.map(|text| line(text, kind)));
        fs::write(folder.join("corpus.jsonl"), texts.collect::<String>()).unwrap();
        let names: BTreeMap<&str, &str> = TEXTS.iter().map(|(kind, _)| (*kind, *kind)).collect();
        let names = serde_json::to_string(&names).unwrap();
        fs::write(folder.join("types.json"), names).unwrap();
        fs::write(folder.join("nouns.txt"), NOUNS).unwrap();
        Self(folder)
    }

    /// Runs `train` on the corpus into `out`.
    fn train(&self, model: &Path, out: &str, options: &[&str]) -> Output {
        let path = |name: &str| self.0.join(name);
        let has_companion = options.contains(&"--companion");
        let probe_block: &[&str] = if has_companion {
            &[]
        } else {
            &["--probe-block", "4"]
        };
        Command::new(env!("CARGO_BIN_EXE_ner-retriever-engine"))
            .args([
                "train",
                "--name",
                "small",
                "--base-model-name",
                "the default",
            ])
            .args([
                "--steps",
                "20",
                "--probe-epochs",
                "1",
                "--held-out-types",
                "0",
            ])
            .args(["--projection", "residual", "--units", "16"])
            .args(probe_block)
            .arg("--model")
            .arg(model)
            .arg("--corpus")
            .arg(path("corpus.jsonl"))
            .arg("--types")
            .arg(path("types.json"))
            .arg("--cache")
            .arg(path("features"))
            .arg("--out")
            .arg(path(out))
            .args(options)
            .output()
            .unwrap()
    }

    fn distil(&self, model: &Path, out: &str, options: &[&str]) -> Output {
        let nouns = self.0.join("nouns.txt");
        let corpus = self.0.join("corpus.jsonl");
        let of_suffixes = [
            "--echo-block",
            "22",
            "--suffix-block",
            "27",
            "--suffix",
            " {mention} is a",
            "--loss",
            "distillation",
            "--type-nouns",
            nouns.to_str().unwrap(),
            "--probe-corpus",
            corpus.to_str().unwrap(),
        ];
        self.train(model, out, &[&of_suffixes, options].concat())
    }
}

/// A line of a corpus from a text with one mention in brackets.
fn line(text: &str, kind: &str) -> String {
    let start = text.find('[').unwrap();
    let end = text.find(']').unwrap() - 1;
    let text = text.replace(['[', ']'], "");
    format!("{{\"text\": {text:?}, \"entities\": [[{start}, {end}, {kind:?}]]}}\n")
}

fn model() -> Option<PathBuf> {
    let model = std::env::var_os("NER_RETRIEVER_MODEL").map(PathBuf::from);
    if model.is_none() {
        println!("skipped: needs NER_RETRIEVER_MODEL");
    }
    model
}
