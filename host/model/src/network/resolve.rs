//! From named tensors to a network whose every shape has been checked.

use std::{collections::BTreeMap, sync::Arc};

use packhost_tensor::{
    DType, Tensor,
    cpu::{
        matmul::Weight,
        network::{attention::Heads, elementwise::Affine},
    },
};

use crate::{
    config::Config,
    error::{Error, Result},
    names::Role,
    weights::Weights,
};

/// A network that is ready to run. Cloning shares everything.
#[derive(Debug, Clone)]
pub struct Network {
    inner: Arc<Inner>,
    /// Whether the rotary embedding's frequencies are rounded to bf16.
    rounded_frequencies: bool,
}

/// Parts of a network.
#[derive(Debug, Clone)]
pub(super) struct Inner {
    /// Added to the mean square of every norm.
    pub epsilon: f32,
    /// Base of the rotary embedding.
    pub theta: f64,
    /// `[vocabulary, hidden]`.
    pub embedding: Weight,
    /// The embedding's module name.
    pub embedding_name: String,
    pub layers: Vec<Layer>,
    /// The final norm.
    pub norm: Vector,
    /// `[vocabulary, hidden]`; the embedding where the two are tied.
    pub head: Weight,
}

/// One decoder layer.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub heads: Heads,
    pub attention_norm: Vector,
    pub query: Linear,
    pub key: Linear,
    pub value: Linear,
    /// Norms of each query and each key head.
    pub query_key_norms: Option<(Vector, Vector)>,
    pub output: Linear,
    pub feed_norm: Vector,
    pub feed: Feed,
}

/// The feed-forward half of a layer.
#[derive(Debug, Clone)]
pub(super) enum Feed {
    Dense(Box<Gated>),
    Experts {
        /// `[experts, hidden]`.
        router: Box<Linear>,
        experts: Vec<Gated>,
        /// Experts that serve each token.
        active: usize,
    },
}

/// `down(silu(gate(x)) * up(x))`.
#[derive(Debug, Clone)]
pub(super) struct Gated {
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
}

/// A projection and its bias.
#[derive(Debug, Clone)]
pub(super) struct Linear {
    /// The module's name.
    pub name: String,
    pub weight: Weight,
    pub bias: Option<Vector>,
    /// By what the output is multiplied, bias and all; 1 except in [`Network::scaled`].
    pub factor: f32,
}

impl Linear {
    pub fn affine(&self) -> Affine<'_> {
        Affine {
            weight: &self.weight,
            bias: self.bias(),
        }
    }

    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_ref().map(|bias| bias.values.as_slice())
    }
}

/// A vector of weights, widened; the stored tensor is kept to tell whether two networks share it.
#[derive(Debug, Clone)]
pub(super) struct Vector {
    tensor: Tensor,
    pub values: Vec<f32>,
}

impl Network {
    /// Takes the tensors that the configuration asks for.
    ///
    /// # Errors
    /// When the architecture or one of its settings is not served; when a tensor is missing, has another shape than the
    /// configuration asks for, or holds no floating-point numbers: by name, with what was expected and what was found.
    pub fn new(weights: &dyn Weights) -> Result<Self> {
        let config = weights.config();
        config.served()?;
        let resolver = Resolver { weights, config };
        let (vocabulary, hidden) = (config.vocab_size, config.hidden_size);
        let embedding = resolver.by_role(Role::Embedding, "model.embed_tokens.weight");
        let embedding_name = embedding.trim_end_matches(".weight").to_owned();
        let embedding = resolver.matrix(&embedding, [vocabulary, hidden])?;
        let head = if config.tie_word_embeddings {
            embedding.clone()
        } else {
            let name = resolver.by_role(Role::LmHead, "lm_head.weight");
            resolver.matrix(&name, [vocabulary, hidden])?
        };
        let layers = (0..config.num_hidden_layers)
            .map(|layer| resolver.layer(layer))
            .collect::<Result<_>>()?;
        let inner = Inner {
            epsilon: config.rms_norm_eps as f32,
            theta: config.rope_theta,
            embedding,
            embedding_name,
            layers,
            norm: resolver.vector("model.norm.weight", hidden)?,
            head,
        };
        Ok(Self {
            inner: Arc::new(inner),
            rounded_frequencies: false,
        })
    }

