//! The datanode's process and its data directory: damaged, missing and foreign files, two processes
//! on one directory, ports in use, SIGTERM. The process ends with an error that says what to do, or
//! serves what it can prove; it never panics, and what was acknowledged is there or is an error,
//! never other data.

mod support;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use sbk_test_support::{DAMAGES, copy_dir, walk};
use support::masters::Heard;
use support::process::{PATIENCE, Process, Scene, free_ports, read_all};
use uuid::Uuid;

/// What became of a start.
#[derive(Debug)]
enum Started {
    /// The process ended with this last line.
    Refused(String),
    /// The replica is not served, for this reason.
    Unserved(String),
    /// All that was written reads back, but for blocks that are told to be damaged.
    Served { damaged: usize },
    /// It serves what was not written.
    Wrong(String),
}

impl Scene {
    /// Starts on a copy of the template that `damage` was done to.
    async fn try_with(&self, damage: impl FnOnce(&Path)) -> Started {
        let copy = self.root.path().join("copy");
        copy_dir(&self.template(), &copy);
        damage(&copy);
        self.masters.heard.send_replace(Heard::default());
        self.masters.push(vec![]).await;
        let mut process = Process::start(&copy, self.addr);
        let outcome = self.outcome(&mut process).await;
        let logged = process.logged();
        assert!(!logged.contains("panicked"), "{logged}");
        if !matches!(outcome, Started::Refused(_)) {
            process.terminate();
            assert_eq!(process.ended().await.code(), Some(0), "{}", process.logged());
        }
        drop(process);
        fs::remove_dir_all(&copy).expect("removes");
        outcome
    }

