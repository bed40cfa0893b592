//! `podwire network connect`: attach a running container to a further network.

use std::fs::OpenOptions;
use std::io::Write;

use anyhow::{Context, Result, bail};
use clap::Args;
use cni::AddResult;
use containers::{Attacher, Container, Record, Wanted};
use networks::NetworkList;

use crate::commands::{Verdict, run, sweep};
use crate::options::{Directories, derived_id};
use crate::output::Output;
use crate::run::links::{Link, Linked};
use crate::run::mode::{Endpoint, First};
use crate::run::{Dirs, files, resolver};

/// Connect a running container to a network.
///
/// CONTAINER is one of podwire run, of podman, nerdctl, containerd or CRI-O: a name, an id, or the
/// first digits of an id; for a pod also NAMESPACE/NAME; or the path of a network namespace. It gets
/// the next free interface: eth1, eth2 and so on.
///
/// Its runtime does not know of the network. podwire removes the attachment when the container is
/// gone: every podwire network, run, ps and stop looks for such containers.
#[derive(Debug, Args)]
#[command(after_long_help = OUTCOME)]
pub struct Connect {
    /// Its IPv4 address
    #[arg(long)]
    ip: Option<String>,
    /// Its IPv6 address
    #[arg(long)]
    ip6: Option<String>,
    /// A further name in the network
    #[arg(long, value_name = "NAME")]
    alias: Vec<String>,
    /// Another container of the network, with a further name: NAME[:ALIAS]. Its exposed ports are
    /// reached although the network keeps containers apart (--icc=false)
    #[arg(long, value_name = "CONTAINER")]
    link: Vec<String>,
    /// Its MAC
    #[arg(long, value_name = "MAC")]
    mac_address: Option<String>,
    /// Name of the interface in the container [default: the next free eth]
    #[arg(long, value_name = "NAME")]
    ifname: Option<String>,
    /// An option of the endpoint: com.docker.network.endpoint.ifname=NAME
    #[arg(long, value_name = "KEY=VALUE")]
    driver_opt: Vec<String>,
    /// The network with the highest number has the default route; the others have 0
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    gw_priority: i64,
    #[command(flatten)]
    dirs: Directories,
    /// Name or id of the network
    network: String,
    /// The container
    container: String,
}

const OUTCOME: &str = "\
Exit status: 0 when connected, 1 when not, 2 for a wrong command line.

Examples:
  podwire network connect mynet web
  podwire network connect --ip 10.5.0.7 --alias db mynet default/db-0
  podwire network connect --link db:sql mynet web
  podwire network connect --ifname net1 mynet /run/netns/blue
";

impl Connect {
    pub fn run(&self, _: &Output) -> Result<Verdict> {
        sweep(&self.dirs.cache);
        let dirs = Dirs {
            conf: self.dirs.conf.conf_dir.clone(),
            plugins: self.dirs.plugins.all(),
            cache: self.dirs.cache.dir().to_owned(),
        };
        let attacher = Attacher::new(&dirs.cache, &dirs.conf, dirs.plugins.clone());
        let container = Container::find(&self.container, &attacher.cache, derived_id)?;
        let endpoint = self.endpoint()?;
        if ["none", "host"].contains(&self.network.as_str()) {
            bail!("{}", refusal(&self.network));
        }
        container
            .record
            .as_ref()
            .map_or(Ok(()), must_have_networks)?;
        container.must_run()?;
        let list = run::find(&dirs, &self.network)?;
        if container
            .attachments
            .iter()
            .any(|it| it.network_name == list.name)
        {
            let shown = container.shown();
            bail!(
                "endpoint with name {shown} already exists in network {}",
                list.name
            );
        }
        let linked = self.linked(&container, &list, &attacher)?;
        let wanted = Wanted {
            container_id: container.id.clone(),
            name: container.name.clone(),
            netns: container.netns.clone(),
            ifname: endpoint.ifname,
            ips: endpoint.ips,
            mac: endpoint.mac,
            aliases: endpoint.aliases,
            hostname: (container.record.as_ref()).and_then(|it| files::name_of(&it.hostname)),
            dns_servers: (container.record.as_ref())
                .map_or_else(Vec::new, |it| it.dns.servers.clone()),
            ports: Vec::new(),
            links: linked.iter().filter_map(|it| it.argument(&list)).collect(),
            hosts: linked.iter().flat_map(|it| it.lines(&list)).collect(),
            gateway_priority: self.gw_priority,
        };
        let what = || format!("connect {} to network {}", container.shown(), list.name);
        let result = attacher.attach(&wanted, &list).with_context(what)?;
        let (cache, journal) = (&attacher.cache, &attacher.journal);
        containers::choose_gateway(&container.netns, &container.id, cache, journal)?;
        if let Some(record) = &container.record {
            add_hosts(record, &result, &wanted.hosts)?;
            resolver::renew(record, cache)?;
        }
        Ok(Verdict::Good)
    }

    /// The containers that `--link` names.
    fn linked(
        &self,
        container: &Container,
        list: &NetworkList,
        attacher: &Attacher,
    ) -> Result<Vec<Linked>> {
        let mut all = Vec::new();
        for text in &self.link {
            let linked = Link::parse(text)?.find(&[list], attacher)?;
            if container.record.is_none() && linked.argument(list).is_none() {
                let shown = container.shown();
                bail!(
                    "a link without effect: {text}: names are for containers of podwire run, which \
                     {shown} is not, and ports for networks with --icc=false"
                );
            }
            all.push(linked);
        }
        Ok(all)
    }

    fn endpoint(&self) -> Result<Endpoint> {
        let mut endpoint = Endpoint {
            network: self.network.clone(),
            ifname: self.ifname.clone(),
            ..Endpoint::default()
        };
        for option in &self.driver_opt {
            endpoint.set("driver-opt", option)?;
        }
        endpoint.complete(&First {
            ip: self.ip.as_deref(),
            ip6: self.ip6.as_deref(),
            mac: self.mac_address.as_deref(),
            aliases: &self.alias,
        })?;
        endpoint.check()?;
        Ok(endpoint)
    }
}

/// Docker's text for a mode that excludes other networks.
fn refusal(mode: &str) -> &'static str {
    match mode {
        "none" => {
            "container cannot be connected to multiple networks with one of the networks in \
             private (none) mode"
        }
        "host" => "container cannot be disconnected from host network or connected to host network",
        _ => {
            "container sharing network namespace with another container or host cannot be \
             connected to any other network"
        }
    }
}

/// Fails for a container whose networks cannot change.
pub fn must_have_networks(record: &Record) -> Result<()> {
    match record.mode.as_str() {
        "" => Ok(()),
        mode => bail!("{}", refusal(mode)),
    }
}

/// Adds the new addresses, and those of linked containers, to the container's /etc/hosts.
fn add_hosts(record: &Record, result: &AddResult, linked: &[String]) -> Result<()> {
    let own = files::addresses(std::slice::from_ref(result));
    let own = own.iter().map(|it| files::own_line(*it, &record.hostname));
    let lines: String = linked.iter().cloned().chain(own).collect();
    let file = record.dir().join("hosts");
    let opened = OpenOptions::new().append(true).open(&file);
    let written = opened.and_then(|mut it| it.write_all(lines.as_bytes()));
    written.with_context(|| format!("write {}", file.display()))
}
