//! Published and exposed ports, as `docker run -p` and `--expose` write them.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::ops::RangeInclusive;

use anyhow::{Context, Result, bail};
use containers::Published;
use networks::CachedAttachment;

/// A port to publish: any of `host`, or of the node's dynamic range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    host_ip: Option<IpAddr>,
    host: Option<RangeInclusive<u16>>,
    container: u16,
    protocol: String,
}

/// A port of a container, such as `80/tcp`.
fn protocol(text: &str) -> Result<(&str, String)> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_lowercase();
    if !["tcp", "udp", "sctp"].contains(&protocol.as_str()) {
        bail!("invalid proto: {protocol}");
    }
    Ok((ports, protocol))
}

/// `80` or `80-90`.
fn range(text: &str) -> Result<RangeInclusive<u16>> {
    let number = |digits: &str| {
        let plain = digits.bytes().all(|it| it.is_ascii_digit());
        let number = digits.parse::<u16>().ok();
        number.filter(|_| plain)
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => Ok(first..=last),
        _ => bail!("invalid port or range of ports: {text:?}"),
    }
}

impl Publication {
    /// Reads `[IP:][HOST[-END]:]CONTAINER[-END][/PROTOCOL]`.
    ///
    /// # Errors
    /// It is something else, or the ranges have different lengths.
    pub fn parse(text: &str) -> Result<Vec<Self>> {
        Self::read(text).with_context(|| format!("invalid publish opts format {text:?}"))
    }

    fn read(text: &str) -> Result<Vec<Self>> {
        let (ports, protocol) = protocol(text)?;
        let (before, container) = match ports.rsplit_once(':') {
            Some((before, container)) => (Some(before), container),
            None => (None, ports),
        };
        let (ip, host) = match before.map(|it| it.rsplit_once(':').unwrap_or(("", it))) {
            Some((ip, host)) => (ip, host),
            None => ("", ""),
        };
        let container =
            range(container).with_context(|| format!("Invalid containerPort: {container}"))?;
        if *container.start() == 0 {
            bail!("invalid port: the container's port 0");
        }
        let host_ip = match ip.trim_start_matches('[').trim_end_matches(']') {
            "" => None,
            ip => Some(
                ip.parse()
                    .with_context(|| format!("invalid IP address: {ip}"))?,
            ),
        };
        let host = match host {
            "" | "0" => None,
            host => Some(range(host).with_context(|| format!("Invalid hostPort: {host}"))?),
        };
        let publication = |host: Option<RangeInclusive<u16>>, container| Self {
            host_ip,
            host,
            container,
            protocol: protocol.clone(),
        };
        let Some(host) = host else {
            return Ok(container.map(|port| publication(None, port)).collect());
        };
        if container.len() == 1 {
            return Ok(vec![publication(Some(host), *container.start())]);
        }
        if host.len() != container.len() {
            bail!("invalid ranges specified for container and host Ports: {text}");
        }
        let pairs = host.zip(container);
        Ok(pairs
            .map(|(host, port)| publication(Some(host..=host), port))
            .collect())
    }

    /// Publishes the port at an address of the node, if none was given.
    pub fn bind_to(&mut self, ip: IpAddr) {
        self.host_ip.get_or_insert(ip);
    }

    /// Chooses the node's port: the first of its range that is not among `taken`, which the result
    /// is added to. Of the `dynamic` range, one from `start` on.
    ///
    /// # Errors
    /// All are taken.
    pub fn choose(
        &self,
        taken: &mut Taken,
        dynamic: &RangeInclusive<u16>,
        start: u16,
    ) -> Result<Published> {
        let candidates: Box<dyn Iterator<Item = u16>> = match &self.host {
            Some(host) => Box::new(host.clone()),
            None => Box::new((start..=*dynamic.end()).chain(*dynamic.start()..start)),
        };
        let (ip, protocol) = (self.host_ip, self.protocol.as_str());
        let mut free = candidates
            .filter(|port| taken.is_free(ip, *port, protocol))
            .peekable();
        let first_free = free.peek().copied();
        let Some(port) = free.find(|port| !(taken.listens)(ip, *port, protocol)) else {
            let ip = ip.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
            if let Some(port) = first_free {
                bail!(
                    "failed to bind host port for {ip}:{port}/{protocol}: address already in use"
                );
            }
            let first = self.host.as_ref().unwrap_or(dynamic).start();
            bail!("Bind for {ip}:{first} failed: port is already allocated");
        };
        drop(free);
        let published = Published {
            host_port: port,
            container_port: self.container,
            protocol: self.protocol.clone(),
            host_ip: self.host_ip.map_or(String::new(), |it| it.to_string()),
        };
        taken.add(&published);
        Ok(published)
    }
}

/// The ports of the node that are not free.
#[derive(Debug)]
pub struct Taken {
    published: HashSet<(Option<IpAddr>, u16, String)>,
    /// Whether a process of the node listens there, which the published port would hide.
    listens: fn(Option<IpAddr>, u16, &str) -> bool,
}

impl Taken {
    /// Without published ports.
    pub fn new(listens: fn(Option<IpAddr>, u16, &str) -> bool) -> Self {
        Self {
            published: HashSet::new(),
            listens,
        }
    }

    /// Adds a port that is published.
    pub fn add(&mut self, port: &Published) {
        let ip = port.host_ip.parse::<IpAddr>().ok();
        let ip = ip.filter(|it| !it.is_unspecified());
        self.published
            .insert((ip, port.host_port, port.protocol.to_lowercase()));
    }

