//! What podwired says of itself: `podwire status` without a network.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

use super::Verdict;
use crate::output::{Output, counted, print};

/// Where the agent listens, unless its configuration says otherwise.
pub const SOCKET: &str = "/run/podwire/podwired.sock";
/// How long the agent may take: as long as each of its roles may.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest answer: a network may have thousands of leases that are of no use.
const LONGEST: u64 = 16 << 20;

/// Prints how the agent and its roles are. The verdict is good if all roles are ready.
pub fn status(socket: &Path, output: &Output) -> Result<Verdict> {
    let status = ask(socket)?;
    let none = Map::new();
    let roles = status["roles"].as_object().unwrap_or(&none);
    let verdict = Verdict::good_if(roles.values().all(|it| it["ready"] == true));
    if output.is_json() {
        output.print_json(&status)?;
        return Ok(verdict);
    }
    print(&format!("podwired {}", text(&status["version"])))?;
    for (name, role) in roles {
        print(&format!("{name}: {}", readiness(&role["ready"])))?;
        for network in role["networks"].as_array().into_iter().flatten() {
            for line in network_lines(network) {
                print(&line)?;
            }
        }
    }
    Ok(verdict)
}

/// What the agent says of itself.
///
/// # Errors
/// There is none, or it does not answer.
pub fn ask(socket: &Path) -> Result<Value> {
    let place = socket.display();
    let ask = || -> Result<Value> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"{\"status\":{}}\n")?;
        let mut line = Vec::new();
        BufReader::new(stream.take(LONGEST)).read_until(b'\n', &mut line)?;
        Ok(serde_json::from_slice(&line)?)
    };
    let status = ask().with_context(|| format!("ask podwired at {place}"))?;
    match status.get("error") {
        Some(error) => bail!("ask podwired at {place}: {}", text(error)),
        None => Ok(status),
    }
}

fn network_lines(network: &Value) -> Vec<String> {
    let list = |value: &Value| -> String {
        let all: Vec<_> = value.as_array().into_iter().flatten().map(text).collect();
        all.join(", ")
    };
    let name = text(&network["name"]);
    let peers = &network["peers"];
    let wanted = peers["wanted"].as_u64().unwrap_or_default();
    let mut lines = vec![format!(
        "  network {name}: {} of {} programmed",
        peers["programmed"],
        counted(wanted as usize, "peer")
    )];
    if network["subnet"].is_array() {
        let (subnet, public) = (list(&network["subnet"]), list(&network["publicAddresses"]));
        lines.push(format!("    subnet {subnet} at {public}"));
    } else if network["publicAddresses"].get(0).is_some() {
        // One segment: nodes have no subnets.
        lines.push(format!("    at {}", list(&network["publicAddresses"])));
    }
    if let Some(error) = network["store"]["error"].as_str() {
        lines.push(format!("    {error}"));
    }
    for (lease, why) in network["refusedLeases"].as_object().into_iter().flatten() {
        lines.push(format!("    lease {lease}: {}", text(why)));
    }
    for family in network["families"].as_array().into_iter().flatten() {
        if let Some(error) = family["error"].as_str() {
            lines.push(format!("    {}: {error}", text(&family["family"])));
        }
        for failed in family["failed"].as_array().into_iter().flatten() {
            lines.push(format!("    {}", text(&failed["error"])));
        }
    }
    lines
}

fn readiness(ready: &Value) -> String {
    match ready {
        Value::Bool(true) => "ready".to_owned(),
        why => format!("waits: {}", text(why)),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_network_is_shown_with_what_is_wrong() {
        let network = json!({
            "name": "pods", "subnet": ["10.5.3.0/24"], "publicAddresses": ["192.0.2.1"],
            "store": {"answers": false, "error": "the store does not answer: x"},
            "peers": {"wanted": 3, "programmed": 2},
            "refusedLeases": {"10.5.9.0-24": "its backend is \"udp\", not vxlan"},
            "families": [{"family": "ipv4", "failed": [{"entry": "e", "error": "add route 10.5.4.0/24: file exists"}]}],
        });
        assert_eq!(
            network_lines(&network),
            [
                "  network pods: 2 of 3 peers programmed",
                "    subnet 10.5.3.0/24 at 192.0.2.1",
                "    the store does not answer: x",
                "    lease 10.5.9.0-24: its backend is \"udp\", not vxlan",
                "    add route 10.5.4.0/24: file exists",
            ]
        );
    }
}
