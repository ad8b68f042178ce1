//! What clients write: every sector of a write repeats its number, so a read tells which write it
//! shows, and a torn or mixed block shows too.

use bytes::{Bytes, BytesMut};
use sbk_engine::types::BLOCK_SIZE;

use super::sizes::BEYOND;

/// Blocks that clients use. Few, so that requests meet on the same block.
pub(crate) const BLOCKS: u64 = 5;
/// Where they are: in two regions, and at their edges.
const ADDRESSES: [u64; BLOCKS as usize] = [0, 1, 255, 256, 259];
/// How many of them are in the first one.
pub(crate) const FIRST_REGION: u64 = 3;
/// The size that the volume is created with.
pub(crate) const VOLUME_BLOCKS: u64 = 260;

const SECTOR: usize = 512;
/// The sector that partial writes change.
const PART: usize = 1;
/// Bytes into a block at which a partial write begins.
pub(crate) const PART_AT: usize = PART * SECTOR;
/// Bytes of a partial write.
pub(crate) const PART_BYTES: usize = SECTOR;

/// The address of the `n`-th block that clients use; those from [`BLOCKS`] on are beyond the first size.
pub(crate) fn address(n: u64) -> u64 {
    match n.checked_sub(BLOCKS) {
        None => ADDRESSES[n as usize],
        Some(beyond) => BEYOND[beyond as usize],
    }
}

/// What a block shows: the number of the write that its sectors are of, and that of the one sector
/// that partial writes change. 0 for what was never written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) whole: u64,
    pub(crate) part: u64,
}

fn fill(out: &mut [u8], value: u64) {
    out.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&value.to_le_bytes()));
}

/// The block that write number `value` brings.
pub(crate) fn block(value: u64) -> Bytes {
    let mut out = BytesMut::zeroed(BLOCK_SIZE as usize);
    fill(&mut out, value);
    out.freeze()
}

/// The sector that partial write number `value` brings.
pub(crate) fn part(value: u64) -> Bytes {
    let mut out = BytesMut::zeroed(PART_BYTES);
    fill(&mut out, value);
    out.freeze()
}

/// Puts a partial write into the block that it is for.
pub(crate) fn merge(block: &Bytes, part: &Bytes) -> Bytes {
    let mut out = BytesMut::from(&block[..]);
    out[PART_AT..PART_AT + PART_BYTES].copy_from_slice(part);
    out.freeze()
}

/// What a block shows, or how it is torn.
pub(crate) fn seen(data: &[u8]) -> Result<Seen, String> {
    let mut found = [0; 2];
    for (number, sector) in data.chunks_exact(SECTOR).enumerate() {
        let mut words = sector.chunks_exact(8);
        let first = words.next().expect("a sector has words");
        if words.any(|word| word != first) {
            return Err(format!("sector {number} is torn"));
        }
        let value = u64::from_le_bytes(first.try_into().expect("eight bytes"));
        let slot = usize::from(number == PART);
        if number > PART && found[slot] != value {
            return Err(format!("sector {number} is of write {value}, the first of {}", found[0]));
        }
        found[slot] = value;
    }
    Ok(Seen { whole: found[0], part: found[1] })
}
