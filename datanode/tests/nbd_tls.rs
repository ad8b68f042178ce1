//! NBD with TLS: real clients within it, and what is refused without it.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sbk_datanode::frontend::nbd::{Tls, TlsFiles};
use support::Cluster;
use support::nbd::{Raw, Server, wish};

const EXPORT_NAME: u32 = 1;
const ABORT: u32 = 2;
const LIST: u32 = 3;
const STARTTLS: u32 = 5;
const GO: u32 = 7;

const ACK: u32 = 1;
const ERR_POLICY: u32 = 0x8000_0002;
const ERR_INVALID: u32 = 0x8000_0003;
const ERR_TLS_REQD: u32 = 0x8000_0005;

fn run(program: &str, args: &[&str], dir: &Path) -> Output {
    let output = Command::new(program).args(args).current_dir(dir).output();
    output.unwrap_or_else(|error| {
        panic!("{program}: {error}; install it (apt-get install libnbd-bin qemu-utils openssl)")
    })
}

fn succeeds(program: &str, args: &[&str], dir: &Path) -> String {
    let output = run(program, args, dir);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {text}{errors}");
    text
}

fn fails(program: &str, args: &[&str], dir: &Path) -> String {
    let output = run(program, args, dir);
    assert!(!output.status.success(), "{program} {args:?} succeeds");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// An authority's directory, as libnbd's clients want it: its certificate, and a client's.
fn authority(root: &Path, name: &str) -> PathBuf {
    let dir = root.join(name);
    std::fs::create_dir(&dir).expect("made");
    let subject = format!("/CN={name}");
    let ca = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let files = ["-keyout", "ca-key.pem", "-out", "ca-cert.pem", "-subj", &subject];
    succeeds("openssl", &[&ca[..], &files].concat(), &dir);
    signed(&dir, "client", "extendedKeyUsage=clientAuth");
    dir
}

/// A certificate of the authority in `dir`.
fn signed(dir: &Path, name: &str, extensions: &str) {
    let [key, request, cert] = ["key", "request", "cert"].map(|what| format!("{name}-{what}.pem"));
    let new = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let files = ["-keyout", &key, "-out", &request, "-subj", &format!("/CN={name}")];
    succeeds("openssl", &[&new[..], &files].concat(), dir);
    std::fs::write(dir.join("extensions"), extensions).expect("written");
    let sign = ["x509", "-req", "-CA", "ca-cert.pem", "-CAkey", "ca-key.pem", "-CAcreateserial"];
    let files = ["-extfile", "extensions", "-in", &request, "-out", &cert];
    succeeds("openssl", &[&sign[..], &files].concat(), dir);
}

/// A server with a certificate for 127.0.0.1, which wants its clients' too.
struct Scene {
    dir: tempfile::TempDir,
    ours: PathBuf,
    files: TlsFiles,
    _cluster: Cluster,
    server: Server,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let ours = authority(dir.path(), "ours");
        signed(&ours, "server", "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth");
        let files = TlsFiles {
            cert: ours.join("server-cert.pem"),
            key: ours.join("server-key.pem"),
            client_ca: Some(ours.join("ca-cert.pem")),
        };
        let cluster = Cluster::start(3, 2);
        let tls = Tls::load(&files).expect("goes together");
        let server = Server::start_with(&cluster, Some(tls));
        Self { dir, ours, files, _cluster: cluster, server }
    }

    /// The volume, for a client with the certificates in `dir`.
    fn uri(&self, dir: &Path) -> String {
        format!("nbds://{}/vol?tls-certificates={}", self.server.addr, dir.display())
    }
}

#[test]
fn data_goes_both_ways_within_tls() {
    let scene = Scene::new();
    let (uri, dir) = (scene.uri(&scene.ours), scene.dir.path());
    let info = succeeds("nbdinfo", &[&uri], dir);
    assert!(info.contains("with TLS"), "{info}");
    let size: u64 = succeeds("nbdinfo", &["--size", &uri], dir).trim().parse().expect("a number");
    let data: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
    std::fs::write(dir.join("there"), &data).expect("written");
    succeeds("nbdcopy", &["--flush", "there", &uri], dir);
    succeeds("nbdcopy", &[&uri, "back"], dir);
    let creds = format!("tls-creds-x509,id=t,dir={},endpoint=client", scene.ours.display());
    let port = scene.server.addr.port();
    let image = format!("driver=nbd,host=127.0.0.1,port={port},export=vol,tls-creds=t");
    let info = succeeds("qemu-img", &["info", "--object", &creds, "--image-opts", &image], dir);
    assert!(info.contains(&format!("({size} bytes)")), "{info}");
    assert!(std::fs::read(dir.join("back")).expect("read") == data, "other data came back");
}

