//! The pre-tokenizers that GGUF files name in `tokenizer.ggml.pre`.

use tokenizers::{
    SplitDelimiterBehavior,
    pre_tokenizers::{
        PreTokenizerWrapper,
        byte_level::ByteLevel,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
};

/// GPT-2's words, llama.cpp `src/llama-vocab.cpp`, `LLAMA_VOCAB_PRE_TYPE_GPT2`.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Llama 3's words, the same file, `LLAMA_VOCAB_PRE_TYPE_LLAMA3`.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2's words, the same file, `LLAMA_VOCAB_PRE_TYPE_QWEN2`.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Digits one by one, the first step of `LLAMA_VOCAB_PRE_TYPE_SMOLLM`.
const DIGIT: &str = r"\p{N}";

/// Names that [`pre_tokenizer`] knows, for error messages.
pub const KNOWN: &str = "smollm, gpt-2, llama-bpe and qwen2";

/// The splits of a pre-tokenizer and the byte-level alphabet; `None` for an unknown name.
pub fn pre_tokenizer(name: &str) -> Option<tokenizers::Result<PreTokenizerWrapper>> {
    let patterns: &[&str] = match name {
        "gpt-2" | "gpt2" => &[GPT2],
        "llama-bpe" | "llama3" | "llama-v3" => &[LLAMA3],
        "qwen2" => &[QWEN2],
        "smollm" => &[DIGIT, GPT2],
        _ => return None,
    };
    Some(build(patterns))
}

/// Whether the models with a pre-tokenizer read composed characters (NFC): Qwen's `tokenizer.json`
/// says so, GGUF has no place for it.
pub fn composes(name: &str) -> bool {
    name == "qwen2"
}

fn build(patterns: &[&str]) -> tokenizers::Result<PreTokenizerWrapper> {
    let mut steps = Vec::new();
    for pattern in patterns {
        let pattern = SplitPattern::Regex((*pattern).into());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?;
        steps.push(PreTokenizerWrapper::from(split));
    }
    steps.push(ByteLevel::new(false, false, false).into());
    Ok(Sequence::new(steps).into())
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    use super::pre_tokenizer;

    #[derive(Deserialize)]
    struct Golden {
        pre_tokenizers: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        pre: String,
        texts: Vec<Text>,
    }

    #[derive(Deserialize)]
    struct Text {
        text: String,
        pieces: Vec<String>,
    }

    /// The expected pieces come from llama.cpp's patterns in Python's `regex`
    /// (`tests/golden/README.md`).
    #[test]
    fn texts_split_as_in_llama_cpp() {
        let golden = include_str!("../../tests/golden/tokenizers.json");
        let golden: Golden = serde_json::from_str(golden).unwrap();
        assert_eq!(golden.pre_tokenizers.len(), 4);
        for case in golden.pre_tokenizers {
            let splits = pre_tokenizer(&case.pre).unwrap().unwrap();
            for Text { text, pieces } in case.texts {
                let mut string = PreTokenizedString::from(text.as_str());
                splits.pre_tokenize(&mut string).unwrap();
                let found: Vec<&str> = string
                    .get_splits(OffsetReferential::Original, OffsetType::Byte)
                    .into_iter()
                    .map(|(_, (start, end), _)| &text[start..end])
                    .collect();
                assert_eq!(found, pieces, "{} on {text:?}", case.pre);
            }
        }
    }
}
