//! A buffer whose address suits direct I/O.

use std::ops::{Deref, DerefMut};

/// A zeroed byte buffer whose first byte lies on a multiple of [`AlignedBuffer::ALIGNMENT`].
pub struct AlignedBuffer {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl AlignedBuffer {
    /// Alignment in bytes that direct I/O accepts on every file system and device in use.
    pub const ALIGNMENT: usize = 4096;

    /// A zeroed buffer of `length` bytes.
    pub fn new(length: usize) -> Self {
        let bytes = vec![0_u8; length + Self::ALIGNMENT];
        let start = bytes.as_ptr().align_offset(Self::ALIGNMENT);
        assert!(
            start < Self::ALIGNMENT,
            "align_offset of a byte pointer always has an answer"
        );
        Self {
            bytes,
            start,
            length,
        }
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.length]
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_byte_is_aligned_and_the_length_exact() {
        for length in [0, 1, 4096, 1 << 20] {
            let buffer = AlignedBuffer::new(length);
            assert_eq!(buffer.len(), length);
            assert_eq!(buffer.as_ptr().align_offset(AlignedBuffer::ALIGNMENT), 0);
        }
    }
}
