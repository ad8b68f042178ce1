use super::*;
use crate::storage::{read_exact, write_all};

fn file(disk: &Memory, path: &str) -> Arc<dyn RawFile> {
    disk.create(path).expect("create")
}

#[test]
fn what_was_synced_survives_and_what_was_not_may_go_by_the_sector() {
    let (mut kept, mut gone, mut torn) = (false, false, false);
    for seed in 0..64 {
        let disk = Memory::new(seed);
        let f = file(&disk, "f");
        disk.sync_dir("").expect("sync dir");
        write_all(&*f, &[&[1; 2048]], 0).expect("write");
        f.sync().expect("sync");
        write_all(&*f, &[&[2; 2048]], 0).expect("write");
        disk.power_loss();
        let bytes = disk.content("f").expect("the file");
        for sector in bytes.chunks(512) {
            assert!(sector.iter().all(|b| *b == sector[0]), "a sector is atomic");
            assert!(sector[0] == 1 || sector[0] == 2);
        }
        let news = bytes.chunks(512).filter(|s| s[0] == 2).count();
        match news {
            0 => gone = true,
            4 => kept = true,
            _ => torn = true,
        }
    }
    assert!(kept && gone && torn, "every outcome occurs");
}

#[test]
fn a_failed_sync_looks_clean_and_is_not() {
    let disk = Memory::new(9);
    let f = file(&disk, "f");
    disk.sync_dir("").expect("sync dir");
    write_all(&*f, &[&[1; 512]], 0).expect("write");
    f.sync().expect("sync");
    write_all(&*f, &[&[2; 512]], 0).expect("write");
    disk.fail(OpKind::Sync, 0, "f", Fault::Io);
    f.sync().expect_err("the fault");
    f.sync().expect("the kernel forgot");
    let mut seen = [0; 512];
    read_exact(&*f, &mut seen, 0, false).expect("read");
    assert_eq!(seen, [2; 512]);
    disk.power_loss();
    assert_eq!(disk.content("f").expect("the file"), [1; 512]);
}

#[test]
fn names_need_a_sync_of_their_directory() {
    let mut lost = false;
    for seed in 0..32 {
        let disk = Memory::new(seed);
        file(&disk, "a");
        disk.sync_dir("").expect("sync dir");
        disk.rename("a", "b").expect("rename");
        disk.power_loss();
        assert!(disk.open("a").is_ok() != disk.open("b").is_ok(), "a rename is atomic");
        lost |= disk.open("a").is_ok();
    }
    assert!(lost, "a rename that was not synced may be lost");
}

#[test]
fn faults_hit_the_operation_they_are_meant_for_once() {
    let disk = Memory::new(1);
    let f = file(&disk, "f");
    disk.fail(OpKind::Write, 1, "f", Fault::NoSpace);
    disk.fail(OpKind::Write, 0, "f", Fault::Short(3));
    assert_eq!(f.write_at(&[IoSlice::new(&[1; 8])], 0).expect("short"), 3);
    let error = f.write_at(&[IoSlice::new(&[1; 8])], 0).expect_err("full");
    assert_eq!(error.raw_os_error(), Some(28));
    assert_eq!(f.write_at(&[IoSlice::new(&[1; 8])], 0).expect("fine"), 8);
}

#[test]
fn after_the_crash_nothing_works_until_the_restart() {
    let disk = Memory::new(1);
    let f = file(&disk, "f");
    disk.sync_dir("").expect("sync dir");
    disk.crash_after(0);
    write_all(&*f, &[&[1; 512]], 0).expect_err("the crash");
    disk.open("f").expect_err("down");
    disk.process_killed();
    f.sync().expect_err("an old handle");
    disk.open("f").expect("up again").sync().expect("sync");
}

#[test]
fn punching_gives_zeros_and_holes() {
    let disk = Memory::new(1);
    let f = file(&disk, "f");
    write_all(&*f, &[&[7; 16384]], 4096).expect("write");
    f.punch(8192, 4096).expect("punch");
    assert_eq!(f.next_data(0).expect("seek"), Some(4096..8192));
    assert_eq!(f.next_data(8192).expect("seek"), Some(12288..20480));
    assert_eq!(f.len().expect("len"), 20480);
    let mut seen = [1; 4096];
    read_exact(&*f, &mut seen, 8192, false).expect("read");
    assert!(seen.iter().all(|b| *b == 0));
}

#[test]
fn a_full_disk_takes_only_what_needs_no_space() {
    let disk = Memory::new(1);
    let f = file(&disk, "f");
    write_all(&*f, &[&[7; 4096]], 0).expect("write");
    disk.fill_up_after(1);
    write_all(&*f, &[&[8; 4096]], 4096).expect("the last page");
    assert!(!disk.ran_full());
    assert_eq!(f.write_at(&[IoSlice::new(&[9; 8192])], 4096).expect("a part"), 4096);
    let error = write_all(&*f, &[&[9; 512]], 8192).expect_err("full");
    assert_eq!(error.raw_os_error(), Some(28));
    disk.create("g").expect_err("full");
    assert!(disk.ran_full());
    disk.make_room();
    disk.create("g").expect("room");
}

#[test]
fn a_bad_page_fails_until_all_of_it_is_written() {
    let disk = Memory::new(1);
    let f = file(&disk, "f");
    write_all(&*f, &[&[7; 12288]], 0).expect("write");
    assert!(disk.spoil("f", 5000) && !disk.spoil("f", 12288));
    let mut seen = [0; 4096];
    read_exact(&*f, &mut seen, 0, false).expect("the page before");
    read_exact(&*f, &mut seen, 8192, false).expect("the page behind");
    for offset in [1, 4096, 8191] {
        let error = read_exact(&*f, &mut seen, offset, false).expect_err("bad");
        assert_eq!(error.raw_os_error(), Some(5));
    }
    let error = write_all(&*f, &[&[8; 4095]], 4096).expect_err("it must be read for that");
    assert_eq!(error.raw_os_error(), Some(5));
    write_all(&*f, &[&[8; 5000]], 4000).expect("all of it");
    read_exact(&*f, &mut seen, 4096, false).expect("mended");
    assert_eq!(seen, [8; 4096]);
}

#[test]
fn names_whose_sync_failed_are_lost_until_another_one_changes() {
    for another in [false, true] {
        let disk = Memory::new(1);
        file(&disk, "a");
        disk.fail(OpKind::Meta, 0, "", Fault::Io);
        disk.sync_dir("").expect_err("the fault");
        if another {
            file(&disk, "b");
        }
        disk.sync_dir("").expect("it is told once");
        disk.open("a").expect("it looks as if it were there");
        disk.lose_unsynced();
        assert_eq!(disk.open("a").is_ok(), another);
    }
}
