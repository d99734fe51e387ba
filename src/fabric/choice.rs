//! Which fabric serves a pair of ranks that a TCP connection joins: a pure
//! function of what the two offer each other, so that both come to one answer.

use serde::{Deserialize, Serialize};

use super::Kind;
use crate::base::config::FabricChoice;

/// How well a rank can use one kind of fabric.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub enum Grade {
    /// Not at all.
    #[default]
    Absent,
    /// Done by the processor, as soft-RoCE or libfabric's `tcp` are: it works,
    /// and costs more than TCP itself.
    Emulated,
    /// Done by an adapter, or by the kernel for TCP.
    Native,
}

/// What one rank can do, told to a peer before the two decide.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Offer {
    /// `COLLIMATE_FABRIC` of that rank.
    pub wish: FabricChoice,
    /// RDMA verbs.
    pub rdma: Grade,
    /// libfabric, and through which provider: two that differ do not meet.
    pub ofi: Grade,
    /// The provider's name; empty without one.
    pub provider: String,
    /// TCP through io_uring. To the peer it is the same as through epoll.
    pub uring: Grade,
}

/// The fabric for one peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Choice {
    /// Which.
    pub kind: Kind,
    /// Why this one, in words.
    pub reason: String,
}

/// What can be chosen for a TCP connection.
const KINDS: [Kind; 4] = [Kind::Rdma, Kind::Ofi, Kind::Uring, Kind::Epoll];

/// What a wish leaves open: either way of TCP is the same to the peer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Path {
    Any,
    Rdma,
    Ofi,
    Tcp,
}

/// Chooses for the connection between the rank that offers `mine` and the one
/// that offers `theirs`. With the arguments exchanged the answer is the same,
/// but that each side has its own way of TCP. `Err` says why there is none.
pub fn choose(mine: &Offer, theirs: &Offer) -> Result<Choice, String> {
    let path = match (path(mine.wish), path(theirs.wish)) {
        (Path::Any, path) | (path, Path::Any) => path,
        (here, there) if here == there => here,
        _ => {
            let (here, there) = (mine.wish, theirs.wish);
            return Err(format!("COLLIMATE_FABRIC is {here} here and {there} there: set both alike"));
        }
    };
    let open = KINDS.into_iter().filter(|kind| allows(path, mine.wish, *kind));
    let standings: Vec<_> = open.map(|kind| (kind, standing(kind, mine, theirs))).collect();
    let usable = standings.iter().filter_map(|(kind, worth)| Some((*worth.as_ref().ok()?, *kind)));
    let Some((best, kind)) = usable.max_by_key(|(worth, _)| *worth) else {
        return Err(join(standings.into_iter().filter_map(|(_, worth)| worth.err())));
    };
    // What would have come first with better means is what wants explaining.
    let better = standings.into_iter().filter(|(other, _)| worth(*other, Grade::Native) > Some(best));
    let passed_over = join(better.map(|(other, standing)| {
        standing.err().unwrap_or_else(|| format!("{other}: done by the processor here or there"))
    }));
    let reason = match path {
        Path::Any if passed_over.is_empty() => "the best that both sides have".to_string(),
        Path::Any => passed_over,
        _ => "COLLIMATE_FABRIC asks for it".to_string(),
    };
    Ok(Choice { kind, reason })
}

/// What a kind is worth at a grade: the most wins.
fn worth(kind: Kind, grade: Grade) -> Option<u32> {
    match (kind, grade) {
        (_, Grade::Absent) => None,
        (Kind::Shm, _) => Some(100),
        (Kind::Rdma, Grade::Native) => Some(80),
        (Kind::Ofi, Grade::Native) => Some(70),
        (Kind::Uring, _) => Some(40),
        (Kind::Epoll, _) => Some(30),
        (Kind::Rdma, Grade::Emulated) => Some(20),
        (Kind::Ofi, Grade::Emulated) => Some(10),
    }
}

/// What a kind is worth to this pair, or why it does not come into question.
fn standing(kind: Kind, mine: &Offer, theirs: &Offer) -> Result<u32, String> {
    let (here, there) = match kind {
        Kind::Rdma => (mine.rdma, theirs.rdma),
        Kind::Ofi => (mine.ofi, theirs.ofi),
        Kind::Uring => (mine.uring, Grade::Native),
        Kind::Shm | Kind::Epoll => (Grade::Native, Grade::Native),
    };
    match (worth(kind, here.min(there)), here, there) {
        (Some(_), ..) if kind == Kind::Ofi && mine.provider != theirs.provider => {
            Err(format!("ofi: through {} here and {} there", mine.provider, theirs.provider))
        }
        (Some(worth), ..) => Ok(worth),
        (None, Grade::Absent, Grade::Absent) => Err(format!("{kind}: on neither side")),
        (None, Grade::Absent, _) => Err(format!("{kind}: not on this side")),
        (None, ..) => Err(format!("{kind}: not on the other side")),
    }
}

fn path(wish: FabricChoice) -> Path {
    match wish {
        FabricChoice::Auto | FabricChoice::Shm => Path::Any,
        FabricChoice::Rdma => Path::Rdma,
        FabricChoice::Ofi => Path::Ofi,
        FabricChoice::Uring | FabricChoice::Epoll => Path::Tcp,
    }
}

fn allows(path: Path, mine: FabricChoice, kind: Kind) -> bool {
    match kind {
        Kind::Shm => false,
        Kind::Rdma => matches!(path, Path::Any | Path::Rdma),
        Kind::Ofi => matches!(path, Path::Any | Path::Ofi),
        Kind::Uring => matches!(path, Path::Any | Path::Tcp) && mine != FabricChoice::Epoll,
        Kind::Epoll => matches!(path, Path::Any | Path::Tcp) && mine != FabricChoice::Uring,
    }
}

