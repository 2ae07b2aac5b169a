//! Tokenizers rebuilt from a GGUF's metadata against the `tokenizer.json` that they come from.

#[path = "common/gguf.rs"]
mod gguf;

use std::{fs, path::Path};

use candle_core::Device;
use ner_retriever_engine::{
    error::ErrorKind,
    model::{Checkpoint, gguf::Gguf},
    text::words,
    tokenizer::TextTokenizer,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use unicode_segmentation::UnicodeSegmentation;

const TEXTS: [&str; 17] = [
    "Albertosaurus and Triceratops lived in what is now Alberta; they didn't meet the Beatles.",
    "1 12 123 1234 12345678 2004 2024, $1,234.50, 42½, chapter Ⅷ, room ٣٤٥",
    "it's It'S they've THEY'VE we'll WE'LL I'm I'D don't 'tis rock'n'roll",
    "🦖 👩‍👩‍👧‍👦🇮🇸!!! ok🙂ok 👍🏽",
    "Ame\u{301}lie cafe\u{301} naïve Zoë e\u{301}e\u{301} a\u{328}\u{301} a\u{301}\u{328}",
    "नमस्ते लिखा \u{958} Z\u{337}a\u{337}l\u{337} שָׁלוֹם مُحَمَّد \u{1112}\u{1161}\u{11ab}\u{1100}\u{1173}\u{11af}",
    "line one\nline two\r\nline three\n\n\n  indented\n \n\t\ttabs\n",
    "  leading spaces   inner   runs  and trailing   ",
    "\tTab first\t\tthen \u{a0}no-break\u{3000}ideographic\u{2009}thin",
    "東京タワーは1958年に完成した。서울은 대한민국의 수도이다。",
    "if (x >= 10 && y != 0) { return \"a'b\"; } // C++20 <T>::value\n#define A_B 1\n",
    "<|begin_of_text|> and <|end_of_text|>, <tool call> and x<tool call>y, <tool  call>",
    "[PAD513] Ġthe Ċ",
    "\u{301} alone, \u{1}\u{4}\u{7f} control, \u{fffd}, \u{10ffff}",
    "a",
    " ",
    "",
];

/// A way to cut texts into words: its name in GGUF files, and the same as Hugging Face's tokenizers
/// write it.
struct Family {
    pre: &'static str,
    edit: fn(&mut Value),
}

const FAMILIES: [Family; 4] = [
    // The tiny checkpoint's own.
    Family {
        pre: "llama-bpe",
        edit: |_| (),
    },
    Family {
        pre: "qwen2",
        edit: |tokenizer| {
            let pattern = &mut tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"];
            let llama = pattern.as_str().unwrap();
            *pattern = llama.replace(r"\p{N}{1,3}", r"\p{N}").into();
            tokenizer["normalizer"] = json!({"type": "NFC"});
            without_first_token(tokenizer);
        },
    },
    Family {
        pre: "gpt-2",
        edit: |tokenizer| {
            tokenizer["pre_tokenizer"] = byte_level();
            without_first_token(tokenizer);
        },
    },
    Family {
        pre: "smollm",
        edit: |tokenizer| {
            let digits = json!({"type": "Digits", "individual_digits": true});
            tokenizer["pre_tokenizer"] =
                json!({"type": "Sequence", "pretokenizers": [digits, byte_level()]});
            without_first_token(tokenizer);
        },
    },
];

fn byte_level() -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true})
}

/// Only Llama 3 takes a word that is a token as it is, and starts with a token of its own.
fn without_first_token(tokenizer: &mut Value) {
    tokenizer["model"]["ignore_merges"] = false.into();
    tokenizer["post_processor"] = byte_level();
}

/// The Llama-3-style checkpoint with a family's tokenizer, with some words that no merge leads to,
/// an added token that is not special, and a row of embeddings that has no token.
fn checkpoint(family: &Family) -> (TempDir, usize) {
    let folder = TempDir::new().unwrap();
    let original = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny_llama3");
    let read = |name: &str| -> Value {
        serde_json::from_slice(&fs::read(original.join(name)).unwrap()).unwrap()
    };
    let mut tokenizer = read("tokenizer.json");
    (family.edit)(&mut tokenizer);
    let merges = tokenizer["model"]["merges"].as_array_mut().unwrap();
    merges.truncate(merges.len() - 10);
    let mut added = tokenizer["added_tokens"][0].clone();
    added["id"] = 512.into();
    added["content"] = "<tool call>".into();
    added["special"] = false.into();
    tokenizer["added_tokens"]
        .as_array_mut()
        .unwrap()
        .push(added);
    let mut config = read("config.json");
    config["vocab_size"] = 514.into();
    for (name, value) in [("tokenizer.json", tokenizer), ("config.json", config)] {
        fs::write(folder.path().join(name), value.to_string()).unwrap();
    }
    (folder, 514)
}

