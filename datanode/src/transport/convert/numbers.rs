//! Numbers of the wire that the engine counts with.

use sbk_engine::authority::state::MAX_VOLUME_BYTES;
use sbk_engine::types::{
    AttachGeneration, BLOCK_SIZE, Epoch, LossGeneration, Lsn, Millis, REGION_SIZE,
};

use super::{Decoded, bad};

/// Below this are all numbers that are counted up.
const MAX_COUNTER: u64 = 1 << 62;

/// A number that the engine counts with. No run reaches the limit: what is beyond it was made up,
/// and adding to it might overflow.
pub(super) fn counter(number: u64, name: &str) -> Decoded<u64> {
    if number < MAX_COUNTER { Ok(number) } else { bad(format!("{name} {number}")) }
}

/// An epoch from its number.
pub fn epoch(number: u64) -> Decoded<Epoch> {
    counter(number, "epoch").map(Epoch)
}

/// An LSN from its number.
pub fn lsn(number: u64) -> Decoded<Lsn> {
    counter(number, "LSN").map(Lsn)
}

/// An attach generation from its number.
pub fn attach_generation(number: u64) -> Decoded<AttachGeneration> {
    counter(number, "attach generation").map(AttachGeneration)
}

/// A loss generation from its number.
pub fn loss_generation(number: u64) -> Decoded<LossGeneration> {
    counter(number, "loss generation").map(LossGeneration)
}

/// A sequence number, or a low-water mark.
pub fn sequence(number: u64) -> Decoded<u64> {
    counter(number, "sequence")
}

/// A volume's size in blocks, or a block of it.
pub(super) fn size(blocks: u64) -> Decoded<u64> {
    let most = MAX_VOLUME_BYTES / BLOCK_SIZE;
    if blocks <= most { Ok(blocks) } else { bad(format!("a volume of {blocks} blocks")) }
}

/// A time of a primary's clock.
pub(super) fn stamp(number: u64) -> Decoded<Millis> {
    counter(number, "time").map(Millis)
}

/// Checks that the regions `first..first + count` can be a volume's.
pub(super) fn regions(first: u64, count: usize) -> Decoded<()> {
    let end = first.checked_add(count as u64);
    let most = MAX_VOLUME_BYTES / REGION_SIZE;
    if end.is_some_and(|end| end <= most) {
        Ok(())
    } else {
        bad(format!("{count} regions from {first} on"))
    }
}
