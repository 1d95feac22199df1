//! Where everything lies in a dynamic or differencing file, and what packing it would move.
//!
//! Bitmaps count as structures: the guest cannot fill them. Gaps that alignment leaves are free space.

use std::ops::Range;

use super::header::BlockShape;
use super::layout::SECTOR;
use crate::num::round_up;
use crate::storage::AlignedBuffer;

/// What a structure is, as far as moving it goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Stays where it is.
    Pinned,
    /// The block allocation table.
    Table,
    /// The room of a parent locator: its slot.
    Locator(usize),
}

/// A part of the file that is neither block nor footer at the end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Structure {
    pub(super) kind: Kind,
    pub(super) range: Range<u64>,
}

/// A block and its new place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Move {
    pub(super) block: u64,
    pub(super) from: u64,
    pub(super) to: u64,
}

/// What is to be moved for the file to be as short as it can be without moving more than that.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Blocks; the first move is the last one here.
    pub(super) moves: Vec<Move>,
    /// Structures: which, and where it goes. Afterwards.
    pub(super) structures: Vec<(Structure, u64)>,
    /// Where the footer at the end comes to be.
    pub(super) end: u64,
}

impl BlockShape {
    /// True if the data of a block at `at` lies on a multiple of 4096 (of its size if that is less).
    fn is_aligned(self, at: u64) -> bool {
        self.place_behind(at) == at
    }
}

/// Gaps between ranges sorted by their start, before the end of the last.
pub(super) fn holes(used: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut holes = Vec::new();
    let mut at = 0;
    for range in used {
        if range.start > at {
            holes.push(at..range.start);
        }
        at = at.max(round_up(range.end, SECTOR));
    }
    holes
}

/// Lengths of ranges sorted by their start, what they share counted once.
pub(super) fn covered(used: &[Range<u64>]) -> u64 {
    let (mut sum, mut at) = (0, 0);
    for range in used {
        sum += range.end.saturating_sub(range.start.max(at));
        at = at.max(range.end);
    }
    sum
}

/// How many blocks do not lie directly behind the one before them. Blocks are in the order of the disk.
pub(super) fn displaced(blocks: &[(u64, u64)], shape: BlockShape) -> u64 {
    let misses = blocks.windows(2).filter(|pair| {
        let end = pair[0].1 + shape.total();
        !(end..=shape.place_behind(end)).contains(&pair[1].1)
    });
    misses.count() as u64
}

/// How many bytes lie between the data of two blocks if one lies directly behind the other: the bitmap, before it
/// perhaps the gap that aligns the block, and nothing else. They may be copied with the data of both, if what is copied
/// has a bitmap there that is right here. Only of lengths with which each shares no less of its file system's blocks
/// than alone.
pub(super) fn between(
    shape: BlockShape,
    structures: &[Structure],
    before: u64,
    at: u64,
) -> Option<u64> {
    let gap = before + shape.total()..shape.place_behind(before + shape.total());
    let length = gap.end + shape.bitmap_size - gap.start;
    let is_free = gap.end == at
        // No block fits a gap.
        && gap.end - gap.start < shape.total()
        && structures
            .iter()
            .all(|s| s.range.end <= gap.start || s.range.start >= gap.end);
    (is_free && length.is_multiple_of(AlignedBuffer::ALIGNMENT as u64)).then_some(length)
}

/// Plans packing: the last block goes to the lowest place before it, again and again; then structures that are last go
/// down too. A block whose data is aligned goes to an aligned place if there is one, others to any.
///
/// `blocks` are numbers and offsets, in any order.
pub(super) fn plan(blocks: &[(u64, u64)], structures: &[Structure], shape: BlockShape) -> Plan {
    let total = shape.total();
    let mut blocks: Vec<(u64, u64)> = blocks.iter().map(|&(block, at)| (at, block)).collect();
    blocks.sort_unstable();
    let mut used: Vec<Range<u64>> = structures.iter().map(|s| s.range.clone()).collect();
    used.extend(blocks.iter().map(|&(at, _)| at..at + total));
    used.sort_unstable_by_key(|range| range.start);
    let pinned = structures
        .iter()
        .filter(|s| s.kind == Kind::Pinned)
        .map(|s| s.range.end)
        .max()
        .unwrap_or(0);

    let mut search = Search {
        holes: holes(&used),
        aligned: 0,
        any: 0,
        shape,
    };
    let mut moves = Vec::new();
    while let Some(&(from, block)) = blocks.last() {
        // Behind it lies what does not move: nothing would be won.
        if from + total <= pinned {
            break;
        }
        let Some(to) = search.take(from) else {
            break;
        };
        blocks.pop();
        moves.push(Move { block, from, to });
    }
    let mut used: Vec<Range<u64>> = blocks.iter().map(|&(at, _)| at..at + total).collect();
    used.extend(moves.iter().map(|m| m.to..m.to + total));
    let mut end = used.iter().map(|r| r.end).max().unwrap_or(0).max(pinned);
    let moved = move_structures(structures, used, &mut end);
    moves.reverse();
    Plan {
        moves,
        structures: moved,
        end: round_up(end, SECTOR),
    }
}

