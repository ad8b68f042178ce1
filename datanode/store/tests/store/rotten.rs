//! Blocks that rot in the extents: which ones a read tells, and what another replica is told of them.

use std::sync::Arc;

use bytes::Bytes;
use sbk_engine::replication::io::Kept;
use sbk_engine::replication::log::{BlockRange, EntryHeader, EntryKind};
use sbk_engine::types::{Epoch, Lba, Lsn};
use sbk_store::entry::entry_crc;
use sbk_store::{ReadError, SettledBlocks, Store};
use sbk_wal::{Memory, Storage};

use super::content::bytes_of;
use super::driver;

/// Bytes of a file before its content, and of a block.
const HEADER: u64 = 4096;
const BLOCK: u64 = 4096;
/// Bytes of the stamps of a block.
const STAMPS: u64 = 8;

fn new_store() -> (Memory, Store) {
    let memory = Memory::new(1);
    let storage: Arc<dyn Storage> = Arc::new(memory.clone());
    driver::create(&storage, 0).expect("a replica");
    (memory, driver::open(&storage, 0).expect("a store").0)
}

fn write(store: &mut Store, block: u64, tags: &[u64]) {
    let kind = EntryKind::Write { lba: Lba(block), blocks: tags.len() as u32 };
    let (lsn, payload) = (store.end().next(), bytes_of(tags));
    let header = EntryHeader { epoch: Epoch(1), lsn, kind, origin: None };
    store.append(header, entry_crc(&header, &payload), payload).expect("appended");
    while let Some(batch) = store.take_batch() {
        store.batch_done(batch.run()).expect("durable");
    }
}

fn checkpoint(store: &mut Store) {
    store.set_committed(store.end());
    let plan = store.plan_checkpoint(u64::MAX).expect("a checkpoint");
    store.checkpoint_done(plan.run()).expect("checkpointed");
}

fn rot(memory: &Memory, block: u64) {
    assert!(memory.flip("extents", (HEADER + block * BLOCK + 77) * 8 + 3));
}

fn range(lba: u64, blocks: u32) -> BlockRange {
    BlockRange { lba: Lba(lba), blocks }
}

/// What a read refuses to give.
fn refused(read: Result<Bytes, ReadError>) -> Vec<u64> {
    match read {
        Err(ReadError::Rotten { blocks, .. }) => blocks.iter().map(|rotten| rotten.lba.0).collect(),
        other => panic!("it is told which blocks rotted: {other:?}"),
    }
}

fn held(blocks: &SettledBlocks) -> Vec<(u64, Bytes)> {
    blocks.held.iter().map(|(lba, data)| (lba.0, data.clone())).collect()
}

#[test]
fn all_rotten_blocks_of_a_read_are_told_and_no_others() {
    let (memory, mut store) = new_store();
    write(&mut store, 10, &[1, 2, 3, 4, 5]);
    checkpoint(&mut store);
    for block in [11, 13, 14] {
        rot(&memory, block);
    }
    // One of them was written anew, and is read from the log.
    write(&mut store, 13, &[33]);
    let read = store.plan_read(range(9, 8)).run();
    let text = read.as_ref().expect_err("it is damaged").to_string();
    let at = HEADER + 11 * BLOCK;
    assert!(text.starts_with(&format!("block 11 at byte {at} of ")), "{text}");
    assert!(text.ends_with(", and 1 more"), "{text}");
    assert_eq!(refused(read), [11, 14]);
    let (_, committed) = store.plan_read_committed(range(10, 1)).run().expect("it is sound");
    assert_eq!(committed, store.committed());
    let data = store.plan_read_committed(range(9, 8)).run().map(|(data, _)| data);
    assert_eq!(refused(data), [11, 13, 14], "beneath what is not committed it is read too");
    // Once more in the extents they are right again.
    write(&mut store, 11, &[2]);
    write(&mut store, 14, &[5]);
    checkpoint(&mut store);
    let read = store.plan_read(range(9, 7)).run().expect("all are sound");
    assert_eq!(read, bytes_of(&[0, 1, 2, 3, 33, 5, 0]));
}

/// A block of zeros has no stamp: one that appears is rot. What lies in its homes is nobody's.
#[test]
fn a_stamp_of_zeros_rots_too() {
    let (memory, mut store) = new_store();
    write(&mut store, 10, &[1]);
    checkpoint(&mut store);
    rot(&memory, 12);
    assert!(memory.flip("checksums", (HEADER + 13 * STAMPS) * 8));
    assert!(memory.flip("checksums", (HEADER + 14 * STAMPS + 4) * 8 + 31));
    assert_eq!(refused(store.plan_read(range(10, 8)).run()), [13, 14]);
}

