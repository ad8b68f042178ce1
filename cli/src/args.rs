//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use sbk_engine::authority::limits::{MAX_RATE, MIN_BANDWIDTH, MIN_IOPS};
use sbk_engine::authority::placement::check_request;
use sbk_engine::authority::{self, VolumeRequest};

use crate::attach::{AttachArgs, DetachArgs};
use crate::output::Format;
use crate::size::parse_size;

mod drill;

pub use drill::{ChaosArgs, DrillArgs, DrillCommand, NetworkMode};

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
    /// Volumes: create, list, show, delete, limit, move, replace, attachments, detach, explain, verify, scrub
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Datanodes: list, show, drain, undrain, remove
    #[command(subcommand)]
    Node(NodeCommand),
    /// The quorum of masters: status, members
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Serve a volume at a socket of this machine, wherever its primary is
    #[command(after_help = "\
Examples:
  sbkctl attach db                                        at a unix socket, which it names
  sbkctl attach db --listen 127.0.0.1:10810
  sbkctl attach db --shared --socket /run/db.sock
  sbkctl attach db --device /dev/nbd0                     a block device, for root

Runs until Ctrl-C, SIGTERM or `sbkctl detach`: then what is under way is answered, all that was
acknowledged is made durable, and exit code 0 says so. Clients see a pause and no error while
primaries, datanodes or masters fail.")]
    Attach(AttachArgs),
    /// End an attachment of this machine, with all that was acknowledged durable
    #[command(after_help = "Example:\n  sbkctl detach db")]
    Detach(DetachArgs),
    /// A whole cluster on this machine, as real processes, with a volume ready
    Dev(DevArgs),
    /// Run a failure against a cluster under a load that verifies itself
    #[command(subcommand)]
    Drill(DrillCommand),
    /// The healthy, catch-up and delta routes on real processes, each told from its trace
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

C1 healthy stays healthy, C2 a short gap catches up, C3 a long gap gets what changed: on real processes. C4
only a terminal close is success, C5 the order of facts does not change the outcome: on the engine itself.")]
    Calibrate(DrillArgs),
    /// Take a recorded run through the engine again and compare every decision
    #[command(after_help = "\
Examples:
  sbkctl volume explain db --save db.recording
  sbkctl replay db.recording
  sbkctl replay db.recording --export-case db.yaml

A datanode also leaves recordings in `recordings/` in its data directory, when a store fails or an
invariant is broken. Exit code 1 if something differs, or the file is no whole recording.")]
    Replay {
        /// The recording
        file: PathBuf,
        /// Also write what the recovery engine of each primary was told as conformance cases: to a
        /// new file, or one file each in a directory that exists
        #[arg(long, value_name = "PATH")]
        export_case: Option<PathBuf>,
    },
    /// Ask a page of a master or datanode, or whether an NBD server is there, as health checks do
    #[command(after_help = "\
Examples:
  sbkctl health http://127.0.0.1:7201/readyz
  sbkctl health nbd://127.0.0.1:10809

Exit code 0 if the answer is 200, or the greeting of an NBD server; 1 if it is not, or nobody answers
within 5 s. Of an address alone /healthz is asked.")]
    Health {
        /// http://HOST:PORT/PAGE or nbd://HOST:PORT
        url: String,
    },
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
    /// Give up members that are gone for good, with the writes that only they held
    #[command(after_help = "\
Examples:
  sbkctl volume recover db --accept-data-loss --node-off 3f2a --node-off 127.0.0.1:7303
  sbkctl volume recover db --accept-data-loss --node-off 3f2a --yes -o json

For a volume that waits for in-sync replicas which won't come back. Of the replicas that are left, the
one that holds most goes on alone, and others are brought in sync with it. Every client that was
attached gets I/O errors until it attaches again.

