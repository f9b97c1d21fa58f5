//! Speed of a whole forward pass, losses included, against the matrix products in it run by the crate `faer` alone: the
//! same shapes and blocks, weights already widened to f32, on the same threads of the same process.
//!
//! `cargo bench -p packhost-model [-- FILTER]`. Per model and thread count, as wall time and as processor time (which holds
//! on a busy machine), each the best of several runs taken by turns: the pass, the products with weights alone, those and
//! the two products of attention, and what share of the pass either takes. The goal is 0.9 for all products. At the end the
//! processor time of a pass that is compared with a reference, and of one that starts from the hidden states before the
//! output projection.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::{path::Path, time::Instant};

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
use packhost_model::{
    Config, Error, Result, Role, TensorMeta, Weights,
    network::{KeepPolicy, Network, ScoreRequest},
};
use packhost_tensor::{DType, Tensor, cpu::Cpu};
use rayon::prelude::*;
use serde_json::{Value, json};

/// Rows that one product has, as in a block of the pass.
const ROWS: usize = 512;
/// Each time is the best of so many.
const REPEATS: usize = 7;

/// A model with random weights.
struct Synthetic {
    config: Config,
    json: Value,
    tensors: Vec<TensorMeta>,
    values: Vec<Tensor>,
}

/// Sizes of a model and of its windows.
struct Shape {
    name: &'static str,
    hidden: usize,
    layers: usize,
    wide: usize,
    heads: usize,
    key_heads: usize,
    vocabulary: usize,
    window: usize,
    windows: usize,
}

const SHAPES: [Shape; 4] = [
    Shape {
        name: "large",
        hidden: 1024,
        layers: 8,
        wide: 2816,
        heads: 16,
        key_heads: 8,
        vocabulary: 8192,
        window: 512,
        windows: 4,
    },
    Shape {
        name: "long",
        hidden: 1024,
        layers: 2,
        wide: 2816,
        heads: 16,
        key_heads: 8,
        vocabulary: 8192,
        window: 2048,
        windows: 4,
    },
    Shape {
        name: "wt2",
        hidden: 256,
        layers: 6,
        wide: 704,
        heads: 8,
        key_heads: 4,
        vocabulary: 4096,
        window: 512,
        windows: 8,
    },
    Shape {
        name: "demo",
        hidden: 160,
        layers: 4,
        wide: 432,
        heads: 5,
        key_heads: 5,
        vocabulary: 1024,
        window: 128,
        windows: 160,
    },
];

impl Shape {
    fn dim(&self) -> usize {
        self.hidden / self.heads
    }

    /// `[out, in]` of every projection that a token passes through, with how often.
    fn products(&self) -> Vec<([usize; 2], usize)> {
        let keys = self.key_heads * self.dim();
        vec![
            ([self.hidden, self.hidden], 2 * self.layers),
            ([keys, self.hidden], 2 * self.layers),
            ([self.wide, self.hidden], 2 * self.layers),
            ([self.hidden, self.wide], self.layers),
            ([self.vocabulary, self.hidden], 1),
        ]
    }

    fn tokens(&self) -> usize {
        self.window * self.windows
    }

