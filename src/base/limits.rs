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

/// Chunk of a one-sided read on the connection that carries messages too: they
/// take turns.
pub const READ_CHUNK_BYTES: usize = 256 * 1024;

/// The same on a connection that carries nothing else.
pub const LANE_CHUNK_BYTES: usize = 4 << 20;

/// Bytes of a read handed to the kernel, or taken from it, in one call: some 50
/// microseconds of copying, for which messages wait.
pub const BULK_CALL_BYTES: usize = 256 * 1024;

/// Connections to one peer for large reads, besides the one for messages.
pub const LANES_MAX: usize = 8;

/// How many of them unless `COLLIMATE_LANES` says otherwise: measured in
/// docs/adr/0011-tcp-bulk.md.
pub const LANES_DEFAULT: usize = 1;

/// Such connections of one rank in all: each has socket buffers of megabytes.
pub const LANE_CONNECTIONS_MAX: usize = 1024;

/// Reads from this size on go to an extra connection. Shorter ones are quicker
/// than what may be under way there, and hold up messages by microseconds.
pub const LANE_READ_BYTES_MIN: u64 = 64 * 1024;

/// Descriptors that a rank leaves to everything but its connections.
pub const DESCRIPTORS_SPARE: u64 = 256;

/// Bytes that wait to be sent to one peer over a stream fabric: enough to fill
/// a long fast link while its rank is busy.
pub const STREAM_QUEUE_BYTES: usize = 1 << 20;

/// Of these, what each peer may always have waiting, however much waits for
/// others: so a peer that reads nothing cannot keep messages from the rest.
pub const STREAM_QUEUE_RESERVE: usize = 128 * 1024;

/// Bytes beyond that reserve that wait to be sent to all peers together.
pub const STREAM_QUEUES_BYTES: usize = 64 << 20;

/// One-sided reads under way from one peer over one connection.
pub const STREAM_READS_MAX: usize = 256;

/// Messages that a peer may send over RDMA before it is given room again: each
/// has a buffer of the receiver waiting for it.
pub const RDMA_CREDITS: u32 = 64;

/// Buffers of a peer beyond its credits, for what needs none: room given back
/// (no more than two at a time for messages, two for slots) and a goodbye.
pub const RDMA_SPARE_BUFFERS: u32 = 6;

/// A receive buffer: arguments or results that travel inside a message, with
/// the headers of the message and of the fabric.
pub const RDMA_BUFFER_BYTES: usize = INLINE_BYTES_MAX + 512;

/// Messages too long for a buffer that a peer may have written before it is
/// given room again.
pub const RDMA_SLOTS: u32 = 4;

/// Where such a message is written: the longest one, and the fabric's header.
pub const RDMA_SLOT_BYTES: usize = MESSAGE_BYTES_MAX + LINE_BYTES;

/// Memory that an RDMA fabric locks for messages of all peers together. These
/// limits of a peer are for some hundred; with more, each has less of all.
pub const RDMA_MEMORY_MAX: usize = 1 << 30;

/// Sends over RDMA of which only the last asks for a completion.
pub const RDMA_SENDS_PER_COMPLETION: u32 = 32;

/// Work requests kept for what the fabric itself has to say.
pub const RDMA_WORK_REQUESTS_OWN: u32 = 8;

/// Reads under way from one peer over RDMA; a device may take fewer.
pub const RDMA_READS_MAX: u8 = 16;

/// Chunk of a read over RDMA: with [`RDMA_READS_MAX`] it bounds what is under
/// way from one peer, and what another read waits for.
pub const RDMA_READ_BYTES: usize = 1 << 20;

/// Regions of one rank that RDMA peers can read.
pub const RDMA_REGIONS_MAX: usize = 64;

/// How often an idle RDMA connection is tried: with the half second that the
/// card takes to give up, a dead host is noticed in about one.
pub const RDMA_HEARTBEAT: Duration = Duration::from_millis(500);

/// How long the end of an RDMA connection may take: what was sent is
/// acknowledged, or the card has given up by then.
pub const RDMA_END_DEADLINE: Duration = Duration::from_secs(1);

/// Buffers that wait for messages at an endpoint of libfabric: what may arrive
/// between two polls without being sent again.
pub const OFI_RECEIVES: usize = 64;

/// Messages to all peers that an endpoint of libfabric may have under way.
pub const OFI_SENDS_MAX: usize = 2048;

/// Messages to one peer that an endpoint of libfabric may have under way, so
/// that a peer that stops reading leaves room for the others.
pub const OFI_SENDS_PEER_MAX: usize = 64;

