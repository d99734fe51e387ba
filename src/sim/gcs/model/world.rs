//! What a world is, what can happen in it, and what must hold.

use std::collections::BTreeSet;

use super::cores::{self, Cores, Effect, Input, Order, Read, SLOTS, Start, Told, View};
use super::{Joiner, Scope};
use crate::gcs::{Bugs, Change};

/// A state of everything.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct World {
    cores: [u32; SLOTS],
    /// The messages that may still mean something.
    pub mail: u32,
    history: u32,
    lessor: u32,
    /// Up to which epoch those who grant leases know the changes.
    known: u8,
    /// What was committed by anybody.
    decided: Order,
    /// The commands that were taken, and those that were acknowledged, as far
    /// as it matters.
    taken: u8,
    acknowledged: u8,
    /// Who waits for the tail with a query, and what was committed when it came.
    asking: Option<(u8, Order)>,
    asks: u8,
    early: u8,
    pub broken: Option<Rule>,
}

impl World {
    pub fn core(&self, slot: usize) -> u32 {
        self.cores[slot]
    }
}

/// What must hold.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Rule {
    /// No two replicas commit different commands at one place.
    OneOrder,
    /// A command happens once, in one place.
    HappensOnce,
    /// What is acknowledged is committed there.
    AcknowledgedIsCommitted,
    /// What is committed is on every member that could go on alone.
    NothingIsLost,
    /// An answer is what was committed last.
    ReadsAreFresh,
    /// No command is refused here.
    NothingIsRefused,
    /// Where nothing more comes by itself, the chain is whole and all is done.
    GoesOn,
}

/// What should be seen to happen, or nothing was checked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Sight {
    /// All is committed and all failures have come.
    AllDone,
    /// The first head is gone, and something was committed since.
    HeadGone,
    /// A removed replica that does not know it answers reads.
    Unaware,
    /// A lease of an earlier epoch had to run out.
    Outlasted,
    /// The tail was asked, and a query was answered for it.
    Asked,
    /// One that joined has committed everything as the tail.
    Joined,
    /// The chain was whole with nothing left to come.
    Whole,
}

/// Something that can happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    Start,
    Tell(u8, Input),
    Ask(u8),
    /// The directory changes.
    Change(u32),
    /// Another life of a removed rank begins.
    Begin(u8),
    /// Those who grant leases learn of the changes up to this epoch.
    Learn(u8),
    /// Likewise, when all leases of earlier epochs have run out.
    Outlast(u8),
}

impl Step {
    /// Whether it comes sooner or later if it changes something: what is not a
    /// failure or somebody's choice.
    pub fn must_come(self) -> bool {
        !matches!(self, Step::Ask(_) | Step::Change(_) | Step::Begin(_))
    }
}

/// The model: the cores, and what has been seen.
pub struct Reconfiguration {
    scope: Scope,
    pub cores: Cores,
    pub sights: BTreeSet<Sight>,
}

impl Reconfiguration {
    /// The model, and a world in which the first links are made and the first
    /// leases granted.
    pub fn new(scope: Scope, bugs: Bugs) -> (Reconfiguration, World) {
        let (cores, Start { cores: slots, mail, history, lessor }) = Cores::new(scope, bugs);
        let mut world = World {
            cores: slots,
            mail,
            history,
            lessor,
            known: 1,
            decided: Order::default(),
            taken: 0,
            acknowledged: 0,
            asking: None,
            asks: scope.asks,
            early: scope.early,
            broken: None,
        };
        let mut model = Reconfiguration { scope, cores, sights: BTreeSet::new() };
        loop {
            let before = world;
            let mut steps = Vec::new();
            model.steps(&world, &mut steps);
            let link = |step: &&Step| matches!(step, Step::Tell(_, Input::Message(_) | Input::Grant));
            if let Some(step) = steps.iter().find(link) {
                world = model.step(&world, *step);
            }
            if world == before {
                return (model, world);
            }
        }
    }

    pub fn view(&self, world: &World, slot: usize) -> View {
        self.cores.view(world.cores[slot])
    }

