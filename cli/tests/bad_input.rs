//! Wrong input, end to end: every command against a real cluster gets an error that says what to
//! do, ends with the exit code that is documented, and changes nothing.

use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use sbk_cli::args::VolumeSpec;
use sbk_cli::dev::cluster::{DevCluster, Options};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(120);

/// Refused or failed.
const REFUSED: i32 = 1;
/// Called wrongly.
const USAGE: i32 = 2;
/// No quorum or no leader.
const NO_QUORUM: i32 = 3;
/// Timed out waiting.
const TIMED_OUT: i32 = 4;

struct Scene {
    cluster: DevCluster,
    masters: String,
    _dir: TempDir,
}

impl Scene {
    async fn set(volumes: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let mut options = Options::new(dir.path().to_owned()).expect("options");
        options.exe = env!("CARGO_BIN_EXE_sbkctl").into();
        options.limit = LIMIT;
        let volume = |name: &&str| VolumeSpec { name: (*name).into(), size: 16 << 20 };
        options.volumes = volumes.iter().map(volume).collect();
        let cluster = DevCluster::start(options).await.expect("the cluster starts");
        let addrs: Vec<_> = cluster.file().masters.iter().map(|m| m.listen.clone()).collect();
        Self { cluster, masters: addrs.join(","), _dir: dir }
    }

    fn sbkctl(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_sbkctl"))
            .args(["--masters", &self.masters])
            .args(args)
            .env_remove("SBK_MASTERS")
            .stdin(Stdio::null())
            .output()
            .expect("runs")
    }

    /// The command fails so, and says all of `parts`.
    fn fails(&self, args: &[&str], code: i32, parts: &[&str]) {
        let output = self.sbkctl(args);
        check(args, &output, code, parts);
    }

    fn succeeds(&self, args: &[&str]) -> String {
        let output = self.sbkctl(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).expect("utf-8")
    }

    /// What the cluster holds, without what a machine that stands still for a while moves.
    fn state(&self) -> serde_json::Value {
        let json = |args: &[&str]| -> serde_json::Value {
            serde_json::from_str(&self.succeeds(args)).expect("JSON")
        };
        let mut volumes = json(&["volume", "list", "-o", "json"]);
        for volume in volumes.as_array_mut().expect("a list") {
            let kept = ["name", "id", "size_bytes"];
            volume.as_object_mut().expect("an object").retain(|key, _| kept.contains(&&**key));
        }
        let mut nodes = json(&["node", "list", "-o", "json"]);
        for node in nodes.as_array_mut().expect("a list") {
            let kept = ["id", "addr", "replicas"];
            let node = node.as_object_mut().expect("an object");
            node.retain(|key, _| kept.contains(&&**key));
            for replica in node["replicas"].as_array_mut().expect("a list") {
                replica.as_object_mut().expect("an object").remove("role");
            }
        }
        serde_json::json!([volumes, nodes])
    }
}

/// A failure is told on standard error, in words for people, and in the exit code.
fn check(args: &[&str], output: &Output, code: i32, parts: &[&str]) {
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(
        words.len() < 2000,
        "it says too much: {}...",
        words.chars().take(500).collect::<String>()
    );
    let shown: Vec<String> = args.iter().map(|arg| arg.chars().take(90).collect()).collect();
    assert_eq!(output.status.code(), Some(code), "{shown:?}: {words}");
    assert!(output.stdout.is_empty(), "{shown:?}: {output:?}");
    for part in parts {
        assert!(words.contains(part), "{shown:?}: '{part}' is not in: {words}");
    }
    for never in ["panicked", "backtrace", "RUST_BACKTRACE", "Error {", "Err("] {
        assert!(!words.contains(never), "{shown:?}: {words}");
    }
}

