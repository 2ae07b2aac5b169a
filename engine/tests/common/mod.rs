//! A small real checkpoint and heads for it.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor, safetensors};
use ner_retriever_engine::{
    head::{
        BaseModelReference, DESCRIPTION, DetectorDescription, HeadDescription,
        ProjectionDescription,
    },
    mentions::candidates::MAX_WORDS,
    model::Checkpoint,
    projection::ProjectionKind,
    representation::Representation,
};

/// Width of the V vectors of [`checkpoint`].
pub const KV_DIM: usize = 32;
const UNITS: usize = 8;

/// A checkpoint of the golden files.
pub struct Golden {
    pub name: &'static str,
    pub kv_dim: usize,
    pub hidden_size: usize,
}

pub const LLAMA3: Golden = Golden {
    name: "tiny_llama3",
    kv_dim: KV_DIM,
    hidden_size: 64,
};

impl Golden {
    pub fn folder(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/golden")
            .join(self.name)
    }
}

/// The Llama-3-style checkpoint of the golden files.
pub fn checkpoint() -> PathBuf {
    LLAMA3.folder()
}

/// Writes a head for [`checkpoint`] whose probe takes every span with a probability that depends on
/// its tokens, and whose projection changes nothing but the vectors' length.
pub fn write_head(folder: &Path) -> HeadDescription {
    let span_end = Representation::SpanEnd {
        block: 3,
        query_form: "{type}".to_owned(),
    };
    write_head_of(folder, vec![span_end])
}

/// [`write_head`] with other representations.
pub fn write_head_of(folder: &Path, representations: Vec<Representation>) -> HeadDescription {
    write_head_for(&LLAMA3, folder, representations)
}

/// [`write_head`] with other representations of another checkpoint.
pub fn write_head_for(
    golden: &Golden,
    folder: &Path,
    representations: Vec<Representation>,
) -> HeadDescription {
    let dims = representations.len() * golden.kv_dim;
    fs::create_dir_all(folder).unwrap();
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let waves = |rows: usize, columns: usize| {
        let values: Vec<f32> = (0..rows * columns).map(|i| (i as f32).sin()).collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
    };
    let save = |tensors: &[(&str, Tensor)], file: &str| {
        let tensors: HashMap<String, Tensor> = tensors
            .iter()
            .map(|(name, t)| ((*name).to_owned(), t.clone()))
            .collect();
        safetensors::save(&tensors, folder.join(file)).unwrap();
    };
    save(
        &[
            ("net.0.weight", zeros(&[4, dims])),
            ("net.0.bias", zeros(&[4])),
            ("net.3.weight", zeros(&[dims, 4])),
            ("net.3.bias", zeros(&[dims])),
            ("center.mentions", zeros(&[dims])),
            ("center.types", zeros(&[dims])),
        ],
        "projection.safetensors",
    );
    save(
        &[
            ("mean", zeros(&[golden.hidden_size])),
            ("scale", (zeros(&[golden.hidden_size]) + 1.0).unwrap()),
            ("tokens", waves(5 * UNITS, golden.hidden_size)),
            ("width", zeros(&[MAX_WORDS, UNITS])),
            ("output", waves(UNITS, 1)),
            ("bias", zeros(&[1])),
        ],
        "mentions.safetensors",
    );
    let hash = Checkpoint::open(&golden.folder(), &Device::Cpu)
        .unwrap()
        .hash()
        .to_owned();
    let description = HeadDescription {
        name: "test".to_owned(),
        base_model: BaseModelReference {
            name: golden.name.to_owned(),
            hash: Some(hash),
        },
        representations,
        projection: ProjectionDescription {
            kind: ProjectionKind::Residual,
            file: "projection.safetensors".to_owned(),
            input_dims: dims,
            dims,
        },
        detector: Some(DetectorDescription {
            block: 2,
            file: "mentions.safetensors".to_owned(),
            threshold: 0.01,
            floor: None,
        }),
        companion: None,
        provenance: serde_json::Value::Null,
    };
    describe(folder, &description);
    description
}

/// Writes a head's description.
pub fn describe(folder: &Path, description: &HeadDescription) {
    let json = serde_json::to_string(description).unwrap();
    fs::write(folder.join(DESCRIPTION), json).unwrap();
}
