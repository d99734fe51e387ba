//! Two endpoints of one process, with what providers with hardware demand of
//! memory: local registration, and pages that are there.

use std::cell::RefCell;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::*;

const PATIENCE: Duration = Duration::from_secs(30);
const CAPACITY: Capacity = Capacity { message_bytes_max: 10_000, receives: 16, sends_max: 16 };
const DEMANDS: [u32; 2] = [0, FI_MR_LOCAL | FI_MR_ALLOCATED];

#[derive(Default)]
struct Seen {
    messages: Vec<Vec<u8>>,
    sent: Vec<(u64, u64)>,
    reads: Vec<(u64, Result<(), OfiError>)>,
}

fn endpoints(demands: u32) -> impl Iterator<Item = [OfiEndpoint; 2]> {
    let is_there = |name: &&str| offer(name).is_ok();
    ["tcp", "shm"].into_iter().filter(is_there).map(move |name| {
        [0, 1].map(|_| OfiEndpoint::demanding(offer(name).unwrap(), CAPACITY, demands).unwrap())
    })
}

fn offer(provider: &str) -> Result<OfiOffer, String> {
    OfiOffer::find(Some(provider), Some(Ipv4Addr::LOCALHOST.into()))
}

fn run(endpoints: &mut [OfiEndpoint; 2], seen: &mut [Seen; 2], what: &str, done: impl Fn(&[Seen; 2]) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done(seen) {
        assert!(Instant::now() < deadline, "waited for ever: {what}");
        turn(endpoints, seen);
    }
}

/// Lets both work and notes what they report.
fn turn(endpoints: &mut [OfiEndpoint; 2], seen: &mut [Seen; 2]) {
    for (endpoint, seen) in endpoints.iter_mut().zip(seen.iter_mut()) {
        endpoint
            .progress(&mut |event| match event {
                OfiEvent::Message(bytes) => seen.messages.push(bytes.to_vec()),
                OfiEvent::Sent(tag, result) => {
                    result.unwrap();
                    seen.sent.push(tag);
                }
                OfiEvent::Read(tag, _, result) => seen.reads.push((tag, result)),
                OfiEvent::Unreceived(error) => panic!("{error}"),
            })
            .unwrap();
    }
}

/// Posts with the first, which may need both to work before.
fn post(
    endpoints: &mut [OfiEndpoint; 2],
    seen: &mut [Seen; 2],
    mut act: impl FnMut(&mut OfiEndpoint) -> Posted,
) -> Posted {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match act(&mut endpoints[0]) {
            Posted::Full => assert!(Instant::now() < deadline, "full for ever"),
            posted => return posted,
        }
        turn(endpoints, seen);
    }
}

#[test]
fn messages_go_whole_with_and_without_a_buffer() {
    for mut both in DEMANDS.into_iter().flat_map(endpoints) {
        let mut seen = [Seen::default(), Seen::default()];
        let address = both[1].address().unwrap();
        let to = both[0].insert(&address).unwrap();
        let lengths = [1, 20, 63, 64, 65, 4_095, 4_096, 4_097, 10_000];
        let mut under_way = 0;
        for (i, len) in lengths.into_iter().enumerate() {
            let bytes: Vec<u8> = (0..len).map(|at| (at * 7 + i) as u8).collect();
            let (head, tail) = bytes.split_at(len / 3);
            let posted = post(&mut both, &mut seen, |endpoint| {
                endpoint.send(to, (7, i as u64), len, [head, tail].into_iter()).unwrap()
            });
            under_way += usize::from(posted == Posted::UnderWay);
            run(&mut both, &mut seen, "a message", |seen| seen[1].messages.len() == i + 1 && seen[0].sent.len() == under_way);
            assert!(seen[1].messages[i] == bytes, "{len} bytes");
        }
        assert!(under_way > 0 && seen[0].sent.iter().all(|(tag, _)| *tag == 7));
    }
}

#[test]
fn reads_fill_leases_of_any_memory() {
    for mut both in DEMANDS.into_iter().flat_map(endpoints) {
        let mut seen = [Seen::default(), Seen::default()];
        let [own, theirs] = [0, 1].map(|i| {
            let region = Arc::new(crate::sys::create_region(1 << 20).unwrap());
            let bytes = (0..1 << 20).map(|at| ((at ^ (at >> 8)) as u8).wrapping_add(i)).collect::<Vec<u8>>();
            crate::mem::test_lease(&region, 0..1 << 20).bytes_mut().copy_from_slice(&bytes);
            region
        });
        both[0].register(own.clone()).unwrap();
        let key = both[1].register(theirs.clone()).unwrap();
        let address = both[1].address().unwrap();
        let from = both[0].insert(&address).unwrap();
        for (tag, lease) in [(1, crate::mem::test_lease(&own, 5_000..15_000)), (2, Lease::heap(10_000))] {
            let transfer = both[0].begin_transfer(lease, tag).unwrap();
            // In two parts, the second one first.
            for (at, len) in [(4_000, 6_000), (0, 4_000)] {
                post(&mut both, &mut seen, |endpoint| {
                    endpoint.read(transfer, at, len, from, key, 700 + at as u64).unwrap()
                });
            }
            let count = 2 * tag as usize;
            run(&mut both, &mut seen, "both parts", |seen| seen[0].reads.len() == count);
            assert!(seen[0].reads[count - 2..].iter().all(|read| *read == (tag, Ok(()))));
            let lease = both[0].end_transfer(transfer).expect("nothing is under way");
            let expected = (700..10_700).map(|at| ((at ^ (at >> 8)) as u8).wrapping_add(1));
            assert!(lease.bytes().iter().copied().eq(expected), "transfer {tag}");
            assert!(both[0].end_transfer(transfer).is_none(), "a lease comes back once");
            assert!(both[0].read(transfer, 0, 1, from, key, 0).is_err());
        }
    }
}

