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

/// Chooses a rank among `size`. `suits` says whether a rank is there and has
/// what the call asks for; `turn` counts the calls to be spread.
pub fn choose(place: Place, demand: &Demand, me: Rank, turn: u32, size: u32, suits: impl Fn(Rank) -> bool) -> Choice {
    match place {
        Place::Rank(rank) if rank.0 >= size => {
            Choice::Nowhere(format!("there is no {rank}: the job has {size} ranks, counted from 0"))
        }
        Place::Rank(rank) => Choice::On(rank),
        Place::Here if demand.is_empty() => Choice::Anywhere,
        Place::Here | Place::Spread => {
            let first = if place == Place::Here { me.0 } else { turn % size };
            match (0..size).map(|i| Rank((first + i) % size)).find(|rank| suits(*rank)) {
                Some(rank) => Choice::On(rank),
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
        let choose = |place, demand: &Demand, turn| {
            choose(place, demand, me, turn, 4, |r| all[r.index()].is_some_and(|c| demand.fits(c)))
        };
        assert_eq!(choose(Place::Here, &none, 0), Choice::Anywhere);
        assert_eq!(choose(Place::Here, &gpu, 0), Choice::On(Rank(1)));
        assert_eq!(choose(Place::Rank(Rank(3)), &none, 0), Choice::On(Rank(3)));
        let spread: Vec<_> = (0..4).map(|turn| choose(Place::Spread, &none, turn)).collect();
        assert_eq!(spread, [0, 1, 3, 3].map(|r| Choice::On(Rank(r))), "the lost rank's turn goes to the next");
        assert!(matches!(choose(Place::Rank(Rank(4)), &none, 0), Choice::Nowhere(_)));
        let tape = Demand::default().and("tape", 1);
        assert!(matches!(choose(Place::Spread, &tape, 0), Choice::Nowhere(why) if why.contains("tape=1")));
    }
}
