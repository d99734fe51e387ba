//! The host file: one host per line, `name [slots=N]`, `#` starts a comment.

use std::net::IpAddr;
use std::path::Path;

/// A host and how many ranks it takes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Host {
    /// A name or an address.
    pub name: String,
    /// Ranks it takes; 1 unless the file says otherwise.
    pub slots: u32,
}

/// Why a host file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum HostFileError {
    /// It cannot be read.
    #[error("the host file {path} cannot be read: {cause}")]
    Unreadable {
        /// Its path.
        path: String,
        /// The system's reason.
        cause: std::io::Error,
    },
    /// A line that is no host.
    #[error("{path}, line {line}: `{text}` is not `HOST [slots=N]` with N from 1")]
    Malformed {
        /// Its path.
        path: String,
        /// Counted from 1.
        line: usize,
        /// What stands there.
        text: String,
    },
    /// No host in it.
    #[error("the host file {0} names no host: write one per line, `HOST [slots=N]`")]
    Empty(String),
}

impl Host {
    /// Reads a host file.
    pub fn read_file(path: &Path) -> Result<Vec<Host>, HostFileError> {
        let name = path.display().to_string();
        let text =
            std::fs::read_to_string(path).map_err(|cause| HostFileError::Unreadable { path: name.clone(), cause })?;
        Host::parse(&text, &name)
    }

    /// Parses the text of the host file `path`.
    pub fn parse(text: &str, path: &str) -> Result<Vec<Host>, HostFileError> {
        let mut hosts = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let words = line.split('#').next().unwrap_or_default();
            let mut words = words.split_ascii_whitespace();
            let Some(name) = words.next() else { continue };
            let slots = match words.next() {
                None => Some(1),
                Some(word) => word.strip_prefix("slots=").and_then(|n| n.parse().ok()).filter(|n| *n > 0),
            };
            // A name that starts with a dash would be an option to ssh.
            let host = match (slots, words.next()) {
                (Some(slots), None) if !name.starts_with('-') && !name.contains('=') => {
                    Host { name: name.to_string(), slots }
                }
                _ => {
                    let text = line.trim().to_string();
                    return Err(HostFileError::Malformed { path: path.to_string(), line: index + 1, text });
                }
            };
            hosts.push(host);
        }
        if hosts.is_empty() { Err(HostFileError::Empty(path.to_string())) } else { Ok(hosts) }
    }

    /// Whether this is the host that the launcher runs on.
    pub fn is_local(&self) -> bool {
        let own = rustix::system::uname();
        let own = own.nodename().to_string_lossy();
        let short = |name: &str| name.split('.').next().unwrap_or_default().to_string();
        match self.name.parse::<IpAddr>() {
            Ok(address) => address.is_loopback(),
            Err(_) => self.name == "localhost" || self.name == own || self.name == short(&own),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_slots_and_comments() {
        let hosts = Host::parse("# all of them\nlocalhost slots=2 # here\n\n far\n", "hosts").unwrap();
        let far = Host { name: "far".into(), slots: 1 };
        assert_eq!(hosts, [Host { name: "localhost".into(), slots: 2 }, far]);
        assert!(hosts[0].is_local() && !hosts[1].is_local());
        assert!(Host { name: "127.0.0.1".into(), slots: 1 }.is_local());
    }

    #[test]
    fn what_is_no_host_is_named_with_its_line() {
        for bad in ["a slots=0", "a slots=x", "a 2", "a slots=1 more", "-oProxyCommand=x", "slots=2"] {
            let error = Host::parse(&format!("ok\n{bad}\n"), "hosts").unwrap_err().to_string();
            assert!(error.contains("hosts, line 2") && error.contains(bad), "{error}");
        }
        assert!(matches!(Host::parse("# none\n", "hosts"), Err(HostFileError::Empty(_))));
    }
}
