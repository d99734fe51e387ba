//! Every limit of the runtime, with its reason. Nothing else in the tree
//! invents a bound.

use std::time::Duration;

/// Ranks in one job. Rank tables are dense vectors; past this a tree is due.
pub const RANKS_MAX: u32 = 4096;

/// Workers of one rank; a worker number fits the low bits of a victim mask.
pub const WORKERS_MAX: usize = 256;

/// A cache line, the unit of a shared-memory ring.
pub const LINE_BYTES: usize = 64;

/// The largest single message over any fabric, header included. What is larger
/// is an object and is pulled by its reader.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Arguments or results up to this size travel inside the message; larger
/// ones are placed in the arena and read by whoever needs them.
pub const INLINE_BYTES_MAX: usize = 4 * 1024;

/// Lines of one direction of a shared-memory ring: four of the largest
/// messages, so that one can be written while another is read.
pub const RING_LINES: usize = 8 * 1024;

/// Alignment of every object, so that any plain type and any vector unit can
/// read it in place.
pub const OBJECT_ALIGN: usize = 64;

/// The smallest arena a rank starts with.
pub const ARENA_BYTES_MIN: usize = 1 << 20;

/// Chunk of a one-sided read over a stream fabric.
pub const READ_CHUNK_BYTES: usize = 256 * 1024;

/// Bytes that wait to be sent to one peer over a stream fabric: enough to fill
/// a long fast link while its rank is busy.
pub const STREAM_QUEUE_BYTES: usize = 1 << 20;

/// One-sided reads under way from one peer over a stream fabric.
pub const STREAM_READS_MAX: usize = 256;

/// How long a peer's host may be silent, with data or keep-alive probes under
/// way, before the connection counts as ended; and how long a peer may take
/// nothing of what is sent to it.
pub const PEER_SILENCE_MAX: Duration = Duration::from_secs(10);

/// How long a connection may take to prove the job's key, first byte to last.
pub const ADMISSION_DEADLINE: Duration = Duration::from_secs(5);

/// Connections that may be in the handshake at once; the oldest makes room, for
/// an honest one takes well under a millisecond.
pub const PENDING_MAX: usize = 256;

/// Connections that the kernel holds for a rank that is not accepting yet: all
/// its peers at once, as far as `net.core.somaxconn` lets them.
pub const BACKLOG: i32 = RANKS_MAX as i32;

/// How long ranks wait for each other at start.
pub const BOOT_DEADLINE: Duration = Duration::from_secs(60);

/// How long a rank may go on after its launcher has died. The job is given
/// this time to end by itself; then the process is killed.
pub const ORPHAN_GRACE: Duration = Duration::from_secs(1);

/// How long the launcher lets the other ranks end by themselves after one was
/// lost, so that the driver can report it.
pub const LOSS_GRACE: Duration = Duration::from_secs(2);

/// How long ranks have between SIGTERM and SIGKILL.
pub const TERM_GRACE: Duration = Duration::from_secs(2);

/// The largest frame between a launcher and its ranks: every rank's card.
pub const LAUNCH_FRAME_BYTES_MAX: usize = RANKS_MAX as usize * CARD_BYTES_MAX;

/// The largest card of a rank: as hexadecimal digits it must fit PMI-1's
/// smallest value, 1024 bytes.
pub const CARD_BYTES_MAX: usize = 500;

/// What a PMI-1 key-value space must hold in one value: a card and its end.
pub const PMI_VALUE_BYTES_MIN: usize = 2 * CARD_BYTES_MAX + 1;

/// The longest line of PMI-1: the words of an answer and a value, with room.
pub const PMI_LINE_BYTES_MAX: usize = 8 * PMI_VALUE_BYTES_MIN;

/// How often a rank calls a peer that drops the call, as one does that is
/// swamped by strangers or starved of processor time.
pub const CALLS_MAX: u32 = 4;

/// How long a rank that reads nothing may hold up its launcher.
pub const STUCK_RANK_DEADLINE: Duration = Duration::from_secs(5);

/// How long a remote shell may take to exit once its connection is closed.
pub const SHELL_EXIT_DEADLINE: Duration = Duration::from_millis(500);

/// How long a rank waits for its peers to say goodbye at the end.
pub const GOODBYE_DEADLINE: Duration = Duration::from_secs(5);

/// A deque's slots; what is pushed beyond goes to the rank's shared queue.
pub const DEQUE_SLOTS: usize = 1 << 13;