/// Structures behind `end` go to the lowest hole in which they fit; `end` becomes that of everything.
fn move_structures(
    structures: &[Structure],
    mut used: Vec<Range<u64>>,
    end: &mut u64,
) -> Vec<(Structure, u64)> {
    let mut order: Vec<&Structure> = structures.iter().collect();
    order.sort_unstable_by_key(|s| s.range.end);
    used.extend(structures.iter().map(|s| s.range.clone()));
    used.sort_unstable_by_key(|range| range.start);
    let mut moved = Vec::new();
    while let Some(last) = order.pop() {
        if last.range.end <= *end {
            break;
        }
        let length = round_up(last.range.end - last.range.start, SECTOR);
        let place = (last.kind != Kind::Pinned)
            .then(|| holes(&used))
            .and_then(|holes| {
                holes
                    .into_iter()
                    .find(|h| h.start + length <= h.end.min(last.range.start))
            });
        let Some(hole) = place else {
            *end = last.range.end;
            break;
        };
        let to = hole.start..hole.start + length;
        *end = to.end.max(*end);
        let index = used.partition_point(|range| range.start < to.start);
        used.insert(index, to.clone());
        moved.push((last.clone(), to.start));
    }
    moved
}

/// Looks for places from the lowest hole up.
struct Search {
    /// Their starts move up as they are used.
    holes: Vec<Range<u64>>,
    /// The first hole in which there may be an aligned place.
    aligned: usize,
    /// The first hole in which there may be any.
    any: usize,
    shape: BlockShape,
}

impl Search {
    /// A place for the block at `from` that ends before it.
    fn take(&mut self, from: u64) -> Option<u64> {
        let shape = self.shape;
        if shape.is_aligned(from) {
            let (index, at) = first(&self.holes, self.aligned, from, shape, |start| {
                shape.place_behind(start)
            });
            self.aligned = index;
            if let Some(at) = at {
                self.holes[index].start = at + shape.total();
                return Some(at);
            }
        }
        let (index, at) = first(&self.holes, self.any, from, shape, |start| start);
        self.any = index;
        let at = at?;
        self.holes[index].start = at + shape.total();
        Some(at)
    }
}