fn from_gguf(folder: &Path, pre: &str) -> TextTokenizer {
    let file = folder.join("model.gguf");
    gguf::convert(folder, pre, &file, |_, _| ());
    TextTokenizer::from_gguf(&Gguf::open(&file).unwrap()).unwrap()
}

#[test]
fn a_gguf_gives_the_tokens_of_the_folder() {
    for family in &FAMILIES {
        let (folder, vocab_size) = checkpoint(family);
        let expected = TextTokenizer::from_folder(folder.path(), vocab_size).unwrap();
        let found = from_gguf(folder.path(), family.pre);
        for text in TEXTS {
            let (found, expected) = (found.encode(text).unwrap(), expected.encode(text).unwrap());
            assert_eq!(found, expected, "{} on {text:?}", family.pre);
        }
        // <|begin_of_text|> where the tokenizer adds it, else the end of text.
        let first = if family.pre == "llama-bpe" { 510 } else { 511 };
        assert_eq!((found.first(), expected.first()), (first, first));
        // No other family would do.
        for other in FAMILIES.iter().filter(|other| other.pre != family.pre) {
            let other = from_gguf(folder.path(), other.pre);
            let differs =
                |text: &&str| other.encode(text).unwrap() != expected.encode(text).unwrap();
            assert!(TEXTS.iter().any(differs), "{} is untested", family.pre);
        }
    }
}

#[test]
fn words_that_are_tokens_are_not_merged_for_llama_alone() {
    for family in &FAMILIES {
        let (folder, _) = checkpoint(family);
        let tokenizer = from_gguf(folder.path(), family.pre);
        let json: Value =
            serde_json::from_slice(&fs::read(folder.path().join("tokenizer.json")).unwrap())
                .unwrap();
        let vocab = json["model"]["vocab"].as_object().unwrap();
        let (word, id) = vocab.iter().find(|(_, id)| **id == json!(505)).unwrap();
        let text = word.replace('Ġ', " ");
        assert!(
            text.is_ascii() && text.trim().chars().all(char::is_alphabetic),
            "{text:?}"
        );
        let whole = tokenizer.encode(&text).unwrap().ids == [id.as_u64().unwrap() as u32];
        assert_eq!(
            whole,
            family.pre == "llama-bpe",
            "{} on {text:?}",
            family.pre
        );
    }
}

/// Composing leaves no part of a character without a token, so no word is lost.
#[test]
fn every_word_has_its_tokens() {
    for family in &FAMILIES {
        let (folder, _) = checkpoint(family);
        let tokenizer = from_gguf(folder.path(), family.pre);
        for text in TEXTS {
            let encoded = tokenizer.encode(text).unwrap();
            let expected = text.split_word_bounds().filter(|w| !w.trim().is_empty());
            let found = words(text, &encoded);
            assert!(
                found
                    .iter()
                    .map(|word| &text[word.bytes.clone()])
                    .eq(expected),
                "{} on {text:?}",
                family.pre
            );
            assert!(encoded.offsets.iter().all(|(start, end)| start < end));
        }
    }
}

#[test]
fn an_unknown_pre_tokenizer_is_named() {
    let (folder, _) = checkpoint(&FAMILIES[0]);
    let file = folder.path().join("model.gguf");
    gguf::convert(folder.path(), "superbpe", &file, |_, _| ());
    let error = Checkpoint::open(&file, &Device::Cpu).err().unwrap();
    assert_eq!(error.kind, ErrorKind::ModelUnsupported);
    assert!(
        error.message.contains("pre-tokenizer \"superbpe\""),
        "{error}"
    );
    let hint = error.hint.unwrap();
    for family in &FAMILIES {
        assert!(hint.contains(family.pre), "{hint}");
    }
}
