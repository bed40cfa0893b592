//! `podwire network create`, and the network `bridge`, which is made when it is needed.

use std::path::Path;

use anyhow::{Result, anyhow, bail};
use cni::env::ContainerId;
use netlink::Netlink;
use networks::named::{BRIDGE, Catalogue, Kind, Moment, Network, PREDEFINED, Record, Store};
use sha2::{Digest, Sha256};

use super::addressing::{Node, Requests, Words};
use super::conflist::{Design, Ipam};
use super::options::{self, Driver, Options};
use super::pools::Pools;
use super::{removal, taken};

/// With a container id and an interface's name, it is the name of a file: at most 255 bytes.
const LONGEST_NAME: usize = 255 - 64 - 15 - 2;

/// The options of `create`, as they were given.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// The network's name; without one, `podwire` and a number.
    pub name: Option<&'a str>,
    /// `-d`
    pub driver: &'a str,
    /// The subnets.
    pub words: Words<'a>,
    /// `-o`
    pub options: Vec<String>,
    /// `--label`
    pub labels: &'a [String],
    /// `--route`
    pub routes: &'a [String],
    /// `--internal`
    pub internal: bool,
    /// `--attachable`
    pub attachable: bool,
    /// Whether containers find each other by name: not with `--no-dns`.
    pub has_names: bool,
    /// `--dns`
    pub servers: &'a [String],
    /// `--vni`
    pub vni: Option<u32>,
    /// `--ipam-driver`
    pub ipam: &'a str,
    /// The file with the pools.
    pub pools: &'a Path,
}

/// A network that was created, or was there.
#[derive(Debug)]
pub struct Created {
    /// The network.
    pub network: Network,
    /// Whether it is new.
    pub is_new: bool,
}

/// Creates a network. `ignore`: one of that name may exist, and is returned.
///
/// # Errors
/// All faults of the request at once; the configuration cannot be written.
pub fn create(request: &Request<'_>, conf_dir: &Path, ignore: bool) -> Result<Created> {
    let draft = Draft::read(request)?;
    let store = Store::open(conf_dir)?;
    removal::complete(&store)?;
    let catalogue = store.catalogue()?;
    if let Some(network) = request.name.and_then(|name| catalogue.named(name)) {
        if ignore {
            return Ok(Created {
                network: network.clone(),
                is_new: false,
            });
        }
        bail!("network with name {} already exists", network.name);
    }
    for (file, why) in &catalogue.ignored {
        let file = file.display();
        cni::log(format_args!(
            "podwire: warning: {file}: {why}: its addresses are not known"
        ));
    }
    let name = match request.name {
        Some(name) => name.to_owned(),
        None => free_name(&catalogue),
    };
    let id = new_id(&name);
    let network = draft.make(request, name, id, &store, &catalogue)?;
    Ok(Created {
        network,
        is_new: true,
    })
}

/// The network of containers for which none was chosen. Makes it if it is not there.
///
/// # Errors
/// The pools are used up; the configuration cannot be written.
pub fn default_bridge(conf_dir: &Path, pools: &Path) -> Result<Network> {
    let catalogue = Catalogue::read(conf_dir)?;
    if let Some(network) = catalogue.named(BRIDGE).filter(|it| it.listed().is_some()) {
        return Ok(network.clone());
    }
    let request = Request {
        name: None,
        driver: "bridge",
        words: Words::default(),
        options: vec![format!("com.docker.network.bridge.name={DEFAULT_BRIDGE}")],
        labels: &[],
        routes: &[],
        internal: false,
        attachable: false,
        // As in Docker: only networks that users create have names.
        has_names: false,
        servers: &[],
        vni: None,
        ipam: "default",
        pools,
    };
    let draft = Draft::read(&request)?;
    let store = Store::open(conf_dir)?;
    let catalogue = store.catalogue()?;
    match catalogue.named(BRIDGE) {
        Some(network) if !matches!(network.kind, Kind::Unmade) => Ok(network.clone()),
        unmade => {
            let id = unmade.map_or_else(|| new_id(BRIDGE), |it| it.id.clone());
            draft.make(&request, BRIDGE.to_owned(), id, &store, &catalogue)
        }
    }
}

/// The interface of the network `bridge`.
const DEFAULT_BRIDGE: &str = "podwire0";

/// A request whose words could be read, before the subnets are known.
struct Draft {
    driver: Driver,
    options: Options,
    requests: Option<Requests>,
    ipam: Ipam,
    record: Record,
    routes: Vec<serde_json::Value>,
    names: Option<Vec<String>>,
    pools: Pools,
}

impl Draft {
    fn read(request: &Request<'_>) -> Result<Self> {
        let mut faults = Vec::new();
        if let Some(fault) = request.name.and_then(name_fault) {
            faults.push(fault);
        }
        let driver = request.driver.parse().unwrap_or_else(|fault| {
            faults.push(fault);
            Driver::Bridge
        });
        let given = options::pairs(&request.options, "option", &mut faults);
        let labels = options::pairs(request.labels, "label", &mut faults);
        let options = Options::read(&given, &mut faults);
        let ipam = ipam(request, &mut faults);
        let mut own = Vec::new();
        let requests = (ipam == Ipam::HostLocal).then(|| Requests::read(&request.words, &mut own));
        faults.extend(own);
        let routes = request.routes.iter().map(|word| options::route(word));
        let (routes, wrong): (Vec<_>, Vec<_>) = routes.partition(Result::is_ok);
        faults.extend(wrong.into_iter().filter_map(Result::err));
        if request.vni.is_some_and(|vni| vni > netlink::MAX_VNI) {
            faults.push(format!("invalid VNI: expected 0 to {}", netlink::MAX_VNI));
        }
        for server in request.servers {
            faults.extend(server.parse::<names::Server>().err());
        }
        if !request.has_names && !request.servers.is_empty() {
            faults.push("conflicting options: --dns and --no-dns".to_owned());
        }
        options::refuse(&faults)?;
        Ok(Self {
            names: request.has_names.then(|| request.servers.to_vec()),
            driver,
            options,
            requests,
            ipam,
            record: Record {
                created: Moment::now().to_string(),
                labels,
                options: given,
                internal: request.internal,
                attachable: request.attachable,
                ..Record::default()
            },
            routes: routes.into_iter().flatten().collect(),
            pools: Pools::read(request.pools)?,
        })
    }