/// The first hole from `index` on with a place before `from`, and the place.
fn first(
    holes: &[Range<u64>],
    mut index: usize,
    from: u64,
    shape: BlockShape,
    place: impl Fn(u64) -> u64,
) -> (usize, Option<u64>) {
    while let Some(hole) = holes.get(index) {
        if hole.start >= from {
            break;
        }
        let at = place(hole.start);
        if at + shape.total() <= hole.end.min(from) {
            return (index, Some(at));
        }
        index += 1;
    }
    (index, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::num::MIB;

    const SHAPE: BlockShape = BlockShape {
        block_size: 4096,
        bitmap_size: 512,
    };
    const STRIDE: u64 = 8192;

    fn front(end: u64) -> Structure {
        Structure {
            kind: Kind::Pinned,
            range: 0..end,
        }
    }

    /// Blocks at aligned places, counted.
    fn place(n: u64) -> u64 {
        SHAPE.place_behind(2048) + n * STRIDE
    }

    #[test]
    fn blocks_are_neighbours_if_only_a_bitmap_and_a_free_gap_lie_between_them() {
        let shape = BlockShape::new(2 * MIB);
        let at = |index: u64| 3584 + index * (2 * MIB + 4096);
        let structure = |range| Structure {
            kind: Kind::Locator(0),
            range,
        };
        assert_eq!(between(shape, &[], at(1), at(2)), Some(4096));
        let gap = at(1) + shape.total()..at(2);
        assert_eq!(gap.end - gap.start, 3584);
        let outside = [structure(0..gap.start), structure(gap.end..gap.end + 512)];
        assert_eq!(between(shape, &outside, at(1), at(2)), Some(4096));
        for inside in [gap.start..gap.start + 512, gap.end - 512..gap.end] {
            assert_eq!(between(shape, &[structure(inside)], at(1), at(2)), None);
        }
        for (before, after) in [(at(1), at(3)), (at(2), at(1)), (at(1), at(1))] {
            assert_eq!(between(shape, &[], before, after), None);
        }
        // Other programs put blocks at any sector; then not every block's data is aligned as its neighbour's.
        let behind = at(1) + shape.total();
        assert_eq!(between(shape, &[], at(1), behind), None);
        // The bitmap of a large block needs no gap.
        let large = BlockShape::new(32 * MIB);
        assert_eq!(between(large, &[], 0, large.total()), Some(8192));
    }

    #[test]
    fn the_last_blocks_fill_the_lowest_holes_and_no_others_move() {
        let blocks: Vec<_> = [0, 2, 3, 6, 7].iter().map(|&n| (n, place(n))).collect();
        let plan = plan(&blocks, &[front(2048)], SHAPE);
        let moves: Vec<_> = plan.moves.iter().rev().map(|m| (m.block, m.to)).collect();
        assert_eq!(moves, [(7, place(1)), (6, place(4))]);
        assert_eq!(plan.end, place(4) + SHAPE.total());
    }

    #[test]
    fn a_packed_file_stays_as_it_is() {
        let blocks: Vec<_> = (0..5).map(|n| (n, place(4 - n))).collect();
        let plan = plan(&blocks, &[front(2048)], SHAPE);
        assert!(plan.moves.is_empty() && plan.structures.is_empty());
        assert_eq!(displaced(&blocks, SHAPE), 4);
    }

    #[test]
    fn foreign_blocks_fill_holes_of_their_own_size_and_aligned_ones_stay_aligned_where_they_can() {
        let total = SHAPE.total();
        let at = |n: u64| 2048 + n * total;
        // A hole of one block among unaligned ones, and one of two.
        let blocks = [(0, at(0)), (1, at(2)), (2, at(5)), (3, at(6))];
        let packed = plan(&blocks, &[front(2048)], SHAPE);
        assert_eq!(packed.moves.len(), 2);
        assert_eq!(packed.end, at(4));
        // The same with an aligned last block: it takes the larger hole, in which it stays aligned.
        let last = SHAPE.place_behind(at(6));
        let blocks = [(0, at(0)), (1, at(2)), (2, at(5)), (3, last)];
        let plan = plan(&blocks, &[front(2048)], SHAPE);
        let first = plan.moves.last().copied();
        assert!(first.is_some_and(|m| m.block == 3 && SHAPE.is_aligned(m.to) && m.to >= at(3)));
    }

    #[test]
    fn structures_at_the_end_go_down_and_pinned_ones_keep_the_blocks_before_them() {
        let table = Structure {
            kind: Kind::Table,
            range: place(9)..place(9) + 1024,
        };
        let blocks = [(0, place(0)), (1, place(3))];
        let packed = plan(&blocks, &[front(2048), table.clone()], SHAPE);
        assert_eq!(packed.structures.len(), 1);
        assert_eq!(packed.structures[0].1, 2048, "the lowest hole");
        assert_eq!(packed.end, place(1) + SHAPE.total());
        let pinned = Structure {
            kind: Kind::Pinned,
            ..table
        };
        let packed = plan(&blocks, &[front(2048), pinned], SHAPE);
        assert!(packed.moves.is_empty() && packed.structures.is_empty());
        assert_eq!(packed.end, place(9) + 1024);
    }

    #[test]
    fn ranges_that_overlap_count_once() {
        assert_eq!(covered(&[0..10, 5..20, 6..7, 30..40]), 30);
        let gap = 1024..2048;
        assert_eq!(holes(&[0..512, 100..1024, 2048..4096]), [gap]);
    }
}
