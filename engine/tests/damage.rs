//! What the engine says about missing, damaged and unsupported models and heads.

mod common;
#[path = "common/gguf.rs"]
mod gguf;

use std::{fs, path::Path};

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor, gguf_file::Value},
};
use common::{checkpoint, describe, write_head};
use ner_retriever_engine::{
    embedder::Embedder,
    error::{EngineError, ErrorKind},
    representation::Representation,
    sources::Sources,
};
use ner_retriever_protocol::ErrorKind::*;
use tempfile::TempDir;

fn load(model: &Path, head: &Path) -> EngineError {
    match Embedder::load(&Sources::new(model, head), Device::Cpu, None) {
        Ok(_) => panic!("{} with {} loads", model.display(), head.display()),
        Err(error) => error,
    }
}

/// A copy of the checkpoint and a head for it, to damage.
fn intact() -> TempDir {
    let folder = TempDir::new().unwrap();
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    for file in fs::read_dir(checkpoint()).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), model.join(file.file_name())).unwrap();
    }
    write_head(&folder.path().join("head"));
    Embedder::load(
        &Sources::new(&model, &folder.path().join("head")),
        Device::Cpu,
        None,
    )
    .unwrap();
    folder
}

/// Damages an intact model and head and checks the error that loading them gives.
fn expect(kind: ErrorKind, message: &str, damage: impl FnOnce(&Path, &Path)) {
    let folder = intact();
    let (model, head) = (folder.path().join("model"), folder.path().join("head"));
    damage(&model, &head);
    let error = load(&model, &head);
    assert_eq!(error.kind, kind, "{error}");
    assert!(error.message.contains(message), "{error}");
    assert!(error.hint.is_some(), "{error} has no hint");
}

fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(path, text.replace(from, to)).unwrap();
}

fn shards(model: &Path) -> Vec<std::path::PathBuf> {
    let mut shards: Vec<_> = fs::read_dir(model)
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    shards.sort();
    assert!(shards.len() > 1);
    shards
}

fn cut(path: &Path, bytes: u64) {
    fs::File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(bytes)
        .unwrap();
}

#[test]
fn a_model_that_is_not_there() {
    expect(ModelNotFound, "cannot read model file", |model, _| {
        fs::remove_dir_all(model).unwrap()
    });
}

#[test]
fn a_folder_without_config_json() {
    expect(ModelNotFound, "has no config.json", |model, _| {
        fs::remove_file(model.join("config.json")).unwrap();
    });
}

#[test]
fn a_folder_without_tokenizer_json() {
    expect(ModelNotFound, "tokenizer.json", |model, _| {
        fs::remove_file(model.join("tokenizer.json")).unwrap();
    });
}

#[test]
fn a_folder_without_tensors() {
    expect(ModelNotFound, "model.safetensors", |model, _| {
        fs::remove_file(model.join("model.safetensors.index.json")).unwrap();
    });
}

#[test]
fn a_missing_shard() {
    expect(ModelNotFound, "cannot read model file", |model, _| {
        fs::remove_file(&shards(model)[1]).unwrap();
    });
}

#[test]
fn a_shard_that_ends_early() {
    for keep in [0, 7, 100, 10_000] {
        expect(ModelDamaged, "is damaged", |model, _| {
            cut(&shards(model)[0], keep)
        });
    }
}

#[test]
fn another_architecture_is_named() {
    for architecture in ["\"gpt_neox\"", "\"qwen2_moe\""] {
        let folder = intact();
        let (model, head) = (folder.path().join("model"), folder.path().join("head"));
        edit(&model.join("config.json"), "\"llama\"", architecture);
        let error = load(&model, &head);
        assert_eq!(error.kind, ModelUnsupported);
        assert!(error.message.contains(architecture), "{error}");
        let hint = error.hint.unwrap();
        for supported in ["llama", "mistral", "qwen2", "qwen3"] {
            assert!(hint.contains(supported), "{hint}");
        }
    }
}

#[test]
fn a_configuration_that_contradicts_the_tensors() {
    expect(ModelDamaged, "has shape", |model, head| {
        let mut description = write_head(head);
        description.base_model.hash = None;
        describe(head, &description);
        edit(
            &model.join("config.json"),
            "\"intermediate_size\": 160",
            "\"intermediate_size\": 128",
        );
    });
    expect(ModelDamaged, "not plausible", |model, _| {
        edit(
            &model.join("config.json"),
            "\"num_key_value_heads\": 2",
            "\"num_key_value_heads\": 0",
        );
    });
}

#[test]
fn a_tokenizer_of_another_model() {
    expect(ModelDamaged, "its tokenizer has", |model, _| {
        edit(
            &model.join("config.json"),
            "\"vocab_size\": 512",
            "\"vocab_size\": 100",
        );
    });
}

#[test]
fn a_file_that_is_no_gguf() {
    for content in ["", "GGUF", "GGUF\u{3}\0\0\0", "something else entirely"] {
        expect(ModelDamaged, "is damaged", |model, _| {
            fs::remove_dir_all(model).unwrap();
            fs::write(model, content).unwrap();
        });
    }
}

