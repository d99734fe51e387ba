//! The reconfiguration protocol, exhaustively at small scope.

mod cores;
mod explore;
mod world;

use self::explore::{Explored, explore, tell};
use self::world::{Reconfiguration, Rule, Sight};
use crate::gcs::{Bug, Bugs};

/// How much can happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Scope {
    /// Replicas of the first chain.
    founding: usize,
    /// Commands, all of one key.
    commands: u8,
    /// Whether one client sends them, each when the one before was acknowledged;
    /// else each is of another client.
    closed_loop: bool,
    /// Replicas that go, one by one or at once.
    failures: u8,
    joiner: Joiner,
    /// Queries that wait for the tail.
    asks: u8,
    /// Messages that come before their receiver is in their epoch, and are kept.
    early: u8,
    /// Whether messages lie about that mean nothing any more.
    keeps_all: bool,
}

/// Who may join.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Joiner {
    Nobody,
    /// A rank that was in no chain.
    Another,
    /// The next life of a rank that was removed.
    NextLife,
}

/// Three replicas, two commands of two clients.
const TWO: Scope = Scope {
    founding: 3,
    commands: 2,
    closed_loop: false,
    failures: 1,
    joiner: Joiner::Nobody,
    asks: 0,
    early: 0,
    keeps_all: false,
};

/// A chain of two that a third may join.
const JOINS: Scope = Scope { founding: 2, commands: 1, failures: 0, joiner: Joiner::Another, ..TWO };

/// How far to go: what takes seconds in a debug build, what the issue asks for,
/// or what takes minutes.
fn at_least(scale: &str) -> bool {
    let scales = ["small", "full", "long"];
    let place = |name: &str| scales.iter().position(|scale| *scale == name);
    let asked = std::env::var("COLLIMATE_MODEL").unwrap_or_else(|_| "small".into());
    place(&asked).unwrap_or_else(|| panic!("COLLIMATE_MODEL={asked} is none of {scales:?}")) >= place(scale).unwrap()
}

fn look(scope: Scope, bug: Option<Bug>) -> (Reconfiguration, Explored) {
    let began = std::time::Instant::now();
    let (mut model, start) = Reconfiguration::new(scope, Bugs { one: bug });
    let found = explore(&mut model, start);
    let Explored { steps, depth, ref worlds, .. } = found;
    println!("{scope:?} {bug:?}: {} worlds, {steps} steps, depth {depth}, {:?}", worlds.len(), began.elapsed());
    (model, found)
}

/// Every world keeps every rule, and these things were seen.
fn holds(scope: Scope, sights: &[Sight]) {
    let (model, found) = look(scope, None);
    assert!(found.broken.is_none(), "{}", tell(&model, &found));
    for sight in sights {
        assert!(found.sights.contains(sight), "{sight:?} was not seen, but {:?}", found.sights);
    }
}

#[test]
fn every_order_of_two_writes_and_two_failures() {
    use Sight::*;
    let sights = [AllDone, HeadGone, Unaware, Outlasted, Whole];
    if !at_least("full") {
        return holds(TWO, &sights);
    }
    holds(Scope { failures: 2, asks: 1, ..TWO }, &[&sights[..], &[Asked]].concat());
    holds(Scope { failures: 2, closed_loop: true, ..TWO }, &sights);
    holds(Scope { commands: 1, failures: 2, early: 2, ..TWO }, &sights);
    if at_least("long") {
        holds(Scope { failures: 2, early: 2, ..TWO }, &sights);
        holds(Scope { failures: 2, asks: 2, ..TWO }, &sights);
    }
}

#[test]
fn every_order_of_a_join() {
    use Sight::*;
    holds(JOINS, &[AllDone, Joined, Outlasted, Whole]);
    holds(Scope { failures: 1, joiner: Joiner::NextLife, ..JOINS }, &[AllDone, HeadGone, Joined, Unaware, Whole]);
    let sights = [AllDone, HeadGone, Joined, Unaware, Outlasted, Whole];
    if at_least("full") {
        holds(Scope { failures: 1, ..JOINS }, &sights);
        holds(Scope { commands: 2, failures: 2, joiner: Joiner::NextLife, ..JOINS }, &sights);
        holds(Scope { founding: 3, failures: 1, joiner: Joiner::NextLife, ..JOINS }, &sights);
    }
    if at_least("long") {
        holds(Scope { commands: 2, failures: 1, ..JOINS }, &sights);
        holds(Scope { failures: 2, ..JOINS }, &sights);
        holds(Scope { founding: 3, ..JOINS }, &sights[..1]);
        holds(Scope { founding: 3, failures: 2, joiner: Joiner::NextLife, ..JOINS }, &sights);
        holds(Scope { founding: 3, commands: 2, failures: 1, joiner: Joiner::NextLife, ..JOINS }, &sights);
    }
}

/// The model sees what it is there to see.
#[test]
fn every_deliberate_bug_breaks_a_rule() {
    let cases = [
        (Bug::SkipEpochCheck, TWO),
        (Bug::ReadDirty, TWO),
        (Bug::DropLease, TWO),
        (Bug::TruncateEarly, TWO),
        (Bug::AcknowledgeAtHead, TWO),
        (Bug::ForgetSuffix, TWO),
        (Bug::DoubleApply, TWO),
        (Bug::JoinEarly, JOINS),
        (Bug::GrantEarly, TWO),
    ];
    for (bug, scope) in cases {
        let (_, found) = look(scope, Some(bug));
        let (rule, _) = found.broken.unwrap_or_else(|| panic!("{bug:?} breaks nothing"));
        println!("    {rule:?}");
        assert!(rule != Rule::GoesOn || bug == Bug::ForgetSuffix, "{bug:?} must do more than stop the chain");
    }
}

/// The model drops messages that mean nothing any more: so says its rule for
/// them. Where they lie about all the same, they change nothing.
#[test]
fn what_is_dropped_would_be_ignored() {
    for scope in [Scope { commands: 1, ..TWO }, Scope { failures: 1, joiner: Joiner::NextLife, ..JOINS }] {
        let (mut model, found) = look(Scope { keeps_all: true, ..scope }, None);
        let mut spent = 0;
        for (world, ..) in &found.worlds {
            for letter in model.cores.mail(world.mail).to_vec() {
                if model.is_spent(world, letter) {
                    let slot = model.cores.letter(letter).to;
                    let effect = model.cores.turn(world.core(slot), cores::Input::Message(letter));
                    assert!(model.is_nothing(world, slot, &effect), "{:?}", model.cores.letter(letter));
                    spent += 1;
                }
            }
        }
        assert!(spent > found.worlds.len(), "{spent} in {} worlds", found.worlds.len());
    }
}
