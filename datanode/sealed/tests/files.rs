//! What a store sees of sealed files is what it sees of plain ones; what lies on the disk shows nothing.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sbk_sealed::{KeyRing, SEAL, SealError, Sealed};
use sbk_wal::{Fault, Memory, OpKind, Owner, RawFile, SECTOR, SlotError, Storage, write_all};

const OWNER: Owner = Owner([7; 32]);

fn ring(keys: &[char]) -> KeyRing {
    let lines: Vec<_> = keys.iter().map(|digit| digit.to_string().repeat(64)).collect();
    KeyRing::parse(&lines.join("\n"), Path::new("keys")).expect("keys")
}

fn make(disk: &Memory) -> Sealed {
    Sealed::create(Arc::new(disk.clone()), OWNER, &ring(&['a'])).expect("made")
}

fn open(disk: &Memory, owner: Owner, keys: Option<&KeyRing>) -> Result<Sealed, SealError> {
    Sealed::open(Arc::new(disk.clone()), owner, keys)
}

fn content(file: &dyn RawFile) -> Vec<u8> {
    let mut out = vec![0; file.len().expect("its length") as usize];
    let found = file.read_at(&mut out, 0).expect("read");
    assert_eq!(found, out.len());
    out
}

/// A small generator of numbers (xorshift), so that each run does the same.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Any reads, writes, holes and lengths, at any offsets, on a sealed file and on a plain one.
#[test]
fn a_sealed_file_is_as_a_plain_one() {
    const LEN: u64 = 12 * SECTOR;
    for seed in 1..200 {
        let disk = Memory::new(seed);
        let sealed = make(&disk).create("extents").expect("made");
        let plain = Memory::new(seed).create("extents").expect("made");
        let mut random = Random(seed);
        for step in 0..60 {
            let offset = random.below(LEN);
            let len = random.below(LEN - offset) + 1;
            // What wants whole sectors gets them now and then.
            let grain = [1, 4, 16, SECTOR][random.below(4) as usize];
            let (offset, len) = (offset - offset % grain, len.next_multiple_of(grain));
            let fill = random.below(255) as u8 + 1;
            let both = |apply: &dyn Fn(&dyn RawFile)| [&sealed, &plain].map(|file| apply(&**file));
            match random.below(8) {
                0 => both(&|file| file.punch(offset, len).expect("punched")),
                1 => {
                    let len = offset.next_multiple_of(SECTOR);
                    both(&|file| file.set_len(len).expect("cut"))
                }
                2 => both(&|file| file.sync().expect("synced")),
                _ => {
                    let bytes = vec![fill; len as usize];
                    let (one, two) = bytes.split_at(bytes.len() / 3);
                    both(&|file| write_all(file, &[one, two], offset).expect("written"))
                }
            };
            // A plain file may end within a sector, and what lies behind it is zeros.
            let mut expected = content(&*plain);
            expected.resize(expected.len().next_multiple_of(SECTOR as usize), 0);
            assert_eq!(content(&*sealed), expected, "seed {seed}, step {step}");
            let mut part = vec![0; len as usize];
            let found = sealed.read_at(&mut part, offset).expect("read");
            let end = expected.len().min((offset + len) as usize);
            let there = expected.get(offset as usize..end).unwrap_or(&[]);
            assert_eq!(&part[..found], there, "seed {seed}, step {step}");
        }
    }
}

#[test]
fn a_write_larger_than_what_is_encrypted_at_once_is_written_whole() {
    let disk = Memory::new(1);
    let file = make(&disk).create("wal/1").expect_err("there is no directory").kind();
    assert_eq!(file, std::io::ErrorKind::NotFound);
    let file = make(&disk).create("extents").expect("made");
    let bytes: Vec<u8> = (0..(5 << 20) + 77).map(|i| (i % 251) as u8).collect();
    write_all(&*file, &[&bytes[..3 << 20], &bytes[3 << 20..]], 1000).expect("written");
    let found = content(&*file);
    assert!(found[..1000].iter().all(|byte| *byte == 0));
    assert_eq!(found[1000..1000 + bytes.len()], bytes);
}

