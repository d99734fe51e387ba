//! The messages of the per-task path as fixed little-endian layouts, and
//! [`Message::parse`], which every received message goes through.
//!
//! The first byte of a message is its kind. A spawn message is a 36-byte
//! header, one 4-byte descriptor per argument, and the arguments' payloads,
//! each from an offset that is a multiple of 8; with one 8-byte argument it
//! has 48 bytes and fits a cache line. Nothing here allocates but the reading
//! of errors and control messages.

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Bulk, Control, ErrorReport, WireError};
use crate::base::limits::{INLINE_BYTES_MAX, MESSAGE_BYTES_MAX, OBJECT_ALIGN, RANKS_MAX};
use crate::base::{Rank, Tag, TaskError};

/// A received message, verified.
#[derive(Clone, PartialEq, Debug)]
pub enum Message<'a> {
    /// Run a task.
    Spawn(Spawn<'a>),
    /// A task ended.
    Result(TaskResult<'a>),
    /// A borrower gives references back.
    Release(Release),
    /// The sender has nothing to do and asks for tasks.
    StealRequest(StealRequest),
    /// About copies of large objects.
    Bulk(Bulk),
    /// Of the control store, which reads it itself.
    Gcs(&'a [u8]),
    /// Anything rarer.
    Control(Control),
}

/// The fixed part of a spawn message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpawnCall {
    /// The function, as its index in the receiver's task table.
    pub function: u32,
    /// The slot at the sender that awaits the result.
    pub request: u64,
    /// The tag of the task that made the call.
    pub parent: Tag,
    /// The number of the call within its parent; with `parent` it gives the
    /// task's own tag.
    pub call: u32,
    /// The receiver asked for this task with a steal request.
    pub stolen: bool,
}

/// A task to run.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Spawn<'a> {
    /// What to call and who waits for it.
    pub call: SpawnCall,
    /// With what.
    pub arguments: Arguments<'a>,
}

/// The verified arguments of a spawn message; an iterator over them.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Arguments<'a> {
    /// Those not yet yielded.
    descriptors: &'a [ArgumentLayout],
    /// Their payloads.
    payload: &'a [u8],
}

/// One argument of a task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Argument<'a> {
    /// The value's bytes. They start at a multiple of 8 from the start of the
    /// message, which need not be an address that is a multiple of `align`.
    Inline {
        /// The bytes.
        bytes: &'a [u8],
        /// The alignment that the value's type has.
        align: usize,
    },
    /// An object to be read where it lies.
    Object(ObjectRecord),
}

/// Where an object lies: enough to read it and to give it back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ObjectRecord {
    /// The rank that owns the object and counts its references.
    pub owner: Rank,
    /// The key of the owner's region.
    pub region: u16,
    /// Several ranks read it just now: whom to read it from is to be asked of
    /// the sender.
    pub shared: bool,
    /// First byte within the region.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// The object at its owner: index and generation.
    pub object: u64,
}

/// How a task ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TaskResult<'a> {
    /// The slot at the receiver that awaits it.
    pub request: u64,
    /// The result.
    pub outcome: Outcome<'a>,
}

/// A task's result.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome<'a> {
    /// The value's bytes, at a multiple of 8 from the start of the message.
    Inline {
        /// The bytes.
        bytes: &'a [u8],
        /// The alignment that the value's type has.
        align: usize,
    },
    /// An object to be read where it lies.
    Object(ObjectRecord),
    /// There is none.
    Error(TaskError),
}

/// References to an object that its borrower no longer holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Release {
    /// The object at its owner, which is the receiver.
    pub object: u64,
    /// How many references are given back; not 0.
    pub count: u32,
}

/// A request for tasks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StealRequest {
    /// How many tasks the sender would take; not 0.
    pub want: u16,
}

