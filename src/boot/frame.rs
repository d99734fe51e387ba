//! What a launcher and its ranks, or two launchers of one job, say to each
//! other: frames of a length and a postcard body over a private stream.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::admission::Key;
use crate::base::limits::LAUNCH_FRAME_BYTES_MAX;

/// What one rank is told first.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Welcome {
    /// [`VERSION`] of the launcher.
    pub version: u32,
    /// This rank.
    pub rank: u32,
    /// Ranks of the job.
    pub size: u32,
    /// The job.
    pub job: u64,
    /// The job's key.
    pub key: Key,
    /// All ranks run on one host.
    pub one_host: bool,
}

/// What the launcher of another host is told first.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Start {
    /// The first rank's welcome; the others differ in the rank only.
    pub first: Welcome,
    /// How many ranks to start.
    pub count: u32,
    /// The program and its arguments, as bytes, for they need not be UTF-8.
    pub command: Vec<Vec<u8>>,
    /// Where to run it.
    pub directory: Vec<u8>,
    /// The variables to set.
    pub vars: BTreeMap<String, String>,
}

/// How a process ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Fate {
    /// It returned this status.
    Exited(i32),
    /// This signal killed it.
    Killed(i32),
}

/// One message. What a rank sends and gets are `Welcome`, `Card`, `Cards` and
/// `Done`; the rest goes between launchers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Frame {
    /// To a rank: who it is.
    Welcome(Welcome),
    /// From a rank: what the others must know of it.
    Card {
        /// Which rank.
        rank: u32,
        /// Its card.
        bytes: Vec<u8>,
    },
    /// To every rank: all cards, by rank.
    Cards(Vec<Vec<u8>>),
    /// From a rank: it is about to end in good order with this status.
    Done {
        /// Which rank.
        rank: u32,
        /// The exit status that will follow.
        status: i32,
    },
    /// To a launcher of another host.
    Start(Box<Start>),
    /// From there: the process of a rank has ended.
    Ended {
        /// Which rank.
        rank: u32,
        /// Its process.
        pid: u32,
        /// How.
        fate: Fate,
    },
    /// From there: what a rank wrote.
    Output {
        /// To standard error, else to standard output.
        error: bool,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// From there: a rank could not be started, in one line.
    Failed(String),
    /// To a launcher of another host: pass this signal on to every rank.
    Signal(i32),
}

/// The version of these messages.
pub const VERSION: u32 = 1;

impl Frame {
    /// The frame as bytes, its length first.
    pub fn encode(&self) -> Vec<u8> {
        let body = postcard::to_stdvec(self).expect("a frame of owned values always encodes");
        let mut bytes = Vec::with_capacity(4 + body.len());
        bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&body);
        bytes
    }
}

/// Bytes that are no frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the other side does not speak this launcher's protocol: are both of the same version of Collimate?")]
pub struct BadFrame;

/// Cuts a stream into frames.
#[derive(Default)]
pub struct Decoder {
    bytes: Vec<u8>,
}

impl Decoder {
    /// Takes bytes as they arrive.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame.
    pub fn take(&mut self) -> Result<Option<Frame>, BadFrame> {
        let Some(head) = self.bytes.first_chunk::<4>() else { return Ok(None) };
        let len = u32::from_le_bytes(*head) as usize;
        if len > LAUNCH_FRAME_BYTES_MAX {
            return Err(BadFrame);
        }
        let Some(body) = self.bytes.get(4..4 + len) else { return Ok(None) };
        let frame = postcard::from_bytes(body).map_err(|_| BadFrame)?;
        self.bytes.drain(..4 + len);
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_cut() {
        let frames = [
            Frame::Card { rank: 3, bytes: vec![1, 2, 3] },
            Frame::Cards(vec![vec![], vec![9; 300]]),
            Frame::Ended { rank: 1, pid: 77, fate: Fate::Killed(9) },
        ];
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
        for cut in 1..bytes.len() {
            let mut decoder = Decoder::default();
            let mut out = Vec::new();
            for piece in bytes.chunks(cut) {
                decoder.push(piece);
                while let Some(frame) = decoder.take().unwrap() {
                    out.push(frame);
                }
            }
            assert_eq!(out, frames);
        }
    }

    #[test]
    fn a_length_or_a_body_that_cannot_be_is_refused() {
        let mut long = Decoder::default();
        long.push(&u32::MAX.to_le_bytes());
        assert_eq!(long.take(), Err(BadFrame));
        let mut wrong = Decoder::default();
        wrong.push(&[1, 0, 0, 0, 250]);
        assert_eq!(wrong.take(), Err(BadFrame));
    }
}
