//! Blocks read as committed, beneath entries that are not, while everything else goes on.

use std::cell::RefCell;
use std::sync::Arc;

use bytes::Bytes;
use sbk_engine::replication::log::{BlockRange, EntryHeader, EntryKind};
use sbk_engine::replication::message::{Incomplete, RecoveryId};
use sbk_engine::types::{Epoch, Lba, Lsn};
use sbk_store::Store;
use sbk_store::entry::entry_crc;
use sbk_wal::{Memory, Storage};

use super::content::{BLOCK, MAX_BLOCKS, Random, bytes_of};
use super::driver::{self, Driver};
use super::events::Event;
use super::model::Model;

fn new_store() -> Store {
    let storage: Arc<dyn Storage> = Arc::new(Memory::new(1));
    driver::create(&storage, 0).expect("a replica");
    driver::open(&storage, 0).expect("a store").0
}

fn append(store: &mut Store, kind: EntryKind, payload: &Bytes) {
    let lsn = store.end().next();
    let header = EntryHeader { epoch: Epoch(1), lsn, kind, origin: None };
    store.append(header, entry_crc(&header, payload), payload.clone()).expect("appended");
    while let Some(batch) = store.take_batch() {
        store.batch_done(batch.run()).expect("durable");
    }
}

fn write(store: &mut Store, block: u64, tags: &[u64]) {
    let kind = EntryKind::Write { lba: Lba(block), blocks: tags.len() as u32 };
    append(store, kind, &bytes_of(tags));
}

fn checkpoint(store: &mut Store) {
    let plan = store.plan_checkpoint(u64::MAX).expect("a checkpoint");
    store.checkpoint_done(plan.run()).expect("checkpointed");
}

/// Blocks 10..16 as committed.
fn read(store: &Store) -> (Bytes, Lsn) {
    let range = BlockRange { lba: Lba(10), blocks: 6 };
    store.plan_read_committed(range).run().expect("read")
}

#[test]
fn an_entry_that_is_not_committed_is_read_beneath() {
    let mut store = new_store();
    write(&mut store, 10, &[1, 2, 3, 4]);
    store.set_committed(Lsn(1));
    checkpoint(&mut store);
    write(&mut store, 11, &[22, 33]);
    store.set_committed(Lsn(2));
    // Hides blocks of the extents, of a committed entry, and such as were never written.
    write(&mut store, 10, &[7, 7, 7, 7, 7, 7]);
    append(&mut store, EntryKind::Trim { lba: Lba(12), blocks: 1 }, &Bytes::new());
    append(&mut store, EntryKind::Resize { blocks: 11 }, &Bytes::new());
    assert_eq!(read(&store), (bytes_of(&[1, 22, 33, 4, 0, 0]), Lsn(2)));
    store.set_committed(Lsn(3));
    assert_eq!(read(&store), (bytes_of(&[7, 7, 7, 7, 7, 7]), Lsn(3)));
    store.set_committed(Lsn(4));
    assert_eq!(read(&store), (bytes_of(&[7, 7, 0, 7, 7, 7]), Lsn(4)));
    store.set_committed(Lsn(5));
    assert_eq!(read(&store), (bytes_of(&[7, 0, 0, 0, 0, 0]), Lsn(5)));
}

#[test]
fn what_is_committed_elsewhere_and_not_durable_here_is_not_read() {
    let mut store = new_store();
    write(&mut store, 10, &[1]);
    let payload = bytes_of(&[2]);
    let kind = EntryKind::Write { lba: Lba(10), blocks: 1 };
    let header = EntryHeader { epoch: Epoch(1), lsn: Lsn(2), kind, origin: None };
    store.append(header, entry_crc(&header, &payload), payload).expect("appended");
    store.set_committed(Lsn(2));
    assert_eq!(read(&store), (bytes_of(&[1, 0, 0, 0, 0, 0]), Lsn(1)));
}

