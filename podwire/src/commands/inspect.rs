//! `podwire inspect`: everything about a pod.

use anyhow::{Result, bail};
use clap::Args;
use netlink::Link;
use serde_json::{Value, json};
use survey::{Attachment, Home, Interface, OtherEnd, Survey};

use super::Verdict;
use super::doctor::find_container;
use crate::network::format;
use crate::options::SurveyDirs;
use crate::output::{Output, print};

/// Print everything about pods.
///
/// A JSON array with an object for each POD: its attachments, with the result of the ADD, both ends of the
/// interface in the kernel, addresses, routes of its namespace, published ports and reservations, and
/// which of cache, kernel and store has the attachment. A POD is named as in podwire network connect, or
/// by the path of its network namespace.
#[derive(Debug, Args)]
#[command(after_long_help = OUTCOME)]
pub struct Inspect {
    /// Name or id of a container or pod, or the path of its network namespace
    #[arg(required = true)]
    pod: Vec<String>,
    /// A template, in the language of podwire network inspect
    #[arg(short, long, value_name = "TEMPLATE")]
    format: Option<String>,
    #[command(flatten)]
    dirs: SurveyDirs,
}

const OUTCOME: &str = "\
Exit status: 0 when all were found, 1 otherwise, 2 for a wrong command line.

Examples:
  podwire inspect web
  podwire inspect /run/netns/blue
  podwire inspect --format '{{.ID}} {{.Runtime}}' web
";

impl Inspect {
    pub fn run(&self, _output: &Output) -> Result<Verdict> {
        let survey = self.dirs.survey()?;
        let (mut found, mut all) = (Vec::new(), true);
        for word in &self.pod {
            match find_container(word, &survey, &self.dirs.cache)
                .and_then(|id| document(&survey, &id))
            {
                Ok(document) => found.push(document),
                Err(error) => {
                    cni::log(format_args!("podwire: {error:#}"));
                    all = false;
                }
            }
        }
        match &self.format {
            None => print(&serde_json::to_string_pretty(&found)?)?,
            Some(template) => {
                for document in &found {
                    print(&format::fill(template, document)?)?;
                }
            }
        }
        Ok(Verdict::good_if(all))
    }
}

fn document(survey: &Survey, id: &str) -> Result<Value> {
    let attachments: Vec<_> = survey.of_container(id).collect();
    let record = survey.containers.iter().find(|it| it.id == id);
    let Some(home) = attachments
        .iter()
        .map(|it| &it.home)
        .find(|it| **it != Home::Unknown)
    else {
        if record.is_none() && attachments.is_empty() {
            bail!("No such container: {id}");
        }
        return Ok(json!({"ID": id, "Name": record.map(|it| &it.name), "Attachments": []}));
    };
    let name = record.map(|it| it.name.clone());
    let name = name.or_else(|| {
        attachments
            .iter()
            .find_map(|it| it.pod_name())
            .map(str::to_owned)
    });
    Ok(json!({
        "ID": id,
        "Name": name.unwrap_or_default(),
        "Runtime": super::ps::runtime(survey, &attachments),
        "Namespace": namespace(survey, home),
        "Attachments": attachments.iter().map(|it| attachment(survey, it)).collect::<Vec<_>>(),
    }))
}

fn namespace(survey: &Survey, home: &Home) -> Value {
    match home {
        Home::Unknown => Value::Null,
        Home::Gone(path) => json!({"Path": path, "State": "gone"}),
        Home::Unread(path) => json!({"Path": path, "State": "not read"}),
        Home::At(at) => {
            let namespace = &survey.namespaces[*at];
            let links = namespace.interfaces.iter().map(interface);
            let routes = namespace.routes.iter().map(|it| {
                let dev = it
                    .oif
                    .and_then(|it| namespace.at(it))
                    .map(|it| it.link.name.clone());
                json!({"Destination": it.dst.to_string(), "Gateway": it.gw.map(|it| it.to_string()),
                    "Interface": dev, "Table": it.table, "Metric": it.priority})
            });
            json!({
                "Path": namespace.paths.first(),
                "Inode": namespace.inode,
                "State": "present",
                "Interfaces": links.collect::<Vec<_>>(),
                "Routes": routes.collect::<Vec<_>>(),
            })
        }
    }
}

fn attachment(survey: &Survey, it: &Attachment) -> Value {
    let result = it.cached.as_ref().and_then(|it| it.result.clone());
    let at =
        |place: Option<survey::Place>| place.and_then(|it| survey.interface(it)).map(interface);
    let bridge = it
        .outside
        .and_then(|it| survey.interface(it))
        .and_then(|it| it.link.master);
    let bridge = bridge
        .and_then(|it| survey.node().at(it))
        .map(|it| it.link.name.clone());
    json!({
        "Network": it.network,
        "Interface": it.ifname,
        "Health": super::ps::health(survey, it),
        "InPod": at(it.inside),
        "OnNode": at(it.outside),
        "Master": bridge,
        "Reserved": it.reserved.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "Ports": super::ps::ports(it),
        "In": super::ps::known_by(survey, it),
        "Result": result,
    })
}

fn interface(it: &Interface) -> Value {
    let Link {
        index,
        name,
        mtu,
        kind,
        up,
        operstate,
        ..
    } = &it.link;
    let end = it.other_end.map(|end| match end {
        OtherEnd::At(place) => place.index,
        OtherEnd::Elsewhere(index) => index,
    });
    json!({
        "Index": index,
        "Name": name,
        "MacAddress": it.link.mac.map(|it| it.to_string()),
        "MTU": mtu,
        "Kind": kind,
        "Up": up,
        "State": operstate.to_string(),
        "OtherEnd": end,
        "Addresses": it.addresses.iter().map(|it| it.address.to_string()).collect::<Vec<_>>(),
    })
}
