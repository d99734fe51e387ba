//! The global control store: what the system must not forget. Pure cores: they
//! are told messages, the time and what disks did, and say what is to be sent
//! and written. `docs/protocols/chain.md` has the protocol.
//!
//! A shard is a chain of [`Replica`]s. A small quorum ([`Member`]) holds which
//! chain there is ([`Directory`]) and grants leases ([`Granter`]). Others use
//! the store through a [`Client`].

mod agreement;
mod bug;
mod client;
mod codec;
mod directory;
mod granter;
mod limits;
mod log;
mod message;
mod placement;
mod quorum;
mod quorum_log;
mod record;
mod replica;
mod state;
mod timing;

pub use agreement::ConsensusMessage;
pub use bug::{Bug, Bugs};
pub use client::{Cause, Client, ClientOptions, Failure, Notice, Token, shard_of};
pub use codec::{Packet, PacketError, encode_message};
pub use directory::{Change, Directory, Rejection};
pub use granter::Granter;
pub use limits::Limits;
pub use log::{LogDamage, Recovered, encode_mark, is_of_a_crash, recover};
pub use message::{
    Action, Address, Beat, Body, ChainConfig, Changes, DiskEvent, Entry, Epoch, Forward, Link, Message, Nanos, Part,
    ReplicaId, ShardId, Watch,
};
pub use placement::{founding_chains, founding_quorum};
pub use quorum::{Member, MemberAction, MemberOptions};
pub use quorum_log::QuorumLog;
pub use record::{Blob, Key, Record, Refusal, Seq, Table};
pub use replica::{Options, Replica};
pub use state::{ClientId, Command, Event, Found, Op, Outcome, Query, Sizes, State};
pub use timing::{CLOCK_DRIFT_PPM, Timing};
