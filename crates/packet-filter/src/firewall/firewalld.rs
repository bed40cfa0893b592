//! firewalld, over D-Bus: it accepts the packets of the addresses that are sources of a trusted
//! zone. It forgets them when it is reloaded.
//!
//! A client of its own: one kind of message, three methods, strings. zbus would bring an executor
//! and some forty crates into a program that runs for a millisecond (D-Bus Specification 0.43,
//! sections "Message Protocol" and "Authentication Protocol").

use std::env;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use ipnetwork::IpNetwork;

const BUS: &str = "org.freedesktop.DBus";
const FIREWALLD: &str = "org.fedoraproject.FirewallD1";
const FIREWALLD_PATH: &str = "/org/fedoraproject/FirewallD1";

/// The system's bus, unless `DBUS_SYSTEM_BUS_ADDRESS` says otherwise.
const SYSTEM_BUS: &str = "unix:path=/run/dbus/system_bus_socket";

/// How long a method may take: firewalld reloads for some seconds.
const PATIENCE: Duration = Duration::from_secs(25);

/// The longest answer that is read, in bytes.
const LONGEST: usize = 1 << 20;

/// What firewalld answers if the address is a source of the zone already.
const ALREADY_SET: &str = "ZONE_ALREADY_SET";

/// A connection to the bus.
#[derive(Debug)]
pub struct Firewalld {
    bus: UnixStream,
    serial: u32,
}

impl Firewalld {
    /// Connects to the bus; whether firewalld is there is not known.
    ///
    /// # Errors
    /// There is no bus, or it refuses this user.
    pub fn connect() -> Result<Self> {
        let address = env::var("DBUS_SYSTEM_BUS_ADDRESS").unwrap_or_default();
        let address = match address.as_str() {
            "" => SYSTEM_BUS,
            address => address,
        };
        let connect = || {
            let bus = open(address)?;
            bus.set_read_timeout(Some(PATIENCE))?;
            bus.set_write_timeout(Some(PATIENCE))?;
            let mut this = Self { bus, serial: 0 };
            this.authenticate()?;
            this.call(&Call::of_bus("Hello", &[]))?;
            anyhow::Ok(this)
        };
        connect().with_context(|| format!("connect to the system bus at {address}"))
    }

    /// Connects, if firewalld runs; any failure means that it does not.
    pub fn find() -> Option<Self> {
        let mut this = Self::connect().ok()?;
        let owner = this.call(&Call::of_bus("GetNameOwner", &[FIREWALLD]));
        owner.is_ok().then_some(this)
    }

    /// Makes an address a source of `zone`, if it is not one already.
    ///
    /// # Errors
    /// firewalld refuses, or does not run.
    pub fn add(&mut self, zone: &str, ip: IpAddr) -> Result<()> {
        let source = IpNetwork::from(ip).to_string();
        match self.call(&Call::of_zone("addSource", &[zone, &source])) {
            Err(error) if !format!("{error:#}").contains(ALREADY_SET) => {
                Err(error.context(format!("failed to add the address {source} to {zone} zone")))
            }
            _ => Ok(()),
        }
    }

    /// Makes it none. That it is none is no failure.
    ///
    /// # Errors
    /// The bus does not answer.
    pub fn remove(&mut self, zone: &str, ip: IpAddr) -> Result<()> {
        let source = IpNetwork::from(ip).to_string();
        match self.call(&Call::of_zone("removeSource", &[zone, &source])) {
            Err(error) if !error.is::<Refused>() => Err(error),
            _ => Ok(()),
        }
    }

    /// Fails unless an address is a source of `zone`.
    ///
    /// # Errors
    /// `failed to find the address … in … zone`
    pub fn check(&mut self, zone: &str, ip: IpAddr) -> Result<()> {
        let source = IpNetwork::from(ip).to_string();
        let answer = self.call(&Call::of_zone("querySource", &[zone, &source]));
        if answer.is_ok_and(|body| body.first() == Some(&1)) {
            return Ok(());
        }
        bail!("failed to find the address {source} in {zone} zone")
    }

    /// As the user of the process, which the socket tells the bus.
    fn authenticate(&mut self) -> Result<()> {
        let uid = nix::unistd::geteuid().to_string();
        let hex: String = uid.bytes().map(|byte| format!("{byte:02x}")).collect();
        write!(self.bus, "\0AUTH EXTERNAL {hex}\r\n")?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n") {
            let mut byte = [0];
            self.bus.read_exact(&mut byte)?;
            answer.push(byte[0]);
            if answer.len() > 512 {
                bail!("the answer to AUTH is too long");
            }
        }
        if !answer.starts_with(b"OK ") {
            bail!("the bus refuses this user");
        }
        Ok(self.bus.write_all(b"BEGIN\r\n")?)
    }

    /// Calls a method, and returns the body of its answer.
    fn call(&mut self, call: &Call<'_>) -> Result<Vec<u8>> {
        self.serial += 1;
        self.bus.write_all(&call.encode(self.serial))?;
        loop {
            let answer = Answer::read(&mut self.bus)?;
            if answer.to == Some(self.serial) {
                return answer.body.map_err(Into::into);
            }
            // A signal, such as NameAcquired.
        }
    }
}

