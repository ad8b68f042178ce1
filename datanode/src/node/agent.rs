//! The one owner of a node's set of replicas: starts, creates and removes them as the masters say.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use sbk_engine::authority::Limits;
use sbk_engine::types::{Config, ReplicaId, VolumeId, Wish};
use sbk_master_client::MasterClient;
use sbk_proto::v1;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::Findings;
use super::homes::remove_everywhere;
use super::masters::{self, Identity, Open};
use super::report::Key;
use super::storage::{NewReplica, Storage};
use crate::catalogue::{self, Catalogue, Volume};
use crate::disks::DataDisk;
use crate::volume::events::Control;
use crate::volume::{Context, Registry, RunState, VolumeHandle, start};

/// How long the first registration waits for stores that are being opened.
const OPENING: Duration = Duration::from_secs(3);
/// A confirmation or a removal that failed is tried again after this.
const RETRY: Duration = Duration::from_secs(1);

/// What a volume's own watcher or a piece of work tells the agent.
#[derive(Debug)]
pub(super) enum Notice {
    /// Something important of a volume's status changed.
    Changed(VolumeId),
    /// The masters know that the replica was created, or it is to be told to them again.
    Confirmed(VolumeId, ReplicaId, bool),
    /// The replica is removed and the masters know, or both are to be tried again.
    Removed(VolumeId, ReplicaId, bool),
    /// A pause is over; what is to be done is looked at again.
    Again(VolumeId),
    /// A replica was made on a disk, or can't be yet.
    Created(VolumeId, ReplicaId, usize, bool),
    /// A disk failed, came back, or has other room.
    Disk(usize),
    /// What was found on a disk that came back, each with the disk.
    Found(Vec<(VolumeId, ReplicaId, usize)>),
}

/// A replica that runs here.
pub(super) struct Local {
    pub(super) handle: Arc<VolumeHandle>,
    pub(super) task: Option<JoinHandle<()>>,
    /// Its disk's place.
    pub(super) disk: usize,
    /// Ends the task.
    pub(super) stop: CancellationToken,
    /// The newest configuration handed to it.
    told: Option<Config>,
    /// The wish that it was told last.
    wished: Wish,
    /// What it was told last that clients may do.
    limits: Limits,
    confirming: bool,
}

impl Local {
    /// Whether the configuration says anything that the replica was not told: a newer epoch, or in the
    /// same one where nodes are now. [A node came back under another address while it was out of sync, no
    /// epoch began for that, and the primary went on asking at the old one.]
    fn is_news(&self, config: &Config) -> bool {
        self.told.as_ref().is_none_or(|told| {
            told.epoch < config.epoch
                || told.epoch == config.epoch && told.replicas != config.replicas
        })
    }
}

/// The agent's state. Nobody else starts or ends volume tasks.
pub(super) struct Agent<S: Storage> {
    pub(super) storage: Arc<S>,
    pub(super) identity: Identity,
    pub(super) client: MasterClient,
    pub(super) context: Arc<Context>,
    pub(super) registry: Registry,
    pub(super) catalogue: watch::Sender<Arc<Catalogue>>,
    pub(super) open: watch::Sender<Option<Open>>,
    pub(super) urgent: Arc<Notify>,
    pub(super) findings: watch::Sender<Arc<Findings>>,
    pub(super) stop: CancellationToken,
    pub(super) notices: mpsc::Sender<Notice>,
    pub(super) locals: BTreeMap<VolumeId, Local>,
    /// Replicas that are on a disk and do not run: another one of their volume does, or is to.
    pub(super) idle: BTreeMap<(VolumeId, ReplicaId), usize>,
    /// Tasks of idle replicas that were ended, and may hang in a disk that failed.
    pub(super) ending: BTreeMap<(VolumeId, ReplicaId), JoinHandle<()>>,
    /// Volumes of which a replica is being made, each with the disk.
    pub(super) creating: BTreeMap<VolumeId, usize>,
    /// Disks that could not be used when they were looked at last.
    pub(super) away: BTreeSet<usize>,
    /// Volumes that are looked at again after a pause.
    pausing: BTreeSet<VolumeId>,
    /// Volumes of which a replica is being removed. Nothing but that removal's own end takes one out:
    /// until then its task runs, and neither is another replica made nor its directory touched. [A
    /// confirmation that failed let a second removal begin, which renamed the directory under the store
    /// that the first one waited for.]
    removing: BTreeSet<VolumeId>,
    /// Replicas that were ordered to be removed and are, and the masters know it.
    removed: BTreeSet<(VolumeId, ReplicaId)>,
    pub(super) work: JoinSet<()>,
    registering: bool,
}

