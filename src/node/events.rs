//! What a rank does about what arrives. Part of [`State`](super::state).

use super::rank::{Ended, HUNGRY_BASE, Node, Target};
use super::state::{ARENA, Arriving, Command, Core, Found, Read, Request, State, Value, Waiting};
use super::transfer::{Incoming, Received, Reply, Values};
use crate::base::event::Event as Counted;
use crate::base::{ErrorKind, Rank, TaskError};
use crate::fabric::{Event, FabricError};
use crate::mem::{Bytes, Foreign};
use crate::store::ObjectId;
use crate::sync::{Lineage, Task};
use crate::wire::{
    Argument, Control, Goodbye, Hello, Message, ObjectRecord, Outcome, Release, SCHEMA_VERSION, Spawn, SpawnCall,
    write_control, write_error, write_release,
};

use super::registry::TaskType;

impl Core {
    /// One event of a fabric.
    pub(super) fn on_event(&mut self, node: &'static Node, event: Event<'_>) {
        match event {
            Event::Message { peer, bytes } => {
                if self.peers[peer.index()].lost.is_some() {
                    return;
                }
                let handled = match Message::parse(bytes) {
                    Ok(message) => self.on_message(node, peer, message),
                    Err(e) => Err(e.to_string()),
                };
                if let Err(why) = handled {
                    node.counters.count(Counted::BadFrame);
                    self.closing.push((peer, format!("{peer} sent a message that cannot be: {why}")));
                }
            }
            Event::ReadDone { token, lease, result, .. } => self.on_read(node, token, lease, result),
            Event::Lost { peer, cause } => {
                // At the job's end they all go, which changes no chain.
                if self.peers[peer.index()].lost.is_none() && node.ended().is_none() {
                    self.gcs.ended(peer, matches!(cause, FabricError::Closed(_)));
                }
                self.on_lost(node, peer, cause.to_string());
            }
        }
    }

    fn on_message(&mut self, node: &'static Node, peer: Rank, message: Message<'_>) -> Result<(), String> {
        if self.peers[peer.index()].hello.is_none() && !matches!(message, Message::Control(Control::Hello(_))) {
            return Err("it did not begin with a greeting".into());
        }
        match message {
            Message::Spawn(spawn) => {
                self.on_spawn(node, peer, &spawn);
                Ok(())
            }
            Message::Result(result) => self.on_result(node, peer, result.request, result.outcome),
            Message::Release(Release { object, count }) => {
                let id = ObjectId::from_bits(object);
                self.index.give_back(id, peer, u64::from(count)).map_err(|e| e.to_string())?;
                self.given_back();
                Ok(())
            }
            Message::StealRequest(_) => {
                self.wishes.push(peer);
                Ok(())
            }
            Message::Bulk(message) => self.on_bulk(peer, message),
            Message::Gcs(bytes) => self.gcs.receive(peer, bytes),
            Message::Control(control) => self.on_control(node, peer, control),
        }
    }

    fn on_control(&mut self, node: &'static Node, peer: Rank, control: Control) -> Result<(), String> {
        match control {
            Control::Hello(hello) => self.on_hello(node, peer, hello),
            Control::ErrorReport(report) => {
                self.on_result(node, peer, report.request, Outcome::Error(report.error))
            }
            Control::Goodbye(Goodbye { .. }) => {
                if node.ended().is_none() {
                    return Err("it said goodbye before the job ended".into());
                }
                self.peers[peer.index()].said_goodbye = true;
                Ok(())
            }
            Control::Shutdown(end) => {
                if peer != Rank(0) {
                    return Err("only rank 0 ends the job".into());
                }
                self.peers[0].said_goodbye = true;
                self.tell(peer, &Control::Goodbye(Goodbye { status: 0, reason: String::new() }));
                node.end(Ended { status: end.status, reason: None });
                Ok(())
            }
        }
    }

