#![allow(clippy::unwrap_used)]
use super::*;

fn sorted(tensor: &Tensor) -> Vec<f32> {
    let mut all: Vec<f32> = tensor.to_f32().into_iter().map(f32::abs).collect();
    all.sort_by(f32::total_cmp);
    all
}

const DTYPES: [DType; 6] = [
    DType::F64,
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::F8E4M3,
    DType::F8E5M2,
];

/// Ranks at and around ends, ties and quarters.
fn ranks(len: usize) -> Vec<usize> {
    let around = [
        1,
        len / 100,
        len / 4,
        len / 2,
        len / 2 + 1,
        3 * len / 5,
        len - len / 50,
        len,
    ];
    around
        .into_iter()
        .flat_map(|k| [k.saturating_sub(1), k, k + 1])
        .filter(|k| (1..=len).contains(k))
        .collect()
}

fn check(values: &[f32], what: &str) {
    let devices: Vec<Cpu> = Level::available()
        .into_iter()
        .map(|level| Cpu::with_level(Some(3), level).unwrap())
        .chain([Cpu::new(Some(1)).unwrap()])
        .collect();
    for dtype in DTYPES {
        let tensor = Tensor::from_f32(dtype, [values.len()], values).unwrap();
        let sorted = sorted(&tensor);
        for k in ranks(values.len()) {
            for device in &devices {
                let found = kth_magnitude(device, &tensor, k as u64).unwrap();
                assert_eq!(
                    found.to_bits(),
                    cast::canonical(sorted[k - 1]).to_bits(),
                    "{what}, {dtype}, k {k}, {}",
                    device.level().name()
                );
            }
        }
    }
}

/// Words that look random.
fn words(len: u32) -> impl Iterator<Item = u32> {
    (0..len).map(|i| i.wrapping_mul(2_654_435_761).rotate_left(7) ^ i.wrapping_mul(0x9e37_79b9))
}

#[test]
fn equals_sorting() {
    let special = [0.0, -0.0, f32::NAN, f32::NEG_INFINITY, 1e-45];
    let any = |len| words(len).map(f32::from_bits).chain(special);
    check(&any(5000).collect::<Vec<_>>(), "any bits, small");
    check(&any(100_003).collect::<Vec<_>>(), "any bits");
    let weights = words(150_001).map(|word| (word as f32 / 2e9 - 1.0).powi(3) * 0.02);
    check(&weights.collect::<Vec<_>>(), "weights");
}

/// Ties fill the bracket, or the sample sees nothing of what counts.
#[test]
fn misleading_samples_change_nothing() {
    let len = 120_011;
    check(&vec![0.0; len as usize], "zeros");
    let pruned = words(len).map(|word| {
        if word % 5 < 3 {
            -0.0
        } else {
            word as f32 * 1e-9
        }
    });
    check(&pruned.collect::<Vec<_>>(), "pruned");
    let levels = words(len).map(|word| [0.0, 0.5, -0.5, 1.0, f32::NAN][word as usize % 5]);
    check(&levels.collect::<Vec<_>>(), "few levels");
    // A smooth ramp: each run of the sample is a single place, and pieces are wholly inside or outside.
    let ramp = (0..len).map(|i| i as f32 * 1e-3);
    check(&ramp.collect::<Vec<_>>(), "ramp");
    // Where the sample looks there are ones, elsewhere the ramp.
    let mut hidden: Vec<f32> = (0..len).map(|i| 2.0 + i as f32 * 1e-6).collect();
    let stride = hidden.len() / RUNS;
    for run in 0..RUNS {
        hidden[run * stride..][..stride.min(9)].fill(1.0);
    }
    check(&hidden, "hidden");
}

#[test]
fn brackets_that_miss_are_noticed() {
    let values: Vec<f32> = words(70_000).map(|word| word as f32).collect();
    let tensor = Tensor::from_f32(DType::F32, [values.len()], &values).unwrap();
    let elements = tensor.bytes().as_chunks::<4>().0;
    let bracket = |low: f32, high: f32| Bracket {
        low: low.to_bits(),
        high: high.to_bits(),
    };
    let half = 35_000;
    let found = |bracket| within::<u32, 4>(Level::Portable, elements, bracket, half);
    assert_eq!(found(bracket(1.0, 2.0)), None, "all above");
    assert_eq!(found(bracket(5e9, 6e9)), None, "all below");
    assert_eq!(found(bracket(1.0, 6e9)), None, "too many within");
    let right = found(bracket(2.1e9, 2.2e9));
    assert_eq!(right, Some(by_counting::<u32, 4>(elements, half)));
}

#[test]
fn refuses_what_has_no_answer() {
    let device = Cpu::new(Some(1)).unwrap();
    let tensor = Tensor::zeros(DType::BF16, [4]).unwrap();
    let message = kth_magnitude(&device, &tensor, 5).unwrap_err().to_string();
    assert_eq!(
        message,
        "kth-magnitude: k is 5, it must be from 1 to the element count, 4"
    );
    assert!(kth_magnitude(&device, &tensor, 0).is_err());
    let integers = Tensor::zeros(DType::I32, [4]).unwrap();
    assert!(kth_magnitude(&device, &integers, 1).is_err());
}