/// Bytes reserved for a task's stack; only touched pages are backed.
pub const STACK_BYTES_DEFAULT: usize = 1 << 20;

/// Stacks of one rank: each takes two memory maps and Linux grants a process
/// 65,530 (`vm.max_map_count`), which other users of the process share.
pub const STACKS_MAX: usize = 24_000;

/// Longest task name, in bytes.
pub const NAME_BYTES_MAX: usize = 256;

/// Longest task signature, in bytes.
pub const SIGNATURE_BYTES_MAX: usize = 1024;

/// Longest text of an error or of a goodbye that travels, in bytes; what is
/// longer is cut.
pub const TEXT_BYTES_MAX: usize = 8 * 1024;

/// Tasks in the trail of an error that travels. Of a longer trail the two ends
/// are kept: where it failed and who asked.
pub const TRAIL_HOPS_MAX: usize = 64;

/// Task functions of one program.
pub const TASKS_MAX: usize = 4096;

/// How long a replica of the control store may be silent before its chain goes
/// on without it: well above what a busy host keeps a thread waiting.
pub const GCS_DETECTION: Duration = Duration::from_millis(5);

/// Longest key of the control store.
pub const GCS_KEY_BYTES_MAX: usize = 256;

/// Longest value of the control store: with its key and its place it fits a
/// message. What is longer is an object, and the store has its reference.
pub const GCS_VALUE_BYTES_MAX: usize = 16 * 1024;

/// Keys of one query, and records of one page of a scan.
pub const GCS_KEYS_MAX: usize = 1024;

/// Bytes of records in one answer, and of changes in one message to a watcher,
/// unless a single one has more.
pub const GCS_PAGE_BYTES_MAX: usize = 32 * 1024;

/// Commands of one client to one shard whose outcomes it may not know: so many
/// outcomes are kept for it.
pub const GCS_WINDOW: u64 = 1024;

/// Changes that a replica remembers for those who watch and lose touch.
pub const GCS_HISTORY_EVENTS: usize = 4096;

/// Commands under way in a shard, and kept for a replica that joins.
pub const GCS_LOG_ENTRIES_MAX: usize = 64 * 1024;

/// Bytes of commands in one message between replicas, unless a single one has
/// more.
pub const GCS_FORWARD_BYTES_MAX: usize = 32 * 1024;

/// Part of a state that a joining replica takes over.
pub const GCS_PART_BYTES: usize = 32 * 1024;

/// Parts sent before the next are asked for.
pub const GCS_PARTS_AT_ONCE: usize = 8;

/// Bytes of log after which it is begun anew from the state.
pub const GCS_LOG_REWRITE_BYTES: usize = 64 << 20;

/// Queries of a replica that wait for the tail.
pub const GCS_PARKED_MAX: usize = 16 * 1024;

/// Watches at one replica.
pub const GCS_WATCHES_MAX: usize = 16 * 1024;

const _: () = assert!(GCS_KEY_BYTES_MAX + GCS_VALUE_BYTES_MAX + 1024 <= MESSAGE_BYTES_MAX);
const _: () = assert!(GCS_PAGE_BYTES_MAX + GCS_VALUE_BYTES_MAX + 1024 <= MESSAGE_BYTES_MAX);
const _: () = assert!(GCS_FORWARD_BYTES_MAX + GCS_VALUE_BYTES_MAX + 1024 <= MESSAGE_BYTES_MAX);
const _: () = assert!(GCS_PART_BYTES + 1024 <= MESSAGE_BYTES_MAX);
const _: () = assert!(RING_LINES.is_power_of_two());
const _: () = assert!(RING_LINES * LINE_BYTES >= 4 * MESSAGE_BYTES_MAX);
const _: () = assert!(INLINE_BYTES_MAX * 2 <= MESSAGE_BYTES_MAX);
const _: () = assert!(DEQUE_SLOTS.is_power_of_two());
const _: () = assert!(PMI_VALUE_BYTES_MIN <= 1024);
const _: () = assert!(OBJECT_ALIGN.is_power_of_two());
const _: () = assert!(INLINE_BYTES_MAX <= u16::MAX as usize);
const _: () = assert!(MESSAGE_BYTES_MAX <= 1 << 16);
const _: () = assert!(TEXT_BYTES_MAX + TRAIL_HOPS_MAX * (NAME_BYTES_MAX + 64) <= MESSAGE_BYTES_MAX / 2);
