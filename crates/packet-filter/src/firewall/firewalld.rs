//! firewalld, over D-Bus: it accepts the packets of the addresses that are sources of a trusted
//! zone. It forgets them when it is reloaded.
//!
//! Each function opens a connection of its own and closes it. This thread drives the connection
//! inside [`zbus::block_on`], so no other thread is started.

use std::env;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use cni::Code;
use ipnetwork::IpNetwork;
use zbus::connection::Builder;
use zbus::message::Message;
use zbus::{Connection, Error};
use zruntime::SharedRuntime;

const NAME: &str = "org.fedoraproject.FirewallD1";
const PATH: &str = "/org/fedoraproject/FirewallD1";
const ZONE: &str = "org.fedoraproject.FirewallD1.zone";

/// The socket of the system's bus, unless `DBUS_SYSTEM_BUS_ADDRESS` has other addresses.
const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";

/// How long a function may take: firewalld needs some seconds to reload.
const PATIENCE: Duration = Duration::from_secs(25);

/// The answer of firewalld if the address is a source of the zone already.
const ALREADY_SET: &str = "ZONE_ALREADY_SET";

/// Whether firewalld runs; any failure means that it does not. One system call on a node without
/// D-Bus.
pub fn is_running() -> bool {
    has_bus() && answers()
}

/// Whether firewalld runs and manages the network of this process.
pub fn is_running_here() -> bool {
    has_bus() && is_of_this_network() && answers()
}

fn has_bus() -> bool {
    named_addresses().is_some() || Path::new(SYSTEM_BUS).exists()
}

fn answers() -> bool {
    within(PATIENCE, async { Ok(Firewalld::find().await.is_ok()) }).unwrap_or(false)
}

/// Whether firewalld, if it runs, manages the network of this process. Rootless runtimes are in a user
/// namespace with a network of its own; firewalld has the node's network, and refuses their user.
fn is_of_this_network() -> bool {
    let initial = ["0", "0", "4294967295"];
    named_addresses().is_some()
        || fs::read_to_string("/proc/self/uid_map")
            .map_or(true, |map| map.split_whitespace().eq(initial))
}

/// Adds the addresses to the sources of `zone`, except those that are sources already.
///
/// # Errors
/// firewalld does not run, or refuses; code 11: it does not answer.
pub fn add(zone: &str, addresses: &[IpAddr]) -> Result<()> {
    within(PATIENCE, async {
        let firewalld = Firewalld::find().await?;
        for source in addresses.iter().map(source) {
            match firewalld.call("addSource", zone, &source).await {
                Err(error) if !error.to_string().contains(ALREADY_SET) => {
                    let what = format!("failed to add the address {source} to {zone} zone");
                    return Err(plain(error).context(what));
                }
                _ => {}
            }
        }
        Ok(())
    })
}

/// Removes the addresses from the sources of `zone`. It is no failure if they are not sources, or
/// if firewalld does not run and so has none.
///
/// # Errors
/// The connection is lost; code 11: firewalld does not answer.
pub fn remove(zone: &str, addresses: &[IpAddr]) -> Result<()> {
    within(PATIENCE, async {
        let Ok(firewalld) = Firewalld::find().await else {
            return Ok(());
        };
        for source in addresses.iter().map(source) {
            match firewalld.call("removeSource", zone, &source).await {
                // firewalld has answered: the address is no source.
                Err(Error::MethodError(..) | Error::FDO(_)) => {}
                done => drop(done.map_err(plain)?),
            }
        }
        Ok(())
    })
}

/// The `addresses` that are not sources of `zone`.
///
/// # Errors
/// firewalld does not run; code 11: it does not answer.
pub fn missing(zone: &str, addresses: &[IpAddr]) -> Result<Vec<IpAddr>> {
    within(PATIENCE, async {
        let firewalld = Firewalld::find().await?;
        let mut missing = Vec::new();
        for ip in addresses {
            let answer = firewalld.call("querySource", zone, &source(ip)).await;
            let is_source = answer.and_then(|it| it.body().deserialize::<bool>());
            if !is_source.unwrap_or(false) {
                missing.push(*ip);
            }
        }
        Ok(missing)
    })
}

/// Fails unless the addresses are sources of `zone`.
///
/// # Errors
/// `failed to find the address … in … zone`; as [`missing`].
pub fn check(zone: &str, addresses: &[IpAddr]) -> Result<()> {
    match missing(zone, addresses)?.first() {
        None => Ok(()),
        Some(ip) => Err(anyhow!(
            "failed to find the address {} in {zone} zone",
            source(ip)
        )),
    }
}