impl<'a> Message<'a> {
    /// Verifies one received message. No byte string makes this panic, and
    /// nothing that it returns needs checking again but what only the node
    /// knows: whether function, request, region and object exist.
    pub fn parse(bytes: &'a [u8]) -> Result<Message<'a>, WireError> {
        match *bytes.first().ok_or(WireError::Empty)? {
            kind::SPAWN => Spawn::parse(bytes).map(Message::Spawn),
            kind::RESULT => TaskResult::parse(bytes).map(Message::Result),
            kind::RELEASE => Release::parse(bytes).map(Message::Release),
            kind::STEAL_REQUEST => {
                let layout: &StealLayout = whole("steal request", bytes)?;
                zero("steal request", "reserved byte", layout.reserved)?;
                let want = layout.want.get();
                not_zero("steal request", "want", u64::from(want))?;
                Ok(Message::StealRequest(StealRequest { want }))
            }
            kind::BULK => Bulk::parse(bytes).map(Message::Bulk),
            kind::GCS => Ok(Message::Gcs(&bytes[1..])),
            kind::CONTROL => Control::parse(&bytes[1..]).map(Message::Control),
            unknown => Err(WireError::UnknownKind(unknown)),
        }
    }
}

/// Writes a spawn message, argument by argument, into a buffer that is used
/// again and again.
///
/// ```
/// use collimate::base::Tag;
/// use collimate::wire::{Message, SpawnBuilder, SpawnCall};
///
/// let call = SpawnCall { function: 3, request: 7, parent: Tag::ROOT, call: 0, stolen: false };
/// let mut buffer = Vec::new();
/// let mut spawn = SpawnBuilder::new(&mut buffer, call, 1);
/// spawn.inline(&42u64.to_le_bytes(), 8);
/// spawn.finish()?;
/// assert!(buffer.len() <= 56);
/// assert!(matches!(Message::parse(&buffer)?, Message::Spawn(spawn) if spawn.call == call));
/// # Ok::<(), collimate::wire::WireError>(())
/// ```
pub struct SpawnBuilder<'b> {
    buffer: &'b mut Vec<u8>,
    declared: usize,
    given: usize,
    error: Option<WireError>,
}

impl<'b> SpawnBuilder<'b> {
    /// Clears `buffer` and starts a message of `count` arguments in it.
    pub fn new(buffer: &'b mut Vec<u8>, call: SpawnCall, count: usize) -> Self {
        buffer.clear();
        let limit = (MESSAGE_BYTES_MAX - size_of::<SpawnLayout>()) / size_of::<ArgumentLayout>();
        if count > limit {
            let error = Some(WireError::TooLarge { what: "an argument list", len: count, limit });
            return SpawnBuilder { buffer, declared: count, given: 0, error };
        }
        let layout = SpawnLayout {
            kind: kind::SPAWN,
            flags: if call.stolen { FLAG_STOLEN } else { 0 },
            argc: U16::new(count as u16),
            function: U32::new(call.function),
            request: U64::new(call.request),
            parent: U128::new(call.parent.0),
            call: U32::new(call.call),
        };
        buffer.extend_from_slice(layout.as_bytes());
        buffer.resize(payload_start(count), 0);
        SpawnBuilder { buffer, declared: count, given: 0, error: None }
    }

    /// Adds an argument by value: `bytes` of a type with alignment `align`, a
    /// power of two of at most `limits::OBJECT_ALIGN`.
    pub fn inline(&mut self, bytes: &[u8], align: usize) -> &mut Self {
        if bytes.len() > INLINE_BYTES_MAX {
            self.fail(WireError::TooLarge { what: "an inline argument", len: bytes.len(), limit: INLINE_BYTES_MAX });
        }
        self.push(FORM_INLINE, align, bytes.len() as u16, bytes)
    }

    /// Adds an argument by reference.
    pub fn object(&mut self, record: ObjectRecord) -> &mut Self {
        self.push(FORM_OBJECT, OBJECT_ALIGN, 0, ObjectLayout::from(record).as_bytes())
    }

    /// Ends the message. After an error the buffer is empty.
    pub fn finish(self) -> Result<(), WireError> {
        let error = match self.error {
            Some(error) => error,
            None if self.given != self.declared => {
                WireError::ArgumentCount { declared: self.declared, given: self.given }
            }
            None if self.buffer.len() > MESSAGE_BYTES_MAX => {
                WireError::TooLarge { what: "a spawn message", len: self.buffer.len(), limit: MESSAGE_BYTES_MAX }
            }
            None => return Ok(()),
        };
        self.buffer.clear();
        Err(error)
    }

