//! Every function from eight threads at random: `tests/c/random.c`, built with AddressSanitizer, which also looks for leaks.
//!
//! `VHDKIT_RANDOM_SECONDS` says how long (20 if it is not set), `VHDKIT_SEED` from where (another place each time).

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use common::{Compiler, Language};
use vhdkit::image::Severity;
use vhdkit::verbs::check::check_file;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// All files that are left are whole.
fn assert_whole(folder: &Path) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let mut bad = check_file(&path).unwrap();
        bad.retain(|finding| finding.severity > Severity::Info);
        assert!(bad.is_empty(), "{}: {bad:#?}", path.display());
    }
}

#[test]
fn eight_threads_call_everything_at_random() {
    let seconds = setting("VHDKIT_RANDOM_SECONDS").unwrap_or(20);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = setting("VHDKIT_SEED").unwrap_or(now.as_secs());
    println!("seed {seed}");
    let folder = tempfile::tempdir().unwrap();
    let compiler = Compiler::new(Language::C).options(&["-D_GNU_SOURCE", "-fsanitize=address"]);
    let program = compiler.build(include_str!("c/random.c"));
    let (seconds, seed) = (seconds.to_string(), seed.to_string());
    compiler.execute(
        &program,
        &[],
        &[folder.path(), Path::new(&seconds), Path::new(&seed)],
    );
    assert_whole(folder.path());
}
