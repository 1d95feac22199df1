//! How far it is while maps are still asked what there is to do. Mostly that takes no time; where each look reads a bitmap
//! or a page of a table it can take most of the time.

use crate::error::Result;
use crate::operation::Monitor;

/// What a look costs, in bytes that could have been copied meanwhile: it reads a page at most.
const COST: u64 = 4096;

/// What is asked of a map at a time, in bytes: no more than some MiB of tables answer for it.
pub(super) const LONGEST: u64 = 256 << 30;

/// Reports looks at a disk of `size` bytes, of which what was not looked at is taken to be like the rest.
pub(super) struct Looks<'a> {
    monitor: &'a Monitor,
    size: u64,
    counted: u64,
    /// Units done before, and others that are known to come.
    before: u64,
    later: u64,
}

impl<'a> Looks<'a> {
    pub(super) fn new(monitor: &'a Monitor, size: u64) -> Self {
        Self {
            monitor,
            size,
            counted: 0,
            before: 0,
            later: 0,
        }
    }

    /// Looks that are not all there is: so many units were done before, and so many are known to come besides.
    pub(super) fn among(self, before: u64, later: u64) -> Self {
        Self {
            before,
            later,
            ..self
        }
    }

    fn tell(&self, all: u64) {
        let done = self.before + self.counted;
        self.monitor
            .set(done, all.saturating_add(self.before + self.later));
    }

    /// One more look: up to `at` the disk is known, and `work` bytes have to be copied there. The work may stop here.
    pub(super) fn seen(&mut self, at: u64, work: u64) -> Result<()> {
        self.counted += COST;
        let all = u128::from(self.counted + work) * u128::from(self.size) / u128::from(at.max(1));
        let all = u64::try_from(all).unwrap_or(u64::MAX);
        self.tell(all.max(self.counted + 1));
        self.monitor.checkpoint()
    }

    /// All is known: so many bytes have to be copied. Also if there are none it isn't done yet: equal values of a mirror say
    /// that both disks are the same.
    pub(super) fn are_over(self, work: u64) {
        self.tell(self.counted + work.max(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p17_looks_that_are_over_never_say_that_all_is_done() {
        for (work, before, later) in [(0, 0, 0), (7, 0, 0), (0, 5, 0), (0, 5, 3)] {
            let monitor = Monitor::unobserved();
            let observer = monitor.observer();
            let not_done = || {
                let seen = observer.progress();
                assert!(seen.current < seen.completion, "{seen:?}");
            };
            let mut looks = Looks::new(&monitor, 100).among(before, later);
            for at in [50, 100] {
                looks.seen(at, work).unwrap();
                not_done();
            }
            looks.are_over(work);
            not_done();
        }
    }
}
