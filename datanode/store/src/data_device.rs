//! A raw block device as one of a node's disks, and the replicas that it holds.
//!
//! ```text
//! node                          the node, its disks, and how often it was started
//! probe                         written now and then, to see whether the disk still takes it
//! <volume>.<replica>/...        one directory for each replica
//! ```

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use sbk_device::{Device, DeviceError, FormatOptions, open_exclusive};
use sbk_engine::types::NodeId;
use sbk_wal::{Storage, write_all};

use super::backing::{Backing, BackingSpace, Found, Ours, PROBE, made, name_of, named};
use super::error::StoreError;
use super::identity::{DirId, NEW_NODE, NodeError, NodeRecord, failed};
use super::open::SUPERBLOCK;
use super::reopen::is_out_of_space;
use super::superblock::Identity;

/// A device that this process has to itself: the kernel gives it to nobody else.
#[derive(Debug)]
pub(super) struct DataDevice {
    device: Device,
    id: DirId,
    /// The kernel's number of it.
    number: u64,
}

impl DataDevice {
    /// Looks what is on the device `path`.
    pub(super) fn find(path: &Path, node: Option<NodeId>) -> Result<Found, NodeError> {
        let bottom = open_exclusive(path)?;
        let Some(device) = Device::find(bottom, path, node.map(|node| node.0))? else {
            return Ok(Found::Nothing { there: true });
        };
        let root_dir = root(&device).map_err(failed("read", path))?;
        match NodeRecord::read(root_dir, path)? {
            Some((slots, record)) => {
                let held = Self::held(device, record.dir)?;
                Ok(Found::Ours(Box::new(Ours { held, slots, record })))
            }
            None if is_unused(&device).map_err(failed("clear", path))? => {
                Ok(Found::Nothing { there: true })
            }
            None => {
                let what = "there are files on it, and nothing says whose".to_owned();
                Err(DeviceError::Damaged { path: path.to_owned(), what }.into())
            }
        }
    }

    /// Sets up a device with nothing on it, with the record.
    pub(super) fn make(path: &Path, record: &NodeRecord) -> Result<Arc<dyn Backing>, NodeError> {
        let bottom = open_exclusive(path)?;
        let (id, options) = (record.dir.0, FormatOptions::default());
        let device = Device::make(bottom, path, id, record.node.0, options)?;
        let root = root(&device).map_err(failed("read", path))?;
        record.create(&root, path)?;
        root.sync_dir("").map_err(failed("sync", path))?;
        Self::held(device, record.dir)
    }

    fn held(device: Device, id: DirId) -> Result<Arc<dyn Backing>, NodeError> {
        let path = device.path();
        let number = fs::metadata(path).map_err(failed("look at", path))?.rdev();
        Ok(Arc::new(Self { device, id, number }))
    }

    fn failed(&self, doing: &'static str) -> impl FnOnce(io::Error) -> NodeError {
        failed(doing, self.device.path())
    }
}

fn root(device: &Device) -> io::Result<Arc<dyn Storage>> {
    Ok(Arc::new(device.directory("")?))
}

/// Whether nothing is on a device, for taking it into use was cut short: what that left is removed.
fn is_unused(device: &Device) -> io::Result<bool> {
    let root = root(device)?;
    if root.list("")? == [NEW_NODE] {
        root.remove(NEW_NODE)?;
        root.sync_dir("")?;
    }
    Ok(device.is_empty())
}

impl Backing for DataDevice {
    fn path(&self) -> &Path {
        self.device.path()
    }

    fn id(&self) -> DirId {
        self.id
    }

    fn root(&self) -> io::Result<Arc<dyn Storage>> {
        root(&self.device)
    }

    /// A removal is one record of the device's, so none is ever cut short.
    fn settle(&self) -> Result<(), NodeError> {
        Ok(())
    }

    fn check(&self) -> Result<(), NodeError> {
        self.device.check_size()?;
        let write = || {
            let root = self.root()?;
            let file = match root.open(PROBE) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => root.create(PROBE)?,
                other => other?,
            };
            write_all(&*file, &[&[0; 4096]], 0)?;
            file.sync()
        };
        match write() {
            Err(error) if !is_out_of_space(&error) => Err(self.failed("write")(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn shares(&self) -> Result<u64, NodeError> {
        Ok(self.number)
    }

    fn used_bytes(&self) -> u64 {
        self.device.space().1
    }

    fn space(&self) -> Result<BackingSpace, NodeError> {
        let (free, used) = self.device.space();
        Ok(BackingSpace { free, size: free + used })
    }

    fn replicas(&self) -> Result<Vec<Identity>, NodeError> {
        let root = self.root().map_err(self.failed("read"))?;
        let names = root.list("").map_err(self.failed("list"))?;
        let has_superblock = |replica: &Identity| {
            let found = root.open(&format!("{}/{SUPERBLOCK}", name_of(replica)));
            !found.is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
        };
        Ok(made(self.path(), names.iter().filter_map(|name| named(name)), has_superblock))
    }

    fn storage(&self, replica: &Identity) -> io::Result<Arc<dyn Storage>> {
        Ok(Arc::new(self.device.directory(&name_of(replica))?))
    }

    fn make_place(&self, replica: &Identity) -> Result<(), StoreError> {
        let name = name_of(replica);
        self.device.create_dir(&name).map_err(|source| {
            let path = self.path().join(&name);
            StoreError::Io { doing: "make", path, source }
        })
    }

    fn remove(&self, replica: &Identity) -> Result<(), NodeError> {
        self.device.remove_dir(&name_of(replica)).map_err(self.failed("remove a replica of"))
    }
}
