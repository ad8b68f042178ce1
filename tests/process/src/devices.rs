//! Block devices for the datanodes of a cluster: loop devices, where this process may make them.

use std::path::{Path, PathBuf};

use sbk_test_support::LoopDevice;

/// So many of `bytes` each, over files in `dir`. `None`, and a line on standard error that says so, if none can be made.
pub fn make(dir: &Path, count: usize, bytes: u64) -> Option<Vec<LoopDevice>> {
    (1..=count).map(|n| LoopDevice::make(&dir.join(format!("device-{n}")), bytes)).collect()
}

/// The same for the options of a cluster: each datanode has `of_each`, the first datanode the first ones.
pub fn paths(devices: &[LoopDevice], of_each: usize) -> Vec<Vec<PathBuf>> {
    let path = |device: &LoopDevice| device.path().to_owned();
    devices.chunks(of_each).map(|devices| devices.iter().map(path).collect()).collect()
}
