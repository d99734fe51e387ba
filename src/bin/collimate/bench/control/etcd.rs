//! etcd as a reference: a cluster of as many members as our chain has, or a
//! single one, each with its log on the disk.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use super::super::measure::{Failed, PATIENCE};
use super::grpc::Calls;
use super::load::rate;
use super::peer::{Folder, Server, free_ports, missing};
use super::{KEYS, VALUE_BYTES};

const PROGRAM: &str = "etcd";
const PUT: &str = "/etcdserverpb.KV/Put";

/// Why there can be no comparison, if so.
pub fn obstacle() -> Option<String> {
    missing(PROGRAM, "etcd-server")
}

/// A cluster.
pub struct Etcd {
    ports: Vec<u16>,
    _servers: Vec<Server>,
    _folder: Folder,
}

impl Etcd {
    /// Starts `MEMBERS` and waits until they have a leader.
    pub fn start<const MEMBERS: usize>() -> Result<Etcd, Failed> {
        let folder = Folder::new(&format!("etcd-{MEMBERS}"))?;
        let (ports, peer_ports) = (free_ports::<MEMBERS>()?, free_ports::<MEMBERS>()?);
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let members = peer_ports.iter().enumerate().map(|(n, port)| format!("m{n}={}", url(*port)));
        let cluster = members.collect::<Vec<_>>().join(",");
        let mut servers = Vec::new();
        for (number, (port, peer_port)) in ports.iter().zip(peer_ports).enumerate() {
            let name = format!("m{number}");
            let mut command = Command::new(PROGRAM);
            command.args(["--name", &name, "--data-dir"]).arg(folder.path().join(&name));
            command.args(["--listen-client-urls", &url(*port), "--advertise-client-urls", &url(*port)]);
            command.args(["--listen-peer-urls", &url(peer_port), "--initial-advertise-peer-urls", &url(peer_port)]);
            command.args(["--initial-cluster", &cluster, "--initial-cluster-state", "new", "--log-level", "error"]);
            servers.push(Server::start(&name, folder.path(), &mut command)?);
        }
        let mut etcd = Etcd { ports: ports.to_vec(), _servers: Vec::new(), _folder: folder };
        servers[0].await_ready(|| etcd.leader().map(drop))?;
        etcd._servers = servers;
        Ok(etcd)
    }

    /// Acknowledged writes a second with so many under way, spread over so many
    /// connections to the leader, which spares etcd the forwarding.
    pub fn rate(&self, connections: usize, under_way: usize, time: Duration) -> Result<f64, Failed> {
        let port = self.leader()?;
        let speaker = |number| {
            let mut next_key: usize = number * 7919;
            let message = move |out: &mut Vec<u8>| {
                push_put(out, next_key % KEYS);
                next_key += 1;
            };
            Calls::new(PUT, (under_way / connections).max(1), message)
        };
        rate(port, (0..connections).map(speaker).collect(), time)
    }

    /// The port of the member that leads.
    fn leader(&self) -> Result<u16, Failed> {
        for port in &self.ports {
            if metrics(*port)?.lines().any(|line| line == "etcd_server_is_leader 1") {
                return Ok(*port);
            }
        }
        Err("it has no leader".into())
    }
}

/// A `PutRequest`: field 1 is the key, field 2 the value.
fn push_put(out: &mut Vec<u8>, key: usize) {
    let key = format!("key:{key:08}");
    out.extend_from_slice(&[0x0a, key.len() as u8]);
    out.extend_from_slice(key.as_bytes());
    const _: () = assert!(VALUE_BYTES >= 128 && VALUE_BYTES < 1 << 14, "a length of two bytes");
    out.extend_from_slice(&[0x12, (VALUE_BYTES & 0x7f) as u8 | 0x80, (VALUE_BYTES >> 7) as u8]);
    out.extend(std::iter::repeat_n(b'v', VALUE_BYTES));
}

/// What a member says of itself.
fn metrics(port: u16) -> Result<String, Failed> {
    let deadline = Instant::now() + PATIENCE;
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    let (mut text, mut buffer) = (Vec::new(), [0; 16 * 1024]);
    while Instant::now() < deadline {
        match stream.read(&mut buffer)? {
            0 => return Ok(String::from_utf8_lossy(&text).into_owned()),
            n => text.extend_from_slice(&buffer[..n]),
        }
    }
    Err("its metrics do not come".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_as_protobuf_has_it() {
        let mut out = Vec::new();
        push_put(&mut out, 42);
        assert_eq!(&out[..14], b"\x0a\x0ckey:00000042");
        assert_eq!(out[14..17], [0x12, 0x80, 0x04], "512 in two groups of seven bits");
        assert_eq!(out.len(), 17 + VALUE_BYTES);
    }
}
