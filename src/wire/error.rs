//! Why bytes are no message, or why a message cannot be written.

/// What is wrong with a message. Whoever holds the connection adds the peer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WireError {
    /// No bytes at all.
    #[error("an empty message")]
    Empty,
    /// The first byte names no kind of message.
    #[error("a message of unknown kind {0}: the ranks may run different versions of Collimate")]
    UnknownKind(u8),
    /// The message ends before its content does.
    #[error("a {message} message of {has} bytes that needs {needs}")]
    Truncated {
        /// The kind of message.
        message: &'static str,
        /// Bytes that its content takes.
        needs: usize,
        /// Bytes that it has.
        has: usize,
    },
    /// Bytes follow the content of the message.
    #[error("a {message} message with {extra} bytes after its end")]
    Trailing {
        /// The kind of message.
        message: &'static str,
        /// Bytes too many.
        extra: usize,
    },
    /// A field has a value that it cannot have.
    #[error("a {message} message with {field} {value}")]
    BadField {
        /// The kind of message.
        message: &'static str,
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// The FlatBuffer of a control message failed verification.
    #[error("a control message that fails verification: {0}")]
    Control(String),
    /// More would be written than a message may hold.
    #[error("{what} of {len} does not fit a message: the limit is {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size or count.
        len: usize,
        /// What there may be.
        limit: usize,
    },
    /// A spawn message was finished with fewer or more arguments than declared.
    #[error("a spawn message of {declared} arguments was given {given}")]
    ArgumentCount {
        /// Arguments declared at the start.
        declared: usize,
        /// Arguments given.
        given: usize,
    },
}
