//! Arguments and results on their way between ranks: small ones as bytes
//! inside the message, large ones as objects that are read where they lie.

use smallvec::SmallVec;
use zerocopy::IntoBytes;

use super::rank::{Node, Target};
use crate::base::limits::INLINE_BYTES_MAX;
use crate::base::{ErrorKind, Rank, TaskError};
use crate::mem::Bytes;
use crate::sync::Lineage;

/// One value that leaves.
pub enum Piece {
    /// Part of [`Outgoing::bytes`].
    Inline {
        /// First byte.
        start: usize,
        /// Bytes.
        len: usize,
        /// The type's alignment.
        align: usize,
    },
    /// An object.
    Object(Bytes),
}

/// The values of a call, or a result, being encoded.
pub struct Outgoing<'n> {
    node: &'n Node,
    pack: Pack,
}

/// What [`Outgoing`] collected.
#[derive(Default)]
pub struct Pack {
    /// The values, in order.
    pub pieces: Vec<Piece>,
    /// The bytes of the inline ones.
    pub bytes: Vec<u8>,
}

impl Pack {
    /// One of the pieces, as if it had arrived.
    pub fn received(&self, piece: &Piece) -> Received<'_> {
        match piece {
            Piece::Inline { start, len, .. } => Received::Inline(&self.bytes[*start..start + len]),
            Piece::Object(object) => Received::Object(object.clone()),
        }
    }
}

impl<'n> Outgoing<'n> {
    /// Nothing yet; `pack` lends its buffers.
    pub fn new(node: &'n Node, mut pack: Pack) -> Self {
        pack.pieces.clear();
        pack.bytes.clear();
        Outgoing { node, pack }
    }

    /// Adds plain bytes of a type aligned to `align`: inside the message if
    /// they are few, else as a new object.
    pub fn plain(&mut self, bytes: &[u8], align: usize) -> Result<(), Box<TaskError>> {
        if bytes.len() > INLINE_BYTES_MAX || self.pack.bytes.len() + bytes.len() > 2 * INLINE_BYTES_MAX {
            let object = self.node.put_bytes(bytes)?;
            return self.object(object);
        }
        let start = self.pack.bytes.len();
        self.pack.bytes.extend_from_slice(bytes);
        self.pack.pieces.push(Piece::Inline { start, len: bytes.len(), align });
        Ok(())
    }

    /// Adds one plain value.
    pub fn value<T: IntoBytes + zerocopy::Immutable>(&mut self, value: &T) -> Result<(), Box<TaskError>> {
        self.plain(value.as_bytes(), align_of::<T>())
    }

    /// Adds an object that exists.
    pub fn object(&mut self, object: Bytes) -> Result<(), Box<TaskError>> {
        let object = match object {
            // On the heap nobody else can read it.
            Bytes::Heap(heap) => self.node.put_bytes(&heap)?,
            readable => readable,
        };
        self.pack.pieces.push(Piece::Object(object));
        Ok(())
    }

    /// The node that the values leave.
    pub fn node(&self) -> &'n Node {
        self.node
    }

    /// What was collected.
    pub fn finish(self) -> Pack {
        self.pack
    }
}

/// One value that arrived.
#[derive(Clone)]
pub enum Received<'m> {
    /// Inside the message.
    Inline(&'m [u8]),
    /// An object.
    Object(Bytes),
}

impl Received<'_> {
    /// The bytes, wherever they are.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Received::Inline(bytes) => bytes,
            Received::Object(object) => object,
        }
    }
}

/// The values of a message; a call rarely has more than four.
pub type Values<'m> = SmallVec<[Received<'m>; 4]>;

/// A call that arrived.
pub struct Incoming<'m> {
    /// Its arguments.
    pub arguments: Values<'m>,
    /// Its place in its parent.
    pub lineage: Lineage,
    /// The frame's flags.
    pub target: Target,
    /// Where its result goes.
    pub reply: Reply,
}

impl Incoming<'_> {
    /// An error if there are not `count` arguments.
    pub fn expect(&self, count: usize) -> Result<(), Box<TaskError>> {
        if self.arguments.len() == count {
            return Ok(());
        }
        let message = format!("the task takes {count} arguments and was given {}", self.arguments.len());
        Err(Box::new(TaskError::new(ErrorKind::BadArgument, message)))
    }
}

/// Where the result of a call from a peer goes.
#[derive(Clone, Copy)]
pub struct Reply {
    /// The rank that made the call.
    pub peer: Rank,
    /// Its number for the call.
    pub request: u64,
    /// This node.
    pub node: &'static Node,
}

impl Reply {
    /// Sends the result that `encode` encodes, or its error.
    pub fn send(self, encode: impl FnOnce(&mut Outgoing<'_>) -> Result<(), Box<TaskError>>) {
        let mut out = Outgoing::new(self.node, self.node.spare_pack());
        let result = encode(&mut out).map(|()| out.finish());
        self.node.reply(self.peer, self.request, result);
    }
}
