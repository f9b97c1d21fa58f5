//! What a tensor's name says: its role, layer and expert, and its place in module order.
//!
//! Module order is the order in which the model library walks a network's parameters. Injections depend on it ("first
//! match", seeded shuffles), so it must not vary with how a checkpoint is cut into shards. Names of families that are not
//! served (GPT-2, GPT-NeoX, Falcon, Phi-3) are ordered too, because their checkpoints can be edited. Names that are not
//! known come after the known ones of their layer, or after everything, in natural order (`2` before `10`).

/// What a tensor does in the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Token embedding, `[vocabulary, hidden]`.
    Embedding,
    /// Output head, `[vocabulary, hidden]`.
    LmHead,
    /// Weight of a normalisation.
    Norm,
    /// Query projection, or a fused query/key/value projection.
    AttnQ,
    /// Key projection.
    AttnK,
    /// Value projection.
    AttnV,
    /// Attention's output projection.
    AttnOut,
    /// Gate of the feed-forward layer, or a fused gate and up projection.
    FfnGate,
    /// Up projection of the feed-forward layer.
    FfnUp,
    /// Down projection of the feed-forward layer.
    FfnDown,
    /// Scores the experts of a layer.
    Router,
    /// Bias of any layer.
    Bias,
    /// Anything else.
    Other,
}

/// What [`classify`] finds out from a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub role: Role,
    pub layer: Option<u32>,
    pub expert: Option<u32>,
    pub order: Order,
}

/// Sort key of module order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Order {
    group: Group,
    layer: u32,
    /// Position among the modules of a layer, of the front or of the back.
    slot: usize,
    expert: u32,
    /// Position within an expert.
    part: usize,
    /// Weight before bias.
    suffix: u8,
    /// Decides between names that are equal so far, and orders unknown ones.
    natural: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    /// Towers for other kinds of input, which come before the language model.
    Tower,
    Front,
    Layers,
    Back,
    Unknown,
}

/// Path segments of parts that are not the language model, in the order in which they are walked.
const TOWERS: [&str; 7] = [
    "vision_tower",
    "vision_model",
    "vision_encoder",
    "vision_resampler",
    "connector",
    "mm_projector",
    "multi_modal_projector",
];

/// Segments before the number of a layer.
const LAYER_WORDS: [&str; 3] = ["layers", "h", "blocks"];

/// Modules before the layers, by the last segment of their path.
const FRONT: [(&str, Role); 6] = [
    ("embed_tokens", Role::Embedding),
    ("wte", Role::Embedding),
    ("embed_in", Role::Embedding),
    ("word_embeddings", Role::Embedding),
    ("tok_embeddings", Role::Embedding),
    ("wpe", Role::Other),
];

/// Modules after the layers.
const BACK: [(&str, Role); 6] = [
    ("norm", Role::Norm),
    ("ln_f", Role::Norm),
    ("final_layer_norm", Role::Norm),
    ("final_layernorm", Role::Norm),
    ("lm_head", Role::LmHead),
    ("embed_out", Role::LmHead),
];

/// Slot of the experts in [`DECODER`].
const EXPERTS: &str = "experts";

/// Modules of a decoder layer: Llama and its kin, Mixtral under both spellings, Phi-3, GPT-2, Falcon. The families share
/// no names but those that they order alike.
const DECODER: [(&str, Role); 34] = [
    ("ln_1", Role::Norm),
    ("self_attn.q_proj", Role::AttnQ),
    ("self_attn.k_proj", Role::AttnK),
    ("self_attn.v_proj", Role::AttnV),
    ("self_attn.o_proj", Role::AttnOut),
    ("self_attn.qkv_proj", Role::AttnQ),
    ("self_attn.q_norm", Role::Norm),
    ("self_attn.k_norm", Role::Norm),
    ("self_attention.query_key_value", Role::AttnQ),
    ("self_attention.dense", Role::AttnOut),
    ("attn.c_attn", Role::AttnQ),
    ("attn.c_proj", Role::AttnOut),
    ("ln_2", Role::Norm),
    ("block_sparse_moe.gate", Role::Router),
    ("mlp.gate", Role::Router),
    (EXPERTS, Role::Other),
    ("mlp.experts.gate_up_proj", Role::FfnGate),
    ("mlp.experts.down_proj", Role::FfnDown),
    ("mlp.gate_proj", Role::FfnGate),
    ("mlp.gate_up_proj", Role::FfnGate),
    ("mlp.up_proj", Role::FfnUp),
    ("mlp.down_proj", Role::FfnDown),
    ("mlp.c_fc", Role::FfnUp),
    ("mlp.fc1", Role::FfnUp),
    ("mlp.c_proj", Role::FfnDown),
    ("mlp.fc2", Role::FfnDown),
    ("mlp.dense_h_to_4h", Role::FfnUp),
    ("mlp.dense_4h_to_h", Role::FfnDown),
    ("input_layernorm", Role::Norm),
    ("post_attention_layernorm", Role::Norm),
    ("pre_feedforward_layernorm", Role::Norm),
    ("post_feedforward_layernorm", Role::Norm),
    ("ln_attn", Role::Norm),
    ("ln_mlp", Role::Norm),
];

