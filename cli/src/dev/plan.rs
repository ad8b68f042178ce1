//! What a development cluster consists of: kept in its directory, so that the same directory
//! again is the same cluster at the same addresses.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf, absolute};

use anyhow::{Context, bail};
use sbk_ports::Reserved;
use serde::{Deserialize, Serialize};

use crate::cluster_file::write_atomically;
use crate::error::Usage;

const NAME: &str = "plan.json";
const MOST_DATANODES: u64 = 16;
/// How many there are where nobody says it.
const DATANODES: u64 = 3;

/// The processes and their addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The masters, numbered from 1.
    pub masters: Vec<MasterPlan>,
    /// The datanodes, numbered from 1.
    pub datanodes: Vec<DatanodePlan>,
}

/// One master.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MasterPlan {
    /// Its number.
    pub id: u64,
    /// `host:port` of gRPC.
    pub listen: String,
    /// `host:port` of HTTP.
    pub http: String,
}

/// One datanode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatanodePlan {
    /// Its number.
    pub number: u64,
    /// `host:port` of gRPC.
    pub listen: String,
    /// `host:port` of HTTP.
    pub http: String,
    /// `host:port` of NBD.
    pub nbd: String,
    /// Its block devices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<PathBuf>,
}

/// How many processes are wanted; `None` for what there is, or the default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// Masters.
    pub masters: Option<u64>,
    /// Datanodes.
    pub datanodes: Option<u64>,
    /// First port of a fixed layout.
    pub base_port: Option<u16>,
}

/// A host of its own for each process, where they are not all on 127.0.0.1.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    /// One for each master.
    pub masters: Vec<Host>,
    /// One for each datanode.
    pub datanodes: Vec<Host>,
}

/// Where a process runs.
#[derive(Clone, Debug)]
pub struct Host {
    /// The address that it listens on and is reached at.
    pub addr: String,
    /// The command that runs another one there, such as `nsenter --net=FILE --`; empty for none.
    pub through: Vec<String>,
}

impl Plan {
    /// The plan of a cluster that has hosts of its own: the documented ports on each.
    pub(super) fn on(hosts: &Hosts) -> Self {
        let numbered = |hosts: &[Host]| {
            let addrs: Vec<String> = hosts.iter().map(|h| h.addr.clone()).collect();
            (1..).zip(addrs)
        };
        let masters = numbered(&hosts.masters).map(|(id, addr)| MasterPlan {
            id,
            listen: format!("{addr}:7101"),
            http: format!("{addr}:7201"),
        });
        let datanodes = numbered(&hosts.datanodes).map(|(number, addr)| DatanodePlan {
            number,
            listen: format!("{addr}:7301"),
            http: format!("{addr}:7401"),
            nbd: format!("{addr}:10809"),
            devices: Vec::new(),
        });
        Self { masters: masters.collect(), datanodes: datanodes.collect() }
    }

