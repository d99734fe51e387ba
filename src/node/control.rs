//! The control store's place in the node: its turns within those of [`State`],
//! what a rank writes to it of itself, and operations from tasks.

use std::sync::atomic::Ordering;

use super::gcs::{ControlReply, ControlRequest, Operation};
use super::rank::{Ended, Node};
use super::state::{Command, Core, State};
use crate::base::{JobId, Rank, Tag};
use crate::boot::Card;
use crate::gcs::{Key, ShardId, shard_of};
use crate::sync::{Handle, Lineage, frame};

impl Node {
    /// Begins an operation on the control store.
    pub fn control(&'static self, request: ControlRequest) -> Handle<ControlReply> {
        let lineage = Lineage::output(Tag::ROOT, 0);
        let (task, handle) = frame(|| Operation, lineage, 0);
        match self.try_state() {
            // Not by way of a command, which would be moved twice.
            Some(mut state) => {
                state.core.gcs.ask(request, task);
                self.let_go(state);
            }
            None => self.leave(Command::Control(Box::new((request, task)))),
        }
        handle
    }

    /// How many shards the control store has.
    pub fn shards(&self) -> u16 {
        self.config.gcs_shards
    }

    /// Which of them a key belongs to.
    pub fn shard_of(&self, key: &Key) -> ShardId {
        shard_of(key, usize::from(self.config.gcs_shards))
    }
}

impl State {
    /// Says in the control store who this rank is, and rank 0 which tasks there are.
    pub fn introduce(&mut self, node: &'static Node, job: JobId, card: &Card) {
        let (workers, resources) = (node.workers.len(), self.core.ledger.capacity());
        let about = format!("pid={} host={:#x} workers={workers} resources={resources}", card.pid, card.host.0);
        self.core.gcs.introduce(job, &about);
        if self.core.me == Rank(0) {
            self.core.register_tasks(node);
        }
        self.flush(node);
    }

    /// A turn of the control store, if it has anything to do.
    pub(super) fn run_gcs(&mut self, node: &'static Node) {
        if !self.core.gcs.is_pending() {
            return;
        }
        let due = self.core.gcs.turn();
        let mut outgoing = std::mem::take(&mut self.core.gcs.outgoing);
        outgoing.drain(|to, message| self.send(to, message));
        self.core.gcs.outgoing = outgoing;
        self.core.tables_read(node);
        node.service.control_due(due);
        let awaits = (1..=node.workers.len()).contains(&self.core.gcs.under_way());
        node.awaits_control.store(awaits, Ordering::Relaxed);
        node.service.watch_closely(self.core.gcs.awaits());
        if let Some(why) = self.core.gcs.failed.take() {
            node.end(Ended { status: 1, reason: Some(format!("{}: {why}", node.rank)) });
        }
        for decision in self.core.gcs.decisions.drain(..) {
            node.log(|| decision);
        }
    }
}

impl Core {
    /// Writes this rank's table of tasks to the control store, once.
    pub(super) fn register_tasks(&mut self, node: &Node) {
        if !std::mem::replace(&mut self.tasks_registered, true) {
            self.gcs.register_tasks(node.registry.hash, &node.registry.entries());
        }
    }

    /// Takes the tables of tasks that have been read from the control store.
    pub(super) fn tables_read(&mut self, node: &'static Node) {
        for (hash, entries) in self.gcs.tasks_read() {
            for rank in 0..self.peers.len() {
                let peer = &mut self.peers[rank];
                if !peer.ready && peer.lost.is_none() && peer.hello.as_ref().is_some_and(|h| h.tasks_hash == hash) {
                    peer.functions = Some(node.registry.indices_in(&entries));
                    self.greeted(node, Rank(rank as u32));
                }
            }
        }
        if let Some(why) = self.gcs.tasks_failed() {
            node.end(Ended { status: 1, reason: Some(format!("{}: {why}", node.rank)) });
        }
    }
}
