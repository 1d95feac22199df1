//! MODE SENSE and MODE SELECT (SPC-4, sections 6.9 to 6.12): the caching page (SBC-3, 6.5.6) and the control page (SPC-4,
//! 7.5.8). The one thing that can be changed is D_SENSE, the format of the sense data.

use super::sense::Sense;
use super::{Cdb, Data, Done, Outcome, Request, ScsiTarget};

const CACHING: u8 = 0x08;
const CONTROL: u8 = 0x0A;
const ALL: u8 = 0x3F;
/// The pages there are, in the order in which they are reported.
const PAGES: [u8; 2] = [CACHING, CONTROL];
/// Byte 2 of the control page.
const D_SENSE: u8 = 0x04;

/// Which values of a page.
#[derive(Clone, Copy)]
enum Values {
    Current,
    /// Ones where MODE SELECT may change something.
    Changeable,
    Default,
}

impl ScsiTarget {
    /// A page, header included.
    fn page(&self, page: u8, values: Values) -> Vec<u8> {
        let changeable = matches!(values, Values::Changeable);
        if page == CACHING {
            let mut bytes = vec![0; 20];
            bytes[..2].copy_from_slice(&[CACHING, 18]);
            if !changeable && self.disk.is_writable() {
                // WCE: what is written is safe after a flush, not before.
                bytes[2] = 0x04;
            }
            return bytes;
        }
        let mut bytes = vec![0; 12];
        bytes[..2].copy_from_slice(&[CONTROL, 10]);
        bytes[2] = match values {
            Values::Current if self.state().descriptor => D_SENSE,
            Values::Changeable => D_SENSE,
            _ => 0,
        };
        if !changeable {
            // Commands may be run in any order.
            bytes[3] = 0x10;
        }
        bytes
    }

    /// The block descriptor: the long form or the short one.
    fn block_descriptor(&self, long: bool) -> Vec<u8> {
        let blocks = self.capacity();
        let mut bytes = Vec::new();
        if long {
            bytes.extend(blocks.to_be_bytes());
            bytes.extend([0; 4]);
        } else {
            bytes.extend(u32::try_from(blocks).unwrap_or(u32::MAX).to_be_bytes());
        }
        // In the short form the first byte belongs to another field, and is zero.
        bytes.extend(self.sector_bytes());
        bytes
    }

    /// MODE SENSE (6), 1Ah, and (10), 5Ah.
    pub(super) fn mode_sense(&self, request: &Request, data: Data<'_>) -> Outcome {
        let cdb = &request.cdb;
        let short = cdb.is_short();
        let values = match cdb.u8(2) >> 6 {
            0 => Values::Current,
            1 => Values::Changeable,
            2 => Values::Default,
            _ => return Err(Sense::NO_SAVING.into()),
        };
        let (page, subpage) = (cdb.u8(2) & 0x3F, cdb.u8(3));
        let pages: Vec<u8> = match page {
            ALL if matches!(subpage, 0x00 | 0xFF) => PAGES
                .iter()
                .flat_map(|&page| self.page(page, values))
                .collect(),
            _ if PAGES.contains(&page) && matches!(subpage, 0x00 | 0xFF) => self.page(page, values),
            _ if PAGES.contains(&page) || page == ALL => return Err(Sense::in_cdb(3, None).into()),
            _ => return Err(Sense::in_cdb(2, Some(5)).into()),
        };
        let long = !short && cdb.bit(1, 4);
        let descriptor = if cdb.bit(1, 3) || self.optical {
            Vec::new()
        } else {
            self.block_descriptor(long)
        };
        // WP and DPOFUA.
        let device = if self.optical {
            0
        } else {
            u8::from(!self.disk.is_writable()) << 7 | 0x10
        };
        let [_, descriptor_length] = length(descriptor.len()).to_be_bytes();
        let rest = descriptor.len() + pages.len();
        let mut answer = if short {
            let [_, all] = length(rest + 3).to_be_bytes();
            vec![all, 0, device, descriptor_length]
        } else {
            let [high, low] = length(rest + 6).to_be_bytes();
            vec![
                high,
                low,
                0,
                device,
                u8::from(long),
                0,
                0,
                descriptor_length,
            ]
        };
        answer.extend(descriptor);
        answer.extend(pages);
        data.answer(&answer, allocation(cdb))
    }

