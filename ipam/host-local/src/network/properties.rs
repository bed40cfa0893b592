//! After any sequence of events (ADD, DEL, GC, boots, Go plugins, operators, kills), the
//! reservations on disk equal those of a simple model: a map from addresses to owners.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use super::tests::attachment;
use super::*;
use crate::allocator::{Refusal, allocate};
use crate::conf::RangeKeys;
use crate::index::{DIRECTORY, FILE};
use crate::range::RangeSet;
use proptest::collection::vec;
use proptest::prelude::*;

/// An event. Containers and addresses are numbers.
#[derive(Clone, Debug)]
enum Event {
    Add(u8),
    AddAt(u8, u8),
    Del(u8),
    /// The reservations of each container are compared.
    Check,
    /// Containers that are alive.
    Gc(BTreeSet<u8>),
    Reboot,
    /// A Go plugin's ADD, without our index.
    GoAdd(u8, u8),
    /// A Go plugin's DEL, or an operator's rm.
    Remove(u8),
    /// A Go plugin was killed between creating and writing.
    Empty(u8),
    /// The index is missing, or its header is damaged.
    NoIndex,
    Nonsense(String),
}

fn event() -> impl Strategy<Value = Event> {
    let (id, ip) = (0..6u8, 2..9u8);
    prop_oneof![
        6 => id.clone().prop_map(Event::Add),
        2 => (id.clone(), ip.clone()).prop_map(|(id, ip)| Event::AddAt(id, ip)),
        4 => id.clone().prop_map(Event::Del),
        2 => Just(Event::Check),
        1 => prop::collection::btree_set(id.clone(), 0..6).prop_map(Event::Gc),
        1 => Just(Event::Reboot),
        1 => (id, ip.clone()).prop_map(|(id, ip)| Event::GoAdd(id, ip)),
        1 => ip.clone().prop_map(Event::Remove),
        1 => ip.prop_map(Event::Empty),
        1 => Just(Event::NoIndex),
        1 => "[0-9a-f .:\n]{0,90}".prop_map(Event::Nonsense),
    ]
}

/// A reservation of the model.
#[derive(Clone, Debug)]
struct Held {
    /// `None`: the file is empty.
    id: Option<u8>,
    /// The boot at which our plugin first saw it; `None` if it has not seen it.
    seen: Option<u32>,
}

/// 10.0.0.2 to 10.0.0.6 and 10.0.0.8, in two ranges; gateways are .1 and .7.
const POOL: [u8; 6] = [2, 3, 4, 5, 6, 8];

#[derive(Debug, Default)]
struct Model {
    held: BTreeMap<u8, Held>,
    last: Option<u8>,
    boot: u32,
}

impl Model {
    /// Each call reads every reservation that is not in the index, and removes empty files.
    fn look(&mut self) {
        self.held.retain(|_, held| held.id.is_some());
        for held in self.held.values_mut() {
            held.seen.get_or_insert(self.boot);
        }
    }

    fn is_free(&self, ip: u8) -> bool {
        self.held.get(&ip).is_none_or(|held| held.id.is_none())
    }

    fn reserve(&mut self, id: u8, ip: u8) -> Result<u8, &'static str> {
        let (id, seen) = (Some(id), Some(self.boot));
        self.held.insert(ip, Held { id, seen });
        self.last = Some(ip);
        Ok(ip)
    }

    fn reclaim(&mut self) -> bool {
        let (before, boot) = (self.held.len(), self.boot);
        self.held
            .retain(|_, held| held.id.is_some() && held.seen == Some(boot));
        self.held.len() < before
    }

    fn release_earlier(&mut self, id: u8) {
        let boot = self.boot;
        self.held
            .retain(|_, held| held.id != Some(id) || held.seen == Some(boot));
    }

    fn add(&mut self, id: u8) -> Result<u8, &'static str> {
        self.look();
        self.release_earlier(id);
        let own = |ip: &u8| self.held.get(ip).is_some_and(|held| held.id == Some(id));
        // Also a gateway's address, which only another plugin can have reserved.
        if (1..=8).any(|ip| own(&ip)) {
            return Err("duplicate");
        }
        loop {
            let start = self
                .last
                .and_then(|last| POOL.iter().position(|ip| *ip == last));
            let start = start.map_or(0, |at| at + 1);
            let mut round = (0..POOL.len()).map(|turn| POOL[(start + turn) % POOL.len()]);
            if let Some(ip) = round.find(|ip| self.is_free(*ip)) {
                return self.reserve(id, ip);
            }
            if !self.reclaim() {
                return Err("exhausted");
            }
        }
    }

    fn add_at(&mut self, id: u8, ip: u8) -> Result<u8, &'static str> {
        self.look();
        self.release_earlier(id);
        if !POOL.contains(&ip) {
            return Err("not there");
        }
        if self.is_free(ip) || (self.reclaim() && self.is_free(ip)) {
            return self.reserve(id, ip);
        }
        Err("not there")
    }
}

/// The same on a disk.
struct Disk {
    data_dir: tempfile::TempDir,
    set: RangeSet,
    boot: u32,
}

impl Disk {
    fn new() -> Self {
        let range = |subnet: &str| RangeKeys {
            subnet: subnet.parse().ok(),
            ..RangeKeys::default()
        };
        let mut second = range("10.0.0.0/28");
        (second.range_start, second.range_end) = ("10.0.0.7".parse().ok(), "10.0.0.8".parse().ok());
        second.gateway = "10.0.0.7".parse().ok();
        Self {
            data_dir: tempfile::tempdir().unwrap(),
            set: RangeSet::new(&[range("10.0.0.0/29"), second]).unwrap(),
            boot: 0,
        }
    }

