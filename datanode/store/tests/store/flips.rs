//! One rotten bit anywhere in a replica's files: it is told, by file and byte, or it changes nothing.

use sbk_engine::replication::io::Opened;
use sbk_store::Store;
use sbk_wal::is_zero;

use super::backend::{Backend, Disk};
use super::driver::{self, Driver};
use super::events::Event;
use super::model::Model;

fn open(disk: &Disk) -> Result<(Store, Opened), String> {
    driver::open(&disk.storage()?, 0).map_err(|e| e.to_string())
}

/// A replica that was worked on, and stopped in order or not.
fn replica(backend: Backend, seed: u64, in_order: bool) -> (Disk, Model) {
    let disk = Disk::new(backend, seed);
    driver::create(&disk.storage().expect("a disk"), 0).expect("a replica");
    let mut model = Model::new(seed, 0);
    let open = open(&disk).expect("a store");
    let mut hear = |event: Event| model.hear(event);
    let mut driver = Driver::new(seed, 1, open, false, &mut hear);
    driver.run(110).and_then(|()| driver.settle()).expect("the disk is sound");
    if in_order {
        driver.close().expect("closed");
    }
    disk.process_killed();
    (disk, model)
}

/// Some bits of a file: many of its first bytes, and of what is not zeros; few of the rest.
fn bits(content: &[u8], salt: u64) -> Vec<u64> {
    let mut out = Vec::new();
    let data: Vec<usize> = (0..content.len()).filter(|at| content[*at] != 0).collect();
    let zeros = (0..content.len()).step_by((content.len() / 16).max(1));
    let head = 0..content.len().min(80);
    let spread = data.iter().copied().step_by((data.len() / 120).max(1));
    for (n, byte) in head.chain(spread).chain(zeros).enumerate() {
        out.push(byte as u64 * 8 + (n as u64 + salt) % 8);
    }
    out
}

/// Where the message says that the damage is, if it names the file.
fn tells(message: &str, path: &str) -> bool {
    // A block and its stamp in `checksums` don't match: either may be rotten.
    let home = message.contains("extents") || message.contains("shadow");
    let image = home && path == "checksums";
    (message.contains(path) || image) && (message.contains("byte") || message.contains("header"))
}

#[test]
fn a_rotten_bit_is_told_or_changes_nothing() {
    every_file(Backend::Files);
}

#[test]
fn a_rotten_bit_of_an_encrypted_replica_is_told_or_changes_nothing() {
    every_file(Backend::Sealed);
}

fn every_file(backend: Backend) {
    let (mut told, mut nothing) = (0, 0);
    for (seed, in_order) in [(21, true), (22, false)] {
        let (disk, model) = replica(backend, seed, in_order);
        let paths = disk.paths();
        let last = paths.iter().rfind(|path| path.ends_with(".seg")).expect("a segment").clone();
        for path in &paths {
            let content = disk.content(path).expect("it is there");
            for bit in bits(&content, seed) {
                let context = format!("seed {seed}, {path}, byte {}, bit {}", bit / 8, bit % 8);
                let disk = disk.fork();
                assert!(disk.flip(path, bit), "{context}");
                let (store, opened) = match open(&disk) {
                    Ok(open) => open,
                    Err(message) => {
                        assert!(tells(&message, path), "{context}: {message}");
                        told += 1;
                        continue;
                    }
                };
                // Of a run that was not ended in order, the last write can't be told from a torn one.
                let doubtful = !in_order && *path == last && opened.kept.doubtful;
                assert!(opened.durable.0 == model.durable || doubtful, "{context}: {opened:?}");
                match model.survey(&store, &opened) {
                    Err(what) => panic!("{context}: {what}"),
                    Ok(refused) if refused.is_empty() => nothing += 1,
                    Ok(refused) => {
                        assert!(refused.iter().all(|m| tells(m, path)), "{context}: {refused:?}");
                        told += 1;
                    }
                }
            }
        }
    }
    println!("{told} were told, {nothing} changed nothing");
    assert!(told > 300 && nothing > 300, "{told} were told, {nothing} changed nothing");
}

/// The file rots while the store is open: what is read from it is checked, also by the checkpoint,
/// which must not copy it to the extents.
#[test]
fn a_bit_that_rots_under_an_open_store_is_told_and_not_copied() {
    under_an_open_store(Backend::Files);
}

#[test]
fn a_bit_of_an_encrypted_replica_that_rots_under_an_open_store_is_told_and_not_copied() {
    under_an_open_store(Backend::Sealed);
}

fn under_an_open_store(backend: Backend) {
    let seed = 23;
    let (disk, model) = replica(backend, seed, true);
    let (mut told, mut nothing) = (0, 0);
    for path in disk.paths() {
        // The others are in memory while the store is open.
        if !path.contains("wal/") && !["extents", "shadow", "checksums"].contains(&&path[..]) {
            continue;
        }
        let content = disk.content(&path).expect("it is there");
        for bit in bits(&content, seed) {
            let context = format!("{path}, byte {}, bit {}", bit / 8, bit % 8);
            let disk = disk.fork();
            let (mut store, opened) = open(&disk).expect("it is sound");
            disk.flip(&path, bit);
            let refused =
                model.survey(&store, &opened).unwrap_or_else(|e| panic!("{context}: {e}"));
            assert!(refused.iter().all(|m| tells(m, &path)), "{context}: {refused:?}");
            let mut told_of_it = !refused.is_empty();
            store.set_committed(opened.durable);
            while let Some(plan) = store.plan_checkpoint(64 << 10) {
                if let Err(error) = store.checkpoint_done(plan.run()) {
                    let message = error.to_string();
                    assert!(tells(&message, &path), "{context}: {message}");
                    assert!(store.failure().is_some(), "{context}: it must stop");
                    told_of_it = true;
                    break;
                }
            }
            // Whatever the checkpoint wrote is right; what it let go of the log is not looked for.
            let opened = Opened { retained: store.retained(), ..opened };
            let checkpointed = model.survey(&store, &opened);
            let refused = checkpointed.unwrap_or_else(|e| panic!("{context}, checkpointed: {e}"));
            assert!(refused.iter().all(|m| tells(m, &path)), "{context}: {refused:?}");
            if told_of_it { told += 1 } else { nothing += 1 }
        }
    }
    println!("{told} were told, {nothing} changed nothing");
    assert!(told > 100 && nothing > 100, "{told} were told, {nothing} changed nothing");
}

#[test]
fn bits_are_taken_from_data_and_from_zeros() {
    let mut content = vec![0; 10_000];
    content[5000..6000].fill(1);
    let bits = bits(&content, 0);
    assert!(bits.iter().filter(|bit| (5000..6000).contains(&(*bit / 8))).count() > 100);
    assert!(bits.iter().any(|bit| *bit > 9000 * 8) && !is_zero(&content));
}