    /// The same network with the rotary embedding's frequencies rounded to bf16. They are no part of a checkpoint and
    /// exact in every ordinary run; but PyTorch's `model.to(torch.bfloat16)` rounds them along with the weights, and they
    /// stay rounded when the model is made float32 again. For comparisons with results that were computed so.
    #[must_use]
    pub fn with_rounded_frequencies(self) -> Self {
        Self {
            rounded_frequencies: true,
            ..self
        }
    }

    /// Whether the rotary embedding's frequencies are rounded to bf16.
    pub(super) fn rounded_frequencies(&self) -> bool {
        self.rounded_frequencies
    }

    /// Number of token ids.
    pub fn vocabulary(&self) -> usize {
        self.inner.embedding.rows()
    }

    /// Width of the hidden state.
    pub fn hidden(&self) -> usize {
        self.inner.embedding.columns()
    }

    /// Number of decoder layers.
    pub fn layers(&self) -> usize {
        self.inner.layers.len()
    }

    /// How many layers from the front on this network shares with `other`, to the very bytes of every tensor that they
    /// read; 0 also when the embedding or a setting that all layers read differs. The hidden states that enter layer
    /// `shared_layers` (or the final norm) are then those of `other`.
    pub fn shared_layers(&self, other: &Network) -> usize {
        let (a, b) = (&*self.inner, &*other.inner);
        if !same_tensor(a.embedding.tensor(), b.embedding.tensor())
            || a.epsilon.to_bits() != b.epsilon.to_bits()
            || a.theta.to_bits() != b.theta.to_bits()
            || self.rounded_frequencies != other.rounded_frequencies
        {
            return 0;
        }
        let pairs = a.layers.iter().zip(&b.layers);
        pairs.take_while(|(a, b)| a.same(b)).count()
    }

    /// Names of the modules that can be observed, in the order in which they run: the embedding, the projections of
    /// attention, and those of the feed-forward layer with the router before its experts. The output projection is none.
    pub fn modules(&self) -> Vec<&str> {
        let layers = self.inner.layers.iter().flat_map(Layer::linears);
        std::iter::once(self.inner.embedding_name.as_str())
            .chain(layers.map(|linear| linear.name.as_str()))
            .collect()
    }

    /// This network with the outputs of some projections (module names, see [`modules`](Self::modules)) multiplied by a
    /// factor, the bias included. No weight is touched.
    ///
    /// # Errors
    /// When a name is not that of a projection, or a factor is not finite.
    pub fn scaled(&self, factors: &BTreeMap<String, f32>) -> Result<Self> {
        let refused = |problem| Err(Error::Score { problem });
        let mut inner = (*self.inner).clone();
        let mut left = factors.clone();
        for linear in inner.layers.iter_mut().flat_map(Layer::linears_mut) {
            if let Some(factor) = left.remove(&linear.name) {
                linear.factor *= factor;
                if !factor.is_finite() {
                    return refused(format!(
                        "module `{}` cannot be scaled by {factor}; a factor is a finite number",
                        linear.name
                    ));
                }
            }
        }
        if let Some(name) = left.keys().next() {
            return refused(format!(
                "`{name}` is not a projection of this network; only projections within its layers can be scaled"
            ));
        }
        Ok(Self {
            inner: Arc::new(inner),
            ..self.clone()
        })
    }

    pub(super) fn inner(&self) -> &Inner {
        &self.inner
    }
}

/// Whether two tensors are the same bytes at the same place.
fn same_tensor(a: &Tensor, b: &Tensor) -> bool {
    a.dtype() == b.dtype()
        && a.shape() == b.shape()
        && a.bytes().as_ptr() == b.bytes().as_ptr()
        && a.bytes().len() == b.bytes().len()
}

