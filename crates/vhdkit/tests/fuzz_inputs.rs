//! The committed inputs of the fuzzer, and some made up on the spot, through the same functions.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "helpers of tests: a failure is a failed test"
)]

use std::path::Path;

use vhdkit_testkit::fuzz::TARGETS;
use vhdkit_testkit::rng::Rng;

#[test]
fn every_committed_input_of_the_fuzzer_passes() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    for (name, run) in TARGETS {
        let mut inputs: Vec<_> = std::fs::read_dir(corpus.join(name))
            .unwrap_or_else(|e| panic!("{name}: {e}"))
            .map(|entry| entry.unwrap().path())
            .collect();
        inputs.sort();
        assert!(!inputs.is_empty(), "{name} has no inputs");
        for input in inputs {
            println!("{}", input.display());
            run(&std::fs::read(&input).unwrap());
        }
    }
}

#[test]
fn random_inputs_pass() {
    for (name, run) in TARGETS {
        let mut rng = Rng::new(name.len() as u64);
        for round in 0..60 {
            println!("{name}, round {round}");
            let length = rng.below(300);
            let input: Vec<u8> = (0..length)
                .map(|_| {
                    // Half of the bytes are small: kinds, lengths and counts.
                    let byte = rng.next().to_le_bytes()[0];
                    if rng.one_in(2) { byte % 8 } else { byte }
                })
                .collect();
            run(&input);
        }
    }
}
