//! The task functions of this binary: what the node needs to know of a call
//! when it leaves the rank or arrives at it.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::transfer::{Incoming, Outgoing, Received};
use crate::base::{FunctionId, TaskError};
use crate::sched::Demand;
use crate::sync::Task;

/// One task function. The functions in it downcast what they are given.
pub struct TaskType {
    /// The name that peers know it by, with its module path.
    pub name: &'static str,
    /// Its parameter and result types, as written.
    pub signature: &'static str,
    /// How many arguments it takes, unless that is the function's own affair.
    pub parameters: Option<usize>,
    /// Encodes the arguments of a call of this function.
    pub encode: fn(call: &dyn Any, out: &mut Outgoing<'_>) -> Result<(), Box<TaskError>>,
    /// What a call asks for before it may start.
    pub demand: fn(call: &dyn Any) -> Demand,
    /// Makes a frame of a call from a peer; its result goes to `incoming.reply`.
    pub receive: fn(kind: &'static TaskType, incoming: Incoming<'_>) -> Result<Task, Box<TaskError>>,
    /// Decodes a result from a peer into an `Option<Stored<Output>>`.
    pub complete: fn(result: Received<'_>, slot: &mut dyn Any),
}

impl TaskType {
    /// The function's identity on the wire.
    pub fn id(&self) -> FunctionId {
        FunctionId::of(self.name, self.signature)
    }
}

/// A task as other binaries know it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct TaskEntry {
    /// Which.
    pub id: FunctionId,
    /// Its name, with its module path.
    pub name: String,
    /// Its parameter and result types.
    pub signature: String,
}

/// The tasks that the attribute declared in this binary, filled by the linker.
#[linkme::distributed_slice]
pub static TASKS: [TaskType];

/// Tasks that were declared at run time, before the start.
static DECLARED: Mutex<Vec<&'static TaskType>> = Mutex::new(Vec::new());

/// Declares a task at run time. Every rank declares the same ones, before it
/// starts. An error if the name is taken.
pub fn declare(kind: &'static TaskType) -> Result<(), String> {
    let mut declared = DECLARED.lock().unwrap_or_else(PoisonError::into_inner);
    if declared.iter().copied().chain(TASKS.iter()).any(|k| k.name == kind.name) {
        return Err(format!("a task named `{}` is registered already: choose another name", kind.name));
    }
    declared.push(kind);
    Ok(())
}

/// All tasks of this binary, in the order of their IDs, which is the same in
/// every binary that has the same tasks.
pub struct Registry {
    kinds: Vec<&'static TaskType>,
    /// Index by the address of the task's description, which is asked for at
    /// every call that leaves the rank.
    by_address: BTreeMap<usize, u32>,
    /// A hash over all names and signatures.
    pub hash: u64,
}

impl Registry {
    /// The tasks known now. An error if two have one name.
    pub fn collect() -> Result<Registry, String> {
        let declared = DECLARED.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kinds: Vec<&'static TaskType> = TASKS.iter().chain(declared.iter().copied()).collect();
        kinds.sort_by_key(|k| k.id());
        let mut by_address = BTreeMap::new();
        let mut text = String::new();
        for (index, kind) in kinds.iter().enumerate() {
            by_address.insert(std::ptr::from_ref(*kind).addr(), index as u32);
            if index > 0 && kinds[index - 1].id() == kind.id() {
                return Err(format!("two tasks are named `{}`: rename one of them", kind.name));
            }
            text.push_str(kind.name);
            text.push(':');
            text.push_str(kind.signature);
            text.push(';');
        }
        let hash = FunctionId::of(&text, "").0;
        Ok(Registry { kinds, by_address, hash })
    }

    /// The task with this index.
    pub fn get(&self, index: u32) -> Option<&'static TaskType> {
        self.kinds.get(index as usize).copied()
    }

    /// The names of all tasks.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.kinds.iter().map(|k| k.name)
    }

    /// The index of a task.
    pub fn index_of(&self, kind: &TaskType) -> Option<u32> {
        let by_address = self.by_address.get(&std::ptr::from_ref(kind).addr()).copied();
        // A raw call of a Rust task has a description of its own.
        by_address.or_else(|| self.kinds.binary_search_by_key(&kind.id(), |k| k.id()).ok().map(|index| index as u32))
    }

    /// The task with this name.
    pub fn by_name(&self, name: &str) -> Option<&'static TaskType> {
        self.kinds.iter().copied().find(|k| k.name == name)
    }

    /// The table for peers whose hash differs.
    pub(super) fn entries(&self) -> Vec<TaskEntry> {
        let entry = |k: &&TaskType| TaskEntry { id: k.id(), name: k.name.into(), signature: k.signature.into() };
        self.kinds.iter().map(entry).collect()
    }

    /// For each task of ours its index in a peer's table.
    pub(super) fn indices_in(&self, theirs: &[TaskEntry]) -> Vec<Option<u32>> {
        self.kinds.iter().map(|k| theirs.iter().position(|t| t.id == k.id()).map(|i| i as u32)).collect()
    }
}