    fn push(&mut self, form: u8, align: usize, len: u16, payload: &[u8]) -> &mut Self {
        let index = self.given;
        self.given += 1;
        if self.error.is_some() || index >= self.declared {
            return self;
        }
        let Some(align_log2) = log2(align) else {
            self.fail(WireError::BadField { message: "spawn", field: "alignment", value: align as u64 });
            return self;
        };
        let descriptor = ArgumentLayout { form, align_log2, len: U16::new(len) };
        let at = size_of::<SpawnLayout>() + index * size_of::<ArgumentLayout>();
        self.buffer[at..at + size_of::<ArgumentLayout>()].copy_from_slice(descriptor.as_bytes());
        self.buffer.extend_from_slice(payload);
        self.buffer.resize(self.buffer.len().next_multiple_of(PAYLOAD_ALIGN), 0);
        self
    }

    fn fail(&mut self, error: WireError) {
        self.error.get_or_insert(error);
    }
}

/// Writes a result by value into `buffer`, which is cleared first. `align` is
/// the alignment of the value's type.
pub fn write_inline_result(
    buffer: &mut Vec<u8>,
    request: u64,
    bytes: &[u8],
    align: usize,
) -> Result<(), WireError> {
    buffer.clear();
    if bytes.len() > INLINE_BYTES_MAX {
        return Err(WireError::TooLarge { what: "an inline result", len: bytes.len(), limit: INLINE_BYTES_MAX });
    }
    let bad_align = WireError::BadField { message: "result", field: "alignment", value: align as u64 };
    let align_log2 = log2(align).ok_or(bad_align)?;
    let layout = ResultLayout {
        kind: kind::RESULT,
        status: STATUS_INLINE,
        align_log2,
        reserved: [0; 3],
        len: U16::new(bytes.len() as u16),
        request: U64::new(request),
    };
    buffer.extend_from_slice(layout.as_bytes());
    buffer.extend_from_slice(bytes);
    Ok(())
}

/// Writes a result that is an object into `buffer`, which is cleared first.
pub fn write_object_result(buffer: &mut Vec<u8>, request: u64, record: ObjectRecord) {
    buffer.clear();
    let layout = ResultLayout {
        kind: kind::RESULT,
        status: STATUS_OBJECT,
        align_log2: OBJECT_ALIGN.trailing_zeros() as u8,
        reserved: [0; 3],
        len: U16::new(size_of::<ObjectLayout>() as u16),
        request: U64::new(request),
    };
    buffer.extend_from_slice(layout.as_bytes());
    buffer.extend_from_slice(ObjectLayout::from(record).as_bytes());
}

/// Writes the failure of a task into `buffer`, which is cleared first.
pub fn write_error(buffer: &mut Vec<u8>, request: u64, error: &TaskError) -> Result<(), WireError> {
    buffer.clear();
    let mut layout = ResultLayout {
        kind: kind::RESULT,
        status: STATUS_ERROR,
        align_log2: 0,
        reserved: [0; 3],
        len: U16::new(0),
        request: U64::new(request),
    };
    buffer.extend_from_slice(layout.as_bytes());
    Control::ErrorReport(ErrorReport { request, error: error.clone() })
        .append_to(buffer)
        .inspect_err(|_| buffer.clear())?;
    let (header, body) = buffer.split_at_mut(size_of::<ResultLayout>());
    layout.len = U16::new(body.len() as u16);
    header.copy_from_slice(layout.as_bytes());
    Ok(())
}

/// Writes a release into `buffer`, which is cleared first.
pub fn write_release(buffer: &mut Vec<u8>, release: Release) {
    buffer.clear();
    let layout = ReleaseLayout {
        kind: kind::RELEASE,
        reserved: [0; 3],
        count: U32::new(release.count),
        object: U64::new(release.object),
    };
    buffer.extend_from_slice(layout.as_bytes());
}

/// Writes a request for tasks into `buffer`, which is cleared first.
pub fn write_steal_request(buffer: &mut Vec<u8>, request: StealRequest) {
    buffer.clear();
    let layout = StealLayout { kind: kind::STEAL_REQUEST, reserved: 0, want: U16::new(request.want) };
    buffer.extend_from_slice(layout.as_bytes());
}

/// Begins a message of the control store behind what is in `buffer`, for its
/// own bytes to be added.
pub fn begin_gcs(buffer: &mut Vec<u8>) {
    buffer.push(kind::GCS);
}

