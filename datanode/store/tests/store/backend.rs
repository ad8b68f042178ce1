//! What a store is tried on: a simulated disk with files, or with a block device that holds them; plain or
//! encrypted.

use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use sbk_device::{Device, FormatOptions};
use sbk_sealed::{KeyRing, Sealed};
use sbk_wal::{Memory, Owner, Storage};
use uuid::Uuid;

/// Where the files are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    /// On the simulated disk.
    Files,
    /// The same, encrypted.
    Sealed,
    /// On a block device, which is the one file of the simulated disk.
    Device,
    /// On one, encrypted.
    SealedDevice,
}

impl Backend {
    fn is_device(self) -> bool {
        matches!(self, Self::Device | Self::SealedDevice)
    }
}

/// The simulated disk.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    pub(crate) memory: Memory,
    backend: Backend,
}

/// The name of the block device.
const DEVICE: &str = "device";
/// So few that chunks are used again and again.
const DEVICE_BYTES: u64 = 14 << 20;
/// So small that snapshots are frequent.
const JOURNAL_BYTES: u64 = 24 << 10;
const DIR: &str = "replica";
const OWNER: Owner = Owner([0xee; 32]);

fn keys() -> KeyRing {
    KeyRing::parse(&"5e".repeat(32), Path::new("keys")).expect("a key")
}

impl Deref for Disk {
    type Target = Memory;
    fn deref(&self) -> &Memory {
        &self.memory
    }
}

impl Disk {
    /// An empty disk.
    pub(crate) fn new(backend: Backend, seed: u64) -> Self {
        let memory = Memory::new(seed);
        if backend.is_device() {
            let file = memory.create(DEVICE).expect("a device");
            file.set_len(DEVICE_BYTES).expect("its size");
            file.sync().and_then(|()| memory.sync_dir("")).expect("it is there");
        }
        Self { memory, backend }
    }

    /// A copy of the disk as it is now.
    pub(crate) fn fork(&self) -> Self {
        Self { memory: self.memory.fork(), backend: self.backend }
    }

    /// The device.
    pub(crate) fn device(&self) -> Result<Device, String> {
        let file = self.memory.open(DEVICE).map_err(|e| e.to_string())?;
        let (path, node) = (Path::new(DEVICE), Uuid::from_u128(0xd0));
        let found = Device::find(Arc::clone(&file), path, Some(node)).map_err(|e| e.to_string())?;
        let options = FormatOptions { journal_bytes: Some(JOURNAL_BYTES) };
        let make = || Device::make(file, path, Uuid::new_v4(), node, options);
        found.map_or_else(make, Ok).map_err(|e| e.to_string())
    }

    /// The replica's files, as a process sees them that starts now.
    pub(crate) fn storage(&self) -> Result<Arc<dyn Storage>, String> {
        let files: Arc<dyn Storage> = if self.backend.is_device() {
            let device = self.device()?;
            device.create_dir(DIR).map_err(|e| format!("{DEVICE}: {e}"))?;
            Arc::new(device.directory(DIR).map_err(|e| format!("{DEVICE}: {e}"))?)
        } else {
            Arc::new(self.memory.clone())
        };
        if matches!(self.backend, Backend::Files | Backend::Device) {
            return Ok(files);
        }
        let keys = keys();
        let sealed = match Sealed::is_on(&*files).map_err(|e| format!("seal: {e}"))? {
            true => Sealed::open(files, OWNER, Some(&keys)),
            false => Sealed::create(files, OWNER, &keys),
        };
        Ok(Arc::new(sealed.map_err(|e| e.to_string())?))
    }
}
