//! The command line of a master, and what it comes to with the environment and a file.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use serde::Deserialize;

use crate::raft::MemberId;

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A member of sbk's master quorum: it keeps volumes, assignments and epochs, and sees no data.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "sbk-master",
    version,
    after_help = "Example, one of three members:\n  sbk-master --id 1 --data-dir /var/lib/sbk-master \
                  --listen 10.0.0.1:7101 --http 127.0.0.1:7201 \\\n      \
                  --cluster 1=10.0.0.1:7101,2=10.0.0.2:7101,3=10.0.0.3:7101\n\nEvery option may \
                  also stand in a TOML file given with --config, as in `data_dir = \
                  \"/var/lib/sbk-master\"`; options go before the environment, the environment \
                  before the file."
)]
pub struct Args {
    /// This member's number in --cluster. Never give it to another data directory.
    #[arg(long, env = "SBK_ID", value_name = "N")]
    pub id: Option<MemberId>,
    /// Where the vote, the log and the applied state are kept.
    #[arg(long, env = "SBK_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// gRPC: members, datanodes, sbkctl [default: 127.0.0.1:7101]
    #[arg(long, env = "SBK_LISTEN", value_name = "HOST:PORT")]
    pub listen: Option<SocketAddr>,
    /// HTTP, read-only: status, health, metrics [default: 127.0.0.1:7201]
    #[arg(long, env = "SBK_HTTP", value_name = "HOST:PORT")]
    pub http: Option<SocketAddr>,
    /// Every member of the quorum, the same list for each: ID=HOST:PORT,...
    #[arg(long, env = "SBK_CLUSTER", value_name = "LIST")]
    pub cluster: Option<Cluster>,
    /// How logs are written [default: text on a terminal, else json]
    #[arg(long, env = "SBK_LOG_FORMAT", value_enum)]
    pub log_format: Option<LogFormat>,
    /// Replace a replica whose node was silent, or did not have it open, for so long, in seconds
    /// [default: 600]
    #[arg(long, env = "SBK_REPLACE_AFTER", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(10..))]
    pub replace_after: Option<u64>,
    /// Log entries after which a snapshot is made and the log is cut.
    #[arg(long, hide = true, value_parser = clap::value_parser!(u64).range(5..))]
    pub snapshot_after: Option<u64>,
    /// A TOML file with options.
    #[arg(long, env = "SBK_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// What may stand in the file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileArgs {
    id: Option<MemberId>,
    data_dir: Option<PathBuf>,
    listen: Option<SocketAddr>,
    http: Option<SocketAddr>,
    cluster: Option<String>,
    log_format: Option<LogFormat>,
    replace_after: Option<u64>,
}

/// Everything decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// This member's number.
    pub id: MemberId,
    /// Where the vote, the log and the applied state are kept.
    pub data_dir: PathBuf,
    /// gRPC.
    pub listen: SocketAddr,
    /// HTTP.
    pub http: SocketAddr,
    /// Every member; this one among them.
    pub cluster: Cluster,
    /// How logs are written.
    pub log_format: LogFormat,
    /// When a replica that is away is replaced.
    pub replace_after: Duration,
    /// Log entries after which a snapshot is made.
    pub snapshot_after: u64,
}

/// What is wrong with the options.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// One that has no default is missing.
    #[error("{option} is missing; pass it, set {variable}, or write it into the --config file")]
    Missing {
        /// The option.
        option: &'static str,
        /// Its environment variable.
        variable: &'static str,
    },
    /// The file can't be read.
    #[error("can't read the configuration file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no such TOML.
    #[error("the configuration file {} is wrong: {source}", path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// The list of members makes no sense.
    #[error("--cluster: {0}")]
    Cluster(#[from] ClusterError),
    /// This member is none.
    #[error("--id {id} is not in --cluster {cluster}; add it there, the same for every member")]
    NotAMember {
        /// The number given.
        id: MemberId,
        /// The list given.
        cluster: String,
    },
}

/// What is wrong with a list of members.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClusterError {
    /// A part that is no member.
    #[error("'{0}' is not ID=HOST:PORT, as in 1=127.0.0.1:7101, with IDs from 1")]
    Member(String),
    /// One number, two addresses.
    #[error("member {0} is listed twice")]
    Twice(MemberId),
    /// An even quorum survives no more than the odd one below it.
    #[error("{0} members: a quorum has 1, 3, 5 or 7")]
    Size(usize),
}

/// Every member and its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster(pub BTreeMap<MemberId, String>);

impl Cluster {
    /// The list in one order, whatever order it was given in: by it members know each other.
    pub fn name(&self) -> String {
        let members: Vec<_> = self.0.iter().map(|(id, addr)| format!("{id}={addr}")).collect();
        members.join(",")
    }
}

impl FromStr for Cluster {
    type Err = ClusterError;