/// Writes a control message into `buffer`, which is cleared first.
pub fn write_control(buffer: &mut Vec<u8>, control: &Control) -> Result<(), WireError> {
    buffer.clear();
    buffer.push(kind::CONTROL);
    control.append_to(buffer).inspect_err(|_| buffer.clear())
}

impl<'a> Spawn<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Spawn<'a>, WireError> {
        let (layout, _): (&SpawnLayout, _) = prefix("spawn", bytes)?;
        if layout.flags & !FLAG_STOLEN != 0 {
            let value = u64::from(layout.flags);
            return Err(WireError::BadField { message: "spawn", field: "flags", value });
        }
        let argc = usize::from(layout.argc.get());
        let start = payload_start(argc);
        let Some((head, payload)) = bytes.split_at_checked(start) else {
            return Err(WireError::Truncated { message: "spawn", needs: start, has: bytes.len() });
        };
        let descriptors = &head[size_of::<SpawnLayout>()..];
        let Ok((descriptors, padding)) = <[ArgumentLayout]>::ref_from_prefix_with_elems(descriptors, argc) else {
            return Err(WireError::Truncated { message: "spawn", needs: start, has: bytes.len() });
        };
        padding.iter().try_for_each(|byte| zero("spawn", "padding byte", *byte))?;

        let arguments = Arguments { descriptors, payload };
        let mut rest = arguments;
        while let Some(argument) = rest.advance() {
            argument?;
        }
        if !rest.payload.is_empty() {
            return Err(WireError::Trailing { message: "spawn", extra: rest.payload.len() });
        }
        let call = SpawnCall {
            function: layout.function.get(),
            request: layout.request.get(),
            parent: Tag(layout.parent.get()),
            call: layout.call.get(),
            stolen: layout.flags & FLAG_STOLEN != 0,
        };
        Ok(Spawn { call, arguments })
    }
}

impl<'a> Arguments<'a> {
    /// Takes one argument off, verifying it; `parse` has done so for all of
    /// them before anybody else gets here.
    fn advance(&mut self) -> Option<Result<Argument<'a>, WireError>> {
        let (descriptor, descriptors) = self.descriptors.split_first()?;
        self.descriptors = descriptors;
        Some(self.take(descriptor))
    }

    fn take(&mut self, descriptor: &ArgumentLayout) -> Result<Argument<'a>, WireError> {
        let align = from_log2("spawn", descriptor.align_log2)?;
        let len = usize::from(descriptor.len.get());
        match descriptor.form {
            FORM_INLINE if len <= INLINE_BYTES_MAX => Ok(Argument::Inline { bytes: self.split(len)?, align }),
            FORM_INLINE => Err(WireError::TooLarge { what: "an inline argument", len, limit: INLINE_BYTES_MAX }),
            FORM_OBJECT if len == 0 => {
                ObjectRecord::parse("spawn", self.split(size_of::<ObjectLayout>())?).map(Argument::Object)
            }
            FORM_OBJECT => {
                Err(WireError::BadField { message: "spawn", field: "object descriptor length", value: len as u64 })
            }
            form => Err(WireError::BadField { message: "spawn", field: "argument form", value: u64::from(form) }),
        }
    }

    /// Takes `len` bytes and their padding off the payload.
    fn split(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let padded = len.next_multiple_of(PAYLOAD_ALIGN);
        let Some((taken, rest)) = self.payload.split_at_checked(padded) else {
            return Err(WireError::Truncated { message: "spawn", needs: padded, has: self.payload.len() });
        };
        let (bytes, padding) = taken.split_at(len);
        padding.iter().try_for_each(|byte| zero("spawn", "padding byte", *byte))?;
        self.payload = rest;
        Ok(bytes)
    }
}

impl<'a> Iterator for Arguments<'a> {
    type Item = Argument<'a>;

    fn next(&mut self) -> Option<Argument<'a>> {
        self.advance()?.ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.descriptors.len(), Some(self.descriptors.len()))
    }
}

impl ExactSizeIterator for Arguments<'_> {}