#[test]
fn uncommitted_entries_are_in_no_region_table() {
    let mut store = new_store();
    write(&mut store, 10, &[1]);
    store.set_committed(Lsn(1));
    write(&mut store, 10, &[2]);
    write(&mut store, 290, &[2]);
    assert_eq!(store.regions(), [Lsn(1), Lsn(0)]);
    let session = RecoveryId { epoch: Epoch(1), number: 1 };
    let mark = Incomplete { session, from: Lsn(0), base: Lsn(1), target: Lsn(1) };
    assert_eq!(store.base_regions(&mark), [0]);
}

/// A checkpoint writes newer blocks while the read is under way: the LSN that comes with them says
/// so.
#[test]
fn a_checkpoint_that_overtakes_a_read_shows_in_its_lsn() {
    let mut store = new_store();
    write(&mut store, 10, &[1]);
    store.set_committed(Lsn(1));
    checkpoint(&mut store);
    let range = BlockRange { lba: Lba(10), blocks: 1 };
    let plan = store.plan_read_committed(range);
    write(&mut store, 10, &[2]);
    store.set_committed(Lsn(2));
    checkpoint(&mut store);
    assert_eq!(plan.run().expect("read"), (bytes_of(&[2]), Lsn(2)));
}

/// Every block is one that was committed at some LSN between the committed one of when the read was
/// planned and the one that it tells.
#[test]
fn a_read_beside_other_work_is_of_a_committed_state() {
    let (mut beneath, mut overtaken) = (0, 0);
    for seed in 1..=12 {
        let storage: Arc<dyn Storage> = Arc::new(Memory::new(seed));
        driver::create(&storage, 0).expect("a replica");
        let open = driver::open(&storage, 0).expect("a store");
        let model = RefCell::new(Model::new(seed, 0));
        let mut hear = |event: Event| model.borrow_mut().hear(event);
        let mut random = Random(seed);
        let mut driver = Driver::new(seed, 1, open, false, &mut hear);
        driver.run(0).expect("sound");
        for _ in 0..150 {
            let first = random.below(MAX_BLOCKS - 60);
            let range = BlockRange { lba: Lba(first), blocks: 60 };
            let planned = driver.store().committed();
            let plan = driver.store().plan_read_committed(range);
            let newest = driver.store().plan_read(range).run().expect("read");
            for _ in 0..random.below(5) {
                match random.below(10) {
                    0..4 => driver.append(),
                    4..6 => driver.batch(),
                    6 => {
                        driver.commit();
                        Ok(())
                    }
                    7..9 => driver.checkpoint(true),
                    _ => driver.cut(),
                }
                .expect("sound");
            }
            let (data, upto) = plan.run().expect("read");
            assert!(planned <= upto && upto <= driver.store().committed(), "seed {seed}");
            let images: Vec<_> =
                (planned.0..=upto.0).map(|lsn| model.borrow().image(Lsn(lsn))).collect();
            for (at, block) in data.chunks_exact(BLOCK).enumerate() {
                let number = first as usize + at;
                let right = images.iter().any(|image| block == &bytes_of(&[image[number]])[..]);
                assert!(right, "seed {seed}: block {number} as of {planned}..={upto}");
            }
            beneath += u64::from(data != newest);
            overtaken += u64::from(upto > planned);
        }
    }
    assert!(beneath > 100 && overtaken > 50, "{beneath} beneath, {overtaken} overtaken");
}