    fn on_hello(&mut self, node: &'static Node, peer: Rank, hello: Hello) -> Result<(), String> {
        if hello.schema != SCHEMA_VERSION {
            let why = format!(
                "{peer} speaks version {} of the messages and {} version {SCHEMA_VERSION}: start all ranks from one \
                 build of Collimate",
                hello.schema, node.rank
            );
            node.end(Ended { status: 1, reason: Some(why.clone()) });
            return Err(why);
        }
        if hello.rank != peer {
            return Err(format!("it greets as {}", hello.rank));
        }
        let capacity = hello.resources.parse().map_err(|e| format!("its resources cannot be read: {e}"))?;
        let same_tasks = hello.tasks_hash == node.registry.hash;
        let state = &mut self.peers[peer.index()];
        if state.hello.is_some() {
            return Err("it greets twice".into());
        }
        state.capacity = Some(capacity);
        let theirs = hello.tasks_hash;
        state.hello = Some(hello);
        if same_tasks {
            self.greeted(node, peer);
        } else {
            // Each finds the other's table in the control store; the indices
            // sent are those of the receiver's.
            self.register_tasks(node);
            self.gcs.want_tasks(theirs);
        }
        Ok(())
    }

    pub(super) fn greeted(&mut self, node: &'static Node, peer: Rank) {
        self.peers[peer.index()].ready = true;
        self.newly_ready = true;
        // Whoever asked for work before could not ask this one.
        if node.idle_workers() > 0 {
            node.outbox.push(Command::AskForWork);
        }
    }

    fn on_spawn(&mut self, node: &'static Node, peer: Rank, spawn: &Spawn<'_>) {
        if spawn.call.stolen {
            self.peers[peer.index()].asked = false;
            node.asked.store(false, std::sync::atomic::Ordering::Relaxed);
        }
        let mut values = Values::new();
        let mut far = Vec::new();
        for (at, argument) in spawn.arguments.enumerate() {
            match argument {
                Argument::Inline { bytes, .. } => values.push(Received::Inline(bytes)),
                Argument::Object(record) => match self.find(node, record, peer) {
                    Ok(Found::Here(object)) => values.push(Received::Object(object)),
                    Ok(Found::Far) => {
                        far.push((at, record));
                        values.push(Received::Inline(&[]));
                    }
                    Err(why) => return self.refuse(peer, spawn.call.request, ErrorKind::BadArgument, why),
                },
            }
        }
        if far.is_empty() {
            self.start_call(node, peer, spawn.call, values);
        } else {
            self.await_objects(peer, Waiting::Call(spawn.call), values, far);
        }
        // One task for a rank that may have more than one idle worker.
        if spawn.call.stolen && node.idle_workers() > 1 {
            node.outbox.push(Command::AskForWork);
        }
    }

    /// Makes a task of a call whose arguments are here.
    pub(super) fn start_call(&mut self, node: &'static Node, peer: Rank, call: SpawnCall, arguments: Values<'_>) {
        let Some(kind) = node.registry.get(call.function) else {
            let why = format!("{} has no task number {}: its binary differs from the caller's", node.rank, call.function);
            return self.refuse(peer, call.request, ErrorKind::UnknownTask, why);
        };
        let target = if call.stolen { Target::ANYWHERE } else { Target::rank(node.rank) };
        let incoming = Incoming {
            arguments,
            lineage: Lineage { parent: call.parent, index: call.call },
            target,
            reply: Reply { peer, request: call.request, node },
        };
        match (kind.receive)(kind, incoming) {
            Ok(task) if Target::from_flags(task.flags()).is_demanding() => self.admit(node, task),
            Ok(task) => node.push(task),
            Err(error) => self.report(peer, call.request, &error.through(kind.name, node.rank)),
        }
    }

    /// Starts a task when its demand can be granted.
    pub(super) fn admit(&mut self, node: &'static Node, task: Task) {
        let kind = super::rank::kind_of(&task);
        let demand = (kind.demand)(task.call());
        match self.ledger.ask(demand, task) {
            Ok(Some(task)) => node.push(task),
            Ok(None) => (),
            Err((shortage, task)) => {
                let error = TaskError::new(ErrorKind::BadCall, format!("{}: {shortage}", node.rank));
                task.fail(Box::new(error.through(kind.name, node.rank)));
            }
        }
    }

