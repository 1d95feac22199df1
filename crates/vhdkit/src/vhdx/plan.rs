//! Which blocks have to move so that the file becomes as short as it can, and where to.
//!
//! The highest block goes to the lowest hole that takes it, again and again, until the highest cannot move. So nothing
//! below the new end moves, and nothing moves twice; a plan made after some of the moves is the rest of the first one.

use std::collections::HashMap;

use super::space::{Span, UsedMap};

/// Something that takes space and can move.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Movable {
    /// What a BAT entry refers to, by its index.
    Entry(u64),
    /// The BAT region.
    Bat,
    /// The metadata region.
    Metadata,
}

/// One move. In bytes of the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Move {
    pub(super) what: Movable,
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) length: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Plan {
    /// In the order to make them.
    pub(super) moves: Vec<Move>,
    /// Length of the file afterwards.
    pub(super) end: u64,
}

impl Plan {
    /// No file that holds what `used` says is shorter than this: what ends before it never moves.
    pub(super) fn floor(used: &UsedMap) -> u64 {
        used.end() - used.free()
    }

    /// `objects` are the movable things that end behind [`Plan::floor`]; what ends at `pinned_end` or before it stays.
    pub(super) fn new(
        used: &UsedMap,
        pinned_end: u64,
        objects: impl IntoIterator<Item = (Span, Movable)>,
    ) -> Self {
        // By their places: of many blocks most are in order already, which sorting makes use of.
        let mut objects: Vec<(Span, Movable)> = objects.into_iter().collect();
        objects.sort_unstable_by_key(|&((at, _), _)| at);
        let mut holes = Holes::new(used);
        let mut moves = Vec::new();
        // Once everything ends at the floor or before it, nothing is left free below it. What has moved has no lower hole.
        let mut end = Self::floor(used).max(pinned_end);
        while let Some(((from, length), what)) = objects.pop() {
            if from + length <= end {
                break;
            }
            let Some(to) = holes.take(length, from) else {
                end = from + length;
                break;
            };
            end = end.max(to + length);
            moves.push(Move {
                what,
                from,
                to,
                length,
            });
        }
        Self { moves, end }
    }

    /// Bytes still to be moved.
    pub(super) fn left(moves: &[Move]) -> u64 {
        moves.iter().map(|step| step.length).sum()
    }
}

struct Holes {
    spans: Vec<Span>,
    /// By length: no span before this one is long enough. Spans only become shorter.
    first: HashMap<u64, usize>,
}

impl Holes {
    fn new(used: &UsedMap) -> Self {
        Self {
            spans: used.holes(usize::MAX),
            first: HashMap::new(),
        }
    }

    /// The lowest `length` free bytes that end at `below` or before it.
    fn take(&mut self, length: u64, below: u64) -> Option<u64> {
        let first = self.first.entry(length).or_default();
        while self
            .spans
            .get(*first)
            .is_some_and(|&(_, free)| free < length)
        {
            *first += 1;
        }
        let (offset, free) = self.spans.get_mut(*first)?;
        let at = *offset;
        if at + length > below {
            return None;
        }
        *offset += length;
        *free -= length;
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::num::MIB;

    fn used(spans: &[Span]) -> UsedMap {
        let mut used = UsedMap::default();
        for &(at, length) in spans {
            assert!(used.mark(at * MIB, length * MIB));
        }
        used
    }

    fn plan(fixed: u64, blocks: &[Span]) -> (Vec<(u64, u64)>, u64) {
        let mut all = blocks.to_vec();
        all.push((0, fixed));
        let used = used(&all);
        let objects = blocks
            .iter()
            .zip(0..)
            .map(|(&(at, length), i)| ((at * MIB, length * MIB), Movable::Entry(i)))
            .filter(|((at, length), _)| at + length > Plan::floor(&used));
        let plan = Plan::new(&used, fixed * MIB, objects);
        let moves = plan.moves.iter().map(|m| (m.from / MIB, m.to / MIB));
        (moves.collect(), plan.end / MIB)
    }

    #[test]
    fn only_what_lies_behind_the_new_end_moves() {
        assert_eq!(plan(4, &[(4, 2), (6, 2)]), (vec![], 8));
        assert_eq!(
            plan(4, &[(4, 2), (8, 2), (12, 2)]),
            (vec![(12, 6)], 10),
            "one hole of two is enough"
        );
        assert_eq!(
            plan(4, &[(10, 2), (12, 2), (20, 2)]),
            (vec![(20, 4), (12, 6), (10, 8)], 10)
        );
    }

    #[test]
    fn a_hole_that_is_too_small_is_left_and_what_cannot_move_ends_the_file() {
        assert_eq!(plan(4, &[(5, 2), (7, 2)]), (vec![], 9));
        assert_eq!(plan(4, &[(5, 2), (9, 1)]), (vec![(9, 4)], 7));
        let used = used(&[(0, 4), (8, 2), (20, 1), (30, 2)]);
        let objects = [(8, 2, 0), (30, 2, 1)]
            .map(|(at, length, i)| ((at * MIB, length * MIB), Movable::Entry(i)));
        let plan = Plan::new(&used, 21 * MIB, objects);
        assert_eq!((plan.moves.len(), plan.end), (1, 21 * MIB));
        assert_eq!(plan.moves[0].to, 4 * MIB);
    }

    #[test]
    fn a_plan_made_half_way_is_the_rest_of_the_first() {
        let mut state = 7_u64;
        let mut next = |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % below
        };
        for _ in 0..200 {
            let mut at = 4;
            let mut blocks: Vec<Span> = Vec::new();
            for _ in 0..12 {
                at += next(4);
                let length = 1 + next(2) * 2;
                blocks.push((at, length));
                at += length;
            }
            let (moves, end) = plan(4, &blocks);
            for done in 0..=moves.len() {
                let mut now = blocks.clone();
                for &(from, to) in &moves[..done] {
                    let block = now.iter_mut().find(|b| b.0 == from).unwrap();
                    block.0 = to;
                }
                now.sort_unstable();
                assert_eq!(plan(4, &now), (moves[done..].to_vec(), end), "{blocks:?}");
            }
        }
    }
}
