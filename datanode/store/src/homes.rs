//! The two homes of a block, the stamps that say which of them counts, and which of them entries hold.
//!
//! Every block has a place in `extents` and one in `shadow`. The one whose stamp is not 0 is its current home;
//! without one it is zeros. What lies in a home that is not current is nobody's: it is written there before it
//! counts, and stays there as long as an entry of the log refers to it.

use std::ops::Range;
use std::sync::Arc;

/// One of the two places of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Home {
    Extents,
    Shadow,
}

impl Home {
    pub(super) const BOTH: [Home; 2] = [Home::Extents, Home::Shadow];

    pub(super) fn other(self) -> Self {
        match self {
            Home::Extents => Home::Shadow,
            Home::Shadow => Home::Extents,
        }
    }

    /// The file's name.
    pub(super) fn file(self) -> &'static str {
        match self {
            Home::Extents => "extents",
            Home::Shadow => "shadow",
        }
    }
}

/// What makes a stamp of a sum that would differ from 0 in less than two bits.
const FLIP: u64 = 0xa5a5_a5a5;

/// The stamp of a block that is not zeros, from its CRC-32C or the half of its tag. At least two of its bits are
/// set: one that flips never makes zeros of a block.
pub(super) fn stamp(sum: u64) -> u64 {
    if sum.count_ones() < 2 { sum ^ FLIP } else { sum }
}

/// A block's two stamps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stamps {
    pub(super) extents: u64,
    pub(super) shadow: u64,
}

/// What a block's stamps say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Current {
    Zeros,
    In(Home),
    /// One of them is damaged.
    Unclear,
}

impl Stamps {
    /// Of a block of which nothing is known: damaged, whatever one of its bits becomes.
    pub(super) const UNKNOWN: Self = Self { extents: 1, shadow: 1 };

    /// Of a block in `home`; without one of zeros.
    pub(super) fn new(home: Option<Home>, stamp: u64) -> Self {
        match home {
            None => Self::default(),
            Some(Home::Extents) => Self { extents: stamp, shadow: 0 },
            Some(Home::Shadow) => Self { extents: 0, shadow: stamp },
        }
    }

    pub(super) fn of(&self, home: Home) -> u64 {
        match home {
            Home::Extents => self.extents,
            Home::Shadow => self.shadow,
        }
    }

    pub(super) fn current(&self) -> Current {
        match (self.extents, self.shadow) {
            (0, 0) => Current::Zeros,
            (_, 0) => Current::In(Home::Extents),
            (0, _) => Current::In(Home::Shadow),
            (_, _) => Current::Unclear,
        }
    }

    /// The home that something new may be written to without a loss.
    pub(super) fn vacant(&self) -> Home {
        match self.current() {
            Current::Zeros => Home::Extents,
            Current::In(home) => home.other(),
            // It can't be read in any case. What has less than two bits was no stamp.
            Current::Unclear if self.shadow.count_ones() < 2 => Home::Shadow,
            Current::Unclear => Home::Extents,
        }
    }
}

/// In which home each block of an entry lies: a bit for each, set for the shadow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Homes(Box<[u8]>);

impl Homes {
    pub(super) fn new(homes: &[Home]) -> Self {
        let mut bits = vec![0u8; Self::bytes_for(homes.len())];
        for (at, home) in homes.iter().enumerate() {
            bits[at / 8] |= u8::from(*home == Home::Shadow) << (at % 8);
        }
        Self(bits.into())
    }