#[test]
fn a_gguf_that_ends_early() {
    let Some(gguf) = std::env::var_os("NER_RETRIEVER_MODEL") else {
        println!("skipped: NER_RETRIEVER_MODEL does not name the default model's GGUF file");
        return;
    };
    // Within the metadata, within the first tensors, and within the last.
    let length = fs::metadata(&gguf).unwrap().len();
    for keep in [1000, 4_000_000, length - 1000] {
        expect(ModelDamaged, "is damaged", |model, _| {
            fs::remove_dir_all(model).unwrap();
            fs::copy(&gguf, model).unwrap();
            cut(model, keep);
        });
    }
}

/// Converts the intact model to GGUF with a change and checks the error that loading it gives.
fn expect_of_gguf(
    kind: ErrorKind,
    message: &str,
    change: impl FnOnce(&mut gguf::Metadata, &mut gguf::Tensors),
) {
    expect(kind, message, |model, head| {
        let mut description = write_head(head);
        description.base_model.hash = None;
        describe(head, &description);
        let file = model.with_extension("gguf");
        gguf::convert(model, "llama-bpe", &file, change);
        fs::remove_dir_all(model).unwrap();
        fs::rename(file, model).unwrap();
    });
}

#[test]
fn a_gguf_whose_metadata_says_what_this_engine_does_not_do() {
    let text = |value: &str| Value::String(value.to_owned());
    for (key, value, message) in [
        ("general.architecture", text("gpt_neox"), "\"gpt_neox\""),
        ("tokenizer.ggml.model", text("llama"), "tokenizer \"llama\""),
        (
            "tokenizer.ggml.pre",
            text("superbpe"),
            "pre-tokenizer \"superbpe\"",
        ),
        (
            "llama.rope.scaling.type",
            text("yarn"),
            "rope with scaling \"yarn\"",
        ),
        (
            "llama.rope.dimension_count",
            Value::U32(8),
            "rope with 8 of a head's 16 dimensions",
        ),
    ] {
        expect_of_gguf(ModelUnsupported, message, |metadata, _| {
            metadata.insert(key.to_owned(), value);
        });
    }
}

#[test]
fn a_gguf_whose_metadata_is_incomplete() {
    for key in [
        "general.architecture",
        "llama.block_count",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.merges",
    ] {
        let message = format!("\"{key}\" is missing");
        expect_of_gguf(ModelDamaged, &message, |metadata, _| {
            metadata.remove(key).unwrap();
        });
    }
    expect_of_gguf(
        ModelDamaged,
        "rope scaling lacks its factor",
        |metadata, _| {
            let linear = Value::String("linear".to_owned());
            metadata.insert("llama.rope.scaling.type".to_owned(), linear);
        },
    );
}

#[test]
fn a_gguf_with_the_wrong_tensors() {
    expect_of_gguf(ModelDamaged, "blk.0.attn_k.weight", |_, tensors| {
        tensors.remove("blk.0.attn_k.weight").unwrap();
    });
    for divisors in [[1f32; 4].as_slice(), &[0.0; 8], &[f32::NAN; 8]] {
        expect_of_gguf(ModelDamaged, "8 positive numbers", |_, tensors| {
            let divisors = Tensor::new(divisors, &Device::Cpu).unwrap();
            let divisors = QTensor::quantize(&divisors, GgmlDType::F32).unwrap();
            tensors.insert("rope_freqs.weight".to_owned(), divisors);
        });
    }
}

#[test]
fn a_head_that_is_not_there() {
    expect(HeadNotFound, "head.json", |_, head| {
        fs::remove_dir_all(head).unwrap()
    });
    expect(HeadNotFound, "mentions.safetensors", |_, head| {
        fs::remove_file(head.join("mentions.safetensors")).unwrap();
    });
}

#[test]
fn a_head_that_is_damaged() {
    expect(HeadDamaged, "is damaged", |_, head| {
        cut(&head.join("head.json"), 20)
    });
    expect(HeadDamaged, "is damaged", |_, head| {
        cut(&head.join("projection.safetensors"), 200)
    });
    expect(HeadDamaged, "\"mean\" is", |_, head| {
        fs::copy(
            head.join("projection.safetensors"),
            head.join("mentions.safetensors"),
        )
        .unwrap();
    });
}

#[test]
fn a_head_for_another_model() {
    let change = |change: &dyn Fn(&mut ner_retriever_engine::head::HeadDescription),
                  message: &str| {
        expect(HeadMismatch, message, |_, head| {
            let mut description = write_head(head);
            change(&mut description);
            describe(head, &description);
        });
    };
    change(
        &|d| d.base_model.hash = Some("0".repeat(64)),
        "it was trained for base model",
    );
    change(
        &|d| {
            d.base_model.hash = None;
            d.representations = vec![Representation::SpanEnd {
                block: 17,
                query_form: "{type}".to_owned(),
            }];
        },
        "it uses block 17",
    );
    change(
        &|d| {
            d.base_model.hash = None;
            d.projection.input_dims = 1024;
        },
        "vectors of 1024 dimensions",
    );
}
