//! Which rows a request is about. A guard sees exactly the rows that it asked for, so its verdict does not depend on what
//! other guards wanted to know.

use crate::measure::Request;
use crate::structure::{self, matches_glob, role_name};
use packhost_model::names::{layer_of_name, role_of_name};

/// Whether the row of `quantity` at `scope` is one of those that the request names. Roles and layers follow from names, as
/// they do when tensors are measured, so this needs no model and holds for stored tables.
#[must_use]
pub fn is_asked(request: &Request, scope: &str, quantity: &str) -> bool {
    if request.quantity != quantity {
        return false;
    }
    let scope = match request.has_params() {
        false => Some(scope),
        true => scope
            .strip_suffix(&request.params)
            .and_then(|scope| scope.strip_suffix(' ')),
    };
    scope.is_some_and(|scope| names(request, scope))
}

/// Whether the request's scope names what the row is about.
fn names(request: &Request, scope: &str) -> bool {
    if request.scope == scope || quantity_of_all_embeddings(request) {
        return true;
    }
    if let Some(role) = request.scope.strip_prefix("role:") {
        return role_name(role_of_name(scope)) == role
            || role_name(role_of_name(&tensor(scope))) == role;
    }
    if let Some(layer) = request.scope.strip_prefix("layer:") {
        return layer.parse().ok() == layer_of_name(scope);
    }
    matches_glob(&request.scope, scope)
}

/// The vocabulary is asked for of the model and told of each embedding.
fn quantity_of_all_embeddings(request: &Request) -> bool {
    request.quantity == structure::VOCABULARY
}

/// The weight of a module.
fn tensor(module: &str) -> String {
    format!("{module}.weight")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(quantity: &str, scope: &str, params: &str) -> Request {
        Request {
            guard: "g".into(),
            quantity: quantity.into(),
            scope: scope.into(),
            params: params.into(),
        }
    }

    #[test]
    fn rows_of_a_request() {
        let down = "model.layers.3.mlp.down_proj";
        for (scope, row, seen) in [
            ("*", down, true),
            ("role:ffn-down", down, true),
            ("role:ffn-down", "model.layers.3.mlp.down_proj.weight", true),
            ("role:ffn-up", down, false),
            ("role:embedding", "model.embed_tokens", true),
            ("layer:3", down, true),
            ("layer:4", down, false),
            ("model.layers.3.*", down, true),
            ("final", "final", true),
            ("final", "preview", false),
        ] {
            assert_eq!(
                is_asked(&request("q", scope, ""), row, "q"),
                seen,
                "{scope} {row}"
            );
            assert!(!is_asked(&request("other", scope, ""), row, "q"));
        }
    }

    #[test]
    fn parameters_are_part_of_the_row() {
        let scaled = request("window.loss", "first:8", "{\"scale\":{\"a\":1.03}}");
        let row = "first:8 {\"scale\":{\"a\":1.03}}";
        assert!(is_asked(&scaled, row, "window.loss"));
        assert!(!is_asked(&scaled, "first:8", "window.loss"));
        assert!(!is_asked(
            &request("window.loss", "first:8", ""),
            row,
            "window.loss"
        ));
    }

    #[test]
    fn the_vocabulary_is_told_of_embeddings() {
        assert!(is_asked(
            &request(structure::VOCABULARY, "model", ""),
            "model.embed_tokens",
            structure::VOCABULARY
        ));
    }
}