impl Layer {
    /// All projections, in the order in which they run.
    fn linears(&self) -> Vec<&Linear> {
        let mut all = vec![&self.query, &self.key, &self.value, &self.output];
        match &self.feed {
            Feed::Dense(dense) => all.extend(dense.linears()),
            Feed::Experts {
                router, experts, ..
            } => {
                all.push(router);
                all.extend(experts.iter().flat_map(Gated::linears));
            }
        }
        all
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let mut all = vec![
            &mut self.query,
            &mut self.key,
            &mut self.value,
            &mut self.output,
        ];
        match &mut self.feed {
            Feed::Dense(dense) => all.extend(dense.linears_mut()),
            Feed::Experts {
                router, experts, ..
            } => {
                all.push(router);
                all.extend(experts.iter_mut().flat_map(Gated::linears_mut));
            }
        }
        all
    }

    fn same(&self, other: &Layer) -> bool {
        self.heads == other.heads
            && self.attention_norm.same(&other.attention_norm)
            && self.query.same(&other.query)
            && self.key.same(&other.key)
            && self.value.same(&other.value)
            && match (&self.query_key_norms, &other.query_key_norms) {
                (None, None) => true,
                (Some((q, k)), Some((other_q, other_k))) => q.same(other_q) && k.same(other_k),
                _ => false,
            }
            && self.output.same(&other.output)
            && self.feed_norm.same(&other.feed_norm)
            && self.feed.same(&other.feed)
    }
}

impl Feed {
    fn same(&self, other: &Feed) -> bool {
        match (self, other) {
            (Feed::Dense(a), Feed::Dense(b)) => a.same(b),
            (
                Feed::Experts {
                    router,
                    experts,
                    active,
                },
                Feed::Experts {
                    router: other_router,
                    experts: other_experts,
                    active: other_active,
                },
            ) => {
                active == other_active
                    && router.same(other_router)
                    && experts.len() == other_experts.len()
                    && experts.iter().zip(other_experts).all(|(a, b)| a.same(b))
            }
            _ => false,
        }
    }
}

impl Gated {
    fn linears(&self) -> [&Linear; 3] {
        [&self.gate, &self.up, &self.down]
    }

    fn linears_mut(&mut self) -> [&mut Linear; 3] {
        [&mut self.gate, &mut self.up, &mut self.down]
    }

    fn same(&self, other: &Gated) -> bool {
        self.gate.same(&other.gate) && self.up.same(&other.up) && self.down.same(&other.down)
    }
}

impl Linear {
    fn same(&self, other: &Linear) -> bool {
        same_tensor(self.weight.tensor(), other.weight.tensor())
            && self.factor.to_bits() == other.factor.to_bits()
            && match (&self.bias, &other.bias) {
                (None, None) => true,
                (Some(a), Some(b)) => a.same(b),
                _ => false,
            }
    }
}

impl Vector {
    fn same(&self, other: &Vector) -> bool {
        same_tensor(&self.tensor, &other.tensor)
    }
}

/// Reads tensors by name and checks them.
struct Resolver<'a> {
    weights: &'a dyn Weights,
    config: &'a Config,
}

