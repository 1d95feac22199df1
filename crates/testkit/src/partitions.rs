//! Disks with partition tables, made by hand, and what the fuzzer does with them.

use vhdkit::Result;
use vhdkit::volume::{GptMove, Medium, PartitionTable, Step, partitions};

/// CRC-32 as in zip, bit by bit: not the library's table.
pub fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = !0_u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

/// A disk in memory.
#[derive(Clone, PartialEq, Eq)]
pub struct PartitionedDisk {
    /// Its content.
    pub bytes: Vec<u8>,
    /// Its logical sectors.
    pub sector: usize,
}

/// Type byte, first sector, number of sectors.
pub type MbrEntry = (u8, u32, u32);

impl PartitionedDisk {
    /// A disk of zeros.
    pub fn blank(sector: usize, sectors: usize) -> Self {
        Self {
            bytes: vec![0; sector * sectors],
            sector,
        }
    }

    /// A GPT of 128 entries as every partitioner makes it; the partitions are given by their first and last sectors.
    pub fn gpt(sector: usize, sectors: usize, parts: &[(u64, u64)]) -> Self {
        let mut disk = Self::blank(sector, sectors);
        let array = 16384 / sector;
        let last = sectors - 1;
        disk.put_boot_record(0, &[(0xEE, 1, last as u32)]);
        for (own, other, entries) in [(1, last, 2), (last, 1, last - array)] {
            let mut header = vec![0; 92];
            header[..8].copy_from_slice(b"EFI PART");
            header[8..12].copy_from_slice(&0x10000_u32.to_le_bytes());
            header[12..16].copy_from_slice(&92_u32.to_le_bytes());
            let usable = (2 + array, last - array - 1);
            for (at, lba) in [
                (24, own),
                (32, other),
                (40, usable.0),
                (48, usable.1),
                (72, entries),
            ] {
                header[at..at + 8].copy_from_slice(&(lba as u64).to_le_bytes());
            }
            header[56..72].copy_from_slice(&[0x11; 16]);
            header[80..84].copy_from_slice(&128_u32.to_le_bytes());
            header[84..88].copy_from_slice(&128_u32.to_le_bytes());
            disk.put(own * sector, &header);
            for (i, (first, last)) in parts.iter().enumerate() {
                let mut entry = vec![0; 128];
                entry[..16].copy_from_slice(&[0x22; 16]);
                entry[16..32].copy_from_slice(&[i as u8 + 1; 16]);
                entry[32..40].copy_from_slice(&first.to_le_bytes());
                entry[40..48].copy_from_slice(&last.to_le_bytes());
                disk.put(entries * sector + i * 128, &entry);
            }
            disk.seal_gpt(own);
        }
        disk
    }

    /// Overwrites bytes; what would lie after the end is dropped.
    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        let room = self.bytes.len().saturating_sub(at);
        let length = bytes.len().min(room);
        if length > 0 {
            self.bytes[at..at + length].copy_from_slice(&bytes[..length]);
        }
    }

    /// A boot record (MBR or EBR) in a sector.
    pub fn put_boot_record(&mut self, lba: usize, entries: &[MbrEntry]) {
        let mut table = [0; 66];
        for (i, (kind, start, sectors)) in entries.iter().enumerate() {
            let entry = &mut table[i * 16..];
            entry[4] = *kind;
            entry[8..12].copy_from_slice(&start.to_le_bytes());
            entry[12..16].copy_from_slice(&sectors.to_le_bytes());
        }
        table[64..].copy_from_slice(&[0x55, 0xAA]);
        self.put(lba * self.sector + 446, &table);
    }

    /// Puts both checksums of the GPT header in a sector right, as far as it makes sense.
    pub fn seal_gpt(&mut self, lba: usize) {
        let at = lba * self.sector;
        let number = |bytes: &[u8], at: usize, length: usize| -> usize {
            let mut number = [0; 8];
            number[..length].copy_from_slice(&bytes[at..at + length]);
            u64::from_le_bytes(number) as usize
        };
        let Some(header) = self.bytes.get(at..at + self.sector) else {
            return;
        };
        let entries = number(header, 72, 8).checked_mul(self.sector);
        let array = number(header, 80, 4).saturating_mul(number(header, 84, 4));
        let end = entries.and_then(|entries| entries.checked_add(array));
        let length = number(header, 12, 4).clamp(92, self.sector);
        if let (Some(start), Some(end)) = (entries, end)
            && end <= self.bytes.len()
        {
            let sum = crc32(&self.bytes[start..end]);
            self.put(at + 88, &sum.to_le_bytes());
        }
        self.put(at + 16, &[0; 4]);
        let sum = crc32(&self.bytes[at..at + length]);
        self.put(at + 16, &sum.to_le_bytes());
    }

    /// What the library reads.
    ///
    /// # Errors
    /// None: memory does not fail.
    pub fn read(&self) -> Result<Option<PartitionTable>> {
        let read = |offset: u64, buffer: &mut [u8]| {
            let at = offset as usize;
            buffer.copy_from_slice(&self.bytes[at..at + buffer.len()]);
            Ok(())
        };
        let size = self.bytes.len() as u64;
        partitions(&Medium::new(size, self.sector as u32, &read)?)
    }

    /// Does the first so many steps of a move.
    pub fn apply(&mut self, change: &GptMove, steps: usize) {
        for step in &change.steps[..steps] {
            if let Step::Write { offset, bytes } = step {
                let at = *offset as usize;
                assert!(offset.is_multiple_of(self.sector as u64));
                assert!(at + bytes.len() <= self.bytes.len(), "past the end");
                self.put(at, bytes);
            }
        }
    }

    /// The disk after a whole move to another size.
    #[must_use]
    pub fn moved(&self, change: &GptMove, size: u64) -> Self {
        let mut moved = self.clone();
        moved.bytes.resize(moved.bytes.len().max(size as usize), 0);
        moved.apply(change, change.steps.len());
        moved.bytes.truncate(size as usize);
        moved
    }
}

/// Reads the table of a disk with any content, moves its GPT to several sizes, and expects the same partitions then.
pub fn probe_partitions(disk: &PartitionedDisk) {
    let Some(table) = disk.read().expect("memory does not fail") else {
        return;
    };
    let smallest = table.smallest_safe_size();
    let size = disk.bytes.len() as u64;
    for new_size in [smallest.unwrap_or(0), size, 2 * size] {
        let Some(change) = table.backup_gpt(new_size).filter(|_| new_size < 16 << 20) else {
            continue;
        };
        let moved = disk.moved(&change, new_size);
        let again = moved.read().expect("memory").expect("there is a table");
        assert_eq!(again.partitions, table.partitions);
        assert_eq!(again.smallest_safe_size(), smallest);
        let vhdkit::volume::Scheme::Gpt(gpt) = &again.scheme else {
            panic!("it was a GPT")
        };
        assert!(gpt.has_primary());
        assert_eq!(gpt.backup_header(), Some(new_size - disk.sector as u64));
    }
}
