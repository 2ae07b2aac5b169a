use candle_core::{DType, Device, Tensor};
use ner_retriever_engine::{
    corpus,
    model::{
        Checkpoint,
        llama::{Continuation, Packed, Wanted},
    },
    representation::MAX_SUFFIX,
    text::{char_starts, token_at},
};
use std::collections::HashMap;
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let a: Vec<String> = std::env::args().skip(1).collect();
    let ck = Checkpoint::open(a[0].as_ref(), &Device::Cpu).map_err(|e| e.to_string())?;
    let model = ck.load(30).map_err(|e| e.to_string())?;
    let out = &a[2];
    let first = model.tokenizer.first();
    let vb: Vec<usize> = (20..30).collect();
    let mut tensors: HashMap<String, Tensor> = HashMap::new();
    let sel = |t: &Tensor, rows: &[u32]| -> candle_core::Result<Tensor> {
        t.index_select(&Tensor::new(rows, &Device::Cpu)?, 0)?
            .to_dtype(DType::F16)
    };
    if a[1] == "types" {
        let lines: Vec<String> = serde_json::from_str(&std::fs::read_to_string(&a[3])?)?;
        let mut parts: Vec<Vec<Tensor>> = vec![vec![]; vb.len()];
        for chunk in lines.chunks(128) {
            let seqs: Vec<Vec<u32>> = chunk
                .iter()
                .map(|l| {
                    let ids = model.tokenizer.encode(l).unwrap().ids;
                    std::iter::once(first).chain(ids).collect()
                })
                .collect();
            let packed = Packed::new(seqs.iter().map(Vec::as_slice));
            let act = model.llama.forward(
                &packed,
                &Wanted {
                    values: vb.clone(),
                    ..Default::default()
                },
            )?;
            let mut o = 0;
            let rows: Vec<u32> = seqs
                .iter()
                .map(|s| {
                    o += s.len();
                    o as u32 - 1
                })
                .collect();
            for (i, v) in act.values.iter().enumerate() {
                parts[i].push(sel(v, &rows)?);
            }
        }
        for (i, p) in parts.iter().enumerate() {
            tensors.insert(format!("v{}", vb[i]), Tensor::cat(p, 0)?);
        }
        candle_core::safetensors::save(&tensors, out)?;
        return Ok(());
    }
    let limit: usize = a[3].parse()?;
    let lower: f64 = a[4].parse()?;
    let forms: Vec<String> = a[5..].to_vec();
    let docs = corpus::read(a[1].as_ref()).map_err(|e| e.to_string())?;
    let mut docs = corpus::sample(docs, Some(limit), 1);
    corpus::lower_case(&mut docs, lower, 1);
    let mut se: Vec<Vec<Tensor>> = vec![vec![]; vb.len()];
    let mut sv: Vec<Vec<Vec<Tensor>>> = vec![vec![vec![]; vb.len()]; forms.len()];
    let mut fin: Vec<Vec<Tensor>> = vec![vec![]; forms.len()];
    let mut meta = Vec::new();
    let t0 = std::time::Instant::now();
    for (c, chunk) in docs.chunks(48).enumerate() {
        let mut seqs = vec![];
        let mut ends = vec![];
        let mut prefixes = vec![];
        let mut ments = vec![];
        let mut off = 0;
        for (d, doc) in chunk.iter().enumerate() {
            let enc = model
                .tokenizer
                .encode(&doc.text)
                .map_err(|e| e.to_string())?;
            let n = enc.ids.len().min(500);
            let st = char_starts(&doc.text);
            for m in &doc.mentions {
                let b = st[m.span.start as usize]..st[m.span.end as usize];
                let e = token_at(&enc, b.end - 1).unwrap_or(n - 1).min(n - 1);
                ends.push((off + 1 + e) as u32);
                prefixes.push(off..off + n + 1);
                ments.push(doc.text[b].to_owned());
                meta.push((c * 48 + d, m.kind.clone()));
            }
            seqs.push(
                std::iter::once(first)
                    .chain(enc.ids[..n].iter().copied())
                    .collect::<Vec<u32>>(),
            );
            off += n + 1;
        }
        let packed = Packed::new(seqs.iter().map(Vec::as_slice));
        let act = model.llama.forward(
            &packed,
            &Wanted {
                values: vb.clone(),
                cached_blocks: 30,
                ..Default::default()
            },
        )?;
        for (i, v) in act.values.iter().enumerate() {
            se[i].push(sel(v, &ends)?);
        }
        for (f, form) in forms.iter().enumerate() {
            let suf: Vec<Vec<u32>> = ments
                .iter()
                .map(|m| {
                    let mut ids = model
                        .tokenizer
                        .encode(&form.replace("\\n", "\n").replace("{mention}", m))
                        .unwrap()
                        .ids;
                    ids.split_off(ids.len().saturating_sub(MAX_SUFFIX))
                })
                .collect();
            let cont = Continuation {
                packed: Packed::new(suf.iter().map(Vec::as_slice)),
                prefixes: prefixes.clone(),
                cache: &act.cache,
            };
            let ex = model.llama.extend(
                &cont,
                &Wanted {
                    values: vb.clone(),
                    hidden: vec![30],
                    ..Default::default()
                },
            )?;
            let mut o = 0;
            let rows: Vec<u32> = suf
                .iter()
                .map(|s| {
                    o += s.len();
                    o as u32 - 1
                })
                .collect();
            for (i, v) in ex.values.iter().enumerate() {
                sv[f][i].push(sel(v, &rows)?);
            }
            fin[f].push(sel(&ex.hidden[0], &rows)?);
        }
        if c % 10 == 0 {
            eprintln!("{} {:.0}s", c * 48, t0.elapsed().as_secs_f64());
        }
    }
    for (i, p) in se.iter().enumerate() {
        tensors.insert(format!("end{}", vb[i]), Tensor::cat(p, 0)?);
    }
    for f in 0..forms.len() {
        for (i, p) in sv[f].iter().enumerate() {
            tensors.insert(format!("suf{f}_{}", vb[i]), Tensor::cat(p, 0)?);
        }
        tensors.insert(format!("fin{f}"), Tensor::cat(&fin[f], 0)?);
    }
    candle_core::safetensors::save(&tensors, out)?;
    std::fs::write(format!("{out}.json"), serde_json::to_string(&meta)?)?;
    Ok(())
}
