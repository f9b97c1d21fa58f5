//! One number over a whole tensor, accumulated in f64 in a fixed order.

use rayon::prelude::*;

use crate::{Error, Result, Summary, Tensor, cast, cpu::Cpu};

/// Elements per piece of work. Partial results are joined in the order of the pieces.
const PIECE: usize = 1 << 16;
/// Accumulators per piece: element `i` goes to accumulator `i % LANES`, so that the loop is free of a serial dependency.
const LANES: usize = 16;

/// The statistic of all elements, each read as f32.
///
/// # Errors
/// When there is no element and the statistic needs one.
pub fn summary(device: &Cpu, tensor: &Tensor, summary: Summary) -> Result<f64> {
    let len = tensor.len();
    let needs_one = matches!(
        summary,
        Summary::Max | Summary::Min | Summary::AbsMax | Summary::Mean
    );
    if len == 0 && needs_one {
        return Err(Error::Argument {
            op: "summary",
            message: format!(
                "an empty tensor has no {}",
                format!("{summary:?}").to_lowercase()
            ),
        });
    }
    let joined = |start: f64, piece: fn(&[f32]) -> f64, join: fn(f64, f64) -> f64| {
        pieces(device, tensor, piece).into_iter().fold(start, join)
    };
    let sum = |piece| joined(0.0, piece, |a, b| a + b);
    Ok(match summary {
        Summary::Max => joined(
            f64::NEG_INFINITY,
            |v| fold(v, f64::NEG_INFINITY, |x| x, larger),
            larger,
        ),
        Summary::Min => joined(
            f64::INFINITY,
            |v| fold(v, f64::INFINITY, |x| x, smaller),
            smaller,
        ),
        Summary::AbsMax => joined(0.0, |v| fold(v, 0.0, f64::abs, larger), larger),
        Summary::Sum => sum(|v| fold(v, 0.0, |x| x, |a, b| a + b)),
        Summary::Mean => sum(|v| fold(v, 0.0, |x| x, |a, b| a + b)) / len as f64,
        Summary::AbsSum => sum(|v| fold(v, 0.0, f64::abs, |a, b| a + b)),
        Summary::SumOfSquares => sum(|v| fold(v, 0.0, |x| x * x, |a, b| a + b)),
        Summary::Zeros => sum(|v| v.iter().filter(|&&x| x == 0.0).count() as f64),
        Summary::NonFinite => sum(|v| v.iter().filter(|x| !x.is_finite()).count() as f64),
    })
}

/// `piece` of every piece of the tensor, in order.
fn pieces(device: &Cpu, tensor: &Tensor, piece: fn(&[f32]) -> f64) -> Vec<f64> {
    let dtype = tensor.dtype();
    device.install(|| {
        tensor
            .bytes()
            .par_chunks(PIECE * dtype.size())
            .map_init(
                || vec![0.0f32; PIECE],
                |values, bytes| {
                    let values = &mut values[..bytes.len() / dtype.size()];
                    cast::decode(dtype, bytes, values);
                    piece(values)
                },
            )
            .collect()
    })
}

/// Folds `values` in `LANES` interleaved accumulators and then joins those in order.
#[inline(always)]
fn fold(
    values: &[f32],
    start: f64,
    map: impl Fn(f64) -> f64,
    join: impl Fn(f64, f64) -> f64,
) -> f64 {
    let mut lanes = [start; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = join(*lane, map(f64::from(value)));
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane = join(*lane, map(f64::from(value)));
    }
    lanes.into_iter().fold(start, join)
}

/// The larger; a NaN wins.
#[inline(always)]
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

/// The smaller; a NaN wins.
#[inline(always)]
fn smaller(a: f64, b: f64) -> f64 {
    if a.is_nan() || a < b { a } else { b }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::DType;

    #[test]
    fn agrees_with_plain_loops_and_any_thread_count() {
        let values: Vec<f32> = (0..200_003u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 * 1e-6 - 8.0)
            .collect();
        let tensor = Tensor::from_f32(DType::F32, [200_003], &values).unwrap();
        let exact: f64 = values.iter().map(|&x| f64::from(x)).sum();
        let squares: f64 = values.iter().map(|&x| f64::from(x).powi(2)).sum();
        let mut seen = Vec::new();
        for threads in [1, 2, 5] {
            let device = Cpu::new(Some(threads)).unwrap();
            let of = |which| summary(&device, &tensor, which).unwrap();
            assert!((of(Summary::Sum) / exact - 1.0).abs() < 1e-12);
            assert!((of(Summary::SumOfSquares) / squares - 1.0).abs() < 1e-12);
            assert_eq!(of(Summary::Mean), of(Summary::Sum) / 200_003.0);
            assert_eq!(
                of(Summary::Max),
                values.iter().copied().fold(f32::MIN, f32::max) as f64
            );
            assert_eq!(
                of(Summary::Min),
                values.iter().copied().fold(f32::MAX, f32::min) as f64
            );
            seen.push(of(Summary::AbsSum).to_bits());
        }
        assert!(seen.iter().all(|&bits| bits == seen[0]));
    }

    #[test]
    fn special_values_are_counted_and_propagate() {
        let device = Cpu::new(Some(1)).unwrap();
        let values = [1.0, -0.0, f32::INFINITY, f32::NAN, 0.0, -3.0];
        let tensor = Tensor::from_f32(DType::BF16, [6], &values).unwrap();
        assert_eq!(summary(&device, &tensor, Summary::Zeros).unwrap(), 2.0);
        assert_eq!(summary(&device, &tensor, Summary::NonFinite).unwrap(), 2.0);
        for which in [Summary::Max, Summary::Min, Summary::AbsMax] {
            assert!(summary(&device, &tensor, which).unwrap().is_nan());
        }
        let empty = Tensor::zeros(DType::F32, [0]).unwrap();
        assert_eq!(summary(&device, &empty, Summary::Sum).unwrap(), 0.0);
        let error = summary(&device, &empty, Summary::AbsMax).unwrap_err();
        assert_eq!(error.to_string(), "summary: an empty tensor has no absmax");
    }
}