#[tokio::test]
async fn volumes_that_can_not_be_are_refused_and_nothing_changes() {
    let scene = Scene::set(&["taken"]).await;
    let before = scene.state();
    let create = |name: &str, more: &[&str], code, parts: &[&str]| {
        let mut args = vec!["volume", "create"];
        if !more.contains(&"--size") {
            args.extend(["--size", "16MiB"]);
        }
        args.extend(more);
        args.extend(["--", name]);
        scene.fails(&args, code, parts);
        // Formats are for results; errors are the same in all of them.
        args.splice(0..0, ["-o", "json"]);
        scene.fails(&args, code, parts);
    };

    create("taken", &[], REFUSED, &["already", "choose another name or delete that one"]);
    let long = "a".repeat(64);
    let huge = "x".repeat(100_000);
    let names = [
        "",
        " ",
        "A",
        "a_b",
        "-a",
        "a-",
        "a.b",
        "ä",
        "a b",
        "a/b",
        "../../etc",
        "a@b",
        "v\n",
        "*",
        "💥",
        &long,
        &huge,
        // Could be taken for another volume's id.
        "00000000-0000-4000-8000-000000000001",
    ];
    for name in names {
        create(name, &[], REFUSED, &["is not a volume name", "use 1 to 63 of a-z, 0-9 and '-'"]);
    }
    for size in ["0", "1", "512", "4095", "4097", "10KB", "65TiB", "64.5TiB", "16777215TiB"] {
        create("v", &["--size", size], REFUSED, &["give a multiple of 4096"]);
    }
    for (size, part) in [
        ("", "not a size"),
        ("-1", "unexpected argument"),
        ("1e9", "no unit"),
        ("10G", "ambiguous"),
        ("ten", "not a size"),
        ("16777216TiB", "64 bits"),
        ("0x1000", "no unit"),
    ] {
        create("v", &["--size", size], USAGE, &[part]);
    }
    create("v", &["--size", "64TiB"], REFUSED, &["don't fit", "make the volume smaller"]);
    create("v", &["--replicas", "0"], REFUSED, &["give 1 to"]);
    create("v", &["--replicas", "4"], REFUSED, &["4 nodes", "start more datanodes"]);
    create("v", &["--replicas", "4294967295"], REFUSED, &["give 1 to"]);
    for replicas in ["-1", "4294967296", "three", ""] {
        create("v", &["--replicas", replicas], USAGE, &["For more information"]);
    }
    create("v", &["--min-in-sync", "4"], REFUSED, &["give 1 to 3"]);
    create("v", &["--replicas", "1", "--min-in-sync", "2"], REFUSED, &["give 1 to 1"]);
    create("v", &["--min-in-sync", "0"], USAGE, &["--min-in-sync"]);
    create("v", &["--zone-spread"], REFUSED, &["zones", "leave zone spreading out"]);
    for mode in ["sync_quorum", "best_effort"] {
        let together = ["--durability", mode, "--write-ack", "written"];
        create("v", &together, REFUSED, &["sync_all only", mode, "durable"]);
    }
    create("v", &["--write-ack", "hope"], USAGE, &["durable", "written"]);
    create("v", &["--durability", "sync_quorum", "--min-in-sync", "2"], REFUSED, &["leave it out"]);
    create("v", &["--durability", "hope"], USAGE, &["sync_all", "best_effort"]);
    create("v", &["--timeout=-1"], USAGE, &["--timeout"]);
    for timeout in ["soon", "nan", "inf", "1e300"] {
        create("v", &["--timeout", timeout], USAGE, &["seconds"]);
    }
    assert_eq!(scene.state(), before);
    scene.cluster.stop().await.expect("stops");
}

