//! The reconfiguration protocol, exhaustively at small scope: every world that can
//! come about with three replicas, two commands and two failures, and with one that
//! joins. [`world`] is what can happen and what must hold, [`explore`] looks at
//! all of it, [`cores`] asks the real cores.
//!
//! # What is real
//! `Replica`, `Directory`, `Granter` and the state are the code that ranks run.
//! The quorum's agreement is one step that makes any change which
//! `Directory::judge` allows, whoever is alive; its members are one `Granter` that
//! learns of changes late, as the member does that two majorities share.
//!
//! # What stands for what
//! Each of these gives all that the real thing can do, or more:
//! - *Network.* Messages lie about from when they are sent, for everybody to take
//!   at any time and as often as they like: this is loss, delay, doubling and any
//!   order. One comes in each turn.
//! - *Failures.* A replica is removed and does not know it. One that has crashed
//!   does what one does that nothing ever reaches, so there is no other step for it.
//! - *Clients.* A command comes to any head at any time and as often as it likes,
//!   as of the head's own epoch.
//! - *Reads.* What a replica would answer now is looked at in every world, and must
//!   be what was committed last by anybody: any number of reads, anywhere. Only a
//!   query that waits for the tail is a step.
//! - *Time* stands still. A lease ends when whoever grants them takes it to have
//!   ended, as late as it can; that the holder's clock is sooner is what
//!   `Timing::is_sound` says. Leases are asked for at once, and had at once where
//!   only reads depend on them: a tail, which commits under one, has it at any time.
//!
//! Not looked at: disks, watches, turns of several messages (but for those that
//! were kept for an epoch to come, [`Scope::early`]), more than one shard.
//!
//! # What made it end
//! Worlds (and seconds, on one busy core) for three replicas, two commands, two
//! failures and no query that waits:
//!
//! | | |
//! |---|---|
//! | whole replicas and queues of messages in each world, one read as steps | did not end in 4 minutes |
//! | numbers for replicas, what they do in a table; reads looked at; no crashes | 557,810 (5.7 s) |
//! | those who grant learn of a change when they grant because of it | 163,691 (1.4 s) |
//! | the same with tails that commit under a lease, and clocks of two times | 589,447 (3.1 s) |
//! | a lease that has run out is one that was given up: one time | 155,480 (2.1 s) |
//! | what changes no replica and only adds messages happens at once | 99,880 (1.7 s) |
//!
//! Messages that mean nothing any more, by [`cores::Cores::is_spent`], are dropped in
//! all of these; if only those of earlier epochs are, the fifth has 693,536 (13 s).
//! Those who know that they were removed are one replica. Of two clients the one
//! whose command is taken first is the first.
//!
//! `COLLIMATE_MODEL` says how far to go ([`at_least`]).

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
        (Bug::CommitEarly, TWO),
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