Every replica of the volume that doesn't answer must be named. Refused while a named node is heard,
or while an in-sync replica is left. Switch the nodes off first: a primary that still runs there goes
on answering the clients that reach it.")]
    Recover {
        /// Name or UUID
        volume: String,
        /// Say that acknowledged writes may be lost
        #[arg(long, required = true)]
        accept_data_loss: bool,
        /// A node that is off for good: its UUID, the beginning of it, or one of its addresses; may
        /// be given more than once
        #[arg(long = "node-off", value_name = "NODE")]
        nodes_off: Vec<String>,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Replace a replica by another, as one whose disk is damaged: rebuilt and in sync before the old
    /// one goes, if another node has room; else on its own node, when the others are enough
    #[command(after_help = "\
Examples:
  sbkctl volume replace db --node 8dc3336d
  sbkctl volume replace db --node 10.0.0.3:7301 --yes --no-wait

The replica's data is removed, in the end.")]
    Replace {
        /// Name or UUID
        volume: String,
        /// The node whose replica is to go: its UUID, the beginning of it, or one of its addresses
        #[arg(long)]
        node: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// Whether to wait
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Move a replica to another node: it is rebuilt there and joins, then the old one goes; or move
    /// the primary's role to another in-sync replica
    #[command(after_help = "\
Examples:
  sbkctl volume move db --from 8dc3336d --to 10.0.0.4:7301
  sbkctl volume move db --primary-to 10.0.0.4:7301

A replica that is primary hands that over first. Clients see a pause of a fraction of a second, and no
error. A handover that can't be done yet waits, and `volume show` says for what; naming the node that
is primary takes it back.")]
    #[command(group(clap::ArgGroup::new("what").required(true).args(["from", "primary_to"])))]
    Move {
        /// Name or UUID
        volume: String,
        /// The node that holds the replica: its UUID, the beginning of it, or one of its addresses
        #[arg(long, value_name = "NODE", requires = "to")]
        from: Option<String>,
        /// The node that is to hold it
        #[arg(long, value_name = "NODE", requires = "from")]
        to: Option<String>,
        /// The node whose replica is to be primary, or that replica's UUID
        #[arg(long, value_name = "NODE|REPLICA")]
        primary_to: Option<String>,
        /// Whether to wait
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Give a volume another size, while it is in use
    #[command(after_help = "\
Examples:
  sbkctl volume resize db 20GiB
  sbkctl volume resize db 5GiB --yes

Growing needs room on the nodes of all its replicas. It shrinks only if nothing is stored beyond the new end:
trim that first (shrink the file system, then blkdiscard or fstrim). If there is data the volume keeps its
size. Clients that are connected see another size when they connect again; after a shrink their requests
beyond the end fail. The size that the volume has takes back a resize that is still under way.")]
    Resize {
        /// Name or UUID
        volume: String,
        /// The new size, such as 20GiB; a multiple of 4 KiB
        #[arg(value_parser = parse_size)]
        size: u64,
        /// Do not ask whether it may shrink
        #[arg(long)]
        yes: bool,
        /// Whether to wait
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Limit what a volume's clients may do, all together: at once, for a volume in use too
    #[command(after_help = "\
Examples:
  sbkctl volume limit db --iops 2000 --bandwidth 100MiB
  sbkctl volume limit db --iops 500 --burst 30
  sbkctl volume limit db --iops none --bandwidth none

What is not named stays as it is. Requests beyond a limit wait, in order, and do not fail. A read, write,
trim, zero or look at holes is one request; bytes are those read and written; flushes are free.")]
    #[command(group(clap::ArgGroup::new("limits").required(true).multiple(true).args(["iops", "bandwidth", "burst"])))]
    Limit {
        /// Name or UUID
        volume: String,
        /// What changes
        #[command(flatten)]
        limits: LimitArgs,
    },
    /// Tell what the replicas saw, what they decided and why, in order of time
    #[command(after_help = "\
Examples:
  sbkctl volume explain db
  sbkctl volume explain db --follow -o json
  sbkctl volume explain db --save db.recording

First the last failover as a story, with the seconds since the masters' decision; then every decision,
with the seconds since the first. Clocks of different machines are compared as far as asking them
allows: some milliseconds.")]
    Explain {
        /// Name or UUID
        volume: String,
        /// Go on telling until interrupted
        #[arg(long)]
        follow: bool,
        /// Save what the replicas' engines were told and did to a new file, for `sbkctl replay`
        #[arg(long, value_name = "FILE", conflicts_with = "follow")]
        save: Option<PathBuf>,
    },
    /// Show who has the volume attached: sessions of NBD clients and their nodes
    #[command(after_help = "\
Example:
  sbkctl volume attachments db

An exclusive attachment (NBD export NAME,exclusive) has the volume to itself. A session whose node is not
known has not been connected since the primary changed: its node may be cut off.")]
    Attachments {
        /// Name or UUID
        volume: String,
        /// How long to wait for a primary that tells, in seconds
        #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
        timeout: Duration,
    },
    /// End all attachments of the volume, also of clients whose node is cut off
    #[command(after_help = "\
Examples:
  sbkctl volume detach db
  sbkctl volume detach db --session 5c0ffee5-0b1a-4f0e-9d7e-2f4c2a6f8a11 --yes

The clients get I/O errors for all that is in flight and all that comes, until they attach again. When the
command is done, nothing of theirs can reach the volume any more, whatever happens to its primary. While
the volume has no primary it waits for one. Clients that attach after the command was given keep the volume.")]
    Detach {
        /// Name or UUID
        volume: String,
        /// Only if this session is among those that have the volume (all of them are ended)
        #[arg(long, value_name = "UUID")]
        session: Option<String>,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// How long to wait for the primary, in seconds
        #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
        timeout: Duration,
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
    /// Read all that the in-sync replicas hold, and tell which blocks are damaged on which node
    #[command(after_help = "\
Examples:
  sbkctl volume scrub db
  sbkctl volume scrub db --rate 0 -o json
  sbkctl volume scrub db --repair

The volume may be in use. Reads what was ever written, region by region (1 MiB), on all in-sync replicas at
the same time. With --repair the primary logs each damaged block again as a replica holds it that has it
sound, and the next checkpoint of each replica writes it. Exit code 1 if damaged blocks were found (with
--repair: and not all repaired), or if a replica could not be read.")]
    Scrub {
        /// Name or UUID
        volume: String,
        /// Most bytes a second that are read of each replica, such as 64MiB; 0 for no limit
        #[arg(long, value_name = "BYTES", default_value = "64MiB", value_parser = parse_size)]
        rate: u64,
        /// Have the primary repair what is damaged
        #[arg(long)]
        repair: bool,
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
    /// Fewest in-sync replicas with which the volume accepts writes; not with sync_quorum
    /// [default: 1 of 1 or 2 replicas, 2 of 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub min_in_sync: Option<u32>,
    /// Put the copies into different zones
    #[arg(long)]
    pub zone_spread: bool,
    /// Encrypt each copy where it lies; the datanodes need a --key-file
    #[arg(long)]
    pub encrypt: bool,
    /// What its clients may do, all together
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Return once the masters have recorded the volume
    #[arg(long)]
    pub no_wait: bool,
    /// How long the volume may take until it serves, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub timeout: Duration,
}

/// What the clients of a volume may do, all of them together.
#[derive(Clone, Copy, Debug, Args)]
pub struct LimitArgs {
    /// Requests a second, 10 or more, or none for any number
    #[arg(long, value_name = "N|none", value_parser = iops)]
    pub iops: Option<u64>,
    /// Bytes read and written a second, such as 100MiB, 2MiB or more; or none for any number
    #[arg(long, value_name = "SIZE|none", value_parser = bandwidth)]
    pub bandwidth: Option<u64>,
    /// How many seconds' worth of both may be saved up while less is used, 1 to 3600 [default: 1]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub burst: Option<u32>,
}

/// Whether to wait until it is done.
#[derive(Clone, Copy, Debug, Args)]
pub struct WaitArgs {
    /// Return once the masters have recorded it
    #[arg(long)]
    pub no_wait: bool,
    /// How long it may take, in seconds; it goes on if that was too short
    #[arg(long, value_name = "SECONDS", default_value = "3600", value_parser = seconds)]
    pub timeout: Duration,
}

/// When a write is committed.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum Durability {
    /// Every in-sync replica has it
    #[default]
    #[value(name = "sync_all", alias = "sync-all")]
    SyncAll,
    /// A majority of the voters has it: a slow or dead minority costs nothing
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
    /// Move all primaries and replicas away from a node, and place no more there
    #[command(after_help = "\
Example:
  sbkctl node drain 127.0.0.1:7301

It goes on when this command is interrupted, until `sbkctl node undrain`.")]
    Drain {
        /// Its UUID, the beginning of it, or one of its addresses
        node: String,
        /// Whether to wait
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Let a drained node hold replicas again
    #[command(after_help = "Example:\n  sbkctl node undrain 127.0.0.1:7301")]
    Undrain {
        /// Its UUID, the beginning of it, or one of its addresses
        node: String,
    },
    /// Give up a node that is silent for good: its replicas are replaced at once, then it is forgotten
    #[command(after_help = "\
Example:
  sbkctl node remove 8dc3336d --yes

Should it come back, what it holds is kept and reported, and not used.")]
    Remove {
        /// Its UUID, the beginning of it, or one of its addresses
        node: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// Whether to wait
        #[command(flatten)]
        wait: WaitArgs,
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
    /// What volumes may claim on each datanode, such as 2TiB; they take only what is written [default: what
    /// the file system has]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub capacity: Option<u64>,
    /// A block device for a datanode in place of a directory; may be given more than once. The first datanode has the
    /// first ones, and each as many [default: what the directory has]
    #[arg(long = "device", value_name = "PATH")]
    pub devices: Vec<PathBuf>,
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

/// 0 for `none`.
fn iops(text: &str) -> Result<u64, String> {
    if text == "none" {
        return Ok(0);
    }
    let number = text.parse().map_err(|_| format!("'{text}' is neither a number nor none"))?;
    in_range(text, number, MIN_IOPS)
}

/// 0 for `none`.
fn bandwidth(text: &str) -> Result<u64, String> {
    if text == "none" { Ok(0) } else { in_range(text, parse_size(text)?, MIN_BANDWIDTH) }
}

fn in_range(text: &str, value: u64, least: u64) -> Result<u64, String> {
    match (least..=MAX_RATE).contains(&value) {
        true => Ok(value),
        false => Err(format!("'{text}' can't be: give {least} to {MAX_RATE}, or none")),
    }
}

/// A number of seconds, with fractions.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| format!("'{text}' is not a number of seconds"))?;
    Duration::try_from_secs_f64(number).map_err(|e| format!("'{text}' seconds: {e}"))
}

fn volume_spec(text: &str) -> Result<VolumeSpec, String> {
    let (name, size) =
        text.split_once(':').ok_or_else(|| format!("'{text}' is not NAME:SIZE, as in db:10GiB"))?;
    let spec = VolumeSpec { name: name.to_owned(), size: parse_size(size)? };
    // What the masters would refuse is better known before a whole cluster was started for it.
    let request = VolumeRequest {
        name: spec.name.clone(),
        size_bytes: spec.size,
        replicas: 1,
        durability: authority::Durability::SyncAll,
        write_ack: authority::WriteAck::Durable,
        min_in_sync: None,
        zone_spread: false,
        encrypted: false,
        limits: authority::Limits::default(),
    };
    check_request(&request).map_err(|refusal| refusal.to_string())?;
    Ok(spec)
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
        assert_eq!([iops("none"), iops("10"), bandwidth("2MiB")], [Ok(0), Ok(10), Ok(2 << 20)]);
        for bad in ["9", "0", "-1", "many", "99999999999999"] {
            assert!(iops(bad).is_err(), "{bad}");
        }
        assert!(
            bandwidth("0").is_err() && bandwidth("1MiB").is_err() && bandwidth("2TiB").is_err()
        );
        let spec = volume_spec("db:1GiB").expect("reads");
        assert_eq!(spec, VolumeSpec { name: "db".into(), size: 1 << 30 });
        assert!(volume_spec("db").is_err());
        assert!(volume_spec("db:big").is_err());
        assert!(volume_spec("DB:1GiB").is_err());
        assert!(volume_spec("db:1000").is_err());
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