    fn model(&self) -> Synthetic {
        let json = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": self.hidden,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads, "num_key_value_heads": self.key_heads,
            "intermediate_size": self.wide, "vocab_size": self.vocabulary, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
            "tie_word_embeddings": false
        });
        let keys = self.key_heads * self.dim();
        let mut shapes = vec![
            (
                "model.embed_tokens.weight".to_owned(),
                vec![self.vocabulary, self.hidden],
            ),
            ("model.norm.weight".to_owned(), vec![self.hidden]),
            (
                "lm_head.weight".to_owned(),
                vec![self.vocabulary, self.hidden],
            ),
        ];
        for layer in 0..self.layers {
            for (name, shape) in [
                ("input_layernorm", vec![self.hidden]),
                ("self_attn.q_proj", vec![self.hidden, self.hidden]),
                ("self_attn.k_proj", vec![keys, self.hidden]),
                ("self_attn.v_proj", vec![keys, self.hidden]),
                ("self_attn.o_proj", vec![self.hidden, self.hidden]),
                ("post_attention_layernorm", vec![self.hidden]),
                ("mlp.gate_proj", vec![self.wide, self.hidden]),
                ("mlp.up_proj", vec![self.wide, self.hidden]),
                ("mlp.down_proj", vec![self.hidden, self.wide]),
            ] {
                shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
            }
        }
        let mut tensors = Vec::new();
        let mut values = Vec::new();
        for (seed, (name, shape)) in shapes.into_iter().enumerate() {
            let count = shape.iter().product();
            let scale = if shape.len() == 1 { 1.0 } else { 0.05 };
            values.push(
                Tensor::from_f32(DType::BF16, shape.clone(), &noise(seed, count, scale)).unwrap(),
            );
            let (role, layer, expert, tied_to) = (Role::Other, None, None, None);
            tensors.push(TensorMeta {
                name,
                shape,
                dtype: DType::BF16,
                role,
                layer,
                expert,
                tied_to,
            });
        }
        let config = Config::parse(&json, Path::new("config.json")).unwrap();
        Synthetic {
            config,
            json,
            tensors,
            values,
        }
    }
}

impl Weights for Synthetic {
    fn config(&self) -> &Config {
        &self.config
    }

    fn config_json(&self) -> &Value {
        &self.json
    }

    fn tensors(&self) -> &[TensorMeta] {
        &self.tensors
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        let at = self.tensors.iter().position(|meta| meta.name == name);
        let at = at.ok_or_else(|| Error::Score {
            problem: format!("no tensor {name}"),
        })?;
        Ok(self.values[at].clone())
    }
}

fn noise(seed: usize, count: usize, scale: f32) -> Vec<f32> {
    let mut state = seed as u64 ^ 0x9e37_79b9_7f4a_7c15;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / 8_388_608.0 - 1.0
    };
    (0..count).map(|_| next() * scale).collect()
}

/// Wall time and processor time of `work`, in seconds.
fn seconds(work: impl FnOnce()) -> [f64; 2] {
    let start = (Instant::now(), processor_seconds());
    work();
    [
        start.0.elapsed().as_secs_f64(),
        processor_seconds() - start.1,
    ]
}

/// Time that this process's threads have run so far: unlike wall time it can be compared on a busy machine. NaN where
/// the system does not tell.
fn processor_seconds() -> f64 {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else {
        return f64::NAN;
    };
    let nanoseconds = |thread: std::io::Result<std::fs::DirEntry>| -> Option<f64> {
        let text = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse().ok()
    };
    threads.filter_map(nanoseconds).sum::<f64>() / 1e9
}

/// The products of causal attention over all windows by `faer` alone: for each head, blocks of 96 queries with all keys
/// up to the last of them.
fn attention_products(shape: &Shape, input: &[f32]) {
    const QUERIES: usize = 96;
    let (dim, stride) = (
        shape.dim(),
        (shape.heads + 2 * shape.key_heads) * shape.dim(),
    );
    (0..shape.windows)
        .into_par_iter()
        .with_max_len(1)
        .for_each_init(
            || {
                (
                    vec![0.0f32; QUERIES * shape.window],
                    vec![0.0f32; QUERIES * dim],
                )
            },
            |(scores, sums), _| {
                for head in 0..shape.heads * shape.layers {
                    let at = head % shape.heads * dim;
                    let part = |first: usize, rows: usize| {
                        let data = &input[first * stride + at..];
                        MatRef::from_row_major_slice_with_stride(data, rows, dim, stride)
                    };
                    for first in (0..shape.window).step_by(QUERIES) {
                        let count = QUERIES.min(shape.window - first);
                        let keys = first + count;
                        let s = MatMut::from_column_major_slice_mut(
                            &mut scores[..count * keys],
                            count,
                            keys,
                        );
                        matmul(
                            s,
                            Accum::Replace,
                            part(first, count),
                            part(0, keys).transpose(),
                            1.0,
                            Par::Seq,
                        );
                        let s =
                            MatRef::from_column_major_slice(&scores[..count * keys], count, keys);
                        let o = MatMut::from_column_major_slice_mut(
                            &mut sums[..count * dim],
                            count,
                            dim,
                        );
                        matmul(o, Accum::Replace, s, part(0, keys), 1.0, Par::Seq);
                    }
                }
            },
        );
}

