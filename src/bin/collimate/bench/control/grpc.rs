//! As much of gRPC over HTTP/2 (RFC 9113) as it takes to keep many unary calls
//! of one method under way on a connection, at next to no cost: headers are
//! literals, and those of answers are not looked into. An answer with a message
//! counts as good; a refusal comes without one.

use std::collections::HashMap;

use super::load::{Heard, Speaker};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER: usize = 9;
/// Of a gRPC message: not compressed, and its length.
const MESSAGE_HEADER: usize = 5;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Both windows at the start of a connection.
const WINDOW: i64 = 65_535;
/// What the other side may send more: all that there can be.
const WINDOW_MORE: u32 = 0x7fff_ffff - WINDOW as u32;

/// Refused calls after which it is no use.
const REFUSALS_MAX: u32 = 100;

/// Keeps `under_way` calls of one method going.
pub struct Calls<M> {
    headers: Vec<u8>,
    message: M,
    under_way: usize,
    /// The calls of now, and whether an answer has come.
    streams: HashMap<u32, bool>,
    next_stream: u32,
    /// Bytes of messages that the other side takes now.
    window: i64,
    refusals: u32,
}

impl<M: FnMut(&mut Vec<u8>)> Calls<M> {
    /// `message` appends the next request.
    pub fn new(path: &str, under_way: usize, message: M) -> Calls<M> {
        let mut headers = vec![0x83, 0x86];
        // Literals that are not to be remembered, with the names of HPACK's table
        // (RFC 7541, appendix A): `:path`, `:authority`, `content-type`.
        for (name, value) in [(&[0x04][..], path), (&[0x01], "localhost"), (&[0x0f, 0x10], "application/grpc")] {
            headers.extend_from_slice(name);
            push_text(&mut headers, value);
        }
        headers.push(0);
        push_text(&mut headers, "te");
        push_text(&mut headers, "trailers");
        let streams = HashMap::with_capacity(under_way);
        Calls { headers, message, under_way, streams, next_stream: 1, window: WINDOW, refusals: 0 }
    }

    /// Begins as many calls as there may be, and as the window allows.
    fn call(&mut self, out: &mut Vec<u8>) {
        let mut message = Vec::new();
        while self.streams.len() < self.under_way {
            message.clear();
            message.resize(MESSAGE_HEADER, 0);
            (self.message)(&mut message);
            if self.window < message.len() as i64 {
                return;
            }
            self.window -= message.len() as i64;
            let len = (message.len() - MESSAGE_HEADER) as u32;
            message[1..MESSAGE_HEADER].copy_from_slice(&len.to_be_bytes());
            push_frame(out, HEADERS, END_HEADERS, self.next_stream, &self.headers);
            push_frame(out, DATA, END_STREAM, self.next_stream, &message);
            self.streams.insert(self.next_stream, false);
            self.next_stream += 2;
        }
    }

    /// Takes a frame; whether it completes a call well.
    fn frame(&mut self, kind: u8, flags: u8, stream: u32, body: &[u8], out: &mut Vec<u8>) -> Result<bool, String> {
        match kind {
            SETTINGS if flags & ACK == 0 => push_frame(out, SETTINGS, ACK, 0, &[]),
            PING if flags & ACK == 0 => push_frame(out, PING, ACK, 0, body),
            WINDOW_UPDATE if stream == 0 && body.len() == 4 => {
                self.window += i64::from(u32::from_be_bytes([body[0], body[1], body[2], body[3]]));
            }
            GOAWAY => return Err(format!("it ends the connection: {}", String::from_utf8_lossy(body))),
            DATA | HEADERS => {
                if kind == DATA
                    && !body.is_empty()
                    && let Some(answered) = self.streams.get_mut(&stream)
                {
                    *answered = true;
                }
                if flags & END_STREAM != 0 {
                    return self.end(stream);
                }
            }
            RST_STREAM => return self.end(stream),
            _ => {}
        }
        Ok(false)
    }