/// Modules of a GPT-NeoX layer, which has its norms first.
const NEOX: [(&str, Role); 6] = [
    ("input_layernorm", Role::Norm),
    ("post_attention_layernorm", Role::Norm),
    ("attention.query_key_value", Role::AttnQ),
    ("attention.dense", Role::AttnOut),
    ("mlp.dense_h_to_4h", Role::FfnUp),
    ("mlp.dense_4h_to_h", Role::FfnDown),
];

/// Matrices of one expert in the order of their modules, by either spelling.
const EXPERT_PARTS: [(&str, Role); 6] = [
    ("w1", Role::FfnGate),
    ("w2", Role::FfnDown),
    ("w3", Role::FfnUp),
    ("gate_proj", Role::FfnGate),
    ("up_proj", Role::FfnUp),
    ("down_proj", Role::FfnDown),
];

/// The role of the tensor called `name`, as far as a name tells it.
pub fn role_of_name(name: &str) -> Role {
    classify(name).role
}

/// The decoder layer that a tensor or module of that name belongs to.
pub fn layer_of_name(name: &str) -> Option<u32> {
    classify(name).layer
}

/// Role, layer, expert and sort key of the tensor called `name`.
pub(crate) fn classify(name: &str) -> Place {
    let (stem, suffix) = match name.rsplit_once('.') {
        Some((stem, "weight")) => (stem, 0),
        Some((stem, "bias")) => (stem, 1),
        _ => (name, 2),
    };
    let segments: Vec<&str> = stem.split('.').collect();
    let tower = TOWERS.iter().position(|tower| segments.contains(tower));
    let layered = layer_of(&segments);

    let mut place = Place {
        role: Role::Other,
        layer: layered.map(|(layer, _)| layer),
        expert: None,
        order: Order {
            group: Group::Unknown,
            layer: 0,
            slot: usize::MAX,
            expert: 0,
            part: 0,
            suffix,
            natural: natural_key(name),
        },
    };
    if let Some(tower) = tower {
        place.order.group = Group::Tower;
        place.order.slot = tower;
        // A tower is walked as a whole: within it, natural order.
        place.order.suffix = 0;
        return place;
    }
    let known = match layered {
        Some((layer, rest)) => {
            place.order.group = Group::Layers;
            place.order.layer = layer;
            classify_layer(&mut place, name.starts_with("gpt_neox."), rest)
        }
        None => classify_outside(&mut place, segments.last().copied().unwrap_or("")),
    };
    match known {
        Some(role) => place.role = if suffix == 1 { Role::Bias } else { role },
        None => place.order.suffix = 0,
    }
    place
}

/// Number after the first `layers`, `h` or `blocks`, and the segments behind it.
fn layer_of<'a>(segments: &'a [&'a str]) -> Option<(u32, &'a [&'a str])> {
    segments
        .windows(2)
        .enumerate()
        .find_map(|(at, pair)| match pair {
            [word, digits] if LAYER_WORDS.contains(word) => {
                Some((number(digits)?, segments.get(at + 2..)?))
            }
            _ => None,
        })
}

/// Plain decimal digits, nothing else.
fn number(digits: &str) -> Option<u32> {
    if digits.bytes().all(|byte| byte.is_ascii_digit()) {
        digits.parse().ok()
    } else {
        None
    }
}

fn classify_layer(place: &mut Place, neox: bool, rest: &[&str]) -> Option<Role> {
    if let ["block_sparse_moe" | "mlp", "experts", digits, part] = rest
        && let Some(expert) = number(digits)
        && let Some(index) = EXPERT_PARTS.iter().position(|(name, _)| name == part)
    {
        place.expert = Some(expert);
        place.order.expert = expert;
        place.order.part = index;
        place.order.slot = DECODER.iter().position(|(name, _)| *name == EXPERTS)?;
        return EXPERT_PARTS.get(index).map(|&(_, role)| role);
    }
    let table: &[(&str, Role)] = if neox { &NEOX } else { &DECODER };
    let module = rest.join(".");
    let slot = table
        .iter()
        .position(|(name, _)| *name == module && *name != EXPERTS)?;
    place.order.slot = slot;
    table.get(slot).map(|&(_, role)| role)
}

fn classify_outside(place: &mut Place, last: &str) -> Option<Role> {
    for (group, table) in [(Group::Front, &FRONT), (Group::Back, &BACK)] {
        if let Some(slot) = table.iter().position(|(name, _)| *name == last) {
            place.order.group = group;
            place.order.slot = slot;
            return table.get(slot).map(|&(_, role)| role);
        }
    }
    None
}

/// `name` with its runs of digits padded, so that comparing text compares numbers.
fn natural_key(name: &str) -> String {
    let mut key = String::with_capacity(name.len() + 16);
    let mut digits = String::new();
    for character in name.chars().chain(std::iter::once('\0')) {
        if character.is_ascii_digit() {
            digits.push(character);
            continue;
        }
        if !digits.is_empty() {
            key.extend(std::iter::repeat_n(
                '0',
                20usize.saturating_sub(digits.len()),
            ));
            key.push_str(&digits);
            digits.clear();
        }
        if character != '\0' {
            key.push(character);
        }
    }
    key
}
