//! Text to token ids with byte offsets.

mod gguf;
mod pre_tokenizer;

use std::path::Path;

use tokenizers::Tokenizer;
use unicode_segmentation::GraphemeCursor;

use crate::{
    error::{Result, model_damaged, model_file, model_unsupported},
    model::gguf::Gguf,
};

/// End-of-text tokens of common vocabularies, which serve as the first token where a model has no
/// beginning-of-sequence token.
const END_OF_TEXT: [&str; 4] = ["<|endoftext|>", "<|end_of_text|>", "</s>", "<|im_end|>"];

/// A model's tokenizer, which treats special tokens written in a text as plain text.
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    /// Every sequence starts with it: position 0 is an attention sink, and a type name of one
    /// token would otherwise sit on it.
    first: u32,
}

/// The tokens of a text, without the first token.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    pub ids: Vec<u32>,
    /// Bytes of the text that each token covers. A character cut into several tokens is covered
    /// whole by each of them.
    pub offsets: Vec<(usize, usize)>,
}

impl TextTokenizer {
    /// Rebuilds the tokenizer from a GGUF's metadata.
    ///
    /// # Errors
    /// `ModelUnsupported` for an unknown tokenizer or pre-tokenizer, `ModelDamaged`.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let tokenizer = gguf::tokenizer(gguf)?;
        let bos = gguf::first_token(gguf);
        Self::new(tokenizer, bos, gguf.path(), gguf.config().vocab_size)
    }

    /// Reads a checkpoint folder's `tokenizer.json`.
    ///
    /// # Errors
    /// `ModelNotFound`, `ModelDamaged`, `ModelUnsupported`.
    pub fn from_folder(folder: &Path, vocab_size: usize) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let json = std::fs::read(&path).map_err(|e| model_file(&path, &e))?;
        let tokenizer = Tokenizer::from_bytes(json).map_err(|e| model_damaged(&path, e))?;
        // The post-processor adds the first token where the model has one.
        let empty = tokenizer
            .encode("", true)
            .map_err(|e| model_damaged(&path, e))?;
        Self::new(
            tokenizer,
            empty.get_ids().first().copied(),
            &path,
            vocab_size,
        )
    }

    fn new(
        mut tokenizer: Tokenizer,
        bos: Option<u32>,
        path: &Path,
        vocab_size: usize,
    ) -> Result<Self> {
        tokenizer.set_encode_special_tokens(true);
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|e| model_damaged(path, e))?;
        let first = bos
            .or_else(|| END_OF_TEXT.iter().find_map(|t| tokenizer.token_to_id(t)))
            .ok_or_else(|| {
                model_unsupported(
                    path,
                    "its vocabulary has neither a beginning-of-sequence nor an end-of-text token",
                    "Use a checkpoint with its original tokenizer.",
                )
            })?;
        let tokenizer_size = tokenizer.get_vocab_size(true);
        if first as usize >= vocab_size || tokenizer_size > vocab_size {
            return Err(model_damaged(
                path,
                format_args!(
                    "its tokenizer has {tokenizer_size} tokens and its embeddings have {vocab_size}"
                ),
            ));
        }
        Ok(Self { tokenizer, first })
    }

    /// The token that every sequence starts with.
    pub fn first(&self) -> u32 {
        self.first
    }

    /// Tokens of a text of any length.
    pub fn encode(&self, text: &str) -> Result<Encoded> {
        let encoding = self.tokenizer.encode(text, false).map_err(|e| {
            crate::error::EngineError::new(
                crate::error::ErrorKind::Internal,
                format!("the text cannot be tokenized: {e}"),
            )
        })?;
        let mut offsets = encoding.get_offsets().to_vec();
        cover_graphemes(text, &mut offsets);
        Ok(Encoded {
            ids: encoding.get_ids().to_vec(),
            offsets,
        })
    }

    /// What tells this tokenizer from others.
    pub fn identity(&self) -> String {
        let json = self.tokenizer.to_string(false).unwrap_or_default();
        format!("{json}\n{}\n", self.first)
    }
}

/// Extends tokens over what is left of the grapheme that they end in: a tokenizer that composes
/// characters (NFC) gives a letter's bytes to the composed character, and the bytes of the marks that
/// it joined to the letter to nothing.
fn cover_graphemes(text: &str, offsets: &mut [(usize, usize)]) {
    let starts: Vec<usize> = offsets.iter().map(|(start, _)| *start).collect();
    for (_, end) in offsets {
        let next = starts.partition_point(|start| start < end);
        let next = starts.get(next).copied().unwrap_or(text.len());
        if *end == next {
            continue;
        }
        let mut cursor = GraphemeCursor::new(*end, text.len(), true);
        if let (Ok(false), Ok(Some(boundary))) =
            (cursor.is_boundary(text, 0), cursor.next_boundary(text, 0))
        {
            *end = boundary.min(next);
        }
    }
}