    fn end(&mut self, stream: u32) -> Result<bool, String> {
        match self.streams.remove(&stream) {
            Some(false) => {
                self.refusals += 1;
                match self.refusals < REFUSALS_MAX {
                    true => Ok(false),
                    false => Err(format!("it has refused {REFUSALS_MAX} calls")),
                }
            }
            answered => Ok(answered.is_some()),
        }
    }
}

impl<M: FnMut(&mut Vec<u8>)> Speaker for Calls<M> {
    fn begin(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(PREFACE);
        push_frame(out, SETTINGS, 0, 0, &[]);
        push_frame(out, WINDOW_UPDATE, 0, 0, &WINDOW_MORE.to_be_bytes());
        self.call(out);
    }

    fn hear(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<Heard, String> {
        let mut heard = Heard { used: 0, done: 0 };
        while let Some((header, rest)) = bytes[heard.used..].split_at_checked(FRAME_HEADER) {
            let len = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
            let Some(body) = rest.get(..len) else { break };
            let stream = u32::from_be_bytes([header[5], header[6], header[7], header[8]]) & 0x7fff_ffff;
            heard.done += u64::from(self.frame(header[3], header[4], stream, body, out)?);
            heard.used += FRAME_HEADER + len;
        }
        self.call(out);
        Ok(heard)
    }
}

fn push_text(out: &mut Vec<u8>, text: &str) {
    debug_assert!(text.len() < 127, "one byte of length");
    out.push(text.len() as u8);
    out.extend_from_slice(text.as_bytes());
}

fn push_frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, body: &[u8]) {
    out.extend_from_slice(&(body.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(body);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(under_way: usize, bytes: usize) -> Calls<impl FnMut(&mut Vec<u8>)> {
        Calls::new("/a.B/C", under_way, move |out| out.extend(std::iter::repeat_n(7, bytes)))
    }

    fn answer(stream: u32, with_message: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        if with_message {
            push_frame(&mut bytes, HEADERS, END_HEADERS, stream, &[0x88]);
            push_frame(&mut bytes, DATA, 0, stream, &[0; MESSAGE_HEADER]);
        }
        push_frame(&mut bytes, HEADERS, END_HEADERS | END_STREAM, stream, &[0x88]);
        bytes
    }

    #[test]
    fn a_call_follows_on_each_answer() {
        let (mut calls, mut out) = (calls(3, 10), Vec::new());
        calls.begin(&mut out);
        assert_eq!(calls.streams.len(), 3);
        let bytes = [answer(1, true), answer(5, true)].concat();
        let (first, rest) = bytes.split_at(bytes.len() - 4);
        let heard = calls.hear(first, &mut out).unwrap();
        assert_eq!(heard.done, 1);
        let rest = [&first[heard.used..], rest].concat();
        assert_eq!(calls.hear(&rest, &mut out).unwrap(), Heard { used: rest.len(), done: 1 });
        assert_eq!(calls.next_stream, 11);
    }

    #[test]
    fn an_answer_without_a_message_is_a_refusal() {
        let (mut calls, mut out) = (calls(1, 10), Vec::new());
        calls.begin(&mut out);
        let ends = (0..REFUSALS_MAX).map(|n| calls.hear(&answer(1 + 2 * n, false), &mut out).map(|heard| heard.done));
        let ends: Vec<_> = ends.collect();
        assert!(ends[..ends.len() - 1].iter().all(|end| *end == Ok(0)), "{ends:?}");
        assert!(ends[ends.len() - 1].is_err());
    }

    #[test]
    fn no_more_is_sent_than_is_taken() {
        let (mut calls, mut out) = (calls(100, 1000), Vec::new());
        calls.begin(&mut out);
        assert_eq!(calls.streams.len(), 65);
        let mut more = Vec::new();
        push_frame(&mut more, WINDOW_UPDATE, 0, 0, &1_000_000_u32.to_be_bytes());
        push_frame(&mut more, PING, 0, 0, &[9; 8]);
        out.clear();
        calls.hear(&more, &mut out).unwrap();
        assert_eq!(calls.streams.len(), 100);
        assert!(out.windows(8).any(|w| w == [9; 8]), "the ping is answered");
    }
}
