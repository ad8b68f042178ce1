//! Devices that fail and devices that are full.

use std::io;

use sbk_device::CHUNK;
use sbk_wal::{Fault, OpKind, Storage, read_exact, write_all};

use super::stops::every_fault;
use super::work::{Model, Outcome, check, disk, open, work};

fn number(error: &io::Error) -> Option<i32> {
    error.raw_os_error()
}

/// 1. Two files have data that no sync reached.
/// 2. The sync of one fails, and with it the kernel forgets what both had written.
/// 3. The sync of the other one must fail as well: for it nobody would say so a second time.
#[test]
fn a_sync_that_fails_fails_every_file_that_is_open() {
    let memory = disk(1);
    let device = open(&memory).expect("a device");
    let root = device.directory("").expect("the root");
    let (a, b) = (root.create("a").expect("create"), root.create("b").expect("create"));
    for file in [&a, &b] {
        write_all(&**file, &[&[1; 8192]], 0).expect("write");
        file.sync().expect("sync");
    }
    root.sync_dir("").expect("sync");
    write_all(&*a, &[&[2; 4096]], 0).expect("write");
    write_all(&*b, &[&[2; 4096]], 0).expect("write");
    memory.fail(OpKind::Sync, 0, "", Fault::Io);
    assert_eq!(number(&a.sync().expect_err("the fault")), Some(5));
    assert_eq!(number(&b.sync().expect_err("it lost data as well")), Some(5));
    write_all(&*b, &[&[3; 4096]], 0).expect_err("nothing more is taken");
    root.create("c").map(drop).expect_err("no names either");
    // Opened anew they work, and what is synced then is durable.
    let root = device.directory("").expect("it is read again");
    let a = root.open("a").expect("open");
    write_all(&*a, &[&[4; 4096]], 0).expect("write");
    a.sync().expect("sync");
    memory.lose_unsynced();
    let root = open(&memory).expect("a device").directory("").expect("the root");
    let mut seen = [0; 4096];
    read_exact(&*root.open("a").expect("open"), &mut seen, 0, false).expect("read");
    assert_eq!(seen, [4; 4096]);
    read_exact(&*root.open("b").expect("open"), &mut seen, 0, false).expect("read");
    assert_eq!(seen, [1; 4096]);
}

#[test]
fn whatever_fails_takes_nothing_that_was_synced() {
    let mut all = 0;
    for (kind, fault) in [
        (OpKind::Sync, Fault::Io),
        (OpKind::Write, Fault::Io),
        (OpKind::Write, Fault::Short(700)),
        (OpKind::Read, Fault::Io),
        (OpKind::Meta, Fault::Io),
    ] {
        match every_fault(kind, fault, 0..1, 40) {
            Ok(count) => all += count,
            Err((seed, at, what)) => panic!("{fault:?} at {kind:?} {at}, seed {seed}: {what}"),
        }
    }
    assert!(all > 40, "{all}");
}

#[test]
fn a_page_of_the_map_that_cant_be_read_is_read_from_its_other_copy() {
    let memory = disk(1);
    let mut model = Model::new();
    assert!(matches!(work(&memory, &mut model, 9, 80), Outcome::Done));
    let size = memory.content("device").expect("it").len() as u64;
    // What is behind the head and before the end is chunks.
    let pages = (0..64).chain(size / 4096 - 64..size / 4096);
    let mut opened = 0;
    for page in pages {
        let memory = memory.fork();
        assert!(memory.spoil("device", page * 4096));
        if let Err(what) = check(&memory, &mut model.clone()).map(drop) {
            assert!(what.contains("os error 5"), "page {page}: {what}");
            // The other copy of what is there was torn or never written.
            continue;
        }
        opened += 1;
    }
    assert!(opened > 100, "{opened}");
}

