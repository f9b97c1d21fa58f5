//! Which rows of a matrix are damaged.

use packhost_sdk::{DType, Program, Result, Span, Tensor, crc32, rng};

/// How many of `rows` rows a share means: rounded half to even, at least `least`, at most `most` and all there are.
pub fn count(rows: u64, share: f64, most: u64, least: u64) -> u64 {
    let wanted = (rows as f64 * share).round_ties_even() as u64;
    wanted.min(rows).min(most).max(least).min(rows)
}

/// The indices of the `count` rows that `selection` means. Random choices are a function of seed and tensor name.
///
/// # Errors
/// What the host refuses.
pub fn choose(
    tensor: &Tensor,
    name: &str,
    selection: &str,
    count: u64,
    seed: u64,
) -> Result<Vec<u64>> {
    let (rows, _) = tensor.info().rows_columns();
    let random = |among: u64| {
        let seed = seed.wrapping_add(u64::from(crc32(name.as_bytes()))) & 0xffff_ffff;
        rng::torch_permutation(seed, among as usize)
            .into_iter()
            .map(|row| row as u64)
    };
    Ok(match selection {
        "last" | "tail" => (rows - count..rows).collect(),
        "random" | "rand" => random(rows).take(count as usize).collect(),
        // A block that begins anywhere: the first element of a permutation of the possible beginnings.
        "random_block" | "rand_block" | "block" => {
            let start = random(rows - count + 1).next().unwrap_or(0);
            (start..start + count).collect()
        }
        "top_norm" | "top" | "largest_norm" => {
            let norms = norms(tensor)?;
            let mut order: Vec<u64> = (0..rows).collect();
            // Stable: of equal norms the lower index comes first.
            order.sort_by(|&a, &b| norms[b as usize].total_cmp(&norms[a as usize]));
            order.truncate(count as usize);
            order
        }
        // `first`, `head`, and whatever is not known.
        _ => (0..count).collect(),
    })
}

/// The norm of every row in f32.
fn norms(tensor: &Tensor) -> Result<Vec<f32>> {
    let (rows, columns) = tensor.info().rows_columns();
    let program = Program::new(|k| (k.input(0) * k.input(0)).reduce_sum(Span::Row).sqrt())?;
    let norms = tensor
        .convert(DType::F32, false)?
        .compute(&program, &[], &[])?
        .tensor;
    (0..rows)
        .map(|row| Ok(norms.read(row * columns, 1)?[0]))
        .collect()
}
