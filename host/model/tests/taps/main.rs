//! Observing a pass: every figure against a plain f64 forward pass, and what observing promises about losses, batches,
//! threads, kept states and scaled projections.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod plain;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use packhost_model::{
    Checkpoint, Overlay,
    network::{
        Findings, KeepPolicy, Network, Observed, Padding, ScoreRequest, Scores, Tap, TapRequest,
    },
};
use packhost_tensor::{
    Tensor,
    cpu::{Cpu, activation::outliers, matmul::View},
};

use plain::{Plain, Rows, leading, risk};

const ARCHITECTURES: [&str; 6] = [
    "llama-yi",
    "mistral",
    "mistral-window",
    "mixtral",
    "qwen2-tied",
    "qwen3",
];

fn open(name: &str) -> Arc<Checkpoint> {
    let root = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/vectors/architectures"
    );
    Checkpoint::open(&Path::new(root).join(name)).unwrap()
}

/// Windows of many lengths over the vocabulary of 512; one is empty and one a single token.
fn ragged() -> Vec<Vec<u32>> {
    [17usize, 2, 0, 60, 1, 45, 31, 200]
        .iter()
        .enumerate()
        .map(|(index, &len)| {
            (0..len)
                .map(|at| ((at * 131 + index * 977 + at * at) % 512) as u32)
                .collect()
        })
        .collect()
}

const PADDING: Padding = Padding { token: 3, rows: 64 };

/// Everything of every module, over some of the windows.
fn everything(network: &Network) -> TapRequest {
    let tap = Tap {
        risk: [0, 3, 4, 6].into(),
        mean_square: [0, 1, 6, 7].into(),
        outliers: [(1000, [0, 6].into()), (1300, [3].into())].into(),
        moments: true,
        spectrum: true,
    };
    TapRequest {
        modules: network
            .modules()
            .into_iter()
            .map(|name| (name.to_owned(), tap.clone()))
            .collect(),
        spectrum_windows: [3, 5, 6].into(),
        padding: Some(PADDING),
    }
}

fn score(network: &Network, windows: &[Vec<u32>], request: ScoreRequest<'_>) -> Scores {
    let windows: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
    let request = ScoreRequest {
        windows: &windows,
        ..request
    };
    network.score(&request).unwrap()
}

fn observed(network: &Network, windows: &[Vec<u32>], taps: &TapRequest) -> Observed {
    let request = ScoreRequest {
        taps: Some(taps),
        ..Default::default()
    };
    score(network, windows, request).observed.unwrap()
}

fn close(what: &str, found: f64, expected: f64, tolerance: f64) {
    let error = (found - expected).abs();
    assert!(
        error <= tolerance * expected.abs() || (found.is_nan() && expected.is_nan()),
        "{what}: {found} for {expected}"
    );
}

