//! `sbkctl volume create | list | show | limit | delete`, and where the others are.

use std::io::{BufRead, IsTerminal, Write};
use std::time::Duration;

use anyhow::{Context as _, bail};
use sbk_master_client::MasterClient;
use sbk_proto::v1::{self, CreateVolumeRequest, SetLimitsRequest, VolumeInfo};
use serde::Serialize;
use uuid::Uuid;

use super::{Context, projection};
use crate::args::{CreateArgs, Durability, LimitArgs, VolumeCommand, WriteAck};
use crate::error::Usage;
use crate::progress::Progress;
use crate::view::{VolumeView, id_text, volume_table};
use crate::wait::{self, Look};

/// Runs the command.
pub async fn run(context: &Context, command: VolumeCommand) -> anyhow::Result<()> {
    match command {
        VolumeCommand::Create(args) => create(context, args).await,
        VolumeCommand::List => {
            let volumes = context.masters.list_volumes().await?.volumes;
            let views: Vec<VolumeView> = volumes.iter().map(VolumeView::of).collect();
            context.output.show(&views, |views| volume_table(views))
        }
        VolumeCommand::Show { volume } => {
            let view = projection::volume(&context.masters, &volume).await?;
            context.output.show(&view, VolumeView::detail)
        }
        VolumeCommand::Delete { volume, yes } => delete(context, &volume, yes).await,
        VolumeCommand::Recover { volume, accept_data_loss: _, nodes_off, yes } => {
            super::recover::run(context, &volume, &nodes_off, yes).await
        }
        VolumeCommand::Replace { volume, node, yes, wait } => {
            super::moves::replace(context, &volume, &node, yes, wait).await
        }
        VolumeCommand::Move { volume, from, to, primary_to, wait } => {
            match (from, to, primary_to) {
                (_, _, Some(to)) => super::moves::move_primary(context, &volume, &to, wait).await,
                (Some(from), Some(to), None) => {
                    super::moves::move_replica(context, &volume, &from, &to, wait).await
                }
                (Some(_), None, None) | (None, _, None) => {
                    Err(Usage("say what is to move: --from and --to, or --primary-to".into())
                        .into())
                }
            }
        }
        VolumeCommand::Resize { volume, size, yes, wait } => {
            super::resize::run(context, &volume, size, yes, wait).await
        }
        VolumeCommand::Limit { volume, limits } => {
            let LimitArgs { iops, bandwidth, burst } = limits;
            let request =
                SetLimitsRequest { name_or_id: volume, iops, bandwidth, burst_seconds: burst };
            let view = VolumeView::of(&context.masters.set_limits(request).await?);
            context.output.show(&view, VolumeView::detail)
        }
        VolumeCommand::Explain { volume, follow, save } => match save {
            Some(path) => super::explain::save(context, &volume, &path).await,
            None => super::explain::run(context, &volume, follow).await,
        },
        VolumeCommand::Attachments { volume, timeout } => {
            super::attachments::show(context, &volume, timeout).await
        }
        VolumeCommand::Detach { volume, session, yes, timeout } => {
            super::attachments::detach(context, &volume, session.as_deref(), yes, timeout).await
        }
        VolumeCommand::Verify { volume, timeout } => {
            super::verify::run(context, &volume, timeout).await
        }
        VolumeCommand::Scrub { volume, rate, repair } => {
            super::scrub::run(context, &volume, rate, repair).await
        }
    }
}

/// A create that may be asked for again: its id is drawn once.
pub(crate) fn create_request(name: &str, size: u64, replicas: u32) -> CreateVolumeRequest {
    CreateVolumeRequest {
        id: Uuid::new_v4().as_bytes().to_vec().into(),
        name: name.to_owned(),
        size_bytes: size,
        replicas,
        durability: v1::Durability::SyncAll.into(),
        write_ack: v1::WriteAck::Durable.into(),
        min_in_sync: 0,
        zone_spread: false,
        encrypted: false,
        limits: None,
    }
}