    /// All that can happen next.
    pub fn steps(&mut self, world: &World, steps: &mut Vec<Step>) {
        let latest = self.cores.history(world.history).chains.len() as u8;
        for at in 0.. {
            let Some(letter) = self.cores.mail(world.mail).get(at).copied() else { break };
            let to = self.cores.letter(letter).to;
            if world.early > 0 || !self.is_early(world, letter) {
                self.offer(world, to, Input::Message(letter), steps);
            }
        }
        for slot in 0..SLOTS {
            let view = self.view(world, slot);
            if view.retired {
                continue;
            }
            for epoch in view.epoch as u8 + 1..=latest {
                self.offer(world, slot, Input::Chain(world.history, epoch), steps);
            }
            if world.asking.is_none_or(|(asker, _)| usize::from(asker) != slot) {
                self.offer(world, slot, Input::Resend, steps);
            }
            if view.is_tail && self.beat(&mut { *world }, slot) {
                self.offer(world, slot, Input::Grant, steps);
            }
            for command in 1..=self.scope.commands {
                if view.is_head && self.may_be_sent(world, command) {
                    self.offer(world, slot, Input::Command(command), steps);
                }
            }
            if view.read == Read::Asks && world.asks > 0 && world.asking.is_none() {
                steps.push(Step::Ask(slot as u8));
            }
        }
        self.changes(world, steps);
        for epoch in world.known + 1..=latest {
            let chain = &self.cores.history(world.history).chains[usize::from(epoch) - 1];
            let wants = |slot: &usize| {
                let view = self.view(world, *slot);
                !view.retired && view.epoch == u64::from(epoch) && chain.position(view.id).is_some()
            };
            let wants: Vec<usize> = (0..SLOTS).filter(wants).collect();
            let mut then = World { known: epoch, ..*world };
            if wants.iter().any(|slot| self.beat(&mut then, *slot)) {
                steps.push(Step::Learn(epoch));
            } else if !wants.is_empty() {
                steps.push(Step::Outlast(epoch));
            }
        }
    }

    /// Whether a client could send it. Of two clients, which are alike, the
    /// first whose command is taken is called the first.
    fn may_be_sent(&self, world: &World, command: u8) -> bool {
        let before = if self.scope.closed_loop { world.acknowledged } else { world.taken };
        command == 1 || before & 1 << (command - 1) != 0
    }

    fn offer(&mut self, world: &World, slot: usize, input: Input, steps: &mut Vec<Step>) {
        let effect = self.cores.turn(world.cores[slot], input);
        if !self.is_nothing(world, slot, &effect) {
            steps.push(Step::Tell(slot as u8, input));
        }
    }

    fn changes(&mut self, world: &World, steps: &mut Vec<Step>) {
        let is_there = |cores: &Cores, id| world.cores.iter().any(|core| cores.view(*core).id == id);
        for change in self.cores.changes(world.history).iter() {
            let joining = self.cores.history(*change).latest().joining;
            if joining.is_none_or(|joining| is_there(&self.cores, joining)) {
                steps.push(Step::Change(*change));
            }
        }
        let begun = world.cores.iter().any(|core| self.cores.view(*core).id.incarnation > 1);
        for slot in 0..self.scope.founding {
            let removed = self.cores.history(world.history).latest().position(cores::id(slot)).is_none();
            if self.scope.joiner == Joiner::NextLife && removed && !begun {
                steps.push(Step::Begin(slot as u8));
            }
        }
    }

    /// What comes of it.
    pub fn step(&mut self, before: &World, step: Step) -> World {
        let mut world = *before;
        match step {
            Step::Start => {}
            Step::Tell(slot, input) => {
                if let Input::Message(letter) = input
                    && self.is_early(&world, letter)
                {
                    world.early -= 1;
                }
                self.turn(&mut world, slot.into(), input);
                if let Input::Command(command) = input
                    && world.cores != before.cores
                    && command < self.scope.commands
                {
                    world.taken |= 1 << command;
                }
            }
            Step::Ask(slot) => {
                world.asks -= 1;
                world.asking = Some((slot, world.decided));
                self.turn(&mut world, slot.into(), Input::Query);
            }
            Step::Change(history) => world.history = history,
            Step::Begin(slot) => {
                let slot = usize::from(slot);
                world.cores[slot] = self.cores.next_life(cores::id(slot));
                world.asking.take_if(|(asker, _)| usize::from(*asker) == slot);
            }
            Step::Learn(epoch) => world.known = epoch,
            Step::Outlast(epoch) => {
                self.sights.insert(Sight::Outlasted);
                for slot in 0..SLOTS {
                    if (1..u64::from(epoch)).contains(&self.view(&world, slot).epoch) {
                        self.turn(&mut world, slot, Input::Expire);
                    }
                }
                world.lessor = self.cores.expire();
                world.known = epoch;
            }
        }
        if world != *before {
            self.lease(&mut world);
            self.say(&mut world);
            self.judge(&mut world);
        }
        world
    }

    fn turn(&mut self, world: &mut World, slot: usize, input: Input) {
        let effect = self.cores.turn(world.cores[slot], input);
        self.take(world, slot, &effect);
    }

    fn take(&mut self, world: &mut World, slot: usize, effect: &Effect) {
        let changed = effect.core != world.cores[slot];
        world.cores[slot] = effect.core;
        let view = self.view(world, slot);
        if changed && !view.retired {
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
            for letter in &effect.sends {
                if let Err(place) = mail.binary_search(letter) {
                    mail.insert(place, *letter);
                }
            }
            if !self.scope.keeps_all {
                mail.retain(|letter| !self.is_spent(world, *letter));
            }
            world.mail = self.cores.lay_out(mail);
        }
        for told in &effect.told {
            self.told(world, *told);
        }
    }

