//! Round trips of a message between two threads that both poll, over each
//! backend.

use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use collimate::base::Rank;
use collimate::fabric::{EpollFabric, Event, Fabric, FabricError, Link, ShmFabric, UringFabric};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

type Made = Result<Box<dyn Fabric>, FabricError>;
type Make = fn(Rank) -> Made;

const BACKENDS: [(&str, Make); 3] = [
    ("shm", |rank| Ok(Box::new(ShmFabric::new(rank, Default::default())?))),
    ("uring", |rank| Ok(Box::new(UringFabric::new(rank, Default::default())?))),
    ("epoll", |rank| Ok(Box::new(EpollFabric::new(rank, Default::default())?))),
];

fn links(name: &str) -> std::io::Result<(Link, Link)> {
    if name == "shm" {
        let (a, b) = UnixStream::pair()?;
        return Ok((Link::Unix(a), Link::Unix(b)));
    }
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let a = TcpStream::connect(listener.local_addr()?)?;
    let (b, _) = listener.accept()?;
    a.set_nodelay(true)?;
    b.set_nodelay(true)?;
    Ok((Link::Tcp(a), Link::Tcp(b)))
}

fn connected(make: Make, me: Rank, peer: Rank, link: Link) -> Made {
    let mut fabric = make(me)?;
    fabric.connect(peer, link)?;
    Ok(fabric)
}

fn round_trips(c: &mut Criterion) {
    let (a, b) = (Rank(0), Rank(1));
    for (name, make) in BACKENDS {
        let (link_a, link_b) = links(name).expect("two connected sockets");
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let stop = &stop;
            scope.spawn(move || {
                let mut fabric = connected(make, b, a, link_b).unwrap_or_else(|e| panic!("{name}: {e}"));
                let mut last = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    if let Some(message) = received(&mut *fabric, &mut last) {
                        fabric.send(a, &[message]).expect("one message at a time has room");
                    }
                }
            });
            let mut fabric = connected(make, a, b, link_a).unwrap_or_else(|e| panic!("{name}: {e}"));
            let mut group = c.benchmark_group("round_trip");
            for len in [8, 1024, 16 * 1024] {
                let message = vec![7; len];
                let mut last = Vec::new();
                group.bench_function(BenchmarkId::new(name, len), |bencher| {
                    bencher.iter(|| {
                        fabric.send(b, &[&message]).expect("one message at a time has room");
                        while received(&mut *fabric, &mut last).is_none() {}
                    })
                });
            }
            group.finish();
            stop.store(true, Ordering::Relaxed);
        });
    }
}

/// Polls once; the message that came, in `last`.
fn received<'a>(fabric: &mut dyn Fabric, last: &'a mut Vec<u8>) -> Option<&'a [u8]> {
    let mut got = false;
    fabric.poll(&mut |event| match event {
        Event::Message { bytes, .. } => {
            last.clear();
            last.extend_from_slice(bytes);
            got = true;
        }
        Event::Lost { peer, cause } => panic!("lost {peer}: {cause}"),
        Event::ReadDone { .. } => {}
    });
    got.then_some(&last[..])
}

criterion_group! {
    name = fabric;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = round_trips
}
criterion_main!(fabric);
