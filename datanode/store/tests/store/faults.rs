//! Disks that fail and disks that are full: the store stops and says why, and nothing that it had
//! acknowledged depends on what failed.

use sbk_engine::replication::log::BlockRange;
use sbk_engine::types::Lba;
use sbk_wal::{Fault, OpKind};

use super::backend::{Backend, Disk};
use super::content::{MAX_BLOCKS, Random};
use super::driver::{self, Driver};
use super::events::Event;
use super::model::Model;

const STEPS: u64 = 60;

fn replica(backend: Backend, seed: u64) -> (Disk, Model) {
    let disk = Disk::new(backend, seed);
    driver::create(&disk.storage().expect("sound"), 0).expect("a replica");
    let mut model = Model::new(seed, 0);
    model.hear(Event::Created { n: 0 });
    (disk, model)
}

/// What a failure's message must name: a file of the store, or the device.
fn names_a_file(message: &str) -> bool {
    let names = [
        "superblock",
        "logstate",
        "extents",
        "shadow",
        "checksums",
        "regions",
        "wal",
        "device",
        "seal",
    ];
    names.iter().any(|name| message.contains(name))
}

/// Opens the replica and works on it. Returns the failure, if there is one; by then the store has
/// stopped for good.
fn work(disk: &Disk, seed: u64, run: u64, model: &mut Model) -> Result<(), String> {
    let open = driver::open(&disk.storage()?, 0).map_err(|e| e.to_string())?;
    let mut hear = |event: Event| model.hear(event);
    let mut driver = Driver::new(seed, run, open, false, &mut hear);
    match driver.run(STEPS).and_then(|()| driver.settle()) {
        Ok(()) => driver.close().map_err(|e| e.to_string()),
        Err(error) => {
            if let Some(how) = driver.goes_on() {
                panic!("after {error}: {how}");
            }
            Err(error.to_string())
        }
    }
}

/// What happens after the failure, before the store is opened again.
#[derive(Clone, Copy, Debug)]
enum Then {
    /// Nothing: the same process opens it.
    Reopen,
    /// The process dies, the page cache stays.
    Kill,
    PowerLoss,
}

const THEN: [Then; 3] = [Then::Reopen, Then::Kill, Then::PowerLoss];

/// Opens the replica after a failure and sees to it that all acknowledged is there and stays.
fn comes_back(disk: &Disk, seed: u64, then: Then, mut model: Model) -> Result<(), String> {
    match then {
        Then::Reopen => {}
        Then::Kill => disk.process_killed(),
        Then::PowerLoss => disk.power_loss(),
    }
    model.check(&disk.storage()?)?;
    // What was found counts from here on; it must be more than a page that was never written.
    disk.power_loss();
    model.check(&disk.storage()?).map_err(|e| format!("after the opening: {e}"))?;
    work(disk, seed, 1, &mut model).map_err(|e| format!("it does not go on: {e}"))?;
    disk.power_loss();
    model.check(&disk.storage()?).map(drop).map_err(|e| format!("after more work: {e}"))
}

/// Lets the `n`-th operation of a kind fail, for every `n`. Returns how many there were, and how
/// many of them stopped the store.
fn every_operation(backend: Backend, kind: OpKind, fault: Fault) -> (u64, u64) {
    let (mut failures, mut all) = (0, 0);
    // There are far more operations on a device.
    let seeds = if backend == Backend::Files { 3..6 } else { 3..4 };
    for seed in seeds {
        for n in 0.. {
            let (disk, mut model) = replica(backend, seed);
            disk.fail(kind, n, "", fault);
            let result = work(&disk, seed, 0, &mut model);
            if disk.faults() > 0 {
                result.expect("nothing failed");
                break;
            }
            let context = format!("{fault:?} at {kind:?} {n}, seed {seed}");
            if let Err(message) = result {
                assert!(names_a_file(&message), "{context}: no file is named: {message}");
                failures += 1;
            }
            all += 1;
            // A failed sync is what the three differ in most.
            let thens = if kind == OpKind::Sync { 3 } else { 1 };
            for then in THEN.into_iter().cycle().skip(n as usize % 3).take(thens) {
                if let Err(what) = comes_back(&disk.fork(), seed, then, model.clone()) {
                    panic!("{context}, then {then:?}: {what}");
                }
            }
        }
    }
    (all, failures)
}

#[test]
fn a_sync_that_fails_stops_the_store_and_is_never_trusted_again() {
    let (all, failures) = every_operation(Backend::Files, OpKind::Sync, Fault::Io);
    // Those of files that nobody waits for are the only ones that it survives.
    assert!(failures > 60 && failures < all, "{failures} of {all}");
}

#[test]
fn a_write_that_fails_stops_the_store() {
    let (all, failures) = every_operation(Backend::Files, OpKind::Write, Fault::Io);
    assert!(failures > 60 && failures < all, "{failures} of {all}");
}

#[test]
fn a_name_or_a_length_that_cant_be_changed_stops_the_store() {
    let (all, failures) = every_operation(Backend::Files, OpKind::Meta, Fault::Io);
    assert!(failures > 10 && failures < all, "{failures} of {all}");
}

/// A sync, a write of the map: each fails all that is open on the device, and the store among it.
#[test]
fn a_device_that_fails_stops_the_store_and_nothing_is_trusted_again() {
    for kind in [OpKind::Sync, OpKind::Write] {
        let (all, failures) = every_operation(Backend::Device, kind, Fault::Io);
        println!("{kind:?}: {all} faults, {failures} failures");
        assert!(failures > 40, "{failures} of {all}");
    }
}

