//! A single-producer, single-consumer ring of messages over cache lines that
//! two processes share.
