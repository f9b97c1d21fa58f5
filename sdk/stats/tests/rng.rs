//! The random streams against vectors taken from NumPy, Python and PyTorch themselves.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use packhost_stats::rng::{
    Mt19937, Pcg64, TorchNormal, numpy_permutation, python_shuffle, torch_permutation,
};
use serde_json::Value;

fn vectors(path: &str) -> Value {
    let path = format!("{}/../../tests/vectors/{path}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(&path).expect(&path)).unwrap()
}

fn hex(value: &Value) -> u128 {
    u128::from_str_radix(value.as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
}

fn integers(value: &Value) -> Vec<u64> {
    let items = value.as_array().unwrap();
    items.iter().map(|v| v.as_u64().unwrap()).collect()
}

#[test]
fn numpy_and_python_streams() {
    let file = vectors("guards/rng.json");
    let list = file["vectors"].as_array().unwrap();
    assert_eq!(list.len() as u64, file["count"].as_u64().unwrap());
    for vector in list {
        let seed = vector["seed"].as_u64().unwrap();
        match vector["kind"].as_str().unwrap() {
            "pcg64" => pcg64(seed, vector),
            "mt19937_numpy_legacy_permutation" => {
                let count = vector["n"].as_u64().unwrap() as usize;
                let got = numpy_permutation(seed as u32, count);
                let got: Vec<u64> = got.into_iter().map(|v| v as u64).collect();
                assert_eq!(got, integers(&vector["expected"]), "seed {seed}");
                let mut words = Mt19937::from_word(seed as u32);
                for expected in integers(&vector["first_u32"]) {
                    assert_eq!(u64::from(words.next_u32()), expected, "seed {seed}");
                }
            }
            "mt19937_python_shuffle" => {
                let mut items: Vec<u64> = (0..vector["n"].as_u64().unwrap()).collect();
                python_shuffle(seed, &mut items);
                assert_eq!(items, integers(&vector["expected"]), "seed {seed}");
                let first = integers(&vector["first_getrandbits32"])[0];
                assert_eq!(u64::from(Mt19937::from_python_seed(seed).next_u32()), first);
            }
            other => panic!("unknown kind {other}"),
        }
    }
}

fn pcg64(seed: u64, vector: &Value) {
    let mut generator = Pcg64::new(seed);
    let (state, increment) = generator.state();
    assert_eq!(state, hex(&vector["state_hex"]), "seed {seed}");
    assert_eq!(increment, hex(&vector["inc_hex"]), "seed {seed}");
    for expected in vector["raw_u64_hex"].as_array().unwrap() {
        assert_eq!(u128::from(generator.next_u64()), hex(expected));
    }
    let mut generator = Pcg64::new(seed);
    let expected = &vector["integers_0_10_x16_then_0_192_x9"];
    for (bound, expected) in [(10, &expected[0]), (192, &expected[1])] {
        for expected in integers(expected) {
            assert_eq!(u64::from(generator.below(bound)), expected, "seed {seed}");
        }
    }
    let mut cumulative = Vec::new();
    let mut sum = 0.0;
    for p in vector["choice_p"].as_array().unwrap() {
        sum += p.as_f64().unwrap();
        cumulative.push(sum);
    }
    for edge in &mut cumulative {
        *edge /= sum;
    }
    let mut generator = Pcg64::new(seed);
    for expected in integers(&vector["choice_x8_fresh_generator"]) {
        assert_eq!(generator.choose(&cumulative) as u64, expected);
    }
}

#[test]
fn streams_of_the_edits() {
    let file = vectors("edits/random.json");
    for vector in file["python_shuffle_of_0_to_n"].as_array().unwrap() {
        let mut items: Vec<u64> = (0..vector["n"].as_u64().unwrap()).collect();
        python_shuffle(vector["seed"].as_u64().unwrap(), &mut items);
        assert_eq!(items, integers(&vector["result"]), "{}", vector["seed"]);
    }
    for vector in file["torch_randperm"].as_array().unwrap() {
        let count = vector["n"].as_u64().unwrap() as usize;
        let got = torch_permutation(vector["seed"].as_u64().unwrap(), count);
        let got: Vec<u64> = got.into_iter().map(|v| v as u64).collect();
        assert_eq!(got, integers(&vector["result"]), "{}", vector["seed"]);
    }
}

#[test]
fn torch_normals() {
    let file = vectors("edits/random.json");
    for vector in file["torch_randn_f32"].as_array().unwrap() {
        let count = vector["n"].as_u64().unwrap() as usize;
        let got = TorchNormal::new(vector["seed"].as_u64().unwrap()).draw(count);
        let expected = vector["result"].as_array().unwrap();
        assert_eq!(got.len(), expected.len());
        for (position, (got, expected)) in got.iter().zip(expected).enumerate() {
            let expected = expected.as_f64().unwrap() as f32;
            let apart = got.to_bits().abs_diff(expected.to_bits());
            assert!(
                apart <= 2,
                "n {count}, element {position}: {got} for {expected}"
            );
        }
    }
}
