//! Where a call goes that is not left to the deque it was made on.

use super::Demand;
use crate::base::Rank;

/// What the caller asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Place {
    /// Where it is made, unless an idle rank takes it.
    #[default]
    Here,
    /// On this rank.
    Rank(Rank),
    /// On the ranks in turn.
    Spread,
}

/// What becomes of the call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Choice {
    /// It goes to the deque.
    Anywhere,
    /// It goes to this rank and stays there.
    On(Rank),
    /// It cannot be placed, and why.
    Nowhere(String),
}

/// Chooses a rank. `capacities` has each rank's, `None` for a lost one; `turn`
/// counts the calls to be spread.
pub fn choose(place: Place, demand: &Demand, me: Rank, turn: u32, capacities: &[Option<&Demand>]) -> Choice {
    let size = capacities.len() as u32;
    let suits = |r: &u32| capacities[*r as usize].is_some_and(|c| demand.fits(c));
    match place {
        Place::Rank(rank) if rank.0 >= size => {
            Choice::Nowhere(format!("there is no {rank}: the job has {size} ranks, counted from 0"))
        }
        Place::Rank(rank) => Choice::On(rank),
        Place::Here if demand.is_empty() => Choice::Anywhere,
        Place::Here | Place::Spread => {
            let first = if place == Place::Here { me.0 } else { turn % size };
            match (0..size).map(|i| (first + i) % size).find(suits) {
                Some(rank) => Choice::On(Rank(rank)),
                None => Choice::Nowhere(format!("no rank has {demand}: start one with COLLIMATE_RESOURCES={demand}")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placement() {
        let none = Demand::default();
        let gpu = Demand::default().and("gpu", 1);
        let me = Rank(0);
        let all = [Some(&none), Some(&gpu), None, Some(&none)];
        assert_eq!(choose(Place::Here, &none, me, 0, &all), Choice::Anywhere);
        assert_eq!(choose(Place::Here, &gpu, me, 0, &all), Choice::On(Rank(1)));
        assert_eq!(choose(Place::Rank(Rank(3)), &none, me, 0, &all), Choice::On(Rank(3)));
        let spread: Vec<_> = (0..4).map(|turn| choose(Place::Spread, &none, me, turn, &all)).collect();
        assert_eq!(spread, [0, 1, 3, 3].map(|r| Choice::On(Rank(r))), "the lost rank's turn goes to the next");
        assert!(matches!(choose(Place::Rank(Rank(4)), &none, me, 0, &all), Choice::Nowhere(_)));
        let tape = Demand::default().and("tape", 1);
        assert!(matches!(choose(Place::Spread, &tape, me, 0, &all), Choice::Nowhere(why) if why.contains("tape=1")));
    }
}