#[test]
fn nothing_of_what_is_written_lies_on_the_disk() {
    let disk = Memory::new(2);
    let sealed = make(&disk);
    let secret = b"a secret of sixteen bytes at least".repeat(40);
    for name in ["extents", "superblock"] {
        let file = sealed.create(name).expect("made");
        for at in [0, 4096, 8192] {
            write_all(&*file, &[&secret], at).expect("written");
        }
    }
    let raw = ["extents", "superblock"].map(|name| content(&*disk.open(name).expect("is there")));
    for raw in &raw {
        assert!(!raw.windows(8).any(|bytes| secret.windows(8).any(|part| part == bytes)));
        assert_ne!(raw[..512], raw[4096..4608], "the same at another place is something else");
    }
    assert_ne!(raw[0][..512], raw[1][..512], "and in another kind of file");

    let other = Memory::new(2);
    let file = make(&other).create("extents").expect("made");
    write_all(&*file, &[&secret], 0).expect("written");
    let raw_other = content(&*other.open("extents").expect("is there"));
    assert_ne!(raw[0][..512], raw_other[..512], "and in another replica");
}

#[test]
fn a_file_keeps_what_it_holds_when_it_is_renamed_and_when_it_is_opened_again() {
    let disk = Memory::new(3);
    let sealed = make(&disk);
    sealed.create_dir("wal").expect("made");
    for (from, to) in [("superblock.new", "superblock"), ("wal/1.spare", "wal/2.seg")] {
        let file = sealed.create(from).expect("made");
        write_all(&*file, &[&[5; 700]], 3).expect("written");
        sealed.rename(from, to).expect("renamed");
    }
    sealed.rename("superblock", "extents").expect_err("could not be read then");
    let again = open(&disk, OWNER, Some(&ring(&['a']))).expect("opened");
    for name in ["superblock", "wal/2.seg"] {
        assert_eq!(content(&*again.open(name).expect("there"))[3..703], [5; 700]);
    }
    assert_eq!(again.list("").expect("listed"), ["superblock", "wal"]);
    assert!(disk.list("").expect("listed").contains(&SEAL.to_owned()));
}

#[test]
fn a_replica_is_opened_with_its_key_only() {
    let disk = Memory::new(4);
    assert!(!Sealed::is_on(&disk).expect("listed"));
    let file = make(&disk).create("extents").expect("made");
    write_all(&*file, &[&[9; 512]], 0).expect("written");
    file.sync().and_then(|()| disk.sync_dir("")).expect("synced");
    assert!(Sealed::is_on(&disk).expect("listed"));

    let error = open(&disk, OWNER, None).expect_err("no keys");
    assert!(matches!(error, SealError::NoKeys { .. }), "{error}");
    let error = open(&disk, OWNER, Some(&ring(&['b', 'c']))).expect_err("other keys");
    assert!(matches!(error, SealError::UnknownKey { .. }), "{error}");
    let error = open(&disk, Owner([8; 32]), Some(&ring(&['a']))).expect_err("another replica's");
    assert!(matches!(error, SealError::Other { .. }), "{error}");

    // Another key comes first: it is wrapped with that one, and the old one is not needed any more.
    open(&disk, OWNER, Some(&ring(&['b', 'a']))).expect("opened with the old key");
    disk.lose_unsynced();
    let again = open(&disk, OWNER, Some(&ring(&['b']))).expect("opened with the new key");
    assert_eq!(content(&*again.open("extents").expect("there")), [9; 512]);
    let error = open(&disk, OWNER, Some(&ring(&['a']))).expect_err("the old key");
    assert!(matches!(error, SealError::UnknownKey { .. }), "{error}");
}

/// Where the record with the key is not that of its owner, though its checksum is right.
#[test]
fn a_key_that_was_put_in_another_s_place_is_refused() {
    let disk = Memory::new(5);
    make(&disk);
    let magic = *b"SBKSEAL\0";
    let shared: Arc<dyn Storage> = Arc::new(disk.clone());
    let (mut slots, record) =
        sbk_wal::Slots::open(Arc::clone(&shared), SEAL, magic, 1, 4096).expect("opened");
    let other = Owner([8; 32]);
    let forged = [&other.0[..], &record[32..]].concat();
    slots.write(&forged).expect("written");
    let error = open(&disk, other, Some(&ring(&['a']))).expect_err("not wrapped for it");
    assert!(matches!(error, SealError::Forged { .. }), "{error}");
    slots.write(&record[..50]).expect("written");
    let error = open(&disk, OWNER, Some(&ring(&['a']))).expect_err("too short");
    assert!(matches!(error, SealError::Slot(SlotError::Damaged { .. })), "{error}");
}

