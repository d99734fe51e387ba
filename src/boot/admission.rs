//! The handshake by which two ranks prove to each other that they have the
//! job's key. State machines over bytes: no socket, no clock, no randomness.
//!
//! Four messages of fixed size, the caller (the higher rank) first:
//!
//! ```text
//! hello      magic, version, job, from, to, lane, caller's nonce    64 bytes
//! challenge  nonce of the listener                                  32
//! proof      MAC(key, "caller",   hello, challenge)                 32
//! admission  MAC(key, "listener", hello, challenge)                 32
//! ```
//!
//! The caller proves first, so a stranger learns nothing but a random number.
//! Both nonces stand under both MACs, so nothing recorded can be used again,
//! and the role stands under them too, so no proof can be sent back as the
//! other side's. Neither side ever asks for a byte beyond the message that is
//! due: what follows the handshake belongs to the fabric. The bytes that follow
//! are not encrypted: the handshake keeps strangers out, not eavesdroppers.

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::base::event::Event;
use crate::base::{JobId, Rank};

/// The secret of one launch, shared by its ranks and its launcher.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key(pub(super) [u8; KEY_BYTES]);

/// Bytes of a key: those of the hash under the MAC.
pub const KEY_BYTES: usize = 32;

/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 32;

/// Bytes of the first message.
pub const HELLO_BYTES: usize = 64;

/// Bytes of the other three.
pub const REPLY_BYTES: usize = 32;

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(secret)")
    }
}

/// Why a connection is not let in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// What came is no handshake of this version.
    Garbage,
    /// The proof is wrong: another key, another job, another addressee, or a
    /// replay.
    Proof,
}

impl Refusal {
    /// How the refusal is counted.
    pub fn event(self) -> Event {
        match self {
            Refusal::Garbage => Event::RefusedGarbage,
            Refusal::Proof => Event::RefusedProof,
        }
    }
}

/// What to do after bytes were fed to a [`Listener`].
#[derive(PartialEq, Eq, Debug)]
pub enum Step {
    /// Read on.
    More,
    /// Send these bytes, then read on.
    Send([u8; REPLY_BYTES]),
    /// The caller has proven to be that rank, and that the connection is to be
    /// that one of its lanes: send [`Listener::admission`] to let it in, or
    /// close.
    Proven(Rank, u32),
}

/// The side that accepted the connection.
pub struct Listener {
    key: Key,
    job: JobId,
    me: Rank,
    nonce: [u8; NONCE_BYTES],
    hello: Message<HELLO_BYTES>,
    proof: Message<REPLY_BYTES>,
}

impl Listener {
    /// Waits for a hello; `nonce` must never be used twice.
    pub fn new(key: Key, job: JobId, me: Rank, nonce: [u8; NONCE_BYTES]) -> Self {
        Listener { key, job, me, nonce, hello: Message::new(), proof: Message::new() }
    }

    /// How many bytes the message under way still lacks: at most that many may
    /// be read and fed.
    pub fn wanted(&self) -> usize {
        if self.hello.wanted() > 0 { self.hello.wanted() } else { self.proof.wanted() }
    }

    /// Takes bytes that have arrived, at most [`Listener::wanted`].
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Step, Refusal> {
        if self.hello.wanted() > 0 {
            self.hello.feed(bytes)?;
            let known = self.hello.len.min(PREFIX_BYTES);
            if self.hello.bytes[..known] != prefix()[..known] {
                return Err(Refusal::Garbage);
            }
            return Ok(if self.hello.wanted() == 0 { Step::Send(self.nonce) } else { Step::More });
        }
        self.proof.feed(bytes)?;
        if self.proof.wanted() > 0 {
            return Ok(Step::More);
        }
        // What the hello claims counts only as it should have been sent to this
        // rank of this job: a caller that meant another fails the proof.
        let from = Rank(u32_at(&self.hello.bytes, FROM_AT));
        let lane = u32_at(&self.hello.bytes, LANE_AT);
        let nonce = self.hello.bytes[NONCE_AT..].try_into().expect("the hello ends with the nonce");
        let expected = hello(self.job, from, self.me, lane, nonce);
        let mac = mac(&self.key, Role::Caller, &expected, &self.nonce);
        mac.verify_slice(&self.proof.bytes).map_err(|_| Refusal::Proof)?;
        Ok(Step::Proven(from, lane))
    }

    /// The last message, which proves this side and lets the caller in.
    pub fn admission(&self) -> [u8; REPLY_BYTES] {
        mac(&self.key, Role::Listener, &self.hello.bytes, &self.nonce).finalize().into_bytes().into()
    }
}

/// The side that made the connection.
pub struct Caller {
    key: Key,
    hello: [u8; HELLO_BYTES],
    challenge: Message<REPLY_BYTES>,
    admission: Message<REPLY_BYTES>,
}

