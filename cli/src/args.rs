//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::output::Format;
use crate::size::parse_size;

/// sbk: replicated block storage.
#[derive(Debug, Parser)]
#[command(
    name = "sbkctl",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    after_help = "\
Examples:
  sbkctl dev                                  a whole cluster on this machine, a volume ready
  sbkctl volume create db --size 10GiB        returns when the volume serves
  sbkctl volume show db -o json               primary, in-sync replicas, lag, reasons
  sbkctl volume explain db --follow           what was seen, what was decided, and why
  sbkctl drill primary-kill --runs 5          kill primaries under a load that verifies itself

Exit codes: 0 done, 1 refused or failed, 2 usage, 3 no quorum or no leader, 4 timed out waiting."
)]
pub struct Cli {
    /// Where to look for the cluster and how to answer.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// The masters' gRPC addresses, host:port[,host:port...]. Without it: those of the development
    /// cluster named with --dir; else $SBK_MASTERS; else those of the development cluster that runs
    /// in the default directory; else 127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103.
    /// With `dev`, the number of masters to start: 1, 3 or 5 [default: 3, or what the directory has]
    #[arg(long, global = true, value_name = "ADDRS", value_delimiter = ',')]
    pub masters: Vec<String>,
    /// Directory of a development cluster, as made by `sbkctl dev`
    /// [default: sbk/dev below $XDG_STATE_HOME or ~/.local/state]
    #[arg(long, global = true, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// How results are written
    #[arg(short, long, global = true, value_enum, default_value_t)]
    pub output: Format,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Volumes: create, list, show, delete, explain, verify
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Datanodes: list, show
    #[command(subcommand)]
    Node(NodeCommand),
    /// The quorum of masters: status, members
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// A whole cluster on this machine, as real processes, with a volume ready
    Dev(DevArgs),
    /// Run a failure against a cluster under a load that verifies itself
    #[command(subcommand)]
    Drill(DrillCommand),
    /// The healthy, catch-up and rebuild routes on real processes, each told from its trace
    #[command(after_help = "\
Examples:
  sbkctl demo
  sbkctl demo --runs 20

Exit code 1 if a route is not taken as expected.")]
    Demo(DrillArgs),
    /// Five families of recovery scenarios, expected against observed
    #[command(after_help = "\
Examples:
  sbkctl calibrate
  sbkctl calibrate -o json

C1 healthy stays healthy, C2 a short gap catches up, C3 a long gap rebuilds: on real processes. C4 only
a terminal close is success, C5 the order of facts does not change the outcome: on the engine itself.")]
    Calibrate(DrillArgs),
    /// Write a completion script for a shell to standard output
    #[command(after_help = "\
Example:
  sbkctl completions bash > /etc/bash_completion.d/sbkctl")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// `sbkctl volume ...`
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Create a volume; returns when it serves
    #[command(after_help = "\
Examples:
  sbkctl volume create db --size 10GiB
  sbkctl volume create scratch --size 512MiB --replicas 1 --no-wait")]
    Create(CreateArgs),
    /// List all volumes
    #[command(after_help = "Example:\n  sbkctl volume list -o json")]
    List,
    /// Show one volume: primary, epoch, in-sync replicas, what each replica holds, and why
    #[command(after_help = "Example:\n  sbkctl volume show db -o json | jq .primary")]
    Show {
        /// Name or UUID
        volume: String,
    },
    /// Delete a volume and all its data
    #[command(after_help = "Example:\n  sbkctl volume delete scratch --yes")]
    Delete {
        /// Name or UUID
        volume: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Tell what the replicas saw, what they decided and why, in order of time
    #[command(after_help = "\
Examples:
  sbkctl volume explain db
  sbkctl volume explain db --follow -o json

Times are seconds on each node's own clock since boot; nodes on different machines have different
ones.")]
    Explain {
        /// Name or UUID
        volume: String,
        /// Go on telling until interrupted
        #[arg(long)]
        follow: bool,
    },
    /// Compare the replicas: checksums of every region of the committed image
    #[command(after_help = "\
Example:
  sbkctl volume verify db

The volume may be in use: a region that is being written is looked at again. Exit code 1 if replicas
differ or damaged blocks were found.")]
    Verify {
        /// Name or UUID
        volume: String,
        /// How long regions that differ in age may take to become comparable, in seconds
        #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
        timeout: Duration,
    },
}

/// `sbkctl volume create`
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// The volume's name
    pub name: String,
    /// Its size, such as 10GiB or 512MiB; a multiple of 4 KiB
    #[arg(long, value_parser = parse_size)]
    pub size: u64,
    /// Copies, each on a node of its own
    #[arg(long, default_value_t = 3)]
    pub replicas: u32,
    /// Who must have a write before it is acknowledged
    #[arg(long, value_enum, default_value_t)]
    pub durability: Durability,
    /// What "has it" means: synced to disk, or written to the log file
    #[arg(long, value_enum, default_value_t)]
    pub write_ack: WriteAck,
    /// Fewest in-sync replicas with which the volume accepts writes
    /// [default: 1 of 1 or 2 replicas, 2 of 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub min_in_sync: Option<u32>,
    /// Put the copies into different zones
    #[arg(long)]
    pub zone_spread: bool,
    /// Return once the masters have recorded the volume
    #[arg(long)]
    pub no_wait: bool,
    /// How long the volume may take until it serves, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub timeout: Duration,
}

/// When a write is committed.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum Durability {
    /// Every in-sync replica has it
    #[default]
    #[value(name = "sync_all", alias = "sync-all")]
    SyncAll,
    /// A majority of the replicas has it
    #[value(name = "sync_quorum", alias = "sync-quorum")]
    SyncQuorum,
    /// The primary has it
    #[value(name = "best_effort", alias = "best-effort")]
    BestEffort,
}

