//! Keeps the containers true: the compose file calls the programs as they can be called, gives each the
//! directory that it writes to, and asks the health of the address that it listens at; the drills are
//! the ones that are written down. That it works is shown by `deploy/compose/drill.sh`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use clap::Parser;
use sbk_process_tests::commands::{Call, calls_in, parser};
use sbk_process_tests::markdown::{Page, code_in};
use sbk_process_tests::root;
use serde_yaml_ng::Value;

const COMPOSE: &str = "deploy/compose/compose.yml";
const DOCKERFILE: &str = "deploy/Dockerfile";
const DRILLS: &str = "deploy/compose/drill.sh";
/// Of the account that the image runs as.
const USER: &str = "7101";

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// One service, as far as it is about sbk.
struct Service {
    name: String,
    command: Vec<String>,
    environment: BTreeMap<String, String>,
    /// Volume to directory.
    volumes: BTreeMap<String, String>,
    health: Vec<String>,
    yaml: Value,
}

fn words(value: &Value) -> Vec<String> {
    let words = value.as_sequence().expect("a list").iter();
    words.map(|word| word.as_str().expect("a string").to_owned()).collect()
}

/// `${NAME:-DEFAULT}` as it is without NAME.
fn defaults(text: &str) -> String {
    let Some((before, rest)) = text.split_once("${") else { return text.to_owned() };
    let (variable, after) = rest.split_once('}').expect("it ends");
    let (_, default) = variable.split_once(":-").expect("every variable has a default");
    format!("{before}{default}{}", defaults(after))
}

fn services() -> Vec<Service> {
    let mut compose: Value = serde_yaml_ng::from_str(&read(COMPOSE)).expect("YAML");
    // Once for each level: what is merged merges something itself.
    for _ in 0..2 {
        compose.apply_merge().expect("its anchors are there");
    }
    let services = compose["services"].as_mapping().expect("services").iter();
    let service = |(name, yaml): (&Value, &Value)| {
        let environment = yaml["environment"].as_mapping().expect("an environment").iter();
        let text = |v: &Value| defaults(v.as_str().expect("a string"));
        let volumes = match &yaml["volumes"] {
            Value::Null => Vec::new(),
            volumes => words(volumes),
        };
        let volumes = volumes.iter().map(|volume| volume.split_once(':').expect("NAME:PATH"));
        Service {
            name: name.as_str().expect("a name").to_owned(),
            command: words(&yaml["command"]),
            environment: environment.map(|(k, v)| (text(k), text(v))).collect(),
            volumes: volumes.map(|(name, path)| (name.to_owned(), path.to_owned())).collect(),
            health: words(&yaml["healthcheck"]["test"]),
            yaml: yaml.clone(),
        }
    };
    services.map(service).collect()
}

fn problem(command: &[String]) -> Option<String> {
    let (program, args) = command.split_first().expect("a program");
    Call { program: program.clone(), args: args.to_vec(), whole: true }.problem()
}

/// A value that the image sets for every container.
fn image_sets(name: &str) -> String {
    let text = read(DOCKERFILE);
    let found = text.split_whitespace().find_map(|word| word.strip_prefix(&format!("{name}=")));
    found.unwrap_or_else(|| panic!("{DOCKERFILE} sets no {name}")).to_owned()
}

/// The command of a daemon with the options that it takes from its environment.
fn whole_command(service: &Service) -> Vec<String> {
    let mut command = service.command.clone();
    let parser = parser(&command[0]).expect("ours");
    let mut environment = service.environment.clone();
    for name in ["SBK_DATA_DIR", "SBK_LOG_FORMAT"] {
        environment.insert(name.to_owned(), image_sets(name));
    }
    for (name, value) in environment {
        let takes = |arg: &&clap::Arg| arg.get_env().is_some_and(|env| env == name.as_str());
        let arg = parser.get_arguments().find(takes);
        let arg = arg.unwrap_or_else(|| panic!("{}: {} takes no {name}", service.name, command[0]));
        command.push(format!("--{}={value}", arg.get_long().expect("is long")));
    }
    command
}

/// Port and page of a health check.
fn asked(service: &Service) -> (u16, String) {
    let url = service.health.last().expect("a URL");
    let rest = url.strip_prefix("http://127.0.0.1:").unwrap_or_else(|| panic!("{url}"));
    let (port, page) = rest.split_once('/').expect("a page");
    (port.parse().expect("a port"), page.to_owned())
}