#[test]
fn every_figure_equals_a_plain_pass() {
    let windows = ragged();
    for name in ARCHITECTURES {
        let checkpoint = open(name);
        let network = Network::new(&*checkpoint).unwrap();
        let taps = everything(&network);
        let found = observed(&network, &windows, &taps);
        assert_eq!(found.modules.len(), network.modules().len(), "{name}");
        let padded: BTreeSet<usize> = [0, 3, 4, 6, 1, 7].into();
        let plain: Vec<BTreeMap<String, Rows>> = windows
            .iter()
            .enumerate()
            .map(|(index, tokens)| {
                let rows = match padded.contains(&index) {
                    true => tokens.len().max(PADDING.rows),
                    false => tokens.len(),
                };
                Plain::run(&*checkpoint, tokens, rows)
            })
            .collect();
        for (module, found) in &found.modules {
            let Findings {
                risk: risks,
                mean_square,
                outliers: counts,
                moments,
                spectrum,
            } = found;
            let what = format!("{name} {module}");
            let rows = |window: usize| -> Vec<Vec<f64>> {
                plain[window][module].iter().flatten().cloned().collect()
            };
            assert_eq!(risks.keys().copied().collect::<Vec<_>>(), [0, 3, 4, 6]);
            for (window, found) in risks {
                let rows = rows(*window);
                // A window of one token and its padding has few distinct rows, or one: rounding decides.
                if rows.len() > 1 && *window != 4 {
                    close(&format!("{what} risk {window}"), *found, risk(&rows), 2e-4);
                }
            }
            for (window, found) in mean_square {
                let rows = rows(*window);
                let values: Vec<f64> = rows.into_iter().flatten().collect();
                let expected = values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64;
                close(&format!("{what} square {window}"), *found, expected, 2e-5);
            }
            let windows_of: Vec<(u32, usize)> = counts.keys().copied().collect();
            assert_eq!(windows_of, [(1000, 0), (1000, 6), (1300, 3)]);
            for ((threshold, window), count) in counts {
                let rows = rows(*window);
                let values: Vec<f32> = rows.iter().flatten().map(|v| *v as f32).collect();
                let at = |slack: f64| {
                    let threshold = f64::from(*threshold) / 1000.0 * slack;
                    match rows.first() {
                        Some(row) => {
                            outliers(View::dense(&values, rows.len()), row.len(), threshold)
                        }
                        None => f64::NAN,
                    }
                };
                let between = at(1.001) <= *count && *count <= at(0.999);
                assert!(
                    between || (rows.is_empty() && count.is_nan()),
                    "{what} outliers {window}"
                );
            }
            // Tokens other than the first of each window.
            let counted = |window: usize| -> Vec<Vec<f64>> {
                let tokens = windows[window].len();
                let rows = &plain[window][module][1.min(tokens)..tokens];
                rows.iter().flatten().cloned().collect()
            };
            let all: Vec<Vec<f64>> = (0..windows.len()).flat_map(counted).collect();
            let mean = |rows: &[Vec<f64>]| -> Vec<f64> {
                let count = rows.len() as f64;
                (0..rows[0].len())
                    .map(|j| rows.iter().map(|row| row[j]).sum::<f64>() / count)
                    .collect()
            };
            let means = mean(&all);
            let moments = moments.as_ref().unwrap();
            assert_eq!(moments.rows, all.len() as u64, "{what}");
            let scale =
                all.iter().flatten().map(|v| v * v).sum::<f64>() / (all.len() * means.len()) as f64;
            for (column, expected) in means.iter().enumerate() {
                let variance = all
                    .iter()
                    .map(|r| (r[column] - expected).powi(2))
                    .sum::<f64>()
                    / all.len() as f64;
                let error = (moments.mean[column] - expected).abs();
                assert!(
                    error <= 2e-5 * scale.sqrt(),
                    "{what} mean {column}: {error}"
                );
                let error = (moments.variance[column] - variance).abs();
                assert!(error <= 2e-5 * scale, "{what} variance {column}: {error}");
            }
            let some: Vec<Vec<f64>> = [3, 5, 6].into_iter().flat_map(counted).collect();
            let (sigma, rank) = leading(&some, &mean(&some));
            let spectrum = spectrum.unwrap();
            // Eight products come close from below, least where the spectrum is flat, as that of random embeddings is.
            let found = spectrum.leading[0];
            assert!(
                found <= sigma * (1.0 + 1e-5) && found >= 0.97 * sigma,
                "{what}: {found} {sigma}"
            );
            close(&format!("{what} rank"), spectrum.effective_rank, rank, 0.06);
            assert!(spectrum.leading.windows(2).all(|pair| pair[0] >= pair[1]));
        }
    }
}

fn bits(losses: &[Vec<f32>]) -> Vec<Vec<u32>> {
    let each = |window: &Vec<f32>| window.iter().map(|loss| loss.to_bits()).collect();
    losses.iter().map(each).collect()
}

#[test]
fn observing_changes_no_loss_and_no_divergence() {
    let windows = ragged();
    for name in ARCHITECTURES {
        let checkpoint = open(name);
        let network = Network::new(&*checkpoint).unwrap();
        let keep = Some(KeepPolicy {
            reference: true,
            hidden_bytes: 0,
        });
        let request = ScoreRequest {
            keep,
            ..Default::default()
        };
        let kept = score(&network, &windows, request);
        let overlay = scaled(&checkpoint, "model.layers.0.self_attn.v_proj.weight", 1.2);
        let subject = Network::new(&overlay).unwrap();
        let compared = ScoreRequest {
            reference: kept.reference.as_ref(),
            ..Default::default()
        };
        let without = score(&subject, &windows, compared);
        let taps = everything(&network);
        let with = score(
            &subject,
            &windows,
            ScoreRequest {
                taps: Some(&taps),
                variation: true,
                ..compared
            },
        );
        assert_eq!(bits(&with.losses), bits(&without.losses), "{name}");
        let divergence = |scores: &Scores| bits(scores.divergence.as_ref().unwrap());
        assert_eq!(divergence(&with), divergence(&without), "{name}");
        assert!(without.variation.is_none() && without.observed.is_none());
        let variation = with.variation.unwrap();
        assert_eq!(variation.len(), windows.len());
        for (variation, divergence) in variation.iter().zip(with.divergence.as_ref().unwrap()) {
            assert_eq!(variation.len(), divergence.len());
            for (variation, divergence) in variation.iter().zip(divergence) {
                // Pinsker: the square of the total variation is at most half the divergence.
                assert!(*variation > 0.0 && *variation < 1.0);
                assert!(
                    variation.powi(2) <= divergence / 2.0 * 1.001 + 1e-9,
                    "{name}"
                );
            }
        }
    }
}