fn join(reasons: impl Iterator<Item = String>) -> String {
    reasons.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::FabricChoice::{Auto, Epoll, Ofi, Rdma, Uring};
    use super::Grade::{Absent, Emulated, Native};
    use super::*;

    fn offer(wish: FabricChoice, rdma: Grade, ofi: Grade, uring: Grade) -> Offer {
        let provider = if ofi == Absent { "" } else { "cxi" };
        Offer { wish, rdma, ofi, provider: provider.into(), uring }
    }

    #[test]
    fn the_best_that_both_have_is_chosen() {
        let everything = offer(Auto, Native, Native, Native);
        let table = [
            (everything.clone(), everything.clone(), Ok(Kind::Rdma)),
            (everything.clone(), offer(Auto, Absent, Native, Native), Ok(Kind::Ofi)),
            (everything.clone(), offer(Auto, Absent, Absent, Native), Ok(Kind::Uring)),
            // Each side has its own way of TCP.
            (offer(Auto, Absent, Absent, Absent), everything.clone(), Ok(Kind::Epoll)),
            (everything.clone(), offer(Auto, Absent, Absent, Absent), Ok(Kind::Uring)),
            // What the processor does for an adapter is not worth it unasked.
            (offer(Auto, Emulated, Emulated, Native), everything.clone(), Ok(Kind::Uring)),
            (offer(Auto, Emulated, Emulated, Absent), everything.clone(), Ok(Kind::Epoll)),
            (offer(Auto, Emulated, Native, Native), everything.clone(), Ok(Kind::Ofi)),
            // A wish of either side holds for both.
            (offer(Rdma, Emulated, Native, Native), everything.clone(), Ok(Kind::Rdma)),
            (everything.clone(), offer(Ofi, Native, Emulated, Native), Ok(Kind::Ofi)),
            (everything.clone(), offer(Epoll, Native, Native, Native), Ok(Kind::Uring)),
            (offer(Auto, Native, Native, Absent), offer(Uring, Native, Native, Native), Ok(Kind::Epoll)),
            (offer(Uring, Native, Native, Native), offer(Epoll, Native, Native, Native), Ok(Kind::Uring)),
            (offer(Epoll, Native, Native, Native), everything.clone(), Ok(Kind::Epoll)),
            // Wishes that cannot be met.
            (offer(Uring, Native, Native, Absent), everything.clone(), Err("uring: not on this side")),
            (offer(Rdma, Absent, Native, Native), everything.clone(), Err("rdma: not on this side")),
            (everything.clone(), offer(Rdma, Absent, Native, Native), Err("rdma: not on the other side")),
            (offer(Rdma, Native, Native, Native), offer(Epoll, Native, Native, Native), Err("rdma here and epoll")),
        ];
        for (mine, theirs, expected) in table {
            match (choose(&mine, &theirs), expected) {
                (Ok(choice), Ok(kind)) => assert_eq!(choice.kind, kind, "{mine:?} and {theirs:?}: {}", choice.reason),
                (Err(why), Err(part)) => assert!(why.contains(part), "{why}"),
                (got, expected) => panic!("{mine:?} and {theirs:?}: {got:?} instead of {expected:?}"),
            }
        }
    }

    #[test]
    fn both_sides_come_to_the_same() {
        let grades = [Absent, Emulated, Native];
        let mut offers = Vec::new();
        for wish in [Auto, FabricChoice::Shm, Rdma, Ofi, Uring, Epoll] {
            for (rdma, ofi, uring) in grades.into_iter().flat_map(|r| {
                grades.into_iter().flat_map(move |o| [Absent, Native].into_iter().map(move |u| (r, o, u)))
            }) {
                offers.push(offer(wish, rdma, ofi, uring));
            }
        }
        let is_tcp = |kind| matches!(kind, Kind::Uring | Kind::Epoll);
        for (mine, theirs) in offers.iter().flat_map(|mine| offers.iter().map(move |theirs| (mine, theirs))) {
            match (choose(mine, theirs), choose(theirs, mine)) {
                (Ok(here), Ok(there)) => {
                    assert!(here.kind == there.kind || is_tcp(here.kind) && is_tcp(there.kind));
                    assert!(!here.reason.is_empty());
                }
                // One side may lack the way of TCP that it was told to use.
                (Err(_), Ok(other)) | (Ok(other), Err(_)) => assert!(is_tcp(other.kind)),
                (Err(_), Err(_)) => (),
            }
        }
    }

    #[test]
    fn the_reason_names_what_was_passed_over() {
        let reason = |mine: &Offer, theirs: &Offer| choose(mine, theirs).unwrap().reason;
        let everything = offer(Auto, Native, Native, Native);
        assert_eq!(reason(&everything, &everything), "the best that both sides have");
        assert_eq!(reason(&offer(Rdma, Native, Native, Native), &everything), "COLLIMATE_FABRIC asks for it");
        let plain = offer(Auto, Absent, Absent, Absent);
        assert_eq!(reason(&everything, &plain), "rdma: not on the other side; ofi: not on the other side");
        assert!(reason(&offer(Auto, Emulated, Absent, Native), &everything).starts_with("rdma: done by the processor"));
        let tcp_provider = Offer { provider: "tcp".into(), ..everything.clone() };
        let no_rdma = Offer { rdma: Absent, ..everything };
        assert!(reason(&no_rdma, &tcp_provider).contains("through cxi here and tcp there"));
    }
}
