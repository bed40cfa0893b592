//! `podwire trace`: follow one packet.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;

use super::Verdict;
use crate::options::SurveyDirs;
use crate::output::{Output, print};
use crate::trace::{self, Origin, Target};

/// Follow one packet from a pod through the kernel.
///
/// The packet is real: a connection that is closed at once, an empty datagram with /udp, an echo
/// request without a port. Routes, neighbours, ports of bridges, rules of nftables and of both variants
/// of iptables are shown in the order in which they decide. Nothing stays behind.
#[derive(Debug, Args)]
#[command(after_long_help = OUTCOME)]
pub struct Trace {
    /// Name of the pod, its container id (or its beginning), the name or path of its namespace; or node
    #[arg(value_name = "POD")]
    pod: String,
    /// Address or name of a pod, with :PORT or :PORT/udp
    #[arg(value_name = "DESTINATION[:PORT]")]
    destination: String,
    /// Source address of the packet, in place of the pod's own: what happens to a forged one
    #[arg(long, value_name = "ADDRESS")]
    source: Option<IpAddr>,
    /// How long to wait for an answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 1)]
    wait: u64,
    #[command(flatten)]
    dirs: SurveyDirs,
}

const OUTCOME: &str = "\
Rules are followed with a table of nftables that the kernel deletes when podwire
ends (Linux 5.12). The texts of rules are those of nft, where it is installed.
Where iptables-legacy has rules, the kernel's log of packets goes to podwire
meanwhile (net.netfilter.nf_log.2, .10).

Exit status: 0 when the packet was answered, 1 when it was dropped or nothing
came back, 2 for a wrong command line.

Examples:
  podwire trace web 10.1.0.3:80
  podwire trace web db:5432
  podwire trace /run/netns/a 10.1.0.1:53/udp --json
  podwire trace web 10.1.0.3:80 --source 10.1.0.9
";

impl Trace {
    pub fn run(&self, output: &Output) -> Result<Verdict> {
        if self.wait > 60 {
            bail!("--wait {}: at most 60 seconds", self.wait);
        }
        let survey = self.dirs.survey()?;
        let mut origin = Origin::find(&self.pod, &survey, &self.dirs.cache.open())?;
        let target = Target::parse(&self.destination, &survey, &origin)?;
        if let Some(source) = self.source.filter(|it| it.is_ipv4() != target.ip.is_ipv4()) {
            bail!("--source {source}: it is not of the family of {target}");
        }
        origin.source = self.source;
        let traced = trace::trace(&survey, &origin, target, Duration::from_secs(self.wait))?;
        if output.is_json() {
            output.print_json(&traced)?;
        } else {
            print(&traced.text())?;
        }
        Ok(Verdict::good_if(traced.arrived))
    }
}
