//! `sbkctl volume resize`.

use anyhow::{Context as _, bail};
use sbk_proto::v1::{ResizeVolumeRequest, VolumeInfo};

use super::Context;
use super::volume::{confirm, wait_for};
use crate::args::WaitArgs;
use crate::size::show_size;
use crate::view::{VolumeView, id_text};

/// Asks for the size, and waits for what comes of it.
pub(super) async fn run(
    context: &Context,
    volume: &str,
    size: u64,
    yes: bool,
    wait: WaitArgs,
) -> anyhow::Result<()> {
    let info = context.masters.get_volume(volume).await?;
    let shrink = size < info.size_bytes;
    if shrink && !yes {
        let what = format!(
            "This shrinks volume {} from {} to {} bytes, if nothing is stored beyond that; clients that \
             still use what lies there get errors.",
            info.name, info.size_bytes, size
        );
        confirm(&info.name, "clients that use what lies beyond the new end get errors", &what)?;
    }
    // By UUID: a volume that is created under the name meanwhile is another one.
    let name_or_id = id_text(&info.id);
    let request = ResizeVolumeRequest { name_or_id: name_or_id.clone(), size_bytes: size, shrink };
    let mut info = context.masters.resize_volume(request).await?;
    if !wait.no_wait {
        let what = format!("volume '{}' to have {size} bytes", info.name);
        let decided = |info: &VolumeInfo| info.wished_size_bytes != size;
        info = wait_for(&context.masters, &name_or_id, &what, wait.timeout, decided)
            .await
            .with_context(|| {
                format!("it goes on nevertheless: see `sbkctl volume show {}`", info.name)
            })?;
        check_outcome(&info, size)?;
    }
    let view = VolumeView::of(&info);
    context.output.show(&view, VolumeView::detail)
}

/// What came of the wish.
fn check_outcome(info: &VolumeInfo, size: u64) -> anyhow::Result<()> {
    if info.size_bytes == size {
        return Ok(());
    }
    let (name, has) = (&info.name, show_size(info.size_bytes));
    match info.size_refused.filter(|refused| refused.size_bytes == size) {
        Some(refused) => bail!(
            "volume '{name}' keeps its size of {has}: there is data at byte {}, beyond the new end. Shrink \
             what is on it, trim what lies beyond (`blkdiscard --offset {size}`, or fstrim), and try again",
            refused.offset
        ),
        None => bail!(
            "volume '{name}' has {has}: the resize to {size} bytes was taken back, or another one came \
             after it; see `sbkctl volume show {name}`"
        ),
    }
}

#[cfg(test)]
mod tests {
    use sbk_proto::v1::SizeRefused;

    use super::*;

    #[test]
    fn the_outcome_is_told_apart() {
        let (old, new) = (10 << 20, 5 << 20);
        let volume = |size_bytes, refused: Option<u64>| {
            let size_refused =
                refused.map(|size_bytes| SizeRefused { size_bytes, offset: 6 << 20 });
            VolumeInfo { name: "db".to_owned(), size_bytes, size_refused, ..VolumeInfo::default() }
        };
        check_outcome(&volume(new, None), new).expect("it is done");
        let told = |info| check_outcome(&info, new).expect_err("it is not").to_string();
        let data = told(volume(old, Some(new)));
        assert!(data.contains("data at byte 6291456") && data.contains("10 MiB"), "{data}");
        for other in [volume(old, None), volume(old, Some(4 << 20))] {
            let text = told(other);
            assert!(text.contains("taken back"), "{text}");
        }
    }
}
