//! Which base model this is: a hash of what is cheap to read.

use sha2::{Digest, Sha256};

use super::weights::Weights;
use crate::{error::Result, tokenizer::TextTokenizer};

/// SHA-256 (64 hex digits) of the configuration, the tokenizer, the tensors' names, shapes and
/// types, and a sample of the bytes of each tensor. Reading gigabytes of weights at every load
/// would cost more than the load itself.
///
/// # Errors
/// `ModelDamaged` when the files end before the tensors do.
pub fn hash(weights: &Weights, tokenizer: &TextTokenizer) -> Result<String> {
    let mut hasher = Sha256::new();
    hasher.update(format!("{}\n", weights.config().identity()));
    hasher.update(tokenizer.identity());
    weights.sample(&mut |bytes| hasher.update(bytes))?;
    Ok(hex(&hasher.finalize()))
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
