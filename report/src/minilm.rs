//! A sentence encoder: all-MiniLM-L6-v2 (Apache-2.0), the dense baseline.

use std::{fmt::Display, fs, path::Path};

use candle_core::{DType, Device, Tensor, safetensors};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use ner_retriever_engine::{
    error::{EngineError, ErrorKind, Result, compute},
    projection::normalize,
};
use tokenizers::{Tokenizer, TruncationParams};

/// Tokens of a text that are read, as sentence-transformers does it (`sentence_bert_config.json`).
const MAX_TOKENS: usize = 256;
/// Texts of one forward pass.
const BATCH_TEXTS: usize = 64;

/// A loaded encoder.
pub struct Minilm {
    model: BertModel,
    tokenizer: Tokenizer,
}

impl Minilm {
    /// Reads `config.json`, `tokenizer.json` and `model.safetensors` of a folder.
    ///
    /// # Errors
    /// `ModelNotFound`, `ModelDamaged`.
    pub fn load(folder: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read(&path).map_err(|e| {
                let message = format!("cannot read the sentence encoder's {}: {e}", path.display());
                EngineError::new(ErrorKind::ModelNotFound, message)
                    .hint("`make minilm` fetches all-MiniLM-L6-v2 and prints its folder.")
            })
        };
        let config: Config = serde_json::from_slice(&read("config.json")?)
            .map_err(|e| damaged(folder, "config.json", e))?;
        let mut tokenizer = Tokenizer::from_bytes(read("tokenizer.json")?)
            .map_err(|e| damaged(folder, "tokenizer.json", e))?;
        let truncation = TruncationParams {
            max_length: MAX_TOKENS,
            ..TruncationParams::default()
        };
        tokenizer
            .with_truncation(Some(truncation))
            .map_err(|e| damaged(folder, "tokenizer.json", e))?;
        // The file pads to 128 tokens; a batch is padded to its longest text here.
        tokenizer.with_padding(None);
        let weights = safetensors::load_buffer(&read("model.safetensors")?, &Device::Cpu)
            .map_err(|e| damaged(folder, "model.safetensors", e))?;
        let weights = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
        let model = BertModel::load(weights, &config)
            .map_err(|e| damaged(folder, "model.safetensors", e))?;
        Ok(Self { model, tokenizer })
    }

    /// Mean of the last layer's states, of length 1, `[texts, 384]`.
    ///
    /// # Errors
    /// `Internal`.
    pub fn embed<'a>(&self, texts: impl IntoIterator<Item = &'a str>) -> Result<Tensor> {
        let mut encoded = Vec::new();
        for (number, text) in texts.into_iter().enumerate() {
            let encoding = self.tokenizer.encode(text, true).map_err(|e| {
                EngineError::new(
                    ErrorKind::Internal,
                    format!("a text cannot be tokenized: {e}"),
                )
            })?;
            encoded.push((number, encoding.get_ids().to_vec()));
        }
        // Texts of about one length share a batch, so that little of it is padding.
        encoded.sort_by_key(|(_, ids)| ids.len());
        let batches = encoded.chunks(BATCH_TEXTS).map(|batch| self.batch(batch));
        let rows = batches
            .collect::<candle_core::Result<Vec<_>>>()
            .map_err(compute)?;
        let mut place = vec![0u32; encoded.len()];
        for (row, (number, _)) in (0u32..).zip(&encoded) {
            place[*number] = row;
        }
        Tensor::cat(&rows, 0)
            .and_then(|rows| rows.index_select(&Tensor::new(place, rows.device())?, 0))
            .map_err(compute)
    }

    fn batch(&self, texts: &[(usize, Vec<u32>)]) -> candle_core::Result<Tensor> {
        let longest = texts.iter().map(|(_, ids)| ids.len()).max().unwrap_or(0);
        let shape = (texts.len(), longest);
        let padded = |value: &dyn Fn(&[u32], usize) -> u32| {
            let values: Vec<u32> = texts
                .iter()
                .flat_map(|(_, ids)| (0..longest).map(|token| value(ids, token)))
                .collect();
            Tensor::from_vec(values, shape, &Device::Cpu)
        };
        let ids = padded(&|ids, token| ids.get(token).copied().unwrap_or(0))?;
        let mask = padded(&|ids, token| u32::from(token < ids.len()))?;
        let states = self.model.forward(&ids, &ids.zeros_like()?, Some(&mask))?;
        let mask = mask.to_dtype(DType::F32)?.unsqueeze(2)?;
        let mean = states
            .broadcast_mul(&mask)?
            .sum(1)?
            .broadcast_div(&mask.sum(1)?)?;
        normalize(&mean)
    }
}

fn damaged(folder: &Path, file: &str, problem: impl Display) -> EngineError {
    let path = folder.join(file);
    let message = format!(
        "the sentence encoder's {} is damaged: {problem}",
        path.display()
    );
    EngineError::new(ErrorKind::ModelDamaged, message)
        .hint("The BERT model all-MiniLM-L6-v2 is meant; `make minilm` fetches it.")
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Case {
        text: String,
        embedding: Vec<f32>,
    }

    /// The expected embeddings come from torch (`tests/golden/make_minilm.py`), one text at a time;
    /// here they share a padded batch.
    #[test]
    fn embeddings_are_those_of_torch() {
        let Some(folder) = std::env::var_os("NER_RETRIEVER_MINILM").map(PathBuf::from) else {
            println!("skipped: needs NER_RETRIEVER_MINILM, the folder that `make minilm` prints");
            return;
        };
        let cases: Vec<Case> =
            serde_json::from_str(include_str!("../tests/golden/minilm.json")).unwrap();
        assert_eq!(cases.len(), 5);
        let encoder = Minilm::load(&folder).unwrap();
        let texts = cases.iter().map(|case| case.text.as_str());
        let found: Vec<Vec<f32>> = encoder.embed(texts).unwrap().to_vec2().unwrap();
        for (found, case) in found.iter().zip(&cases) {
            assert_eq!(found.len(), case.embedding.len());
            for (found, expected) in found.iter().zip(&case.embedding) {
                assert!(
                    (found - expected).abs() < 1e-5,
                    "{found} {expected} {}",
                    case.text
                );
            }
        }
    }

    #[test]
    fn a_folder_without_the_model_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = Minilm::load(folder.path()).err().unwrap();
        assert_eq!(error.kind, ErrorKind::ModelNotFound);
        assert!(error.message.contains("config.json"), "{error}");
        assert!(error.hint.unwrap().contains("make minilm"));
    }

    #[test]
    fn a_damaged_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), "{\"hidden_size\": ").unwrap();
        let error = Minilm::load(folder.path()).err().unwrap();
        assert_eq!(error.kind, ErrorKind::ModelDamaged);
        assert!(error.message.contains("config.json"), "{error}");
    }
}
