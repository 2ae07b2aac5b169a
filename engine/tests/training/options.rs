//! Options that do not fit each other or the model.

use crate::{Folder, model};

#[test]
fn options_that_do_not_fit_are_refused() {
    let Some(model) = model() else { return };
    let folder = Folder::new("refused");
    let fails = |options: &[&str], expected: &str| {
        let output = folder.train(&model, "head", options);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && message.contains(expected),
            "{message}"
        );
        assert!(!folder.0.join("head").exists());
    };
    let suffix = ["--suffix-block", "27", "--loss", "distillation"];
    fails(&[], "give --block, --echo-block or --suffix-block");
    fails(&["--block", "30"], "block 30 of a model with 30 blocks");
    fails(
        &["--block", "22", "--loss", "distillation"],
        "distillation needs --suffix-block",
    );
    fails(&suffix, "distillation needs --type-nouns");
    fails(
        &["--block", "22", "--lower-case", "1.5"],
        "--lower-case 1.5 is no share of 1",
    );
    fails(
        &["--block", "22", "--teacher", "/nowhere"],
        "--teacher needs --loss distillation",
    );
    fails(
        &["--block", "22", "--distil-detected"],
        "--distil-detected needs --loss distillation",
    );
    fails(
        &["--block", "22", "--distil-threshold", "0.1"],
        "--distil-threshold needs --distil-detected",
    );
    let companion = ["--block", "22", "--companion", "/nowhere/companion"];
    fails(&companion, "--companion-model <COMPANION_MODEL>");
    let companion = [&companion[..], &["--companion-model", "/no/model"]].concat();
    fails(
        &[&companion[..], &["--probe-of", "/nowhere"]].concat(),
        "cannot be used with",
    );
    fails(
        &[&companion[..], &["--companion-weight", "1"]].concat(),
        "--companion-weight is from 0 to below 1",
    );
    fails(&companion, "\"/nowhere/companion/head.json\"");
    fails(
        &["--block", "22", "--names-are-capitalized"],
        "--names-are-capitalized needs --probe-corpus",
    );
    fails(
        &[
            &suffix[..],
            &["--teacher", "/no/model", "--type-nouns", "/nowhere"],
        ]
        .concat(),
        "\"/no/model\"",
    );
    fails(
        &[&suffix[..], &["--type-nouns", "/nowhere"]].concat(),
        "cannot read \"/nowhere\"",
    );
}