/// Each bit of both stamps of a block, and of one that was never written.
#[test]
fn no_bit_of_a_stamp_hides_a_block() {
    for home in [0, 4] {
        let (memory, mut store) = new_store();
        write(&mut store, 10, &[1, 2, 3]);
        checkpoint(&mut store);
        if home == 4 {
            // Into the other home.
            write(&mut store, 40, &[7]);
            write(&mut store, 10, &[1, 2, 3]);
            checkpoint(&mut store);
        }
        for bit in 0..64 {
            for block in [11, 20] {
                let at = (HEADER + block * STAMPS) * 8 + bit;
                assert!(memory.flip("checksums", at));
                assert_eq!(refused(store.plan_read(range(10, 12)).run()), [block], "bit {bit}");
                let runs = store.plan_allocation(range(block, 1)).run(9).expect("runs");
                assert!(runs.iter().all(|run| !run.hole), "bit {bit} of block {block}");
                assert!(memory.flip("checksums", at));
            }
        }
    }
}

/// What a scrub is told: damage in the extents, until the log has the block anew.
#[test]
fn a_digest_names_the_damaged_blocks_of_the_committed_image() {
    let damaged = |store: &Store| {
        let region = store.plan_digest(0, 1).next_region().expect("a region").expect("is read");
        region.expect("nothing moved").damaged.iter().map(|lba| lba.0).collect::<Vec<_>>()
    };
    let (memory, mut store) = new_store();
    write(&mut store, 10, &[1, 2, 3, 4, 5]);
    checkpoint(&mut store);
    assert!(damaged(&store).is_empty());
    rot(&memory, 11);
    rot(&memory, 14);
    assert!(memory.flip("checksums", (HEADER + 20 * STAMPS) * 8));
    assert_eq!(damaged(&store), [11, 14, 20], "20 should be zeros");
    write(&mut store, 14, &[5]);
    assert_eq!(damaged(&store), [11, 14, 20], "what is not committed is not in the image");
    store.set_committed(store.end());
    assert_eq!(damaged(&store), [11, 20], "the log has it");
    write(&mut store, 11, &[2]);
    write(&mut store, 20, &[0]);
    checkpoint(&mut store);
    assert!(damaged(&store).is_empty());
}

#[test]
fn another_replica_is_told_each_block_by_itself_as_of_the_logs_end() {
    let (memory, mut store) = new_store();
    write(&mut store, 10, &[1, 2, 3]);
    checkpoint(&mut store);
    rot(&memory, 11);
    write(&mut store, 12, &[33]);
    let told = store.plan_read_settled(range(10, 3)).run().expect("read").expect("it is settled");
    assert_eq!(held(&told), [(10, bytes_of(&[1])), (12, bytes_of(&[33]))], "committed or not");
    assert_eq!(told.rotten.iter().map(|rotten| rotten.lba.0).collect::<Vec<_>>(), [11]);
}

/// What is read while a checkpoint goes beyond the log's end of before may be of an entry that came since;
/// of a cut, of one that is no more.
#[test]
fn nothing_is_told_of_what_changed_meanwhile() {
    let (_memory, mut store) = new_store();
    write(&mut store, 10, &[1]);
    checkpoint(&mut store);

    write(&mut store, 10, &[2]);
    let plan = store.plan_read_settled(range(10, 1));
    checkpoint(&mut store);
    let told = plan.run().expect("read").expect("the checkpoint goes no further than the log did");
    assert_eq!(held(&told), [(10, bytes_of(&[2]))]);

    let plan = store.plan_read_settled(range(10, 1));
    write(&mut store, 10, &[3]);
    checkpoint(&mut store);
    assert_eq!(plan.run().expect("read"), None, "a newer block may be in the extents");

    write(&mut store, 10, &[4]);
    let plan = store.plan_read_settled(range(10, 1));
    let end = Lsn(store.end().0 - 1);
    store.cut(end, &Kept::default()).expect("cut");
    assert_eq!(plan.run().expect("read"), None, "that entry is no more");
    let told = store.plan_read_settled(range(10, 1)).run().expect("read").expect("settled");
    assert_eq!(held(&told), [(10, bytes_of(&[3]))]);
}