#[tokio::test]
async fn names_that_mean_nothing_are_refused_and_nothing_changes() {
    let scene = Scene::set(&["kept"]).await;
    let before = scene.state();
    let long = "v".repeat(100_000);
    let names = [
        "nope",
        "",
        " ",
        "KEPT",
        "kept ",
        "kep",
        "kept@",
        "../kept",
        "ä",
        &long,
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-4fff-bfff-ffffffffffff",
    ];
    for name in names {
        for command in [&["show"][..], &["explain"], &["verify"], &["delete", "--yes"], &["delete"]]
        {
            let mut args = vec!["volume"];
            args.extend(command);
            args.extend(["--", name]);
            scene.fails(&args, REFUSED, &["there is no volume", "sbkctl volume list"]);
        }
        let parts = ["no datanode is called", "sbkctl node list"];
        scene.fails(&["node", "show", "--", name], REFUSED, &parts);
    }
    scene.fails(&["volume", "delete", "kept"], USAGE, &["destroys its data", "pass --yes"]);
    for args in [&["volume", "show"][..], &["volume", "create"], &["node", "show"]] {
        scene.fails(args, USAGE, &["required"]);
    }
    scene.fails(&["volume", "show", "kept", "kept"], USAGE, &["unexpected argument"]);
    scene.fails(&["volume", "list", "-o", "xml"], USAGE, &["table, json, yaml"]);
    scene.fails(&["volume", "verify", "kept", "--timeout", "x"], USAGE, &["number of seconds"]);
    assert_eq!(scene.state(), before);
    // It was only ever refused: deleted at last, and its name is free again.
    scene.succeeds(&["volume", "delete", "kept", "--yes"]);
    scene.fails(&["volume", "show", "kept"], REFUSED, &["there is no volume"]);
    scene.cluster.stop().await.expect("stops");
}

#[tokio::test]
async fn addresses_of_no_masters_say_so() {
    let nobody = format!("127.0.0.1:{}", sbk_ports::kept(1)[0]);
    // Listens, and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").expect("bind");
    let silent_addr = silent.local_addr().expect("bound").to_string();
    // Answers, but speaks something else.
    let other = TcpListener::bind("127.0.0.1:0").expect("bind");
    let other_addr = other.local_addr().expect("bound").to_string();
    std::thread::spawn(move || {
        for mut stream in other.incoming().flatten() {
            // Who asked may be gone.
            let _gone = std::io::Write::write_all(&mut stream, b"220 mail.example.org ESMTP\r\n");
        }
    });
    for (masters, code, part) in [
        (nobody.as_str(), NO_QUORUM, "Check that they run"),
        (&silent_addr, TIMED_OUT, "did not answer within"),
        (&other_addr, NO_QUORUM, "Check that they run"),
        ("127.0.0.1:99999", USAGE, "host:port"),
        ("127.0.0.1", USAGE, "host:port"),
        ("not an address", USAGE, "host:port"),
        ("http://", USAGE, "host:port"),
        (":7101", USAGE, "host:port"),
        ("a:1,,b:1", USAGE, "host:port"),
        ("", USAGE, "host:port"),
    ] {
        let args = ["--masters", masters, "volume", "list"];
        let output = Command::new(env!("CARGO_BIN_EXE_sbkctl"))
            .args(args)
            .env_remove("SBK_MASTERS")
            .output()
            .expect("runs");
        check(&args, &output, code, &[part]);
    }
    drop(silent);
}

