//! The command line of a master.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use crate::raft::MemberId;

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
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
                  --cluster 1=10.0.0.1:7101,2=10.0.0.2:7101,3=10.0.0.3:7101"
)]
pub struct Args {
    /// This member's number in --cluster. Never give it to another data directory.
    #[arg(long, env = "SBK_ID", value_parser = clap::value_parser!(u64).range(1..))]
    pub id: MemberId,
    /// Where the vote, the log and the applied state are kept.
    #[arg(long, env = "SBK_DATA_DIR", value_name = "DIR")]
    pub data_dir: PathBuf,
    /// gRPC: members, datanodes, sbkctl.
    #[arg(long, env = "SBK_LISTEN", value_name = "HOST:PORT", default_value = "127.0.0.1:7101")]
    pub listen: SocketAddr,
    /// HTTP, read-only: status, health, metrics.
    #[arg(long, env = "SBK_HTTP", value_name = "HOST:PORT", default_value = "127.0.0.1:7201")]
    pub http: SocketAddr,
    /// Every member of the quorum, the same list for each: ID=HOST:PORT,...
    #[arg(long, env = "SBK_CLUSTER", value_name = "LIST", value_parser = parse_cluster)]
    pub cluster: Cluster,
    /// Log entries after which a snapshot is made and the log is cut.
    #[arg(long, hide = true, default_value_t = 5000, value_parser = clap::value_parser!(u64).range(5..))]
    pub snapshot_after: u64,
    /// How logs are written.
    #[arg(long, env = "SBK_LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,
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

fn parse_cluster(text: &str) -> Result<Cluster, String> {
    let mut members = BTreeMap::new();
    for part in text.split(',') {
        let (id, addr) = part
            .split_once('=')
            .ok_or_else(|| format!("'{part}' is not ID=HOST:PORT, as in 1=127.0.0.1:7101"))?;
        let id: MemberId = id.trim().parse().map_err(|_| format!("'{id}' is not a number"))?;
        if id == 0 {
            return Err("member ids begin at 1".to_owned());
        }
        if !addr
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        {
            return Err(format!("'{addr}' is not HOST:PORT"));
        }
        if members.insert(id, addr.trim().to_owned()).is_some() {
            return Err(format!("member {id} is listed twice"));
        }
    }
    match members.len() {
        1 | 3 | 5 | 7 => Ok(Cluster(members)),
        n => Err(format!("{n} members: a quorum has 1, 3, 5 or 7")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_a_list_of_numbered_addresses() {
        let cluster = parse_cluster("2=b:2,1=a:1,3=c:3").expect("parses");
        assert_eq!(cluster.name(), "1=a:1,2=b:2,3=c:3");
        for bad in ["", "1", "1=a", "x=a:1", "0=a:1", "1=a:1,1=b:2,2=c:3", "1=a:1,2=b:2", "1=:5"] {
            assert!(parse_cluster(bad).is_err(), "{bad}");
        }
    }
}
