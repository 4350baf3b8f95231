//! A needle in 131,072 tokens: a token planted anywhere is found through the paged cache, with the logits of
//! attention over contiguous keys.
//!
//! The model has one layer, one key-value head and a width of 64, and its weights are laid out for the search.
//! Needles are marked in some channels and the question in others; its query is that of the needles' mark, in
//! channels that RoPE hardly turns at this base. So it meets the needle's key alone, and the value that this brings
//! back, with the noise in the needle's other channels, names it.
#![allow(clippy::unwrap_used)]

use tritter_model::cache::{CacheFormat, CacheKind};
use tritter_model::config::{Config, Family};
use tritter_model::error::Result;
use tritter_model::presets::preset;
use tritter_model::session::SessionPlan;
use tritter_model::source::{Source, Stored, width};
use tritter_model::tensor_names::TensorSpec;
use tritter_model::weights::{Dense, Form, Linear, Matrix, Model};
use tritter_runtime::ops::attention::{self, Mask};
use tritter_runtime::ops::{add, copy, gate, gather, matmul_nt, rms_norm, rope};
use tritter_runtime::random::Random;
use tritter_runtime::{DType, Device, Graph, Tensor, Value, cpu};

const WIDTH: usize = 64;
/// Ordinary tokens, then needles, then the question.
const ORDINARY: u32 = 200;
const NEEDLES: u32 = 8;
const VOCAB: usize = (ORDINARY + NEEDLES) as usize + 1;
const QUESTION: u32 = ORDINARY + NEEDLES;
/// Channels that mark needles: the slowest pairs of RoPE.
const NEEDLE: [usize; 8] = [28, 29, 30, 31, 60, 61, 62, 63];
/// Channels that mark the question.
const ASKS: [usize; 8] = [24, 25, 26, 27, 56, 57, 58, 59];

/// Largest difference of logits, relative to the largest: f32 sums over 131,072 keys in other orders.
const BOUND: f32 = 1e-4;

struct Laid(u64);

impl Source for Laid {
    fn stored(&self, _: &TensorSpec) -> Result<Stored> {
        Ok(Stored::Floats(DType::F32))
    }