    fn is_free(&self, ip: Option<IpAddr>, port: u16, protocol: &str) -> bool {
        let ip = ip.filter(|it| !it.is_unspecified());
        let overlaps = |other: &Option<IpAddr>| ip.is_none() || other.is_none() || *other == ip;
        let mut all = self.published.iter();
        !all.any(|(other, number, name)| *number == port && name == protocol && overlaps(other))
    }
}

/// Whether a process of the node listens at a port, and so nothing else can.
pub fn listens(ip: Option<IpAddr>, port: u16, protocol: &str) -> bool {
    // Of both families, where the node has IPv6.
    let any: [IpAddr; 2] = [Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()];
    let places = ip.map_or_else(|| any.to_vec(), |ip| vec![ip]);
    places.into_iter().any(|ip| {
        let bound = match protocol {
            "tcp" => TcpListener::bind((ip, port)).map(drop),
            "udp" => UdpSocket::bind((ip, port)).map(drop),
            _ => Ok(()),
        };
        bound.is_err_and(|it| it.kind() == ErrorKind::AddrInUse)
    })
}

/// Reads the ports of `--expose`: `80`, `80-90/udp`. Each with its protocol.
///
/// # Errors
/// It is something else.
pub fn exposed(text: &str) -> Result<Vec<String>> {
    let read = || {
        let (ports, protocol) = protocol(text)?;
        Ok(range(ports)?
            .map(|port| format!("{port}/{protocol}"))
            .collect())
    };
    let read: Result<Vec<_>> = read();
    read.with_context(|| format!("invalid range format for --expose: {text}"))
}

/// The ports that an attachment publishes, whatever runtime has made it.
pub fn of(attachment: &CachedAttachment) -> Vec<Published> {
    let arguments = attachment.capability_args.iter();
    let ports = arguments.filter_map(|it| it.get("portMappings").cloned());
    let ports = ports.filter_map(|it| serde_json::from_value::<Vec<Published>>(it).ok());
    ports.flatten().collect()
}

/// A port as `ps` shows it: `0.0.0.0:8080->80/tcp`.
pub fn shown(port: &Published) -> String {
    let ip = match port.host_ip.as_str() {
        "" => "0.0.0.0".to_owned(),
        ip if ip.contains(':') => format!("[{ip}]"),
        ip => ip.to_owned(),
    };
    format!(
        "{ip}:{}->{}/{}",
        port.host_port, port.container_port, port.protocol
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A port at which a process listens.
    const LISTENER: u16 = 70;

    fn chosen(text: &str, taken: &[&str]) -> Result<Vec<String>> {
        let mut all = Taken::new(|_, port, _| port == LISTENER);
        for text in taken {
            for port in Publication::parse(text)? {
                port.choose(&mut all, &(1..=1), 1)?;
            }
        }
        let wanted = Publication::parse(text)?;
        let chosen = wanted
            .iter()
            .map(|it| it.choose(&mut all, &(40000..=40002), 40001));
        chosen.map(|it| it.map(|it| shown(&it))).collect()
    }

    #[test]
    fn ports_are_read_and_chosen_as_in_docker() {
        for (text, taken, expected) in [
            ("8080:80", &[][..], &["0.0.0.0:8080->80/tcp"][..]),
            ("192.0.2.1:53:53/UDP", &[], &["192.0.2.1:53->53/udp"]),
            ("[::1]:8080:80", &[], &["[::1]:8080->80/tcp"]),
            ("80", &[], &["0.0.0.0:40001->80/tcp"]),
            ("127.0.0.1::80", &[], &["127.0.0.1:40001->80/tcp"]),
            ("0:80", &["40001:1", "40002:1"], &["0.0.0.0:40000->80/tcp"]),
            (
                "80-81:90-91",
                &[],
                &["0.0.0.0:80->90/tcp", "0.0.0.0:81->91/tcp"],
            ),
            ("80-82:90", &["80:1"], &["0.0.0.0:81->90/tcp"]),
            ("70-71:90", &[], &["0.0.0.0:71->90/tcp"]),
            ("80:80", &["80:80/udp"], &["0.0.0.0:80->80/tcp"]),
            (
                "192.0.2.1:80:80",
                &["192.0.2.2:80:80"],
                &["192.0.2.1:80->80/tcp"],
            ),
        ] {
            assert_eq!(chosen(text, taken).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn a_taken_port_and_a_wrong_text_are_refused() {
        let allocated = "Bind for 0.0.0.0:80 failed: port is already allocated";
        for (text, taken, expected) in [
            ("80:80", &["80:81"][..], allocated),
            ("80:80", &["127.0.0.1:80:80"], allocated),
            (
                "70:80",
                &[],
                "failed to bind host port for 0.0.0.0:70/tcp: address already in use",
            ),
            (
                "80-81:90-92",
                &[],
                "invalid ranges specified for container and host Ports",
            ),
            ("x", &[], "invalid port or range of ports: \"x\""),
            ("+1:80", &[], "invalid port or range of ports: \"+1\""),
            ("80:80/icmp", &[], "invalid proto: icmp"),
            ("1.2.3:80:80", &[], "invalid IP address: 1.2.3"),
            ("90-80:1", &[], "invalid port or range"),
            ("65536:80", &[], "invalid port or range"),
            ("80:0", &[], "invalid port"),
            ("", &[], "invalid port or range"),
        ] {
            let error = format!("{:#}", chosen(text, taken).unwrap_err());
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn exposed_ports_have_their_protocol() {
        assert_eq!(exposed("80").unwrap(), ["80/tcp"]);
        assert_eq!(exposed("80-81/udp").unwrap(), ["80/udp", "81/udp"]);
        assert!(exposed("x").is_err() && exposed("80/x").is_err());
    }
}