    fn told(&mut self, world: &mut World, told: Told) {
        match told {
            Told::Done(command, seq) => {
                if world.decided.len < seq as u8 || world.decided.at(seq as u8 - 1) != command {
                    world.broken = Some(Rule::AcknowledgedIsCommitted);
                }
                if self.scope.closed_loop && command < self.scope.commands {
                    world.acknowledged |= 1 << command;
                }
            }
            Told::Read(order) => {
                if let Some((_, floor)) = world.asking.take() {
                    self.sights.insert(Sight::Asked);
                    if !floor.begins(order) {
                        world.broken = Some(Rule::ReadsAreFresh);
                    }
                }
            }
            Told::NotNow => world.asking = None,
            Told::Refused => world.broken = Some(Rule::NothingIsRefused),
        }
    }

    /// Leases are asked for as soon as they can be. Where only reads depend on
    /// them, they are also had then.
    fn lease(&mut self, world: &mut World) {
        for slot in 0..SLOTS {
            let view = self.view(world, slot);
            if !view.retired && self.beat(world, slot) && !view.is_tail {
                self.turn(world, slot, Input::Grant);
            }
        }
    }

    fn beat(&mut self, world: &mut World, slot: usize) -> bool {
        let view = self.view(world, slot);
        let (lessor, granted) = self.cores.beat(world.lessor, world.history, world.known, view.id, view.epoch);
        world.lessor = lessor;
        granted
    }

    /// What changes no replica and only adds messages happens at once: a world
    /// with more messages can do all that one with fewer can.
    fn say(&mut self, world: &mut World) {
        loop {
            let before = world.mail;
            for at in 0.. {
                let Some(letter) = self.cores.mail(before).get(at).copied() else { break };
                if !self.is_early(world, letter) {
                    self.say_only(world, self.cores.letter(letter).to, Input::Message(letter));
                }
            }
            for slot in 0..SLOTS {
                self.say_only(world, slot, Input::Resend);
            }
            if world.mail == before {
                return;
            }
        }
    }

    fn say_only(&mut self, world: &mut World, slot: usize, input: Input) {
        let effect = self.cores.turn(world.cores[slot], input);
        if effect.core == world.cores[slot] && effect.told.is_empty() {
            self.take(world, slot, &effect);
        }
    }

    /// Whether it changes nothing: no replica, no messages, and nobody is told.
    pub fn is_nothing(&self, world: &World, slot: usize, effect: &Effect) -> bool {
        let said = |letter| self.cores.mail(world.mail).binary_search(letter).is_ok() || self.is_spent(world, *letter);
        effect.core == world.cores[slot] && effect.told.is_empty() && effect.sends.iter().all(said)
    }

    pub fn is_spent(&self, world: &World, letter: u32) -> bool {
        self.cores.is_spent(letter, &self.view(world, self.cores.letter(letter).to))
    }

    /// Whether its receiver would only keep it until it is in that epoch.
    fn is_early(&self, world: &World, letter: u32) -> bool {
        let letter = self.cores.letter(letter);
        letter.message.epoch.0 > self.view(world, letter.to).epoch
    }

    fn judge(&mut self, world: &mut World) {
        let history = self.cores.history(world.history).clone();
        let chain = history.latest();
        for slot in 0..SLOTS {
            let view = self.view(world, slot);
            let is_member = chain.position(view.id).is_some();
            if let Read::Answers(order) = view.read {
                if order != world.decided {
                    world.broken = Some(Rule::ReadsAreFresh);
                }
                if !is_member {
                    self.sights.insert(Sight::Unaware);
                }
            }
            if view.may_lead && is_member && view.last < world.decided.len.into() {
                world.broken = Some(Rule::NothingIsLost);
            }
        }
        let all = world.decided.len == self.scope.commands;
        if all && history.failures == 0 {
            self.sights.insert(Sight::AllDone);
        }
        if world.decided.len > 0 && chain.position(cores::id(0)).is_none() {
            self.sights.insert(Sight::HeadGone);
        }
    }

    /// Whether all members of the chain have everything and serve, if its head
    /// is one that can go on.
    pub fn is_whole(&mut self, world: &World) -> bool {
        let history = self.cores.history(world.history).clone();
        let chain = history.latest();
        let of = |id| world.cores.iter().map(|core| self.cores.view(*core)).find(|view| view.id == id);
        let serves = |view: &View| {
            let all = view.applied == u64::from(self.scope.commands);
            view.epoch == chain.epoch.0 && view.linked && all && matches!(view.read, Read::Answers(_))
        };
        if !chain.head().and_then(of).is_some_and(|head| head.may_lead) {
            return true;
        }
        let whole = chain.members.iter().all(|member| of(*member).is_some_and(|view| serves(&view)));
        let joined = history.kinds.contains(&Change::Grows) && chain.members.len() > 1;
        if whole {
            self.sights.insert(Sight::Whole);
        }
        if whole && joined && !(0..self.scope.founding).map(cores::id).any(|id| chain.tail() == Some(id)) {
            self.sights.insert(Sight::Joined);
        }
        whole
    }
}