    /// The plan that `dir` has, if it has one.
    fn load(dir: &Path) -> anyhow::Result<Option<Self>> {
        let path = dir.join(NAME);
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map(Some).with_context(|| {
                format!("reading {}; a cluster can't be found again without it", path.display())
            }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// The plan that `dir` has, extended by what is wanted, or a new one; written to `dir`. `devices`: those of each datanode;
    /// none leaves what the plan has.
    ///
    /// # Errors
    /// If what is wanted can't be had, or contradicts what the directory has.
    pub(super) fn load_or_make(
        dir: &Path,
        wanted: Wanted,
        devices: &[Vec<PathBuf>],
        ports: &mut Reserved,
    ) -> anyhow::Result<Self> {
        let old = Self::load(dir)?;
        let mut plan = Self::fit(old.clone(), wanted, dir, ports)?;
        for (datanode, devices) in plan.datanodes.iter_mut().zip(devices) {
            datanode.devices.clone_from(devices);
        }
        if old.as_ref() != Some(&plan) {
            let text = serde_json::to_vec_pretty(&plan).context("writing JSON")?;
            write_atomically(&dir.join(NAME), &text)?;
        }
        Ok(plan)
    }

    /// The block devices that each datanode of a cluster in `dir` is to have in place of a directory: those that are `given`, an
    /// equal part of them for each, or those that it has. Empty: directories.
    ///
    /// # Errors
    /// If they can't be shared so, or contradict what the directory has: a datanode without what it had would be another one.
    pub(super) fn devices(
        dir: &Path,
        datanodes: Option<u64>,
        given: &[PathBuf],
    ) -> anyhow::Result<Vec<Vec<PathBuf>>> {
        let old = Self::load(dir)?.map(|plan| plan.datanodes);
        let has = old.as_ref().map_or(DATANODES, |old| old.len() as u64);
        let count = datanodes.unwrap_or(has);
        let has_some = old.iter().flatten().any(|datanode| !datanode.devices.is_empty());
        if given.is_empty() {
            if has_some && count > has {
                bail!(
                    "the datanodes of the cluster in {} have block devices; give those of all with \
                     --device, the new ones last",
                    dir.display()
                );
            }
            let devices = old.into_iter().flatten().map(|datanode| datanode.devices);
            return Ok(if has_some { devices.collect() } else { Vec::new() });
        }
        let given: Vec<PathBuf> = given.iter().map(absolute).collect::<Result<_, _>>()?;
        let different: BTreeSet<_> = given.iter().collect();
        if different.len() < given.len() {
            return Err(Usage("--device: give each once".into()).into());
        }
        if count == 0 || !(given.len() as u64).is_multiple_of(count) {
            let text = format!(
                "--device: {} devices can't be shared equally by {count} datanodes",
                given.len()
            );
            return Err(Usage(text).into());
        }
        let of_each = given.len() / count as usize;
        let devices: Vec<_> = given.chunks(of_each).map(<[PathBuf]>::to_vec).collect();
        if old.iter().flatten().zip(&devices).any(|(old, devices)| old.devices != *devices) {
            bail!(
                "the cluster in {} has its disks already; leave --device away, or use another --dir",
                dir.display()
            );
        }
        Ok(devices)
    }

    fn fit(
        old: Option<Plan>,
        wanted: Wanted,
        dir: &Path,
        ports: &mut Reserved,
    ) -> anyhow::Result<Self> {
        if let Some(count) = wanted.masters
            && ![1, 3, 5].contains(&count)
        {
            return Err(Usage(format!("--masters {count}: a quorum has 1, 3 or 5 masters")).into());
        }
        if let Some(count) = wanted.datanodes
            && !(1..=MOST_DATANODES).contains(&count)
        {
            let text = format!("--datanodes {count}: a cluster here has 1 to {MOST_DATANODES}");
            return Err(Usage(text).into());
        }
        let Some(old) = old else {
            let masters = wanted.masters.unwrap_or(3);
            let datanodes = wanted.datanodes.unwrap_or(DATANODES);
            return Self::make(masters, datanodes, wanted.base_port, ports);
        };
        let has = old.masters.len() as u64;
        if let Some(count) = wanted.masters.filter(|count| *count != has) {
            bail!(
                "the cluster in {} has {has} masters, not {count}, and its quorum can't be changed \
                 here; leave --masters away, or use another --dir",
                dir.display()
            );
        }
        let has = old.datanodes.len() as u64;
        let count = wanted.datanodes.unwrap_or(has);
        if count < has {
            bail!(
                "the cluster in {} has {has} datanodes, and fewer would leave data behind; leave \
                 --datanodes away, or use another --dir",
                dir.display()
            );
        }
        if wanted.base_port.is_some() {
            bail!(
                "the cluster in {} has its ports already; leave --base-port away, or use another \
                 --dir",
                dir.display()
            );
        }
        let mut plan = old;
        let mut free = ports.free(3 * (count - has) as usize)?.into_iter();
        for number in has + 1..=count {
            plan.datanodes.push(DatanodePlan::at(number, || free.next())?);
        }
        Ok(plan)
    }

    fn make(
        masters: u64,
        datanodes: u64,
        base: Option<u16>,
        ports: &mut Reserved,
    ) -> anyhow::Result<Self> {
        let mut free = match base {
            Some(_) => Vec::new(),
            None => ports.free((2 * masters + 3 * datanodes) as usize)?,
        }
        .into_iter();
        // A fixed layout: a hundred ports for each kind of listener.
        let mut at = |kind: u16, number: u64| match base {
            Some(base) => Some(base + 100 * kind + number as u16),
            None => free.next(),
        };
        let mut plan = Self { masters: Vec::new(), datanodes: Vec::new() };
        for id in 1..=masters {
            let (listen, http) = (addr(at(0, id))?, addr(at(1, id))?);
            plan.masters.push(MasterPlan { id, listen, http });
        }
        for number in 1..=datanodes {
            let mut kind = 1;
            let next = || {
                kind += 1;
                at(kind, number)
            };
            plan.datanodes.push(DatanodePlan::at(number, next)?);
        }
        Ok(plan)
    }

    /// `--cluster` of every master.
    pub(super) fn cluster(&self) -> String {
        let members: Vec<String> =
            self.masters.iter().map(|m| format!("{}={}", m.id, m.listen)).collect();
        members.join(",")
    }

    /// The masters' addresses.
    pub fn master_addrs(&self) -> Vec<String> {
        self.masters.iter().map(|m| m.listen.clone()).collect()
    }
}

impl DatanodePlan {
    fn at(number: u64, mut port: impl FnMut() -> Option<u16>) -> anyhow::Result<Self> {
        let (listen, http, nbd) = (addr(port())?, addr(port())?, addr(port())?);
        Ok(Self { number, listen, http, nbd, devices: Vec::new() })
    }
}

fn addr(port: Option<u16>) -> anyhow::Result<String> {
    port.map(|port| format!("127.0.0.1:{port}")).context("too few ports are free")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(dir: &Path, wanted: Wanted) -> anyhow::Result<Plan> {
        Plan::load_or_make(dir, wanted, &[], &mut Reserved::default())
    }

    #[test]
    fn the_same_directory_is_the_same_cluster() {
        let dir = tempfile::tempdir().expect("dir");
        let plan = load(dir.path(), Wanted::default()).expect("made");
        assert_eq!((plan.masters.len(), plan.datanodes.len()), (3, 3));
        assert_eq!(load(dir.path(), Wanted::default()).expect("found"), plan);

        let more = Wanted { datanodes: Some(4), ..Wanted::default() };
        let extended = load(dir.path(), more).expect("extended");
        assert_eq!(extended.datanodes[..3], plan.datanodes[..]);
        assert_eq!(extended.datanodes[3].number, 4);

        for wrong in [
            Wanted { masters: Some(1), ..Wanted::default() },
            Wanted { datanodes: Some(3), ..Wanted::default() },
            Wanted { base_port: Some(7100), ..Wanted::default() },
        ] {
            let error = load(dir.path(), wrong).expect_err("contradicts");
            assert!(error.to_string().contains("another --dir"), "{error}");
        }
    }

    #[test]
    fn a_datanode_keeps_its_devices() {
        let dir = tempfile::tempdir().expect("dir");
        let (dir, two) = (dir.path(), Some(2));
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        let refused = |datanodes, given: &[&str]| {
            let refused = Plan::devices(dir, datanodes, &paths(given)).expect_err("refused");
            (crate::error::exit_code(&refused), refused.to_string())
        };
        assert_eq!(Plan::devices(dir, None, &[]).expect("none"), Vec::<Vec<PathBuf>>::new());
        assert_eq!(refused(None, &["/dev/a", "/dev/b"]).0, 2, "there will be three datanodes");
        assert_eq!(refused(two, &["/dev/a", "/dev/a"]).0, 2);
        let four = paths(&["/dev/a", "/dev/b", "/dev/c", "/dev/d"]);
        let devices = Plan::devices(dir, two, &four).expect("two for each");
        assert_eq!(devices, [paths(&["/dev/a", "/dev/b"]), paths(&["/dev/c", "/dev/d"])]);
        let wanted = Wanted { datanodes: two, ..Wanted::default() };
        let plan = Plan::load_or_make(dir, wanted, &devices, &mut Reserved::default());
        assert_eq!(plan.expect("made").datanodes[1].devices, devices[1]);

        for again in [&four[..], &[]] {
            assert_eq!(Plan::devices(dir, None, again).expect("found again"), devices);
        }
        assert!(refused(None, &["/dev/a", "/dev/c", "/dev/b", "/dev/d"]).1.contains("--dir"));
        assert!(refused(None, &["/dev/a", "/dev/b"]).1.contains("--dir"));
        assert!(refused(Some(3), &[]).1.contains("the new ones last"));
        let six = [four, paths(&["/dev/e", "/dev/f"])].concat();
        assert_eq!(Plan::devices(dir, Some(3), &six).expect("one more")[..2], devices);
    }

    #[test]
    fn a_cluster_with_directories_keeps_them() {
        let dir = tempfile::tempdir().expect("dir");
        load(dir.path(), Wanted { datanodes: Some(1), ..Wanted::default() }).expect("made");
        let refused = Plan::devices(dir.path(), None, &["/dev/a".into()]).expect_err("refused");
        assert!(refused.to_string().contains("has its disks already"), "{refused}");
    }

    #[test]
    fn a_fixed_layout_is_as_documented() {
        let dir = tempfile::tempdir().expect("dir");
        let wanted = Wanted { base_port: Some(7100), ..Wanted::default() };
        let plan = Plan::fit(None, wanted, dir.path(), &mut Reserved::default()).expect("made");
        assert_eq!(plan.cluster(), "1=127.0.0.1:7101,2=127.0.0.1:7102,3=127.0.0.1:7103");
        assert_eq!(plan.masters[0].http, "127.0.0.1:7201");
        let node = &plan.datanodes[1];
        assert_eq!(
            (node.listen.as_str(), node.http.as_str(), node.nbd.as_str()),
            ("127.0.0.1:7302", "127.0.0.1:7402", "127.0.0.1:7502")
        );
    }

    #[test]
    fn hosts_of_their_own_have_the_documented_ports() {
        let host = |addr: &str| Host { addr: addr.into(), through: Vec::new() };
        let hosts = Hosts { masters: vec![host("10.0.0.1")], datanodes: vec![host("10.0.0.2")] };
        let plan = Plan::on(&hosts);
        assert_eq!(plan.cluster(), "1=10.0.0.1:7101");
        assert_eq!(plan.datanodes[0].nbd, "10.0.0.2:10809");
    }

    #[test]
    fn impossible_numbers_are_refused() {
        let dir = tempfile::tempdir().expect("dir");
        for wrong in [
            Wanted { masters: Some(2), ..Wanted::default() },
            Wanted { datanodes: Some(0), ..Wanted::default() },
        ] {
            let error =
                Plan::fit(None, wrong, dir.path(), &mut Reserved::default()).expect_err("refused");
            assert_eq!(crate::error::exit_code(&error), 2, "{error}");
        }
    }
}
