//! Control messages: Rust types in, FlatBuffer bytes out, and back with every
//! length and number checked. Rare by design, so reading copies into owned
//! values and nobody else has to know FlatBuffers.

use planus::ReadAsRoot;

use super::WireError;
use super::generated::collimate::control as flat;
use crate::base::limits::{
    MESSAGE_BYTES_MAX, NAME_BYTES_MAX, TEXT_BYTES_MAX, TRAIL_HOPS_MAX,
};
use crate::base::{ErrorKind, Hop, Rank, TaskError};

/// A control message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Control {
    /// The first message on every connection between ranks.
    Hello(Hello),
    /// A task has no result.
    ErrorReport(ErrorReport),
    /// The sender will send nothing more.
    Goodbye(Goodbye),
    /// The driver ends the job.
    Shutdown(Shutdown),
}

/// What a rank says first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// The sender's [`SCHEMA_VERSION`](super::SCHEMA_VERSION).
    pub schema: u32,
    /// The sender's rank.
    pub rank: Rank,
    /// Worker threads of the sender.
    pub workers: u32,
    /// Bytes of the sender's object arena.
    pub store_bytes: u64,
    /// Hash over the sender's task table; with another hash the
    /// table is to be read from the control store.
    pub tasks_hash: u64,
    /// Bytes of the sender's registered region.
    pub region_bytes: u64,
    /// What the sender has for tasks that ask for it, as `gpu=2,licence=1`.
    pub resources: String,
}

/// The error value of a task.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ErrorReport {
    /// The slot at the receiver that awaits the result.
    pub request: u64,
    /// What happened and where. Text and trail are cut when they are written
    /// to what `limits` allows; of a long trail both ends are kept.
    pub error: TaskError,
}

/// The end of what a rank has to say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Goodbye {
    /// The sender's exit status.
    pub status: i32,
    /// Why, in one line; empty when all went well.
    pub reason: String,
}

/// The end of the job.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shutdown {
    /// The exit status of the job.
    pub status: i32,
    /// Why, in one line; empty when all went well.
    pub reason: String,
}

impl Control {
    /// Reads and verifies the FlatBuffer `bytes`.
    pub(super) fn parse(bytes: &[u8]) -> Result<Control, WireError> {
        match flat::ControlRef::read_as_root(bytes)?.body()? {
            flat::BodyRef::Hello(hello) => Hello::parse(hello).map(Control::Hello),
            flat::BodyRef::ErrorReport(report) => ErrorReport::parse(report).map(Control::ErrorReport),
            flat::BodyRef::Goodbye(goodbye) => {
                Ok(Control::Goodbye(Goodbye { status: goodbye.status()?, reason: text(goodbye.reason()?)? }))
            }
            flat::BodyRef::Shutdown(shutdown) => {
                Ok(Control::Shutdown(Shutdown { status: shutdown.status()?, reason: text(shutdown.reason()?)? }))
            }
        }
    }

    /// Appends the message as a FlatBuffer to `out`.
    pub(super) fn append_to(&self, out: &mut Vec<u8>) -> Result<(), WireError> {
        let body = match self {
            Control::Hello(hello) => flat::Body::Hello(Box::new(flat::Hello {
                schema: hello.schema,
                rank: hello.rank.0,
                workers: hello.workers,
                store_bytes: hello.store_bytes,
                tasks_hash: hello.tasks_hash,
                region_bytes: hello.region_bytes,
                resources: Some(cut(&hello.resources, TEXT_BYTES_MAX)),
            })),
            Control::ErrorReport(report) => flat::Body::ErrorReport(Box::new(report.flatten())),
            Control::Goodbye(Goodbye { status, reason }) => {
                flat::Body::Goodbye(Box::new(flat::Goodbye { status: *status, reason: cut(reason, TEXT_BYTES_MAX) }))
            }
            Control::Shutdown(Shutdown { status, reason }) => {
                flat::Body::Shutdown(Box::new(flat::Shutdown { status: *status, reason: cut(reason, TEXT_BYTES_MAX) }))
            }
        };
        let mut builder = planus::Builder::new();
        let bytes = builder.finish(flat::Control { body }, None);
        let (len, limit) = (out.len() + bytes.len(), MESSAGE_BYTES_MAX);
        if len > limit {
            return Err(WireError::TooLarge { what: "a control message", len, limit });
        }
        out.extend_from_slice(bytes);
        Ok(())
    }
}

impl Hello {
    fn parse(flat: flat::HelloRef<'_>) -> Result<Hello, WireError> {
        Ok(Hello {
            schema: flat.schema()?,
            rank: Rank(flat.rank()?),
            workers: flat.workers()?,
            store_bytes: flat.store_bytes()?,
            tasks_hash: flat.tasks_hash()?,
            region_bytes: flat.region_bytes()?,
            resources: text(flat.resources()?.unwrap_or_default())?,
        })
    }
}