/// When a replica has a write.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum WriteAck {
    /// It is synced to disk
    #[default]
    Durable,
    /// It is written to the log file: survives a killed process, not a power cut
    Written,
}

/// `sbkctl node ...`
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List all datanodes
    #[command(after_help = "Example:\n  sbkctl node list")]
    List,
    /// Show one datanode and what it holds
    #[command(after_help = "Example:\n  sbkctl node show 127.0.0.1:7301 -o yaml")]
    Show {
        /// Its UUID, the beginning of it, or one of its addresses
        node: String,
    },
}

/// `sbkctl cluster ...`
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Show whether the masters have a quorum and a leader, and what they hold
    #[command(after_help = "\
Example:
  sbkctl cluster status

Exit code 3 if there is no quorum.")]
    Status,
    /// List the masters
    #[command(after_help = "Example:\n  sbkctl cluster members -o json")]
    Members,
}

/// `sbkctl dev`
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  sbkctl dev                                   3 masters, 3 datanodes, volume vol1 of 1 GiB
  sbkctl dev --datanodes 5 --volume db:20GiB --volume log:4GiB
  sbkctl dev --masters 1 --datanodes 1         small
  sbkctl dev --base-port 7100                  masters at 7101.., datanodes at 7301.., NBD at 7501..

The cluster's data, logs and cluster.json (addresses and pids, once all of it serves) are in --dir;
the same directory again finds everything again. Ctrl-C stops it all. A process that is killed from
outside stays dead unless --restart is given; `kill -HUP` to this command starts the dead again.")]
pub struct DevArgs {
    /// Number of datanodes [default: 3, or what the directory has]
    #[arg(long, value_name = "N")]
    pub datanodes: Option<u64>,
    /// A volume to have, NAME:SIZE; may be given more than once [default: vol1:1GiB]
    #[arg(long = "volume", value_name = "NAME:SIZE", value_parser = volume_spec)]
    pub volumes: Vec<VolumeSpec>,
    /// Have no volume
    #[arg(long, conflicts_with = "volumes")]
    pub no_volume: bool,
    /// Start a process again when it dies
    #[arg(long)]
    pub restart: bool,
    /// Use ports from this one on instead of free ones
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1024..=64000))]
    pub base_port: Option<u16>,
    /// Log that a primary keeps for replicas that are away, such as 64MiB: those that missed more
    /// are rebuilt
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub wal_retain: Option<u64>,
    /// How long the cluster may take until it serves, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub timeout: Duration,
}

/// A volume to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeSpec {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
}

/// `sbkctl drill ...`
#[derive(Debug, Subcommand)]
pub enum DrillCommand {
    /// Kill the primary of a volume again and again; the client must see a pause and no error
    #[command(after_help = "\
Examples:
  sbkctl drill primary-kill --runs 20          on a cluster of its own, removed afterwards
  sbkctl drill primary-kill --dir DIR -o json  on the cluster that `sbkctl dev --dir DIR` runs

Each run: load on a node that stays, kill -9 of the primary, the load goes on, the node comes back,
all replicas in sync, every block read back and checked, replicas compared. Exit code 1 if an
acknowledged write was lost, a request failed, or replicas differ.")]
    PrimaryKill(DrillArgs),
    /// Take a replica away and bring it back: catch-up after a short absence, rebuild after a long
    #[command(after_help = "\
Examples:
  sbkctl drill replica-return
  sbkctl drill replica-return --runs 3 -o json")]
    ReplicaReturn(DrillArgs),
}

/// Options of every drill.
#[derive(Clone, Debug, Args)]
pub struct DrillArgs {
    /// How often
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub runs: u32,
    /// How long the load goes on after the failure, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub seconds: Duration,
    /// Requests in flight
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub depth: u32,
    /// Keep the directory of the drill's own cluster
    #[arg(long)]
    pub keep: bool,
}

/// A number of seconds, with fractions.
fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| format!("'{text}' is not a number of seconds"))?;
    Duration::try_from_secs_f64(number).map_err(|e| format!("'{text}' seconds: {e}"))
}

fn volume_spec(text: &str) -> Result<VolumeSpec, String> {
    let (name, size) =
        text.split_once(':').ok_or_else(|| format!("'{text}' is not NAME:SIZE, as in db:10GiB"))?;
    Ok(VolumeSpec { name: name.to_owned(), size: parse_size(size)? })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn values_are_read() {
        assert_eq!(seconds("1.5"), Ok(Duration::from_millis(1500)));
        assert!(seconds("-1").is_err());
        assert!(seconds("1e300").is_err());
        assert!(seconds("soon").is_err());
        let spec = volume_spec("db:1GiB").expect("reads");
        assert_eq!(spec, VolumeSpec { name: "db".into(), size: 1 << 30 });
        assert!(volume_spec("db").is_err());
        assert!(volume_spec("db:big").is_err());
    }

    #[test]
    fn every_command_shows_how_it_is_used() {
        fn leaves(command: &clap::Command, path: &str, without: &mut Vec<String>) {
            let path = format!("{path} {}", command.get_name());
            if command.get_subcommands().next().is_none()
                && !command.is_hide_set()
                && command.get_name() != "help"
                && !command.get_after_help().is_some_and(|h| h.to_string().contains("Example"))
            {
                without.push(path.clone());
            }
            for sub in command.get_subcommands() {
                leaves(sub, &path, without);
            }
        }
        let mut without = Vec::new();
        leaves(&Cli::command(), "", &mut without);
        assert_eq!(without, Vec::<String>::new());
    }
}
