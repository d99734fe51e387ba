//! What ranks have and tasks ask for, besides a worker: accelerators, licences,
//! memory, by name and amount.

use std::collections::BTreeMap;
use std::fmt;

/// What one task asks for. Amounts are whole numbers in a unit that the name
/// stands for (devices, bytes).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Demand(BTreeMap<String, u64>);

impl Demand {
    /// The same and `amount` of `name` more.
    #[must_use]
    pub fn and(mut self, name: &str, amount: u64) -> Demand {
        if amount > 0 {
            let sum = self.0.entry(name.to_string()).or_default();
            *sum = sum.saturating_add(amount);
        }
        self
    }

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Name and amount of each.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, amount)| (name.as_str(), *amount))
    }

    /// Whether `capacity` has at least this much of everything.
    pub fn fits(&self, capacity: &Demand) -> bool {
        self.iter().all(|(name, amount)| capacity.0.get(name).is_some_and(|has| *has >= amount))
    }
}

impl fmt::Display for Demand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, amount)) in self.iter().enumerate() {
            write!(f, "{}{name}={amount}", if i > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

impl std::str::FromStr for Demand {
    type Err = String;

    /// Parses `gpu=2,licence=1`.
    fn from_str(text: &str) -> Result<Demand, String> {
        let mut demand = Demand::default();
        for part in text.split(',').filter(|p| !p.trim().is_empty()) {
            let parsed = part.split_once('=').and_then(|(n, a)| Some((n.trim(), a.trim().parse().ok()?)));
            match parsed {
                Some((name, amount)) if !name.is_empty() => demand = demand.and(name, amount),
                _ => return Err(format!("{part:?} is not of the form name=amount")),
            }
        }
        Ok(demand)
    }
}

/// A demand that a rank can never grant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shortage {
    /// What was asked for.
    pub demand: Demand,
    /// All that the rank has.
    pub capacity: Demand,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a task asks for {} and the rank has {{{}}} in all", self.demand, self.capacity)
    }
}

/// What a rank has and what of it is free, and who waits for it, in order.
#[derive(Debug)]
pub struct Ledger<T> {
    capacity: Demand,
    free: Demand,
    waiting: std::collections::VecDeque<(Demand, T)>,
}

impl<T> Ledger<T> {
    /// Everything free.
    pub fn new(capacity: Demand) -> Ledger<T> {
        Ledger { free: capacity.clone(), capacity, waiting: std::collections::VecDeque::new() }
    }

    /// All that the rank has.
    pub fn capacity(&self) -> &Demand {
        &self.capacity
    }

    /// Grants `demand` to `who` and returns it, or keeps it waiting. First come,
    /// first served: a large demand is not starved by small ones behind it.
    pub fn ask(&mut self, demand: Demand, who: T) -> Result<Option<T>, (Shortage, T)> {
        if !demand.fits(&self.capacity) {
            return Err((Shortage { demand, capacity: self.capacity.clone() }, who));
        }
        if self.waiting.is_empty() && demand.fits(&self.free) {
            self.take(&demand);
            return Ok(Some(who));
        }
        self.waiting.push_back((demand, who));
        Ok(None)
    }

    /// Takes a granted demand back; who may start now.
    pub fn give_back(&mut self, demand: &Demand) -> Vec<T> {
        for (name, amount) in demand.iter() {
            *self.free.0.entry(name.to_string()).or_default() += amount;
        }
        debug_assert!(self.free.fits(&self.capacity), "more was given back than was granted");
        let mut granted = Vec::new();
        while let Some((demand, who)) = self.waiting.pop_front_if(|(demand, _)| demand.fits(&self.free)) {
            self.take(&demand);
            granted.push(who);
        }
        granted
    }

    fn take(&mut self, demand: &Demand) {
        for (name, amount) in demand.iter() {
            *self.free.0.get_mut(name).expect("it fits") -= amount;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demands_are_granted_in_order() {
        let mut ledger = Ledger::new("gpu=2,licence=1".parse().unwrap());
        let gpu = |n| Demand::default().and("gpu", n);
        assert_eq!(ledger.ask(gpu(1), 'a'), Ok(Some('a')));
        assert_eq!(ledger.ask(gpu(2), 'b'), Ok(None));
        assert_eq!(ledger.ask(gpu(1), 'c'), Ok(None), "b came before");
        assert_eq!(ledger.give_back(&gpu(1)), ['b']);
        assert_eq!(ledger.give_back(&gpu(2)), ['c']);
    }

    #[test]
    fn what_can_never_be_granted_is_refused() {
        let mut ledger = Ledger::new("gpu=2".parse().unwrap());
        let (shortage, _) = ledger.ask(Demand::default().and("gpu", 3), ()).unwrap_err();
        assert_eq!(shortage.to_string(), "a task asks for gpu=3 and the rank has {gpu=2} in all");
        assert!(ledger.ask(Demand::default().and("tape", 1), ()).is_err());
        assert!("gpu".parse::<Demand>().is_err() && "=1".parse::<Demand>().is_err() && "a=x".parse::<Demand>().is_err());
    }
}
