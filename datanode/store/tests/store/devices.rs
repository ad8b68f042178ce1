//! Block devices as disks of a node, beside directories or alone: whose they are, which are missing, which are new. On
//! loop devices; where none can be made these tests are skipped.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};

use sbk_engine::types::LossGeneration;
use sbk_store::{CreateSpec, DataDirs, DirId, NodeError, Place};
use sbk_test_support::LoopDevice;

use super::driver;
use super::no_fork_meanwhile;

const BYTES: u64 = 64 << 20;

fn place(device: &LoopDevice) -> Place {
    Place::Device(device.path().to_owned())
}

fn open(places: &[Place]) -> Result<DataDirs, NodeError> {
    DataDirs::open(places, &BTreeSet::new())
}

fn why(places: &[Place]) -> String {
    open(places).map(drop).expect_err("is refused").to_string()
}

fn ids(opened: &DataDirs) -> Vec<Option<DirId>> {
    opened.dirs.iter().map(|(_, dir)| dir.as_ref().ok().map(|dir| dir.id())).collect()
}

struct Scene<const N: usize> {
    // Before the directory that their files are in.
    devices: [LoopDevice; N],
    root: tempfile::TempDir,
}

impl<const N: usize> Scene<N> {
    /// With so many devices that hold zeros; `None` if there can be none.
    fn set() -> Option<Self> {
        let root = tempfile::tempdir().expect("a directory");
        let make = |n: usize| LoopDevice::make(&root.path().join(n.to_string()), BYTES);
        let made: Option<Vec<_>> = (0..N).map(make).collect();
        let devices = made?.try_into().expect("so many were made");
        Some(Self { devices, root })
    }

    fn dir(&self, name: &str) -> Place {
        Place::Dir(self.root.path().join(name))
    }
}

/// Overwrites a device's head and its end.
fn wipe(device: &Path) {
    let file = File::options().write(true).open(device).expect("opens");
    for at in [0, BYTES - (1 << 20)] {
        file.write_all_at(&vec![0; 1 << 20], at).expect("written");
    }
    file.sync_all().expect("synced");
}

#[test]
fn a_node_may_have_devices_alone_and_keeps_its_identity_there() {
    let _alone = no_fork_meanwhile();
    let Some(scene) = Scene::<2>::set() else { return };
    let places = scene.devices.each_ref().map(place);
    let first = open(&places[..1]).expect("opens");
    let (node, id) = (first.member.node, ids(&first)[0]);
    let in_use = why(&places[..1]);
    assert!(in_use.contains("is in use"), "{in_use}");
    drop(first);
    // One more, and the other way round.
    let turned = [places[1].clone(), places[0].clone()];
    let two = open(&places).expect("opens");
    assert_eq!((two.member.node, two.member.process, ids(&two)[0]), (node, 2, id));
    let known = ids(&two);
    drop(two);
    let again = open(&turned).expect("opens");
    assert_eq!((again.member.process, ids(&again)), (3, vec![known[1], known[0]]));
    let dir = again.dirs[0].1.as_ref().expect("open");
    dir.check().expect("works");
    dir.raise(7).expect("raised");
    let space = dir.space().expect("known");
    assert!(space.size > BYTES / 2 && space.size - space.free == dir.used_bytes(), "{space:?}");
    let shares = |n: usize| again.dirs[n].1.as_ref().expect("open").shares().expect("known");
    assert_ne!(shares(0), shares(1));
    drop(again);
    assert_eq!(open(&turned).expect("opens").member.process, 8);
}

