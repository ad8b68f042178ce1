//! `sbkctl drill`: which drills there are, and what they take.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::seconds;
use crate::drill::load::LoadArgs;
use crate::drill::many::ManyArgs;
use crate::size::parse_size;

/// `sbkctl drill ...`
#[derive(Debug, Subcommand)]
pub enum DrillCommand {
    /// Kill the primary of a volume again and again; the client must see a pause and no error
    #[command(after_help = "\
Examples:
  sbkctl drill primary-kill --runs 20          on a cluster of its own, removed afterwards
  sbkctl drill primary-kill --dir DIR -o json  on the cluster that `sbkctl dev --dir DIR` runs

Each run: load on a node that stays, kill -9 of the primary, the load goes on, the node comes back,
all replicas in sync, every block read back and checked, replicas compared. Told are the longest
answers before, at the kill and at the return, and what the pause consisted of. Exit code 1 if an
acknowledged write was lost, a request failed, or replicas differ.")]
    PrimaryKill(DrillArgs),
    /// Freeze the primary of a volume again and again: it says no more, and does not end
    #[command(after_help = "\
Examples:
  sbkctl drill primary-freeze --runs 20
  sbkctl drill primary-freeze --dir DIR -o json  on the cluster that `sbkctl dev --dir DIR` runs

As primary-kill, but with SIGSTOP, and SIGCONT for its return: a primary that acts on what it knew.")]
    PrimaryFreeze(DrillArgs),
    /// Cut the primary of a volume off from all others again and again, clients included
    #[command(after_help = "\
Example:
  sbkctl drill primary-cut --runs 20

As primary-kill, but its host neither hears nor is heard until its return. It needs root: each process
gets a network namespace of its own, of which nothing is visible outside.")]
    PrimaryCut(DrillArgs),
    /// Move the primary of a volume on purpose, again and again; the client must see no error
    #[command(after_help = "\
Examples:
  sbkctl drill primary-move --runs 20
  sbkctl drill primary-move --dir DIR -o json  on the cluster that `sbkctl dev --dir DIR` runs

Each run: load, the longest answer without a move; load, the move, the longest answer with it; every
block read back and checked, replicas compared.")]
    PrimaryMove(DrillArgs),
    /// Restart all datanodes and masters in order, one after the other; the client must see no error
    #[command(after_help = "\
Examples:
  sbkctl drill rolling-restart
  sbkctl drill rolling-restart --runs 3 -o json

Each run restarts every process once (SIGTERM, and a new one), under load, and waits until all replicas
are in sync before the next. The client is on a node that stays.")]
    RollingRestart(DrillArgs),
    /// Take a replica away and bring it back: catch-up after a short absence, rebuild after a long
    #[command(after_help = "\
Examples:
  sbkctl drill replica-return
  sbkctl drill replica-return --runs 3 -o json")]
    ReplicaReturn(DrillArgs),
    /// Flip bits in the blocks of a volume's primary; the client must read what it wrote
    #[command(after_help = "\
Examples:
  sbkctl drill bit-rot
  sbkctl drill bit-rot --runs 5 -o json

Each run: load, a bit flips in each of 64 blocks on the disk of the primary's node, the load goes on, every
block read back and checked, replicas compared. Told is how many of these blocks the primary found, and how
many it got from another replica; what the load wrote anew before is neither. Exit code 1 if anything was
read wrong, a request failed, or a block was not repaired.")]
    BitRot(DrillArgs),
    /// Have the disk of a volume's primary fail for good, on a node with another disk that serves on
    #[command(after_help = "\
Examples:
  sbkctl drill disk-fail
  sbkctl drill disk-fail --runs 3 -o json

Each run, on a cluster of its own with two disks on each of three nodes: load on two volumes whose primaries
are on one node, on one disk each; the disk of one is gone (EIO); the load goes on until its replicas are made
anew on the other disk; every block read back and checked, replicas compared. Told are the longest answers of
both volumes before and after, when the node said that its disk failed, and when all was in sync again. Exit
code 1 if an acknowledged write was lost, a request failed, replicas differ, or the node did not stay. It
needs root: the disks are loop devices.")]
    DiskFail(DrillArgs),
    /// Fill the disk of one of a volume's nodes from outside, and make room again; the client must see a pause
    #[command(after_help = "\
Examples:
  sbkctl drill disk-full
  sbkctl drill disk-full --runs 3 -o json

Each run, on a cluster of its own with one small disk: load, and beside it a client that writes where nothing
was; the disk is filled up to below its growth watermark by a file that is not sbk's; that client waits, and the
volume says why; the file goes, and all goes on by itself; every block read back and checked, replicas compared.
The disk is of the primary's node and of another one by turns. Exit code 1 if an acknowledged write was lost, a
request failed, anything new was acknowledged while there was no room, a replica left, or replicas differ. It
needs root: the disk is a loop device.")]
    DiskFull(DrillArgs),
    /// Keep a replica away for long, and bring it back: to a delta, and to nothing, for it was replaced
    #[command(after_help = "\
Examples:
  sbkctl drill long-absence
  sbkctl drill long-absence --runs 3 -o json

Each run is two, each on a cluster of its own with a volume that is written to everywhere. First a datanode is
killed, a part of the volume changes until the primary's log no longer reaches back, and the datanode comes back:
it must get what changed, and not all. Then one is killed for as long as it takes until the masters have put
another replica in the place of its own, which must be gone after its return. Told are the bytes that changed and
those that were moved, and how long it took; every block is read back and checked, replicas compared. Exit code
1 if an acknowledged write was lost, a request failed, more was moved, or replicas differ.")]
    LongAbsence(DrillArgs),
    /// Many volumes with many clients, and the datanode with the most primaries is killed
    #[command(after_help = "\
Examples:
  sbkctl drill many                                     200 volumes, 400 connections
  sbkctl drill many --volumes 20 --connections 40 -o json

On a cluster of its own of 3 masters and 3 datanodes, or with --dir on one that `sbkctl dev` runs. A light
load on all volumes, kill -9, the load goes on, the node comes back, all replicas in sync, every block
read back and checked, replicas compared. Told are memory, threads, open files and disk of each process
in every phase, and how long each volume's requests took. Exit code 1 if an acknowledged write was lost,
a request failed, a connection was lost to a node that stayed, or replicas differ.")]
    Many(ManyArgs),
    /// Only the load that verifies itself, on a volume of a cluster whose failures somebody else causes
    #[command(after_help = "\
Example:
  sbkctl drill load db --nbd 127.0.0.1:10809    where `sbkctl attach db --listen 127.0.0.1:10809` runs

It OVERWRITES the volume's first 64 MiB, and is told by lines on its standard input what goes on:

