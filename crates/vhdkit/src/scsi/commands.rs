//! The table of commands, and REPORT SUPPORTED OPERATION CODES (SPC-4, section 6.35), which shows it to the initiator.

use super::sense::Sense;
use super::{Cdb, Data, Outcome, Request, ScsiTarget, is_thin};

/// Which way the data of a command goes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[expect(clippy::exhaustive_enums, reason = "there is no fourth way")]
pub enum Direction {
    /// No data, or no such command.
    None,
    /// From the disk.
    In,
    /// To the disk.
    Out,
}

impl Direction {
    /// The direction of a command's data, by its operation code and, where that leaves it open, its bits. This, not a
    /// flag beside the CDB, says how a buffer is to be handed over.
    pub fn of(cdb: &[u8]) -> Self {
        let Some(&opcode) = cdb.first() else {
            return Direction::None;
        };
        let flags = cdb.get(1).copied().unwrap_or(0);
        match opcode {
            // VERIFY has data only if there is something to compare with (BYTCHK), WRITE SAME unless told not (NDOB).
            0x2F | 0x8F | 0xAF if flags & 0x06 == 0 => Direction::None,
            0x93 if flags & 0x01 != 0 => Direction::None,
            _ => COMMANDS
                .iter()
                .find(|known| known.matches(opcode, flags))
                .map_or(Direction::None, |known| known.direction),
        }
    }
}

/// Which devices have a command.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    Any,
    Disk,
    Optical,
    /// A disk that can give space back.
    Thin,
}

