//! `docs/operating.md` against what running processes show.

use std::collections::BTreeSet;
use std::time::Duration;

use sbk_cli::args::VolumeSpec;
use sbk_cli::dev::cluster::{DevCluster, Options};
use sbk_cli::dev::plan::Wanted;
use sbk_cli::http::get_json;
use sbk_cli::wait::{Look, until};
use sbk_process_tests::markdown::{Page, code_in, pages};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const LIMIT: Duration = Duration::from_secs(120);

/// The names that begin with `prefix` and have a row of their own in `docs/operating.md`.
fn documented(prefix: &str) -> BTreeSet<String> {
    let rows = Page::read("docs/operating.md").rows();
    let first = rows.iter().filter_map(|(_, cells)| code_in(cells.first()?).first().cloned());
    first.filter(|name| name.starts_with(prefix) && !name.contains(' ')).collect()
}

/// Alerts and sentences name no other series than the tables.
#[test]
fn series_that_are_mentioned_are_in_the_tables() {
    let known = documented("sbk_");
    let mut wrong = Vec::new();
    for page in pages() {
        let unknown = named(&page.text).into_iter().filter(|series| !known.contains(series));
        wrong.extend(unknown.map(|series| format!("{}: {series}", page.path)));
    }
    assert_eq!(wrong, Vec::<String>::new());
}

async fn page(addr: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.expect("connects");
    let request = format!("GET {path} HTTP/1.0\r\nHost: {addr}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("asks");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    assert!(head.starts_with("HTTP/1.0 200"), "{addr}{path}: {head}");
    body.to_owned()
}

/// The names of the samples.
fn series(text: &str) -> impl Iterator<Item = String> {
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines.map(|line| line.split(['{', ' ']).next().unwrap_or_default().to_owned())
}

/// What a page that is asked for as JSON has at its top.
async fn keys(addr: &str, path: &str) -> BTreeSet<String> {
    let page: Value = get_json(addr, path).await.expect("a page");
    page.as_object().expect("an object").keys().cloned().collect()
}

/// The names of series in a text.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_lowercase() || c == '_'));
    let series = words.filter(|w| w.starts_with("sbk_master_") || w.starts_with("sbk_datanode_"));
    series.map(str::to_owned).collect()
}

/// The rules for Prometheus alert on what the table of alerts says, and on nothing else.
#[test]
fn the_alerting_rules_are_those_of_the_table() {
    let path = sbk_process_tests::root().join("deploy/prometheus/sbk-alerts.yml");
    let rules = std::fs::read_to_string(path).expect("the rules");
    let exprs: Vec<_> = rules.lines().filter_map(|l| l.trim().strip_prefix("expr: ")).collect();
    let page = Page::read("docs/operating.md").text;
    let (_, alerts) = page.split_once("### What to alert on").expect("the table of alerts");
    let (alerts, _) = alerts.split_once("\n## ").expect("what follows it");
    let free = ["sbk_datanode_used_bytes".to_owned()];
    let in_table: BTreeSet<_> = named(alerts).into_iter().chain(free).collect();
    assert_eq!(in_table, named(&exprs.join("\n")), "left: the table, right: the rules");
    assert_eq!(exprs.len(), rules.matches("- alert: ").count(), "one expression each, on one line");
}

#[tokio::test]
async fn metrics_and_pages_are_as_documented() {
    let dir = tempfile::tempdir().expect("dir");
    let mut options = Options::new(dir.path().to_owned()).expect("options");
    options.exe = env!("CARGO_BIN_EXE_sbk-tests-ctl").into();
    options.limit = LIMIT;
    // Two datanodes, for a replica has peers only then.
    options.wanted = Wanted { masters: Some(1), datanodes: Some(2), base_port: None };
    options.volumes = vec![VolumeSpec { name: "v".into(), size: 16 << 20 }];
    let cluster = DevCluster::start(options).await.expect("the cluster starts");
    let file = cluster.file().clone();
    let master = file.masters[0].http.clone();
    let datanodes: Vec<_> = file.datanodes.iter().map(|d| d.http.clone()).collect();

    // What is counted by name is there once it has happened; all of it does in a cluster that runs.
    let wanted = documented("sbk_");
    assert!(wanted.len() > 20, "{wanted:?}");
    let shown = until("all documented series", LIMIT, async || {
        let mut shown: BTreeSet<String> = series(&page(&master, "/metrics").await).collect();
        for addr in &datanodes {
            shown.extend(series(&page(addr, "/metrics").await));
        }
        shown.remove("");
        let missing: Vec<_> = wanted.difference(&shown).collect();
        Ok(if missing.is_empty() {
            Look::Done(shown)
        } else {
            Look::NotYet(format!("{missing:?}"))
        })
    })
    .await
    .expect("all that is documented is shown");
    assert_eq!(wanted, shown, "left: docs/operating.md, right: /metrics");

    // The map of each role names its pages; the document has the same.
    let mut pages = BTreeSet::from(["/".to_owned()]);
    for addr in [&master, &datanodes[0]] {
        let keys = keys(addr, "/").await.into_iter().filter(|key| key.starts_with('/'));
        pages.extend(keys.map(|key| key.split('?').next().unwrap_or_default().to_owned()));
    }
    assert_eq!(documented("/"), pages, "left: docs/operating.md, right: the roles' maps");
    cluster.stop().await.expect("stops");
}