impl<'a> TaskResult<'a> {
    fn parse(bytes: &'a [u8]) -> Result<TaskResult<'a>, WireError> {
        let (layout, payload): (&ResultLayout, _) = prefix("result", bytes)?;
        layout.reserved.iter().try_for_each(|byte| zero("result", "reserved byte", *byte))?;
        let align = from_log2("result", layout.align_log2)?;
        let request = layout.request.get();
        let len = usize::from(layout.len.get());
        if payload.len() < len {
            let needs = size_of::<ResultLayout>() + len;
            return Err(WireError::Truncated { message: "result", needs, has: bytes.len() });
        }
        if payload.len() > len {
            return Err(WireError::Trailing { message: "result", extra: payload.len() - len });
        }
        let outcome = match layout.status {
            STATUS_INLINE if len <= INLINE_BYTES_MAX => Outcome::Inline { bytes: payload, align },
            STATUS_INLINE => {
                return Err(WireError::TooLarge { what: "an inline result", len, limit: INLINE_BYTES_MAX });
            }
            STATUS_OBJECT => Outcome::Object(ObjectRecord::parse("result", payload)?),
            STATUS_ERROR => match Control::parse(payload)? {
                Control::ErrorReport(report) if report.request == request => Outcome::Error(report.error),
                _ => return Err(WireError::Control("a failed result without its own error report".into())),
            },
            status => {
                return Err(WireError::BadField { message: "result", field: "status", value: u64::from(status) });
            }
        };
        Ok(TaskResult { request, outcome })
    }
}

impl Release {
    fn parse(bytes: &[u8]) -> Result<Release, WireError> {
        let layout: &ReleaseLayout = whole("release", bytes)?;
        layout.reserved.iter().try_for_each(|byte| zero("release", "reserved byte", *byte))?;
        let count = layout.count.get();
        not_zero("release", "count", u64::from(count))?;
        Ok(Release { object: layout.object.get(), count })
    }
}

impl ObjectRecord {
    fn parse(message: &'static str, bytes: &[u8]) -> Result<ObjectRecord, WireError> {
        let layout: &ObjectLayout = whole(message, bytes)?;
        let (owner, offset, len) = (layout.owner.get(), layout.offset.get(), layout.len.get());
        if owner >= RANKS_MAX {
            return Err(WireError::BadField { message, field: "object owner", value: u64::from(owner) });
        }
        if offset.checked_add(len).is_none() {
            return Err(WireError::BadField { message, field: "object length", value: len });
        }
        let shared = match layout.shared.get() {
            value @ 0..2 => value == 1,
            value => return Err(WireError::BadField { message, field: "shared", value: u64::from(value) }),
        };
        let (region, object) = (layout.region.get(), layout.object.get());
        Ok(ObjectRecord { owner: Rank(owner), region, shared, offset, len, object })
    }
}

/// First bytes of messages. 0 is none, so that zeroed memory is no message.
pub(super) mod kind {
    pub const SPAWN: u8 = 1;
    pub const RESULT: u8 = 2;
    pub const RELEASE: u8 = 3;
    pub const STEAL_REQUEST: u8 = 4;
    pub const CONTROL: u8 = 5;
    pub const BULK: u8 = 6;
    pub const GCS: u8 = 7;
}

/// In [`SpawnLayout::flags`]: the receiver asked for this task.
const FLAG_STOLEN: u8 = 1;

/// In [`ArgumentLayout::form`]: the payload is the value.
const FORM_INLINE: u8 = 1;
/// In [`ArgumentLayout::form`]: the payload is an [`ObjectLayout`].
const FORM_OBJECT: u8 = 2;

/// In [`ResultLayout::status`]: the value follows.
const STATUS_INLINE: u8 = 1;
/// In [`ResultLayout::status`]: an [`ObjectLayout`] follows.
const STATUS_OBJECT: u8 = 2;
/// In [`ResultLayout::status`]: the FlatBuffer of an error report follows.
const STATUS_ERROR: u8 = 3;

/// Payloads start at multiples of this from the start of their message.
const PAYLOAD_ALIGN: usize = 8;

/// Head of a spawn message.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SpawnLayout {
    /// [`kind::SPAWN`].
    kind: u8,
    /// [`FLAG_STOLEN`] or 0.
    flags: u8,
    /// Arguments.
    argc: U16,
    /// Index in the receiver's task table.
    function: U32,
    /// Slot at the sender.
    request: U64,
    /// Tag of the calling task.
    parent: U128,
    /// Number of the call within the calling task.
    call: U32,
}

