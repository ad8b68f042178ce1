//! Names of exports.

use sbk_engine::types::{BLOCK_SIZE, VolumeId};

use crate::catalogue::{Catalogue, Volume};
use crate::frontend::Frontends;

/// A volume as an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Export {
    pub(super) volume: VolumeId,
    /// NAME@UUID: a client that connects again by it never reaches another volume of that name.
    pub(super) name: String,
    pub(super) bytes: u64,
    /// For people.
    pub(super) description: String,
    /// Whether its client has the volume to itself.
    pub(super) exclusive: bool,
}

/// Behind a name: the client wants the volume for itself.
const EXCLUSIVE: &str = ",exclusive";

fn export(volume: &Volume) -> Export {
    let description = match &volume.config {
        Some(config) => {
            format!("sbk volume, {} replicas, {}", config.replicas.len(), config.durability)
        }
        None => "sbk volume".to_owned(),
    };
    Export {
        volume: volume.id,
        name: format!("{}@{}", volume.name, volume.id),
        bytes: volume.published_blocks() * BLOCK_SIZE,
        description,
        exclusive: false,
    }
}

/// A volume that is there.
pub(super) fn of(catalogue: &Catalogue, volume: VolumeId) -> Option<Export> {
    catalogue.volumes.get(&volume).filter(|volume| !volume.deleted).map(|volume| export(volume))
}

/// The export that a client means by NAME or NAME@UUID, and perhaps `,exclusive`. An empty name means
/// the only volume.
pub(super) fn find(frontends: &Frontends, catalogue: &Catalogue, name: &str) -> Option<Export> {
    let export = wanted(catalogue, name)?;
    Some(Export { exclusive: export.exclusive || frontends.is_exclusive(), ..export })
}

fn wanted(catalogue: &Catalogue, name: &str) -> Option<Export> {
    let Some(plain) = name.strip_suffix(EXCLUSIVE) else { return find_volume(catalogue, name) };
    let export = find_volume(catalogue, plain)?;
    Some(Export { name: export.name + EXCLUSIVE, exclusive: true, ..export })
}

fn find_volume(catalogue: &Catalogue, name: &str) -> Option<Export> {
    let live = || catalogue.volumes.values().filter(|volume| !volume.deleted);
    if name.is_empty() {
        let mut all = live();
        return match (all.next(), all.next()) {
            (Some(only), None) => Some(export(only)),
            _ => None,
        };
    }
    let found = match name.split_once('@') {
        None => catalogue.by_name(name).map(AsRef::as_ref),
        Some((name, id)) => {
            let id: VolumeId = id.parse().ok()?;
            catalogue.volumes.get(&id).map(AsRef::as_ref).filter(|v| v.name == name && !v.deleted)
        }
    };
    found.map(export)
}

/// Names to list.
pub(super) fn names(catalogue: &Catalogue) -> Vec<String> {
    catalogue.volumes.values().filter(|v| !v.deleted).map(|v| v.name.clone()).collect()
}
