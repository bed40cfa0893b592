//! The addresses that host-local has reserved, by attachment.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use cni::file;
use cni::json::Json;
use host_local::conf::Conf;
use serde::Deserialize;
use serde_json::Value;

use crate::{Reservation, Survey, Unread, entries};

/// A reservation is two lines; more is not read.
const LONGEST: u64 = 4096;

/// Assigns the reserved addresses to attachments; those of none are the survey's.
pub fn assign(survey: &mut Survey, cache_dir: &Path) {
    let mut by_name: HashMap<(String, String), Vec<usize>> = HashMap::new();
    for (at, it) in survey.attachments.iter().enumerate() {
        let name = (it.network.clone(), it.container_id.clone());
        by_name.entry(name).or_default().push(at);
    }
    for found in read(survey, cache_dir) {
        let name = (found.network.clone(), found.container_id.clone());
        let candidates = by_name.get(&name).map(Vec::as_slice).unwrap_or_default();
        // Old plugins wrote the container alone.
        let fits = |at: &&usize| {
            found.ifname.is_empty() || survey.attachments[**at].ifname == found.ifname
        };
        match candidates.iter().find(fits) {
            Some(at) => survey.attachments[*at].reserved.push(found.address),
            None => survey.reservations.push(found),
        }
    }
}

fn read(survey: &mut Survey, cache_dir: &Path) -> Vec<Reservation> {
    let mut all = Vec::new();
    for dir in directories(survey, cache_dir) {
        let networks = entries(&dir).unwrap_or_else(|error| {
            let what = dir.display().to_string();
            survey.unread.push(Unread::new(what, error));
            Vec::new()
        });
        for network in networks {
            match host_local::network::names(&network) {
                Ok(mut names) => {
                    names.sort();
                    all.extend(names.into_iter().map(|ip| reservation(&network, ip)));
                }
                // Not a directory.
                Err(_) if !network.is_dir() => {}
                Err(error) => {
                    let what = network.display().to_string();
                    survey.unread.push(Unread::new(what, error));
                }
            }
        }
    }
    all
}

/// The data directories of host-local: the usual one, and those that configurations name.
fn directories(survey: &Survey, cache_dir: &Path) -> BTreeSet<PathBuf> {
    let lists = survey
        .catalogue
        .networks
        .iter()
        .filter_map(|it| it.listed());
    let plugins = lists.flat_map(|it| &it.list.plugins);
    let named = plugins.filter_map(|it| {
        let document = Json::deserialize(&Value::Object(it.document.clone())).ok()?;
        let conf: Conf = document.decode().ok()?;
        conf.ipam.as_ref()?;
        Some(conf.data_dir())
    });
    let usual = [cache_dir.join("networks")];
    usual.into_iter().chain(named).collect()
}

fn reservation(dir: &Path, address: std::net::IpAddr) -> Reservation {
    let path = dir.join(address.to_string());
    let text = file::read(&path, LONGEST).map(|(text, _)| text);
    let text = String::from_utf8_lossy(&text.unwrap_or_default()).into_owned();
    let mut lines = text.lines().map(|it| it.trim().to_owned());
    let network = dir.file_name().unwrap_or_default().to_string_lossy();
    Reservation {
        network: network.into_owned(),
        address,
        container_id: lines.next().unwrap_or_default(),
        ifname: lines.next().unwrap_or_default(),
        file: path,
    }
}
