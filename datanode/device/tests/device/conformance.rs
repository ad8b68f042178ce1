//! What `Storage` and `RawFile` say, on all that implement them: files, the simulated disk, a device.

use std::io::{self, IoSlice};
use std::sync::Arc;

use sbk_wal::{Files, Memory, RawFile, Storage, read_exact, write_all};

use super::work::{self, Random};

/// Gives each backend to `try_it`, by name.
fn each(try_it: impl Fn(&str, &dyn Storage)) {
    let dir = tempfile::tempdir().expect("a directory");
    try_it("files", &Files::new(dir.path()));
    try_it("memory", &Memory::new(1));
    let device = work::open(&work::disk(1)).expect("a device");
    try_it("device", &device.directory("").expect("its root"));
    device.create_dir("r").expect("a directory");
    try_it("a directory of a device", &device.directory("r").expect("it"));
}

fn content(file: &dyn RawFile) -> Vec<u8> {
    let mut bytes = vec![1; file.len().expect("its length") as usize];
    read_exact(file, &mut bytes, 0, false).expect("read");
    bytes
}

fn kind<T>(result: io::Result<T>) -> io::ErrorKind {
    result.map(drop).expect_err("it must fail").kind()
}

#[test]
fn names_come_and_go() {
    each(|name, storage| {
        assert_eq!(storage.list("").expect("list"), [""; 0], "{name}");
        assert_eq!(kind(storage.open("a")), io::ErrorKind::NotFound, "{name}");
        assert_eq!(kind(storage.remove("a")), io::ErrorKind::NotFound, "{name}");
        assert_eq!(kind(storage.rename("a", "b")), io::ErrorKind::NotFound, "{name}");
        assert_eq!(kind(storage.create("d/a")), io::ErrorKind::NotFound, "{name}");
        assert_eq!(kind(storage.list("d")), io::ErrorKind::NotFound, "{name}");
        storage.create_dir("d").expect("dir");
        storage.create_dir("d").expect("it is there");
        assert_eq!(storage.list("d").expect("list"), [""; 0], "{name}");
        let a = storage.create("d/a").expect("create");
        assert_eq!(kind(storage.create("d/a")), io::ErrorKind::AlreadyExists, "{name}");
        write_all(&*a, &[b"a"], 0).expect("write");
        let b = storage.create("d/b").expect("create");
        write_all(&*b, &[b"b"], 0).expect("write");
        storage.create("e").expect("create");
        assert_eq!(storage.list("").expect("list"), ["d", "e"], "{name}");
        storage.rename("d/a", "d/b").expect("it replaces");
        storage.sync_dir("d").expect("sync");
        assert_eq!(storage.list("d").expect("list"), ["b"], "{name}");
        assert_eq!(content(&*storage.open("d/b").expect("open")), b"a", "{name}");
        assert_eq!(content(&*b), b"b", "{name}: who has it open keeps it");
        storage.remove("d/b").expect("remove");
        storage.sync_dir("d").and_then(|()| storage.sync_dir("")).expect("sync");
        assert_eq!(storage.list("d").expect("list"), [""; 0], "{name}");
        write_all(&*a, &[b"more"], 1).expect("it is still a file");
        a.sync().expect("sync");
        assert_eq!(content(&*a), b"amore", "{name}");
        storage.remove("e").expect("remove");
    });
}

#[test]
fn lengths_holes_and_ends() {
    each(|name, storage| {
        let file = storage.create("f").expect("create");
        assert!(file.is_empty().expect("empty"), "{name}");
        let mut buf = [1; 10];
        assert_eq!(file.read_at(&mut buf, 0).expect("read"), 0, "{name}");
        write_all(&*file, &[b"abc", b"", b"def"], 5).expect("write");
        assert_eq!(content(&*file), b"\0\0\0\0\0abcdef", "{name}");
        assert_eq!(file.read_at(&mut buf, 100).expect("read"), 0, "{name}");
        file.set_len(7).expect("cut");
        file.set_len(9).expect("extend");
        assert_eq!(content(&*file), b"\0\0\0\0\0ab\0\0", "{name}: a cut takes what is behind it");
        file.set_len(700_000).expect("extend");
        file.reserve(100).expect("it is longer");
        file.reserve(710_001).expect("reserve");
        assert_eq!(file.len().expect("len"), 710_001, "{name}");
        let mut expected = vec![0; 710_001];
        expected[5..7].copy_from_slice(b"ab");
        assert_eq!(content(&*file), expected, "{name}");
        file.punch(6, 1_000_000).expect("punch");
        expected[6] = 0;
        assert_eq!((content(&*file), file.len().expect("len")), (expected, 710_001), "{name}");
        file.set_len(0).expect("cut");
        assert!(file.next_data(0).expect("seek").is_none(), "{name}");
        assert_eq!(file.write_at(&[IoSlice::new(b"")], 0).expect("nothing"), 0, "{name}");
        storage.remove("f").expect("remove");
    });
}