#[test]
fn one_rotten_bit_of_the_key_s_file_costs_nothing() {
    for bit in (0..2 * 4096 * 8).step_by(7) {
        let disk = Memory::new(6);
        make(&disk);
        assert!(disk.flip(SEAL, bit));
        open(&disk, OWNER, Some(&ring(&['a']))).expect("the other slot is whole");
    }
}

/// The making of the key is cut short, or a change of the key that it is wrapped with, at any operation.
#[test]
fn a_crash_leaves_a_key_that_can_be_used_or_none() {
    for seed in 0..20 {
        for at in 0.. {
            let disk = Memory::new(seed);
            let shared = || Arc::new(disk.clone());
            disk.crash_after(at);
            let made = Sealed::create(shared(), OWNER, &ring(&['a'])).is_ok();
            let done = !disk.crashed();
            disk.power_loss();
            let there = Sealed::is_on(&disk).expect("listed");
            assert!(there || !made, "seed {seed}, crash at {at}: a key was lost");
            if there {
                open(&disk, OWNER, Some(&ring(&['a']))).expect("a whole one");
            }
            Sealed::create(shared(), OWNER, &ring(&['a'])).expect("made or found");

            disk.crash_after(at);
            let changed = open(&disk, OWNER, Some(&ring(&['b', 'a']))).is_ok();
            let done = done && !disk.crashed();
            disk.power_loss();
            let now = open(&disk, OWNER, Some(&ring(&['b']))).is_ok();
            assert!(now || !changed, "seed {seed}, crash at {at}: the old key is still needed");
            open(&disk, OWNER, Some(&ring(&['b', 'a']))).expect("one of the two");
            if done {
                break;
            }
        }
    }
}

/// Writes that stop short of a sector's end are gone on with; the caller sees whole ones.
#[test]
fn a_write_that_stops_short_is_gone_on_with() {
    for short in [1, 100, 511, 512, 513, 1500] {
        let disk = Memory::new(8);
        let file = make(&disk).create("extents").expect("made");
        write_all(&*file, &[&[1; 4096]], 0).expect("written");
        disk.fail(OpKind::Write, 0, "extents", Fault::Short(short));
        write_all(&*file, &[&[2; 3000]], 100).expect("the rest is written");
        let found = content(&*file);
        assert!(found[..100].iter().chain(&found[3100..]).all(|byte| *byte == 1), "{short}");
        assert!(found[100..3100].iter().all(|byte| *byte == 2), "{short}");
    }
}

/// Neighbours in one unit of the cipher are read while the other is written, over and over.
#[test]
fn a_reader_does_not_see_its_neighbour_being_written() {
    let dir = tempfile::tempdir().expect("a directory");
    let files = Arc::new(sbk_wal::Files::new(dir.path()));
    let sealed = Sealed::create(files, OWNER, &ring(&['a'])).expect("made");
    let file = sealed.create("checksums").expect("made");
    write_all(&*file, &[&[3; 4096]], 0).expect("written");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (file, stop) = (&*file, &stop);
        let readers: Vec<_> = (0..2)
            .map(|at| {
                scope.spawn(move || {
                    let mut reads = 0u64;
                    while !stop.load(Ordering::Relaxed) || reads < 1000 {
                        let mut own = [0; 4];
                        // The first and the last stamp of the unit in which two are written.
                        let found = file.read_at(&mut own, 256 + 12 * at).expect("read");
                        assert_eq!((found, own), (4, [3; 4]));
                        reads += 1;
                    }
                })
            })
            .collect();
        for n in 0..20_000u32 {
            write_all(file, &[&n.to_le_bytes(), &n.to_le_bytes()], 260).expect("written");
        }
        stop.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|reader| reader.join().expect("reads what is there"));
    });
}