/// What to do after bytes were fed to a [`Caller`].
#[derive(PartialEq, Eq, Debug)]
pub enum CallerStep {
    /// Read on.
    More,
    /// Send these bytes, then read on.
    Send([u8; REPLY_BYTES]),
    /// The listener has proven itself and let this rank in.
    Admitted,
}

impl Caller {
    /// Calls `peer` for the connection with number `lane`; `nonce` must never be
    /// used twice.
    pub fn new(key: Key, job: JobId, me: Rank, peer: Rank, lane: u32, nonce: [u8; NONCE_BYTES]) -> Self {
        Caller { key, hello: hello(job, me, peer, lane, nonce), challenge: Message::new(), admission: Message::new() }
    }

    /// The first message.
    pub fn hello(&self) -> &[u8; HELLO_BYTES] {
        &self.hello
    }

    /// As [`Listener::wanted`].
    pub fn wanted(&self) -> usize {
        if self.challenge.wanted() > 0 { self.challenge.wanted() } else { self.admission.wanted() }
    }

    /// Takes bytes that have arrived, at most [`Caller::wanted`].
    pub fn feed(&mut self, bytes: &[u8]) -> Result<CallerStep, Refusal> {
        if self.challenge.wanted() > 0 {
            self.challenge.feed(bytes)?;
            if self.challenge.wanted() > 0 {
                return Ok(CallerStep::More);
            }
            let mac = mac(&self.key, Role::Caller, &self.hello, &self.challenge.bytes);
            return Ok(CallerStep::Send(mac.finalize().into_bytes().into()));
        }
        self.admission.feed(bytes)?;
        if self.admission.wanted() > 0 {
            return Ok(CallerStep::More);
        }
        let mac = mac(&self.key, Role::Listener, &self.hello, &self.challenge.bytes);
        mac.verify_slice(&self.admission.bytes).map_err(|_| Refusal::Proof)?;
        Ok(CallerStep::Admitted)
    }
}

const MAGIC: [u8; 8] = *b"COLLIMAT";
const VERSION: u32 = 2;
const PREFIX_BYTES: usize = 12;
const FROM_AT: usize = 20;
const LANE_AT: usize = 28;
const NONCE_AT: usize = 32;
const _: () = assert!(NONCE_AT + NONCE_BYTES == HELLO_BYTES);

/// Who makes a proof.
#[derive(Clone, Copy)]
enum Role {
    Caller,
    Listener,
}

/// A message of fixed size that arrives in pieces.
struct Message<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Message<N> {
    fn new() -> Self {
        Message { bytes: [0; N], len: 0 }
    }

    fn wanted(&self) -> usize {
        N - self.len
    }

    fn feed(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let free = self.bytes[self.len..].get_mut(..bytes.len()).ok_or(Refusal::Garbage)?;
        free.copy_from_slice(bytes);
        self.len += bytes.len();
        Ok(())
    }
}

fn prefix() -> [u8; PREFIX_BYTES] {
    let mut prefix = [0; PREFIX_BYTES];
    prefix[..8].copy_from_slice(&MAGIC);
    prefix[8..].copy_from_slice(&VERSION.to_le_bytes());
    prefix
}

fn hello(job: JobId, from: Rank, to: Rank, lane: u32, nonce: [u8; NONCE_BYTES]) -> [u8; HELLO_BYTES] {
    let mut hello = [0; HELLO_BYTES];
    hello[..PREFIX_BYTES].copy_from_slice(&prefix());
    hello[PREFIX_BYTES..FROM_AT].copy_from_slice(&job.0.to_le_bytes());
    hello[FROM_AT..FROM_AT + 4].copy_from_slice(&from.0.to_le_bytes());
    hello[FROM_AT + 4..LANE_AT].copy_from_slice(&to.0.to_le_bytes());
    hello[LANE_AT..NONCE_AT].copy_from_slice(&lane.to_le_bytes());
    hello[NONCE_AT..].copy_from_slice(&nonce);
    hello
}