type Run = fn(&ScsiTarget, &Request, Data<'_>) -> Outcome;

/// A command.
pub(super) struct Known {
    needs: Needs,
    direction: Direction,
    /// Run whatever the state of the disk is, for any logical unit, and without forgetting older sense data (SAM-5,
    /// 5.14): INQUIRY, REPORT LUNS, REQUEST SENSE.
    pub(super) always: bool,
    /// The service action counts too.
    has_action: bool,
    /// The CDB usage data: operation code, service action, and the bits that are looked at. As long as the CDB.
    usage: &'static [u8],
    pub(super) run: Run,
}

const fn row(needs: Needs, direction: Direction, usage: &'static [u8], run: Run) -> Known {
    Known {
        needs,
        direction,
        always: false,
        has_action: false,
        usage,
        run,
    }
}

const fn always(usage: &'static [u8], run: Run) -> Known {
    let mut known = row(Needs::Any, Direction::In, usage, run);
    known.always = true;
    known
}

/// A command with a service action, which is in the low five bits of byte 1.
const fn action(needs: Needs, usage: &'static [u8], run: Run) -> Known {
    let mut known = row(needs, Direction::In, usage, run);
    known.has_action = true;
    known
}

/// All bits.
const F: u8 = 0xFF;
/// CONTROL: only NACA.
const C: u8 = 0x04;

/// All commands, by operation code.
#[rustfmt::skip]
static COMMANDS: &[Known] = {
    use Direction as Way;
    use Needs::{Any, Disk, Optical, Thin};
    use ScsiTarget as T;
    &[
        row(Any, Way::None, &[0x00, 0, 0, 0, 0, C], T::test_unit_ready),
        always(&[0x03, 0x01, 0, 0, F, C], T::request_sense),
        row(Any, Way::In, &[0x08, 0x1F, F, F, F, C], T::read),
        row(Any, Way::Out, &[0x0A, 0x1F, F, F, F, C], T::write),
        always(&[0x12, 0x03, F, F, F, C], T::inquiry),
        row(Any, Way::Out, &[0x15, 0x11, 0, 0, F, C], T::mode_select),
        row(Any, Way::In, &[0x1A, 0x08, F, F, F, C], T::mode_sense),
        row(Any, Way::None, &[0x1B, 0, 0, 0, 0xF7, C], T::start_stop_unit),
        row(Optical, Way::None, &[0x1E, 0, 0, 0, 0x03, C], T::prevent_allow_medium_removal),
        row(Any, Way::In, &[0x25, 0, F, F, F, F, 0, 0, 0x01, C], T::read_capacity_10),
        row(Any, Way::In, &[0x28, 0xF8, F, F, F, F, 0, F, F, C], T::read),
        row(Any, Way::Out, &[0x2A, 0xF8, F, F, F, F, 0, F, F, C], T::write),
        row(Any, Way::Out, &[0x2F, 0xE6, F, F, F, F, 0, F, F, C], T::verify),
        row(Any, Way::None, &[0x35, 0, F, F, F, F, 0, F, F, C], T::synchronize_cache),
        row(Disk, Way::Out, &[0x41, 0xFE, F, F, F, F, 0, F, F, C], T::write_same),
        row(Thin, Way::Out, &[0x42, 0x01, 0, 0, 0, 0, 0, F, F, C], T::unmap),
        row(Any, Way::Out, &[0x55, 0x11, 0, 0, 0, 0, 0, F, F, C], T::mode_select),
        row(Any, Way::In, &[0x5A, 0x18, F, F, 0, 0, 0, F, F, C], T::mode_sense),
        row(Any, Way::In, &[0x88, 0xF8, F, F, F, F, F, F, F, F, F, F, F, F, 0, C], T::read),
        row(Any, Way::Out, &[0x8A, 0xF8, F, F, F, F, F, F, F, F, F, F, F, F, 0, C], T::write),
        row(Any, Way::Out, &[0x8F, 0xE6, F, F, F, F, F, F, F, F, F, F, F, F, 0, C], T::verify),
        row(Any, Way::None, &[0x91, 0, F, F, F, F, F, F, F, F, F, F, F, F, 0, C], T::synchronize_cache),
        row(Disk, Way::Out, &[0x93, 0xFF, F, F, F, F, F, F, F, F, F, F, F, F, 0, C], T::write_same),
        action(Any, &[0x9E, 0x10, F, F, F, F, F, F, F, F, F, F, F, F, 0x01, C], T::read_capacity_16),
        action(Thin, &[0x9E, 0x12, F, F, F, F, F, F, F, F, F, F, F, F, 0, C], T::get_lba_status),
        always(&[0xA0, 0, F, 0, 0, 0, F, F, F, F, 0, C], T::report_luns),
        action(Any, &[0xA3, 0x0C, 0x87, F, F, F, F, F, F, F, 0, C], T::report_supported_operation_codes),
        row(Any, Way::In, &[0xA8, 0xF8, F, F, F, F, F, F, F, F, 0, C], T::read),
        row(Any, Way::Out, &[0xAA, 0xF8, F, F, F, F, F, F, F, F, 0, C], T::write),
        row(Any, Way::Out, &[0xAF, 0xE6, F, F, F, F, F, F, F, F, 0, C], T::verify),
    ]
};

impl Known {
    fn opcode(&self) -> u8 {
        self.usage[0]
    }

    fn action(&self) -> Option<u8> {
        self.has_action.then(|| self.usage[1])
    }

    fn matches(&self, opcode: u8, flags: u8) -> bool {
        self.opcode() == opcode && self.action().is_none_or(|action| action == flags & 0x1F)
    }

    /// Length of the CDB.
    pub(super) fn length(&self) -> usize {
        self.usage.len()
    }

    /// Where the CONTROL byte is.
    pub(super) fn control_at(&self) -> u16 {
        u16::try_from(self.usage.len() - 1).unwrap_or(0)
    }
}

impl ScsiTarget {
    /// The commands that this device has.
    fn commands(&self) -> impl Iterator<Item = &'static Known> {
        COMMANDS.iter().filter(|known| self.has(known))
    }

    fn has(&self, known: &Known) -> bool {
        match known.needs {
            Needs::Any => true,
            Needs::Disk => !self.optical,
            Needs::Optical => self.optical,
            Needs::Thin => is_thin(&self.disk.info()),
        }
    }

    /// The command of a CDB of any length.
    pub(super) fn find(&self, cdb: &[u8]) -> Result<&'static Known, Sense> {
        let &opcode = cdb.first().ok_or(Sense::INVALID_COMMAND)?;
        let flags = cdb.get(1).copied().unwrap_or(0);
        let mut same_code = COMMANDS
            .iter()
            .filter(|known| known.opcode() == opcode && self.has(known))
            .peekable();
        if same_code.peek().is_none() {
            return Err(Sense::INVALID_COMMAND);
        }
        same_code
            .find(|known| known.matches(opcode, flags))
            .ok_or(Sense::in_cdb(1, Some(4)))
    }

    /// REPORT SUPPORTED OPERATION CODES, A3h/0Ch.
    pub(super) fn report_supported_operation_codes(
        &self,
        request: &Request,
        data: Data<'_>,
    ) -> Outcome {
        let cdb = &request.cdb;
        let timeouts = cdb.bit(2, 7);
        let answer = match cdb.u8(2) & 7 {
            0 => self.all_commands(timeouts),
            option @ 1..=3 => self.one_command(cdb, option, timeouts)?,
            _ => return Err(Sense::in_cdb(2, Some(2)).into()),
        };
        data.answer(&answer, cdb.u32(6))
    }

    fn all_commands(&self, timeouts: bool) -> Vec<u8> {
        let mut list = vec![0; 4];
        for known in self.commands() {
            let [high, low] = (known.control_at() + 1).to_be_bytes();
            let flags = u8::from(known.has_action) | u8::from(timeouts) << 1;
            let action = known.action().unwrap_or(0);
            list.extend([known.opcode(), 0, 0, action, 0, flags, high, low]);
            if timeouts {
                list.extend(NO_TIMEOUTS);
            }
        }
        let length = u32::try_from(list.len() - 4).unwrap_or(0);
        list[..4].copy_from_slice(&length.to_be_bytes());
        list
    }

    fn one_command(&self, cdb: &Cdb, option: u8, timeouts: bool) -> Result<Vec<u8>, Sense> {
        let (opcode, action) = (cdb.u8(3), cdb.u16(4));
        let with_actions = self
            .commands()
            .any(|known| known.opcode() == opcode && known.has_action);
        let exists = self.commands().any(|known| known.opcode() == opcode);
        // A code that has service actions needs one, and the other way round.
        if option == 1 && with_actions || option == 2 && exists && !with_actions {
            return Err(Sense::in_cdb(2, Some(2)));
        }
        let found = self.commands().find(|known| {
            known.opcode() == opcode
                && match known.action() {
                    Some(known) => u16::from(known) == action,
                    None => option == 1 || action == 0,
                }
        });
        Ok(match found {
            // "Not supported".
            None => vec![0, 1, 0, 0],
            Some(known) => {
                let [high, low] = (known.control_at() + 1).to_be_bytes();
                let mut answer = vec![0, 3 | u8::from(timeouts) << 7, high, low];
                answer.extend(known.usage);
                if timeouts {
                    answer.extend(NO_TIMEOUTS);
                }
                answer
            }
        })
    }
}

