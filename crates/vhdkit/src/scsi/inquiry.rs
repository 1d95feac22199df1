//! Who the device is: INQUIRY with its vital product data, REPORT LUNS, REQUEST SENSE.
//!
//! The names are those that Windows gives the same disk, so that a guest that has seen it there finds it again
//! (`/dev/disk/by-id`, multipath, cluster reservations): vendor and product as text, and in page 83h two designators
//! made of the 16 bytes of the virtual disk identifier as a GUID lies in memory:
//!
//! - type 1, T10 vendor identification: `MSFT    ` and the 16 bytes;
//! - type 3, NAA registered extended: `60022480h`, then bytes 0 to 5 and 10 to 15 (those between hold the GUID's version
//!   and variant).
//!
//! Guests of Hyper-V show both, for example `14d53465420202020 0792c2f5cc7e f14b8a73 55cb3cef0107` and
//! `360022480 0792c2f5cc7e 55cb3cef0107`. A child has its parent's name, as there, since it has its identifier.

use super::sense::Sense;
use super::{Data, Done, Outcome, Request, ScsiTarget, is_thin};
use crate::num::to_usize;

const VENDOR: &[u8; 8] = b"Msft    ";
const DISK: &[u8; 16] = b"Virtual Disk    ";
const OPTICAL: &[u8; 16] = b"Virtual DVD-ROM ";
const REVISION: &[u8; 4] = b"1.0 ";

/// No device here: qualifier 3, type 1Fh.
const NO_DEVICE: u8 = 0x7F;
const OPTICAL_TYPE: u8 = 0x05;

/// Longest transfer of one command, in bytes. READ (10) reaches it with the largest sectors.
pub(super) const MAX_TRANSFER: u64 = 256 << 20;
/// Most descriptors in the list of an UNMAP.
pub(super) const MAX_UNMAP_DESCRIPTORS: u16 = 256;
/// A good length for one transfer.
const OPTIMAL_TRANSFER: u64 = 1 << 20;

impl ScsiTarget {
    /// INQUIRY, 12h.
    pub(super) fn inquiry(&self, request: &Request, data: Data<'_>) -> Outcome {
        let cdb = &request.cdb;
        // CMDDT is obsolete.
        cdb.refuse_bit(1, 1)?;
        let (product_data, page) = (cdb.bit(1, 0), cdb.u8(2));
        let mut answer = match page {
            0 if !product_data => self.standard_inquiry(),
            _ if !product_data => return Err(Sense::in_cdb(2, None).into()),
            page => self
                .product_data(page)
                .ok_or_else(|| Sense::in_cdb(2, None))?,
        };
        answer[0] = match (request.other_unit, self.optical) {
            (true, _) => NO_DEVICE,
            (false, true) => OPTICAL_TYPE,
            (false, false) => 0,
        };
        data.answer(&answer, u32::from(cdb.u16(3)))
    }

    /// SPC-4, 6.6.2.
    fn standard_inquiry(&self) -> Vec<u8> {
        let mut answer = vec![0; 74];
        if self.optical {
            // RMB: the medium can be removed.
            answer[1] = 0x80;
        }
        // SPC-4; response data format 2.
        answer[2..4].copy_from_slice(&[0x06, 0x02]);
        answer[4] = 74 - 5;
        // CMDQUE: several commands at once.
        answer[7] = 0x02;
        answer[8..16].copy_from_slice(VENDOR);
        answer[16..32].copy_from_slice(if self.optical { OPTICAL } else { DISK });
        answer[32..36].copy_from_slice(REVISION);
        // Version descriptors: SAM-5, SPC-4, and for disks SBC-3, no version claimed.
        answer[58..62].copy_from_slice(&[0x00, 0xA0, 0x04, 0x60]);
        if !self.optical {
            answer[62..64].copy_from_slice(&[0x04, 0xC0]);
        }
        answer
    }

    /// A page of vital product data (SPC-4, 7.8; SBC-3, 6.6), or none.
    fn product_data(&self, page: u8) -> Option<Vec<u8>> {
        let body = match page {
            0x00 if self.optical => vec![0x00, 0x80, 0x83],
            0x00 => vec![0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2],
            0x80 => self.serial_number(),
            0x83 => self.designators(),
            0xB0 if !self.optical => self.block_limits(),
            0xB1 if !self.optical => {
                let mut body = vec![0; 60];
                // It does not rotate.
                body[..2].copy_from_slice(&1_u16.to_be_bytes());
                body
            }
            0xB2 if !self.optical => self.logical_block_provisioning(),
            _ => return None,
        };
        let [high, low] = u16::try_from(body.len()).unwrap_or(0).to_be_bytes();
        let mut answer = vec![0, page, high, low];
        answer.extend(body);
        Some(answer)
    }

    /// The identifier in digits, in the order of page 83h.
    fn serial_number(&self) -> Vec<u8> {
        let digits = self.identifier.to_bytes_le();
        digits
            .iter()
            .flat_map(|byte| format!("{byte:02x}").into_bytes())
            .collect()
    }

    fn designators(&self) -> Vec<u8> {
        const BINARY: u8 = 0x01;
        let id = self.identifier.to_bytes_le();
        let mut body = vec![BINARY, 0x01, 0, 8 + 16];
        body.extend(b"MSFT    ");
        body.extend(id);
        body.extend([BINARY, 0x03, 0, 16]);
        body.extend([0x60, 0x02, 0x24, 0x80]);
        body.extend(&id[..6]);
        body.extend(&id[10..]);
        body
    }