#[test]
fn a_module_is_seen_alike_alone_and_with_all_others() {
    let windows = ragged();
    for name in ["mistral", "mixtral"] {
        let network = Network::new(&*open(name)).unwrap();
        let all = everything(&network);
        let whole = observed(&network, &windows, &all);
        for part in ["down_proj", "w2", "w3", "v_proj", "block_sparse_moe.gate"] {
            let mut some = all.clone();
            some.modules.retain(|module, _| module.ends_with(part));
            for (module, found) in observed(&network, &windows, &some).modules {
                let expected = format!("{:?}", whole.modules[&module]);
                assert_eq!(format!("{found:?}"), expected, "{name} {module}");
            }
        }
    }
}

#[test]
fn batch_and_threads_change_no_bit() {
    for name in ["llama-yi", "mixtral", "mistral-window"] {
        let network = Network::new(&*open(name)).unwrap();
        let mut windows = ragged();
        // Enough for several blocks, side by side.
        windows.extend((0..24).map(|index| ragged()[7][index..].to_vec()));
        let taps = everything(&network);
        let once = Cpu::new(Some(1))
            .unwrap()
            .install(|| observed(&network, &windows, &taps));
        for threads in [2, 3, 5] {
            let cpu = Cpu::new(Some(threads)).unwrap();
            let again = cpu.install(|| observed(&network, &windows, &taps));
            assert_eq!(text(&again), text(&once), "{name}, {threads} threads");
        }
        // What is told of single windows does not depend on which others are there.
        let fewer = observed(&network, &windows[..8], &taps);
        for (module, found) in &fewer.modules {
            let whole = &once.modules[module];
            let text = |found: &Findings| {
                format!(
                    "{:?} {:?} {:?} {:?}",
                    found.risk, found.mean_square, found.outliers, found.spectrum
                )
            };
            assert_eq!(text(found), text(whole), "{name} {module}");
        }
    }
}

/// NaN equals NaN here.
fn text(observed: &Observed) -> String {
    format!("{observed:?}")
}

/// `checkpoint` with the tensor `name` multiplied by `factor`, in f32.
fn scaled(checkpoint: &Arc<Checkpoint>, name: &str, factor: f32) -> Overlay {
    let tensor = checkpoint.tensor(name).unwrap();
    let values: Vec<f32> = tensor.to_f32().iter().map(|value| value * factor).collect();
    let mut overlay = Overlay::new(checkpoint.clone());
    let changed = Tensor::from_f32(packhost_tensor::DType::F32, tensor.shape(), &values).unwrap();
    overlay.put(name, changed).unwrap();
    overlay
}

#[test]
fn a_pass_from_kept_states_sees_the_rest_to_the_bit() {
    for name in ["llama-yi", "mixtral"] {
        let checkpoint = open(name);
        let windows = ragged();
        let network = Network::new(&*checkpoint).unwrap();
        let taps = everything(&network);
        let keep = KeepPolicy {
            reference: false,
            hidden_bytes: 1 << 30,
        };
        let request = ScoreRequest {
            keep: Some(keep),
            taps: Some(&taps),
            ..Default::default()
        };
        let kept = score(&network, &windows, request);
        let overlay = scaled(&checkpoint, "model.layers.1.self_attn.v_proj.weight", 1.5);
        let subject = Network::new(&overlay).unwrap();
        let full = observed(&subject, &windows, &taps);
        let resumed = ScoreRequest {
            start: kept.hidden.as_ref(),
            taps: Some(&taps),
            ..Default::default()
        };
        let resumed = score(&subject, &windows, resumed).observed.unwrap();
        let baseline = kept.observed.unwrap();
        let mut before = 0;
        for (module, found) in &full.modules {
            match resumed.modules.get(module) {
                Some(resumed) => {
                    assert_eq!(format!("{resumed:?}"), format!("{found:?}"), "{module}")
                }
                None => {
                    // What ran before the cut is the baseline's.
                    let base = &baseline.modules[module];
                    assert_eq!(format!("{base:?}"), format!("{found:?}"), "{module}");
                    before += 1;
                }
            }
        }
        assert!(before > 4 && resumed.modules.len() > 4);
        assert!(
            resumed
                .modules
                .keys()
                .all(|name| name.starts_with("model.layers.1."))
        );
        // States that were kept without padding cannot serve a pass that needs it; the pass then starts at the front.
        let bare = ScoreRequest {
            keep: Some(keep),
            ..Default::default()
        };
        let bare = score(&network, &windows, bare);
        let request = ScoreRequest {
            start: bare.hidden.as_ref(),
            taps: Some(&taps),
            ..Default::default()
        };
        let whole = score(&subject, &windows, request).observed.unwrap();
        assert_eq!(text(&whole), text(&full));
        // And the other way round: a pass without padding uses the tokens' states alone.
        let request = ScoreRequest {
            start: kept.hidden.as_ref(),
            ..Default::default()
        };
        let plain = score(&subject, &windows, ScoreRequest::default());
        assert_eq!(
            bits(&score(&subject, &windows, request).losses),
            bits(&plain.losses)
        );
        // The first few windows of those that were kept.
        assert_eq!(
            bits(&score(&subject, &windows[..4], request).losses),
            bits(&plain.losses[..4])
        );
    }
}