/// Connects to the first address of a list that is a socket of this machine.
fn open(addresses: &str) -> Result<UnixStream> {
    let mut failed = anyhow!("no address of a local socket");
    for address in addresses.split(';') {
        let Some(keys) = address.strip_prefix("unix:") else {
            continue;
        };
        let value = |key: &str| {
            let pairs = keys.split(',').filter_map(|pair| pair.split_once('='));
            pairs
                .into_iter()
                .find(|(name, _)| *name == key)
                .map(|(_, value)| unescape(value))
        };
        let socket = if let Some(path) = value("path") {
            SocketAddr::from_pathname(std::path::PathBuf::from(path))
        } else if let Some(name) = value("abstract") {
            SocketAddr::from_abstract_name(name)
        } else {
            continue;
        };
        match socket.and_then(|socket| UnixStream::connect_addr(&socket)) {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = anyhow!(cni::reason(&error)),
        }
    }
    Err(failed)
}

/// `%2f` is a slash.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, others)) = rest.split_first() {
        let escaped = others.get(..2).filter(|_| *first == b'%');
        let escaped = escaped.and_then(|hex| std::str::from_utf8(hex).ok());
        match escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &others[2..];
            }
            None => {
                bytes.push(*first);
                rest = others;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A call of a method whose arguments are strings.
struct Call<'a> {
    to: &'a str,
    path: &'a str,
    interface: &'a str,
    method: &'a str,
    arguments: &'a [&'a str],
}

