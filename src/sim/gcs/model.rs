//! The reconfiguration protocol, exhaustively at small scope.

mod cores;

use std::sync::Mutex;

use stateright::{Checker, Model, Property};

use self::cores::{Cores, Effect, Input, Order, Read, SLOTS, Told, View};
use crate::gcs::Bugs;

#[derive(Clone, Copy, Debug)]
struct Scope {
    commands: u8,
    failures: u8,
    joins: bool,
    closed_loop: bool,
    asks: u8,
    resend: bool,
    lean: u8,
}

struct Reconfiguration {
    scope: Scope,
    start: World,
    cores: Mutex<Cores>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct World {
    cores: [u32; SLOTS],
    /// Messages that may still mean something, in the order of their numbers.
    mail: Vec<u32>,
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

#[derive(Clone, PartialEq, Debug)]
enum Step {
    Tell(u8, Input),
    Command(u8, u8),
    Ask(u8),
    Change(u32),
    Learn,
    Expire,
}

impl World {
    fn view(&self, cores: &Cores, slot: usize) -> View {
        cores.view(self.cores[slot])
    }

    fn changes_nothing(&self, slot: usize, effect: &Effect, cores: &Cores, lean: u8) -> bool {
        effect.core == self.cores[slot]
            && effect.told.is_empty()
            && effect.sends.iter().all(|letter| self.has(*letter) || self.is_dead(*letter, cores, lean))
    }

    fn has(&self, letter: u32) -> bool {
        self.mail.binary_search(&letter).is_ok()
    }

    fn is_dead(&self, letter: u32, cores: &Cores, lean: u8) -> bool {
        let to = cores.letter(letter).to;
        cores.is_dead(letter, &self.view(cores, to), lean)
    }

    fn take(&mut self, slot: usize, effect: &Effect, cores: &mut Cores, lean: u8) {
        if effect.core != self.cores[slot] {
            let (before, view) = (self.view(cores, slot), cores.view(effect.core));
            self.cores[slot] = effect.core;
            if before.epoch != view.epoch {
                self.expired[slot] = false;
            }
            self.mail.retain(|letter| cores.letter(*letter).to != slot || !cores.is_dead(*letter, &view, lean));
            if u64::from(view.order.len) != view.applied {
                self.broken = Some(Rule::HappensOnce);
            }
            if self.decided.begins(view.order) {
                self.decided = view.order;
            } else if !view.order.begins(self.decided) {
                self.broken = Some(Rule::OneOrder);
            }
        }
        for letter in &effect.sends {
            if let Err(place) = self.mail.binary_search(letter)
                && !self.is_dead(*letter, cores, lean)
            {
                self.mail.insert(place, *letter);
            }
        }
        for told in &effect.told {
            match *told {
                Told::Done(command, seq) => {
                    if self.decided.len < seq as u8 || self.decided.at(seq as u8 - 1) != command {
                        self.broken = Some(Rule::AcknowledgedIsCommitted);
                    }
                    self.acknowledged |= 1 << command;
                }
                Told::Read(order) => {
                    if let Some((_, floor)) = self.asking.take()
                        && !floor.begins(order)
                    {
                        self.broken = Some(Rule::ReadsAreFresh);
                    }
                }
                Told::NotNow => self.asking = None,
                Told::Refused => self.broken = Some(Rule::Unexpected),
            }
        }
    }

    /// Leases are asked for and granted as soon as they can be.
    fn lease(&mut self, cores: &mut Cores, lean: u8) {
        for slot in 0..SLOTS {
            let view = self.view(cores, slot);
            if view.retired || view.epoch == 0 {
                continue;
            }
            let (lessor, granted) = cores.beat(self.lessor, self.history, self.known, slot, view.epoch);
            self.lessor = lessor;
            if granted {
                self.expired[slot] = false;
                let effect = cores.turn(self.cores[slot], Input::Grant, false);
                self.take(slot, &effect, cores, lean);
            }
        }
    }

    fn judge(&mut self, cores: &Cores) {
        let chain = cores.history(self.history).chains.last().expect("the first chain");
        for slot in 0..SLOTS {
            let view = self.view(cores, slot);
            if matches!(view.reads[usize::from(self.expired[slot])], Read::Answers(order) if order != self.decided) {
                self.broken = Some(Rule::ReadsAreFresh);
            }
            if view.may_lead && view.last < self.decided.len.into() && chain.position(cores::id(slot)).is_some() {
                self.broken = Some(Rule::NothingIsLost);
            }
        }
    }
}

impl Reconfiguration {
    fn new(bugs: Bugs, scope: Scope) -> Reconfiguration {
        let (mut cores, slots, history, lessor, mut mail) =
            Cores::new(bugs, scope.failures, scope.joins, scope.closed_loop);
        mail.sort_unstable();
        let mut start = World {
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
        start.lease(&mut cores, scope.lean);
        // The first links are made before anything happens.
        while let Some((slot, effect)) = start.mail.iter().find_map(|letter| {
            let slot = cores.letter(*letter).to;
            let effect = cores.turn(start.cores[slot], Input::Message(*letter), false);
            (!start.changes_nothing(slot, &effect, &cores, scope.lean)).then_some((slot, effect))
        }) {
            start.take(slot, &effect, &mut cores, scope.lean);
            start.lease(&mut cores, scope.lean);
        }
        Reconfiguration { scope, start, cores: Mutex::new(cores) }
    }
}

impl Model for Reconfiguration {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![self.start.clone()]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        if world.broken.is_some() {
            return;
        }
        let cores = &mut *self.cores.lock().expect("no panic");
        let lean = self.scope.lean;
        for letter in &world.mail {
            let slot = cores.letter(*letter).to;
            let input = Input::Message(*letter);
            let effect = cores.turn(world.cores[slot], input, world.expired[slot]);
            if !world.changes_nothing(slot, &effect, cores, lean) {
                steps.push(Step::Tell(slot as u8, input));
            }
        }
        let latest = cores.history(world.history).chains.len() as u8;
        for slot in 0..SLOTS {
            let view = world.view(cores, slot);
            if view.retired {
                continue;
            }
            for epoch in view.epoch as u8 + 1..=latest {
                let input = Input::Chain(world.history, epoch);
                let effect = cores.turn(world.cores[slot], input, false);
                if !world.changes_nothing(slot, &effect, cores, lean) {
                    steps.push(Step::Tell(slot as u8, input));
                }
            }
            if view.is_head {
                let sent = if self.scope.closed_loop { world.acknowledged } else { world.offered << 1 | 1 };
                for command in 1..=self.scope.commands {
                    // They are alike: the first that is taken is the first.
                    if command > 1 && sent & 1 << (command - 1) == 0 && (self.scope.closed_loop || sent >> command == 0)
                    {
                        continue;
                    }
                    steps.push(Step::Command(slot as u8, command));
                }
            }
            let asks = view.reads[usize::from(world.expired[slot])] == Read::Asks;
            if asks && world.asks > 0 && world.asking.is_none() {
                steps.push(Step::Ask(slot as u8));
            }
            if self.scope.resend && world.asking.is_none_or(|(asker, _)| usize::from(asker) != slot) {
                let effect = cores.turn(world.cores[slot], Input::Resend, false);
                if !world.changes_nothing(slot, &effect, cores, lean) {
                    steps.push(Step::Tell(slot as u8, Input::Resend));
                }
            }
        }
        steps.extend(cores.changes(world.history).iter().map(|change| Step::Change(*change)));
        if world.known < latest {
            steps.push(Step::Learn);
        }
        steps.push(Step::Expire);
    }

    fn next_state(&self, before: &World, step: Step) -> Option<World> {
        let cores = &mut *self.cores.lock().expect("no panic");
        let lean = self.scope.lean;
        let mut world = before.clone();
        let mut turn = |world: &mut World, slot: u8, input| {
            let slot = usize::from(slot);
            let effect = cores.turn(world.cores[slot], input, world.expired[slot]);
            world.take(slot, &effect, cores, lean);
        };
        match step {
            Step::Tell(slot, input) => turn(&mut world, slot, input),
            Step::Command(slot, command) => {
                turn(&mut world, slot, Input::Command(command));
                if world.cores != before.cores && !self.scope.closed_loop {
                    world.offered |= 1 << command;
                }
            }
            Step::Ask(slot) => {
                world.asks -= 1;
                world.asking = Some((slot, world.decided));
                turn(&mut world, slot, Input::Query);
            }
            Step::Change(history) => world.history = history,
            Step::Learn => world.known += 1,
            Step::Expire => {
                for slot in 0..SLOTS {
                    let view = world.view(cores, slot);
                    world.expired[slot] |= view.epoch < u64::from(world.known) && !view.retired && view.epoch > 0;
                }
                if world.expired == before.expired {
                    return None;
                }
                world.lessor = cores.expire();
            }
        }
        world.lease(cores, lean);
        world.judge(cores);
        (world != *before).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("replicas commit the same", |_, world: &World| world.broken != Some(Rule::OneOrder)),
            Property::always("a command happens once", |_, world: &World| world.broken != Some(Rule::HappensOnce)),
            Property::always("what is acknowledged is committed", |_, world: &World| {
                world.broken != Some(Rule::AcknowledgedIsCommitted)
            }),
            Property::always("nothing is lost", |_, world: &World| world.broken != Some(Rule::NothingIsLost)),
            Property::always("no read is stale", |_, world: &World| world.broken != Some(Rule::ReadsAreFresh)),
            Property::always("nothing else", |_, world: &World| world.broken != Some(Rule::Unexpected)),
        ]
    }
}

#[test]
fn measure() {
    let var = |name: &str, default: u8| std::env::var(name).map_or(default, |v| v.parse().unwrap());
    let scope = Scope {
        commands: var("M_COMMANDS", 1),
        failures: var("M_FAILURES", 1),
        joins: var("M_JOINS", 0) > 0,
        closed_loop: var("M_CLOSED", 0) > 0,
        asks: var("M_ASKS", 0),
        resend: var("M_RESEND", 0) > 0,
        lean: var("M_LEAN", 1),
    };
    let began = std::time::Instant::now();
    let checker = Reconfiguration::new(Bugs::default(), scope)
        .checker()
        .timeout(std::time::Duration::from_secs(var("M_TIMEOUT", 100).into()))
        .spawn_bfs()
        .join();
    println!(
        "{scope:?}: {} unique, {} states, depth {}, done {}, {:?}, sizes {:?}",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        checker.is_done(),
        began.elapsed(),
        checker.model().cores.lock().unwrap().sizes()
    );
    let cores = checker.model().cores.lock().unwrap();
    let mut found = None;
    drop(cores);
    for (name, path) in checker.discoveries() {
        println!("{name}: {} steps", path.clone().into_vec().len());
        found = Some((name, path));
    }
    let cores = checker.model().cores.lock().unwrap();
    if let Some((_, path)) = found {
        for (world, step) in path.into_vec() {
            let chain = &cores.history(world.history).chains.last().unwrap();
            println!(
                "  decided {:?} known {} epoch {:?} expired {:?}",
                world.decided, world.known, chain, world.expired
            );
            for slot in 0..SLOTS {
                println!("    {slot}: {:?}", world.view(&cores, slot));
            }
            match step {
                Some(Step::Tell(_, Input::Message(letter))) => println!("{:?}", cores.letter(letter)),
                step => println!("{step:?}"),
            }
        }
    }
}
