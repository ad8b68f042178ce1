//! Requests in parts that a primary takes.
//!
//! A primary logs at most [`MAX_REQUEST_BYTES`] in one entry and reads as many at once, in whole
//! blocks. A client's request of that length that begins inside a block touches one block more,
//! and what a client wants zeroed may begin and end inside blocks however long it is. Such
//! requests go in parts, cut where blocks begin, so that no two parts touch the same block: they
//! need no order among each other. That a crash may leave one part done and another not is what
//! block devices promise; only an acknowledged request is done as a whole.

use bytes::Bytes;
use sbk_engine::types::{BLOCK_SIZE, MAX_REQUEST_BYTES};

use crate::link::IoOp;

/// Whether a primary takes `length` bytes at `offset` at once.
fn fits(offset: u64, length: u64) -> bool {
    let first = offset - offset % BLOCK_SIZE;
    (offset + length).next_multiple_of(BLOCK_SIZE) - first <= MAX_REQUEST_BYTES
}

/// The parts of `op`, in the order of their offsets; most requests are one. `op`'s range lies in a
/// volume, so its end and the end of its last block are below 2^63.
pub(super) fn parts(op: IoOp) -> Vec<IoOp> {
    match op {
        IoOp::Read { offset, length } if !fits(offset, length) => {
            cuts(offset, length).map(|(offset, length)| IoOp::Read { offset, length }).collect()
        }
        IoOp::Write { offset, data } if !fits(offset, data.len() as u64) => {
            let part = |(at, length): (u64, u64)| {
                let start = (at - offset) as usize;
                IoOp::Write { offset: at, data: data.slice(start..start + length as usize) }
            };
            cuts(offset, data.len() as u64).map(part).collect()
        }
        IoOp::Zero { offset, length } => zero_parts(offset, length),
        op @ (IoOp::Read { .. }
        | IoOp::Map { .. }
        | IoOp::Write { .. }
        | IoOp::Trim { .. }
        | IoOp::Flush
        | IoOp::Detach) => vec![op],
    }
}

/// Pieces of at most [`MAX_REQUEST_BYTES`], blocks that are touched in part included.
fn cuts(offset: u64, length: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = offset + length;
    let mut at = offset;
    std::iter::from_fn(move || {
        let start = at;
        at = end.min(start - start % BLOCK_SIZE + MAX_REQUEST_BYTES);
        (start < end).then_some((start, at - start))
    })
}

/// The whole blocks need no payload, the pieces of blocks at the ends are merged into what they
/// hold.
fn zero_parts(offset: u64, length: u64) -> Vec<IoOp> {
    let end = offset + length;
    let (first, last) = (offset.next_multiple_of(BLOCK_SIZE), end - end % BLOCK_SIZE);
    if first >= last {
        // No whole block is in it: one block, or pieces of two neighbours.
        return vec![IoOp::Zero { offset, length }];
    }
    let mut parts = Vec::with_capacity(3);
    let ends = |from: u64, to: u64| {
        (from < to).then(|| IoOp::Write {
            offset: from,
            data: Bytes::from_static(&[0; BLOCK_SIZE as usize]).slice(..(to - from) as usize),
        })
    };
    parts.extend(ends(offset, first));
    parts.push(IoOp::Zero { offset: first, length: last - first });
    parts.extend(ends(last, end));
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECTOR: u64 = 512;

    fn range(op: &IoOp) -> (u64, u64) {
        match op {
            IoOp::Read { offset, length } | IoOp::Zero { offset, length } => (*offset, *length),
            IoOp::Write { offset, data } => (*offset, data.len() as u64),
            other => panic!("no part is {other:?}"),
        }
    }

    /// The parts make up the range, and no block belongs to two.
    fn check(parts: &[IoOp], offset: u64, length: u64) {
        let mut at = offset;
        for (n, part) in parts.iter().enumerate() {
            let (start, length) = range(part);
            assert!(start == at && length > 0, "{parts:?}");
            assert!(n == 0 || start.is_multiple_of(BLOCK_SIZE), "{parts:?}");
            at += length;
        }
        assert_eq!(at, offset + length, "{parts:?}");
    }

    proptest! {
        #[test]
        fn reads_and_writes_are_cut_at_blocks(
            offset in 0u64..40_000, sectors in 1u64..=MAX_REQUEST_BYTES / SECTOR,
        ) {
            let (offset, length) = (offset * SECTOR, sectors * SECTOR);
            let parts = parts(IoOp::Read { offset, length });
            check(&parts, offset, length);
            prop_assert!(parts.iter().map(range).all(|(offset, length)| fits(offset, length)));
            prop_assert!(parts.len() == 1 || !fits(offset, length));
            prop_assert!(parts.len() <= 2);
        }

        #[test]
        fn zeroes_are_whole_blocks_and_their_ends(
            offset in 0u64..100, sectors in 1u64..=u64::from(u32::MAX) / SECTOR,
        ) {
            let (offset, length) = (offset * SECTOR, sectors * SECTOR);
            let parts = parts(IoOp::Zero { offset, length });
            check(&parts, offset, length);
            for part in &parts {
                let (offset, length) = range(part);
                let whole = offset.is_multiple_of(BLOCK_SIZE) && length.is_multiple_of(BLOCK_SIZE);
                prop_assert!(whole || length <= 2 * BLOCK_SIZE, "{parts:?}");
                if let IoOp::Write { data, .. } = part {
                    prop_assert!(!whole && data.iter().all(|byte| *byte == 0));
                }
            }
        }
    }

    #[test]
    fn a_write_keeps_its_bytes() {
        let data: Vec<u8> = (0..MAX_REQUEST_BYTES).map(|at| (at / SECTOR % 251) as u8).collect();
        let data = Bytes::from(data);
        let parts = parts(IoOp::Write { offset: SECTOR, data: data.clone() });
        check(&parts, SECTOR, MAX_REQUEST_BYTES);
        assert_eq!(parts.len(), 2);
        let joined: Vec<u8> = parts
            .iter()
            .flat_map(|part| match part {
                IoOp::Write { data, .. } => data.to_vec(),
                other => panic!("a write became {other:?}"),
            })
            .collect();
        assert!(joined == data);
    }
}
