//! What a model is made of, apart from its numbers: counts, tying, names.

use crate::canonical::sha256_hex;
use crate::table::Table;
use packhost_model::{Role, Weights};
use std::collections::BTreeSet;

/// Quantities of the whole model.
///
/// - `parameter.count`: elements of all stored tensors, a head that shares the embedding's values not counted again;
/// - `tying`: `tied`, `untied` or `absent` (no head, and nothing says that the embedding serves);
/// - `structure.digest`: first 16 hexadecimal digits of SHA-256 over the sorted lines `module:role`, a module being a
///   tensor's name without its last part;
/// - `config.vocab_size`: as the configuration has it;
/// - `norm.names`: names of the norms' weights, sorted, one per line.
pub const OF_MODEL: [&str; 5] = [
    "parameter.count",
    "tying",
    "structure.digest",
    "config.vocab_size",
    "norm.names",
];

/// Rows of each embedding, under its name.
pub const VOCABULARY: &str = "vocabulary";

/// Write the wanted quantities of [`OF_MODEL`] and [`VOCABULARY`].
pub(crate) fn measure(weights: &dyn Weights, wanted: &BTreeSet<&str>, table: &mut Table) {
    let tensors = weights.tensors();
    for &quantity in wanted {
        match quantity {
            "parameter.count" => {
                let own = tensors.iter().filter(|meta| meta.tied_to.is_none());
                let count: u64 = own.map(|meta| meta.len()).sum();
                table.put_number("model", quantity, count as f64);
            }
            "tying" => table.put_text("model", quantity, weights.tying().name()),
            "structure.digest" => table.put_text("model", quantity, digest(weights)),
            "config.vocab_size" => {
                table.put_number("model", quantity, weights.config().vocab_size as f64);
            }
            "norm.names" => {
                let norms = tensors.iter().filter(|meta| meta.role == Role::Norm);
                let mut names: Vec<&str> = norms.map(|meta| meta.name.as_str()).collect();
                names.sort_unstable();
                table.put_text("model", quantity, names.join("\n"));
            }
            _ => {
                for meta in tensors.iter().filter(|meta| meta.role == Role::Embedding) {
                    let rows = meta.shape.first().copied().unwrap_or(0);
                    table.put_number(&meta.name, quantity, rows as f64);
                }
            }
        }
    }
}

fn digest(weights: &dyn Weights) -> String {
    let mut lines: Vec<String> = weights
        .tensors()
        .iter()
        .map(|meta| {
            let module = meta.name.rsplit_once('.').map_or("", |(module, _)| module);
            format!("{module}:{}", role_name(meta.role))
        })
        .collect();
    lines.sort_unstable();
    sha256_hex(lines.join("\n").as_bytes())[..16].to_owned()
}

/// A role's name in scopes and digests, as in the plugin contract.
#[must_use]
pub fn role_name(role: Role) -> &'static str {
    match role {
        Role::Embedding => "embedding",
        Role::LmHead => "lm-head",
        Role::Norm => "norm",
        Role::AttnQ => "attn-q",
        Role::AttnK => "attn-k",
        Role::AttnV => "attn-v",
        Role::AttnOut => "attn-out",
        Role::FfnGate => "ffn-gate",
        Role::FfnUp => "ffn-up",
        Role::FfnDown => "ffn-down",
        Role::Router => "router",
        Role::Bias => "bias",
        Role::Other => "other",
    }
}

/// Names of the tensors in a scope, in module order: `role:ROLE`, `layer:N`, or a name in which `*` stands for anything.
/// A scope that names no tensor is fine: a subject may have lost it.
pub(crate) fn select_tensors<'a>(
    weights: &'a dyn Weights,
    scope: &str,
) -> Result<Vec<&'a str>, String> {
    let tensors = weights.tensors().iter();
    let names = |keep: &dyn Fn(&packhost_model::TensorMeta) -> bool| {
        tensors
            .clone()
            .filter(|meta| keep(meta))
            .map(|meta| meta.name.as_str())
            .collect()
    };
    if let Some(role) = scope.strip_prefix("role:") {
        const ROLES: [Role; 13] = [
            Role::Embedding,
            Role::LmHead,
            Role::Norm,
            Role::AttnQ,
            Role::AttnK,
            Role::AttnV,
            Role::AttnOut,
            Role::FfnGate,
            Role::FfnUp,
            Role::FfnDown,
            Role::Router,
            Role::Bias,
            Role::Other,
        ];
        let known = ROLES.iter().find(|known| role_name(**known) == role);
        let role = *known.ok_or_else(|| format!("but there is no role `{role}`"))?;
        return Ok(names(&|meta| meta.role == role));
    }
    if let Some(layer) = scope.strip_prefix("layer:") {
        let layer: u32 = layer
            .parse()
            .map_err(|_| format!("but `{layer}` is not a layer's number"))?;
        return Ok(names(&|meta| meta.layer == Some(layer)));
    }
    Ok(names(&|meta| matches_glob(scope, &meta.name)))
}

/// Whether a name matches a pattern in which `*` stands for any number of characters.
pub(crate) fn matches_glob(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or("");
    let Some(mut rest) = name.strip_prefix(first) else {
        return false;
    };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else {
        return rest.is_empty();
    };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::matches_glob;

    #[test]
    fn globs() {
        for (pattern, name, expected) in [
            ("*", "anything", true),
            ("a.b", "a.b", true),
            ("a.b", "a.bc", false),
            ("*.weight", "x.weight", true),
            ("model.*.mlp.*", "model.layers.0.mlp.up", true),
            ("model.*.mlp.*", "model.layers.0.attn.up", false),
            ("a*a", "a", false),
            ("a*b*c", "abbc", true),
            ("a*b*c", "acb", false),
        ] {
            assert_eq!(matches_glob(pattern, name), expected, "{pattern} {name}");
        }
    }
}
