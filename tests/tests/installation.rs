//! `scripts/install.sh` and `scripts/server.sh` outside the happy path. What is installed goes below a
//! prefix of the test's own (DESTDIR), without the model.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ner_retriever_tests::server::{Server, env_path};

/// What a script printed, and whether it ended well.
struct Outcome {
    well: bool,
    printed: String,
}

fn outcome(command: &mut Command) -> Outcome {
    let output = command.output().expect("the script can be run");
    let text = [output.stdout, output.stderr].concat();
    Outcome {
        well: output.status.success(),
        printed: String::from_utf8(text).expect("scripts print UTF-8"),
    }
}

fn server_script() -> PathBuf {
    env_path("NER_RETRIEVER_SERVER_SCRIPT")
}

fn install_script() -> PathBuf {
    server_script().with_file_name("install.sh")
}

/// A folder that is not there yet.
fn new_folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if folder.exists() {
        fs::remove_dir_all(&folder).expect("the test may remove its own folder");
    }
    folder
}

/// Installs the extension of the server under test below a prefix.
struct Prefix(PathBuf);

impl Prefix {
    fn new(name: &str) -> Self {
        Self(new_folder(name))
    }

    fn run(&self, command: &str) -> Outcome {
        self.run_limited(command, "unlimited")
    }

    /// Runs a command of the script with a limit on the size of each file, in units of 1024 bytes.
    fn run_limited(&self, command: &str, limit: &str) -> Outcome {
        outcome(&mut self.script(command, limit))
    }

    /// Runs a command of the script with `value` for CUDA.
    fn run_with_cuda(&self, command: &str, value: &str) -> Outcome {
        outcome(self.script(command, "unlimited").env("CUDA", value))
    }

    fn script(&self, command: &str, limit: &str) -> Command {
        let shell = ["-c", "ulimit -f \"$0\" && exec \"$@\"", limit];
        let mut script = Command::new("bash");
        script
            .args(shell)
            .arg(install_script())
            .arg(command)
            .env("DESTDIR", &self.0)
            .env("MODEL", "none")
            .env_remove("CUDA");
        script
    }

    /// All files below the prefix.
    fn files(&self) -> Vec<PathBuf> {
        let mut folders = vec![self.0.clone()];
        let mut files = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("a folder that can be read") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    files.push(path);
                }
            }
        }
        files
    }

    /// The one file with this name.
    fn file(&self, name: &str) -> PathBuf {
        let mut files = self.files();
        files.retain(|file| file.file_name().is_some_and(|found| found == name));
        assert_eq!(files.len(), 1, "{name}: {files:?}");
        files.remove(0)
    }
}

impl Drop for Prefix {
    fn drop(&mut self) {
        let removed = fs::remove_dir_all(&self.0);
        if !std::thread::panicking() {
            removed.expect("the test may remove its own folder");
        }
    }
}

#[test]
fn uninstall_removes_all_that_install_put_there() {
    let prefix = Prefix::new("install");
    let copy = prefix.run("copy");
    assert!(copy.well, "{}", copy.printed);
    prefix.file("ner_retriever.so");
    prefix.file("ner-retriever-engine");
    prefix.file("ner_retriever.control");
    for head in ["smollm2-135m", "qwen2.5-coder-1.5b"] {
        let path = Path::new("heads").join(head).join("head.json");
        assert!(
            prefix.files().iter().any(|file| file.ends_with(&path)),
            "{head}"
        );
    }

    let again = prefix.run("copy");
    assert!(again.printed.contains("up to date"), "{}", again.printed);
    assert!(!again.printed.contains("installed  "), "{}", again.printed);

    let uninstall = prefix.run("uninstall");
    assert!(uninstall.well, "{}", uninstall.printed);
    assert_eq!(prefix.files(), Vec::<PathBuf>::new());
    let again = prefix.run("uninstall");
    assert!(again.well, "{}", again.printed);
    assert!(again.printed.contains("not installed"), "{}", again.printed);
}