/// The command timeouts descriptor that says nothing: no command has a time it should take.
const NO_TIMEOUTS: [u8; 12] = [0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order_and_lengths_follow_the_group_code() {
        let key = |known: &Known| (known.opcode(), known.action());
        assert!(COMMANDS.is_sorted_by(|a, b| key(a) < key(b)));
        for known in COMMANDS {
            let length = match known.opcode() >> 5 {
                0 => 6,
                1 | 2 => 10,
                4 => 16,
                5 => 12,
                group => panic!("no command is in group {group}"),
            };
            assert_eq!(known.length(), length, "{:#04x}", known.opcode());
        }
    }

    #[test]
    fn the_direction_is_that_of_the_operation_code() {
        let cases: [(&[u8], Direction); 12] = [
            (&[], Direction::None),
            (&[0x00], Direction::None),
            (&[0x12], Direction::In),
            (&[0x28, 0], Direction::In),
            (&[0x2A, 0], Direction::Out),
            (&[0x2F, 0], Direction::None),
            (&[0x2F, 2], Direction::Out),
            (&[0x8F, 6], Direction::Out),
            (&[0x93, 1], Direction::None),
            (&[0x93, 0], Direction::Out),
            (&[0x9E, 0x10], Direction::In),
            (&[0xFF], Direction::None),
        ];
        for (cdb, direction) in cases {
            assert_eq!(Direction::of(cdb), direction, "{cdb:02x?}");
        }
    }
}
