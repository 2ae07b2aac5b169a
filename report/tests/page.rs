//! The program as people call it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

const SECTIONS: [&str; 7] = [
    "types",
    "sweep",
    "training",
    "coverage",
    "ambiguous",
    "map",
    "halfvec",
];

/// Texts of two types, one of which has a name that looks like markup.
const CORPUS: &str = r#"{"text": "The Danube flows through Vienna.", "entities": [[4, 10, "water"], [25, 31, "place"]]}
{"text": "Paris lies on the Seine.", "entities": [[0, 5, "place"], [18, 23, "water"]]}
{"text": "They sailed down the Volga for a week.", "entities": [[21, 26, "water"]]}
{"text": "Her flight to Lisbon was late.", "entities": [[14, 20, "place"]]}
{"text": "Nothing is named here.", "entities": []}
"#;
const TYPES: &str = r#"{"water": "river <b>&</b>", "place": "city"}"#;

fn files(folder: &Path) -> (PathBuf, PathBuf) {
    let (corpus, types) = (folder.join("corpus.jsonl"), folder.join("types.json"));
    fs::write(&corpus, CORPUS).unwrap();
    fs::write(&types, TYPES).unwrap();
    (corpus, types)
}

fn report(arguments: &[(&str, &Path)]) -> Output {
    command(arguments).output().unwrap()
}

fn command(arguments: &[(&str, &Path)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ner-retriever-report"));
    for (name, value) in arguments {
        command.arg(name).arg(value);
    }
    command
}

/// As with `make report | head`.
#[test]
fn a_reader_who_stops_reading_does_not_cost_the_page() {
    let Some(model) = std::env::var_os("NER_RETRIEVER_MODEL").map(PathBuf::from) else {
        println!("skipped: needs NER_RETRIEVER_MODEL");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (corpus, types) = files(folder.path());
    let out = folder.path().join("r.html");
    let head = Path::new(env!("CARGO_MANIFEST_DIR")).join("../heads/smollm2-135m");
    let mut running = command(&[
        ("--model", &model),
        ("--head", &head),
        ("--corpus", &corpus),
        ("--types", &types),
        ("--sections", Path::new("types,halfvec")),
        ("--out", &out),
    ])
    .stdout(Stdio::piped())
    .stderr(Stdio::null())
    .spawn()
    .unwrap();
    drop(running.stdout.take());
    assert!(running.wait().unwrap().success());
    let page = fs::read_to_string(&out).unwrap();
    assert_eq!(page.matches("<h2 ").count(), 2);
}

#[test]
fn the_page_stands_alone_and_has_every_section() {
    let Some(model) = std::env::var_os("NER_RETRIEVER_MODEL").map(PathBuf::from) else {
        println!("skipped: needs NER_RETRIEVER_MODEL");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (corpus, types) = files(folder.path());
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (out, figures) = (folder.path().join("r.html"), folder.path().join("figures"));
    let output = report(&[
        ("--model", &model),
        ("--head", &crate_folder.join("../heads/smollm2-135m")),
        ("--corpus", &corpus),
        ("--types", &types),
        ("--ambiguous", &corpus_of_meanings(folder.path())),
        ("--train-corpus", &corpus),
        ("--train-steps", Path::new("2")),
        ("--train-seeds", Path::new("1")),
        ("--cache", &folder.path().join("cache")),
        ("--out", &out),
        ("--figures", &figures),
    ]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let page = fs::read_to_string(&out).unwrap();
    for section in SECTIONS {
        assert!(
            page.contains(&format!("<h2 id=\"{section}\">")),
            "{section}"
        );
    }
    assert!(!page.contains("Left out"), "{page}");
    assert!(page.contains("The dense baseline was left out"));
    assert!(page.contains("river &lt;b&gt;&amp;&lt;/b&gt;"));
    assert!(!page.contains("<b>"));
    // Nothing is fetched and nothing is run: the only address is the name of the SVG language.
    let addresses = page.replace("http://www.w3.org/2000/svg", "");
    for foreign in ["http", "src=", "<script", "<link", "@import", "url("] {
        assert!(!addresses.contains(foreign), "{foreign}");
    }
    assert!(page.matches("<svg").count() >= SECTIONS.len());
    let figures = fs::read_dir(&figures).unwrap().count();
    assert_eq!(figures, page.matches("<svg").count());
}

fn corpus_of_meanings(folder: &Path) -> PathBuf {
    let path = folder.join("meanings.jsonl");
    let lines = [
        r#"{"text": "A crane stood among the reeds.", "entities": [[2, 7, "crane: bird"]]}"#,
        r#"{"text": "The crane lifted the beam.", "entities": [[4, 9, "crane: machine"]]}"#,
    ];
    fs::write(&path, lines.join("\n")).unwrap();
    path
}

#[test]
fn what_is_missing_is_named_before_anything_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let (corpus, types) = files(folder.path());
    let out = folder.path().join("r.html");
    let absent = folder.path().join("absent");
    let given = |changed: &str, value: &Path| {
        let mut arguments = vec![
            ("--model", absent.as_path()),
            ("--head", absent.as_path()),
            ("--corpus", corpus.as_path()),
            ("--types", types.as_path()),
            ("--out", out.as_path()),
        ];
        arguments.retain(|(name, _)| *name != changed);
        arguments.push((changed, value));
        let output = report(&arguments);
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    for option in ["--corpus", "--types"] {
        let stderr = given(option, &absent);
        assert!(stderr.contains("cannot read"), "{stderr}");
        assert!(stderr.contains("absent"), "{stderr}");
    }
    let stderr = given("--minilm", &absent);
    assert!(stderr.contains("absent/config.json"), "{stderr}");
    assert!(stderr.contains("hint: `make minilm`"), "{stderr}");
    let stderr = given("--head", &absent);
    assert!(stderr.contains("absent/head.json"), "{stderr}");
    let stderr = given("--out", &absent.join("r.html"));
    assert!(stderr.contains("cannot write"), "{stderr}");
    let stderr = given("--ambiguous", &absent);
    assert!(stderr.contains("absent"), "{stderr}");
    let mut arguments = vec![
        ("--model", absent.as_path()),
        ("--head", &absent),
        ("--corpus", &corpus),
    ];
    arguments.extend([
        ("--types", types.as_path()),
        ("--out", &out),
        ("--train-corpus", &corpus),
    ]);
    let stderr = String::from_utf8(report(&arguments).stderr).unwrap();
    assert!(stderr.contains("--cache"), "{stderr}");
}