#[tokio::test]
async fn without_a_quorum_nothing_is_created_and_what_serves_goes_on() {
    let mut scene = Scene::set(&["kept"]).await;
    let before = scene.state();
    // One that can't come to serve in no time is created all the same, and that is said. Between its creation
    // and the only look at it may be time enough, but not each time.
    let late = ["volume", "create", "late", "--size", "1GiB", "--timeout", "0"];
    let told = (0..10).any(|_| {
        let output = scene.sbkctl(&late);
        let late_indeed = !output.status.success();
        if late_indeed {
            let parts = ["was created but does not serve yet", "volume show late"];
            check(&late, &output, TIMED_OUT, &parts);
        }
        scene.succeeds(&["volume", "delete", "late", "--yes"]);
        late_indeed
    });
    assert!(told, "it served at once each time");

    let masters: Vec<u64> = scene.cluster.file().masters.iter().map(|m| m.id).collect();
    for id in &masters[1..] {
        scene.cluster.kill_master(*id).expect("is killed");
    }
    for args in [
        &["volume", "create", "v", "--size", "16MiB"][..],
        &["volume", "list"],
        &["volume", "show", "kept"],
        &["volume", "delete", "kept", "--yes"],
        &["node", "list"],
    ] {
        scene.fails(args, NO_QUORUM, &["start the missing masters"]);
    }
    // What is known is shown all the same.
    let output = scene.sbkctl(&["cluster", "status", "-o", "json"]);
    assert_eq!(output.status.code(), Some(NO_QUORUM), "{output:?}");
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(status["has_quorum"], false);
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(words.contains("start the missing masters"), "{words}");

    let nbd = scene.cluster.file().datanodes[0].nbd.clone();
    let client = sbk_cli::workload::nbd::NbdClient::connect(&nbd, "kept").await.expect("serves");
    client.disconnect().await;
    scene.cluster.start_ended(Duration::ZERO).await.expect("start again");
    let client = scene.cluster.client();
    sbk_cli::wait::until("the quorum", LIMIT, async || match client.list_volumes().await {
        Ok(_) => Ok(sbk_cli::wait::Look::Done(())),
        Err(e) => Ok(sbk_cli::wait::Look::NotYet(e.to_string())),
    })
    .await
    .expect("is back");
    let names = |state: &serde_json::Value| {
        let volumes = state[0].as_array().expect("volumes").clone();
        let live = volumes.into_iter().filter(|v| v["name"] != "late");
        live.map(|v| (v["name"].clone(), v["id"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(names(&scene.state()), names(&before), "nothing was created or deleted");
    scene.cluster.stop().await.expect("stops");
}

#[test]
fn development_clusters_that_can_not_be_are_refused_before_anything_starts() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("cluster");
    let path = path.to_str().expect("utf-8");
    let dev = |args: &[&str], code: i32, parts: &[&str]| {
        let mut all = vec!["dev", "--dir", path];
        all.extend(args);
        let output = Command::new(env!("CARGO_BIN_EXE_sbkctl"))
            .args(&all)
            .env_remove("SBK_MASTERS")
            .output()
            .expect("runs");
        check(&all, &output, code, parts);
    };
    dev(&["--masters", "2"], USAGE, &["1, 3 or 5"]);
    dev(&["--masters", "0"], USAGE, &["1, 3 or 5"]);
    dev(&["--datanodes", "0"], USAGE, &["1 to"]);
    dev(&["--datanodes", "1000000"], USAGE, &["1 to"]);
    dev(&["--volume", "nosize"], USAGE, &["NAME:SIZE"]);
    dev(&["--volume", "v:10G"], USAGE, &["ambiguous"]);
    dev(&["--volume", "V:1GiB"], USAGE, &["is not a volume name"]);
    dev(&["--volume", "v:0"], USAGE, &["multiple of 4096"]);
    dev(&["--volume", "v:4097"], USAGE, &["multiple of 4096"]);
    dev(&["--base-port", "80"], USAGE, &["--base-port"]);
    dev(&["--base-port", "65535"], USAGE, &["--base-port"]);
    dev(&["--no-volume", "--volume", "v:1GiB"], USAGE, &["cannot be used with"]);
    assert!(!dir.path().join("cluster/plan.json").exists(), "nothing was planned");

    // A port of the layout is in use by somebody else.
    let port = sbk_ports::kept(1)[0];
    let listener = TcpListener::bind(("127.0.0.1", port)).expect("binds");
    // That of the first master: it is the first that is tried.
    let base = (port - 1).to_string();
    dev(&["--base-port", &base], REFUSED, &[&port.to_string(), "in use", "--base-port"]);
    drop(listener);

    // Not a directory; one that can't be made.
    let file = dir.path().join("file");
    std::fs::write(&file, "x").expect("writes");
    let file = file.to_str().expect("utf-8");
    let output = Command::new(env!("CARGO_BIN_EXE_sbkctl"))
        .args(["dev", "--dir", file])
        .output()
        .expect("runs");
    check(&["dev", "--dir", file], &output, REFUSED, &[file]);
}