/// All products with weights of a pass by `faer` alone, block by block over the pool.
fn products(shape: &Shape, weights: &[(Vec<f32>, [usize; 2], usize)], input: &[f32]) {
    (0..shape.tokens() / ROWS)
        .into_par_iter()
        .with_max_len(1)
        .for_each_init(
            || vec![0.0f32; ROWS * shape.vocabulary.max(shape.wide)],
            |out, _| {
                for (weight, [n, k], count) in weights {
                    for _ in 0..*count {
                        let x = MatRef::from_row_major_slice(&input[..ROWS * k], ROWS, *k);
                        let w = MatRef::from_row_major_slice(weight, *n, *k);
                        let y = MatMut::from_row_major_slice_mut(&mut out[..ROWS * n], ROWS, *n);
                        matmul(y, Accum::Replace, x, w.transpose(), 1.0, Par::Seq);
                    }
                }
            },
        );
}

fn main() {
    let filter = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with("--"))
        .unwrap_or_default();
    println!(
        "model threads   tokens/s  | wall s: pass  weights      all   ratio   ratio | processor s: pass  weights      all   \
         ratio   ratio  compared  resumed"
    );
    for shape in SHAPES.iter().filter(|shape| shape.name.contains(&filter)) {
        let network = Network::new(&shape.model()).unwrap();
        let ids: Vec<Vec<u32>> = (0..shape.windows)
            .map(|window| {
                (0..shape.window)
                    .map(|at| ((window * 7919 + at * 104_729) % shape.vocabulary) as u32)
                    .collect()
            })
            .collect();
        let windows: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
        let weights: Vec<_> = shape
            .products()
            .into_iter()
            .map(|([n, k], count)| (noise(n, n * k, 0.05), [n, k], count))
            .collect();
        let stride = (shape.heads + 2 * shape.key_heads) * shape.dim();
        let count = (ROWS * shape.hidden.max(shape.wide)).max(shape.window * stride);
        let input = noise(1, count, 1.0);
        for threads in [1, 2] {
            let cpu = Cpu::new(Some(threads)).unwrap();
            let plain = ScoreRequest {
                windows: &windows,
                ..Default::default()
            };
            let keep = KeepPolicy {
                reference: true,
                hidden_bytes: 1 << 30,
            };
            let kept = cpu
                .install(|| {
                    network.score(&ScoreRequest {
                        keep: Some(keep),
                        ..plain
                    })
                })
                .unwrap();
            let mut best = [[f64::INFINITY; 2]; 5];
            for _ in 0..REPEATS {
                let compared = ScoreRequest {
                    reference: kept.reference.as_ref(),
                    ..plain
                };
                let resumed = ScoreRequest {
                    start: kept.hidden.as_ref(),
                    ..plain
                };
                let times = [
                    seconds(|| drop(cpu.install(|| network.score(&plain)).unwrap())),
                    seconds(|| cpu.install(|| products(shape, &weights, &input))),
                    seconds(|| cpu.install(|| attention_products(shape, &input))),
                    seconds(|| drop(cpu.install(|| network.score(&compared)).unwrap())),
                    seconds(|| drop(cpu.install(|| network.score(&resumed)).unwrap())),
                ];
                for (best, time) in best.iter_mut().flatten().zip(times.iter().flatten()) {
                    *best = best.min(*time);
                }
            }
            let [pass, weights, attention, compared, resumed] = best;
            let columns = |kind: usize| {
                let (pass, weights) = (pass[kind], weights[kind]);
                let all = weights + attention[kind];
                format!(
                    "{pass:>9.4}{weights:>9.4}{all:>9.4}{:>8.3}{:>8.3}",
                    weights / pass,
                    all / pass
                )
            };
            println!(
                "{:<8}{threads:>5}{:>11.0}  |     {} |          {}{:>10.4}{:>9.4}",
                shape.name,
                shape.tokens() as f64 / pass[0],
                columns(0),
                columns(1),
                compared[1],
                resumed[1],
            );
        }
    }
}