impl ErrorReport {
    fn parse(flat: flat::ErrorReportRef<'_>) -> Result<ErrorReport, WireError> {
        let code = flat.kind()?;
        let kind = ErrorKind::from_code(code).ok_or(WireError::BadField {
            message: "control",
            field: "error kind",
            value: u64::from(code),
        })?;
        let trail = flat.trail()?;
        within("a trail", trail.len(), TRAIL_HOPS_MAX)?;
        let trail = trail.iter().map(|hop| {
            let hop = hop?;
            within("a task name", hop.task()?.len(), NAME_BYTES_MAX)?;
            Ok(Hop { task: hop.task()?.into(), rank: hop.rank()? })
        });
        let trail = trail.collect::<Result<_, WireError>>()?;
        Ok(ErrorReport { request: flat.request()?, error: TaskError { kind, message: text(flat.message()?)?, trail } })
    }

    fn flatten(&self) -> flat::ErrorReport {
        let trail = &self.error.trail;
        let hop = |hop: &Hop| flat::Hop { task: cut(&hop.task, NAME_BYTES_MAX), rank: hop.rank };
        let trail = if trail.len() <= TRAIL_HOPS_MAX {
            trail.iter().map(hop).collect()
        } else {
            let (first, last) = (&trail[..TRAIL_HOPS_MAX / 2], &trail[trail.len() - TRAIL_HOPS_MAX / 2..]);
            first.iter().chain(last).map(hop).collect()
        };
        flat::ErrorReport {
            request: self.request,
            kind: self.error.kind as u8,
            message: cut(&self.error.message, TEXT_BYTES_MAX),
            trail,
        }
    }
}

impl From<planus::Error> for WireError {
    fn from(error: planus::Error) -> Self {
        WireError::Control(error.to_string())
    }
}

/// A received text, if it is not too long.
fn text(text: &str) -> Result<String, WireError> {
    within("a text", text.len(), TEXT_BYTES_MAX)?;
    Ok(text.into())
}

fn within(what: &'static str, len: usize, limit: usize) -> Result<(), WireError> {
    if len > limit { Err(WireError::TooLarge { what, len, limit }) } else { Ok(()) }
}

/// The longest start of `text` that has at most `bytes_max` bytes.
fn cut(text: &str, bytes_max: usize) -> String {
    text[..text.floor_char_boundary(bytes_max)].into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(control: &Control) -> Control {
        let mut bytes = Vec::new();
        control.append_to(&mut bytes).unwrap();
        Control::parse(&bytes).unwrap()
    }

    fn report(message: String, hops: usize) -> Control {
        let trail = (0..hops).map(|i| Hop { task: format!("task{i}"), rank: i as u32 }).collect();
        let error = TaskError { kind: ErrorKind::Panicked, message, trail };
        Control::ErrorReport(ErrorReport { request: 77, error })
    }

    #[test]
    fn every_control_message_survives_the_wire() {
        let hello = Hello {
            schema: 1,
            rank: Rank(3),
            workers: 2,
            store_bytes: 1 << 40,
            tasks_hash: u64::MAX,
            region_bytes: 9,
            resources: "gpu=2".into(),
        };
        for control in [
            Control::Hello(hello),
            report("index out of bounds".into(), 5),
            report(String::new(), 0),
            Control::Goodbye(Goodbye { status: 0, reason: String::new() }),
            Control::Goodbye(Goodbye { status: -1, reason: "the driver failed".into() }),
            Control::Shutdown(Shutdown { status: 1, reason: "ünïcode".into() }),
        ] {
            assert_eq!(round_trip(&control), control);
        }
    }

    #[test]
    fn a_long_error_is_cut_and_keeps_both_ends_of_its_trail() {
        let Control::ErrorReport(got) = round_trip(&report("é".repeat(TEXT_BYTES_MAX), 100_000)) else { panic!() };
        assert!(got.error.message.len() > TEXT_BYTES_MAX - 2 && got.error.message.len() <= TEXT_BYTES_MAX);
        assert_eq!(got.error.trail.len(), TRAIL_HOPS_MAX);
        assert_eq!(got.error.trail[0].task, "task0");
        assert_eq!(got.error.trail.last().unwrap().task, "task99999");
    }

    #[test]
    fn what_exceeds_a_limit_is_refused() {
        let long = "x".repeat(TEXT_BYTES_MAX + 1);
        let flat = flat::Control { body: flat::Body::Goodbye(Box::new(flat::Goodbye { status: 0, reason: long })) };
        let mut builder = planus::Builder::new();
        let result = Control::parse(builder.finish(flat, None));
        assert!(matches!(result, Err(WireError::TooLarge { what: "a text", .. })), "{result:?}");
    }

    #[test]
    fn a_hello_without_later_fields_still_tells_its_version() {
        let hello = flat::Hello { schema: 0, rank: 4, resources: None, ..Default::default() };
        let mut builder = planus::Builder::new();
        let control = Control::parse(builder.finish(flat::Control { body: flat::Body::Hello(Box::new(hello)) }, None));
        assert!(matches!(control, Ok(Control::Hello(Hello { schema: 0, rank: Rank(4), .. }))), "{control:?}");
    }

    #[test]
    fn an_error_kind_that_does_not_exist_is_refused() {
        let report = flat::ErrorReport { request: 1, kind: 200, message: String::new(), trail: Vec::new() };
        let mut builder = planus::Builder::new();
        let result =
            Control::parse(builder.finish(flat::Control { body: flat::Body::ErrorReport(Box::new(report)) }, None));
        assert_eq!(result, Err(WireError::BadField { message: "control", field: "error kind", value: 200 }));
    }
}
