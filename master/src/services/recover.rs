//! Giving up members of a volume on an operator's word.

use std::collections::BTreeSet;

use sbk_engine::authority::Refusal;
use sbk_engine::authority::recovery::Recovery;
use sbk_engine::types::{Epoch, NodeId, VolumeId};
use sbk_proto::v1;
use tonic::Status;

use super::control::{ControlService, no_such_volume};
use crate::convert;
use crate::gate::refused;
use crate::member::now;

impl ControlService {
    /// Plans a recovery and, unless it is a dry run, commits it.
    pub(super) async fn recover(
        &self,
        raw: v1::RecoverVolumeRequest,
    ) -> Result<v1::RecoverVolumeResponse, Status> {
        let volume = self.find(&raw.name_or_id)?;
        let off: Result<BTreeSet<_>, _> =
            raw.nodes_off.iter().map(|id| convert::node_id(id)).collect();
        let off = off?;
        let plan = self.plan(volume, &off)?;
        if !raw.dry_run {
            let agreed = convert::replica_ref(raw.expect_replica.as_ref())?;
            // The operator agreed to a certain loss; another one is another question.
            if plan.expect_epoch != Epoch(raw.expect_epoch) || plan.primary != agreed {
                return Err(refused(&Refusal::OtherRecovery { volume }));
            }
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

    fn plan(&self, volume: VolumeId, off: &BTreeSet<NodeId>) -> Result<Recovery, Status> {
        self.look(|source| {
            let known = source.state.volumes().get(&volume);
            let known = known.ok_or_else(|| no_such_volume(&volume.to_string()))?;
            let detector = &source.leading.detector;
            detector.plan_recovery(now(), source.state, known, off).map_err(|r| refused(&r))
        })
    }
}
