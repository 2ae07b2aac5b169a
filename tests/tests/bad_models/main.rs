//! Models, heads and settings that cannot be used: what a session is told, and that all is well again
//! once they are put right.

mod head;

use std::fs;
use std::path::{Path, PathBuf};

use head::{TINY_DIMS, write_tiny_head};
use ner_retriever_tests::processes::ProcessId;
use ner_retriever_tests::server::{Server, SharedServer, env_path};
use ner_retriever_tests::session::{
    Failure, backend_pid, failure, mentions, mentions_at, mentions_of_texts, type_embedding,
};
use postgres::Client;
use serde_json::{Value, json};

static SERVER: SharedServer = SharedServer::new("bad-models", &[]);

const MODEL: &str = "ner_retriever.model";
const HEAD: &str = "ner_retriever.head";
const COMPANION_MODEL: &str = "ner_retriever.companion_model";

/// A copy of the small Llama-3-style checkpoint of the engine's tests, and a head for it: they load
/// at once.
struct Tiny<'a> {
    server: &'a Server,
    model: PathBuf,
    head: PathBuf,
}

impl<'a> Tiny<'a> {
    /// Writes both for one test and makes the server use them.
    fn install(server: &'a Server, test: &str) -> Self {
        let golden =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/golden/tiny_llama3");
        let model = server.folder(&format!("{test}/model"));
        copy_files(&golden, &model);
        let head = server.folder(&format!("{test}/head"));
        write_tiny_head(&head);
        let tiny = Self {
            server,
            model,
            head,
        };
        tiny.put_right();
        tiny
    }

    fn put_right(&self) {
        let path = |path: &Path| Some(path.to_str().unwrap().to_owned());
        let (model, head) = (path(&self.model), path(&self.head));
        self.server
            .configure(&[(MODEL, model.as_deref()), (HEAD, head.as_deref())]);
    }
}

/// The server and a session that must live through it all.
struct Witness {
    session: Client,
    pid: ProcessId,
    start_time: String,
}

impl Witness {
    fn new(server: &Server) -> Self {
        let mut session = server.connect();
        session.batch_execute("load 'ner_retriever'").unwrap();
        Self {
            pid: backend_pid(&mut session),
            start_time: Self::start_time(&mut session),
            session,
        }
    }

    fn start_time(session: &mut Client) -> String {
        let sql = "select pg_postmaster_start_time()::text";
        session.query_one(sql, &[]).unwrap().get(0)
    }

    /// What each function says, which must be the same for all.
    fn error(&mut self) -> Failure {
        let error = failure(mentions(&mut self.session, "Paris"));
        assert_eq!(
            failure(mentions_of_texts(&mut self.session, &[Some("Paris")])),
            error
        );
        assert_eq!(
            failure(mentions_at(&mut self.session, "Paris", "{\"[0,5)\"}")),
            error
        );
        assert_eq!(failure(type_embedding(&mut self.session, "city")), error);
        error
    }

    fn all_is_well(&mut self, dimensions: usize) {
        let session = &mut self.session;
        assert_eq!(type_embedding(session, "city").unwrap().len(), dimensions);
        let found = mentions_at(session, "in Paris", "{\"[3,8)\"}").unwrap();
        assert_eq!(found[0].entity, "Paris");
        assert_eq!(found[0].embedding.len(), dimensions);
        assert_eq!(backend_pid(session), self.pid);
        assert_eq!(Self::start_time(session), self.start_time);
    }
}

