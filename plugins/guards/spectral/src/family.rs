//! Modules by the words in their names, as the reference tells them apart.

use crate::policy::Scope;

/// A family and the words of which a lower-case module name contains one. The first family with a match is the module's.
const FAMILIES: [(&str, &[&str]); 6] = [
    (
        "ffn",
        &[
            "gate_up_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
            "c_fc",
            "fc1",
            "fc2",
            "densereludense",
        ],
    ),
    (
        "router",
        &["router", "routing", "gate", "gating", "dispatch", "switch"],
    ),
    ("expert_ffn", &["expert", "moe", "mixture_of_experts"]),
    ("ffn", &["mlp", "ffn", "feed_forward"]),
    (
        "attn",
        &[
            "attn",
            "attention",
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "c_attn",
        ],
    ),
    ("embed", &["embed", "wte"]),
];

/// Projections of a state-space block, which count as feed-forward.
const MAMBA: [&str; 4] = ["in_proj", "out_proj", "x_proj", "dt_proj"];

/// The family of a module.
pub fn of(module: &str) -> &'static str {
    let name = module.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| name.contains(word));
    // The rule about state-space blocks stands after the plain feed-forward words and before the routers.
    if has(FAMILIES[0].1) || (name.contains("mamba") && has(&MAMBA)) {
        return "ffn";
    }
    let found = FAMILIES.iter().find(|(_, words)| has(words));
    found.map_or("other", |(family, _)| family)
}

/// Whether a module belongs to the scope.
pub fn in_scope(module: &str, scope: Scope) -> bool {
    let words: &[&str] = match scope {
        Scope::All => return true,
        Scope::Attn => &["attn", "attention", "c_proj"],
        Scope::Ffn => &["mlp", "ffn", "feed_forward", "fc", "densereludense"],
        Scope::FfnProj => &[
            "mlp",
            "ffn",
            "feed_forward",
            "fc",
            "densereludense",
            "c_proj",
            "projection",
        ],
    };
    let name = module.to_lowercase();
    words.iter().any(|word| name.contains(word))
}