async fn create(context: &Context, args: CreateArgs) -> anyhow::Result<()> {
    let mut request = create_request(&args.name, args.size, args.replicas);
    let durability = match args.durability {
        Durability::SyncAll => v1::Durability::SyncAll,
        Durability::SyncQuorum => v1::Durability::SyncQuorum,
        Durability::BestEffort => v1::Durability::BestEffort,
    };
    let write_ack = match args.write_ack {
        WriteAck::Durable => v1::WriteAck::Durable,
        WriteAck::Written => v1::WriteAck::Written,
    };
    request.set_durability(durability);
    request.set_write_ack(write_ack);
    request.min_in_sync = args.min_in_sync.unwrap_or(0);
    request.zone_spread = args.zone_spread;
    request.encrypted = args.encrypt;
    let LimitArgs { iops, bandwidth, burst } = args.limits;
    request.limits = Some(v1::Limits {
        iops: iops.unwrap_or(0),
        bandwidth: bandwidth.unwrap_or(0),
        burst_seconds: burst.unwrap_or(0),
    });
    let created = context.masters.create_volume(request).await?;
    let info = if args.no_wait {
        created
    } else {
        wait_until_serving(&context.masters, &created, args.timeout).await.with_context(|| {
            format!(
                "volume '{0}' was created but does not serve yet; it will as soon as it can: see \
                 `sbkctl volume show {0}`",
                args.name
            )
        })?
    };
    let view = VolumeView::of(&info);
    context.output.show(&view, VolumeView::detail)
}

/// Waits until the volume answers reads and writes.
///
/// # Errors
/// [`wait::TimedOut`] with the masters' reason, or their refusal.
pub(crate) async fn wait_until_serving(
    masters: &MasterClient,
    volume: &VolumeInfo,
    limit: Duration,
) -> anyhow::Result<VolumeInfo> {
    let what = format!("volume '{}' to serve", volume.name);
    wait_for(masters, &id_text(&volume.id), &what, limit, |info| info.serving).await
}

/// Waits until what the masters tell of a volume is `right`. While no master can be asked, it goes
/// on waiting.
pub(crate) async fn wait_for(
    masters: &MasterClient,
    volume: &str,
    what: &str,
    limit: Duration,
    right: impl Fn(&VolumeInfo) -> bool,
) -> anyhow::Result<VolumeInfo> {
    let mut progress = Progress::new();
    wait::until(what, limit, async || {
        let look = look_at(masters, volume, &right).await?;
        if let Look::NotYet(seen) = &look {
            progress.show(|| format!("waiting for {what}: {seen}"));
        }
        Ok(look)
    })
    .await
}

/// One look at what the masters tell of a volume.
pub(crate) async fn look_at(
    masters: &MasterClient,
    volume: &str,
    right: impl Fn(&VolumeInfo) -> bool,
) -> anyhow::Result<Look<VolumeInfo>> {
    wait::answered(masters.get_volume(volume).await, |info| {
        if right(&info) {
            return Look::Done(info);
        }
        let view = VolumeView::of(&info);
        let state = if view.serving { "serves" } else { "does not serve" };
        let (isr, all) = (view.isr.len(), view.replicas);
        let mut seen = format!("it {state}, {isr} of {all} replicas in sync");
        if !view.reason.is_empty() {
            seen += &format!("; {}", view.reason);
        }
        Look::NotYet(seen)
    })
}

#[derive(Serialize)]
struct Deleted {
    name: String,
    id: String,
}

async fn delete(context: &Context, volume: &str, yes: bool) -> anyhow::Result<()> {
    let info = context.masters.get_volume(volume).await?;
    if !yes {
        let view = VolumeView::of(&info);
        let what = format!("This destroys volume {} ({}) with all its data.", view.name, view.id);
        confirm(&view.name, "deleting it destroys its data", &what)?;
    }
    // By UUID: a volume that is created under the name meanwhile is another one.
    let response = context.masters.delete_volume(&id_text(&info.id)).await?;
    let deleted = Deleted { name: info.name, id: id_text(&response.id) };
    context.output.show(&deleted, |d| {
        format!("Volume {} ({}) is deleted; its nodes remove the data.", d.name, d.id)
    })
}

/// Asks on the terminal whether to go on; the answer is the volume's name. `risk` says why it is
/// asked, `what` what will be done.
///
/// # Errors
/// [`Usage`] without a terminal, or if it was not confirmed.
pub(crate) fn confirm(name: &str, risk: &str, what: &str) -> anyhow::Result<()> {
    ask(&format!("volume '{name}'"), name, risk, what)
}

/// As [`confirm`], of anything; the answer is to be `word`.
pub(crate) fn ask(subject: &str, word: &str, risk: &str, what: &str) -> anyhow::Result<()> {
    if !std::io::stdin().is_terminal() {
        let why = format!("{subject}: {risk}, and there is no terminal to ask; pass --yes");
        return Err(Usage(why).into());
    }
    eprint!("{what} Type {word} to go on: ");
    std::io::stderr().flush().context("asking")?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).context("reading the answer")?;
    if answer.trim() != word {
        bail!("not confirmed; {subject} is left as it is");
    }
    Ok(())
}
