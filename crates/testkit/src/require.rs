//! When a test may be skipped: never silently, and not where everything is supposed to be there.

/// Says why something is skipped that every machine for tests can have; panics where skipping is a failure (`CI=true` or `VHDKIT_NO_SKIP=1`).
///
/// Returns `false`, so that a test reads `if !there { return skip("...") }` or `if require(there, "...") { ... }`.
pub fn skip(reason: &str) -> bool {
    let set = |name: &str, value: &str| std::env::var(name).is_ok_and(|v| v == value);
    assert!(
        !set("CI", "true") && !set("VHDKIT_NO_SKIP", "1"),
        "this has to run here: {reason}"
    );
    println!("SKIPPED: {reason}");
    false
}

/// True if `there`; see [`skip`] for what happens otherwise.
pub fn require(there: bool, reason: &str) -> bool {
    there || skip(reason)
}

/// As [`skip`], for what cannot be had everywhere (images that may not be shipped): only `VHDKIT_NO_SKIP=1` panics.
pub fn skip_optional(reason: &str) -> bool {
    assert!(
        std::env::var("VHDKIT_NO_SKIP").as_deref() != Ok("1"),
        "this has to run here: {reason}"
    );
    println!("SKIPPED: {reason}");
    false
}
