//! A pair of queue pairs of one process, where there is a device.

use super::*;
use crate::mem::{Region, test_lease};
use std::sync::Arc;
use std::time::{Duration, Instant};

struct End {
    completions: CompletionQueue,
    receives: ReceiveQueue,
    pair: QueuePair,
    taken: Vec<Completion>,
}

fn adapter() -> Option<(Arc<Adapter>, Port, Gid)> {
    let adapter = Adapter::open(adapter_names().ok()?.first()?).unwrap();
    let port = adapter.port(1).unwrap();
    let gid = *adapter.gids(&port).last()?;
    Some((adapter, port, gid))
}

fn end(adapter: &Arc<Adapter>, port: &Port) -> End {
    let completions = CompletionQueue::new(adapter, 64).unwrap();
    let receives = ReceiveQueue::new(adapter, 8, 256).unwrap();
    let pair = QueuePair::new(&completions, &receives, port, 16, 32, 4096).unwrap();
    End { completions, receives, pair, taken: Vec::new() }
}

fn two_ends() -> Option<(Arc<Adapter>, End, End)> {
    let (adapter, port, gid) = adapter()?;
    let (mut a, mut b) = (end(&adapter, &port), end(&adapter, &port));
    let numbers = [a.pair.number(), b.pair.number()];
    for (this, other) in [(&mut a, 1), (&mut b, 0)] {
        let address = Address::Global { lid: port.lid, gid: gid.bytes, own_index: gid.index };
        let remote = Remote { pair: numbers[other], first_packet: 7, mtu: port.mtu, reads_out: 1, address };
        this.pair.connect(&port, &remote, 7, 1).unwrap();
    }
    Some((adapter, a, b))
}

impl End {
    fn next(&mut self) -> Completion {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.taken.is_empty() {
            assert!(Instant::now() < deadline, "no completion");
            self.completions.poll(&mut self.taken).unwrap();
            std::thread::yield_now();
        }
        self.taken.remove(0)
    }

    fn receive(&mut self) -> Vec<u8> {
        let completion = self.next();
        assert!(completion.is_ok());
        let received = self.receives.take(completion).unwrap();
        let bytes = self.receives.bytes(&received).to_vec();
        self.receives.give_back(received);
        self.receives.flush().unwrap();
        bytes
    }
}

#[test]
fn no_device_is_told_and_not_a_crash() {
    match adapter_names() {
        Ok(names) => names.iter().for_each(|name| assert!(Adapter::open(name).is_ok())),
        Err(why) => assert!(why.contains("libibverbs") || why.contains("RDMA"), "{why}"),
    }
    assert!(Adapter::open("no such device").is_err());
}

#[test]
fn sends_writes_and_reads_arrive() {
    let Some((adapter, mut a, mut b)) = two_ends() else { return };
    a.pair.send_inline(b"he", &[b"ll", b"o"]).unwrap();
    assert_eq!(b.receive(), b"hello");

    assert!(a.pair.push_send(b"one", &[]) && a.pair.push_send(b"t", &[b"w", b"o"]));
    a.pair.flush().unwrap();
    assert_eq!(b.receive(), b"one");
    assert_eq!(b.receive(), b"two");

    let window = Window::new(&adapter, 2, 64).unwrap();
    assert!(a.pair.push_write(b"into", &[b" the slot"], window.address() + 64, window.remote_key(), 1));
    a.pair.flush().unwrap();
    let completion = b.next();
    assert_eq!((completion.immediate(), completion.bytes()), (Some(1), 13));
    let mut copy = Vec::new();
    window.copy_out(1, 13, &mut copy);
    assert_eq!(copy, b"into the slot");

    let region = Arc::new(Region::heap(100));
    test_lease(&region, 0..100).bytes_mut().fill(9);
    let source = Memory::shared(&adapter, &region).unwrap();
    let target = Arc::new(Region::heap(100));
    let memory = Arc::new(Memory::private(&adapter, &target, 0..100).unwrap());
    let read = a.pair.begin_read(test_lease(&target, 10..90), memory);
    a.pair.push_read(read, 5..75, source.address(), source.remote_key());
    assert!(a.pair.end_read(read).is_none(), "it is under way");
    a.pair.flush().unwrap();
    let completion = a.next();
    let mut ended = Vec::new();
    assert!(a.pair.complete(&completion, |read, ok| ended.push((read, ok))));
    assert_eq!(ended, [(read, true)]);
    let lease = a.pair.end_read(read).unwrap();
    assert!(lease.bytes()[5..75].iter().all(|byte| *byte == 9));
    assert!(lease.bytes()[..5].iter().chain(&lease.bytes()[75..]).all(|byte| *byte == 0));
    assert!(a.pair.is_idle());
    assert_eq!(a.pair.counts().work_requests, 5);
    assert_eq!(a.pair.counts().doorbells, 4);
}

#[test]
fn a_failed_pair_gives_everything_back() {
    let Some((adapter, mut a, b)) = two_ends() else { return };
    a.pair.fail().unwrap();
    let target = Arc::new(Region::heap(100));
    let memory = Arc::new(Memory::private(&adapter, &target, 0..100).unwrap());
    let read = a.pair.begin_read(test_lease(&target, 0..100), memory);
    a.pair.push_read(read, 0..100, 0, 0);
    a.pair.flush().unwrap();
    let completion = a.next();
    assert!(completion.is_flushed() && !completion.text(&adapter).is_empty());
    let mut ended = Vec::new();
    assert!(a.pair.complete(&completion, |read, ok| ended.push((read, ok))));
    assert_eq!(ended, [(read, false)]);
    assert!(a.pair.end_read(read).is_some());
    drop(b);
}

/// The card refuses the first of two reads, and so hears of neither; the pair
/// is failed, and what completes is what is posted then.
#[test]
fn a_read_that_was_never_posted_is_no_success() {
    let Some((adapter, mut a, b)) = two_ends() else { return };
    let target = Arc::new(Region::heap(2 << 12));
    let memory = Arc::new(Memory::private(&adapter, &target, 0..target.len()).unwrap());
    let read = a.pair.begin_read(test_lease(&target, 0..2 << 12), memory);
    a.pair.push_read(read, 0..1 << 12, 0, 0);
    a.pair.push_read(read, 1 << 12..2 << 12, 0, 0);
    a.pair.spoil_first();
    a.pair.flush().unwrap_err();
    a.pair.fail().unwrap();
    a.pair.push_touch(0, 0);
    a.pair.signal_last();
    a.pair.flush().unwrap();
    let completion = a.next();
    let mut ended = Vec::new();
    assert!(a.pair.complete(&completion, |read, ok| ended.push((read, ok))));
    assert_eq!(ended, [(read, false); 2]);
    assert!(a.pair.is_idle() && a.pair.end_read(read).is_some());
    drop(b);
}