impl<S: Storage> Agent<S> {
    #[expect(clippy::too_many_arguments, reason = "the parts that one agent owns")]
    pub(super) fn new(
        storage: Arc<S>,
        identity: Identity,
        client: MasterClient,
        context: Arc<Context>,
        registry: Registry,
        catalogue: watch::Sender<Arc<Catalogue>>,
        open: watch::Sender<Option<Open>>,
        urgent: Arc<Notify>,
        findings: watch::Sender<Arc<Findings>>,
        stop: CancellationToken,
    ) -> (Self, mpsc::Receiver<Notice>) {
        let (notices, noticed) = mpsc::channel(256);
        let agent = Self {
            storage,
            identity,
            client,
            context,
            registry,
            catalogue,
            open,
            urgent,
            findings,
            stop,
            notices,
            locals: BTreeMap::new(),
            idle: BTreeMap::new(),
            ending: BTreeMap::new(),
            creating: BTreeMap::new(),
            away: BTreeSet::new(),
            pausing: BTreeSet::new(),
            removing: BTreeSet::new(),
            removed: BTreeSet::new(),
            work: JoinSet::new(),
            registering: false,
        };
        (agent, noticed)
    }

    /// Runs until `stop` is cancelled; then every volume task has ended.
    pub(super) async fn run(
        mut self,
        mut noticed: mpsc::Receiver<Notice>,
        mut updates: mpsc::Receiver<v1::AssignmentUpdate>,
    ) {
        let opening = tokio::time::sleep(OPENING);
        tokio::pin!(opening);
        for disk in 0..self.storage.disks().len() {
            self.follow(disk);
        }
        self.settle();
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                Some(notice) = noticed.recv() => self.notice(notice),
                Some(update) = updates.recv() => self.update(update),
                () = &mut opening, if !self.registering => {
                    self.registering = true;
                    self.settle();
                }
                Some(done) = self.work.join_next() => {
                    done.expect("the agent's work does not panic");
                }
            }
        }
        self.work.shutdown().await;
        for local in self.locals.into_values() {
            if let Some(task) = local.task {
                task.await.expect("a volume task does not panic");
            }
        }
    }

    /// Starts the task of a replica that is on a disk.
    pub(super) fn start(&mut self, volume: VolumeId, replica: ReplicaId, number: usize) {
        self.idle.remove(&(volume, replica));
        let opener = self.storage.opener(number, volume, replica);
        let (stop, disk) = (self.stop.child_token(), Arc::clone(&self.storage.disks()[number]));
        let context = Arc::clone(&self.context);
        let (handle, task) = start(context, disk, opener, volume, replica, stop.clone());
        self.registry.insert(Arc::clone(&handle));
        let (notices, mut status) = (self.notices.clone(), handle.status.clone());
        // Ends with the volume task, which drops the sender.
        tokio::spawn(async move {
            let mut last = None;
            loop {
                let key = Key::of(&status.borrow_and_update());
                if last.as_ref() != Some(&key) {
                    last = Some(key);
                    if notices.send(Notice::Changed(volume)).await.is_err() {
                        return;
                    }
                }
                if status.changed().await.is_err() {
                    return;
                }
            }
        });
        let local = Local {
            handle,
            task: Some(task),
            disk: number,
            stop,
            told: None,
            wished: Wish::default(),
            limits: Limits::default(),
            confirming: false,
        };
        self.locals.insert(volume, local);
    }

    fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::Changed(volume) => {
                self.learn(volume);
                self.look_at(volume);
                self.settle();
                self.urgent.notify_one();
            }
            Notice::Confirmed(volume, replica, known) => {
                if let Some(local) = self.locals.get_mut(&volume)
                    && local.handle.replica == replica
                {
                    local.confirming = false;
                }
                if known {
                    tracing::info!(%volume, %replica, "the masters know the new replica");
                } else {
                    self.look_at(volume);
                }
            }
            Notice::Removed(volume, replica, known) => {
                self.removing.remove(&volume);
                if known {
                    self.removed.insert((volume, replica));
                    tracing::info!(%volume, %replica, "removed, and the masters know");
                    self.settle();
                }
                // Another replica of the volume may have waited for that.
                self.look_at(volume);
            }
            Notice::Again(volume) => {
                self.pausing.remove(&volume);
                self.look_at(volume);
            }
            Notice::Created(volume, replica, disk, made) => {
                self.creating.remove(&volume);
                if made {
                    self.start(volume, replica, disk);
                } else {
                    self.again(volume);
                }
            }
            Notice::Disk(number) => self.disk_changed(number),
            Notice::Found(found) => {
                self.found(found);
                self.settle();
            }
        }
    }

    /// A replica may know a newer configuration than the masters have pushed.
    fn learn(&self, volume: VolumeId) {
        let Some(local) = self.locals.get(&volume) else { return };
        let status = local.handle.current();
        let Some(config) = status.view.as_ref().and_then(|view| view.config.clone()) else {
            return;
        };
        self.catalogue.send_if_modified(|catalogue| {
            let Some(known) = catalogue.volumes.get(&volume) else { return false };
            if known.config.as_ref().is_some_and(|known| known.epoch >= config.epoch) {
                return false;
            }
            let mut changed = Catalogue::clone(catalogue);
            let newer = Volume { config: Some(config), ..Volume::clone(known) };
            changed.volumes.insert(volume, Arc::new(newer));
            *catalogue = Arc::new(changed);
            true
        });
    }

    fn update(&mut self, update: v1::AssignmentUpdate) {
        let current = self.catalogue.borrow().clone();
        let changed = match catalogue::apply(&current, update) {
            Ok(changed) => Arc::new(changed),
            Err(error) => {
                tracing::error!(%error, "a push of the masters was dropped");
                return;
            }
        };
        self.catalogue.send_replace(Arc::clone(&changed));
        let encrypted = changed.volumes.iter().filter(|(_, volume)| volume.encrypted);
        for volume in self.storage.expect_encrypted(encrypted.map(|(id, _)| *id).collect()) {
            tracing::error!(%volume, "its replica here is not encrypted, and should be: it is closed");
            self.open_again(volume);
        }
        self.removed.retain(|(volume, replica)| {
            let listed = changed.volumes.get(volume);
            listed.is_some_and(|v| {
                v.replicas.contains_key(replica) || v.retired.contains_key(replica)
            })
        });
        let volumes: BTreeSet<_> =
            changed.volumes.keys().chain(self.locals.keys()).copied().collect();
        for volume in volumes {
            self.look_at(volume);
        }
        self.settle();
    }

    /// Brings what is here in line with what the masters say of a volume, one step at a time.
    pub(super) fn look_at(&mut self, id: VolumeId) {
        let catalogue = self.catalogue.borrow().clone();
        let Some(volume) = catalogue.volumes.get(&id) else { return };
        let me = self.identity.node;
        let mine = volume.replicas.iter().find(|(_, replica)| replica.node == me);
        if volume.deleted {
            if let Some((replica, _)) = mine {
                self.remove(id, *replica);
            }
            return;
        }
        let retired = volume.retired.iter().filter(|(_, node)| **node == me).map(|(id, _)| *id);
        for replica in retired {
            if !self.may_be_away(id, replica) {
                return self.remove(id, replica);
            }
            let runs = self.locals.get(&id).is_some_and(|l| l.handle.replica == replica);
            if runs && mine.is_some() {
                self.set_aside(id);
            }
        }
        if let Some((replica, _)) = mine
            && !self.locals.contains_key(&id)
            && !self.ending.contains_key(&(id, *replica))
            && let Some(disk) = self.idle.get(&(id, *replica)).copied()
        {
            self.start(id, *replica, disk);
        }
        if let Some(local) = self.locals.get_mut(&id)
            && let Some(config) = &volume.config
            && local.is_news(config)
        {
            match local.handle.control.try_send(Control::Assignment(config.clone())) {
                Ok(()) => local.told = Some(config.clone()),
                Err(error) => {
                    tracing::warn!(volume = %id, %error, "a configuration waits for its volume");
                    self.again(id);
                }
            }
        }
        if let Some(local) = self.locals.get_mut(&id)
            && local.wished != volume.wish
        {
            match local.handle.control.try_send(Control::Wish(volume.wish.clone())) {
                Ok(()) => local.wished = volume.wish.clone(),
                Err(error) => {
                    tracing::warn!(volume = %id, %error, "a wish waits for its volume");
                    self.again(id);
                }
            }
        }
        if let Some(local) = self.locals.get_mut(&id)
            && local.limits != volume.limits
        {
            match local.handle.control.try_send(Control::Limits(volume.limits)) {
                Ok(()) => local.limits = volume.limits,
                Err(error) => {
                    tracing::warn!(volume = %id, %error, "limits wait for their volume");
                    self.again(id);
                }
            }
        }
        let Some((replica, listed)) = mine else { return };
        if listed.confirmed {
            return;
        }
        match self.locals.get(&id) {
            None => self.create(NewReplica {
                volume: id,
                replica: *replica,
                blocks: volume.created_blocks,
                encrypted: volume.encrypted,
            }),
            Some(local) if local.handle.replica == *replica => self.confirm(id, *replica),
            // Another replica of the volume is here: that is reported, and nothing overwritten.
            Some(_) => {}
        }
    }

    fn create(&mut self, new: NewReplica) {
        let NewReplica { volume, replica, blocks, encrypted } = new;
        if self.pausing.contains(&volume)
            || self.removing.contains(&volume)
            || self.creating.contains_key(&volume)
        {
            return;
        }
        // If there is none, it is looked at again when one is back.
        let Some(number) = self.choose_disk(blocks) else { return };
        self.creating.insert(volume, number);
        let disk = Arc::clone(&self.storage.disks()[number]);
        let (storage, notices) = (Arc::clone(&self.storage), self.notices.clone());
        self.work.spawn(async move {
            let create = move || storage.create(number, &new);
            let made = disk.threads().spawn_blocking(create).await.expect("making does not panic");
            let path = disk.path().display();
            match &made {
                Ok(()) => {
                    tracing::info!(%volume, %replica, blocks, encrypted, %path, "created a replica");
                }
                Err(error) => {
                    tracing::error!(%volume, %replica, %path, %error, "a replica can't be created");
                }
            }
            // The node may be stopping.
            let _stopping =
                notices.send(Notice::Created(volume, replica, number, made.is_ok())).await;
        });
    }

    /// Looks at a volume again after a pause.
    fn again(&mut self, volume: VolumeId) {
        if !self.pausing.insert(volume) {
            return;
        }
        let notices = self.notices.clone();
        self.work.spawn(async move {
            tokio::time::sleep(RETRY).await;
            // The node may be stopping.
            let _stopping = notices.send(Notice::Again(volume)).await;
        });
    }

    /// Tells the masters of a new replica once it is open.
    fn confirm(&mut self, volume: VolumeId, replica: ReplicaId) {
        let Some(local) = self.locals.get_mut(&volume) else { return };
        let open = local.handle.current().open_as();
        let Some(open) = open.filter(|_| !local.confirming) else { return };
        local.confirming = true;
        let (client, identity) = (self.client.clone(), self.identity.clone());
        let notices = self.notices.clone();
        self.work.spawn(async move {
            let (run, tail) = (open.replica, open.tail);
            let told = masters::confirm_created(client, identity, volume, run, tail).await;
            if let Err(error) = &told {
                tracing::warn!(%volume, %replica, %error, "a create is not confirmed yet");
                tokio::time::sleep(RETRY).await;
            }
            // The node may be stopping.
            let _stopping = notices.send(Notice::Confirmed(volume, replica, told.is_ok())).await;
        });
    }

    /// Ends and removes the replica of a deleted volume, or one that left its volume's list, and
    /// tells the masters.
    fn remove(&mut self, volume: VolumeId, replica: ReplicaId) {
        if self.removed.contains(&(volume, replica))
            // It would be back with its disk.
            || self.may_be_away(volume, replica)
            || !self.removing.insert(volume)
        {
            return;
        }
        let ended = self.ending.remove(&(volume, replica));
        self.idle.remove(&(volume, replica));
        // Another replica of the volume may be here, one that the masters forgot with its node. It
        // stays as it is; and the one to go, which it kept from being made, is gone for good.
        let ordered = self.locals.get(&volume).is_some_and(|local| local.handle.replica == replica);
        let local = if ordered { self.locals.remove(&volume) } else { None };
        let registry = self.registry.clone();
        let (client, identity) = (self.client.clone(), self.identity.clone());
        let (storage, notices) = (Arc::clone(&self.storage), self.notices.clone());
        self.work.spawn(async move {
            if let Some(mut local) = local {
                // A task that has ended by itself takes no order.
                let _ended = local.handle.control.send(Control::Deleted).await;
                if let Some(task) = local.task.take() {
                    task.await.expect("a volume task does not panic");
                }
                registry.remove(volume);
            }
            if let Some(task) = ended {
                task.await.expect("a volume task does not panic");
            }
            let told = match remove_everywhere(&storage, volume, replica).await {
                Ok(()) => masters::confirm_deleted(client, identity, volume, replica)
                    .await
                    .map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            if let Err(error) = &told {
                tracing::warn!(%volume, %replica, %error, "a removal is tried again");
                tokio::time::sleep(RETRY).await;
            }
            // The node may be stopping.
            let _stopping = notices.send(Notice::Removed(volume, replica, told.is_ok())).await;
        });
    }

    /// Publishes which replicas are open, and what is not as it should be.
    pub(super) fn settle(&mut self) {
        let statuses: Vec<_> = self.locals.values().map(|local| local.handle.current()).collect();
        if !self.registering {
            self.registering = statuses.iter().all(|status| status.run != RunState::Opening);
        }
        if self.registering {
            let open = self.locals.values().zip(&statuses);
            let open =
                open.filter_map(|(local, status)| Some((status.open_as()?, local.disk as u32)));
            let capacity = |disk: &Arc<DataDisk>| {
                let state = disk.state();
                if state.fault.is_none() { state.capacity_bytes } else { 0 }
            };
            let disks = self.storage.disks().iter().map(capacity).collect();
            let open = Open { replicas: open.collect(), disks };
            self.open.send_if_modified(|known| {
                let changed = known.as_ref() != Some(&open);
                if changed {
                    *known = Some(open);
                }
                changed
            });
        }
        let findings = self.find();
        self.findings.send_if_modified(|known| {
            let changed = **known != findings;
            if changed {
                findings.log_new(known);
                *known = Arc::new(findings);
            }
            changed
        });
    }

    fn find(&self) -> Findings {
        let catalogue = self.catalogue.borrow().clone();
        let mut findings = Findings::default();
        if !catalogue.heard {
            return findings;
        }
        for (id, volume) in &catalogue.volumes {
            let here = self.locals.get(id).map(|local| local.handle.replica);
            for (replica, listed) in &volume.replicas {
                let mine = listed.node == self.identity.node && listed.confirmed;
                let elsewhere = self.idle.contains_key(&(*id, *replica));
                if mine && !volume.deleted && here != Some(*replica) && !elsewhere {
                    match self.away.is_empty() {
                        true => findings.missing.insert((*id, *replica)),
                        false => findings.away.insert((*id, *replica)),
                    };
                }
            }
        }
        findings.unknown.extend(self.idle.keys().filter(|(volume, replica)| {
            !catalogue.volumes.get(volume).is_some_and(|v| {
                v.replicas.contains_key(replica) || v.retired.contains_key(replica)
            })
        }));
        for (id, local) in &self.locals {
            let replica = local.handle.replica;
            let known = catalogue.volumes.get(id).is_some_and(|v| {
                v.replicas.contains_key(&replica) || v.retired.contains_key(&replica)
            });
            if !known {
                findings.unknown.insert((*id, replica));
            }
        }
        findings
    }
}