    fn place(&self) -> Place {
        let boot = format!("{:08x}", self.boot + 1);
        Place::at_boot(self.data_dir.path(), "net", Boot::new(&boot))
    }

    fn path(&self, ip: u8) -> PathBuf {
        self.place().dir().join(address(ip).to_string())
    }

    fn add(&self, id: u8, requested: Option<u8>) -> Result<u8, &'static str> {
        let mut network = Network::create(&self.place()).unwrap();
        let mut holder = Holder::new(&mut network, &attachment(&format!("c{id}"))).unwrap();
        match allocate(&self.set, 0, requested.map(address), &mut holder) {
            Ok(lease) => Ok(last_byte(lease.address.ip())),
            Err(Refusal::Duplicate(..)) => Err("duplicate"),
            Err(Refusal::Exhausted(_)) => Err("exhausted"),
            Err(Refusal::Unavailable(..) | Refusal::Gateway(_)) => Err("not there"),
            Err(Refusal::Store(error)) => panic!("{error:#}"),
        }
    }

    fn del(&self, id: u8) {
        if let Some(mut network) = Network::find(&self.place()).unwrap() {
            for held in network.held_by(&format!("c{id}")).unwrap() {
                network.release(&held).unwrap();
            }
        }
    }

    fn held(&self, id: u8) -> BTreeSet<u8> {
        let network = Network::find(&self.place()).unwrap();
        let held = network.map(|mut it| it.held_by(&format!("c{id}")).unwrap());
        let ips = held.iter().flatten().map(|it| last_byte(it.record.ip));
        ips.collect()
    }

    fn gc(&self, alive: &BTreeSet<u8>) {
        let alive: HashSet<_> = alive
            .iter()
            .map(|id| Owner::of(&attachment(&format!("c{id}"))))
            .collect();
        if let Some(mut network) = Network::find(&self.place()).unwrap() {
            network.retain(|owner| alive.contains(owner)).unwrap();
        }
    }

    /// Writes as the Go plugin does; false where the address is taken.
    fn foreign(&self, ip: u8, content: &str) -> bool {
        fs::create_dir_all(self.place().dir()).unwrap();
        let created = fs::File::create_new(self.path(ip));
        created.is_ok_and(|mut file| {
            use std::io::Write;
            file.write_all(content.as_bytes()).is_ok()
        })
    }

    fn index(&self) -> PathBuf {
        self.data_dir.path().join(DIRECTORY).join("net")
    }

    /// What the Go plugin would find.
    fn reservations(&self) -> BTreeMap<u8, String> {
        let names = fs::read_dir(self.place().dir()).into_iter().flatten();
        let names = names.filter_map(|entry| entry.unwrap().file_name().into_string().ok());
        let addresses = names.filter_map(|name| name.parse().ok());
        addresses
            .map(|ip| {
                let content = fs::read_to_string(self.path(last_byte(ip))).unwrap();
                (last_byte(ip), content)
            })
            .collect()
    }
}

fn address(ip: u8) -> IpAddr {
    [10, 0, 0, ip].into()
}

fn last_byte(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(ip) => panic!("{ip}"),
    }
}

fn content(held: &Held) -> String {
    held.id
        .map_or_else(String::new, |id| format!("c{id}\r\neth0"))
}

/// Lets it happen on both sides.
fn happen(event: &Event, disk: &mut Disk, model: &mut Model) {
    match event {
        Event::Add(id) => assert_eq!(disk.add(*id, None), model.add(*id)),
        // The plan passes only addresses of the set.
        Event::AddAt(id, ip) if disk.set.contains(address(*ip)) => {
            assert_eq!(disk.add(*id, Some(*ip)), model.add_at(*id, *ip));
        }
        Event::AddAt(..) => {}
        Event::Del(id) => {
            disk.del(*id);
            model.look();
            model.held.retain(|_, held| held.id != Some(*id));
        }
        Event::Check => {
            model.look();
            for id in 0..6 {
                let of_id = model.held.iter().filter(|(_, held)| held.id == Some(id));
                let expected: BTreeSet<u8> = of_id.map(|(ip, _)| *ip).collect();
                assert_eq!(disk.held(id), expected, "container c{id}");
            }
        }
        Event::Gc(alive) => {
            disk.gc(alive);
            model.look();
            let lives = |held: &Held| held.id.is_some_and(|id| alive.contains(&id));
            model.held.retain(|_, held| lives(held));
        }
        Event::Reboot => {
            disk.boot += 1;
            model.boot += 1;
        }
        Event::GoAdd(id, ip) => {
            let held = Held {
                id: Some(*id),
                seen: None,
            };
            if disk.foreign(*ip, &content(&held)) {
                model.held.insert(*ip, held);
            }
        }
        Event::Remove(ip) => {
            let _ = fs::remove_file(disk.path(*ip));
            model.held.remove(ip);
        }
        Event::Empty(ip) => {
            if disk.foreign(*ip, "") {
                let (id, seen) = (None, None);
                model.held.insert(*ip, Held { id, seen });
            }
        }
        Event::NoIndex => {
            let _ = fs::remove_dir_all(disk.index());
            model.held.values_mut().for_each(|held| held.seen = None);
        }
        Event::Nonsense(text) => {
            if disk.index().join(FILE).exists() {
                fs::write(disk.index().join(FILE), text).unwrap();
                model.held.values_mut().for_each(|held| held.seen = None);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_disk_equals_the_model_after_any_events(events in vec(event(), 1..60)) {
        let (mut disk, mut model) = (Disk::new(), Model::default());
        for event in &events {
            happen(event, &mut disk, &mut model);
            let expected: BTreeMap<_, _> =
                model.held.iter().map(|(ip, held)| (*ip, content(held))).collect();
            prop_assert_eq!(disk.reservations(), expected, "after {:?}", event);
        }
    }
}
