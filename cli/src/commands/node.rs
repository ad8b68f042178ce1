//! `sbkctl node list | show | drain | undrain | remove`.

use anyhow::bail;

use super::Context;
use crate::args::NodeCommand;
use crate::view::{NodeView, node_table};

/// Runs the command.
pub async fn run(context: &Context, command: NodeCommand) -> anyhow::Result<()> {
    let views = all(context).await?;
    match command {
        NodeCommand::Drain { node, wait } => {
            super::moves::drain(context, find(&views, &node)?, wait).await
        }
        NodeCommand::Undrain { node } => super::moves::undrain(context, find(&views, &node)?).await,
        NodeCommand::Remove { node, yes, wait } => {
            super::moves::remove(context, find(&views, &node)?, yes, wait).await
        }
        NodeCommand::List => context.output.show(&views, |views| node_table(views)),
        NodeCommand::Show { node } => context.output.show(find(&views, &node)?, |n| n.detail()),
    }
}

/// Every node.
pub(super) async fn all(context: &Context) -> anyhow::Result<Vec<NodeView>> {
    let nodes = context.masters.list_nodes().await?.nodes;
    Ok(nodes.iter().map(NodeView::of).collect())
}

/// The one node that `name` means: its UUID, the beginning of it, or one of its addresses.
pub(super) fn find<'a>(nodes: &'a [NodeView], name: &str) -> anyhow::Result<&'a NodeView> {
    let means = |n: &&NodeView| {
        n.addr == name
            || n.http_addr == name
            || n.nbd_addr == name
            || (!name.is_empty() && n.id.starts_with(&name.to_ascii_lowercase()))
    };
    let found: Vec<&NodeView> = nodes.iter().filter(means).collect();
    let name: String = name.chars().take(80).collect();
    match found.as_slice() {
        [one] => Ok(one),
        [] => bail!("no datanode is called '{name}'; `sbkctl node list` shows all"),
        many => bail!("'{name}' fits {} datanodes; write more of the UUID", many.len()),
    }
}

#[cfg(test)]
mod tests {
    use sbk_proto::v1::NodeInfo;

    use super::*;

    #[test]
    fn a_node_is_found_by_uuid_or_address() {
        let node = |id: u8, addr: &str| {
            let mut bytes = vec![0xab; 16];
            bytes[1] = id;
            NodeView::of(&NodeInfo { id: bytes.into(), addr: addr.into(), ..Default::default() })
        };
        let nodes = [node(1, "h:1"), node(2, "h:2")];
        assert_eq!(find(&nodes, "h:2").expect("found").addr, "h:2");
        assert_eq!(find(&nodes, "AB01").expect("found").addr, "h:1");
        assert!(find(&nodes, "ab").expect_err("ambiguous").to_string().contains("fits 2"));
        assert!(find(&nodes, "h:3").is_err());
        assert!(find(&nodes, "").is_err(), "no name means no node");
    }
}