#[test]
fn a_lease_stays_while_a_read_is_under_way() {
    for mut both in DEMANDS.into_iter().flat_map(endpoints) {
        let mut seen = [Seen::default(), Seen::default()];
        let region = Arc::new(crate::sys::create_region(1 << 20).unwrap());
        let key = both[1].register(region).unwrap();
        let address = both[1].address().unwrap();
        let from = both[0].insert(&address).unwrap();
        let lease = Lease::heap(1 << 20);
        let kept = Arc::downgrade(lease.region());
        let transfer = both[0].begin_transfer(lease, 1).unwrap();
        post(&mut both, &mut seen, |endpoint| endpoint.read(transfer, 0, 1 << 20, from, key, 0).unwrap());
        assert!(both[0].end_transfer(transfer).is_none());
        both[0].abandon_transfer(transfer);
        assert!(kept.strong_count() == 1, "the provider may still write there");
        let deadline = Instant::now() + PATIENCE;
        while kept.strong_count() == 1 {
            assert!(Instant::now() < deadline, "the lease is never freed");
            for endpoint in &mut both {
                endpoint.progress(&mut |event| assert!(!matches!(event, OfiEvent::Read(..)), "nobody waits")).unwrap();
            }
        }
    }
}

type Close = unsafe extern "C" fn(*mut fid) -> c_int;

thread_local! {
    /// The objects that are watched and open, with their real `close`. The
    /// first one is the endpoint.
    static OPEN: RefCell<Vec<(*mut fid, Close)>> = const { RefCell::new(Vec::new()) };
}

/// As a provider does whose registrations belong to the endpoint: that one is
/// busy while they are open.
unsafe extern "C" fn close_watched(object: *mut fid) -> c_int {
    let close = OPEN.with_borrow_mut(|open| {
        let place = open.iter().position(|(known, _)| *known == object).expect("watched and open");
        let is_endpoint = place == 0;
        (!is_endpoint || open.len() == 1).then(|| open.remove(place).1)
    });
    let Some(close) = close else { return -(FI_EBUSY as c_int) };
    // SAFETY: the provider's own, for its object.
    unsafe { close(object) }
}

/// Has an object closed by `close_watched`.
///
/// # Safety
/// The object is open, and is closed on this thread.
unsafe fn watch(object: *mut fid) {
    // SAFETY: an open object has its table, of which this is a copy with one
    // function replaced; it stays for ever.
    unsafe {
        let mut ops = std::ptr::read((*object).ops);
        let close = ops.close.replace(close_watched).expect("every object can be closed");
        (*object).ops = Box::leak(Box::new(ops));
        OPEN.with_borrow_mut(|open| open.push((object, close)));
    }
}

#[test]
fn what_is_bound_to_an_endpoint_is_closed_before_it() {
    for [mut endpoint, mut other] in endpoints(FI_MR_LOCAL) {
        let region = Arc::new(crate::sys::create_region(1 << 20).unwrap());
        let kept = Arc::downgrade(&region);
        endpoint.register(region).unwrap();
        let transfer = endpoint.begin_transfer(Lease::heap(10_000), 1).unwrap();
        let key = other.register(Arc::new(crate::sys::create_region(1 << 20).unwrap())).unwrap();
        let from = endpoint.insert(&other.address().unwrap()).unwrap();
        let _ = endpoint.read(transfer, 0, 10_000, from, key, 0).unwrap();
        // SAFETY: all are open and are closed below; the attributes are the
        // domain's. The provider itself binds nothing.
        unsafe {
            let attr = &*endpoint.info.get().domain_attr;
            let Handles { domain, endpoint: handle, .. } = endpoint.handles;
            endpoint.registrar = Registrar::new(endpoint.library, domain, handle, attr, FI_MR_LOCAL | FI_MR_ENDPOINT);
            watch(&raw mut (*handle.as_ptr()).fid);
            watch(endpoint.regions[0].1.fid());
            let of_transfer = endpoint.transfers.iter().flatten().find_map(|transfer| transfer.mr.as_ref());
            watch(of_transfer.expect("it is registered").fid());
        }
        drop(endpoint);
        assert!(OPEN.take().is_empty(), "everything was closed");
        assert!(kept.strong_count() == 0, "the memory is free");
    }
}
