//! Mutants of a sealed run's pack: single bytes changed in every file that can be changed, by a forger who makes every digest
//! fit again and signs with a key of his own. Verifying refuses each mutant, or a replay names the file that was changed.

use std::collections::BTreeMap;
use std::fs;

use packhost_pack::layout;
use rayon::prelude::*;

use crate::replay::{Forgery, sealed};
use crate::support::files;

/// How many bytes of each file are changed, one at a time.
const PER_FILE: usize = 3;

/// A digit becomes another digit; any other byte that JSON and text can carry becomes its neighbour in the alphabet; a byte
/// of a component is flipped.
fn mutate(bytes: &mut [u8], at: usize, binary: bool) {
    bytes[at] = match bytes[at] {
        byte if binary => byte ^ 0x10,
        b'9' => b'0',
        byte @ b'0'..=b'8' => byte + 1,
        byte => byte ^ 0x01,
    };
}

/// Places in a file, spread over it by a generator of fixed seed: digits first, any byte last.
fn places(name: &str, bytes: &[u8]) -> Vec<usize> {
    let mut state = name.bytes().fold(0x9e37_79b9_7f4a_7c15_u64, |state, byte| {
        (state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let mut draw = |from: &[usize]| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        from[(state >> 33) as usize % from.len()]
    };
    let all: Vec<usize> = (0..bytes.len()).collect();
    let digits: Vec<usize> = all
        .iter()
        .copied()
        .filter(|&at| bytes[at].is_ascii_digit())
        .collect();
    let mut places: Vec<usize> = (0..PER_FILE)
        .map(|place| match place + 1 < PER_FILE && !digits.is_empty() {
            true => draw(&digits),
            false => draw(&all),
        })
        .collect();
    places.sort_unstable();
    places.dedup();
    places
}

/// What kind of file it is: its name without numbers, models, digests and scenarios.
fn class(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap();
    for ending in [".wasm", ".changes.json"] {
        if last.ends_with(ending) {
            return format!("*{ending}");
        }
    }
    last.chars().filter(|c| !c.is_ascii_digit()).collect()
}

#[test]
fn every_mutant_of_a_pack_is_found_and_named() {
    let pack = sealed().path("run/evidence_pack");
    let mutants: Vec<(String, usize)> = files(&pack)
        .into_keys()
        // The forger writes those anew.
        .filter(|name| !layout::is_control(name) && !name.ends_with(layout::RUNTIME_MANIFEST))
        .flat_map(|name| {
            let bytes = fs::read(pack.join(&name)).unwrap();
            let places = places(&name, &bytes);
            places.into_iter().map(move |at| (name.clone(), at))
        })
        .collect();
    let outcome = |(name, at): &(String, usize)| {
        let forgery = Forgery::new();
        let path = forgery.pack().join(name);
        let mut bytes = fs::read(&path).unwrap();
        let before = bytes[*at];
        mutate(&mut bytes, *at, name.ends_with(".wasm"));
        assert_ne!(bytes[*at], before);
        fs::write(&path, bytes).unwrap();
        match forgery.differences() {
            None => Outcome::Refused,
            Some(found) if found.iter().any(|difference| difference.file == *name) => {
                Outcome::Named
            }
            Some(found) => Outcome::Missed(format!("{name} at {at}: {found:#?}")),
        }
    };
    let outcomes: Vec<Outcome> = mutants.par_iter().map(outcome).collect();
    let mut classes: BTreeMap<String, [usize; 2]> = BTreeMap::new();
    let mut missed = Vec::new();
    for ((name, _), outcome) in mutants.iter().zip(&outcomes) {
        let counts = classes.entry(class(name)).or_default();
        match outcome {
            Outcome::Refused => counts[0] += 1,
            Outcome::Named => counts[1] += 1,
            Outcome::Missed(what) => missed.push(what),
        }
    }
    println!(
        "{} mutants; by class, refused by verifying and named by a replay:",
        mutants.len()
    );
    for (class, [refused, named]) in &classes {
        println!("  {class}: {refused}, {named}");
    }
    assert!(missed.is_empty(), "{} missed: {missed:#?}", missed.len());
    let named: usize = classes.values().map(|counts| counts[1]).sum();
    assert!(named * 2 > mutants.len(), "{named} of {}", mutants.len());
}

enum Outcome {
    Refused,
    Named,
    Missed(String),
}