/// Messages that may be sent to one peer over libfabric after the oldest that
/// is under way: as many may arrive before it and wait for it.
pub const OFI_WINDOW_MESSAGES: u64 = 4096;

/// Bytes of those messages.
pub const OFI_WINDOW_BYTES: u64 = 4 << 20;

/// Part of a one-sided read over libfabric: some providers copy it within the
/// call, which must stay short.
pub const OFI_READ_BYTES: usize = 1 << 20;

/// Parts of reads under way from one peer over libfabric.
pub const OFI_READS_PEER_MAX: usize = 8;

/// The largest set-up message of libfabric: an address and some regions.
pub const OFI_SETUP_BYTES_MAX: usize = 64 * 1024;

/// How long the messages and reads of a peer that has ended are waited for.
pub const OFI_DRAIN_DEADLINE: Duration = Duration::from_secs(1);

/// Objects from this size on are read in chunks, from whoever has them. Asking
/// who that is costs a round trip, which is little beside the time that so many
/// bytes take.
pub const BULK_BYTES_MIN: u64 = 2 << 20;

/// Objects from this size on are read from whoever has them if enough ranks read
/// them at the same time.
pub const SHARED_BYTES_MIN: u64 = 64 << 10;

/// Ranks that have such an object on loan, from which on a further one is told
/// to ask: the first ones are served by the owner as soon.
pub const SHARED_FROM: usize = 3;

/// The smallest chunk: what comes in one is on its way for longer than a
/// message about it.
pub const CHUNK_BYTES_MIN: u64 = 256 << 10;

/// Chunks of an object that is neither small nor huge: each rank of a chain is
/// one chunk behind the rank before it.
pub const CHUNKS_AIM: u64 = 1024;

/// Chunks of an object; from `CHUNKS_AIM` on they have `CHUNK_BYTES_MAX`, and
/// only the largest objects have larger ones.
pub const CHUNKS_MAX: usize = 4096;

/// See [`CHUNKS_MAX`].
pub const CHUNK_BYTES_MAX: u64 = 4 << 20;

/// Bytes under way for one object from one rank, but two chunks always: what a
/// link of 100 Gb/s holds in 300 us, and little to wait for at the end.
pub const FETCH_SOURCE_BYTES_MAX: u64 = 4 << 20;

/// Bytes under way from one rank over all objects.
pub const FETCH_PEER_BYTES_MAX: u64 = 16 << 20;

/// Bytes under way from all ranks.
pub const FETCH_BYTES_MAX: u64 = 64 << 20;

/// Ranks that a reader is told at once to read an object from.
pub const BULK_SOURCES_MAX: usize = 4;

/// How long a rank may send nothing of what was asked of it before it is asked
/// of another, if there is one: a process that is stopped, or worse.
pub const SOURCE_STALL_MAX: Duration = Duration::from_secs(1);

/// How often transfers are looked at for such ranks.
pub const STALL_CHECK_EVERY: Duration = Duration::from_millis(250);

/// How long an object waits for memory that others have taken, once none of
/// those is on its way any more: tasks that are done give it back.
pub const ROOM_WAIT_MAX: Duration = Duration::from_secs(5);

/// How often at a time one rank may use a copy in another's memory in place.
pub const IN_PLACE_MAX: usize = 1024;

/// How often a reader asks for other sources of an object before it gives up:
/// each answer follows a rank that was lost or had no copy any more.
pub const BULK_LOCATES_MAX: u32 = 64;

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

/// How long the first connection of a peer is read for what it said before it
/// closed another one.
pub const LANE_GRACE: Duration = Duration::from_secs(1);

/// How long a rank waits for what a peer's fabric says to set a connection up:
/// that peer sets up those to lower ranks first, which takes milliseconds each.
pub const SET_UP_DEADLINE: Duration = Duration::from_secs(30);

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

/// How long the launcher waits for word that killed ranks have ended: only a
/// host that cannot be reached sends none.
pub const KILL_GRACE: Duration = Duration::from_secs(2);

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

/// Replicas of a shard of the control store unless `COLLIMATE_GCS_REPLICAS` says
/// otherwise: one can be lost, and then another while its place is being filled.
pub const GCS_REPLICAS_DEFAULT: u8 = 3;

/// Most replicas of a shard.
pub const GCS_REPLICAS_MAX: u8 = 7;

/// Most shards: every rank may be asked to join any of them, and says so to the
/// quorum for each.
pub const GCS_SHARDS_MAX: u16 = 64;

