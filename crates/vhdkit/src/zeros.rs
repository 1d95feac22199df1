//! Finding zeros in bytes that are in the processor's cache anyway.

/// True if every byte is zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    is_all(bytes, 0)
}

/// True if every byte is this one.
#[inline]
pub(crate) fn is_all(bytes: &[u8], byte: u8) -> bool {
    let pattern = u64::from_ne_bytes([byte; 8]);
    // Lines of 128 bytes without a branch inside, which the compiler turns into vector instructions.
    let (lines, rest) = bytes.as_chunks::<128>();
    lines.iter().all(|line| {
        let (words, _) = line.as_chunks::<8>();
        words
            .iter()
            .fold(0, |all, word| all | (u64::from_ne_bytes(*word) ^ pattern))
            == 0
    }) && rest.iter().all(|&b| b == byte)
}

/// The parts of `bytes` that are not zeros, to a granularity of `grain` bytes: ascending, not touching.
pub(crate) fn data_runs(bytes: &[u8], grain: usize, runs: &mut Vec<std::ops::Range<usize>>) {
    runs.clear();
    for (i, piece) in bytes.chunks(grain).enumerate() {
        if is_zero(piece) {
            continue;
        }
        let start = i * grain;
        match runs.last_mut() {
            Some(last) if last.end == start => last.end += piece.len(),
            _ => runs.push(start..start + piece.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_anywhere_is_noticed() {
        let mut bytes = vec![0_u8; 1000];
        assert!(is_zero(&bytes) && is_zero(&[]));
        for i in 0..bytes.len() {
            bytes[i] = 1;
            assert!(!is_zero(&bytes));
            assert!(is_zero(&bytes[i + 1..]) && is_zero(&bytes[..i]));
            bytes[i] = 0;
        }
        bytes.fill(0xFF);
        assert!(is_all(&bytes, 0xFF) && !is_zero(&bytes));
        for i in 0..bytes.len() {
            bytes[i] = 0xFE;
            assert!(!is_all(&bytes, 0xFF));
            bytes[i] = 0xFF;
        }
    }

    #[test]
    fn runs_are_joined_and_the_last_may_be_short() {
        let mut bytes = vec![0_u8; 1050];
        for i in [150, 250, 999, 1049] {
            bytes[i] = 7;
        }
        let mut runs = Vec::new();
        data_runs(&bytes, 100, &mut runs);
        assert_eq!(runs, [100..300, 900..1050]);
    }
}