impl<'a> Call<'a> {
    fn of_bus(method: &'a str, arguments: &'a [&'a str]) -> Self {
        let (to, path, interface) = (BUS, "/org/freedesktop/DBus", BUS);
        Self {
            to,
            path,
            interface,
            method,
            arguments,
        }
    }

    fn of_zone(method: &'a str, arguments: &'a [&'a str]) -> Self {
        let (to, path) = (FIREWALLD, FIREWALLD_PATH);
        let interface = "org.fedoraproject.FirewallD1.zone";
        Self {
            to,
            path,
            interface,
            method,
            arguments,
        }
    }

    /// The message, in little-endian.
    fn encode(&self, serial: u32) -> Vec<u8> {
        let mut body = Vec::new();
        for argument in self.arguments {
            put_string(&mut body, argument);
        }
        let mut fields = Vec::new();
        let mut field = |code: u8, kind: u8, text: &str| {
            pad(&mut fields, 8);
            fields.extend([code, 1, kind, 0]);
            put_string(&mut fields, text);
        };
        field(1, b'o', self.path);
        field(2, b's', self.interface);
        field(3, b's', self.method);
        field(6, b's', self.to);
        if !self.arguments.is_empty() {
            pad(&mut fields, 8);
            // SIGNATURE, whose length is one byte.
            let signature = "s".repeat(self.arguments.len());
            fields.extend([8, 1, b'g', 0, signature.len() as u8]);
            fields.extend(signature.bytes());
            fields.push(0);
        }
        // Little-endian, a call, no flags, version 1.
        let mut message = vec![b'l', 1, 0, 1];
        for number in [body.len() as u32, serial, fields.len() as u32] {
            message.extend(number.to_le_bytes());
        }
        message.extend(fields);
        pad(&mut message, 8);
        message.extend(body);
        message
    }
}

fn pad(bytes: &mut Vec<u8>, to: usize) {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
}

/// Strings are aligned to four bytes.
fn put_string(bytes: &mut Vec<u8>, text: &str) {
    pad(bytes, 4);
    bytes.extend((text.len() as u32).to_le_bytes());
    bytes.extend(text.bytes());
    bytes.push(0);
}

/// A method has answered with an error.
#[derive(Debug)]
struct Refused(String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// A message from the bus.
struct Answer {
    /// The serial of the call that it answers.
    to: Option<u32>,
    body: Result<Vec<u8>, Refused>,
}

impl Answer {
    fn read(bus: &mut impl Read) -> Result<Self> {
        let mut head = [0; 16];
        bus.read_exact(&mut head).map_err(timed_out)?;
        let little = head[0] == b'l';
        let number = |at: usize, bytes: &[u8]| {
            let four: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
            Some(if little {
                u32::from_le_bytes(four)
            } else {
                u32::from_be_bytes(four)
            })
        };
        let length = |at| number(at, &head).unwrap_or_default() as usize;
        let (body, fields) = (length(4), length(12));
        if body > LONGEST || fields > LONGEST {
            bail!("an answer is too long");
        }
        let mut rest = vec![0; fields.next_multiple_of(8) + body];
        bus.read_exact(&mut rest).map_err(timed_out)?;
        let body = rest.split_off(fields.next_multiple_of(8));
        rest.truncate(fields);
        let string = |at: usize, bytes: &[u8]| {
            let length = number(at, bytes)? as usize;
            let text = bytes.get(at + 4..(at + 4).checked_add(length)?)?;
            Some((
                String::from_utf8_lossy(text).into_owned(),
                at + 4 + length + 1,
            ))
        };
        let (mut to, mut name, mut has_text, mut at) = (None, String::new(), false, 0);
        // Each field: its code, the signature of its value, the value.
        while let [code, 1, kind, 0, ..] = rest[at.min(rest.len())..] {
            at += 4;
            let next = match kind {
                b'u' => number(at, &rest).map(|value| {
                    if code == 5 {
                        to = Some(value);
                    }
                    at + 4
                }),
                b's' | b'o' => string(at, &rest).map(|(text, next)| {
                    if code == 4 {
                        name = text;
                    }
                    next
                }),
                b'g' => rest.get(at).map(|length| {
                    has_text = rest.get(at + 1) == Some(&b's');
                    at + 1 + usize::from(*length) + 1
                }),
                _ => None,
            };
            let Some(next) = next else { break };
            at = next.next_multiple_of(8);
        }
        let is_error = head[1] == 3;
        let text = string(0, &body).filter(|_| has_text).map(|(text, _)| text);
        let body = if is_error {
            Err(Refused(text.unwrap_or(name)))
        } else {
            Ok(body)
        };
        Ok(Self { to, body })
    }
}

fn timed_out(error: io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => {
            let msg = format!("no answer over D-Bus for {} s", PATIENCE.as_secs());
            cni::Code::TryAgain.err(msg).into()
        }
        _ => anyhow!("read from the bus: {}", cni::reason(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_encoded_as_the_specification_says() {
        let message = Call::of_zone("addSource", &["trusted", "10.0.0.2/32"]).encode(2);
        assert_eq!(message[..4], [b'l', 1, 0, 1]);
        // Two strings with their lengths and zero bytes, the second one aligned.
        let body = b"\x07\0\0\0trusted\0\x0b\0\0\x0010.0.0.2/32\0";
        assert_eq!(message[4..8], (body.len() as u32).to_le_bytes());
        assert!(message.ends_with(body));
        assert_eq!((message.len() - body.len()) % 8, 0);
    }

    #[test]
    fn an_error_has_the_text_of_its_body_or_its_name() {
        let answer = |fields: &[u8], body: &[u8]| {
            let mut message = vec![b'l', 3, 0, 1];
            for number in [body.len() as u32, 9, fields.len() as u32] {
                message.extend(number.to_le_bytes());
            }
            message.extend(fields);
            pad(&mut message, 8);
            message.extend(body);
            let answer = Answer::read(&mut message.as_slice()).unwrap();
            (answer.to, answer.body.unwrap_err().0)
        };
        let mut fields = vec![5, 1, b'u', 0, 2, 0, 0, 0, 4, 1, b's', 0];
        put_string(&mut fields, "org.x.Error");
        assert_eq!(answer(&fields, &[]), (Some(2), "org.x.Error".to_owned()));
        pad(&mut fields, 8);
        fields.extend([8, 1, b'g', 0, 1, b's', 0]);
        let mut body = Vec::new();
        put_string(&mut body, "ZONE_ALREADY_SET: x");
        assert_eq!(
            answer(&fields, &body),
            (Some(2), "ZONE_ALREADY_SET: x".to_owned())
        );
    }

    #[test]
    fn no_answer_breaks_the_parser() {
        for length in 0..64_u8 {
            for byte in [0, 1, 2, 8, 16, b's', b'l', 0xff] {
                let bytes = vec![byte; usize::from(length)];
                let _ = Answer::read(&mut bytes.as_slice());
                let mut message = vec![b'l', 2, 0, 1, 4, 0, 0, 0, 1, 0, 0, 0, length, 0, 0, 0];
                message.extend(vec![byte; 128]);
                let _ = Answer::read(&mut message.as_slice());
            }
        }
    }

    #[test]
    fn addresses_are_unescaped() {
        assert_eq!(unescape("/tmp/a%2fb%2"), "/tmp/a/b%2");
    }
}