    fn make(
        mut self,
        request: &Request<'_>,
        name: String,
        id: String,
        store: &Store,
        catalogue: &Catalogue,
    ) -> Result<Network> {
        let mut faults = Vec::new();
        self.record.id = id;
        let mut design = Design {
            name,
            driver: self.driver,
            options: self.options,
            subnets: Vec::new(),
            ipam: self.ipam,
            routes: self.routes,
            names: self.names,
            vni: request.vni,
            record: self.record,
        };
        let bridge = design.bridge();
        if let Some(requests) = &self.requests {
            let shares_segment = design.driver.shares_segment();
            let others = if shares_segment {
                taken::on_segment()?
            } else {
                Vec::new()
            };
            let node = Node {
                name: &design.name,
                shares_segment,
                interface: &bridge,
                others: &others,
            };
            let taken = taken::taken(catalogue)?;
            design.subnets = requests.settle(&self.pools, &taken, node, &mut faults)?;
            design.record.subnets = design.subnets.iter().map(|it| it.record()).collect();
            // What a configuration expresses is not kept a second time.
            design
                .record
                .subnets
                .retain(|it| it.range.is_some() || !it.auxiliary_addresses.is_empty());
        }
        faults.extend(design.faults());
        check_interfaces(&mut design, catalogue, &mut faults)?;
        options::refuse(&faults)?;
        let document = design.document()?;
        store.create(&design.name, &document)?;
        let network = store.catalogue()?.named(&design.name).cloned();
        network.ok_or_else(|| anyhow!("network {} was changed by another program", design.name))
    }
}

/// The interfaces that the network uses: a bridge is of one network, a parent exists.
fn check_interfaces(
    design: &mut Design,
    catalogue: &Catalogue,
    faults: &mut Vec<String>,
) -> Result<()> {
    let host = Netlink::open()?;
    if design.driver == Driver::Bridge {
        let bridge = design.bridge();
        for network in &catalogue.networks {
            let plugins = network
                .listed()
                .map(|it| &it.list.plugins[..])
                .unwrap_or_default();
            if plugins
                .iter()
                .any(|it| it.document.get("bridge").is_some_and(|it| *it == *bridge))
            {
                faults.push(format!(
                    "bridge {bridge} is already in use by network {}",
                    network.name
                ));
            }
        }
        match host.find_link(&bridge)? {
            Some(link) if !link.is_kind("bridge") => {
                faults.push(format!("{bridge:?} already exists but is not a bridge"));
            }
            found => design.record.keeps_bridge = found.is_some(),
        }
    }
    if let Some(parent) = &design.options.parent
        && !parent.contains(['*', '?', '|'])
        && host.find_link(parent)?.is_none()
    {
        faults.push(format!("parent interface {parent} does not exist"));
    }
    Ok(())
}

fn ipam(request: &Request<'_>, faults: &mut Vec<String>) -> Ipam {
    let ipam = match request.ipam {
        "" | "default" | "host-local" => return Ipam::HostLocal,
        "dhcp" => Ipam::Dhcp,
        "none" | "null" => Ipam::None,
        other => {
            faults.push(format!(
                "ipam driver {other:?} not found: expected default, dhcp or none"
            ));
            return Ipam::HostLocal;
        }
    };
    let words = &request.words;
    if [words.subnets, words.ranges, words.gateways, words.aux]
        .iter()
        .any(|it| !it.is_empty())
    {
        faults.push(format!("--ipam-driver {} takes no subnets", request.ipam));
    }
    ipam
}

fn name_fault(name: &str) -> Option<String> {
    if PREDEFINED.contains(&name) {
        return Some(format!(
            "operation is not permitted on predefined {name} network"
        ));
    }
    if name.is_empty() {
        return Some("network name cannot be empty".into());
    }
    // The characters are those of a container id.
    if ContainerId::parse(name).is_err() {
        return Some(format!(
            "invalid network name {name:?}: expected letters, digits, '_', '.' and '-', first a letter or a digit"
        ));
    }
    let is_long = name.len() > LONGEST_NAME;
    is_long.then(|| format!("invalid network name {name:?}: longer than {LONGEST_NAME} characters"))
}

fn free_name(catalogue: &Catalogue) -> String {
    let names = (0..).map(|number: u32| format!("podwire{number}"));
    let mut free = names.filter(|it| catalogue.named(it).is_none());
    free.next().unwrap_or_default()
}

/// Differs for each network that had the name.
fn new_id(name: &str) -> String {
    let (now, process) = (Moment::now(), std::process::id());
    let hash = Sha256::digest(format!("{name}/{now}/{process}"));
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}