    /// SBC-3, 6.6.4. What is zero is not there or has no limit.
    fn block_limits(&self) -> Vec<u8> {
        let info = self.disk.info();
        let blocks = |bytes: u64| u32::try_from(bytes / self.sector).unwrap_or(u32::MAX);
        let granularity = blocks(u64::from(info.physical_sector_size)).max(1);
        let mut body = vec![0; 60];
        let mut put = |at: usize, bytes: &[u8]| {
            // Offsets as in the standard: from the start of the page.
            body[at - 4..at - 4 + bytes.len()].copy_from_slice(bytes);
        };
        // WSNZ stays 0: WRITE SAME of no blocks goes on to the end of the disk. It has no longest length.
        put(
            6,
            &u16::try_from(granularity).unwrap_or(u16::MAX).to_be_bytes(),
        );
        put(8, &blocks(MAX_TRANSFER).to_be_bytes());
        put(12, &blocks(OPTIMAL_TRANSFER).to_be_bytes());
        if is_thin(&info) {
            put(20, &u32::MAX.to_be_bytes());
            put(24, &u32::from(MAX_UNMAP_DESCRIPTORS).to_be_bytes());
            let block = info.block_size.map_or(granularity, blocks);
            put(28, &block.to_be_bytes());
            // UGAVALID: such pieces start at block 0.
            put(32, &0x8000_0000_u32.to_be_bytes());
        }
        body
    }

    /// SBC-3, 6.6.6. LBPRZ is true: what UNMAP gives back reads as zeros, and what it cannot give back stays mapped.
    fn logical_block_provisioning(&self) -> Vec<u8> {
        if is_thin(&self.disk.info()) {
            // LBPU, LBPWS, LBPWS10, LBPRZ; thin provisioned.
            vec![0, 0x80 | 0x40 | 0x20 | 0x04, 2, 0]
        } else {
            vec![0; 4]
        }
    }

    /// REPORT LUNS, A0h: there is one.
    #[expect(clippy::unused_self, reason = "a command of the table")]
    pub(super) fn report_luns(&self, request: &Request, data: Data<'_>) -> Outcome {
        let mut answer = vec![0; 8];
        match request.cdb.u8(2) {
            0x00 | 0x02 => {
                answer[3] = 8;
                answer.extend([0; 8]);
            }
            // Well known logical units: none.
            0x01 => {}
            _ => return Err(Sense::in_cdb(2, None).into()),
        }
        data.answer(&answer, request.cdb.u32(6))
    }

    /// REQUEST SENSE, 03h: why the last command failed, once.
    pub(super) fn request_sense(&self, request: &Request, data: Data<'_>) -> Outcome {
        let sense = if request.other_unit {
            Sense::NO_SUCH_UNIT
        } else {
            let last = self.state().last.take();
            last.or_else(|| self.attention()).unwrap_or(Sense::NONE)
        };
        let answer = sense.bytes(request.cdb.bit(1, 0));
        data.answer(&answer, u32::from(request.cdb.u8(4)))
    }

    /// TEST UNIT READY, 00h.
    pub(super) fn test_unit_ready(&self, _request: &Request, _data: Data<'_>) -> Outcome {
        if self.capacity() == 0 {
            return Err(Sense::NO_MEDIUM.into());
        }
        Ok(Done::NOTHING)
    }

    /// READ CAPACITY (10), 25h (SBC-3, 5.15).
    pub(super) fn read_capacity_10(&self, request: &Request, data: Data<'_>) -> Outcome {
        // PMI is obsolete; without it there must be no address.
        request.cdb.refuse_bit(8, 0)?;
        if request.cdb.u32(2) != 0 {
            return Err(Sense::in_cdb(2, None).into());
        }
        let last = u32::try_from(self.last_block()?).unwrap_or(u32::MAX);
        let mut answer = [0; 8];
        answer[..4].copy_from_slice(&last.to_be_bytes());
        answer[4..].copy_from_slice(&self.sector_bytes());
        data.answer(&answer, 8)
    }

    /// READ CAPACITY (16), 9Eh/10h (SBC-3, 5.16).
    pub(super) fn read_capacity_16(&self, request: &Request, data: Data<'_>) -> Outcome {
        request.cdb.refuse_bit(14, 0)?;
        if request.cdb.u64(2) != 0 {
            return Err(Sense::in_cdb(2, None).into());
        }
        let info = self.disk.info();
        let mut answer = [0; 32];
        answer[..8].copy_from_slice(&self.last_block()?.to_be_bytes());
        answer[8..12].copy_from_slice(&self.sector_bytes());
        let per_physical = u64::from(info.physical_sector_size) / self.sector;
        answer[13] = u8::try_from(per_physical.max(1).ilog2()).unwrap_or(0) & 0x0F;
        if is_thin(&info) {
            // LBPME, LBPRZ.
            answer[14] = 0x80 | 0x40;
        }
        data.answer(&answer, request.cdb.u32(10))
    }

    fn last_block(&self) -> Result<u64, Sense> {
        self.capacity().checked_sub(1).ok_or(Sense::NO_MEDIUM)
    }

    pub(super) fn sector_bytes(&self) -> [u8; 4] {
        u32::try_from(self.sector).unwrap_or(0).to_be_bytes()
    }

    /// Length of a logical block in memory.
    pub(super) fn sector_length(&self) -> usize {
        to_usize(self.sector)
    }
}