/// `make engine-cuda` may have been run before, or not.
#[test]
fn the_engine_for_gpus_comes_and_goes_on_request() {
    let prefix = Prefix::new("install-cuda");
    let refused = prefix.run_with_cuda("copy", "yes");
    assert!(
        !refused.well && refused.printed.contains("CUDA is 'yes'"),
        "{}",
        refused.printed
    );

    let gpu = "ner-retriever-engine-cuda";
    let copy = prefix.run_with_cuda("copy", "1");
    let Some(built) = std::env::var_os("NER_RETRIEVER_ENGINE_CUDA") else {
        let advice = "Run 'make install', which builds first";
        assert!(
            !copy.well && copy.printed.contains(advice),
            "{}",
            copy.printed
        );
        assert!(prefix.run("copy").well);
        assert!(!prefix.files().iter().any(|file| file.ends_with(gpu)));
        return;
    };
    assert!(copy.well, "{}", copy.printed);
    let len = |file: &Path| fs::metadata(file).unwrap().len();
    assert_eq!(len(&prefix.file(gpu)), len(Path::new(&built)));
    let without = prefix.run("copy");
    assert!(without.well, "{}", without.printed);
    assert!(!prefix.files().iter().any(|file| file.ends_with(gpu)));

    assert!(prefix.run_with_cuda("copy", "1").well);
    let uninstall = prefix.run("uninstall");
    assert!(uninstall.well, "{}", uninstall.printed);
    assert_eq!(prefix.files(), Vec::<PathBuf>::new());
}

#[test]
fn an_older_version_is_replaced() {
    let prefix = Prefix::new("install-over");
    assert!(prefix.run("copy").well);
    let control = prefix.file("ner_retriever.control");
    let new = fs::read_to_string(&control).unwrap();
    fs::write(&control, "default_version = '0.0.9'").unwrap();
    let list = prefix.file("installed-files");
    let listed = fs::read_to_string(&list).unwrap();
    let old_script = control.with_file_name("ner_retriever--0.0.9.sql");
    fs::write(&old_script, "select 1").unwrap();
    let old_name = old_script.strip_prefix(&prefix.0).unwrap();
    fs::write(&list, format!("{listed}/{}\n", old_name.display())).unwrap();

    let copy = prefix.run("copy");
    assert!(copy.well, "{}", copy.printed);
    assert_eq!(fs::read_to_string(&control).unwrap(), new);
    assert!(!old_script.exists(), "{}", copy.printed);
    assert_eq!(fs::read_to_string(&list).unwrap(), listed);
}

#[test]
fn an_interrupted_install_is_cleaned_up_by_uninstall() {
    let prefix = Prefix::new("install-interrupted");
    let engine = fs::metadata(env_path("NER_RETRIEVER_ENGINE")).unwrap();
    // The engine is larger than everything that is copied before it, and than as many whole KiB as this.
    let limit = ((engine.len() - 1) / 1024).to_string();
    let copy = prefix.run_limited("copy", &limit);
    assert!(!copy.well, "{}", copy.printed);
    assert!(copy.printed.contains("could not copy"), "{}", copy.printed);
    prefix.file("ner_retriever.so");

    let uninstall = prefix.run("uninstall");
    assert!(uninstall.well, "{}", uninstall.printed);
    assert_eq!(prefix.files(), Vec::<PathBuf>::new());
}

/// Nothing is downloaded or built before the server has been looked at.
#[test]
fn a_wrong_pg_config_is_told_at_once() {
    let cache = new_folder("install-cache");
    for (program, message) in [
        ("/nonexistent/pg_config", "which is not a program"),
        ("/", "which is not a program"),
        ("/bin/false", "--version' failed"),
        ("/bin/cat", "Supported are PostgreSQL"),
    ] {
        let install = outcome(
            Command::new(install_script())
                .arg("install")
                .env("PG_CONFIG", program)
                .env("NER_RETRIEVER_CACHE", &cache),
        );
        assert!(!install.well, "{program}: {}", install.printed);
        let told = install.printed.contains(message);
        assert!(told, "{program}: {}", install.printed);
        assert!(!cache.exists(), "{program}: {}", install.printed);
    }
}

/// Whoever stops an instance need not know which PostgreSQL it was started with.
#[test]
fn an_instance_knows_its_postgresql() {
    const NAME: &str = "tests-installation";
    let server = Server::start("installation", &[]);
    let run = |command: &str, arguments: &[&str]| {
        outcome(
            Command::new(server_script())
                .args([command, "--instance", NAME])
                .args(arguments)
                .env("PG_CONFIG", "/nonexistent/pg_config"),
        )
    };
    let psql = run("psql", &["--", "-Atc", "select 6 * 7"]);
    assert_eq!((psql.well, psql.printed.trim()), (true, "42"));
    let start = run("start", &[]);
    assert!(!start.well);
    assert!(
        start.printed.contains("which is not a program"),
        "{}",
        start.printed
    );
    let remove = run("remove", &[]);
    assert!(remove.well, "{}", remove.printed);
    assert!(!server.data().exists());
}
