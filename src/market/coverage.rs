//! What is proven of which blocks, in ranges.

use serde::Serialize;

use super::event::Level;

/// Blocks in a row of which the same is proven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Coverage {
    /// First and last block.
    pub from: u64,
    pub to: u64,
    /// Never [`Level::Absent`]: whether a block's bloom or its receipts prove its logs makes no difference here, both are
    /// [`Level::Complete`].
    pub level: Level,
    /// Why no more, where something stands against it.
    pub reason: Option<String>,
}

impl Coverage {
    /// Returns what is proven of one block.
    pub fn of_block(number: u64, level: Level, reason: Option<String>) -> Self {
        Self::of(number, number, level, reason)
    }

    /// Returns what is proven of `from..=to`.
    pub fn of(from: u64, to: u64, level: Level, reason: Option<String>) -> Self {
        let level = if level == Level::Absent { Level::Complete } else { level };
        Self { from, to, level, reason }
    }

    fn continues(&self, before: &Coverage) -> bool {
        before.to + 1 == self.from && (before.level, &before.reason) == (self.level, &self.reason)
    }
}

/// What is proven of one block, and of the events in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// An endpoint said so.
    Claimed,
    /// Its hash and its place in the chain, not its logs.
    Linked,
    /// Which logs it has.
    Complete,
    /// And the chain called it final.
    Final,
}

impl Proof {
    /// Returns what is proven of block `number`, whose own level is `level`; `last_final` is the newest final block.
    pub fn of(level: Level, number: u64, last_final: Option<u64>) -> Self {
        match level {
            Level::Claimed => Proof::Claimed,
            Level::Linked => Proof::Linked,
            Level::Absent | Level::Complete if last_final.is_some_and(|last| number <= last) => Proof::Final,
            Level::Absent | Level::Complete => Proof::Complete,
        }
    }

    /// Returns the name: `claimed`, `linked`, `complete` or `final`.
    pub fn name(self) -> &'static str {
        match self {
            Proof::Claimed => "claimed",
            Proof::Linked => "linked",
            Proof::Complete => "complete",
            Proof::Final => "final",
        }
    }
}

/// Appends a range that starts after the last one, to that one where the same is proven of both.
pub fn push(ranges: &mut Vec<Coverage>, next: Coverage) {
    match ranges.last_mut() {
        Some(last) if next.continues(last) => last.to = next.to,
        _ => ranges.push(next),
    }
}

/// Lays ranges over others: what `over` says of a block counts, and what `under` says of every further one. Each is in
/// order and without overlap, and so is what is returned, with neighbours alike joined.
pub fn lay(under: &[Coverage], over: &[Coverage]) -> Vec<Coverage> {
    let mut pieces: Vec<Coverage> = over.to_vec();
    for range in under {
        let mut from = range.from;
        for above in over.iter().filter(|above| above.to >= range.from && above.from <= range.to) {
            if from < above.from {
                pieces.push(Coverage { from, to: above.from - 1, ..range.clone() });
            }
            from = above.to + 1;
        }
        if from <= range.to {
            pieces.push(Coverage { from, ..range.clone() });
        }
    }
    pieces.sort_by_key(|range| range.from);
    let mut joined = Vec::with_capacity(pieces.len());
    pieces.into_iter().for_each(|piece| push(&mut joined, piece));
    joined
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const LEVELS: [Level; 3] = [Level::Claimed, Level::Linked, Level::Complete];

    fn ranges() -> impl Strategy<Value = Vec<Coverage>> {
        prop::collection::vec((0u64..6, 1u64..6, 0usize..3), 0..6).prop_map(|steps| {
            let mut next = 0;
            let mut ranges = Vec::new();
            for (gap, length, level) in steps {
                let from = next + gap;
                next = from + length;
                ranges.push(Coverage::of(from, next - 1, LEVELS[level], None));
            }
            ranges
        })
    }

    fn by_block(ranges: &[Coverage]) -> BTreeMap<u64, Level> {
        ranges.iter().flat_map(|range| (range.from..=range.to).map(|number| (number, range.level))).collect()
    }

    proptest! {
        #[test]
        fn what_is_laid_over_counts_and_nothing_else_is_lost(under in ranges(), over in ranges()) {
            let laid = lay(&under, &over);
            let mut expected = by_block(&under);
            expected.extend(by_block(&over));
            prop_assert_eq!(by_block(&laid), expected);
            for pair in laid.windows(2) {
                prop_assert!(pair[0].to < pair[1].from && !pair[1].continues(&pair[0]));
            }
        }
    }
}
