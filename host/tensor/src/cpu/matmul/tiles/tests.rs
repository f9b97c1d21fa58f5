#![allow(clippy::unwrap_used)]
use super::super::{Spread, ViewMut, linear};
use super::*;
use crate::Tensor;
use bytes::Bytes;

fn weight(rows: usize, columns: usize, values: impl Iterator<Item = f32>) -> Weight {
    let bytes: Vec<u8> = values
        .flat_map(|v| half::bf16::from_f32(v).to_le_bytes())
        .collect();
    Weight::new(&Tensor::new(DType::BF16, [rows, columns], Bytes::from(bytes)).unwrap()).unwrap()
}

fn apply(x: &[f32], w: &Weight) -> Vec<f32> {
    let rows = x.len() / w.columns();
    let mut y = vec![f32::NAN; rows * w.rows()];
    linear(
        View::dense(x, rows),
        w,
        &ViewMut::new(&mut y, w.rows()),
        Store::Replace,
        Spread::Here,
    );
    y
}

/// Every bit of a number takes part: with weights that are powers of two a row of one number is multiplied exactly.
#[test]
fn no_bit_of_a_number_is_lost() {
    let numbers = [
        1.0f32,
        -1.0,
        f32::from_bits(0x3fff_ffff),
        f32::from_bits(0xbf80_0001),
        f32::from_bits(0x7f7f_ffff),
        f32::from_bits(0x1000_0001),
        std::f32::consts::PI,
        1e-30,
    ];
    let w = weight(1, 1, [0.5].into_iter());
    assert_eq!(apply(&numbers, &w), numbers.map(|number| number * 0.5));
}

#[test]
fn special_numbers_stay_what_they_are() {
    let w = weight(2, 2, [1.0, 0.0, -2.0, 1.0].into_iter());
    let quiet_in_the_lower_half = f32::from_bits(0x7f80_0001);
    let y = apply(
        &[
            f32::INFINITY,
            1.0,
            quiet_in_the_lower_half,
            1.0,
            3.0,
            f32::NEG_INFINITY,
        ],
        &w,
    );
    assert_eq!(y[..2], [f32::INFINITY, f32::NEG_INFINITY]);
    assert!(y[2].is_nan() && y[3].is_nan());
    assert!(y[4].is_nan() && y[5] == f32::NEG_INFINITY);
}
