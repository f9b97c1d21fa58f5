//! Arms of equal difficulty: a byte 4-gram model ranks the texts, and neighbours in rank go to different arms.

use std::collections::{HashMap, HashSet};

/// Size of the byte model's alphabet: the byte values and the padding before a text.
const ALPHABET: f64 = 257.0;

/// Mean negative log-probability per byte of each text under a byte 4-gram model with add-one smoothing, fitted on the
/// same texts. An empty text has difficulty 0.
#[must_use]
pub fn difficulty(texts: &[&str]) -> Vec<f64> {
    // A context is three symbols of 9 bits; an n-gram is a context and a byte.
    const START: u64 = 256 << 18 | 256 << 9 | 256;
    let next = |context: u64, byte: u8| (context << 9 | u64::from(byte)) & 0x7ff_ffff;
    let mut contexts: HashMap<u64, u32> = HashMap::new();
    let mut grams: HashMap<u64, u32> = HashMap::new();
    for text in texts {
        let mut context = START;
        for byte in text.bytes() {
            *contexts.entry(context).or_default() += 1;
            *grams.entry(context << 8 | u64::from(byte)).or_default() += 1;
            context = next(context, byte);
        }
    }
    let count = |map: &HashMap<u64, u32>, key| f64::from(map.get(&key).copied().unwrap_or(0));
    texts
        .iter()
        .map(|text| {
            let (mut context, mut sum) = (START, 0.0);
            for byte in text.bytes() {
                let gram = count(&grams, context << 8 | u64::from(byte));
                sum -= libm::log((gram + 1.0) / (count(&contexts, context) + ALPHABET));
                context = next(context, byte);
            }
            sum / text.len().max(1) as f64
        })
        .collect()
}

/// Split `(difficulty, index)` items into arms of the given sizes and equal difficulty; there must be at least as many
/// items as places. Returns the indices of both arms, each sorted by difficulty.
///
/// Evenly spaced ranks are picked, consecutive ranks go to different arms with alternating precedence, and up to 100
/// swaps of extremes narrow the difference of the arms' means.
#[must_use]
pub fn stratify(items: &[(f64, usize)], preview: usize, final_: usize) -> (Vec<usize>, Vec<usize>) {
    let order = |a: &(f64, usize), b: &(f64, usize)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
    let mut ranked = items.to_vec();
    ranked.sort_by(order);
    let wanted = (preview + final_).min(ranked.len());
    let mut picked: Vec<(f64, usize)> = spread(ranked.len(), wanted)
        .into_iter()
        .map(|position| ranked[position])
        .collect();
    picked.sort_by(order);

    let (mut first, mut second) = (Vec::new(), Vec::new());
    let mut put = |item, to_preview: bool| {
        let (room_first, room_second) = (first.len() < preview, second.len() < final_);
        if (to_preview && room_first) || !room_second {
            first.push(item);
        } else {
            second.push(item);
        }
    };
    for (pair, chunk) in picked.chunks(2).enumerate() {
        let even = pair % 2 == 0 || chunk.len() == 1;
        put(chunk[0], even);
        if let Some(harder) = chunk.get(1) {
            put(*harder, !even);
        }
    }
    balance(&mut first, &mut second);
    first.sort_by(order);
    second.sort_by(order);
    let indices = |arm: Vec<(f64, usize)>| arm.into_iter().map(|item| item.1).collect();
    (indices(first), indices(second))
}

/// `wanted` positions below `count`, evenly spread: each target takes the nearest unused position, upwards first.
fn spread(count: usize, wanted: usize) -> Vec<usize> {
    let mut used = HashSet::new();
    let mut positions = Vec::with_capacity(wanted);
    for k in 0..wanted {
        let target = (k as f64 + 0.5) * count as f64 / wanted as f64;
        let base = target.round_ties_even() as usize;
        let nearest = (0..=count)
            .flat_map(|offset| [Some(base + offset), base.checked_sub(offset)])
            .flatten()
            .find(|position| *position < count && !used.contains(position));
        if let Some(position) = nearest {
            used.insert(position);
            positions.push(position);
        }
    }
    positions
}

fn balance(first: &mut Vec<(f64, usize)>, second: &mut Vec<(f64, usize)>) {
    if first.is_empty() || second.is_empty() {
        return;
    }
    let mean = |arm: &[(f64, usize)]| arm.iter().map(|item| item.0).sum::<f64>() / arm.len() as f64;
    for _ in 0..100 {
        let gap = mean(first) - mean(second);
        if gap.abs() <= 1e-4 {
            break;
        }
        let (from_first, from_second) = if gap < 0.0 {
            (lowest(first), highest(second))
        } else {
            (highest(first), lowest(second))
        };
        let (mut a, mut b) = (first.clone(), second.clone());
        let (moved_a, moved_b) = (a.remove(from_first), b.remove(from_second));
        a.push(moved_b);
        b.push(moved_a);
        if (mean(&a) - mean(&b)).abs() >= gap.abs() - 1e-6 {
            break;
        }
        (*first, *second) = (a, b);
    }
}

/// Position of the first item of least difficulty.
fn lowest(arm: &[(f64, usize)]) -> usize {
    (1..arm.len()).fold(0, |best, i| if arm[i].0 < arm[best].0 { i } else { best })
}

/// Position of the first item of greatest difficulty.
fn highest(arm: &[(f64, usize)]) -> usize {
    (1..arm.len()).fold(0, |best, i| if arm[i].0 > arm[best].0 { i } else { best })
}
