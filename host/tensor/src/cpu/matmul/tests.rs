#![allow(clippy::unwrap_used)]
use super::*;
use crate::{DType, Error, Tensor, cpu::Cpu};
use bytes::Bytes;
use proptest::prelude::*;

fn noise(seed: usize, count: usize) -> Vec<f32> {
    let mut state = seed as u64 ^ 0x9e37_79b9_7f4a_7c15;
    (0..count)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32) / 8_388_608.0 - 1.0
        })
        .collect()
}

fn weight(dtype: DType, rows: usize, columns: usize, values: &[f32]) -> Weight {
    let bytes: Vec<u8> = match dtype {
        DType::BF16 => values
            .iter()
            .flat_map(|&v| half::bf16::from_f32(v).to_le_bytes())
            .collect(),
        DType::F16 => values
            .iter()
            .flat_map(|&v| half::f16::from_f32(v).to_le_bytes())
            .collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    };
    Weight::new(&Tensor::new(dtype, [rows, columns], Bytes::from(bytes)).unwrap()).unwrap()
}

fn apply(x: &[f32], rows: usize, w: &Weight, spread: Spread) -> Vec<f32> {
    let mut y = vec![f32::NAN; rows * w.rows()];
    let view = ViewMut::new(&mut y, w.rows());
    linear(
        View {
            data: x,
            rows,
            stride: w.columns(),
        },
        w,
        &view,
        Store::Replace,
        spread,
    );
    y
}

#[test]
fn slices_cover_the_depth_and_none_is_tiny() {
    for depth in 1..3000 {
        let all: Vec<_> = Blocking::of(depth).slices().collect();
        assert_eq!(all[0].start, 0);
        assert_eq!(all[all.len() - 1].end, depth);
        assert!(all.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert!(all.len() == 1 || all.iter().all(|slice| slice.len() > SMALL.2));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// The requirement on which everything else stands: a row's result has the same bits alone, in any company, at
    /// any place and for any spread.
    #[test]
    fn a_rows_bits_do_not_depend_on_the_batch(
        seed in 0usize..1000, m in 1usize..600, n in prop_oneof![1usize..40, 90usize..100, 180usize..420],
        k in prop_oneof![1usize..70, 120usize..140, 500usize..560, 1000usize..1100],
        dtype in prop_oneof![Just(DType::BF16), Just(DType::F16), Just(DType::F32)],
    ) {
        let x = noise(seed, m * k);
        let w = weight(dtype, n, k, &noise(seed + 1, n * k));
        let whole = apply(&x, m, &w, Spread::Here);
        prop_assert_eq!(&whole, &apply(&x, m, &w, Spread::Pool));
        // Reversed order.
        let reversed: Vec<f32> = x.chunks_exact(k).rev().flatten().copied().collect();
        let back: Vec<f32> = apply(&reversed, m, &w, Spread::Here).chunks_exact(n).rev().flatten().copied().collect();
        prop_assert_eq!(&whole, &back);
        // Split in two, and the last row alone.
        let cut = seed % m;
        if cut > 0 {
            let mut parts = apply(&x[..cut * k], cut, &w, Spread::Here);
            parts.extend(apply(&x[cut * k..], m - cut, &w, Spread::Pool));
            prop_assert_eq!(&whole, &parts);
        }
        let last = apply(&x[(m - 1) * k..], 1, &w, Spread::Here);
        prop_assert_eq!(&whole[(m - 1) * n..], &last[..]);
        // And it is the product.
        let mut row = vec![0.0; k];
        for j in [0, n / 2, n - 1] {
            w.row(j, &mut row);
            let exact: f64 = row.iter().zip(&x[(m - 1) * k..]).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
            prop_assert!((f64::from(last[j]) - exact).abs() < 1e-5 * (k as f64).sqrt() + 1e-6);
        }
    }
}

#[test]
fn adding_keeps_what_was_there() {
    let (m, n, k) = (5, 200, 700);
    let x = noise(1, m * k);
    let w = weight(DType::BF16, n, k, &noise(2, n * k));
    let plain = apply(&x, m, &w, Spread::Here);
    let mut y = vec![1000.0; m * n];
    linear(
        View::dense(&x, m),
        &w,
        &ViewMut::new(&mut y, n),
        Store::Add,
        Spread::Here,
    );
    for (sum, product) in y.iter().zip(&plain) {
        assert!((sum - 1000.0 - product).abs() < 1e-3);
    }
}

#[test]
fn tensors_multiply_and_refuse() {
    let cpu = Cpu::new(Some(2)).unwrap();
    let f32s = |shape: [usize; 2], values: &[f32]| {
        Tensor::new(
            DType::F32,
            shape,
            Bytes::from(
                values
                    .iter()
                    .flat_map(|v| v.to_le_bytes())
                    .collect::<Vec<u8>>(),
            ),
        )
        .unwrap()
    };
    let a = f32s([2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let b = f32s([3, 2], &[7.0, 8.0, 9.0, 10.0, 11.0, 12.0]);
    let product = matmul_tensors(&cpu, &a, &b).unwrap();
    assert_eq!(
        product.bytes(),
        f32s([2, 2], &[58.0, 64.0, 139.0, 154.0]).bytes()
    );
    assert!(matches!(
        matmul_tensors(&cpu, &a, &a),
        Err(Error::Shape { .. })
    ));
}
