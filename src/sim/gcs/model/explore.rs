//! Every world that can come about, those of few steps first.

use std::collections::{BTreeSet, HashSet};
use std::fmt::Write;

use super::cores::{Input, SLOTS};
use super::world::{Reconfiguration, Rule, Sight, Step, World};

/// What was found.
pub struct Explored {
    /// Each with the one that it was first reached from, and how.
    pub worlds: Vec<(World, u32, Step)>,
    pub steps: usize,
    pub depth: usize,
    /// The first rule that was broken, and by which world; nothing if there is
    /// no world that was not looked at.
    pub broken: Option<(Rule, u32)>,
    pub sights: BTreeSet<Sight>,
}

/// Looks at every world, until a rule is broken.
pub fn explore(model: &mut Reconfiguration, start: World) -> Explored {
    let mut found =
        Explored { worlds: vec![(start, 0, Step::Start)], steps: 0, depth: 0, broken: None, sights: BTreeSet::new() };
    let mut known = HashSet::from([start]);
    let (mut next, mut layer_ends, mut steps) = (0, 1, Vec::new());
    while next < found.worlds.len() && found.broken.is_none() {
        if next == layer_ends {
            layer_ends = found.worlds.len();
            found.depth += 1;
        }
        let world = found.worlds[next].0;
        model.steps(&world, &mut steps);
        let mut goes_on = false;
        for step in steps.drain(..) {
            let after = model.step(&world, step);
            found.steps += 1;
            goes_on |= after != world && step.must_come();
            if known.insert(after) {
                found.worlds.push((after, next as u32, step));
                if let Some(rule) = after.broken {
                    found.broken.get_or_insert((rule, found.worlds.len() as u32 - 1));
                }
            }
        }
        if !goes_on && !model.is_whole(&world) {
            found.broken.get_or_insert((Rule::GoesOn, next as u32));
        }
        next += 1;
    }
    found.sights = std::mem::take(&mut model.sights);
    found
}

/// How a rule was broken.
pub fn tell(model: &Reconfiguration, found: &Explored) -> String {
    let Some((rule, mut at)) = found.broken else { return String::new() };
    let mut path = vec![at];
    while at != 0 {
        at = found.worlds[at as usize].1;
        path.push(at);
    }
    let mut text = format!("{rule:?} is broken:\n");
    for at in path.into_iter().rev() {
        let (world, _, step) = &found.worlds[at as usize];
        let _ = match step {
            Step::Tell(_, Input::Message(letter)) => writeln!(text, "{:?}", model.cores.letter(*letter)),
            Step::Change(history) => writeln!(text, "{:?}", model.cores.history(*history).latest()),
            step => writeln!(text, "{step:?}"),
        };
        for slot in 0..SLOTS {
            let _ = writeln!(text, "    {:?}", model.view(world, slot));
        }
    }
    text
}
