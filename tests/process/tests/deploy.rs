//! Keeps `deploy/` true: the example files are read by the real parsers, with every option in them,
//! and the units call the programs as they can be called.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use clap::Parser;
use sbk_process_tests::commands::{calls_in, parser};
use sbk_process_tests::markdown::Page;
use sbk_process_tests::{files, relative, root};

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// An example as it is, and with every line that shows an option made one: `# key = value`.
fn variants(path: &str) -> [String; 2] {
    let text = read(path);
    let whole = text.lines().map(|line| match line.strip_prefix("# ") {
        Some(rest) if key(rest).is_some() => rest,
        _ => line,
    });
    let whole: Vec<_> = whole.collect();
    assert_ne!(text.lines().collect::<Vec<_>>(), whole, "{path}: nothing is commented out");
    [text.clone(), whole.join("\n")]
}

/// The key of `key = value`.
fn key(line: &str) -> Option<&str> {
    let (key, _) = line.split_once(" = ")?;
    let is_key = !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    is_key.then_some(key)
}

fn in_a_file<T>(text: &str, parse: impl FnOnce(&Path) -> T) -> T {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("sbk.toml");
    std::fs::write(&path, text).expect("written");
    parse(&path)
}

fn master(text: &str) -> sbk_master::Settings {
    in_a_file(text, |path| {
        let args = ["sbk-master".as_ref(), "--config".as_ref(), path.as_os_str()];
        sbk_master::Args::parse_from(args).settings().expect("the example is complete")
    })
}

fn datanode(text: &str) -> sbk_datanode::Settings {
    in_a_file(text, |path| {
        let args = ["sbk-datanode".as_ref(), "--config".as_ref(), path.as_os_str()];
        sbk_datanode::Args::parse_from(args).settings().expect("the example is complete")
    })
}

#[test]
fn the_examples_have_every_option() {
    for (program, path) in [
        ("sbk-master", "deploy/config/sbk-master.toml"),
        ("sbk-datanode", "deploy/config/sbk-datanode.toml"),
    ] {
        let [_, whole] = variants(path);
        let keys: BTreeSet<_> = whole.lines().filter_map(key).map(str::to_owned).collect();
        let command = parser(program).expect("ours");
        let options = command.get_arguments().filter(|a| a.get_env().is_some() && !a.is_hide_set());
        let options = options.filter_map(|a| a.get_long()).filter(|long| *long != "config");
        let options: BTreeSet<_> = options.map(|long| long.replace('-', "_")).collect();
        assert_eq!(keys, options, "left: {path}, right: {program} --help");
    }
}

#[test]
fn the_masters_example_is_read() {
    let [text, whole] = variants("deploy/config/sbk-master.toml");
    let (settings, whole) = (master(&text), master(&whole));
    assert_eq!((settings.id, settings.listen.port(), settings.http.port()), (1, 7101, 7201));
    assert_eq!(settings.cluster.0[&settings.id], settings.listen.to_string());
    assert_eq!(settings.cluster.0.len(), 3);
    assert_eq!(whole.data_dir, settings.data_dir);
}

#[test]
fn the_datanodes_example_is_read_and_its_defaults_are_the_defaults() {
    let [text, whole] = variants("deploy/config/sbk-datanode.toml");
    let (settings, whole) = (datanode(&text), datanode(&whole));
    assert_eq!((settings.listen.port(), settings.nbd.port()), (7301, 10809));
    assert_eq!(whole.wal_retain, settings.wal_retain, "the default that is shown");
    assert_eq!(
        (whole.wal_retain_time, whole.scrub.every),
        (settings.wal_retain_time, settings.scrub.every)
    );
    assert_eq!((settings.space.capacity, whole.space.capacity), (None, Some(900 << 30)));
    assert_eq!((settings.zone.as_str(), whole.zone.as_str()), ("", "rack1"));
    // Both examples are about the same three machines.
    let cluster = master(&read("deploy/config/sbk-master.toml")).cluster;
    assert_eq!(settings.masters, cluster.0.into_values().collect::<Vec<_>>());
}

/// `key=value` lines of a unit; the last one of a key.
fn unit(path: &str) -> BTreeMap<String, String> {
    let text = read(path);
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.filter_map(|line| line.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

#[test]
fn the_units_call_the_programs_and_give_them_their_directories() {
    let master_dir = master(&read("deploy/config/sbk-master.toml")).data_dir;
    let disks = datanode(&read("deploy/config/sbk-datanode.toml")).disks;
    let [datanode_dir] = disks.try_into().expect("one directory");
    let datanode_dir = datanode_dir.path().to_owned();
    for (program, data_dir) in [("sbk-master", master_dir), ("sbk-datanode", datanode_dir)] {
        let path = format!("deploy/systemd/{program}.service");
        let unit = unit(&path);
        let start = unit.get("ExecStart").unwrap_or_else(|| panic!("{path}: no ExecStart"));
        let calls = calls_in(start);
        assert_eq!(calls.len(), 1, "{path}: {start}");
        assert_eq!((calls[0].program.as_str(), calls[0].problem()), (program, None));
        let directory = Path::new("/var/lib").join(&unit["StateDirectory"]);
        assert_eq!(directory, data_dir, "{path}: what is writable, and what the example says");
        assert_eq!((unit["User"].as_str(), unit["Group"].as_str()), ("sbk", "sbk"));
        // The walk-through puts the example where the unit looks for it.
        let config = calls[0].args.last().expect("--config FILE");
        let readme = Page::read("deploy/README.md").text;
        assert!(
            readme.contains(&format!("deploy/config/{program}.toml {config}")),
            "deploy/README.md does not install {config}"
        );
    }
}

#[test]
fn every_file_is_in_the_walk_through() {
    let readme = Page::read("deploy/README.md").text;
    let mut seen = 0;
    for ext in ["service", "toml", "conf", "yml", "sh", "Dockerfile"] {
        for path in files("deploy", ext) {
            seen += 1;
            let path = relative(&path);
            assert!(readme.contains(&path), "deploy/README.md does not say what {path} is for");
        }
    }
    assert_eq!(seen, 10);
}