fn mac(key: &Key, role: Role, hello: &[u8; HELLO_BYTES], challenge: &[u8; NONCE_BYTES]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&key.0).expect("HMAC takes a key of any length");
    mac.update(match role {
        Role::Caller => b"collimate caller  ",
        Role::Listener => b"collimate listener",
    });
    mac.update(hello);
    mac.update(challenge);
    mac
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: JobId = JobId(7);

    fn key(byte: u8) -> Key {
        Key([byte; KEY_BYTES])
    }

    fn listener(nonce: u8) -> Listener {
        Listener::new(key(1), JOB, Rank(0), [nonce; NONCE_BYTES])
    }

    /// Runs a handshake to the listener's verdict; returns the proof as well.
    fn prove(caller: &mut Caller, listener: &mut Listener) -> (Result<Step, Refusal>, [u8; REPLY_BYTES]) {
        let Step::Send(challenge) = listener.feed(caller.hello()).unwrap() else { panic!("no challenge") };
        let CallerStep::Send(proof) = caller.feed(&challenge).unwrap() else { panic!("no proof") };
        (listener.feed(&proof), proof)
    }

    #[test]
    fn both_sides_prove_themselves() {
        let mut caller = Caller::new(key(1), JOB, Rank(3), Rank(0), 0, [9; NONCE_BYTES]);
        let mut listener = listener(5);
        assert_eq!(prove(&mut caller, &mut listener).0, Ok(Step::Proven(Rank(3), 0)));
        assert_eq!(caller.feed(&listener.admission()), Ok(CallerStep::Admitted));
        assert_eq!((caller.wanted(), listener.wanted()), (0, 0));
    }

    #[test]
    fn any_other_key_job_or_addressee_is_refused() {
        for (key, job, to) in [(key(2), JOB, Rank(0)), (key(1), JobId(8), Rank(0)), (key(1), JOB, Rank(1))] {
            let mut caller = Caller::new(key, job, Rank(3), to, 0, [9; NONCE_BYTES]);
            assert_eq!(prove(&mut caller, &mut listener(5)).0, Err(Refusal::Proof));
        }
    }

    #[test]
    fn the_claimed_rank_and_lane_stand_under_the_proof() {
        for at in [FROM_AT, LANE_AT] {
            let mut caller = Caller::new(key(1), JOB, Rank(3), Rank(0), 1, [9; NONCE_BYTES]);
            let mut listener = listener(5);
            let mut hello = *caller.hello();
            hello[at] += 1;
            let Step::Send(challenge) = listener.feed(&hello).unwrap() else { panic!("no challenge") };
            let CallerStep::Send(proof) = caller.feed(&challenge).unwrap() else { panic!("no proof") };
            assert_eq!(listener.feed(&proof), Err(Refusal::Proof));
        }
        let mut caller = Caller::new(key(1), JOB, Rank(3), Rank(0), 1, [9; NONCE_BYTES]);
        assert_eq!(prove(&mut caller, &mut listener(5)).0, Ok(Step::Proven(Rank(3), 1)));
    }

    #[test]
    fn a_recorded_proof_is_worthless() {
        let mut caller = Caller::new(key(1), JOB, Rank(3), Rank(0), 0, [9; NONCE_BYTES]);
        let (verdict, proof) = prove(&mut caller, &mut listener(5));
        assert_eq!(verdict, Ok(Step::Proven(Rank(3), 0)));
        let mut again = listener(6);
        again.feed(caller.hello()).unwrap();
        assert_eq!(again.feed(&proof), Err(Refusal::Proof));
    }

    #[test]
    fn a_listener_without_the_key_or_with_a_reflected_proof_is_refused() {
        let mut caller = Caller::new(key(1), JOB, Rank(3), Rank(0), 0, [9; NONCE_BYTES]);
        let CallerStep::Send(proof) = caller.feed(&[5; NONCE_BYTES]).unwrap() else { panic!("no proof") };
        assert_eq!(caller.feed(&proof), Err(Refusal::Proof));
    }

    #[test]
    fn garbage_is_refused_at_its_first_wrong_byte_however_it_is_cut() {
        assert_eq!(listener(5).feed(b"GET / HTTP/1.1\r\n"), Err(Refusal::Garbage));
        assert_eq!(listener(5).feed(b"X"), Err(Refusal::Garbage));
        let mut split = listener(5);
        assert_eq!(split.feed(b"COLL"), Ok(Step::More));
        assert_eq!(split.feed(b"ISION"), Err(Refusal::Garbage));
        let mut newer = Caller::new(key(1), JOB, Rank(3), Rank(0), 0, [9; NONCE_BYTES]).hello;
        newer[8] = 3;
        assert_eq!(listener(5).feed(&newer), Err(Refusal::Garbage));
        assert_eq!(listener(5).feed(&[0; HELLO_BYTES + 1]), Err(Refusal::Garbage));
    }

    #[test]
    fn single_bytes_make_a_handshake_too() {
        let mut caller = Caller::new(key(1), JOB, Rank(3), Rank(0), 0, [9; NONCE_BYTES]);
        let mut listener = listener(5);
        let mut challenge = None;
        for byte in *caller.hello() {
            if let Step::Send(bytes) = listener.feed(&[byte]).unwrap() {
                challenge = Some(bytes);
            }
        }
        let CallerStep::Send(proof) = caller.feed(&challenge.unwrap()).unwrap() else { panic!("no proof") };
        let steps: Vec<_> = proof.iter().map(|b| listener.feed(&[*b]).unwrap()).collect();
        assert_eq!(steps.last(), Some(&Step::Proven(Rank(3), 0)));
    }
}