impl Resolver<'_> {
    /// Name of the tensor with `role`, or how it should be called.
    fn by_role(&self, role: Role, usual: &str) -> String {
        let tensors = self.weights.tensors();
        let found = tensors.iter().find(|meta| meta.role == role);
        found.map_or_else(|| usual.into(), |meta| meta.name.clone())
    }

    fn layer(&self, index: usize) -> Result<Layer> {
        let config = self.config;
        let (hidden, dim) = (config.hidden_size, config.head_dim);
        let queries = config.num_attention_heads * dim;
        let keys = config.num_key_value_heads * dim;
        let prefix = format!("model.layers.{index}");
        let attention = format!("{prefix}.self_attn");
        let projection =
            |name: &str, shape, bias| self.linear(&format!("{attention}.{name}_proj"), shape, bias);
        let norm = |name: &str| self.vector(&format!("{attention}.{name}_norm.weight"), dim);
        Ok(Layer {
            heads: Heads {
                queries: config.num_attention_heads,
                keys: config.num_key_value_heads,
                dim,
                window: config.window(index),
            },
            attention_norm: self.vector(&format!("{prefix}.input_layernorm.weight"), hidden)?,
            query: projection("q", [queries, hidden], config.qkv_bias)?,
            key: projection("k", [keys, hidden], config.qkv_bias)?,
            value: projection("v", [keys, hidden], config.qkv_bias)?,
            query_key_norms: match config.query_key_norm {
                true => Some((norm("q")?, norm("k")?)),
                false => None,
            },
            output: projection("o", [hidden, queries], config.output_bias)?,
            feed_norm: self.vector(&format!("{prefix}.post_attention_layernorm.weight"), hidden)?,
            feed: self.feed(&prefix)?,
        })
    }

    fn feed(&self, prefix: &str) -> Result<Feed> {
        let (hidden, count) = (self.config.hidden_size, self.config.num_local_experts);
        if count == 0 {
            let mlp = format!("{prefix}.mlp");
            let dense = self.gated(&mlp, ["gate_proj", "up_proj", "down_proj"])?;
            return Ok(Feed::Dense(Box::new(dense)));
        }
        let block = format!("{prefix}.block_sparse_moe");
        let expert = |index| self.gated(&format!("{block}.experts.{index}"), ["w1", "w3", "w2"]);
        Ok(Feed::Experts {
            router: Box::new(self.linear(&format!("{block}.gate"), [count, hidden], false)?),
            experts: (0..count).map(expert).collect::<Result<_>>()?,
            active: self.config.num_experts_per_tok,
        })
    }

    /// The projections `[gate, up, down]` under `prefix`.
    fn gated(&self, prefix: &str, [gate, up, down]: [&str; 3]) -> Result<Gated> {
        let (hidden, wide) = (self.config.hidden_size, self.config.intermediate_size);
        let bias = self.config.mlp_bias;
        Ok(Gated {
            gate: self.linear(&format!("{prefix}.{gate}"), [wide, hidden], bias)?,
            up: self.linear(&format!("{prefix}.{up}"), [wide, hidden], bias)?,
            down: self.linear(&format!("{prefix}.{down}"), [hidden, wide], bias)?,
        })
    }

    fn linear(&self, prefix: &str, shape: [usize; 2], bias: bool) -> Result<Linear> {
        let bias = match bias {
            true => Some(self.vector(&format!("{prefix}.bias"), shape[0])?),
            false => None,
        };
        Ok(Linear {
            name: prefix.to_owned(),
            factor: 1.0,
            weight: self.matrix(&format!("{prefix}.weight"), shape)?,
            bias,
        })
    }

    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Weight> {
        let tensor = self.tensor(name, &shape)?;
        Weight::new(&tensor).map_err(|error| Error::Tensor {
            name: name.into(),
            problem: error.to_string(),
        })
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vector> {
        let tensor = self.tensor(name, &[len])?;
        let values = tensor.to_f32();
        Ok(Vector { tensor, values })
    }

    /// The tensor `name`, which must have `shape`. Float types other than bf16, f16 and f32 become f32.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let refused = |problem| Error::Tensor {
            name: name.into(),
            problem,
        };
        if self.weights.meta(name).is_none() {
            return Err(refused(format!(
                "it is missing; the configuration asks for shape {shape:?}"
            )));
        }
        let tensor = self.weights.tensor(name)?;
        if tensor.shape() != shape {
            return Err(refused(format!(
                "the configuration asks for shape {shape:?}, found {:?}",
                tensor.shape()
            )));
        }
        match tensor.dtype() {
            DType::BF16 | DType::F16 | DType::F32 => Ok(tensor),
            dtype if dtype.is_float() => Ok(Tensor::from_f32(DType::F32, shape, &tensor.to_f32())?),
            dtype => Err(refused(format!(
                "it holds {dtype} numbers, a forward pass needs a floating-point type"
            ))),
        }
    }
}
