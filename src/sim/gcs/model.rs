//! The reconfiguration protocol, exhaustively at small scope.

mod cores;

use std::collections::HashMap;
use std::sync::Arc;

use self::cores::{Cores, Effect, Input, Joiner, Order, Read, SLOTS, Told, View};
use crate::gcs::{Bug, Bugs};

#[derive(Clone, Copy, Debug)]
struct Scope {
    founding: usize,
    commands: u8,
    failures: u8,
    joiner: Joiner,
    closed_loop: bool,
    asks: u8,
    resend: bool,
    lean: u8,
}

struct Reconfiguration {
    scope: Scope,
    cores: Cores,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct World {
    cores: [u32; SLOTS],
    /// Messages that may still mean something, in the order of their numbers.
    mail: u32,
    history: u32,
    lessor: u32,
    /// The epoch up to which those who grant leases know the changes.
    known: u8,
    expired: [bool; SLOTS],
    /// What was committed by anybody.
    decided: Order,
    acknowledged: u8,
    offered: u8,
    asking: Option<(u8, Order)>,
    asks: u8,
    broken: Option<Rule>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Rule {
    OneOrder,
    HappensOnce,
    AcknowledgedIsCommitted,
    NothingIsLost,
    ReadsAreFresh,
    Unexpected,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Step {
    Start,
    Tell(u8, Input),
    Command(u8, u8),
    Ask(u8),
    Change(u32),
    /// Another life of a removed rank begins.
    Begin(u8),
    /// Those who grant leases learn of the changes up to this epoch.
    Learn(u8),
    /// Likewise, when all leases of earlier epochs have run out.
    Outlast(u8),
}

/// What was found.
struct Explored {
    worlds: Vec<(World, u32, Step)>,
    steps: usize,
    depth: usize,
    complete: bool,
    broken: Option<(Rule, u32)>,
}

impl Reconfiguration {
    fn new(bugs: Bugs, scope: Scope) -> (Reconfiguration, World) {
        let (mut cores, slots, history, lessor, mut mail) =
            Cores::new(bugs, scope.founding, scope.failures, scope.joiner, scope.closed_loop);
        mail.sort_unstable();
        let mail = cores.lay_out(mail);
        let start = World {
            cores: slots,
            mail,
            history,
            lessor,
            known: 1,
            expired: [false; SLOTS],
            decided: Order::default(),
            acknowledged: 0,
            offered: 0,
            asking: None,
            asks: scope.asks,
            broken: None,
        };
        let mut model = Reconfiguration { scope, cores };
        let mut world = start;
        model.lease(&mut world);
        // The first links are made before anything happens.
        loop {
            let mail = model.cores.mail(world.mail).to_vec();
            let next = mail.into_iter().find_map(|letter| {
                let slot = model.cores.letter(letter).to;
                if model.is_early(&world, letter) {
                    return None;
                }
                let effect = model.cores.turn(world.cores[slot], Input::Message(letter), false);
                (!model.is_nothing(&world, slot, &effect)).then_some((slot, effect))
            });
            let Some((slot, effect)) = next else { break };
            model.take(&mut world, slot, &effect);
            model.lease(&mut world);
        }
        for slot in 0..scope.founding {
            model.grant(&mut world, slot);
        }
        (model, world)
    }

    fn view(&self, world: &World, slot: usize) -> View {
        self.cores.view(world.cores[slot])
    }

    fn is_nothing(&self, world: &World, slot: usize, effect: &Effect) -> bool {
        effect.core == world.cores[slot]
            && effect.told.is_empty()
            && effect
                .sends
                .iter()
                .all(|letter| self.cores.mail(world.mail).binary_search(letter).is_ok() || self.is_dead(world, *letter))
    }

    fn is_dead(&self, world: &World, letter: u32) -> bool {
        let to = self.cores.letter(letter).to;
        self.cores.is_dead(letter, &self.view(world, to), self.scope.lean)
    }

    /// Whether its receiver can do nothing with it before it is in that epoch.
    fn is_early(&self, world: &World, letter: u32) -> bool {
        let letter = self.cores.letter(letter);
        letter.message.epoch.0 > self.view(world, letter.to).epoch
    }

    fn take(&mut self, world: &mut World, slot: usize, effect: &Effect) {
        let changed = effect.core != world.cores[slot];
        if changed {
            let (before, view) = (self.view(world, slot), self.cores.view(effect.core));
            world.cores[slot] = effect.core;
            if before.epoch != view.epoch {
                world.expired[slot] = false;
            }
            if u64::from(view.order.len) != view.applied {
                world.broken = Some(Rule::HappensOnce);
            }
            if world.decided.begins(view.order) {
                world.decided = view.order;
            } else if !view.order.begins(world.decided) {
                world.broken = Some(Rule::OneOrder);
            }
        }
        if changed || !effect.sends.is_empty() {
            let mut mail = self.cores.mail(world.mail).to_vec();
            if changed {
                mail.retain(|letter| self.cores.letter(*letter).to != slot || !self.is_dead(world, *letter));
            }
            for letter in &effect.sends {
                if let Err(place) = mail.binary_search(letter)
                    && !self.is_dead(world, *letter)
                {
                    mail.insert(place, *letter);
                }
            }
            world.mail = self.cores.lay_out(mail);
        }
        for told in &effect.told {
            match *told {
                Told::Done(command, seq) => {
                    if world.decided.len < seq as u8 || world.decided.at(seq as u8 - 1) != command {
                        world.broken = Some(Rule::AcknowledgedIsCommitted);
                    }
                    if self.scope.closed_loop {
                        world.acknowledged |= 1 << command;
                    }
                }
                Told::Read(order) => {
                    if let Some((_, floor)) = world.asking.take()
                        && !floor.begins(order)
                    {
                        world.broken = Some(Rule::ReadsAreFresh);
                    }
                }
                Told::NotNow => world.asking = None,
                Told::Refused => world.broken = Some(Rule::Unexpected),
            }
        }
    }

    /// Leases are asked for as soon as they can be. Where only reads depend on
    /// them, they are also had then.
    fn lease(&mut self, world: &mut World) {
        for slot in 0..SLOTS {
            let view = self.view(world, slot);
            if !view.retired && self.beat(world, slot) && !view.is_tail {
                self.grant(world, slot);
            }
        }
    }

    fn beat(&mut self, world: &mut World, slot: usize) -> bool {
        let view = self.view(world, slot);
        let (lessor, granted) = self.cores.beat(world.lessor, world.history, world.known, view.id, view.epoch);
        world.lessor = lessor;
        granted
    }

    fn grant(&mut self, world: &mut World, slot: usize) {
        world.expired[slot] = false;
        let effect = self.cores.turn(world.cores[slot], Input::Grant, false);
        self.take(world, slot, &effect);
    }

    /// What changes no replica and only adds messages happens at once: a world
    /// with more messages can do all that one with fewer can.
    fn say(&mut self, world: &mut World) {
        loop {
            let mail = world.mail;
            for at in 0.. {
                let Some(letter) = self.cores.mail(mail).get(at).copied() else { break };
                let slot = self.cores.letter(letter).to;
                if self.is_early(world, letter) {
                    continue;
                }
                self.say_only(world, slot, Input::Message(letter));
            }
            for slot in 0..SLOTS {
                if self.scope.resend && !self.view(world, slot).retired {
                    self.say_only(world, slot, Input::Resend);
                }
            }
            if world.mail == mail {
                return;
            }
        }
    }

    fn say_only(&mut self, world: &mut World, slot: usize, input: Input) {
        let effect = self.cores.turn(world.cores[slot], input, world.expired[slot]);
        if effect.core == world.cores[slot] && effect.told.is_empty() {
            self.take(world, slot, &effect);
        }
    }

    fn judge(&self, world: &mut World) {
        let chain = self.cores.history(world.history).chains.last().expect("the first chain");
        for slot in 0..SLOTS {
            let view = self.view(world, slot);
            if matches!(view.reads[usize::from(world.expired[slot])], Read::Answers(order) if order != world.decided) {
                world.broken = Some(Rule::ReadsAreFresh);
            }
            if view.may_lead && view.last < world.decided.len.into() && chain.position(view.id).is_some() {
                world.broken = Some(Rule::NothingIsLost);
            }
        }
    }

    /// All that can happen next.
    fn steps(&mut self, world: &World, steps: &mut Vec<Step>) {
        let mail = Vec::from(self.cores.mail(world.mail));
        let mut useful = |model: &mut Reconfiguration, slot: usize, input, expired| {
            let effect = model.cores.turn(world.cores[slot], input, expired);
            if !model.is_nothing(world, slot, &effect) {
                steps.push(Step::Tell(slot as u8, input));
            }
        };
        for letter in mail {
            let slot = self.cores.letter(letter).to;
            if self.is_early(world, letter) {
                continue;
            }
            useful(self, slot, Input::Message(letter), world.expired[slot]);
        }
        let latest = self.cores.history(world.history).chains.len() as u8;
        for slot in 0..SLOTS {
            let view = self.view(world, slot);
            if view.retired {
                continue;
            }
            for epoch in view.epoch as u8 + 1..=latest {
                useful(self, slot, Input::Chain(world.history, epoch), false);
            }
            if self.scope.resend && world.asking.is_none_or(|(asker, _)| usize::from(asker) != slot) {
                useful(self, slot, Input::Resend, false);
            }
        }
        for slot in 0..SLOTS {
            let view = self.view(world, slot);
            if view.retired {
                continue;
            }
            if view.is_head {
                let sent = if self.scope.closed_loop { world.acknowledged } else { world.offered } | 1;
                // Commands of two clients are alike: the first that is taken is the first.
                let there = (1..=self.scope.commands).filter(|command| sent & 1 << (command - 1) != 0);
                steps.extend(there.map(|command| Step::Command(slot as u8, command)));
            }
            let asks = view.reads[usize::from(world.expired[slot])] == Read::Asks;
            if asks && world.asks > 0 && world.asking.is_none() {
                steps.push(Step::Ask(slot as u8));
            }
        }
        for slot in 0..SLOTS {
            let view = self.view(world, slot);
            if view.is_tail && !view.retired && self.beat(&mut { *world }, slot) {
                let effect = self.cores.turn(world.cores[slot], Input::Grant, false);
                if world.expired[slot] || !self.is_nothing(world, slot, &effect) {
                    steps.push(Step::Tell(slot as u8, Input::Grant));
                }
            }
            let chain = self.cores.history(world.history).chains.last().expect("the first chain");
            let no_other = world.cores.iter().all(|core| self.cores.view(*core).id.incarnation == 1);
            if self.scope.joiner == Joiner::NextLife
                && slot < self.scope.founding
                && no_other
                && chain.position(view.id).is_none()
            {
                steps.push(Step::Begin(slot as u8));
            }
        }
        for change in self.cores.changes(world.history).iter() {
            let joining = self.cores.history(*change).chains.last().and_then(|chain| chain.joining);
            let there = |id| world.cores.iter().any(|core| self.cores.view(*core).id == id);
            if joining.is_none_or(there) {
                steps.push(Step::Change(*change));
            }
        }
        for epoch in world.known + 1..=latest {
            let wants: Vec<usize> = (0..SLOTS)
                .filter(|slot| {
                    let view = self.view(world, *slot);
                    let chain = &self.cores.history(world.history).chains[usize::from(epoch) - 1];
                    !view.retired && view.epoch == u64::from(epoch) && chain.position(view.id).is_some()
                })
                .collect();
            let mut then = World { known: epoch, ..*world };
            if wants.iter().any(|slot| self.beat(&mut then, *slot)) {
                steps.push(Step::Learn(epoch));
            } else if !wants.is_empty() {
                steps.push(Step::Outlast(epoch));
            }
        }
    }

    fn step(&mut self, before: &World, step: Step) -> World {
        let mut world = *before;
        match step {
            Step::Start => {}
            Step::Tell(slot, Input::Grant) => self.grant(&mut world, slot.into()),
            Step::Tell(slot, input) => self.turn(&mut world, slot, input),
            Step::Command(slot, command) => {
                self.turn(&mut world, slot, Input::Command(command));
                if world.cores != before.cores && !self.scope.closed_loop {
                    world.offered |= 1 << command;
                }
            }
            Step::Ask(slot) => {
                world.asks -= 1;
                world.asking = Some((slot, world.decided));
                self.turn(&mut world, slot, Input::Query);
            }
            Step::Change(history) => world.history = history,
            Step::Begin(slot) => {
                let id = self.view(&world, slot.into()).id;
                world.cores[usize::from(slot)] = self.cores.next_life(id);
                world.expired[usize::from(slot)] = false;
            }
            Step::Learn(epoch) => world.known = epoch,
            Step::Outlast(epoch) => {
                for slot in 0..SLOTS {
                    let view = self.view(&world, slot);
                    world.expired[slot] = !view.retired && view.epoch > 0 && view.epoch < epoch.into();
                }
                world.lessor = self.cores.expire();
                world.known = epoch;
            }
        }
        if world != *before {
            self.lease(&mut world);
            if self.scope.lean > 1 {
                self.say(&mut world);
            }
            self.judge(&mut world);
        }
        world
    }

    fn turn(&mut self, world: &mut World, slot: u8, input: Input) {
        let slot = usize::from(slot);
        let effect: Arc<Effect> = self.cores.turn(world.cores[slot], input, world.expired[slot]);
        self.take(world, slot, &effect);
    }

    /// Looks at every world that can come about, those of few steps first, until
    /// a rule is broken.
    fn explore(&mut self, start: World, limit: usize) -> Explored {
        let mut found =
            Explored { worlds: vec![(start, 0, Step::Start)], steps: 0, depth: 0, complete: false, broken: None };
        let mut known: HashMap<World, ()> = HashMap::from([(start, ())]);
        let (mut next, mut layer_ends, mut steps) = (0, 1, Vec::new());
        while next < found.worlds.len() {
            if next == layer_ends {
                layer_ends = found.worlds.len();
                found.depth += 1;
            }
            if found.worlds.len() > limit {
                return found;
            }
            let world = found.worlds[next].0;
            steps.clear();
            self.steps(&world, &mut steps);
            for step in &steps {
                let after = self.step(&world, *step);
                found.steps += 1;
                if known.insert(after, ()).is_none() {
                    found.worlds.push((after, next as u32, *step));
                    if let Some(rule) = after.broken {
                        found.broken = Some((rule, found.worlds.len() as u32 - 1));
                        return found;
                    }
                }
            }
            next += 1;
        }
        found.complete = true;
        found
    }

    fn tell(&self, found: &Explored) -> String {
        use std::fmt::Write;
        let Some((rule, mut at)) = found.broken else { return String::new() };
        let mut path = vec![at];
        while at != 0 {
            at = found.worlds[at as usize].1;
            path.push(at);
        }
        let mut text = format!("{rule:?}\n");
        for at in path.into_iter().rev() {
            let (world, _, step) = &found.worlds[at as usize];
            let _ = match step {
                Step::Tell(_, Input::Message(letter)) => writeln!(text, "{:?}", self.cores.letter(*letter)),
                Step::Change(history) => writeln!(text, "Change {:?}", self.cores.history(*history).chains.last()),
                step => writeln!(text, "{step:?}"),
            };
            for slot in 0..SLOTS {
                let _ = writeln!(text, "    {slot}: {:?} {}", self.view(world, slot), world.expired[slot]);
            }
        }
        text
    }
}

#[test]
fn measure() {
    let var = |name: &str, default: usize| std::env::var(name).map_or(default, |v| v.parse().unwrap());
    let scope = Scope {
        commands: var("M_COMMANDS", 1) as u8,
        failures: var("M_FAILURES", 1) as u8,
        founding: var("M_FOUNDING", 3),
        joiner: [Joiner::Nobody, Joiner::Another, Joiner::NextLife][var("M_JOINS", 0)],
        closed_loop: var("M_CLOSED", 0) > 0,
        asks: var("M_ASKS", 0) as u8,
        resend: var("M_RESEND", 0) > 0,
        lean: var("M_LEAN", 1) as u8,
    };
    let began = std::time::Instant::now();
    let one = std::env::var("M_BUG").ok().map(|name| *Bug::ALL.iter().find(|bug| format!("{bug:?}") == name).unwrap());
    let (mut model, start) = Reconfiguration::new(Bugs { one }, scope);
    let found = model.explore(start, var("M_LIMIT", 5_000_000));
    println!(
        "{one:?} {scope:?}: {} worlds, {} steps, depth {}, complete {}, {:?}, sizes {:?}",
        found.worlds.len(),
        found.steps,
        found.depth,
        found.complete,
        began.elapsed(),
        model.cores.sizes()
    );
    if var("M_STATS", 0) > 0 {
        use std::collections::HashSet;
        let count =
            |f: &dyn Fn(&World) -> Vec<u32>| found.worlds.iter().map(|(w, _, _)| f(w)).collect::<HashSet<_>>().len();
        println!("cores {}", count(&|w| w.cores.to_vec()));
        println!("mail {}", count(&|w| vec![w.mail]));
        println!("cores, mail {}", count(&|w| [&w.cores[..], &[w.mail]].concat()));
        println!("cores, mail, history {}", count(&|w| [&w.cores[..], &[w.mail, w.history]].concat()));
        println!(
            "leases {}",
            count(&|w| vec![w.lessor, u32::from(w.known), u32::from_le_bytes(w.expired.map(u8::from))])
        );
        println!(
            "without leases {}",
            count(&|w| {
                [
                    &w.cores[..],
                    &[
                        w.mail,
                        w.history,
                        w.offered.into(),
                        w.decided.len.into(),
                        w.decided.at(0).into(),
                        w.decided.at(1).into(),
                    ],
                ]
                .concat()
            })
        );
        println!(
            "without history, leases {}",
            count(&|w| {
                [
                    &w.cores[..],
                    &[w.mail, w.offered.into(), w.decided.len.into(), w.decided.at(0).into(), w.decided.at(1).into()],
                ]
                .concat()
            })
        );
        for slot in 0..SLOTS {
            println!("core {slot} {}", count(&|w| vec![w.cores[slot]]));
        }
    }
    if var("M_TELL", 0) > 0 {
        println!("{}", model.tell(&found));
    } else if let Some((rule, _)) = found.broken {
        println!("  {rule:?}");
    }
    if var("M_LETTERS", 0) > 0 {
        model.cores.print();
    }
}