    fn from_str(text: &str) -> Result<Self, ClusterError> {
        let mut members = BTreeMap::new();
        for part in text.split(',') {
            let (id, addr) =
                member(part).ok_or_else(|| ClusterError::Member(part.trim().to_owned()))?;
            if members.insert(id, addr).is_some() {
                return Err(ClusterError::Twice(id));
            }
        }
        match members.len() {
            1 | 3 | 5 | 7 => Ok(Cluster(members)),
            n => Err(ClusterError::Size(n)),
        }
    }
}

fn member(part: &str) -> Option<(MemberId, String)> {
    let (id, addr) = part.trim().split_once('=')?;
    let id: MemberId = id.parse().ok().filter(|id| *id > 0)?;
    let (host, port) = addr.rsplit_once(':')?;
    port.parse::<u16>().ok()?;
    (!host.is_empty()).then(|| (id, addr.to_owned()))
}

impl Args {
    /// Options and environment (which the parser has merged), then the file, then defaults.
    pub fn settings(self) -> Result<Settings, SettingsError> {
        let file = self.config.as_deref().map(read_file).transpose()?.unwrap_or_default();
        let missing = |option, variable| SettingsError::Missing { option, variable };
        let in_file = file.cluster.as_deref().map(Cluster::from_str).transpose()?;
        let cluster =
            self.cluster.or(in_file).ok_or_else(|| missing("--cluster", "SBK_CLUSTER"))?;
        let id = self.id.or(file.id).ok_or_else(|| missing("--id", "SBK_ID"))?;
        if !cluster.0.contains_key(&id) {
            return Err(SettingsError::NotAMember { id, cluster: cluster.name() });
        }
        let data_dir = self.data_dir.or(file.data_dir);
        Ok(Settings {
            id,
            data_dir: data_dir.ok_or_else(|| missing("--data-dir", "SBK_DATA_DIR"))?,
            listen: self.listen.or(file.listen).unwrap_or(([127, 0, 0, 1], 7101).into()),
            http: self.http.or(file.http).unwrap_or(([127, 0, 0, 1], 7201).into()),
            cluster,
            log_format: self.log_format.or(file.log_format).unwrap_or_else(|| {
                match std::io::IsTerminal::is_terminal(&std::io::stderr()) {
                    true => LogFormat::Text,
                    false => LogFormat::Json,
                }
            }),
            replace_after: Duration::from_secs(
                self.replace_after.or(file.replace_after).unwrap_or(600),
            ),
            snapshot_after: self.snapshot_after.unwrap_or(5000),
        })
    }
}

fn read_file(path: &Path) -> Result<FileArgs, SettingsError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| SettingsError::Read { path: path.to_owned(), source })?;
    toml::from_str(&text)
        .map_err(|source| SettingsError::Toml { path: path.to_owned(), source: Box::new(source) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Args {
        Args::parse_from([&["sbk-master"], args].concat())
    }

    #[test]
    fn a_cluster_is_a_list_of_numbered_addresses() {
        let cluster: Cluster = "2=b:2,1=a:1,3=c:3".parse().expect("parses");
        assert_eq!(cluster.name(), "1=a:1,2=b:2,3=c:3");
        for bad in ["", "1", "1=a", "x=a:1", "0=a:1", "1=a:1,1=b:2,2=c:3", "1=a:1,2=b:2", "1=:5"] {
            assert!(bad.parse::<Cluster>().is_err(), "{bad}");
        }
    }

    #[test]
    fn options_go_before_the_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("sbk.toml");
        let text = "id = 1\ndata_dir = \"/a\"\ncluster = \"1=m:1\"\nlisten = \"127.0.0.1:9\"\n";
        std::fs::write(&path, text).expect("written");
        let config = path.to_str().expect("UTF-8");
        let settings =
            parse(&["--config", config, "--data-dir", "/b"]).settings().expect("is complete");
        assert_eq!(settings.data_dir, PathBuf::from("/b"));
        assert_eq!((settings.id, settings.listen.port()), (1, 9));
        assert_eq!(settings.cluster.name(), "1=m:1");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let text = |args: &[&str]| parse(args).settings().expect_err("is wrong").to_string();
        assert!(text(&[]).contains("--cluster"));
        assert!(text(&["--cluster", "1=m:1"]).contains("SBK_ID"));
        assert!(text(&["--cluster", "1=m:1", "--id", "1"]).contains("--data-dir"));
        assert!(text(&["--cluster", "1=m:1", "--id", "2"]).contains("--id 2 is not in"));
        assert!(text(&["--config", "/does/not/exist"]).contains("/does/not/exist"));
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("sbk.toml");
        let config = path.to_str().expect("UTF-8");
        std::fs::write(&path, "dta_dir = \"/a\"").expect("written");
        assert!(text(&["--config", config]).contains("dta_dir"));
        std::fs::write(&path, "cluster = \"m\"").expect("written");
        assert!(text(&["--config", config]).contains("'m' is not ID=HOST:PORT"));
    }
}