    fn on_result(
        &mut self,
        node: &'static Node,
        peer: Rank,
        request: u64,
        outcome: Outcome<'_>,
    ) -> Result<(), String> {
        if self.request(request).is_none_or(|r| r.peer != peer) {
            return Err(format!("a result for call {request:#x}, which was not made to it"));
        }
        match outcome {
            Outcome::Inline { bytes, .. } => self.complete(request, Received::Inline(bytes)),
            Outcome::Error(error) => self.fail(request, error),
            Outcome::Object(record) => match self.find(node, record, peer) {
                Ok(Found::Here(object)) => self.complete(request, Received::Object(object)),
                Ok(Found::Far) => {
                    let values = smallvec::smallvec![Received::Inline(&[])];
                    self.await_objects(peer, Waiting::Result(request), values, vec![(0, record)]);
                }
                Err(why) => self.fail(request, TaskError::new(ErrorKind::BadArgument, why)),
            },
        }
        Ok(())
    }

    pub(super) fn complete(&mut self, request: u64, value: Received<'_>) {
        if let Some(Request { task, kind, .. }) = self.take_request(request) {
            task.store(&mut |slot| (kind.complete)(value.clone(), slot));
        }
    }

    pub(super) fn fail(&mut self, request: u64, error: TaskError) {
        if let Some(Request { task, .. }) = self.take_request(request) {
            task.fail(Box::new(error));
        }
    }

    /// A peer's connection ended.
    pub(super) fn on_lost(&mut self, node: &'static Node, peer: Rank, cause: String) {
        let state = &mut self.peers[peer.index()];
        if state.lost.is_some() {
            return;
        }
        state.lost = Some(cause.clone());
        state.capacity = None;
        node.set_lost(peer);
        self.newly_ready = true;
        state.backlog.clear();
        let said_goodbye = state.said_goodbye;
        self.bulk_peer_lost(peer, &cause);
        if said_goodbye || node.ended().is_some() {
            return;
        }
        node.counters.count(Counted::PeerLost);
        node.log(|| format!("lost {peer}: {cause}"));
        // Its borrows stay counted: it may have lent the objects on, and their
        // memory must not be used again while somebody reads it.
        let lost: Vec<usize> = self.requests.iter().filter(|(_, r)| r.peer == peer).map(|(n, _)| n).collect();
        for number in lost {
            let Request { task, kind, .. } = self.requests.remove(number);
            let error = rank_lost(peer, &cause).through(kind.name, peer);
            task.fail(Box::new(error));
        }
        if peer == Rank(0) {
            let reason = format!("rank 0, which ran the driver, is gone: {cause}");
            node.end(Ended { status: 1, reason: Some(reason) });
        }
    }

    /// Finds the object of a record that `lender` sent.
    fn find(&mut self, node: &'static Node, record: ObjectRecord, lender: Rank) -> Result<Found, String> {
        let view = if record.owner == self.me {
            node.own_view.clone()
        } else {
            self.views.get(record.owner.index()).ok_or("an object of a rank that does not exist")?.clone()
        };
        let Some(view) = view.filter(|_| u32::from(record.region) == ARENA.0) else {
            if let Some(copy) = self.bulk.copy(lender, record) {
                self.give_back(lender, record.object);
                return Ok(Found::Here(copy));
            }
            return match self.peers[record.owner.index()].route {
                Some(_) => Ok(Found::Far),
                None => Err(format!("an object of {}, which this rank cannot reach", record.owner)),
            };
        };
        let object = record.object;
        let done = move || node.submit(Command::Release { lender, object });
        let foreign = Foreign::new(record.owner, view, record.offset, record.len, done);
        foreign.map(|f| Found::Here(f.into())).map_err(|e| format!("an object of {}: {e}", record.owner))
    }

    /// Tells a lender that this rank is done with an object.
    fn give_back(&mut self, lender: Rank, object: u64) {
        let mut release = Vec::new();
        write_release(&mut release, Release { object, count: 1 });
        self.out.push_back((lender, release));
    }

    /// Keeps a message until its objects have been read.
    fn await_objects(
        &mut self,
        from: Rank,
        what: Waiting,
        values: Values<'_>,
        far: Vec<(usize, ObjectRecord)>,
    ) {
        let values = values.into_iter().map(|value| match value {
            Received::Inline(bytes) => Value::Inline(bytes.to_vec()),
            Received::Object(object) => Value::Object(object),
        });
        let arriving = Arriving { from, what, values: values.collect(), missing: far.len(), failed: None };
        let number = self.arriving.insert(arriving);
        self.reads_wanted.extend(far.into_iter().map(|(at, record)| Read { number, at, record, lender: from }));
    }