#[test]
fn a_scaled_projection_equals_one_with_scaled_weights() {
    for (name, module) in [
        ("mistral", "model.layers.1.mlp.down_proj"),
        ("mistral", "model.layers.0.self_attn.o_proj"),
        ("llama-yi", "model.layers.0.mlp.gate_proj"),
        ("llama-yi", "model.layers.1.self_attn.k_proj"),
        ("qwen3", "model.layers.1.mlp.up_proj"),
        ("mixtral", "model.layers.1.block_sparse_moe.experts.2.w2"),
        ("mixtral", "model.layers.0.block_sparse_moe.gate"),
    ] {
        let checkpoint = open(name);
        let windows = ragged();
        let network = Network::new(&*checkpoint).unwrap();
        let factors: BTreeMap<String, f32> = [(module.to_owned(), 1.3)].into();
        let multiplied = network.scaled(&factors).unwrap();
        let by_output = score(&multiplied, &windows, ScoreRequest::default());
        let overlay = scaled(&checkpoint, &format!("{module}.weight"), 1.3);
        let by_weights = Network::new(&overlay).unwrap();
        let by_weights = score(&by_weights, &windows, ScoreRequest::default());
        let plain = score(&network, &windows, ScoreRequest::default());
        let (mut moved, mut apart) = (0.0f32, 0.0f32);
        for ((a, b), plain) in by_output
            .losses
            .iter()
            .zip(&by_weights.losses)
            .zip(&plain.losses)
        {
            for ((a, b), plain) in a.iter().zip(b).zip(plain) {
                apart = apart.max((a - b).abs());
                moved = moved.max((a - plain).abs());
            }
        }
        assert!(moved > 1e-4, "{name} {module}: {moved}");
        assert!(
            apart <= 2e-5 + 1e-3 * moved,
            "{name} {module}: {apart} of {moved}"
        );
        // Layers before it are shared, so a pass may start from kept states.
        let layer = usize::from(module.contains("layers.1"));
        assert_eq!(multiplied.shared_layers(&network), layer);
        assert_eq!(
            network
                .scaled(&BTreeMap::new())
                .unwrap()
                .shared_layers(&network),
            2
        );
    }
}

#[test]
fn what_cannot_be_observed_or_scaled_is_refused() {
    let network = Network::new(&*open("mistral")).unwrap();
    let windows = ragged();
    let refuse = |taps: &TapRequest| {
        let windows: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
        let request = ScoreRequest {
            windows: &windows,
            taps: Some(taps),
            ..Default::default()
        };
        network.score(&request).unwrap_err().to_string()
    };
    let mut taps = everything(&network);
    taps.modules.insert("lm_head".into(), Tap::default());
    assert!(refuse(&taps).contains("no module `lm_head` to observe"));
    let mut taps = everything(&network);
    taps.spectrum_windows.insert(8);
    assert!(refuse(&taps).contains("window 8 is to be observed, but there are 8"));
    let mut taps = everything(&network);
    taps.padding = Some(Padding {
        token: 512,
        rows: 9,
    });
    assert!(refuse(&taps).contains("the padding token is 512"));
    for (name, factor, problem) in [
        ("model.embed_tokens", 1.1, "is not a projection"),
        ("model.layers.7.mlp.up_proj", 1.1, "is not a projection"),
        (
            "model.layers.1.mlp.up_proj",
            f32::NAN,
            "a factor is a finite number",
        ),
    ] {
        let factors = [(name.to_owned(), factor)].into();
        let error = network.scaled(&factors).unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }
}