    fn floats(&self, spec: &TensorSpec, first: usize, out: &mut [f32]) -> Result<()> {
        for (i, row) in out.chunks_mut(width(spec)).enumerate() {
            let n = first + i;
            let mut random = Random::new(self.0 ^ (n as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let diagonal = |row: &mut [f32], value: f32| {
                row.fill(0.0);
                row[n] = value;
            };
            match spec.name.rsplit('.').nth(1).unwrap_or_default() {
                "embed_tokens" => row.iter_mut().enumerate().for_each(|(c, value)| {
                    let (noise, token) = (random.normal() as f32, n as u32);
                    *value = match (NEEDLE.contains(&c), ASKS.contains(&c)) {
                        (true, _) => {
                            if (ORDINARY..QUESTION).contains(&token) {
                                3.0
                            } else {
                                0.0
                            }
                        }
                        (_, true) => {
                            if token == QUESTION {
                                3.0
                            } else {
                                0.0
                            }
                        }
                        _ => {
                            if token == QUESTION {
                                0.01 * noise
                            } else {
                                noise
                            }
                        }
                    };
                }),
                "q_proj" => {
                    row.fill(0.0);
                    NEEDLE.iter().zip(ASKS).filter(|(out, _)| **out == n).for_each(|(_, from)| row[from] = 4.0);
                }
                "k_proj" | "v_proj" => diagonal(row, 1.0),
                "o_proj" => diagonal(row, 4.0),
                "gate_proj" | "up_proj" | "down_proj" => row.fill_with(|| 0.02 * random.normal() as f32),
                _ => row.fill(1.0),
            }
        }
        Ok(())
    }

    fn codes(&self, _: &TensorSpec, _: usize, out: &mut [u32]) -> Result<()> {
        out.fill(0);
        Ok(())
    }
}

fn model(device: &Device, seed: u64, positions: usize) -> Model {
    let mut config: Config = preset("test").unwrap().config(Family::Llama, Some(VOCAB), Some(positions));
    (config.num_layers, config.hidden_size, config.intermediate_size) = (1, WIDTH, WIDTH);
    (config.num_heads, config.num_kv_heads, config.head_dim) = (1, 1, WIDTH);
    (config.rope.theta, config.tie_embeddings) = (1e12, true);
    let model = Model::new(&config, Form::Run, positions);
    model.load(device, &Laid(seed)).unwrap();
    model
}

/// A text of ordinary tokens with a needle somewhere, which ends with the question; and the needle.
fn text(random: &mut Random, tokens: usize) -> (Vec<u32>, u32) {
    let mut ids: Vec<u32> = (0..tokens).map(|_| random.below(u64::from(ORDINARY)) as u32).collect();
    let needle = ORDINARY + random.below(u64::from(NEEDLES)) as u32;
    ids[random.below(tokens as u64 - 1) as usize] = needle;
    ids[tokens - 1] = QUESTION;
    (ids, needle)
}

/// The matrix of a projection that is dense.
fn values(linear: &Linear) -> &Tensor {
    match &linear.matrix {
        Matrix::Dense(Dense { values, .. }) => values,
        _ => unreachable!("the model is dense"),
    }
}

/// Logits after the last token: keys and values of all tokens side by side, one query, no cache and no pages.
fn contiguous(device: &Device, model: &Model, ids: &[u32]) -> Vec<f32> {
    let (t, layer, eps) = (ids.len(), &model.layers[0], model.config.rms_norm_eps as f32);
    let input = |name: &str, shape: &[usize]| Tensor::input(name, shape, DType::U32);
    let (tokens, positions) = (input("ids", &[t]), input("positions", &[t]));
    let (last, span) = (input("last", &[1]), input("span", &[1, 2]));
    let mut graph = Graph::new("contiguous");
    let g = &mut graph;
    let product = |g: &mut Graph, x: Value, w: &Tensor| {
        let w = g.bind(w);
        matmul_nt::matmul_nt(g, x, w).unwrap()
    };
    let norm = |g: &mut Graph, x: Value, w: &Tensor| {
        let w = g.bind(w);
        rms_norm::rms_norm(g, x, w, eps).unwrap()
    };
    let turned = |g: &mut Graph, x: Value, positions: &Tensor| {
        let rows = g.spec(x).rows();
        let x = g.view(x, [rows, 1, WIDTH]).unwrap();
        let [positions, coarse, fine] = [positions, &model.rope.coarse, &model.rope.fine].map(|t| g.bind(t));
        rope::rope(g, x, positions, coarse, fine).unwrap()
    };
    let [table, tokens_in, last_in, span_in] =
        [&model.embedding.values, &tokens, &last, &span].map(|tensor| g.bind(tensor));
    let x = gather::gather(g, table, tokens_in, DType::F32).unwrap();
    let n = norm(g, x, &layer.attn_norm);
    let (k, v) = (product(g, n, values(&layer.k)), product(g, n, values(&layer.v)));
    let k = turned(g, k, &positions);
    let v = g.view(v, [t, 1, WIDTH]).unwrap();
    let (x, n) =
        (gather::gather(g, x, last_in, DType::F32).unwrap(), gather::gather(g, n, last_in, DType::F32).unwrap());
    let q = product(g, n, values(&layer.q));
    let q = turned(g, q, &last);
    let o = attention::attention(g, [q, k, v], span_in, Mask::WHOLE, model.config.attention_scale()).unwrap();
    let o = g.view(o, [1, WIDTH]).unwrap();
    let o = product(g, o, values(&layer.o));
    let h = add::add(g, x, o).unwrap();
    let n = norm(g, h, &layer.ffn_norm);
    let (gated, up) = (product(g, n, values(&layer.gate)), product(g, n, values(&layer.up)));
    let a = gate::gate(g, gate::Activation::Silu, gated, up).unwrap();
    let y = product(g, a, values(&layer.down));
    let h = add::add(g, h, y).unwrap();
    let x = norm(g, h, &model.norm);
    let y = product(g, x, &model.embedding.values);
    let logits = Tensor::state("logits", [1, VOCAB], DType::F32);
    let target = g.bind(&logits);
    copy::copy_into(g, y, target).unwrap();
    let program = device.prepare(&graph).unwrap();
    let end = t as u32 - 1;
    device.write(&tokens, ids).unwrap();
    device.write(&positions, &(0..=end).collect::<Vec<u32>>()).unwrap();
    device.write(&last, &[end]).unwrap();
    device.write(&span, &[0, end]).unwrap();
    program.submit().unwrap();
    device.read(&logits).unwrap()
}

fn paged(device: &Device, model: &Model, kind: CacheKind, ids: &[u32]) -> Vec<f32> {
    let mut session = SessionPlan::new(model, ids.len(), CacheFormat::from(kind)).unwrap().open(device).unwrap();
    session.prefill(ids).unwrap();
    session.logits().unwrap()
}

fn likeliest(logits: &[f32]) -> u32 {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32
}

#[track_caller]
fn close(a: &[f32], b: &[f32], bound: f32, what: &str) {
    let largest = a.iter().fold(0f32, |m, v| m.max(v.abs()));
    let error = a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / largest;
    assert!(error <= bound && b.iter().all(|v| v.is_finite()), "{what}: logits differ by {error} of the largest");
}

fn seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap().as_nanos() as u64
}

#[test]
fn a_needle_in_128k_tokens_is_found_through_the_paged_cache() {
    let (seed, device) = (seed(), cpu::open());
    let (ids, needle) = text(&mut Random::new(seed), 131_072);
    let model = model(&device, seed, ids.len());
    let expected = contiguous(&device, &model, &ids);
    assert_eq!(likeliest(&expected), needle, "seed {seed}");
    close(&expected, &paged(&device, &model, CacheKind::F32, &ids), BOUND, &format!("seed {seed}"));
}

#[test]
fn a_needle_is_found_in_every_cache_type() {
    let (seed, device) = (seed(), cpu::open());
    let (ids, needle) = text(&mut Random::new(seed), 8_192);
    let model = model(&device, seed, ids.len());
    for kind in CacheKind::ALL {
        assert_eq!(likeliest(&paged(&device, &model, kind, &ids)), needle, "{}, seed {seed}", kind.name());
    }
}