/// firewalld on the bus.
struct Firewalld {
    bus: Connection,
    /// The unique name of its connection: unlike a call to [`NAME`], one to this never makes the bus
    /// start firewalld.
    owner: String,
}

impl Firewalld {
    /// Connects to the bus, and looks for firewalld there.
    async fn find() -> Result<Self> {
        let addresses = named_addresses().unwrap_or_else(|| format!("unix:path={SYSTEM_BUS}"));
        let connect = |error| {
            let what = format!("connect to the system bus at {addresses}");
            plain(error).context(what)
        };
        let bus = open(&addresses).await.map_err(connect)?;
        let bus_name = "org.freedesktop.DBus";
        let path = "/org/freedesktop/DBus";
        let answer = bus
            .call_method(Some(bus_name), path, Some(bus_name), "GetNameOwner", &NAME)
            .await;
        let owner = answer.and_then(|it| it.body().deserialize());
        let owner = owner.map_err(plain).context("find firewalld on the bus")?;
        Ok(Self { bus, owner })
    }

    async fn call(&self, method: &str, zone: &str, source: &str) -> zbus::Result<Message> {
        let (to, arguments) = (Some(self.owner.as_str()), &(zone, source));
        let call = self
            .bus
            .call_method(to, PATH, Some(ZONE), method, arguments);
        call.await
    }
}

/// The addresses of the system's bus that the environment has.
fn named_addresses() -> Option<String> {
    let addresses = env::var("DBUS_SYSTEM_BUS_ADDRESS").ok();
    addresses.filter(|it| !it.is_empty())
}

/// Connects to the first address of a list that can be reached (D-Bus Specification, "Server
/// Addresses").
async fn open(addresses: &str) -> zbus::Result<Connection> {
    let mut opened = Err(Error::Address("no address".to_owned()));
    for address in addresses.split(';').filter(|it| !it.is_empty()) {
        opened = Builder::address(address).build().await;
        if opened.is_ok() {
            break;
        }
    }
    opened
}

/// Runs `conversation` until its end, or until `limit`.
fn within<T>(limit: Duration, conversation: impl Future<Output = Result<T>>) -> Result<T> {
    zbus::block_on(async {
        let runtime = SharedRuntime::current().context("wait for the bus")?;
        let outcome = runtime.timeout(limit, conversation).await;
        outcome.unwrap_or_else(|_| {
            let msg = format!("no answer over D-Bus for {} s", limit.as_secs());
            Err(Code::TryAgain.err(msg).into())
        })
    })
}

/// The address as firewalld writes a source: `10.0.0.2/32`.
fn source(ip: &IpAddr) -> String {
    IpNetwork::from(*ip).to_string()
}

/// The error without the context that zbus adds.
fn plain(error: Error) -> anyhow::Error {
    let io = |error: &io::Error| anyhow!(cni::reason(error));
    match error {
        Error::Connection(error, _) => io(&error),
        Error::InputOutput(error) => io(&error),
        Error::MethodError(_, Some(text), _) => anyhow!(text),
        // zbus returns the error itself as its source.
        error => anyhow!(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener};

    #[test]
    fn a_bus_that_does_not_answer_is_waited_for_until_the_limit() {
        let name = format!("podwire-silent-bus-{}", std::process::id());
        let socket = SocketAddr::from_abstract_name(&name).unwrap();
        let _listener = UnixListener::bind_addr(&socket).unwrap();
        // The first address of the list is that of no socket.
        let addresses = format!("unix:path=/nowhere;unix:abstract={name}");
        let connect = async { Ok(open(&addresses).await?) };
        let error = within(Duration::from_millis(100), connect).unwrap_err();
        let error = error.downcast_ref::<cni::Error>().expect("a code");
        assert_eq!(error.code, 11, "{}", error.msg);
    }

    #[test]
    fn an_address_that_cannot_be_reached_is_an_error() {
        for (addresses, reason) in [
            ("unix:path=/nowhere", "no such file or directory"),
            (";", "no address"),
            ("/run/bus", "Invalid address"),
        ] {
            let connect = async { open(addresses).await.map_err(plain) };
            let error = within(PATIENCE, connect).unwrap_err();
            assert!(error.to_string().contains(reason), "{error}");
        }
    }
}
