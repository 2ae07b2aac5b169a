//! GGUF files made from Hugging Face folders, as llama.cpp's `convert_hf_to_gguf.py` makes them.

use std::{collections::BTreeMap, f64::consts::PI, fs, path::Path};

use candle_core::{
    Device, Tensor,
    quantized::{
        GgmlDType, QTensor,
        gguf_file::{self, Value},
    },
    safetensors,
};
use serde_json::Value as Json;

/// `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

pub type Metadata = BTreeMap<String, Value>;
pub type Tensors = BTreeMap<String, QTensor>;

/// Writes the checkpoint in `folder`, with a change, as a GGUF file whose tokenizer names the
/// pre-tokenizer `pre`.
pub fn convert(
    folder: &Path,
    pre: &str,
    gguf: &Path,
    change: impl FnOnce(&mut Metadata, &mut Tensors),
) {
    let json = |name: &str| -> Json {
        serde_json::from_str(&fs::read_to_string(folder.join(name)).unwrap()).unwrap()
    };
    let config = json("config.json");
    let mut metadata = hyperparameters(&config);
    metadata.extend(tokenizer(&config, &json("tokenizer.json"), pre));
    let mut tensors = tensors(folder, &config);
    change(&mut metadata, &mut tensors);
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(k, v)| (k.as_str(), v)).collect();
    gguf_file::write(&mut fs::File::create(gguf).unwrap(), &metadata, &tensors).unwrap();
}

fn size(config: &Json, key: &str) -> usize {
    config[key].as_u64().unwrap() as usize
}

fn hyperparameters(config: &Json) -> Metadata {
    let architecture = config["model_type"].as_str().unwrap();
    let rope = &config["rope_parameters"]["rope_theta"];
    let theta = rope.as_f64().or(config["rope_theta"].as_f64()).unwrap();
    let mut values = vec![
        ("rope.freq_base", Value::F32(theta as f32)),
        (
            "attention.layer_norm_rms_epsilon",
            Value::F32(config["rms_norm_eps"].as_f64().unwrap() as f32),
        ),
    ];
    for (key, name) in [
        ("block_count", "num_hidden_layers"),
        ("context_length", "max_position_embeddings"),
        ("embedding_length", "hidden_size"),
        ("feed_forward_length", "intermediate_size"),
        ("attention.head_count", "num_attention_heads"),
        ("attention.head_count_kv", "num_key_value_heads"),
    ] {
        values.push((key, Value::U32(size(config, name) as u32)));
    }
    if let Some(head_dim) = config["head_dim"].as_u64() {
        values.push(("attention.key_length", Value::U32(head_dim as u32)));
        values.push(("attention.value_length", Value::U32(head_dim as u32)));
    }
    let name = Value::String(architecture.to_owned());
    let values = values
        .into_iter()
        .map(|(key, value)| (format!("{architecture}.{key}"), value));
    std::iter::once(("general.architecture".to_owned(), name))
        .chain(values)
        .collect()
}

/// Added tokens that are special, or look it, become control tokens; ids without a token are filled.
fn tokenizer(config: &Json, tokenizer: &Json, pre: &str) -> Metadata {
    let mut tokens: Vec<(String, i32)> = (0..size(config, "vocab_size"))
        .map(|id| (format!("[PAD{id}]"), UNUSED))
        .collect();
    for (token, id) in tokenizer["model"]["vocab"].as_object().unwrap() {
        tokens[id.as_u64().unwrap() as usize] = (token.clone(), NORMAL);
    }
    for added in tokenizer["added_tokens"].as_array().unwrap() {
        let token = added["content"].as_str().unwrap();
        let looks_special = token.starts_with("<|") && token.ends_with("|>");
        let control = looks_special || added["special"].as_bool().unwrap();
        let kind = if control { CONTROL } else { USER_DEFINED };
        tokens[size(added, "id")] = (token.to_owned(), kind);
    }
    let merges = tokenizer["model"]["merges"].as_array().unwrap().iter();
    let merges = merges.map(|merge| {
        let pair = merge.as_array().unwrap();
        let part = |index: usize| pair[index].as_str().unwrap();
        Value::String(format!("{} {}", part(0), part(1)))
    });
    let types = tokens.iter().map(|(_, kind)| Value::I32(*kind)).collect();
    let bos = size(config, "bos_token_id") as u32;
    let mut values = vec![
        ("model", Value::String("gpt2".to_owned())),
        ("pre", Value::String(pre.to_owned())),
        ("token_type", Value::Array(types)),
        ("merges", Value::Array(merges.collect())),
        ("bos_token_id", Value::U32(bos)),
    ];
    let tokens = tokens.into_iter().map(|(token, _)| Value::String(token));
    values.push(("tokens", Value::Array(tokens.collect())));
    // Llama 3's files say nothing of it: their pre-tokenizer implies it.
    if pre != "llama-bpe" {
        values.push(("add_bos_token", Value::Bool(false)));
    }
    values
        .into_iter()
        .map(|(key, value)| (format!("tokenizer.ggml.{key}"), value))
        .collect()
}

