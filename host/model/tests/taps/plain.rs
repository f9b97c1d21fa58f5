//! The definition: a forward pass in f64, one window at a time, and the statistics of what its modules give.

use std::collections::BTreeMap;

use packhost_model::Weights;

use crate::PADDING;

/// One window's rows of one module: `None` for rows that an expert does not serve.
pub type Rows = Vec<Option<Vec<f64>>>;

/// A forward pass by the definition, in f64, one window at a time, `rows` rows of which the first `tokens.len()` are tokens.
pub struct Plain<'a> {
    weights: &'a dyn Weights,
    outputs: BTreeMap<String, Rows>,
}

impl Plain<'_> {
    fn tensor(&self, name: &str) -> Vec<f64> {
        let tensor = self.weights.tensor(name).expect(name);
        tensor.to_f32().iter().map(|v| f64::from(*v)).collect()
    }

    fn project(&self, module: &str, x: &[f64]) -> Vec<f64> {
        let weight = self.tensor(&format!("{module}.weight"));
        let mut out: Vec<f64> = weight
            .chunks(x.len())
            .map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum())
            .collect();
        let bias = format!("{module}.bias");
        if self.weights.meta(&bias).is_some() {
            for (out, bias) in out.iter_mut().zip(self.tensor(&bias)) {
                *out += bias;
            }
        }
        out
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let weight = self.tensor(name);
        let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + self.weights.config().rms_norm_eps).sqrt();
        x.iter().zip(weight).map(|(x, w)| x * scale * w).collect()
    }

    /// The module on every row.
    fn dense(&mut self, module: &str, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let out: Vec<Vec<f64>> = x.iter().map(|x| self.project(module, x)).collect();
        let rows = out.iter().cloned().map(Some).collect();
        self.outputs.insert(module.into(), rows);
        out
    }

    fn turn(&self, head: &mut [f64], position: usize) {
        let half = head.len() / 2;
        for i in 0..half {
            let frequency = self
                .weights
                .config()
                .rope_theta
                .powf(-2.0 * i as f64 / head.len() as f64);
            // The frequencies are f32 numbers, and so are the angles.
            let angle = f64::from(position as f32 * frequency as f32);
            let (a, b) = (head[i], head[i + half]);
            head[i] = a * angle.cos() - b * angle.sin();
            head[i + half] = b * angle.cos() + a * angle.sin();
        }
    }

    pub fn run(weights: &dyn Weights, tokens: &[u32], rows: usize) -> BTreeMap<String, Rows> {
        let mut plain = Plain {
            weights,
            outputs: BTreeMap::new(),
        };
        let config = weights.config().clone();
        let (dim, heads) = (config.head_dim, config.num_attention_heads);
        let group = heads / config.num_key_value_heads;
        let table = plain.tensor("model.embed_tokens.weight");
        let mut hidden: Vec<Vec<f64>> = (0..rows)
            .map(|row| {
                let token = *tokens.get(row).unwrap_or(&PADDING.token) as usize;
                table[token * config.hidden_size..(token + 1) * config.hidden_size].to_vec()
            })
            .collect();
        let embedded = hidden.iter().cloned().map(Some).collect();
        plain.outputs.insert("model.embed_tokens".into(), embedded);
        for layer in 0..config.num_hidden_layers {
            let prefix = format!("model.layers.{layer}");
            let attention = format!("{prefix}.self_attn");
            let normed = |plain: &Plain<'_>, name: &str, hidden: &[Vec<f64>]| -> Vec<Vec<f64>> {
                let name = format!("{prefix}.{name}.weight");
                hidden.iter().map(|row| plain.norm(&name, row)).collect()
            };
            let x = normed(&plain, "input_layernorm", &hidden);
            let mut q = plain.dense(&format!("{attention}.q_proj"), &x);
            let mut k = plain.dense(&format!("{attention}.k_proj"), &x);
            let v = plain.dense(&format!("{attention}.v_proj"), &x);
            for (all, name) in [(&mut q, "q_norm"), (&mut k, "k_norm")] {
                for (position, row) in all.iter_mut().enumerate() {
                    for head in row.chunks_mut(dim) {
                        if config.query_key_norm {
                            let name = format!("{attention}.{name}.weight");
                            let normed = plain.norm(&name, head);
                            head.copy_from_slice(&normed);
                        }
                        plain.turn(head, position);
                    }
                }
            }
            let context: Vec<Vec<f64>> = (0..rows)
                .map(|row| {
                    let reach = config.window(layer).unwrap_or(rows);
                    let seen = (row + 1).saturating_sub(reach)..(row + 1).min(tokens.len());
                    (0..heads)
                        .flat_map(|head| {
                            let (at, kv) = (head * dim, head / group * dim);
                            let scores: Vec<f64> = seen
                                .clone()
                                .map(|key| {
                                    let dot: f64 =
                                        (0..dim).map(|i| q[row][at + i] * k[key][kv + i]).sum();
                                    (dot / (dim as f64).sqrt()).exp()
                                })
                                .collect();
                            let total: f64 = scores.iter().sum();
                            let (seen, v) = (seen.clone(), &v);
                            (0..dim)
                                .map(|i| {
                                    let each = seen.clone().zip(&scores);
                                    let sum: f64 = each.map(|(key, s)| s * v[key][kv + i]).sum();
                                    if total == 0.0 { 0.0 } else { sum / total }
                                })
                                .collect::<Vec<f64>>()
                        })
                        .collect()
                })
                .collect();
            let out = plain.dense(&format!("{attention}.o_proj"), &context);
            add(&mut hidden, &out);
            let x = normed(&plain, "post_attention_layernorm", &hidden);
            if config.num_local_experts == 0 {
                let mlp = format!("{prefix}.mlp");
                let gate = plain.dense(&format!("{mlp}.gate_proj"), &x);
                let up = plain.dense(&format!("{mlp}.up_proj"), &x);
                let wide: Vec<Vec<f64>> = gate.iter().zip(&up).map(|(g, u)| silu(g, u)).collect();
                let out = plain.dense(&format!("{mlp}.down_proj"), &wide);
                add(&mut hidden, &out);
            } else {
                plain.experts(&prefix, &x, &mut hidden);
            }
        }
        plain.outputs
    }

    fn experts(&mut self, prefix: &str, x: &[Vec<f64>], hidden: &mut [Vec<f64>]) {
        let config = self.weights.config().clone();
        let block = format!("{prefix}.block_sparse_moe");
        let logits = self.dense(&format!("{block}.gate"), x);
        for expert in 0..config.num_local_experts {
            let mut seen: [Rows; 3] = [vec![], vec![], vec![]];
            for ((x, logits), hidden) in x.iter().zip(&logits).zip(hidden.iter_mut()) {
                let mut order: Vec<usize> = (0..logits.len()).collect();
                order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
                order.truncate(config.num_experts_per_tok);
                if !order.contains(&expert) {
                    seen.iter_mut().for_each(|rows| rows.push(None));
                    continue;
                }
                let total: f64 = order.iter().map(|e| logits[*e].exp()).sum();
                let module = |name: &str| format!("{block}.experts.{expert}.{name}");
                let gate = self.project(&module("w1"), x);
                let up = self.project(&module("w3"), x);
                let down = self.project(&module("w2"), &silu(&gate, &up));
                for (hidden, down) in hidden.iter_mut().zip(&down) {
                    *hidden += logits[expert].exp() / total * down;
                }
                for (rows, row) in seen.iter_mut().zip([gate, up, down]) {
                    rows.push(Some(row));
                }
            }
            for (name, rows) in ["w1", "w3", "w2"].into_iter().zip(seen) {
                let module = format!("{block}.experts.{expert}.{name}");
                self.outputs.insert(module, rows);
            }
        }
    }
}

