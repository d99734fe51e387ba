//! Which device, port and address this rank uses.

use std::fmt;
use std::sync::Arc;

use super::room::Capacity;
use crate::sys::{RdmaAdapter as Adapter, Gid, GidKind, RdmaPort as Port, RdmaTransport as Transport, adapter_names};

/// The device that RDMA would use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RdmaDevice {
    /// Its name, as `mlx5_0`.
    pub name: String,
    /// Its port.
    pub port: u8,
    /// Whether the port is RoCE; else InfiniBand.
    pub is_ethernet: bool,
    /// Whether the processor does the work of a card, as with `rxe`.
    pub is_emulated: bool,
    /// The entry of the port's GID table.
    pub gid_index: u8,
    /// That entry, as an address.
    pub address: String,
    /// The largest packet, in bytes.
    pub mtu: u32,
}

/// The device that RDMA would use, or why there is none. `device` is a name, or
/// a name and a port, as `mlx5_0:2`.
pub fn rdma_available(device: Option<&str>, gid_index: Option<u8>) -> Result<RdmaDevice, String> {
    find(device, gid_index).map(|found| found.summary())
}

/// An opened device with an active port.
pub(super) struct Found {
    pub(super) adapter: Arc<Adapter>,
    pub(super) port: Port,
    pub(super) gid: Gid,
}

pub(super) fn find(device: Option<&str>, gid_index: Option<u8>) -> Result<Found, String> {
    let none = |why: String| format!("no RDMA here: {why}");
    let names = adapter_names().map_err(none)?;
    if names.is_empty() {
        return Err(none("there is no device".into()));
    }
    let (wanted, port) = split(device).map_err(none)?;
    let candidates: Vec<&String> = names.iter().filter(|name| wanted.is_none_or(|wanted| *name == wanted)).collect();
    if let (Some(wanted), []) = (wanted, &candidates[..]) {
        return Err(none(format!("there is no device {wanted}; there are {}", names.join(", "))));
    }
    let mut why = Vec::new();
    for name in candidates {
        match open(name, port, gid_index) {
            Ok(found) => return Ok(found),
            Err(reason) => why.push(reason),
        }
    }
    Err(none(why.join("; ")))
}

impl Found {
    /// What the device holds.
    pub(super) fn capacity(&self) -> Capacity {
        Capacity {
            receives: self.adapter.receives_max(),
            completions: self.adapter.completions_max(),
            work_requests: self.adapter.work_requests_max(),
            pairs: self.adapter.pairs_max(),
        }
    }

    pub(super) fn summary(&self) -> RdmaDevice {
        RdmaDevice {
            name: self.adapter.name().into(),
            port: self.port.number,
            is_ethernet: self.port.is_ethernet,
            is_emulated: self.adapter.is_emulated(),
            gid_index: self.gid.index,
            address: self.gid.to_string(),
            mtu: mtu_bytes(self.port.mtu),
        }
    }
}

impl fmt::Display for RdmaDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RdmaDevice { name, port, is_ethernet, is_emulated, gid_index, address, mtu } = self;
        let kind = if *is_ethernet { "RoCE" } else { "InfiniBand" };
        let kind = if *is_emulated { format!("{kind} done by the processor") } else { kind.into() };
        write!(f, "{name}:{port}, {kind}, address {address} (GID {gid_index}), MTU {mtu}")
    }
}

/// What the verbs' number for an MTU stands for.
pub(super) fn mtu_bytes(mtu: u8) -> u32 {
    128 << mtu
}

/// A device's name and, after a colon, its port.
fn split(device: Option<&str>) -> Result<(Option<&str>, Option<u8>), String> {
    match device.and_then(|device| device.split_once(':')) {
        None => Ok((device, None)),
        Some((name, port)) => match port.parse() {
            Ok(port @ 1..) => Ok((Some(name), Some(port))),
            _ => Err(format!("{port} is no port of {name}: they are numbered from 1")),
        },
    }
}