    pub(super) fn bytes_for(blocks: usize) -> usize {
        blocks.div_ceil(8)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Those of so many blocks; `None` if `bytes` are not such.
    pub(super) fn decode(blocks: usize, bytes: &[u8]) -> Option<Self> {
        let spare = bytes.len() * 8 - blocks.min(bytes.len() * 8);
        let clean =
            spare == 0 || bytes.last().is_some_and(|last| u32::from(*last) >> (8 - spare) == 0);
        (bytes.len() == Self::bytes_for(blocks) && clean).then(|| Self(bytes.into()))
    }

    pub(super) fn get(&self, at: usize) -> Home {
        if self.0[at / 8] >> (at % 8) & 1 == 1 { Home::Shadow } else { Home::Extents }
    }
}

/// Consecutive blocks from `first` on, in runs of what is the same for all of each.
pub(super) fn runs<T: PartialEq>(
    first: u64,
    of: impl IntoIterator<Item = T>,
) -> Vec<(Range<u64>, T)> {
    let mut out: Vec<(Range<u64>, T)> = Vec::new();
    for (block, value) in (first..).zip(of) {
        match out.last_mut() {
            Some((range, last)) if *last == value => range.end += 1,
            _ => out.push((block..block + 1, value)),
        }
    }
    out
}

/// Homes that entries of the log hold, as of one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Held(Vec<(Range<u64>, Arc<Homes>)>);

impl Held {
    /// Of entries that hold these ranges, which ascend and don't overlap.
    pub(super) fn new(held: Vec<(Range<u64>, Arc<Homes>)>) -> Self {
        Self(held)
    }

    fn from(&self, block: u64) -> &[(Range<u64>, Arc<Homes>)] {
        &self.0[self.0.partition_point(|(range, _)| range.end <= block)..]
    }

    /// The home of a block that must stay as it is.
    pub(super) fn at(&self, block: u64) -> Option<Home> {
        let (range, homes) = self.from(block).first()?;
        range.contains(&block).then(|| homes.get((block - range.start) as usize))
    }

    /// The parts of `range` whose `home` nobody holds.
    pub(super) fn free(&self, range: &Range<u64>, home: Home) -> Vec<Range<u64>> {
        let mut out = Vec::new();
        let mut at = range.start;
        for (held, homes) in self.from(range.start) {
            if held.start >= range.end {
                break;
            }
            for block in held.start.max(range.start)..held.end.min(range.end) {
                if homes.get((block - held.start) as usize) == home {
                    if at < block {
                        out.push(at..block);
                    }
                    at = block + 1;
                }
            }
        }
        if at < range.end {
            out.push(at..range.end);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bit_that_flips_makes_zeros_of_a_stamp() {
        let single = (0..64).map(|bit| 1 << bit);
        for sum in single.chain([0, u64::MAX, FLIP, FLIP ^ 1, FLIP ^ 3]) {
            assert!(stamp(sum).count_ones() >= 2, "{sum:08x}");
        }
        assert_eq!(stamp(0x98f9_4189), 0x98f9_4189);
    }

    #[test]
    fn homes_come_back_from_their_bits() {
        use Home::{Extents, Shadow};
        let all = [Extents, Shadow, Shadow, Extents, Extents, Extents, Extents, Shadow, Shadow];
        let homes = Homes::new(&all);
        assert!((0..9).all(|at| homes.get(at) == all[at]));
        assert_eq!(Homes::decode(9, homes.bytes()), Some(homes.clone()));
        assert_eq!(Homes::decode(17, homes.bytes()), None, "too short");
        assert_eq!(Homes::decode(8, homes.bytes()), None, "too long");
        assert_eq!(Homes::decode(9, &[0, 2]), None, "a bit of no block");
        assert_eq!(Homes::decode(0, &[]), Some(Homes::new(&[])));
    }

    #[test]
    fn what_is_held_is_not_free() {
        use Home::{Extents, Shadow};
        let homes = |all: &[Home]| Arc::new(Homes::new(all));
        let held = Held::new(vec![
            (10..13, homes(&[Extents, Shadow, Shadow])),
            (20..21, homes(&[Extents])),
        ]);
        let at: Vec<_> = (9..14).map(|block| held.at(block)).collect();
        assert_eq!(at, [None, Some(Extents), Some(Shadow), Some(Shadow), None]);
        assert_eq!(held.free(&(0..30), Extents), [0..10, 11..20, 21..30]);
        assert_eq!(held.free(&(0..30), Shadow), [0..11, 13..30]);
        assert_eq!(held.free(&(12..21), Shadow), vec![13..21]);
        assert!(held.free(&(11..13), Shadow).is_empty());
        assert_eq!(runs(5, [1, 1, 2]), [(5..7, 1), (7..8, 2)]);
    }
}
