//! Giving up members of a volume on an operator's word.

use std::collections::BTreeSet;
use std::time::Duration;

use sbk_engine::authority::Refusal;
use sbk_engine::authority::recovery::{Recovery, STAND_MS};
use sbk_engine::types::{Epoch, NodeId, ReplicaRef, VolumeId};
use sbk_proto::v1;
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use super::control::{ControlService, no_such_volume};
use crate::clock::now;
use crate::convert;
use crate::gate::refused;

impl ControlService {
    /// Plans a recovery and, unless it is a dry run, has the replicas that are left stand, and commits it.
    pub(super) async fn recover(
        &self,
        raw: v1::RecoverVolumeRequest,
    ) -> Result<v1::RecoverVolumeResponse, Status> {
        let volume = self.find(&raw.name_or_id)?;
        let off: Result<BTreeSet<_>, _> =
            raw.nodes_off.iter().map(|id| convert::node_id(id)).collect();
        let off = off?;
        let mut plan = self.plan(volume, &off)?;
        if !raw.dry_run {
            let agreed =
                (Epoch(raw.expect_epoch), convert::replica_ref(raw.expect_replica.as_ref())?);
            check_agreed(volume, &plan, agreed)?;
            plan = self.stood(volume, &off, agreed).await?;
            tracing::warn!(
                %volume, epoch = %plan.expect_epoch, replica = %plan.primary.id, ?off,
                "an operator gives up members; acknowledged writes may be lost"
            );
            let reason = "an operator accepted the loss of data";
            self.member.accepted_because(plan.command(volume, off), reason).await?;
        }
        let info = self.describe(volume).ok_or_else(|| no_such_volume(&raw.name_or_id))?;
        let (table_epoch, durable) = plan.rank;
        Ok(v1::RecoverVolumeResponse {
            epoch: plan.expect_epoch.0,
            replica: Some(convert::reference(plan.primary)),
            node: convert::bytes(plan.node.0),
            table_epoch: table_epoch.0,
            durable_lsn: durable.0,
            lost_nodes: plan.lost.iter().map(|(_, node)| convert::bytes(node.0)).collect(),
            volume: Some(info),
        })
    }

    /// The plan once every replica that it may choose from has stood: what each holds is final then, and
    /// the choice still the one that was agreed to. They are asked in the answers to their nodes'
    /// heartbeats, and say in the next that they have.
    async fn stood(
        &self,
        volume: VolumeId,
        off: &BTreeSet<NodeId>,
        agreed: (Epoch, ReplicaRef),
    ) -> Result<Recovery, Status> {
        let deadline = Instant::now() + Duration::from_millis(STAND_MS);
        let mut asked = Vec::new();
        loop {
            let next = self.member.next_fact();
            self.member.require_leader()?;
            let plan = self.plan(volume, off)?;
            check_agreed(volume, &plan, agreed)?;
            let Some((replica, node)) = plan.unstood.first().map(|(run, node)| (run.id, *node))
            else {
                return Ok(plan);
            };
            if asked != plan.unstood {
                tracing::info!(%volume, replicas = ?plan.unstood, "asked to stand for a recovery");
                self.member.leading().detector.ask_to_stand(now(), volume, &plan);
                asked.clone_from(&plan.unstood);
            }
            if timeout_at(deadline, next).await.is_err() {
                return Err(refused(&Refusal::DidNotStand { replica, node }));
            }
        }
    }

    fn plan(&self, volume: VolumeId, off: &BTreeSet<NodeId>) -> Result<Recovery, Status> {
        self.look(|source| {
            let known = source.state.volumes().get(&volume);
            let known = known.ok_or_else(|| no_such_volume(&volume.to_string()))?;
            let detector = &source.leading.detector;
            detector.plan_recovery(now(), source.state, known, off).map_err(|r| refused(&r))
        })
    }
}

/// The operator agreed to a certain loss; another one is another question.
fn check_agreed(
    volume: VolumeId,
    plan: &Recovery,
    agreed: (Epoch, ReplicaRef),
) -> Result<(), Status> {
    match (plan.expect_epoch, plan.primary) == agreed {
        true => Ok(()),
        false => Err(refused(&Refusal::OtherRecovery { volume })),
    }
}