/// How long a replica of the control store may be silent before its chain goes
/// on without it, where nothing else tells of its end: well above what a busy
/// host keeps a thread waiting.
pub const GCS_DETECTION: Duration = Duration::from_millis(5);

/// The same in a rank, which learns of the end of a process from its connection:
/// this is for hosts that fall silent, and an idle rank must not wake often.
pub const GCS_RANK_DETECTION: Duration = Duration::from_secs(1);

/// How long an operation of the control store may take.
pub const GCS_DEADLINE: Duration = Duration::from_secs(30);

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

/// Commands under way in a shard, and as many again kept for a replica that joins.
pub const GCS_LOG_ENTRIES_MAX: usize = 64 * 1024;

/// The same in bytes, about.
pub const GCS_LOG_BYTES_MAX: usize = 64 << 20;

/// Bytes of commands that a replica passes on, carries out or writes in one turn
/// where any number of them may have gathered: a few milliseconds, far below a
/// detection time.
pub const GCS_TURN_BYTES: usize = 512 * 1024;

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

/// Who a member of the quorum tells of the next chain of a shard.
pub const GCS_ASKERS_MAX: usize = 64 * 1024;

/// Messages that a replica keeps which speak of an epoch that it is not in yet.
pub const GCS_EARLY_MAX: usize = 256;

/// Watches at one replica.
pub const GCS_WATCHES_MAX: usize = 16 * 1024;

const _: () = assert!(GCS_KEY_BYTES_MAX + GCS_VALUE_BYTES_MAX + 1024 <= MESSAGE_BYTES_MAX);
const _: () = assert!(GCS_PAGE_BYTES_MAX + GCS_VALUE_BYTES_MAX + 1024 <= MESSAGE_BYTES_MAX);
const _: () = assert!(GCS_FORWARD_BYTES_MAX + GCS_VALUE_BYTES_MAX + 1024 <= MESSAGE_BYTES_MAX);
const _: () = assert!(GCS_PART_BYTES + 1024 <= MESSAGE_BYTES_MAX);
const _: () = assert!(OFI_SENDS_PEER_MAX <= OFI_SENDS_MAX && (OFI_SENDS_PEER_MAX as u64) < OFI_WINDOW_MESSAGES);
const _: () = assert!(OFI_WINDOW_BYTES > MESSAGE_BYTES_MAX as u64);
const _: () = assert!(RING_LINES.is_power_of_two());
const _: () = assert!(STREAM_QUEUE_RESERVE > MESSAGE_BYTES_MAX + LINE_BYTES);
const _: () = assert!(READ_CHUNK_BYTES <= LANE_CHUNK_BYTES && LANE_CHUNK_BYTES < u32::MAX as usize);
const _: () = assert!(LANES_MAX < 64 && LANES_DEFAULT <= LANES_MAX && RANKS_MAX <= 1 << 24);
const _: () = assert!(RING_LINES * LINE_BYTES >= 4 * MESSAGE_BYTES_MAX);
const _: () = assert!(INLINE_BYTES_MAX * 2 <= MESSAGE_BYTES_MAX);
const _: () = assert!(DEQUE_SLOTS.is_power_of_two());
const _: () = assert!(RDMA_CREDITS <= u16::MAX as u32 && RDMA_SLOTS <= u8::MAX as u32 && RDMA_CREDITS >= RDMA_SLOTS);
const _: () = assert!(PMI_VALUE_BYTES_MIN <= 1024);
const _: () = assert!(OBJECT_ALIGN.is_power_of_two());
const _: () = assert!(INLINE_BYTES_MAX <= u16::MAX as usize);
const _: () = assert!(MESSAGE_BYTES_MAX <= 1 << 16);
const _: () = assert!(TEXT_BYTES_MAX + TRAIL_HOPS_MAX * (NAME_BYTES_MAX + 64) <= MESSAGE_BYTES_MAX / 2);
const _: () = assert!(CHUNKS_MAX.is_multiple_of(64) && CHUNKS_AIM <= CHUNKS_MAX as u64);
const _: () = assert!(SHARED_BYTES_MIN < BULK_BYTES_MIN && SHARED_BYTES_MIN > INLINE_BYTES_MAX as u64);
const _: () = assert!(CHUNK_BYTES_MIN < BULK_BYTES_MIN && CHUNK_BYTES_MIN <= CHUNK_BYTES_MAX);
const _: () = assert!(FETCH_SOURCE_BYTES_MAX <= FETCH_PEER_BYTES_MAX && FETCH_PEER_BYTES_MAX <= FETCH_BYTES_MAX);