#[test]
fn a_full_device_says_so_and_has_room_again() {
    let memory = disk(1);
    let device = open(&memory).expect("a device");
    let root = device.directory("").expect("the root");
    let (free, used) = device.space();
    assert_eq!(used, 0);
    let (a, b) = (root.create("a").expect("create"), root.create("b").expect("create"));
    a.reserve(free - CHUNK).expect("all but one");
    assert_eq!(number(&b.reserve(2 * CHUNK).expect_err("full")), Some(28));
    assert_eq!(b.len().expect("len"), 0);
    write_all(&*b, &[&[1; 4096]], 0).expect("the last one");
    let error = write_all(&*b, &[&[1; 4096]], CHUNK - 100).expect_err("full");
    assert_eq!(number(&error), Some(28));
    assert_eq!(device.space(), (0, free));
    write_all(&*a, &[&[2; 100_000]], 77).expect("it was reserved");
    // A part of a chunk frees nothing, all of what is in it does.
    a.punch(0, 4096).expect("punch");
    assert_eq!(device.space().0, 0);
    a.punch(0, 200_000).expect("punch");
    write_all(&*b, &[&[1; 4096]], CHUNK).expect("room");
    // What somebody has open stays.
    root.remove("a").expect("remove");
    root.sync_dir("").expect("sync");
    assert_eq!(device.space().0, 0);
    drop(a);
    assert_eq!(device.space().0, free - 2 * CHUNK);
    let c = root.create("c").expect("create");
    c.reserve(free - 2 * CHUNK).expect("room");
    drop(c);
    device.remove_dir("none").expect("nothing");
}

#[test]
fn names_are_bounded_by_the_room_for_them() {
    let device = open(&disk(1)).expect("a device");
    let root = device.directory("").expect("the root");
    let long = "x".repeat(240);
    let made = (0..10_000).map(|n| root.create(&format!("{long}{n}"))).take_while(|r| r.is_ok());
    let count = made.count();
    assert!((100..1000).contains(&count), "{count}");
    let error = root.create(&format!("{long}y")).map(drop).expect_err("full");
    assert_eq!(number(&error), Some(28));
    root.sync_dir("").expect("they have room in a snapshot");
    root.rename(&format!("{long}1"), &format!("{long}z")).expect("the same room");
    root.remove(&format!("{long}2")).expect("remove");
    root.create(&format!("{long}y")).expect("room");
    root.create(&"x".repeat(300)).map(drop).expect_err("too long");
    root.sync_dir("").expect("sync");
}

/// A replica's directory goes at once, however the removal ends.
#[test]
fn a_directory_is_removed_with_all_that_is_in_it_or_not_at_all() {
    for at in 0.. {
        let memory = disk(at);
        let device = open(&memory).expect("a device");
        device.create_dir("r").expect("dir");
        let dir = device.directory("r").expect("it");
        dir.create_dir("wal").expect("dir");
        for path in ["f", "wal/1", "wal/2"] {
            let file = dir.create(path).expect("create");
            write_all(&*file, &[&[1; 300_000]], 0).expect("write");
            file.sync().expect("sync");
        }
        dir.sync_dir("").expect("sync");
        memory.crash_after(at);
        let done = device.remove_dir("r").is_ok();
        memory.power_loss();
        let device = open(&memory).expect("a device");
        let root = device.directory("").expect("the root");
        match &root.list("").expect("list")[..] {
            [] => assert_eq!(device.space().1, 0),
            [name] => {
                assert!(!done && name == "r", "{name}");
                assert_eq!(root.list("r/wal").expect("list"), ["1", "2"]);
                assert_eq!(device.space().1, 6 * CHUNK);
            }
            more => panic!("{more:?}"),
        }
        if done {
            assert!(at > 2, "{at}");
            break;
        }
    }
}

/// The file is read while it is discarded of: no page of another one is seen.
#[test]
fn a_reader_of_a_file_never_sees_another_ones_data() {
    let device = open(&disk(1)).expect("a device");
    let root = device.directory("").expect("the root");
    let (a, b) = (root.create("a").expect("create"), root.create("b").expect("create"));
    let free = device.space().0;
    b.set_len(free).expect("a hole");
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut buf = vec![0; 1 << 20];
            let mut reads = 0_u64;
            while !done.load(std::sync::atomic::Ordering::Relaxed) || reads < 3 {
                let read = a.read_at(&mut buf, 0).expect("read");
                assert!(buf[..read].iter().all(|byte| *byte <= 1), "another file's");
                reads += 1;
            }
        });
        for _ in 0..40 {
            write_all(&*a, &[&vec![1; 2 << 20][..]], 0).expect("write");
            a.punch(0, 2 << 20).and_then(|()| a.sync()).expect("punched");
            write_all(&*b, &[&vec![2; 3 << 20][..]], 0).expect("write");
            b.punch(0, 3 << 20).and_then(|()| b.sync()).expect("punched");
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        reader.join().expect("the reader");
    });
}
