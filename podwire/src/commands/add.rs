//! `podwire add`: attach a container, and print the result.

use std::fmt::Write;

use anyhow::Result;
use clap::Args;
use cni::AddResult;
use cni::result::{Interface, IpConfig, Route};
use networks::{Chain, NetworkList, OnFailure};

use super::Verdict;
use crate::options::AttachmentOptions;
use crate::output::{Output, print};

/// Attach a network namespace to a network.
///
/// Runs the plugins of NETWORK in order with the verb ADD, each with the result of the previous
/// one, and writes the attachment to the cache that all programs with libcni share.
///
/// When a plugin fails, the verb DEL is run for it and for the plugins before it, so that nothing
/// is left behind. This is not done when the interface existed before: then it belongs to an
/// earlier ADD.
///
/// At a terminal the result is printed as a table; into a pipe or file it is printed as the last
/// plugin printed it, as cnitool does. --text and --json choose the form.
#[derive(Debug, Args)]
#[command(after_long_help = OUTCOME)]
pub struct Add {
    /// Name of the network
    network: String,
    /// Path of a network namespace, such as /run/netns/blue or /proc/1234/ns/net
    netns: String,
    #[command(flatten)]
    options: AttachmentOptions,
    /// Leave everything as it is after a failure
    #[arg(long)]
    no_rollback: bool,
}

const OUTCOME: &str = "\
Environment:
  CAP_ARGS  JSON object; each member whose name is among the capabilities of a
            plugin reaches it in runtimeConfig
  CNI_ARGS  K=V;K=V, passed to all plugins

Exit status: 0 when attached, 1 when not, 2 for a wrong command line.

Examples:
  ip netns add blue
  podwire add mynet /run/netns/blue
  podwire add -i net1 mynet /run/netns/blue
  CAP_ARGS='{\"ips\": [\"10.88.0.9/16\"]}' podwire add mynet /run/netns/blue
  podwire add --json mynet /run/netns/blue | jq -r '.ips[].address'
";

impl Add {
    pub fn run(&self, output: &Output) -> Result<Verdict> {
        let options = &self.options;
        let attachment = options.attachment(&self.network, Some(&self.netns))?;
        let list = NetworkList::load(&options.dirs.conf.conf_dir, &self.network)?;
        let on_failure = if self.no_rollback {
            OnFailure::Leave
        } else {
            OnFailure::RollBack
        };
        let chain = Chain::new(&list, options.dirs.plugins.all());
        let answer = chain.add(&attachment, &options.dirs.cache.open(), on_failure)?;
        if output.shows_results() {
            print(&table(&answer.result))?;
        } else {
            print(&answer.text)?;
        }
        Ok(Verdict::Good)
    }
}

/// The result for people: the container's interfaces first, a line for each value, then the
/// interfaces on the host.
fn table(result: &AddResult) -> String {
    let mut rows = Vec::new();
    let (inside, outside): (Vec<_>, Vec<_>) = result
        .interfaces
        .iter()
        .enumerate()
        .partition(|(_, interface)| !interface.is_on_host());
    for (index, interface) in inside {
        rows.extend(interface_rows(interface));
        let index = i64::try_from(index).ok();
        rows.extend(address_rows(result, |ip| ip.interface == index));
    }
    let is_elsewhere = |ip: &IpConfig| {
        let interface = result.interface_of(ip);
        interface.is_none_or(Interface::is_on_host)
    };
    rows.extend(address_rows(result, is_elsewhere));
    rows.extend(result.routes.iter().map(route_row));
    let dns = &result.dns;
    for (what, values) in [
        ("nameserver", &dns.nameservers),
        ("search", &dns.search),
        ("options", &dns.options),
    ] {
        if !values.is_empty() {
            rows.push(("dns", format!("{what} {}", values.join(" "))));
        }
    }
    if !dns.domain.is_empty() {
        rows.push(("dns", format!("domain {}", dns.domain)));
    }
    for (_, interface) in outside {
        let mac = interface.mac.as_str();
        rows.push((
            "on the host",
            format!("{}  {mac}", interface.name).trim_end().to_owned(),
        ));
    }
    let mut text = String::new();
    for (label, value) in rows {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{label:<12}{value}");
    }
    text
}

fn interface_rows(interface: &Interface) -> Vec<(&'static str, String)> {
    let place = format!("{} in {}", interface.name, interface.sandbox);
    let mut rows = vec![("interface", place)];
    if !interface.mac.is_empty() {
        rows.push(("mac", interface.mac.clone()));
    }
    if interface.mtu != 0 {
        rows.push(("mtu", interface.mtu.to_string()));
    }
    rows
}

fn address_rows(
    result: &AddResult,
    wanted: impl Fn(&IpConfig) -> bool,
) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    for ip in result.ips.iter().filter(|ip| wanted(ip)) {
        rows.push(("address", ip.address.to_string()));
        if let Some(gateway) = ip.gateway {
            rows.push(("gateway", gateway.to_string()));
        }
    }
    rows
}

fn route_row(route: &Route) -> (&'static str, String) {
    let mut text = route.dst.to_string();
    if let Some(gw) = route.gw {
        text += &format!(" via {gw}");
    }
    for (what, value) in [
        ("mtu", route.mtu),
        ("advmss", route.advmss),
        ("metric", route.priority),
    ] {
        if value != 0 {
            text += &format!(" {what} {value}");
        }
    }
    if let Some(table) = route.table {
        text += &format!(" table {table}");
    }
    if let Some(scope) = route.scope {
        text += &format!(" scope {scope}");
    }
    ("route", text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni::json::Json;
    use cni::version::Version;

    fn table_of(document: &str) -> String {
        let document = Json::parse(document.as_bytes()).unwrap();
        table(&AddResult::decode(&document, Version::V1_1_0).unwrap())
    }

    #[test]
    fn the_container_comes_first_and_every_fact_has_its_line() {
        let text = table_of(
            r#"{"cniVersion": "1.1.0",
                "interfaces": [
                    {"name": "cni0", "mac": "02:00:00:00:00:01"},
                    {"name": "eth0", "mac": "02:00:00:00:00:02", "mtu": 1450, "sandbox": "/run/netns/blue"}],
                "ips": [{"address": "10.1.0.2/24", "gateway": "10.1.0.1", "interface": 1},
                        {"address": "fd00::2/64", "interface": 1}],
                "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1", "priority": 5}, {"dst": "::/0"}],
                "dns": {"nameservers": ["10.1.0.1", "10.1.0.3"], "domain": "x", "search": ["y"]}}"#,
        );
        assert_eq!(
            text,
            "interface   eth0 in /run/netns/blue\n\
             mac         02:00:00:00:00:02\n\
             mtu         1450\n\
             address     10.1.0.2/24\n\
             gateway     10.1.0.1\n\
             address     fd00::2/64\n\
             route       0.0.0.0/0 via 10.1.0.1 metric 5\n\
             route       ::/0\n\
             dns         nameserver 10.1.0.1 10.1.0.3\n\
             dns         search y\n\
             dns         domain x\n\
             on the host cni0  02:00:00:00:00:01\n"
        );
    }

    #[test]
    fn addresses_without_an_interface_are_shown_too() {
        let text = table_of(r#"{"ips": [{"address": "10.1.0.2/24"}]}"#);
        assert_eq!(text, "address     10.1.0.2/24\n");
        assert_eq!(table_of("{}"), "");
    }
}
