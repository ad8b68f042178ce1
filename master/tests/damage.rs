//! Data directories with damaged, missing or foreign files: a member starts with all that was
//! acknowledged, or ends with an error that names the file and says what to do. It never panics,
//! and never serves less than was there.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use sbk_master_client::MasterClient;
use sbk_test_support::{DAMAGES, Damage, copy_dir, walk};
use support::{Member, PATIENCE, create, names, register_nodes, spawn, volume};

/// A member alone, and its directory after it stopped.
struct Template {
    dir: tempfile::TempDir,
    ports: Vec<u16>,
    volumes: Vec<String>,
}

impl Template {
    async fn make(in_order: bool) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut template = Self { dir, ports: sbk_ports::kept(2), volumes: Vec::new() };
        let mut member = template.start(&template.path());
        let client = template.client();
        register_nodes(&client).await;
        for n in 0..12 {
            let name = format!("v{n:02}");
            create(&client, &volume(&name)).await;
            template.volumes.push(name);
        }
        if in_order {
            member.terminate();
            let status = member.ended().await;
            assert_eq!(status.code(), Some(0), "{}", member.logged());
        }
        drop(member);
        template
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("m")
    }

    /// On the directory; with a snapshot every few entries, so that there is one.
    fn start(&self, dir: &Path) -> Member {
        let cluster = format!("1=127.0.0.1:{}", self.ports[0]);
        let more = ["--snapshot-after", "10"];
        spawn(dir, 1, self.ports[0], self.ports[1], &cluster, &more)
    }

    fn client(&self) -> MasterClient {
        MasterClient::new(vec![format!("127.0.0.1:{}", self.ports[0])]).with_deadline(PATIENCE)
    }

    /// The files of the directory, by their paths within it.
    fn files(&self) -> Vec<PathBuf> {
        let root = self.path();
        let mut all: Vec<PathBuf> = walk(&root)
            .into_iter()
            .map(|path| path.strip_prefix(&root).expect("is below").to_owned())
            .collect();
        all.sort();
        all
    }

    /// Starts on a copy of the directory that `damage` was done to. `Err` with what it logged if
    /// it refused to start.
    async fn try_with(&self, damage: impl FnOnce(&Path)) -> Result<(), String> {
        let copy = self.dir.path().join("copy");
        copy_dir(&self.path(), &copy);
        damage(&copy);
        let mut member = self.start(&copy);
        let client = self.client();
        let outcome = tokio::select! {
            status = member.ended() => {
                let logged = member.logged();
                assert_eq!(status.code(), Some(1), "{logged}");
                Err(logged)
            }
            served = names(&client) => {
                assert_eq!(served, self.volumes, "{}", member.logged());
                Ok(())
            }
        };
        let logged = member.logged();
        assert!(!logged.contains("panicked"), "{logged}");
        drop(member);
        fs::remove_dir_all(&copy).expect("removes");
        outcome
    }
}

/// Every word of advice that a refusal may end with.
const ADVICE: [&str; 9] = [
    "remove this member from the cluster and add",
    "Remove this member from the cluster and add",
    "remove it from the cluster and add",
    "restore it",
    "use the newer version",
    "start it with --id",
    "start it with --cluster",
    "Give an empty or new --data-dir",
    "Never give a member's id to a new directory",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_stop_in_order_every_damage_is_found_or_harmless() {
    let template = Template::make(true).await;
    assert_eq!(template.try_with(|_| ()).await, Ok(()), "undamaged");
    let files = template.files();
    for needed in ["identity.json", "log/hard.sbk", "applied.seal", "applied.sled/db"] {
        assert!(files.contains(&PathBuf::from(needed)), "{needed} is not in {files:?}");
    }
    assert!(files.iter().any(|file| file.starts_with("snapshots")), "{files:?}");
    let mut refused = 0;
    for file in &files {
        for damage in DAMAGES {
            let what = format!("{} {damage:?}", file.display());
            let outcome = template.try_with(|copy| damage.apply(&copy.join(file))).await;
            let Err(logged) = outcome else { continue };
            refused += 1;
            let last = logged.trim_end().lines().last().unwrap_or_default();
            assert!(ADVICE.iter().any(|advice| last.contains(advice)), "{what}: {last}");
            // What can be made again is no reason to refuse.
            assert!(!file.starts_with("applied.sled") && !file.ends_with("applied.seal"), "{what}");
        }
    }
    assert!(refused > 0, "no damage was noticed at all");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_kill_every_damage_is_found_or_harmless() {
    let template = Template::make(false).await;
    assert_eq!(template.try_with(|_| ()).await, Ok(()));
    for file in template.files() {
        for damage in DAMAGES {
            // The last record of all: whether the member came to record it as durable before it was
            // killed is a race, and if not, it can't be told from a torn write.
            if file.starts_with("log/wal") && matches!(damage, Damage::FlippedAt(1, 1)) {
                continue;
            }
            let what = format!("{} {damage:?}", file.display());
            let outcome = template.try_with(|copy| damage.apply(&copy.join(&file))).await;
            let Err(logged) = outcome else { continue };
            let last = logged.trim_end().lines().last().unwrap_or_default();
            assert!(ADVICE.iter().any(|advice| last.contains(advice)), "{what}: {last}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whole_parts_that_are_missing_are_noticed() {
    let template = Template::make(true).await;
    for part in ["log", "log/wal"] {
        let outcome =
            template.try_with(|copy| fs::remove_dir_all(copy.join(part)).expect("removes")).await;
        let logged = outcome.expect_err("a member without its log has forgotten its vote");
        assert!(ADVICE.iter().any(|advice| logged.contains(advice)), "{part}: {logged}");
    }
    // Without its identity a directory might be anybody's; one of a datanode has other contents.
    let outcome = template
        .try_with(|copy| {
            fs::remove_dir_all(copy).expect("removes");
            fs::create_dir(copy).expect("makes");
            fs::write(copy.join("node.json"), "{}").expect("writes");
        })
        .await;
    let logged = outcome.expect_err("not a master's");
    assert!(logged.contains("no data directory of a master"), "{logged}");
}
