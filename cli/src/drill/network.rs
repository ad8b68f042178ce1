//! A network of the drill's own: a namespace for each process, joined by a bridge, so that packets
//! between any two of them can be dropped, delayed or held back.
//!
//! The drill itself moves into new network and mount namespaces first ([`enter`]), with the same
//! process id. So nothing of it can be seen or be in the way outside, and whatever way it ends, the
//! kernel removes all of it: bridge, links, rules, mounts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};

use crate::dev::cluster::Which;
use crate::dev::plan::{Host, Hosts};

/// Tells a process that it has been started in namespaces of its own: its pid.
const INSIDE: &str = "SBKCTL_DRILL_INSIDE";
/// The bridge's address, from which the drill's clients come.
const CLIENTS: &str = "10.77.0.1";
const BRIDGE: &str = "br0";

/// One end of a network path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum End {
    /// A process of the cluster.
    Node(Which),
    /// The drill's own clients.
    Clients,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Node(which) => write!(f, "{which}"),
            End::Clients => f.write_str("clients"),
        }
    }
}

/// What the network does now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Condition {
    /// Paths on which everything is dropped, from the first to the second.
    pub(super) cut: BTreeSet<(End, End)>,
    /// Percent of the packets that a node does not get.
    pub(super) loss: BTreeMap<Which, u64>,
    /// How a node sends.
    pub(super) sending: BTreeMap<Which, Sending>,
}

/// How a node's packets leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sending {
    /// At so many kbit/s.
    Rate(u64),
    /// So many milliseconds late, more or less by half of it.
    Late(u64),
}

/// The network; it is gone when this is dropped.
#[derive(Debug)]
pub struct Network {
    nodes: BTreeMap<Which, Node>,
    rules: BTreeMap<End, String>,
    sending: BTreeMap<Which, Sending>,
}

/// A network namespace. Its holder waits for the end of its standard input, so it ends with the
/// drill.
#[derive(Debug)]
struct Node {
    holder: Child,
    addr: String,
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ended = self.holder.kill();
        let _reaped = self.holder.wait();
    }
}

/// Whether this process is in namespaces of its own.
pub(super) fn is_inside() -> bool {
    std::env::var(INSIDE).is_ok_and(|pid| pid == std::process::id().to_string())
}

/// Why there can be no network of the drill's own here, if so.
pub(super) fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("that needs root".into());
    }
    let probe = "ip link add chaos0 type veth peer name chaos1 && ip link add br0 type bridge && \
                 printf 'table inet t {\\n chain c {\\n type filter hook input priority 0;\\n \
                 numgen random mod 100 < 1 drop\\n }\\n}\\n' | nft -f -";
    let args = ["--net", "--mount", "--", "sh", "-c", probe];
    run("unshare", &args, None).err().map(|e| format!("{e:#}"))
}

/// Starts this program again in namespaces of its own, as the same process. Returns only what kept
/// it from that.
pub(super) fn enter() -> anyhow::Error {
    let start = || {
        let exe = std::env::current_exe().context("finding this binary")?;
        let error = Command::new("unshare")
            .args(["--net", "--mount", "--"])
            .arg(exe)
            .args(std::env::args_os().skip(1))
            .env(INSIDE, std::process::id().to_string())
            .exec();
        Err(error).context("running unshare")
    };
    start().map_or_else(|e| e, |never: std::convert::Infallible| match never {})
}

/// Whether packets can be delayed here (the kernel has netem).
pub(super) fn can_delay() -> bool {
    run("tc", &["qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"], None)
        .and_then(|()| run("tc", &["qdisc", "del", "dev", "lo", "root"], None))
        .is_ok()
}