  phase NAME         what is measured from here on counts for this phase
  goes-on [SECONDS]  say so once that time is over and 200 more writes were acknowledged
  whole              say so once all replicas are in sync, and which is primary
  end                end the load, wait until all replicas are in sync, read everything back, compare
                     the replicas, and report

Each is answered with one JSON object on a line, whatever -o says. Exit code 1 if an acknowledged write
was lost, a request failed, replicas differ, or the input ends without `end`.")]
    Load(LoadArgs),
    /// Let whatever can fail fail, for minutes or hours, by a schedule made from a seed
    #[command(after_help = "\
Examples:
  sbkctl drill chaos                           5 minutes of another schedule each time
  sbkctl drill chaos --minutes 60 --seed 7     the schedule of seed 7
  sbkctl drill chaos --faults 20 -o json       so many faults, a summary for programs

A cluster of its own: 3 masters, 4 datanodes, volumes with one, two and three replicas, clients that
write and read all of them. Processes are killed, told to end, stopped and slowed down, one, several or
all of them; primaries are moved, nodes drained;
as root, in network namespaces of the drill's own, there are also partitions, packet loss, slow links
and a full disk. Every few faults all is healed: the volumes must become whole, every block's history
must be linearizable with no acknowledged write lost, and the replicas must be equal. Exit code 1 if
anything is wrong; logs, traces, metrics, histories and data are kept then.")]
    Chaos(ChaosArgs),
}

/// `sbkctl drill chaos`
#[derive(Clone, Debug, Args)]
pub struct ChaosArgs {
    /// For how long faults are caused, in minutes
    #[arg(long, value_name = "M", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_080))]
    pub minutes: u32,
    /// End after so many faults, however long that takes
    #[arg(long, value_name = "N", conflicts_with = "minutes", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub faults: Option<u64>,
    /// The number that the schedule of faults is made from [default: another one each time, told]
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
    /// Where the processes run: each in a network namespace of its own, or all on 127.0.0.1, without
    /// partitions and full disks
    #[arg(long, value_enum, default_value_t)]
    pub network: NetworkMode,
    /// Requests in flight of each client; each volume has three
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub depth: u32,
    /// Bytes a second that the clients of one volume read and write
    #[arg(long, value_name = "SIZE", default_value = "2MiB", value_parser = parse_size)]
    pub pace: u64,
    /// How long all volumes may take to be whole once everything is healed, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = seconds)]
    pub converge: Duration,
    /// Keep the directory of the cluster also when nothing is wrong
    #[arg(long)]
    pub keep: bool,
}

impl ChaosArgs {
    /// What holds where nothing was said.
    pub fn default_values() -> Self {
        Self {
            minutes: 5,
            faults: None,
            seed: None,
            network: NetworkMode::Auto,
            depth: 4,
            pace: 2 << 20,
            converge: Duration::from_secs(120),
            keep: false,
        }
    }
}

/// Where the processes of a drill run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum NetworkMode {
    /// In namespaces if they can be made here, else on 127.0.0.1
    #[default]
    Auto,
    /// In namespaces, or not at all
    Namespaces,
    /// On 127.0.0.1
    Loopback,
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