fn add(hidden: &mut [Vec<f64>], out: &[Vec<f64>]) {
    for (hidden, out) in hidden.iter_mut().flatten().zip(out.iter().flatten()) {
        *hidden += out;
    }
}

fn silu(gate: &[f64], up: &[f64]) -> Vec<f64> {
    let each = gate.iter().zip(up);
    each.map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect()
}

/// Three power iterations from ones on the globally standardised rows, over the noise edge.
pub fn risk(rows: &[Vec<f64>]) -> f64 {
    let (m, n) = (rows.len(), rows[0].len());
    let count = (m * n) as f64;
    let mean = rows.iter().flatten().sum::<f64>() / count;
    let square = rows.iter().flatten().map(|v| v * v).sum::<f64>() / count;
    let deviation = (square - mean * mean).sqrt();
    let length = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    let mut v = vec![1.0 / (n as f64).sqrt(); n];
    let mut sigma = 0.0;
    for _ in 0..3 {
        let standard = |value: &f64| (value - mean) / deviation;
        let dot = |row: &Vec<f64>| row.iter().zip(&v).map(|(a, v)| standard(a) * v).sum();
        let u: Vec<f64> = rows.iter().map(dot).collect();
        sigma = length(&u);
        v = (0..n)
            .map(|j| {
                rows.iter()
                    .zip(&u)
                    .map(|(row, u)| standard(&row[j]) * u)
                    .sum()
            })
            .collect();
        let norm = length(&v);
        v.iter_mut().for_each(|x| *x /= norm);
    }
    sigma / ((m as f64).sqrt() + (n as f64).sqrt())
}

/// Largest singular value of the rows about their features' means over the root of their number, by many iterations, and
/// trace over its square.
pub fn leading(rows: &[Vec<f64>], mean: &[f64]) -> (f64, f64) {
    let n = mean.len();
    let centred: Vec<Vec<f64>> = rows
        .iter()
        .map(|row| row.iter().zip(mean).map(|(a, m)| a - m).collect())
        .collect();
    let mut v: Vec<f64> = (0..n).map(|i| 1.0 + (i * 7 % 5) as f64).collect();
    let mut sigma = 0.0;
    for _ in 0..3000 {
        let dot = |row: &Vec<f64>| row.iter().zip(&v).map(|(a, v)| a * v).sum::<f64>();
        let u: Vec<f64> = centred.iter().map(dot).collect();
        v = (0..n)
            .map(|j| centred.iter().zip(&u).map(|(row, u)| row[j] * u).sum())
            .collect();
        let norm = v.iter().map(|x| x * x).sum::<f64>().sqrt();
        sigma = norm.sqrt();
        v.iter_mut().for_each(|x| *x /= norm);
    }
    let trace: f64 = centred.iter().flatten().map(|x| x * x).sum();
    (sigma / (rows.len() as f64).sqrt(), trace / (sigma * sigma))
}