#[test]
fn an_encrypted_replica_whose_disk_fails_stops_the_store_and_nothing_is_trusted_again() {
    for kind in [OpKind::Sync, OpKind::Write, OpKind::Meta] {
        let (all, failures) = every_operation(Backend::Sealed, kind, Fault::Io);
        println!("{kind:?}: {all} faults, {failures} failures");
        assert!(failures > 10 && failures < all, "{failures} of {all}");
    }
}

#[test]
fn short_writes_are_completed() {
    let (disk, mut model) = replica(Backend::Files, 5);
    let mut random = Random(5);
    for n in 0..1000 {
        disk.fail(OpKind::Write, n, "", Fault::Short(1 + random.below(3000) as usize));
    }
    work(&disk, 5, 0, &mut model).expect("short writes are no failures");
    assert!(disk.faults() < 900, "writes were short");
    disk.power_loss();
    model.check_twice(&disk.storage().expect("sound")).expect("all of it");
}

#[test]
fn a_disk_that_is_full_stops_the_store_until_there_is_room() {
    for seed in [3, 4] {
        let mut failures = 0;
        for n in 0.. {
            let (disk, mut model) = replica(Backend::Files, seed);
            disk.fill_up_after(n);
            let result = work(&disk, seed, 0, &mut model);
            if !disk.ran_full() {
                result.expect("nothing failed");
                break;
            }
            let context = format!("full at allocation {n}, seed {seed}");
            if let Err(message) = result {
                assert!(names_a_file(&message), "{context}: no file is named: {message}");
                assert!(message.contains("os error 28"), "{context}: no cause: {message}");
                failures += 1;
            }
            // It may be opened meanwhile, or not; it says why not.
            if let Err(error) = driver::open(&disk.storage().expect("sound"), 0) {
                assert!(names_a_file(&error.to_string()), "{context}: {error}");
            }
            disk.make_room();
            let then = THEN[n as usize % THEN.len()];
            if let Err(what) = comes_back(&disk, seed, then, model) {
                panic!("{context}, then {then:?}: {what}");
            }
        }
        assert!(failures > 10, "seed {seed}: {failures}");
    }
}

/// Every read of an opening fails once, and so does every read of blocks and of the log.
#[test]
fn a_read_that_fails_is_told_and_harms_nothing() {
    let (disk, mut model) = replica(Backend::Files, 6);
    work(&disk, 6, 0, &mut model).expect("sound");
    let (mut failures, mut survived) = (0, 0);
    for n in 0.. {
        let disk = disk.fork();
        let mut model = model.clone();
        disk.fail(OpKind::Read, n, "", Fault::Io);
        let mut told = Vec::new();
        match driver::open(&disk.storage().expect("sound"), 0) {
            Err(error) => told.push(error.to_string()),
            Ok((store, opened)) => {
                for first in (0..MAX_BLOCKS).step_by(40) {
                    let range = BlockRange { lba: Lba(first), blocks: 40 };
                    if let Err(error) = store.plan_read(range).run() {
                        told.push(error.to_string());
                    }
                }
                let again = model.check_content(&store, &opened);
                if disk.faults() == 0 && told.is_empty() {
                    told.extend(again.err());
                } else {
                    again.expect("the fault has passed");
                }
            }
        }
        if disk.faults() > 0 {
            break;
        }
        match &told[..] {
            // There is another slot, and what lies below the checkpoint is not needed.
            [] => survived += 1,
            [told] => {
                assert!(names_a_file(told), "read {n}: {told}");
                failures += 1;
            }
            more => panic!("read {n} failed once: {more:?}"),
        }
        model.check(&disk.storage().expect("sound")).expect("nothing is lost");
    }
    assert!(failures > 20, "{failures} reads");
    assert!((4..20).contains(&survived), "two files of two slots, and segments: {survived}");
}

/// Whatever of a making fails, once a later attempt or an opening succeeded the replica is there for good.
#[test]
fn a_replica_whose_making_failed_once_outlives_a_loss_of_power() {
    for kind in [OpKind::Write, OpKind::Sync, OpKind::Meta] {
        let mut failures = 0;
        for n in 0.. {
            let disk = Disk::new(Backend::Files, n);
            disk.fail(kind, n, "", Fault::Io);
            let made = driver::create(&disk.storage().expect("sound"), 0);
            if disk.faults() > 0 {
                made.expect("nothing failed");
                break;
            }
            failures += u64::from(made.is_err());
            for killed in [false, true] {
                let disk = disk.fork();
                if killed {
                    disk.process_killed();
                }
                // A process that starts opens what has its name, and makes what has none.
                if !killed || disk.content("superblock").is_none() {
                    driver::create(&disk.storage().expect("sound"), 0).expect("it can be made now");
                }
                let unopened = disk.fork();
                drop(driver::open(&disk.storage().expect("sound"), 0).expect("it is made"));
                disk.lose_unsynced();
                if !killed {
                    unopened.lose_unsynced();
                    drop(
                        driver::open(&unopened.storage().expect("sound"), 0)
                            .expect("it was made durably"),
                    );
                }
                let opened = driver::open(&disk.storage().expect("sound"), 0);
                drop(opened.unwrap_or_else(|e| panic!("{kind:?} {n}, killed {killed}: {e}")));
            }
        }
        assert!(failures > 3, "{failures} of {kind:?}");
    }
}
