use super::super::identity::NODE;
use super::*;

fn open(paths: &[PathBuf]) -> Result<DataDirs, NodeError> {
    open_without(paths, &BTreeSet::new())
}

fn open_without(paths: &[PathBuf], lost: &BTreeSet<DirId>) -> Result<DataDirs, NodeError> {
    let places: Vec<_> = paths.iter().cloned().map(Place::Dir).collect();
    DataDirs::open(&places, lost)
}

fn take_back(member: &Member, path: &Path) -> Result<Arc<dyn Backing>, NodeError> {
    member.take_back(&Place::Dir(path.to_owned()))
}

fn ids(opened: &DataDirs) -> Vec<Option<DirId>> {
    opened.dirs.iter().map(|(_, dir)| dir.as_ref().ok().map(|dir| dir.id())).collect()
}

struct Root(tempfile::TempDir);

impl Root {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn paths<const N: usize>(&self, names: [&str; N]) -> [PathBuf; N] {
        names.map(|name| self.path(name))
    }

    /// What a mount point shows once its disk is not mounted any more.
    fn unmount(&self, name: &str) {
        fs::rename(self.path(name), self.path("unmounted")).expect("renamed");
        fs::create_dir(self.path(name)).expect("mkdir");
    }

    fn mount(&self, name: &str) {
        fs::remove_dir(self.path(name)).expect("nothing is in it");
        fs::rename(self.path("unmounted"), self.path(name)).expect("renamed");
    }
}

#[test]
fn a_node_keeps_its_identity_and_counts_its_starts() {
    let root = Root::new();
    let paths = root.paths(["a/b"]);
    let first = open(&paths).expect("open");
    assert_eq!(first.member.process, 1);
    let second = open(&paths).expect_err("it is locked");
    assert!(matches!(second, NodeError::InUse { .. }), "{second}");
    let known = (first.member.node, ids(&first));
    drop(first);
    let again = open(&paths).expect("open");
    assert_eq!(((again.member.node, ids(&again)), again.member.process), (known, 2));
    assert!(again.dirs[0].1.as_ref().expect("open").space().expect("space").free > 0);
}

#[test]
fn directories_are_added_and_the_order_in_which_they_are_given_means_nothing() {
    let root = Root::new();
    let one = open(&root.paths(["a"])).expect("open");
    let (node, first) = (one.member.node, ids(&one)[0]);
    drop(one);
    let two = open(&root.paths(["a", "b"])).expect("open");
    assert_eq!((two.member.node, two.member.process, ids(&two)[0]), (node, 2, first));
    let second = ids(&two)[1].expect("made");
    assert_eq!(two.member.dirs.len(), 2);
    drop(two);
    let turned = open(&root.paths(["b", "a"])).expect("open");
    assert_eq!((ids(&turned), turned.member.process), (vec![Some(second), first], 3));
}

#[test]
fn an_empty_mount_point_is_no_new_directory() {
    let root = Root::new();
    let paths = root.paths(["a", "b"]);
    let second = ids(&open(&paths).expect("open"))[1].expect("made");
    root.unmount("b");
    let without = open(&paths).expect("opens with the other one");
    assert_eq!((without.member.process, without.missing), (2, BTreeSet::from([second])));
    let why = without.dirs[1].1.as_ref().expect_err("is not mounted").to_string();
    assert!(why.contains("is empty") && why.contains(&second.to_string()), "{why}");
    assert_eq!(fs::read_dir(&paths[1]).expect("lists").count(), 0, "nothing is made in it");
    drop(without.dirs);
    // Nor is another one taken for new.
    let third = open(&root.paths(["a", "b", "c"])).expect("opens");
    assert!(third.dirs[2].1.is_err() && !root.path("c").exists());
    drop(third);
    root.mount("b");
    let back = open(&paths).expect("open");
    assert_eq!(ids(&back)[1], Some(second));
    assert_eq!(back.member.process, 4, "counted on from the one that was there");
}

/// The number of a process is in no directory that it uses, whichever were away before.
#[test]
fn the_count_never_goes_back_in_a_directory_that_is_used() {
    let root = Root::new();
    let paths = root.paths(["a", "b"]);
    drop(open(&paths).expect("open"));
    root.unmount("b");
    let ahead = (0..3).map(|_| open(&paths).expect("open").member.process).max();
    assert_eq!(ahead, Some(4));
    root.mount("b");
    root.unmount("a");
    let behind = open(&paths).expect("open");
    // Numbers that `a` knows are given again, but no process of these ever opened a replica in `b`.
    assert_eq!(behind.member.process, 2);
    // What the masters refuse is counted past.
    behind.dirs[1].1.as_ref().expect("open").raise(4).expect("raised");
    behind.dirs[1].1.as_ref().expect("open").raise(3).expect("stays");
    drop(behind);
    assert_eq!(open(&paths).expect("open").member.process, 5);
    root.mount("a");
    assert_eq!(open(&paths).expect("open").member.process, 6);
}