fn copy_files(from: &Path, to: &Path) {
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

fn cut(file: &Path, bytes: u64) {
    let file = fs::File::options().write(true).open(file).unwrap();
    assert!(bytes < file.metadata().unwrap().len());
    file.set_len(bytes).unwrap();
}

fn middle(file: &Path) -> u64 {
    fs::metadata(file).unwrap().len() / 2
}

/// Works with the tiny model, then with `setting` at the path that `damage` gives, checks the error,
/// and works again.
fn expect(
    test: &str,
    setting: &str,
    damage: impl FnOnce(&Tiny<'_>) -> PathBuf,
    (sqlstate, message, hint): (&str, &str, &str),
) {
    let server = SERVER.turn();
    let mut witness = Witness::new(&server);
    let tiny = Tiny::install(&server, test);
    witness.all_is_well(TINY_DIMS);
    let path = damage(&tiny);
    server.configure(&[(setting, path.to_str())]);
    witness.error().expect(sqlstate, message, hint);
    tiny.put_right();
    witness.all_is_well(TINY_DIMS);
}

/// A copy of the tiny model in which one file was changed.
fn changed_model(tiny: &Tiny<'_>, change: impl FnOnce(&Path)) -> PathBuf {
    let copy = tiny.model.with_file_name("changed");
    fs::create_dir_all(&copy).unwrap();
    copy_files(&tiny.model, &copy);
    change(&copy);
    copy
}

fn changed_head(tiny: &Tiny<'_>, change: impl FnOnce(&Path)) -> PathBuf {
    let copy = tiny.head.with_file_name("changed-head");
    fs::create_dir_all(&copy).unwrap();
    write_tiny_head(&copy);
    change(&copy);
    copy
}

#[test]
fn a_model_path_that_leads_nowhere() {
    expect(
        "nowhere",
        MODEL,
        |tiny| tiny.model.join("no-such-model.gguf"),
        (
            "58P01",
            "no-such-model.gguf\": No such file",
            "Set ner_retriever.model to a GGUF file",
        ),
    );
}

#[test]
fn a_folder_without_config_json() {
    expect(
        "no-config",
        MODEL,
        |tiny| {
            changed_model(tiny, |copy| {
                fs::remove_file(copy.join("config.json")).unwrap()
            })
        },
        ("58P01", "has no config.json", "ner_retriever.model"),
    );
}

#[test]
fn a_truncated_gguf() {
    let gguf = env_path("NER_RETRIEVER_MODEL");
    expect(
        "gguf",
        MODEL,
        |tiny| {
            let copy = tiny.model.with_file_name("truncated.gguf");
            fs::copy(&gguf, &copy).unwrap();
            cut(&copy, middle(&copy));
            copy
        },
        (
            "XX001",
            "truncated.gguf\" is damaged",
            "Download or copy the model again",
        ),
    );
}

#[test]
fn a_damaged_safetensors_file() {
    let file = "model-00002-of-00002.safetensors";
    expect(
        "safetensors",
        MODEL,
        |tiny| changed_model(tiny, |copy| cut(&copy.join(file), middle(&copy.join(file)))),
        ("XX001", file, "copy the model again"),
    );
}

#[test]
fn a_head_that_is_missing() {
    expect(
        "no-head",
        HEAD,
        |tiny| tiny.head.join("no-such-head"),
        (
            "58P01",
            "no-such-head/head.json\": No such file",
            "Set ner_retriever.head to a head's folder",
        ),
    );
}

#[test]
fn a_head_that_is_damaged() {
    let file = "projection.safetensors";
    expect(
        "damaged-head",
        HEAD,
        |tiny| changed_head(tiny, |copy| cut(&copy.join(file), middle(&copy.join(file)))),
        (
            "XX001",
            "projection.safetensors\" is damaged",
            "Copy the head's folder again",
        ),
    );
}

/// The default head finds mentions for the tiny one, with its own model, which is the default.
#[test]
fn the_base_model_of_a_companion() {
    let server = SERVER.turn();
    let mut witness = Witness::new(&server);
    let tiny = Tiny::install(&server, "companion");
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../heads/smollm2-135m");
    copy_files(&shipped, &server.folder("companion/smollm2-135m"));
    let weight = |weight: f64| {
        let head = server.folder(&format!("companion/with-{weight}"));
        copy_files(&tiny.head, &head);
        let file = head.join("head.json");
        let mut description: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        description["detector"] = Value::Null;
        description["companion"] = json!({ "head": "../smollm2-135m", "weight": weight });
        fs::write(file, description.to_string()).unwrap();
        head
    };
    server.configure(&[(HEAD, weight(0.0).to_str())]);
    witness.all_is_well(TINY_DIMS);
    let text = "Angela Merkel visited Paris.";
    let found = mentions(&mut witness.session, text).unwrap();
    let names: Vec<&str> = found.iter().map(|mention| &*mention.entity).collect();
    assert_eq!(names, ["Angela Merkel", "Paris"]);
    assert_eq!(found[0].embedding.len(), TINY_DIMS);

    server.configure(&[(HEAD, weight(0.5).to_str())]);
    let dimensions = type_embedding(&mut witness.session, "city").unwrap().len();
    assert!(dimensions > TINY_DIMS);
    witness.all_is_well(dimensions);
    let found = mentions(&mut witness.session, text).unwrap();
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].embedding.len(), dimensions);

    for (path, sqlstate, message) in [
        (tiny.model.clone(), "55000", "does not fit the model"),
        (tiny.model.join("no-such-model"), "58P01", "no-such-model"),
    ] {
        server.configure(&[(COMPANION_MODEL, path.to_str())]);
        let hint = "Set ner_retriever.companion_model";
        witness.error().expect(sqlstate, message, hint);
    }
    server.configure(&[(COMPANION_MODEL, None)]);
    witness.all_is_well(dimensions);
}

#[test]
fn the_default_model_after_all_that() {
    let server = SERVER.turn();
    let mut witness = Witness::new(&server);
    let tiny = Tiny::install(&server, "default");
    witness.all_is_well(TINY_DIMS);

    server.configure(&[(MODEL, None)]);
    let error = witness.error();
    error.expect(
        "55000",
        "head \"tiny\" does not fit the model",
        "or ner_retriever.head to a head for this model",
    );

    server.configure(&[(HEAD, None)]);
    let dimensions = type_embedding(&mut server.connect(), "city").unwrap().len();
    assert_ne!(dimensions, TINY_DIMS);
    witness.all_is_well(dimensions);

    server.configure(&[(MODEL, tiny.model.to_str())]);
    witness.error().expect(
        "55000",
        "does not fit the model",
        "Set ner_retriever.model to the base model",
    );
    server.configure(&[(MODEL, None)]);
    witness.all_is_well(dimensions);
}

#[test]
fn settings_that_this_engine_does_not_have() {
    let server = SERVER.turn();
    let mut witness = Witness::new(&server);
    let _tiny = Tiny::install(&server, "settings");
    for (setting, value, sqlstate, message, hint) in [
        (
            "device",
            "cuda",
            "55000",
            "device \"cuda\" cannot be used",
            "Set ner_retriever.device to auto or cpu",
        ),
        (
            "device",
            "tpu",
            "22023",
            "ner_retriever.device is \"tpu\"",
            "It may be auto, cpu, cuda or cuda:N",
        ),
        (
            "dtype",
            "f13",
            "22023",
            "ner_retriever.dtype is \"f13\"",
            "It may be auto",
        ),
        (
            "detector",
            "oracle",
            "22023",
            "ner_retriever.detector is \"oracle\"",
            "It may be probe",
        ),
    ] {
        witness.all_is_well(TINY_DIMS);
        let setting = format!("ner_retriever.{setting}");
        server.configure(&[(&setting, Some(value))]);
        witness.error().expect(sqlstate, message, hint);
        server.configure(&[(&setting, None)]);
    }
    witness.all_is_well(TINY_DIMS);
}
