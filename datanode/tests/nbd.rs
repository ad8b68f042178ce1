//! The NBD server with real clients, on a node that holds no replica: everything is forwarded.

mod support;

use std::process::{Command, Output};
use std::sync::Arc;

use support::nbd::Server;
use support::{BLOCKS, Cluster, replica};

/// Runs a client program; it must be installed.
fn client(program: &str, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).output();
    output.unwrap_or_else(|error| {
        panic!("{program}: {error}; install it (apt-get install libnbd-bin qemu-utils)")
    })
}

fn succeeds(program: &str, args: &[&str]) -> String {
    let output = client(program, args);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {text}{errors}");
    text
}

#[test]
fn nbdinfo_sees_the_volume_as_it_is() {
    let cluster = Cluster::start(3, 2);
    let server = Server::start(&cluster);
    let info = succeeds("nbdinfo", &["--json", &server.uri()]);
    for expected in [
        "\"protocol\": \"newstyle-fixed\"",
        &format!("\"export-size\": {}", BLOCKS * 4096),
        "\"can_multi_conn\": true",
        "\"can_fua\": true",
        "\"can_trim\": true",
        "\"can_zero\": true",
        "\"block_size_minimum\": 512",
        "\"block_size_preferred\": 4096",
        "\"block_size_maximum\": 33554432",
    ] {
        assert!(info.contains(expected), "{expected} is not in {info}");
    }
    let list = succeeds("nbdinfo", &["--list", &format!("nbd://{}", server.addr)]);
    assert!(list.contains("export=\"vol@"), "{list}");
    let exclusive = succeeds("nbdinfo", &["--json", &format!("{},exclusive", server.uri())]);
    assert!(exclusive.contains("\"can_multi_conn\": false"), "{exclusive}");
    assert!(exclusive.contains(",exclusive\""), "{exclusive}");
    let unknown = client("nbdinfo", &[&format!("nbd://{}/other", server.addr)]);
    assert!(!unknown.status.success());
}

#[test]
fn patterns_and_unaligned_writes_read_back() {
    let cluster = Cluster::start(3, 2);
    let server = Server::start(&cluster);
    let commands = [
        "write -P 0x11 0 1M",
        "write -P 0x22 4608 512",
        "write -P 0x33 12288 5120",
        "write -z 65536 4096",
        "discard 131072 65536",
        "flush",
        "read -P 0x11 0 4608",
        "read -P 0x22 4608 512",
        "read -P 0x11 5120 7168",
        "read -P 0x33 12288 5120",
        "read -P 0x11 17408 48128",
        "read -P 0 65536 4096",
        "read -P 0 131072 65536",
    ];
    let mut args = vec!["-f", "raw"];
    for command in commands {
        args.extend(["-c", command]);
    }
    let uri = server.uri();
    args.push(&uri);
    let text = succeeds("qemu-io", &args);
    assert!(!text.contains("verification failed"), "{text}");
}

#[test]
fn a_copy_in_while_the_primary_dies_has_no_error_and_reads_back() {
    let mut seed: u64 = 42;
    let data: Vec<u8> = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) as u8
    })
    .take(usize::try_from(BLOCKS * 4096).expect("small"))
    .collect();
    let dir = tempfile::tempdir().expect("a directory");
    let (source, copy) = (dir.path().join("in"), dir.path().join("out"));
    std::fs::write(&source, &data).expect("writes");
    let cluster = Cluster::start(3, 2);
    let server = Server::start(&cluster);
    cluster.wait_in_sync(3);
    let uri = server.uri();
    let primary = cluster.primary();
    std::thread::scope(|scope| {
        let path = source.to_str().expect("a path");
        let uri = &uri;
        let copying = scope.spawn(move || {
            succeeds("nbdcopy", &["--flush", "--request-size=65536", path, uri]);
        });
        cluster.wait(primary, "some of the copy", |status| {
            status.view.as_ref().is_some_and(|view| view.committed.0 > 20)
        });
        cluster.kill(primary);
        cluster.fail_over(replica(2), primary);
        server.catalogue.send_replace(Arc::new(cluster.catalogue()));
        copying.join().expect("the copy has no error");
    });
    succeeds("nbdcopy", &[&uri, copy.to_str().expect("a path")]);
    assert!(std::fs::read(&copy).expect("reads") == data, "what was copied in reads back");
}