    /// One object of a waiting message is here, or will never be.
    pub(super) fn arrived(&mut self, node: &'static Node, read: &Read, object: Result<Bytes, (ErrorKind, String)>) {
        self.give_back(read.lender, read.record.object);
        let Some(waiting) = self.arriving.get_mut(read.number) else { return };
        match object {
            Ok(object) => waiting.values[read.at] = Value::Object(object),
            Err(why) => waiting.failed = Some(why),
        }
        waiting.missing -= 1;
        if waiting.missing > 0 {
            return;
        }
        let Arriving { from, what, values, failed, .. } = self.arriving.remove(read.number);
        let values: Values<'_> = values
            .iter()
            .map(|value| match value {
                Value::Inline(bytes) => Received::Inline(bytes),
                Value::Object(object) => Received::Object(object.clone()),
            })
            .collect();
        let error = failed.map(|(kind, why)| {
            TaskError::new(kind, format!("{} could not read an object of {}: {why}", self.me, read.record.owner))
        });
        match (what, error) {
            (Waiting::Call(call), None) => self.start_call(node, from, call, values),
            (Waiting::Call(call), Some(error)) => self.report(from, call.request, &error),
            (Waiting::Result(request), None) => self.complete(request, values[0].clone()),
            (Waiting::Result(request), Some(error)) => self.fail(request, error),
        }
    }

    fn refuse(&mut self, peer: Rank, request: u64, kind: ErrorKind, why: String) {
        self.report(peer, request, &TaskError::new(kind, why));
    }

    fn report(&mut self, peer: Rank, request: u64, error: &TaskError) {
        if peer == self.me {
            return self.fail(request, error.clone());
        }
        let mut buffer = Vec::new();
        match write_error(&mut buffer, request, error) {
            Ok(()) => self.out.push_back((peer, buffer)),
            Err(e) => self.closing.push((peer, format!("an error that cannot be told: {e}"))),
        }
    }

    pub(super) fn tell(&mut self, peer: Rank, control: &Control) {
        let mut buffer = Vec::new();
        match write_control(&mut buffer, control) {
            Ok(()) => self.out.push_back((peer, buffer)),
            Err(e) => self.closing.push((peer, format!("a message to {peer} that cannot be written: {e}"))),
        }
    }

    fn request(&self, number: u64) -> Option<&Request> {
        self.requests.get(number as u32 as usize).filter(|r| u64::from(r.epoch) == number >> 32)
    }

    fn take_request(&mut self, number: u64) -> Option<Request> {
        self.request(number)?;
        Some(self.requests.remove(number as u32 as usize))
    }

    /// The index of a task in a peer's table.
    pub(super) fn function_at(&self, node: &Node, rank: Rank, kind: &TaskType) -> Result<u32, TaskError> {
        let peer = &self.peers[rank.index()];
        if let Some(cause) = &peer.lost {
            return Err(rank_lost(rank, cause));
        }
        let ours = node.registry.index_of(kind);
        let theirs = match (&peer.functions, ours) {
            (None, ours) => ours,
            (Some(map), Some(ours)) => map.get(ours as usize).copied().flatten(),
            (Some(_), None) => None,
        };
        theirs.ok_or_else(|| {
            let text = format!(
                "{rank} has no task `{}` with the signature {}: start every rank from the same binary",
                kind.name, kind.signature
            );
            TaskError::new(ErrorKind::UnknownTask, text)
        })
    }
}

impl State {
    /// Serves the ranks that asked for work.
    pub(super) fn grant_wishes(&mut self, node: &'static Node) {
        while let Some(peer) = self.core.wishes.pop() {
            if self.core.enlisted(node, peer) {
                continue;
            }
            self.feed(node, peer);
        }
    }
}

impl Core {
    fn enlisted(&self, node: &Node, peer: Rank) -> bool {
        node.idle.asleep(|sleeper| sleeper == HUNGRY_BASE + peer.index()) > 0
    }
}

fn rank_lost(rank: Rank, cause: &str) -> TaskError {
    TaskError::new(ErrorKind::RankLost, format!("{rank} is gone: {cause}"))
}
