//! Devices that are not taken, and why; nothing on them is changed.

use std::path::Path;

use sbk_device::{CHUNK, Device, DeviceError, FormatOptions};
use sbk_wal::{Memory, Storage, crc32c, write_all};
use uuid::Uuid;

use super::work::{BYTES, JOURNAL, disk, node, open};

/// What is said; the device is as it was.
fn refused(memory: &Memory) -> DeviceError {
    let before = memory.content("device");
    let error = open(memory).map(drop).expect_err("refused");
    assert!(error.to_string().contains("device"), "{error}");
    assert!(memory.content("device") == before, "{error}: it was changed");
    error
}

fn set_up() -> Memory {
    let memory = disk(1);
    drop(open(&memory).expect("set up"));
    memory
}

#[test]
fn what_is_not_zeros_at_its_ends_is_not_set_up() {
    for (at, bytes) in [(0, &b"LUKS\xba\xbe"[..]), (1080, b"\x53\xef"), (99_999, b"x")] {
        for at in [at, BYTES - 1 - at] {
            let memory = disk(1);
            let file = memory.open("device").expect("it");
            write_all(&*file, &[&bytes[..bytes.len().min((BYTES - at) as usize)]], at)
                .expect("write");
            assert!(matches!(refused(&memory), DeviceError::Foreign { .. }), "{at}");
        }
    }
    // In the middle there may be anything: nothing of it is ever read.
    let memory = disk(1);
    write_all(&*memory.open("device").expect("it"), &[&[7; 1 << 20]], BYTES / 2).expect("write");
    let device = open(&memory).expect("set up");
    let root = device.directory("").expect("the root");
    let file = root.create("f").expect("create");
    file.reserve(device.space().0).expect("all of it");
    write_all(&*file, &[b"x"], CHUNK + 100).expect("write");
    let mut bytes = vec![1; file.len().expect("its length") as usize];
    sbk_wal::read_exact(&*file, &mut bytes, 0, false).expect("read");
    assert_eq!(bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>(), u32::from(b'x'));
}

#[test]
fn a_file_system_made_over_it_is_left_alone() {
    let memory = set_up();
    let file = memory.open("device").expect("it");
    write_all(&*file, &[&[0; 4096]], 0).expect("write");
    write_all(&*file, &[b"\x53\xef"], 1080).expect("write");
    let error = refused(&memory).to_string();
    assert!(error.contains("ext4"), "{error}");
}

#[test]
fn another_nodes_a_newer_ones_and_a_smaller_one_are_told() {
    let memory = set_up();
    let file = || memory.open("device").expect("it");
    let other = Uuid::from_u128(1);
    let path = Path::new("device");
    let error = Device::find(file(), path, Some(other)).map(drop);
    let error = error.expect_err("another node's").to_string();
    assert!(error.contains(&node().to_string()) && error.contains(&other.to_string()), "{error}");

    let fork = memory.fork();
    fork.open("device").expect("it").set_len(BYTES - 4096).expect("shorter");
    let error = refused(&fork);
    assert!(matches!(error, DeviceError::Shrunk { expected: BYTES, .. }), "{error}");

    // Larger is fine, and of no use.
    let fork = memory.fork();
    let space = open(&fork).expect("opened").space();
    fork.open("device").expect("it").set_len(2 * BYTES).expect("longer");
    assert_eq!(open(&fork).expect("opened").space(), space);

    let mut header = memory.content("device").expect("it")[..4096].to_vec();
    header[8] = 2;
    let sum: Vec<u8> = header[..12].iter().chain(&header[16..88]).copied().collect();
    header[12..16].copy_from_slice(&crc32c(&sum).to_le_bytes());
    write_all(&*file(), &[&header], 0).expect("write");
    assert!(matches!(refused(&memory), DeviceError::Newer { found: 2, expected: 1, .. }));
}

#[test]
fn one_that_is_too_small_is_told() {
    let memory = Memory::new(1);
    let file = memory.create("device").expect("a device");
    file.set_len(3 << 20).expect("its size");
    assert!(matches!(refused(&memory), DeviceError::TooSmall { .. }));
    file.set_len(0).expect("its size");
    assert!(matches!(refused(&memory), DeviceError::TooSmall { .. }));
}

#[test]
fn a_set_up_that_was_cut_short_is_finished() {
    let mut cut = 0;
    for seed in 0..8 {
        for at in 0.. {
            let memory = disk(seed);
            memory.crash_after(at);
            let done = open(&memory).is_ok();
            memory.power_loss();
            let device = open(&memory).unwrap_or_else(|e| panic!("seed {seed}, {at}: {e}"));
            assert_eq!(device.directory("").expect("the root").list("").expect("list"), [""; 0]);
            cut += 1;
            if done {
                break;
            }
        }
    }
    assert!(cut > 16, "{cut}");
}

#[test]
fn one_is_made_anew_for_another_node_only_as_long_as_nothing_is_on_it() {
    let memory = set_up();
    let (path, other, id) = (Path::new("device"), Uuid::from_u128(1), Uuid::from_u128(2));
    let file = || memory.open("device").expect("it");
    let options = FormatOptions { journal_bytes: Some(JOURNAL) };
    let make = |id| Device::make(file(), path, id, other, options);
    let device = make(id).expect("nothing was on it");
    assert_eq!((device.node(), device.id(), device.is_empty()), (other, id, true));
    device.create_dir("d").expect("made");
    drop(device);
    let before = memory.content("device");
    let error = make(Uuid::from_u128(3)).map(drop).expect_err("refused");
    assert!(matches!(error, DeviceError::Foreign { .. }), "{error}");
    assert!(error.to_string().contains(&other.to_string()), "{error}");
    assert!(memory.content("device") == before, "it was changed");
    let device = Device::find(file(), path, None).expect("read").expect("there");
    assert_eq!((device.id(), device.is_empty()), (id, false));
}

#[test]
fn what_is_no_block_device_is_not_opened_as_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("image");
    std::fs::write(&path, [0; 4096]).expect("written");
    for path in [&path, dir.path(), Path::new("/dev/null")] {
        let error = sbk_device::open_exclusive(path).map(drop).expect_err("refused");
        assert!(matches!(error, DeviceError::NoDevice { .. }), "{error}");
    }
    let missing = sbk_device::open_exclusive(&dir.path().join("no")).map(drop);
    assert!(matches!(missing, Err(DeviceError::Io { .. })));
}