#[test]
fn who_shows_no_certificate_of_ours_is_not_served() {
    let scene = Scene::new();
    let dir = scene.dir.path();
    // One that trusts our server, and is another authority's.
    let other = authority(dir, "other");
    std::fs::copy(scene.ours.join("ca-cert.pem"), other.join("ca-cert.pem")).expect("copied");
    fails("nbdinfo", &[&scene.uri(&other)], dir);
    // One that has none.
    for file in ["client-cert.pem", "client-key.pem"] {
        std::fs::remove_file(other.join(file)).expect("removed");
    }
    fails("nbdinfo", &[&scene.uri(&other)], dir);
    // And the server is known by its certificate.
    let stranger = authority(dir, "stranger");
    fails("nbdinfo", &[&scene.uri(&stranger)], dir);
    succeeds("nbdinfo", &[&scene.uri(&scene.ours)], dir);

    // Without an authority for clients, whoever trusts the server is served.
    let tls = Tls::load(&TlsFiles { client_ca: None, ..scene.files.clone() });
    let open = Server::start_with(&scene._cluster, Some(tls.expect("goes together")));
    let uri = format!("nbds://{}/vol?tls-certificates={}", open.addr, other.display());
    succeeds("nbdinfo", &[&uri], dir);
}

#[test]
fn nothing_is_told_without_tls() {
    let scene = Scene::new();
    let plain = format!("nbd://{}/vol", scene.server.addr);
    fails("nbdinfo", &[&plain], scene.dir.path());

    let greeted = || {
        let mut raw = Raw::connect(scene.server.addr);
        raw.send(&3u32.to_be_bytes());
        raw
    };
    let mut raw = greeted();
    for (option, data) in
        [(LIST, vec![]), (GO, wish("vol")), (8, vec![]), (10, vec![0; 8]), (99, vec![])]
    {
        raw.option(option, &data);
        assert_eq!(raw.option_reply(option).expect("a reply").0, ERR_TLS_REQD, "{option}");
    }
    raw.option(STARTTLS, b"x");
    assert_eq!(raw.option_reply(STARTTLS).expect("a reply").0, ERR_INVALID);
    raw.option(ABORT, b"");
    assert_eq!(raw.option_reply(ABORT).expect("a reply").0, ACK);
    raw.ends();

    let mut raw = greeted();
    raw.option(EXPORT_NAME, b"vol");
    raw.ends();

    // What an attacker puts behind STARTTLS is not heard within TLS, nor answered in the clear.
    let mut raw = greeted();
    raw.option(STARTTLS, b"");
    raw.option(LIST, b"");
    assert_eq!(raw.option_reply(STARTTLS).expect("a reply").0, ACK);
    let mut rest = Vec::new();
    // A reset is an end too.
    let _end = std::io::Read::read_to_end(&mut raw.0, &mut rest);
    assert!(rest.len() < 20, "it was answered: {rest:?}");
}

#[test]
fn a_server_without_tls_says_so() {
    let scene = Scene::new();
    let plain = Server::start(&scene._cluster);
    let uri = format!("nbds://{}/vol?tls-certificates={}", plain.addr, scene.ours.display());
    fails("nbdinfo", &[&uri], scene.dir.path());
    let mut raw = Raw::connect(plain.addr);
    raw.send(&3u32.to_be_bytes());
    raw.option(STARTTLS, b"");
    assert_eq!(raw.option_reply(STARTTLS).expect("a reply").0, ERR_POLICY);
    raw.option(GO, &wish("vol"));
    assert_eq!(raw.option_reply(GO).expect("goes on").0, 3);
}

#[test]
fn files_that_are_wrong_are_named() {
    let scene = Scene::new();
    let wrong = |files: TlsFiles| Tls::load(&files).expect_err("is wrong").to_string();
    let good = || scene.files.clone();
    let missing = scene.dir.path().join("missing.pem");
    assert!(wrong(TlsFiles { cert: missing.clone(), ..good() }).contains("missing.pem"));
    assert!(wrong(TlsFiles { key: missing.clone(), ..good() }).contains("missing.pem"));
    assert!(wrong(TlsFiles { client_ca: Some(missing), ..good() }).contains("missing.pem"));
    let key = scene.files.key.clone();
    assert!(wrong(TlsFiles { cert: key.clone(), ..good() }).contains("no certificate"));
    assert!(wrong(TlsFiles { client_ca: Some(key), ..good() }).contains("no certificate"));
    let other = scene.ours.join("client-key.pem");
    assert!(wrong(TlsFiles { key: other, ..good() }).contains("client-key.pem"));
}