#[test]
fn replicas_on_a_device_are_made_listed_and_removed() {
    let _alone = no_fork_meanwhile();
    let Some(scene) = Scene::<1>::set() else { return };
    let places = [scene.dir("a"), place(&scene.devices[0])];
    let opened = open(&places).expect("opens");
    let device = opened.dirs[1].1.as_ref().expect("open");
    let (one, other) = (driver::identity(1), driver::identity(2));
    let spec = |identity| CreateSpec { identity, blocks: 64, loss_generation: LossGeneration(0) };
    let used = device.used_bytes();
    device.create(&spec(one), &driver::options()).expect("made");
    device.create(&spec(one), &driver::options()).expect("again");
    device.make_place(&other).expect("begun");
    assert_eq!(device.replicas().expect("listed"), [one], "the other's making was cut short");
    assert!(device.used_bytes() > used);
    drop(opened);
    let opened = open(&places).expect("opens");
    let device = opened.dirs[1].1.as_ref().expect("open");
    assert_eq!(device.replicas().expect("listed"), [one]);
    driver::open(&device.storage(&one).expect("its files"), 1).map(drop).expect("a store");
    for replica in [one, one, other] {
        device.remove(&replica).expect("removed");
    }
    assert_eq!(device.replicas().expect("listed"), []);
    assert_eq!(device.used_bytes(), used, "its space is free");
    // What lists one in both is told.
    device.create(&spec(one), &driver::options()).expect("made");
    opened.dirs[0].1.as_ref().expect("open").create(&spec(one), &driver::options()).expect("made");
    drop(opened);
    let twice = open(&places).map(drop).expect_err("is in both");
    assert!(matches!(twice, NodeError::ReplicaTwice { .. }), "{twice}");
}

#[test]
fn a_device_that_is_missing_is_neither_empty_nor_new() {
    let _alone = no_fork_meanwhile();
    let Some(scene) = Scene::<2>::set() else { return };
    // By a name that is gone with the device, as udev's are.
    let name = scene.root.path().join("by-id");
    let link = || symlink(scene.devices[0].path(), &name).expect("a link");
    link();
    let places = [scene.dir("a"), Place::Device(name.clone())];
    let known = ids(&open(&places).expect("opens"));
    std::fs::remove_file(&name).expect("pulled out");
    let alone = why(&places[1..]);
    assert!(alone.contains("cannot open") && alone.contains("No such file"), "{alone}");
    let without = open(&places).expect("opens with the directory");
    assert_eq!(ids(&without), [known[0], None]);
    assert_eq!(without.missing, BTreeSet::from_iter(known[1]));
    without.member.take_back(&places[1]).map(drop).expect_err("is still away");
    // Another one in its place, which holds zeros, is none of the node's.
    symlink(scene.devices[1].path(), &name).expect("a link");
    let empty = without.member.take_back(&places[1]).map(drop).expect_err("is another one");
    assert!(matches!(empty, NodeError::NotMounted { .. }), "{empty}");
    drop(without);
    let other = open(&places).expect("opens with the directory");
    let told = other.dirs[1].1.as_ref().map(drop).expect_err("is another one").to_string();
    assert!(told.contains("--lost-dir") && ids(&other)[1].is_none(), "{told}");
    std::fs::remove_file(&name).expect("pulled out");
    link();
    let back = other.member.take_back(&places[1]).expect("is back");
    assert_eq!(Some(back.id()), known[1]);
    drop((back, other));
    // Given up by its id, another one takes its place.
    std::fs::remove_file(&name).expect("pulled out");
    symlink(scene.devices[1].path(), &name).expect("a link");
    let anew = DataDirs::open(&places, &BTreeSet::from_iter(known[1])).expect("opens");
    assert!(ids(&anew)[1].is_some() && ids(&anew)[1] != known[1] && anew.missing.is_empty());
}