/// Random work of every kind at any byte, compared with a vector of bytes.
#[test]
fn bytes_are_what_was_written_last() {
    each(|name, storage| {
        let mut random = Random(7);
        let file = storage.create("f").expect("create");
        let mut expected: Vec<u8> = Vec::new();
        for step in 0..400_u64 {
            let at = random.below(800_000) as usize;
            let at = if random.below(3) == 0 { at / 4096 * 4096 } else { at };
            let most = [30, 5000, 300_000][random.below(3) as usize];
            let len = 1 + random.below(most) as usize;
            match random.below(10) {
                0..6 => {
                    let data = vec![step as u8 | 1; len];
                    let (first, second) = data.split_at(len / 3);
                    write_all(&*file, &[first, second], at as u64).expect("write");
                    expected.resize(expected.len().max(at + len), 0);
                    expected[at..at + len].copy_from_slice(&data);
                }
                6 | 7 => {
                    file.punch(at as u64, len as u64).expect("punch");
                    let end = expected.len().min(at + len);
                    expected.get_mut(at..end).unwrap_or_default().fill(0);
                }
                8 => {
                    file.set_len(at as u64).expect("cut or extend");
                    expected.resize(at, 0);
                }
                _ => file.sync().expect("sync"),
            }
            if step % 10 == 0 {
                assert!(content(&*file) == expected, "{name}: step {step}");
                // What is skipped as a hole is zeros.
                let (mut at, mut seen) = (0, 0);
                while let Some(data) = file.next_data(at).expect("seek") {
                    assert!(data.start >= at && data.end > data.start, "{name}: {at}, {data:?}");
                    let hole = &expected[at as usize..data.start as usize];
                    assert!(hole.iter().all(|byte| *byte == 0), "{name}: step {step}");
                    at = data.end;
                    seen += 1;
                    assert!(seen < 1000, "{name}");
                }
                assert!(expected.get(at as usize..).unwrap_or_default().iter().all(|b| *b == 0));
            }
        }
        drop(file);
        assert!(content(&*storage.open("f").expect("open")) == expected, "{name}");
        storage.remove("f").expect("remove");
    });
}

/// Several threads write to files of their own and to one of all.
#[test]
fn threads_write_beside_each_other() {
    each(|name, storage| {
        let shared = storage.create("all").expect("create");
        let own: Vec<Arc<dyn RawFile>> =
            (0..4).map(|n| storage.create(&format!("f{n}")).expect("create")).collect();
        std::thread::scope(|scope| {
            for (n, own) in own.iter().enumerate() {
                let shared = &shared;
                scope.spawn(move || {
                    for step in 0..60 {
                        // Sectors of one page, so that they meet in fresh pages.
                        let at = (step * 4 + n as u64) * 512;
                        write_all(&**shared, &[&[n as u8 + 1; 512]], at).expect("write");
                        write_all(&**own, &[&[n as u8 + 1; 5000]], step * 5000).expect("write");
                        if step % 7 == 0 {
                            own.sync().and_then(|()| shared.sync()).expect("sync");
                        }
                    }
                });
            }
        });
        for (at, sector) in content(&*shared).chunks(512).enumerate() {
            assert!(sector.iter().all(|byte| usize::from(*byte) == at % 4 + 1), "{name}: {at}");
        }
        for (n, file) in own.iter().enumerate() {
            let found = content(&**file);
            assert_eq!(found.len(), 300_000, "{name}");
            assert!(found.iter().all(|byte| usize::from(*byte) == n + 1), "{name}");
            storage.remove(&format!("f{n}")).expect("remove");
        }
        storage.remove("all").expect("remove");
    });
}