    /// MODE SELECT (6), 15h, and (10), 55h. All or nothing.
    pub(super) fn mode_select(&self, request: &Request, data: Data<'_>) -> Outcome {
        let cdb = &request.cdb;
        // SP: nothing can be saved.
        cdb.refuse_bit(1, 0)?;
        // PF: only pages as in the standard.
        if !cdb.bit(1, 4) && allocation(cdb) > 0 {
            return Err(Sense::in_cdb(1, Some(4)).into());
        }
        let expected = u64::from(allocation(cdb));
        let list = data.output(expected, Sense::LIST_LENGTH)?;
        if let Some(descriptor) = self.selected(list, cdb.is_short())? {
            self.state().descriptor = descriptor;
        }
        Ok(Done {
            transferred: list.len(),
            expected,
        })
    }

    /// What a parameter list says of D_SENSE, if it changes nothing else.
    fn selected(&self, list: &[u8], short: bool) -> Result<Option<bool>, Sense> {
        if list.is_empty() {
            return Ok(None);
        }
        let header = if short { 4 } else { 8 };
        if list.len() < header {
            return Err(Sense::LIST_LENGTH);
        }
        let (long, length, length_at) = if short {
            (false, usize::from(list[3]), 3)
        } else {
            let length = u16::from_be_bytes([list[6], list[7]]);
            (list[4] & 1 != 0, usize::from(length), 6)
        };
        let mut at = header;
        if length > 0 {
            let current = self.block_descriptor(long);
            if length != current.len() {
                return Err(Sense::in_list(length_at, None));
            }
            let given = list.get(at..at + length).ok_or(Sense::LIST_LENGTH)?;
            // No blocks, or all ones, means as many as there are.
            let count = if long { 8 } else { 4 };
            let keeps = given[..count] == current[..count]
                || given[..count].iter().all(|&b| b == 0)
                || given[..count].iter().all(|&b| b == 0xFF);
            if !keeps {
                return Err(Sense::in_list(at, None));
            }
            if given[count..] != current[count..] {
                return Err(Sense::in_list(at + count, None));
            }
            at += length;
        }
        let mut descriptor = None;
        while at < list.len() {
            // PS is reserved here, SPF would name a subpage.
            let page = list[at] & 0x7F;
            if !PAGES.contains(&page) {
                return Err(Sense::in_list(at, Some(5)));
            }
            let current = self.page(page, Values::Current);
            let changeable = self.page(page, Values::Changeable);
            match list.get(at + 1) {
                None => return Err(Sense::LIST_LENGTH),
                Some(&length) if length != current[1] => return Err(Sense::in_list(at + 1, None)),
                Some(_) => {}
            }
            let given = list.get(at..at + current.len()).ok_or(Sense::LIST_LENGTH)?;
            for i in 2..given.len() {
                let wrong = (given[i] ^ current[i]) & !changeable[i];
                if wrong != 0 {
                    let bit = u8::try_from(wrong.ilog2()).ok();
                    return Err(Sense::in_list(at + i, bit));
                }
            }
            if page == CONTROL {
                descriptor = Some(given[2] & D_SENSE != 0);
            }
            at += current.len();
        }
        Ok(descriptor)
    }
}

/// The allocation length, or the length of the parameter list.
fn allocation(cdb: &Cdb) -> u32 {
    if cdb.is_short() {
        u32::from(cdb.u8(4))
    } else {
        u32::from(cdb.u16(7))
    }
}

fn length(bytes: usize) -> u16 {
    u16::try_from(bytes).unwrap_or(u16::MAX)
}
