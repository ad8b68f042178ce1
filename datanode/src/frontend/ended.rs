//! Why a stream ended, on the wire.

use sbk_engine::replication::io::{HeldBy, StreamEnd};
use sbk_proto::v1;

use crate::transport::convert;

/// The message, without a configuration.
pub(super) fn out(reason: &StreamEnd) -> v1::StreamEnded {
    let number = |reason| v1::StreamEnded { reason, ..Default::default() };
    match reason {
        StreamEnd::NotPrimary => number(1),
        StreamEnd::Replaced => number(2),
        StreamEnd::SessionLost => number(3),
        StreamEnd::AttachLost => number(4),
        StreamEnd::TooManySessions => number(5),
        StreamEnd::Deleted => number(6),
        StreamEnd::AttachOver { attach, loss_generation } => v1::StreamEnded {
            attach: Some(attach.0),
            loss_generation: Some(loss_generation.0),
            ..number(7)
        },
        StreamEnd::Held(by) => v1::StreamEnded {
            attach: Some(by.attach.0),
            session: convert::id_bytes(by.session.0),
            node: by.node.map(|node| convert::id_bytes(node.0)).unwrap_or_default(),
            held_ms: by.held_ms,
            ..number(8)
        },
        StreamEnd::Revoked(attach) => v1::StreamEnded { attach: Some(attach.0), ..number(9) },
    }
}

/// The reason; `None` for one that makes no sense.
pub(super) fn reason(ended: &v1::StreamEnded) -> Option<StreamEnd> {
    let attach = || convert::attach_generation(ended.attach?).ok();
    Some(match ended.reason {
        1 => StreamEnd::NotPrimary,
        2 => StreamEnd::Replaced,
        3 => StreamEnd::SessionLost,
        4 => StreamEnd::AttachLost,
        5 => StreamEnd::TooManySessions,
        6 => StreamEnd::Deleted,
        7 => StreamEnd::AttachOver {
            attach: attach()?,
            loss_generation: convert::loss_generation(ended.loss_generation?).ok()?,
        },
        8 => StreamEnd::Held(Box::new(HeldBy {
            session: convert::session_id(&ended.session).ok()?,
            attach: attach()?,
            node: match ended.node.is_empty() {
                true => None,
                false => Some(convert::node_id(&ended.node).ok()?),
            },
            held_ms: ended.held_ms,
        })),
        9 => StreamEnd::Revoked(attach()?),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use sbk_engine::types::{AttachGeneration, LossGeneration, NodeId, SessionId};
    use uuid::Uuid;

    use super::*;

    #[test]
    fn every_reason_comes_back() {
        let (session, attach) = (SessionId(Uuid::from_u128(5)), AttachGeneration(7));
        let held =
            |node, held_ms| StreamEnd::Held(Box::new(HeldBy { session, attach, node, held_ms }));
        let all = [
            StreamEnd::NotPrimary,
            StreamEnd::Replaced,
            StreamEnd::SessionLost,
            StreamEnd::AttachLost,
            StreamEnd::TooManySessions,
            StreamEnd::Deleted,
            StreamEnd::AttachOver { attach, loss_generation: LossGeneration(3) },
            held(None, None),
            held(Some(NodeId(Uuid::from_u128(9))), Some(12_000)),
            StreamEnd::Revoked(attach),
        ];
        for end in all {
            assert_eq!(reason(&out(&end)), Some(end));
        }
        for number in [0, 7, 8, 9, 10] {
            let lacking = v1::StreamEnded { reason: number, ..Default::default() };
            assert_eq!(reason(&lacking), None, "{number}");
        }
        let ageless = v1::StreamEnded { reason: 7, attach: Some(7), ..Default::default() };
        assert_eq!(reason(&ageless), None);
    }
}