#[test]
fn what_is_lost_for_good_is_given_up_by_its_id() {
    let root = Root::new();
    let paths = root.paths(["a", "b"]);
    let second = ids(&open(&paths).expect("open"))[1].expect("made");
    let lost = BTreeSet::from([second]);
    let there = open_without(&paths, &lost).expect_err("is there");
    assert!(matches!(there, NodeError::NotLost { .. }), "{there}");
    root.unmount("b");
    let anew = open_without(&paths, &lost).expect("open");
    let new = ids(&anew)[1].expect("made");
    assert!(new != second && anew.missing.is_empty() && !anew.member.dirs.contains(&second));
    drop(anew);
    // It may stay given: nothing is of that name any more.
    assert_eq!(ids(&open_without(&paths, &lost).expect("open"))[1], Some(new));
    // Left away altogether, it is missing until it is given up.
    let left = open(&paths[..1]).expect("open");
    assert_eq!(left.missing, BTreeSet::from([new]));
    drop(left);
    let given_up = open_without(&paths[..1], &BTreeSet::from([new])).expect("open");
    assert!(given_up.missing.is_empty());
    drop(given_up);
    // One that was given up and is there again is had again.
    assert_eq!(ids(&open(&paths).expect("open"))[1], Some(new));
}

#[test]
fn what_is_set_up_wrong_is_told_and_changes_nothing() {
    let root = Root::new();
    let [a, b, c] = root.paths(["a", "b", "c"]);
    drop(open(std::slice::from_ref(&a)).expect("open"));
    drop(open(std::slice::from_ref(&b)).expect("open"));
    let other = open(&[a.clone(), b.clone()]).expect_err("is another node's");
    assert!(matches!(other, NodeError::OtherNode { .. }), "{other}");
    let twice = open(&[a.clone(), a.clone()]).expect_err("is given twice");
    assert!(matches!(twice, NodeError::Twice { .. }), "{twice}");
    std::os::unix::fs::symlink(&a, &c).expect("a link");
    let linked = open(&[a.clone(), c.clone()]).expect_err("is the same");
    assert!(matches!(linked, NodeError::Twice { .. }), "{linked}");
    fs::remove_file(&c).expect("removed");
    fs::create_dir(&c).expect("mkdir");
    fs::copy(a.join(NODE), c.join(NODE)).expect("copied");
    let copy = open(&[a.clone(), c.clone()]).expect_err("is a copy");
    assert!(matches!(copy, NodeError::Copy { .. }), "{copy}");
    assert_eq!(
        open(std::slice::from_ref(&a)).expect("open").member.process,
        2,
        "no start was counted"
    );
    // A replica in two of them.
    fs::remove_dir_all(&c).expect("removed");
    let both = [a.clone(), c.clone()];
    drop(open(&both).expect("open"));
    let replica = format!("replicas/{}.{}", Uuid::from_u128(1), Uuid::from_u128(2));
    for dir in &both {
        fs::create_dir(dir.join(&replica)).expect("mkdir");
        fs::write(dir.join(&replica).join("superblock"), "").expect("written");
    }
    let error = open(&both).expect_err("is in both");
    assert!(matches!(error, NodeError::ReplicaTwice { .. }), "{error}");
}

#[test]
fn a_directory_of_something_else_is_not_adopted() {
    let root = Root::new();
    let [a, b] = root.paths(["a", "b"]);
    fs::create_dir(&b).expect("mkdir");
    fs::write(b.join("member.json"), "{}").expect("written");
    for paths in [vec![b.clone()], vec![a, b.clone()]] {
        let error = open(&paths).expect_err("it is foreign");
        assert!(matches!(error, NodeError::Foreign { .. }), "{error}");
        assert!(error.to_string().contains("member.json"), "{error}");
        assert!(!b.join("lock").exists(), "nothing was changed");
    }
}

#[test]
fn replicas_without_an_identity_are_not_adopted() {
    let root = Root::new();
    let paths = root.paths(["a"]);
    drop(open(&paths).expect("open"));
    fs::create_dir(root.path("a/replicas/x")).expect("mkdir");
    fs::remove_file(root.path("a/node")).expect("remove");
    let error = open(&paths).expect_err("no identity");
    assert!(matches!(error, NodeError::NoIdentity { .. }), "{error}");
}

#[test]
fn a_disk_that_cant_be_read_keeps_no_other_from_being_used() {
    let root = Root::new();
    let paths = root.paths(["a", "b"]);
    drop(open(&paths).expect("open"));
    // Both copies of its record are gone.
    fs::write(root.path("b/node"), [0; 8192]).expect("written");
    let without = open(&paths).expect("open");
    assert_eq!(ids(&without).iter().flatten().count(), 1);
    drop(without);
    // If that is all there is, nobody may be made anew beside it.
    let error = open(&root.paths(["b", "c"])).expect_err("no identity is left");
    assert!(matches!(error, NodeError::LostIdentity(_)), "{error}");
    assert!(!root.path("c").exists());
}

#[test]
fn one_that_was_away_is_taken_back_by_the_process_that_runs() {
    let root = Root::new();
    let paths = root.paths(["a", "b"]);
    drop(open(&paths).expect("open"));
    root.unmount("b");
    let running = open(&paths).expect("open");
    let empty = take_back(&running.member, &paths[1]).expect_err("is not mounted");
    assert!(matches!(empty, NodeError::NotMounted { .. }), "{empty}");
    root.mount("b");
    let back = take_back(&running.member, &paths[1]).expect("taken");
    let in_use = take_back(&running.member, &paths[1]).expect_err("is in use");
    assert!(matches!(in_use, NodeError::InUse { .. }), "{in_use}");
    back.raise(9).expect("raised");
    drop(back);
    let ahead = take_back(&running.member, &paths[1]).expect_err("was used since");
    assert!(matches!(ahead, NodeError::UsedSince { .. }), "{ahead}");
    drop(open(&[root.path("c")]).expect("another node"));
    let other = take_back(&running.member, &root.path("c")).expect_err("another node's");
    assert!(matches!(other, NodeError::OtherNode { .. }), "{other}");
}