#[test]
fn what_is_set_up_wrong_is_told_and_changes_nothing() {
    let _alone = no_fork_meanwhile();
    let Some(scene) = Scene::<2>::set() else { return };
    let [one, other] = scene.devices.each_ref().map(place);
    let content = |n: usize| std::fs::read(scene.devices[n].path()).expect("reads");
    drop(open(&[scene.dir("a"), one.clone()]).expect("one node"));
    drop(open(std::slice::from_ref(&other)).expect("another node"));
    let before = content(1);
    let told = why(&[one.clone(), other.clone()]);
    assert!(told.contains("belongs to node"), "{told}");
    let told = why(&[scene.dir("a"), other.clone()]);
    assert!(told.contains("belongs to node"), "{told}");
    assert!(content(1) == before, "it was changed");
    let link = scene.root.path().join("link");
    symlink(one.path(), &link).expect("a link");
    let twice = open(&[one.clone(), Place::Device(link)]).map(drop).expect_err("is one");
    assert!(matches!(twice, NodeError::Twice { .. }), "{twice}");
    // A copy.
    std::fs::write(other.path(), content(0)).expect("copied");
    let copy = open(&[scene.dir("a"), one.clone(), other.clone()]).map(drop).expect_err("a copy");
    assert!(matches!(copy, NodeError::Copy { .. }), "{copy}");
    // Something else, and what is no device.
    wipe(other.path());
    let file = File::options().write(true).open(other.path()).expect("opens");
    file.write_all_at(b"\x53\xef", 1080).expect("written");
    drop(file);
    let told = why(&[scene.dir("a"), one.clone(), other.clone()]);
    assert!(told.contains("ext4"), "{told}");
    let image = scene.root.path().join("no-device");
    std::fs::write(&image, vec![0; 1 << 20]).expect("written");
    for wrong in [image, PathBuf::from("/dev/null"), scene.root.path().to_owned()] {
        let told = why(&[scene.dir("a"), one.clone(), Place::Device(wrong)]);
        assert!(told.contains("is not a block device"), "{told}");
    }
    let told = why(&[Place::Dir(one.path().to_owned())]);
    assert!(told.contains("Not a directory"), "{told}");
    assert_eq!(open(&[scene.dir("a"), one]).expect("opens").member.process, 2);
}

#[test]
fn a_device_that_fails_is_away_and_is_taken_back() {
    let _alone = no_fork_meanwhile();
    let Some(scene) = Scene::<1>::set() else { return };
    let places = [scene.dir("a"), place(&scene.devices[0])];
    let opened = open(&places).expect("opens");
    let device = opened.dirs[1].1.as_ref().expect("open");
    device.check().expect("works");
    let image = scene.root.path().join("0");
    let aside = std::fs::read(&image).expect("reads");
    scene.devices[0].resize(BYTES - 4096);
    let told = device.check().expect_err("is shorter").to_string();
    assert!(told.contains("shrank"), "{told}");
    scene.devices[0].resize(0);
    device.check().expect_err("is not full, it is gone");
    let known = ids(&opened);
    drop(opened);
    // With nothing in it, it may not be taken for a new one.
    let without = open(&places).expect("opens with the directory");
    assert_eq!(ids(&without), [known[0], None]);
    without.member.take_back(&places[1]).map(drop).expect_err("is away");
    scene.devices[0].resize(BYTES);
    let file = File::options().write(true).open(scene.devices[0].path()).expect("opens");
    file.write_all_at(&aside, 0).and_then(|()| file.sync_all()).expect("as it was");
    drop(file);
    let back = without.member.take_back(&places[1]).expect("is back");
    assert_eq!(Some(back.id()), known[1]);
    back.check().expect("works");
}

/// Power fails at whatever point while a device is taken into use for the first time: the next start either has it or takes
/// it into use anew.
#[test]
fn taking_one_into_use_can_be_cut_short() {
    let _alone = no_fork_meanwhile();
    let Some(scene) = Scene::<1>::set() else { return };
    let places = [place(&scene.devices[0])];
    let device = || {
        let bottom = sbk_device::open_exclusive(places[0].path()).expect("opens");
        let (id, node) = (uuid::Uuid::new_v4(), uuid::Uuid::new_v4());
        let options = sbk_device::FormatOptions::default();
        sbk_device::Device::make(bottom, places[0].path(), id, node, options).expect("set up")
    };
    // It was set up, and nothing is on it.
    drop(device());
    let node = open(&places).expect("opens").member.node;
    let again = open(&places).expect("opens").member;
    assert_eq!((again.node, again.process), (node, 2));
    // The record was begun.
    wipe(places[0].path());
    let begun = device();
    let root = begun.directory("").expect("its root");
    sbk_wal::Storage::create(&root, "node.new").and_then(|file| file.sync()).expect("begun");
    drop((root, begun));
    let anew = open(&places).expect("opens").member;
    assert!(anew.node != node && anew.process == 1);
    // But files without a record are somebody's.
    wipe(places[0].path());
    device().create_dir("x").expect("made");
    let told = why(&places);
    assert!(told.contains("nothing says whose"), "{told}");
}