fn open(name: &str, port: Option<u8>, gid_index: Option<u8>) -> Result<Found, String> {
    let adapter = Adapter::open(name)?;
    match adapter.transport() {
        Transport::InfiniBand => {}
        Transport::Iwarp => return Err(format!("{name} is an iWARP adapter; only InfiniBand and RoCE are used")),
        Transport::Other => return Err(format!("{name} has no reliable connections")),
    }
    if let Some(port) = port.filter(|port| *port > adapter.ports()) {
        return Err(format!("{name} has no port {port}, it has {}", adapter.ports()));
    }
    let numbers = port.map_or(1..=adapter.ports(), |port| port..=port);
    let mut why = Vec::new();
    for number in numbers {
        let port = adapter.port(number).map_err(|error| format!("port {number} of {name}: {error}"))?;
        if !port.is_active {
            why.push(format!("port {number} of {name} is not active"));
            continue;
        }
        match choose_gid(&adapter.gids(&port), gid_index) {
            Ok(gid) => return Ok(Found { adapter, port, gid }),
            Err(reason) => why.push(format!("port {number} of {name} {reason}")),
        }
    }
    Err(why.join("; "))
}

/// The address to use of a port's table. RoCE v2 is routed and has congestion
/// control, so it comes first: with an IPv4 address, as clusters are set up,
/// else with a routable IPv6 one.
fn choose_gid(gids: &[Gid], wanted: Option<u8>) -> Result<Gid, String> {
    if let Some(wanted) = wanted {
        let list = || gids.iter().map(|gid| format!("{} ({gid})", gid.index)).collect::<Vec<_>>().join(", ");
        let found = gids.iter().find(|gid| gid.index == wanted);
        return found.copied().ok_or_else(|| format!("has no GID {wanted}; it has {}", list()));
    }
    let rank = |gid: &Gid| match gid.kind {
        GidKind::RoceV2 if gid.is_ipv4() => 0,
        GidKind::RoceV2 if !gid.is_link_local() => 1,
        GidKind::InfiniBand => 2,
        GidKind::RoceV2 => 3,
        GidKind::RoceV1 => 4,
    };
    gids.iter().min_by_key(|gid| rank(gid)).copied().ok_or_else(|| "has no GID that can be used".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gid(index: u8, address: &str, kind: GidKind) -> Gid {
        Gid { index, bytes: address.parse::<std::net::Ipv6Addr>().unwrap().octets(), kind }
    }

    #[test]
    fn the_address_that_others_can_reach_is_chosen() {
        use GidKind::{InfiniBand, RoceV1, RoceV2};
        let table = [
            gid(0, "fe80::1", RoceV1),
            gid(1, "fe80::1", RoceV2),
            gid(2, "::ffff:10.0.0.1", RoceV1),
            gid(3, "::ffff:10.0.0.1", RoceV2),
            gid(4, "2001:db8::1", RoceV2),
        ];
        let choose = |range: &[usize]| choose_gid(&range.iter().map(|i| table[*i]).collect::<Vec<_>>(), None).unwrap().index;
        assert_eq!(choose(&[0, 1, 2, 3, 4]), 3);
        assert_eq!(choose(&[0, 1, 2, 4]), 4);
        assert_eq!(choose(&[0, 1, 2]), 1);
        assert_eq!(choose(&[2]), 2);
        assert_eq!(choose_gid(&[gid(0, "fe80::5", InfiniBand)], None).unwrap().index, 0);
        assert!(choose_gid(&[], None).unwrap_err().contains("no GID"));
        assert_eq!(choose_gid(&table, Some(2)).unwrap().index, 2);
        assert!(choose_gid(&table, Some(7)).unwrap_err().contains("3 (10.0.0.1)"), "says what there is");
    }

    #[test]
    fn a_device_may_have_a_port() {
        assert_eq!(split(None), Ok((None, None)));
        assert_eq!(split(Some("mlx5_0")), Ok((Some("mlx5_0"), None)));
        assert_eq!(split(Some("mlx5_0:2")), Ok((Some("mlx5_0"), Some(2))));
        for bad in ["mlx5_0:0", "mlx5_0:", "mlx5_0:one", "mlx5_0:256"] {
            assert!(split(Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        match rdma_available(None, None) {
            Ok(device) => {
                assert!(device.to_string().contains(&device.address));
                let why = rdma_available(Some("nowhere0"), None).unwrap_err();
                assert!(why.contains("nowhere0") && why.contains(&device.name), "{why}");
                let why = rdma_available(Some(&format!("{}:9", device.name)), None).unwrap_err();
                assert!(why.contains("no port 9"), "{why}");
                assert!(rdma_available(None, Some(255)).unwrap_err().contains("has no GID 255"));
            }
            Err(why) => assert!(why.starts_with("no RDMA here: "), "{why}"),
        }
    }
}