    async fn outcome(&self, process: &mut Process) -> Started {
        let started = Instant::now();
        let mut told = false;
        loop {
            assert!(started.elapsed() < PATIENCE, "nothing comes of it:\n{}", process.logged());
            if let Some(status) = process.has_ended() {
                let logged = process.logged();
                assert_eq!(status.code(), Some(1), "{logged}");
                let last = logged.trim_end().lines().last().unwrap_or_default();
                return Started::Refused(last.to_owned());
            }
            // The masters know the volume, and tell its primary as soon as the node is registered.
            let registered = self.masters.heard.borrow().registered.clone();
            if let Some(registered) = registered
                && !told
            {
                let process_number = registered.incarnation;
                let volume = self.volume(true, Some(process_number), process.grpc);
                self.masters.push(vec![volume]).await;
                told = true;
            }
            let page = process.page("/status").await;
            let status: serde_json::Value =
                page.and_then(|page| serde_json::from_str(&page).ok()).unwrap_or_default();
            let run = &status["volumes"][0]["run"];
            if status["missing"].as_array().is_some_and(|missing| !missing.is_empty()) {
                return Started::Unserved("is missing".to_owned());
            }
            if run["state"] == "failed" || run["state"] == "retired" {
                return Started::Unserved(run.to_string());
            }
            if status["volumes"][0]["serving"] == true {
                let nbd = process.nbd;
                let damaged = tokio::task::spawn_blocking(move || read_all(nbd));
                return match damaged.await.expect("reads") {
                    Ok(damaged) => Started::Served { damaged },
                    Err(what) => Started::Wrong(what),
                };
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_drains_and_every_damage_after_it_is_found_or_harmless() {
    let scene = Scene::set().await;
    let mut process = scene.write().await;
    process.terminate();
    assert_eq!(process.ended().await.code(), Some(0), "{}", process.logged());
    drop(process);
    let undamaged = scene.try_with(|_| ()).await;
    assert!(matches!(undamaged, Started::Served { damaged: 0 }), "{undamaged:?}");
    damages(&scene).await;
}

/// [The disk for logs was full, and each process that had something to say ended.]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_log_can_not_be_written_serves() {
    let scene = Scene::set().await;
    drop(scene.write().await);
    scene.masters.heard.send_replace(Heard::default());
    scene.masters.push(vec![]).await;
    let log = tempfile::NamedTempFile::new().expect("makes a log file");
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("opens");
    let mut process = Process::logging(&scene.template(), scene.addr, free_ports(), log, full);
    let outcome = scene.outcome(&mut process).await;
    assert!(matches!(outcome, Started::Served { damaged: 0 }), "{outcome:?}");
    process.terminate();
    assert_eq!(process.ended().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_kill_every_damage_is_found_or_harmless() {
    let scene = Scene::set().await;
    drop(scene.write().await);
    let undamaged = scene.try_with(|_| ()).await;
    assert!(matches!(undamaged, Started::Served { damaged: 0 }), "{undamaged:?}");
    damages(&scene).await;
}

async fn damages(scene: &Scene) {
    let template = scene.template();
    let mut noticed = 0;
    let mut wrong = Vec::new();
    let mut files = walk(&template);
    files.sort();
    for file in files {
        let name = file.strip_prefix(&template).expect("is below");
        for damage in DAMAGES {
            let what = format!("{} {damage:?}", name.display());
            match scene.try_with(|copy| damage.apply(&copy.join(name))).await {
                // Only what says who the node is keeps all of it from starting.
                Started::Refused(last) => {
                    assert!(name == Path::new("node"), "{what}: {last}");
                    let advised = last.contains("start with an empty one as a new node")
                        || last.contains("put it back");
                    assert!(advised, "{what}: {last}");
                    noticed += 1;
                }
                Started::Unserved(reason) => {
                    assert!(name.starts_with("replicas"), "{what}: {reason}");
                    noticed += 1;
                }
                Started::Served { damaged } => {
                    let image = ["extents", "shadow", "checksums"];
                    let in_extents = image.iter().any(|file| name.ends_with(file));
                    assert!(damaged == 0 || in_extents, "{what}: {damaged} blocks");
                }
                Started::Wrong(how) => wrong.push(format!("{what}: {how}")),
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    assert!(noticed > 0, "no damage was noticed at all");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_are_gone_or_another_ones_are_not_served() {
    let scene = Scene::set().await;
    drop(scene.write().await);
    let replica = format!("replicas/{}.{}", Uuid::from_u128(1), Uuid::from_u128(2));
    let gone = scene.try_with(|copy| fs::remove_dir_all(copy.join(&replica)).expect("there")).await;
    assert!(matches!(&gone, Started::Unserved(why) if why == "is missing"), "{gone:?}");
    let emptied = scene
        .try_with(|copy| {
            fs::remove_dir_all(copy.join(&replica)).expect("removes");
            fs::create_dir(copy.join(&replica)).expect("makes");
        })
        .await;
    // A directory without a superblock is one whose making was cut short: it is no replica.
    assert!(matches!(&emptied, Started::Unserved(why) if why == "is missing"), "{emptied:?}");
    // Another replica's directory under this one's name.
    let other = Scene::set().await;
    drop(other.write().await);
    let swapped = scene
        .try_with(|copy| {
            let file = format!("{replica}/superblock");
            let mut bytes = fs::read(other.template().join(&file)).expect("reads");
            assert!(bytes.len() > 64);
            bytes.rotate_left(1);
            fs::write(copy.join(&file), bytes).expect("writes");
        })
        .await;
    assert!(matches!(&swapped, Started::Unserved(_)), "{swapped:?}");
    let renamed = scene
        .try_with(|copy| {
            let other = format!("replicas/{}.{}", Uuid::from_u128(1), Uuid::from_u128(3));
            fs::rename(copy.join(&replica), copy.join(other)).expect("renames");
        })
        .await;
    assert!(matches!(&renamed, Started::Unserved(_)), "{renamed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_never_share_a_directory_or_a_port() {
    let scene = Scene::set().await;
    let process = scene.write().await;
    let template = scene.template();
    let path = template.to_str().expect("utf-8").to_owned();
    let second = Process::start(&template, scene.addr);
    second.refuses(&[&path, "in use", "stop that one", "--data-dir"]).await;
    for (taken, flag) in [(0, "--listen"), (1, "--http"), (2, "--nbd")] {
        let mut ports = free_ports();
        ports[taken] = [process.grpc, process.http, process.nbd][taken];
        let elsewhere = scene.root.path().join("elsewhere");
        let third = Process::on(&elsewhere, scene.addr, ports);
        third.refuses(&[&ports[taken].to_string(), "in use", flag]).await;
        assert!(!elsewhere.exists(), "nothing is touched on disk before");
    }
    // The first one was not disturbed.
    let nbd = process.nbd;
    assert_eq!(tokio::task::spawn_blocking(move || read_all(nbd)).await.expect("reads"), Ok(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn directories_of_something_else_are_left_alone() {
    let root = tempfile::tempdir().expect("a directory");
    let masters = "127.0.0.1:1".parse().expect("an address");
    let foreign = root.path().join("home");
    fs::create_dir(&foreign).expect("makes");
    fs::write(foreign.join("thesis.txt"), "years of work").expect("writes");
    Process::start(&foreign, masters).refuses(&["thesis.txt", "new or empty directory"]).await;
    assert_eq!(fs::read_dir(&foreign).expect("lists").count(), 1, "nothing was added");
    // A master's.
    let master = root.path().join("master");
    fs::create_dir(&master).expect("makes");
    fs::write(master.join("identity.json"), "{}").expect("writes");
    fs::write(master.join("lock"), "").expect("writes");
    Process::start(&master, masters).refuses(&["identity.json", "new or empty directory"]).await;
    // A file, and a place where nothing can be made.
    let file = root.path().join("file");
    fs::write(&file, "").expect("writes");
    let path = file.to_str().expect("utf-8").to_owned();
    Process::start(&file, masters).refuses(&[&path]).await;
    Process::start(&file.join("below"), masters).refuses(&["below"]).await;
}