fn tensors(folder: &Path, config: &Json) -> Tensors {
    let is_llama = config["model_type"] == "llama";
    let mut tensors = BTreeMap::new();
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|e| e != "safetensors") {
            continue;
        }
        for (name, tensor) in safetensors::load(&path, &Device::Cpu).unwrap() {
            let tensor = match name.rsplit('.').nth(1) {
                Some("q_proj") if is_llama => permute(&tensor, size(config, "num_attention_heads")),
                Some("k_proj") if is_llama => permute(&tensor, size(config, "num_key_value_heads")),
                _ => tensor,
            };
            tensors.insert(gguf_name(&name), stored(&tensor));
        }
    }
    if config["rope_scaling"]["rope_type"] == "llama3" {
        let divisors = Tensor::new(rope_freqs(config), &Device::Cpu).unwrap();
        tensors.insert("rope_freqs.weight".to_owned(), stored(&divisors));
    }
    tensors
}

/// Matrices stay bfloat16, vectors become f32.
fn stored(tensor: &Tensor) -> QTensor {
    let matrix = tensor.rank() > 1;
    let kind = if matrix {
        GgmlDType::BF16
    } else {
        GgmlDType::F32
    };
    let tensor = tensor.to_dtype(candle_core::DType::F32).unwrap();
    QTensor::quantize(&tensor, kind).unwrap()
}

/// `LlamaModel.permute`: from rope's halves to its interleaved pairs.
fn permute(weight: &Tensor, heads: usize) -> Tensor {
    let (rows, columns) = weight.dims2().unwrap();
    weight
        .reshape((heads, 2, rows / heads / 2, columns))
        .and_then(|t| t.transpose(1, 2)?.contiguous()?.reshape((rows, columns)))
        .unwrap()
}

/// `LlamaModel.generate_extra_tensors`.
fn rope_freqs(config: &Json) -> Vec<f32> {
    let scaling = |key: &str| config["rope_scaling"][key].as_f64().unwrap();
    let (factor, context) = (
        scaling("factor"),
        scaling("original_max_position_embeddings"),
    );
    let (low, high) = (scaling("low_freq_factor"), scaling("high_freq_factor"));
    let theta = config["rope_theta"].as_f64().unwrap();
    let dim = size(config, "head_dim");
    let divisor = |i: usize| {
        let wavelength = 2.0 * PI * theta.powf(i as f64 / dim as f64);
        if wavelength < context / high {
            1.0
        } else if wavelength > context / low {
            factor
        } else {
            let smooth = (context / wavelength - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    (0..dim).step_by(2).map(|i| divisor(i) as f32).collect()
}

fn gguf_name(name: &str) -> String {
    let (place, part) = match name.strip_prefix("model.layers.") {
        Some(rest) => {
            let (block, part) = rest.split_once('.').unwrap();
            (format!("blk.{block}."), part)
        }
        None => (String::new(), name),
    };
    let (part, kind) = part.rsplit_once('.').unwrap();
    let part = match part {
        "model.embed_tokens" => "token_embd",
        "model.norm" => "output_norm",
        "lm_head" => "output",
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        other => panic!("llama.cpp has no name for {other}"),
    };
    format!("{place}{part}.{kind}")
}
