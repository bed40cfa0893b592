//! `podwire run`: run a command in network, process, host name and mount namespaces of its own.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::{ArgAction, Args};
use containers::Resolver;
use networks::NetworkList;
use networks::named::{Catalogue, Kind};

use super::Verdict;
use crate::RUN_FAILED;
use crate::network;
use crate::options::Directories;
use crate::output::Output;
use crate::run::mode::{First, Mode};
use crate::run::plan::{Plan, RunOptions};
use crate::run::{self, Dirs};

/// Run a command in a network.
///
/// COMMAND is a program of the node. It sees the node's files, but has its own network, processes,
/// host name, /etc/hosts, /etc/resolv.conf and /etc/hostname. It is attached by the plugins of the
/// networks, and detached when it ends, is killed, or podwire is.
///
/// --network is none (only lo), host (the node's own), bridge (the predefined network, also without
/// --network), container:NAME (that of another container; also ns:PATH), or the name or id of a
/// network. Options of a network follow its name, NAME:ip=10.1.0.5,alias=db,gw-priority=1, or stand
/// as in docker, name=NAME,ip=10.1.0.5. Each network is an interface: eth0, eth1 and so on. --ip,
/// --ip6, --mac-address and --network-alias are for the first one.
#[derive(Debug, Args)]
#[command(after_long_help = OUTCOME, disable_help_flag = true)]
pub struct Run {
    /// Name of the container [default: the first digits of its id]
    #[arg(long)]
    name: Option<String>,
    /// Connect it to a network; may be repeated
    #[arg(long = "network", visible_alias = "net", value_name = "NETWORK")]
    networks: Vec<String>,
    /// Publish a port: [IP:][HOST[-END]:]CONTAINER[-END][/tcp|udp|sctp]
    #[arg(short = 'p', long, value_name = "PORT")]
    publish: Vec<String>,
    /// Publish all exposed ports to free ports of the node
    #[arg(short = 'P', long)]
    publish_all: bool,
    /// Expose a port or a range of ports
    #[arg(long, value_name = "PORT")]
    expose: Vec<String>,
    /// Its IPv4 address
    #[arg(long)]
    ip: Option<String>,
    /// Its IPv6 address
    #[arg(long)]
    ip6: Option<String>,
    /// Its MAC
    #[arg(long, value_name = "MAC")]
    mac_address: Option<String>,
    /// A further name in the network
    #[arg(long, visible_alias = "net-alias", value_name = "NAME")]
    network_alias: Vec<String>,
    /// Its host name
    #[arg(short = 'h', long, value_name = "NAME")]
    hostname: Option<String>,
    /// A name server
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<String>,
    /// A domain to search; . for none
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// An option of the resolver
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION")]
    dns_option: Vec<String>,
    /// A line of /etc/hosts: NAME:ADDRESS; host-gateway is the network's gateway
    #[arg(long, value_name = "HOST")]
    add_host: Vec<String>,
    /// Another container, with a further name: NAME[:ALIAS]. Its exposed ports are reached although
    /// the network keeps containers apart (--icc=false)
    #[arg(long, value_name = "CONTAINER")]
    link: Vec<String>,
    /// A variable of its environment, beside those of podwire
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<OsString>,
    /// Run it in the background, and print its id
    #[arg(short, long)]
    detach: bool,
    /// Accepted as in docker run: a container is always removed
    #[arg(long)]
    rm: bool,
    /// Accepted as in docker run: the command has podwire's input
    #[arg(short, long)]
    interactive: bool,
    /// Accepted as in docker run: the command has podwire's terminal
    #[arg(short, long)]
    tty: bool,
    /// Accepted as in docker run: the command has podwire's capabilities
    #[arg(long)]
    privileged: bool,
    /// Accepted as in docker run: the command has podwire's capabilities
    #[arg(long, value_name = "CAPABILITY")]
    cap_add: Vec<String>,
    /// Print help
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
    #[command(flatten)]
    dirs: Directories,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true)]
    command: Vec<OsString>,
}

const OUTCOME: &str = "\
Exit status: that of COMMAND, 128+n if signal n has ended it; 125 when the
container cannot be made or the command line is wrong, 126 when COMMAND cannot be executed, 127 when it is
not found.

Examples:
  podwire run --network mynet ip addr
  podwire run -d --name web --network mynet -p 8080:80 -- httpd -f -p 80
  podwire run --network container:web ss -ltn
  podwire run --network none ping 127.0.0.1
";

impl Run {
    pub fn run(&self, output: &Output) -> Result<Verdict> {
        if self.detach {
            containers::processes::close_inherited();
        }
        let status = self.start().unwrap_or_else(|error| {
            output.report(&error);
            RUN_FAILED
        });
        Ok(Verdict::Status(status))
    }

    fn start(&self) -> Result<u8> {
        let first = First {
            ip: self.ip.as_deref(),
            ip6: self.ip6.as_deref(),
            mac: self.mac_address.as_deref(),
            aliases: &self.network_alias,
        };
        let plan = Plan::new(RunOptions {
            mode: Some(Mode::parse(&self.networks, &first)?),
            name: self.name.as_deref(),
            hostname: self.hostname.as_deref(),
            publish: &self.publish,
            publish_all: self.publish_all,
            expose: &self.expose,
            dns: Resolver {
                servers: self.dns.clone(),
                search: self.dns_search.clone(),
                options: self.dns_option.clone(),
            },
            hosts: &self.add_host,
            links: &self.link,
            environment: &self.env,
            command: &self.command,
        })?;
        let dirs = Dirs {
            conf: self.dirs.conf.conf_dir.clone(),
            plugins: self.dirs.plugins.all(),
            cache: self.dirs.cache.dir().to_owned(),
        };
        run::run(plan, &dirs, self.detach, &|word| find(&dirs, word))
    }
}

/// The configuration of a network.
pub fn find(dirs: &Dirs, word: &str) -> Result<NetworkList> {
    let word = if word == "default" { "bridge" } else { word };
    let catalogue = Catalogue::read(&dirs.conf)?;
    let found = catalogue.find(word)?;
    match &found.kind {
        Kind::Listed(listed) => Ok(listed.list.clone()),
        Kind::Unmade => {
            let made = network::default_bridge(&dirs.conf, Path::new(network::POOL_FILE))?;
            let listed = made
                .listed()
                .context("the network bridge has no configuration")?;
            Ok(listed.list.clone())
        }
        Kind::None | Kind::Host => bail!(
            "conflicting options: cannot attach both user-defined and non-user-defined \
             network-modes"
        ),
    }
}