/// Reads run on threads of their own while checkpoints write the same blocks: a block is never torn,
/// never refused, and never older than when its read was planned.
#[test]
fn reads_beside_a_running_checkpoint_are_whole() {
    let mut newer = 0;
    for seed in 1..=6 {
        let storage: Arc<dyn Storage> = Arc::new(Memory::new(seed));
        driver::create(&storage, 0).expect("a replica");
        let open = driver::open(&storage, 0).expect("a store");
        let model = RefCell::new(Model::new(seed, 0));
        let mut hear = |event: Event| model.borrow_mut().hear(event);
        let mut driver = Driver::new(seed, 1, open, true, &mut hear);
        driver.run(0).expect("sound");
        for _ in 0..60 {
            let store = driver.store();
            let (planned, end) = (store.committed(), store.end());
            let range = BlockRange { lba: Lba(0), blocks: MAX_BLOCKS as u32 };
            let (newest, committed) = (store.plan_read(range), store.plan_read_committed(range));
            let (newest, committed, upto) = std::thread::scope(|scope| {
                let newest = scope.spawn(|| newest.run().expect("read"));
                let committed = scope.spawn(|| committed.run().expect("read as committed"));
                for _ in 0..3 {
                    driver.append().expect("sound");
                    driver.batch().expect("sound");
                    driver.commit();
                    driver.checkpoint(true).expect("sound");
                }
                let (newest, (committed, upto)) =
                    (newest.join().expect("a reader"), committed.join().expect("a reader"));
                (newest, committed, upto)
            });
            let model = model.borrow();
            let images = |from: Lsn, to: Lsn| -> Vec<_> {
                (from.0..=to.0.max(from.0)).map(|lsn| model.image(Lsn(lsn))).collect()
            };
            let now = driver.store().committed();
            for (data, images) in [(&newest, images(end, now)), (&committed, images(planned, upto))]
            {
                for (number, block) in data.chunks_exact(BLOCK).enumerate() {
                    let right = images.iter().any(|i| block == &bytes_of(&[i[number]])[..]);
                    assert!(right, "seed {seed}: block {number}");
                }
            }
            newer += u64::from(upto > planned);
        }
    }
    assert!(newer > 0, "no checkpoint was written under a read");
}

/// Written blocks are data wherever they are, and what was never written, trimmed or zeroed is holes:
/// in the WAL, in the extents, and while an entry is not committed.
#[test]
fn holes_are_told() {
    let mut store = new_store();
    let runs = |store: &Store, first: u64, blocks: u32| -> Vec<(u32, bool)> {
        let range = BlockRange { lba: Lba(first), blocks };
        let runs = store.plan_allocation(range).run(usize::MAX).expect("runs");
        runs.into_iter().map(|run| (run.blocks, run.hole)).collect()
    };
    let find = |store: &Store, first: u64, end: u64| {
        let found = store.plan_find_data(Lba(first), end).run().expect("looks");
        found.map(|lba| lba.0)
    };
    assert_eq!(runs(&store, 0, 100), [(100, true)], "nothing was written");
    assert_eq!(find(&store, 0, u64::MAX), None);
    write(&mut store, 10, &[1, 2, 3]);
    let written = [(10, true), (3, false), (87, true)];
    assert_eq!(runs(&store, 0, 100), written, "in the WAL");
    assert_eq!((find(&store, 0, 100), find(&store, 13, u64::MAX)), (Some(10), None));
    store.set_committed(Lsn(1));
    checkpoint(&mut store);
    assert_eq!(runs(&store, 0, 100), written, "in the extents");
    assert_eq!((find(&store, 12, 100), find(&store, 0, 10)), (Some(12), None));
    assert_eq!(runs(&store, 11, 1), [(1, false)]);
    let range = BlockRange { lba: Lba(5), blocks: 50 };
    let first = store.plan_allocation(range).run(1).expect("runs");
    assert_eq!(first.iter().map(|run| (run.blocks, run.hole)).collect::<Vec<_>>(), [(5, true)]);
    append(&mut store, EntryKind::Zero { lba: Lba(11), blocks: 1 }, &Bytes::new());
    let zeroed = [(10, true), (1, false), (1, true), (1, false), (87, true)];
    assert_eq!(runs(&store, 0, 100), zeroed, "in the WAL");
    store.set_committed(Lsn(2));
    checkpoint(&mut store);
    assert_eq!(runs(&store, 0, 100), zeroed, "in the extents");
    assert_eq!((find(&store, 11, 12), find(&store, 11, 13)), (None, Some(12)));
}
