//! A tokenizer rebuilt from a GGUF's metadata.

use candle_core::quantized::gguf_file::Value;
use tokenizers::{
    AddedToken, Tokenizer,
    models::bpe::{BPE, Merges, Vocab},
    normalizers::NFC,
};

use super::pre_tokenizer::{KNOWN, composes, pre_tokenizer};
use crate::{
    error::{Result, model_damaged, model_unsupported},
    model::gguf::Gguf,
};

/// `tokenizer.ggml.token_type` of a token that is matched in the text before the merges.
const USER_DEFINED: u32 = 4;

/// Byte-level BPE with the file's vocabulary, merges and pre-tokenizer.
pub fn tokenizer(gguf: &Gguf) -> Result<Tokenizer> {
    let damaged = |problem: &str| model_damaged(gguf.path(), problem);
    let kind = string(gguf, "tokenizer.ggml.model").unwrap_or("(none)");
    if kind != "gpt2" {
        return Err(model_unsupported(
            gguf.path(),
            format_args!("tokenizer \"{kind}\""),
            "GGUF files with a byte-level BPE tokenizer (\"gpt2\") work; for others use the \
             Hugging Face folder with its tokenizer.json.",
        ));
    }
    let pre = string(gguf, "tokenizer.ggml.pre").unwrap_or("(none)");
    let splits = pre_tokenizer(pre)
        .ok_or_else(|| {
            model_unsupported(
                gguf.path(),
                format_args!("pre-tokenizer \"{pre}\""),
                &format!(
                    "Known pre-tokenizers are {KNOWN}; for others use the Hugging Face folder \
                     with its tokenizer.json."
                ),
            )
        })?
        .map_err(|e| model_damaged(gguf.path(), e))?;
    let tokens = strings(gguf, "tokenizer.ggml.tokens")
        .ok_or_else(|| damaged("\"tokenizer.ggml.tokens\" is missing"))?;
    let merges: Merges = strings(gguf, "tokenizer.ggml.merges")
        .ok_or_else(|| damaged("\"tokenizer.ggml.merges\" is missing"))?
        .into_iter()
        .map(|merge| {
            merge
                .split_once(' ')
                .map(|(left, right)| (left.to_owned(), right.to_owned()))
                .ok_or_else(|| damaged("a merge has no space"))
        })
        .collect::<Result<_>>()?;
    let vocab: Vocab = (0u32..)
        .zip(&tokens)
        .map(|(id, t)| ((*t).to_owned(), id))
        .collect();
    let model = BPE::builder()
        .vocab_and_merges(vocab, merges)
        // Llama 3 takes a word that is a token as it is (llama.cpp `llama-vocab.cpp`).
        .ignore_merges(pre.starts_with("llama"))
        .build()
        .map_err(|e| model_damaged(gguf.path(), e))?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(splits));
    if composes(pre) {
        tokenizer
            .with_normalizer(Some(NFC))
            .map_err(|e| model_damaged(gguf.path(), e))?;
    }
    tokenizer
        .add_tokens(user_defined(gguf, &tokens))
        .map_err(|e| model_damaged(gguf.path(), e))?;
    Ok(tokenizer)
}

/// The beginning-of-sequence token, if the file says that sequences start with it.
pub fn first_token(gguf: &Gguf) -> Option<u32> {
    let add = match gguf.metadata("tokenizer.ggml.add_bos_token") {
        Some(Value::Bool(add)) => *add,
        // llama.cpp adds it for Llama 3's pre-tokenizer where the file does not say.
        _ => string(gguf, "tokenizer.ggml.pre").is_some_and(|pre| pre.starts_with("llama")),
    };
    let id = gguf
        .metadata("tokenizer.ggml.bos_token_id")?
        .to_u32()
        .ok()?;
    add.then_some(id)
}

fn user_defined(gguf: &Gguf, tokens: &[&str]) -> Vec<AddedToken> {
    let Some(Value::Array(types)) = gguf.metadata("tokenizer.ggml.token_type") else {
        return Vec::new();
    };
    types
        .iter()
        .zip(tokens)
        .filter(|(kind, _)| {
            let kind = kind
                .to_u32()
                .ok()
                .or(kind.to_i32().ok().and_then(|k| u32::try_from(k).ok()));
            kind == Some(USER_DEFINED)
        })
        .map(|(_, token)| AddedToken::from((*token).to_owned(), false).normalized(false))
        .collect()
}

fn string<'a>(gguf: &'a Gguf, key: &str) -> Option<&'a str> {
    match gguf.metadata(key) {
        Some(Value::String(value)) => Some(value),
        _ => None,
    }
}

fn strings<'a>(gguf: &'a Gguf, key: &str) -> Option<Vec<&'a str>> {
    let Some(Value::Array(values)) = gguf.metadata(key) else {
        return None;
    };
    values
        .iter()
        .map(|value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
        .collect()
}