#[test]
fn the_services_are_called_as_they_can_be() {
    let services = services();
    let names: Vec<&str> = services.iter().map(|s| s.name.as_str()).collect();
    let all = ["master1", "master2", "master3", "datanode1", "datanode2", "datanode3", "client"];
    assert_eq!(names, all);
    let data_dir = image_sets("SBK_DATA_DIR");
    let mut masters = BTreeMap::new();
    for service in &services {
        assert_eq!((service.health[0].as_str(), problem(&service.health[1..])), ("CMD", None));
        assert_eq!(service.yaml["cap_drop"][0], "ALL", "{}", service.name);
        assert_eq!(service.yaml["user"], Value::Null, "the image says who runs it");
        let command = match service.command[0].as_str() {
            "sh" => {
                let script = service.command.last().expect("a script");
                let calls: Vec<_> = script.lines().flat_map(calls_in).collect();
                assert_eq!(calls.len(), 3, "{script}");
                assert!(calls.iter().all(|call| call.problem().is_none()), "{script}");
                continue;
            }
            _ => whole_command(service),
        };
        // What is not in a volume of its own is gone with the container.
        let own = BTreeMap::from([(service.name.clone(), data_dir.clone())]);
        assert_eq!(service.volumes, own);
        match command[0].as_str() {
            "sbk-master" => {
                let settings = sbk_master::Args::parse_from(&command).settings().expect("is whole");
                assert_eq!(settings.data_dir, Path::new(&data_dir));
                assert_eq!(settings.cluster.0[&settings.id], format!("{}:7101", service.name));
                assert_eq!(settings.listen.port(), 7101);
                assert_eq!(asked(service), (settings.http.port(), "readyz".to_owned()));
                masters = settings.cluster.0;
            }
            "sbk-datanode" => {
                let settings = sbk_datanode::Args::parse_from(&command).settings();
                let settings = settings.expect("is whole");
                let dirs: Vec<_> = settings.disks.iter().map(|place| place.path()).collect();
                assert_eq!(dirs, [Path::new(&data_dir)]);
                assert_eq!(settings.advertise.as_ref(), Some(&service.name));
                assert_eq!(settings.masters, masters.values().cloned().collect::<Vec<_>>());
                assert_eq!(asked(service), (settings.http.port(), "readyz".to_owned()));
            }
            other => panic!("{}: {other}", service.name),
        }
    }
    let listed = masters.values().map(String::as_str).collect::<Vec<_>>().join(",");
    let client = services.last().expect("the client");
    assert_eq!(client.environment["SBK_MASTERS"], listed);
}

#[test]
fn nobody_is_root_and_everybody_may_write_to_its_directories() {
    let text = read(DOCKERFILE);
    let user = text.lines().find_map(|line| line.strip_prefix("USER ")).expect("a user");
    assert_eq!(user, format!("{USER}:{USER}"));
    let data_dir = image_sets("SBK_DATA_DIR");
    assert!(text.contains(&format!("chown {USER}:{USER} {data_dir} ")), "whose {data_dir} is");
    for service in services() {
        let in_memory = match &service.yaml["tmpfs"] {
            Value::Null => continue,
            tmpfs => words(tmpfs),
        };
        for tmpfs in in_memory {
            assert!(tmpfs.contains(&format!(":uid={USER},gid={USER},mode=700")), "{tmpfs}");
        }
    }
}

/// A builder that does the stages in order, up to the one that it is asked for, must not come by the
/// build when it is asked for the programs that are there.
#[test]
fn the_stages_stand_in_the_order_that_old_builders_need() {
    let text = read(DOCKERFILE);
    let stages: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("FROM ")).collect();
    let names: Vec<_> = stages.iter().map(|s| s.split_once(" AS ").map_or("", |s| s.1)).collect();
    assert_eq!(names, ["run", "prebuilt", "build", ""]);
    for program in ["sbk-master", "sbk-datanode", "sbkctl"] {
        assert!(text.contains(&format!("--bin {program} ")), "the image has no {program}");
        assert!(read("deploy/image.sh").contains(program));
    }
}

/// The names in `all=(...)`.
fn drills(script: &str) -> Vec<String> {
    let (_, rest) = script.split_once("\nall=(").expect("all drills");
    let (names, _) = rest.split_once(')').expect("it ends");
    names.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn every_drill_is_there_and_written_down() {
    let script = read(DRILLS);
    let drills = drills(&script);
    for drill in &drills {
        assert!(script.contains(&format!("\n{drill}() {{")), "{DRILLS} has no {drill}");
        assert!(
            script.contains(&format!("\n#   {drill} ")),
            "{DRILLS} does not say what {drill} is"
        );
    }
    let page = Page::read("docs/containers.md");
    let rows = page.rows();
    let told = rows.iter().filter_map(|(_, cells)| code_in(cells.first()?).first().cloned());
    let told: BTreeSet<String> = told.collect();
    for drill in &drills {
        assert!(told.contains(drill), "docs/containers.md does not say what {drill} shows");
    }
}

#[test]
fn the_drills_call_sbkctl_as_it_can_be_called() {
    let script = read(DRILLS);
    let mut seen = 0;
    // Most stand within `"$(...)"`.
    let hands_on = |line: &&str| line.contains("\"$@\"");
    for line in script.lines().filter(|line| !line.starts_with('#') && !hands_on(line)) {
        for (at, _) in line.match_indices("sbkctl ") {
            let call = calls_in(&line[at..]).into_iter().next().expect("a call");
            seen += 1;
            assert_eq!(call.problem(), None, "{line}");
        }
    }
    assert!(seen >= 12, "only {seen} calls were found");
}