/// Runs a tool to its end.
pub(super) fn run(program: &str, args: &[&str], input: Option<&str>) -> anyhow::Result<()> {
    let what = || format!("running {program} {}", args.join(" "));
    let mut command = Command::new(program);
    command.args(args).stdout(Stdio::null()).stderr(Stdio::piped());
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child = command.spawn().with_context(what)?;
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        stdin.write_all(input.as_bytes()).with_context(what)?;
    }
    let output = child.wait_with_output().with_context(what)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{program} {}` failed: {}", args.join(" "), said.trim());
    }
    Ok(())
}

impl Node {
    fn new(which: Which) -> anyhow::Result<Self> {
        let mut holder = Command::new("unshare")
            .args(["--net", "--", "sh", "-c", "echo made; read _"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C is for the drill, which ends it when all else has ended.
            .process_group(0)
            .spawn()
            .context("running unshare")?;
        let said = holder.stdout.take().context("a holder has an output")?;
        let addr = match which {
            Which::Master(at) => format!("10.77.0.{}", 11 + at),
            Which::Datanode(at) => format!("10.77.0.{}", 101 + at),
        };
        let node = Self { holder, addr };
        let mut line = String::new();
        BufReader::new(said).read_line(&mut line).context("making a network namespace")?;
        if line.trim() != "made" {
            bail!("no network namespace could be made for {which}");
        }
        Ok(node)
    }

    fn through(&self) -> Vec<String> {
        let net = format!("--net=/proc/{}/ns/net", self.holder.id());
        vec!["nsenter".to_owned(), net, "--".to_owned()]
    }

    fn connect(&self, which: Which) -> anyhow::Result<()> {
        let pid = self.holder.id().to_string();
        let link = match which {
            Which::Master(at) => format!("m{}", at + 1),
            Which::Datanode(at) => format!("d{}", at + 1),
        };
        let peer = ["link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &pid];
        run("ip", &peer, None)?;
        run("ip", &["link", "set", &link, "master", BRIDGE, "up"], None)?;
        let net = format!("{}/24", self.addr);
        self.inside(&["ip", "addr", "add", &net, "dev", "eth0"], None)?;
        self.inside(&["ip", "link", "set", "eth0", "up"], None)?;
        self.inside(&["ip", "link", "set", "lo", "up"], None)
    }

    /// Runs a tool in the namespace.
    fn inside(&self, command: &[&str], input: Option<&str>) -> anyhow::Result<()> {
        let through = self.through();
        let args: Vec<&str> =
            through[1..].iter().map(String::as_str).chain(command.iter().copied()).collect();
        run(&through[0], &args, input)
    }

    fn send(&self, how: Option<Sending>) -> anyhow::Result<()> {
        let all = ["tc", "qdisc", "replace", "dev", "eth0", "root"];
        match how {
            None => self.inside(&["tc", "qdisc", "del", "dev", "eth0", "root"], None),
            Some(Sending::Rate(kbit)) => {
                let rate = format!("{kbit}kbit");
                let tbf = ["tbf", "rate", &rate, "burst", "32kb", "latency", "400ms"];
                self.inside(&[&all[..], &tbf].concat(), None)
            }
            Some(Sending::Late(millis)) => {
                let (delay, jitter) = (format!("{millis}ms"), format!("{}ms", millis / 2));
                let netem = ["netem", "delay", &delay, &jitter];
                self.inside(&[&all[..], &netem].concat(), None)
            }
        }
    }
}

impl Network {
    /// Makes it, for so many masters and datanodes. To be called inside ([`is_inside`]).
    pub(super) fn new(masters: usize, datanodes: usize) -> anyhow::Result<Self> {
        assert!(is_inside(), "the network of the host is left alone");
        run("ip", &["link", "set", "lo", "up"], None)?;
        run("ip", &["link", "add", BRIDGE, "type", "bridge"], None)?;
        run("ip", &["addr", "add", &format!("{CLIENTS}/24"), "dev", BRIDGE], None)?;
        run("ip", &["link", "set", BRIDGE, "up"], None)?;
        let mut nodes = BTreeMap::new();
        let masters = (0..masters).map(Which::Master);
        for which in masters.chain((0..datanodes).map(Which::Datanode)) {
            let node = Node::new(which)?;
            node.connect(which)?;
            nodes.insert(which, node);
        }
        Ok(Self { nodes, rules: BTreeMap::new(), sending: BTreeMap::new() })
    }

    /// The processes' hosts.
    pub(super) fn hosts(&self) -> Hosts {
        let mut hosts = Hosts::default();
        for (which, node) in &self.nodes {
            let host = Host { addr: node.addr.clone(), through: node.through() };
            match which {
                Which::Master(_) => hosts.masters.push(host),
                Which::Datanode(_) => hosts.datanodes.push(host),
            }
        }
        hosts
    }

    /// All that it joins.
    pub(super) fn ends(&self) -> Vec<End> {
        self.nodes.keys().map(|which| End::Node(*which)).chain([End::Clients]).collect()
    }

    /// Makes the network be like that; what is like that already is left alone.
    pub(super) fn apply(&mut self, condition: &Condition) -> anyhow::Result<()> {
        for end in self.ends() {
            let rules = self.rules_of(end, condition);
            if self.rules.get(&end).map_or("", String::as_str) == rules {
                continue;
            }
            let text = format!("flush ruleset\n{rules}");
            match end {
                End::Node(which) => self.nodes[&which].inside(&["nft", "-f", "-"], Some(&text))?,
                End::Clients => run("nft", &["-f", "-"], Some(&text))?,
            }
            self.rules.insert(end, rules);
        }
        for (which, node) in &self.nodes {
            let wanted = condition.sending.get(which).copied();
            if self.sending.get(which).copied() != wanted {
                node.send(wanted)?;
                match wanted {
                    Some(how) => self.sending.insert(*which, how),
                    None => self.sending.remove(which),
                };
            }
        }
        Ok(())
    }

    fn addr(&self, end: End) -> &str {
        match end {
            End::Node(which) => &self.nodes[&which].addr,
            End::Clients => CLIENTS,
        }
    }

    /// What arrives at `end` and is dropped there.
    fn rules_of(&self, end: End, condition: &Condition) -> String {
        let mut drops = String::new();
        for (from, _) in condition.cut.iter().filter(|(_, to)| *to == end) {
            // Writing to a string can't fail.
            let _written = writeln!(drops, "  ip saddr {} drop", self.addr(*from));
        }
        if let End::Node(which) = end
            && let Some(percent) = condition.loss.get(&which)
        {
            let _written = writeln!(drops, "  iif eth0 numgen random mod 100 < {percent} drop");
        }
        if drops.is_empty() {
            return drops;
        }
        format!(
            "table inet chaos {{\n chain in {{\n  type filter hook input priority 0;\n{drops} }}\n}}\n"
        )
    }
}