/// One argument of a spawn message.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, PartialEq, Debug)]
#[repr(C)]
struct ArgumentLayout {
    /// [`FORM_INLINE`] or [`FORM_OBJECT`].
    form: u8,
    /// Logarithm of the alignment of the value's type.
    align_log2: u8,
    /// Bytes of an inline value; 0 for an object.
    len: U16,
}

/// Where an object lies; the fields of [`ObjectRecord`].
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ObjectLayout {
    owner: U32,
    region: U16,
    /// 1 or 0.
    shared: U16,
    offset: U64,
    len: U64,
    object: U64,
}

/// Head of a result message.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ResultLayout {
    /// [`kind::RESULT`].
    kind: u8,
    /// [`STATUS_INLINE`], [`STATUS_OBJECT`] or [`STATUS_ERROR`].
    status: u8,
    /// Logarithm of the alignment of the value's type.
    align_log2: u8,
    /// 0.
    reserved: [u8; 3],
    /// Bytes that follow this head.
    len: U16,
    /// Slot at the receiver.
    request: U64,
}

/// A release message.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ReleaseLayout {
    /// [`kind::RELEASE`].
    kind: u8,
    /// 0.
    reserved: [u8; 3],
    /// References given back.
    count: U32,
    /// The object at the receiver.
    object: U64,
}

/// A steal request.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct StealLayout {
    /// [`kind::STEAL_REQUEST`].
    kind: u8,
    /// 0.
    reserved: u8,
    /// Tasks wanted.
    want: U16,
}

const _: () = assert!(size_of::<SpawnLayout>() == 36);
const _: () = assert!(size_of::<ResultLayout>() == 16);
const _: () = assert!(size_of::<ReleaseLayout>() == 16);
const _: () = assert!(payload_start(1) + 8 <= 56);

impl From<ObjectRecord> for ObjectLayout {
    fn from(record: ObjectRecord) -> Self {
        ObjectLayout {
            owner: U32::new(record.owner.0),
            region: U16::new(record.region),
            shared: U16::new(u16::from(record.shared)),
            offset: U64::new(record.offset),
            len: U64::new(record.len),
            object: U64::new(record.object),
        }
    }
}

/// Where the payloads of a spawn message with `argc` arguments start.
const fn payload_start(argc: usize) -> usize {
    (size_of::<SpawnLayout>() + argc * size_of::<ArgumentLayout>()).next_multiple_of(PAYLOAD_ALIGN)
}

/// The logarithm of an alignment that objects can have.
fn log2(align: usize) -> Option<u8> {
    (align.is_power_of_two() && align <= OBJECT_ALIGN).then(|| align.trailing_zeros() as u8)
}

fn from_log2(message: &'static str, log2: u8) -> Result<usize, WireError> {
    if u32::from(log2) > OBJECT_ALIGN.trailing_zeros() {
        return Err(WireError::BadField { message, field: "alignment exponent", value: u64::from(log2) });
    }
    Ok(1 << log2)
}

/// The layout at the start of `bytes`, and what follows.
pub(super) fn prefix<'a, L: FromBytes + Immutable + KnownLayout + Unaligned>(
    message: &'static str,
    bytes: &'a [u8],
) -> Result<(&'a L, &'a [u8]), WireError> {
    L::ref_from_prefix(bytes).map_err(|_| WireError::Truncated { message, needs: size_of::<L>(), has: bytes.len() })
}

/// The layout that is all of `bytes`.
fn whole<'a, L: FromBytes + Immutable + KnownLayout + Unaligned>(
    message: &'static str,
    bytes: &'a [u8],
) -> Result<&'a L, WireError> {
    match prefix(message, bytes)? {
        (layout, []) => Ok(layout),
        (_, rest) => Err(WireError::Trailing { message, extra: rest.len() }),
    }
}

fn zero(message: &'static str, field: &'static str, value: u8) -> Result<(), WireError> {
    if value == 0 { Ok(()) } else { Err(WireError::BadField { message, field, value: u64::from(value) }) }
}

pub(super) fn not_zero(message: &'static str, field: &'static str, value: u64) -> Result<(), WireError> {
    if value == 0 { Err(WireError::BadField { message, field, value }) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
