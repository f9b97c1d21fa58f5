//! Routing of tokens to experts, as in Mixtral: softmax over all experts, the best `k`, their weights made to sum to one.

use super::lanes::exp;

/// Which experts a token goes to, and with what weight.
pub type Route = Vec<(usize, f32)>;

/// The `k` experts with the largest `logits`, in descending order (the lower index on ties). NaN ranks last but spreads:
/// when any logit is NaN, so are all weights.
pub fn route(logits: &[f32], k: usize) -> Route {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = logits.iter().map(|&logit| exp(logit - largest)).collect();
    let total: f32 = weights.iter().sum();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    let rank = |index: usize| {
        if logits[index].is_nan() {
            f32::NEG_INFINITY
        } else {
            logits[index]
        }
    };
    order.sort_by(|&a, &b| rank(b).total_cmp(&rank(a)));
    order.truncate(k);
    let chosen: Vec<f32> = order.iter().map(|&index| weights[index] / total).collect();
    let share: f32 = chosen.iter().sum();
    order
        .into_iter()
        .zip(chosen)
        .map(|(index, weight)| (index, weight / share))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_are_chosen_and_their_weights_sum_to_one() {
        let routes = route(&[0.5, 2.0, -1.0, 2.0], 2);
        assert_eq!(routes, vec![(1, 0.5), (3, 0.5)]);
        let routes = route(&[0.0, 1.0, 2.0], 2);
        assert_eq!(routes[0].0, 2);
        assert!((routes[0].1 - 1.0 / (1.0 + (-1.0f32).exp())).abs() < 1e-6);
        assert!((routes[0].1 + routes[1].1 - 1.0).abs() < 1e-6);
    }

    #[test]
    fn nan_spreads() {
        let routes = route(&[0.5, f32::NAN, 1.0], 2);
        assert_eq!(routes.len(), 2);
        assert!(routes.iter().all(|(_, weight)| weight.is_nan()));
    }
}
