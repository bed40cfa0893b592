//! The reservations on a real disk, in every state that a kill, another program or a reboot
//! can leave.

use super::*;
use crate::allocator::{Refusal, allocate};
use crate::conf::RangeKeys;
use crate::index::{DIRECTORY, FILE};
use crate::range::RangeSet;
use cni::env::{ContainerId, IfName};
use std::cell::Cell;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};

const NOW: &str = "d94a79a7-91cd-429b-ad77-711c8e80ddb0";
const BEFORE: &str = "0a1b2c3d-91cd-429b-ad77-711c8e80ddb0";

thread_local! {
    /// Another program was noted.
    static NOTED: Cell<bool> = const { Cell::new(false) };
}

/// A data directory with one network.
struct Lab {
    data_dir: tempfile::TempDir,
    set: RangeSet,
}

impl Lab {
    fn new(subnet: &str) -> Self {
        let keys = RangeKeys {
            subnet: subnet.parse().ok(),
            ..RangeKeys::default()
        };
        Self {
            data_dir: tempfile::tempdir().unwrap(),
            set: RangeSet::new(&[keys]).unwrap(),
        }
    }

    fn place(&self, boot: &str) -> Place {
        Place {
            foreign: |_| NOTED.set(true),
            ..Place::at_boot(self.data_dir.path(), "net", Boot::new(boot))
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.data_dir.path().join("net").join(name)
    }

    fn index(&self) -> PathBuf {
        self.data_dir.path().join(DIRECTORY).join("net")
    }

    /// The records in the index, whichever page they are on.
    fn records(&self) -> usize {
        let content = fs::read_to_string(self.index().join(FILE)).unwrap();
        content.matches(" 10.0.").count()
    }

    fn network(&self) -> Network {
        Network::create(&self.place(NOW)).unwrap()
    }

    fn try_add(&self, boot: &str, id: &str, requested: &str) -> Result<IpAddr, Refusal> {
        let mut network = Network::create(&self.place(boot))?;
        let mut holder = Holder::new(&mut network, &attachment(id))?;
        let lease = allocate(&self.set, 0, requested.parse().ok(), &mut holder)?;
        Ok(lease.address.ip())
    }

    fn add(&self, id: &str) -> String {
        self.add_at(NOW, id)
    }

    fn add_at(&self, boot: &str, id: &str) -> String {
        match self.try_add(boot, id, "") {
            Ok(ip) => ip.to_string(),
            Err(refusal) => refusal.to_string(),
        }
    }

    fn del(&self, id: &str) {
        let Some(mut network) = Network::find(&self.place(NOW)).unwrap() else {
            return;
        };
        for reservation in network.held_by(id).unwrap() {
            network.release(&reservation).unwrap();
        }
    }

    fn held(&self, id: &str) -> Vec<String> {
        let held = self.network().held_by(id).unwrap();
        held.iter().map(|it| it.record.ip.to_string()).collect()
    }

    /// Writes as the Go plugin does, without the index.
    fn foreign(&self, name: &str, id: &str) {
        fs::write(self.path(name), format!("{id}\r\neth0")).unwrap();
    }

    /// Whether the index is valid for the next call.
    fn index_is_valid(&self) -> bool {
        self.network().index.find("any").is_some()
    }

    /// Whether the next call notes another program.
    fn is_foreign(&self) -> bool {
        NOTED.set(false);
        self.held("any");
        NOTED.take()
    }
}

pub fn attachment(id: &str) -> Attachment {
    Attachment {
        network: "net".into(),
        container_id: ContainerId::parse(id).unwrap(),
        ifname: IfName::parse("eth0").unwrap(),
    }
}

#[test]
fn the_index_is_valid_after_our_own_calls() {
    let lab = Lab::new("10.0.0.0/24");
    for id in ["a", "b"] {
        lab.add(id);
        assert!(lab.index_is_valid());
    }
    lab.del("a");
    assert!(lab.index_is_valid());
    lab.del("unknown");
    assert!(lab.index_is_valid());
    assert_eq!((lab.held("a").len(), lab.held("b").len()), (0, 1));
    assert_eq!(lab.records(), 1, "only that of b");
}

#[test]
fn an_add_creates_one_file() {
    let lab = Lab::new("10.0.0.0/16");
    lab.add("first");
    let inode = |path: PathBuf| fs::metadata(path).unwrap().ino();
    let before = inode(lab.index().join(FILE));
    let mut names = HashSet::new();
    for number in 0..100 {
        lab.add(&format!("c{number}"));
        assert_eq!(inode(lab.index().join(FILE)), before);
        let all = fs::read_dir(lab.path("")).unwrap().flatten();
        let all: HashSet<_> = all.map(|entry| entry.file_name()).collect();
        assert!(names.is_empty() || all.difference(&names).count() == 1);
        names = all;
    }
    assert_eq!(fs::read_dir(lab.index()).unwrap().count(), 1);
}

#[test]
fn changes_by_other_programs_are_noticed() {
    let lab = Lab::new("10.0.0.0/24");
    lab.add("a");
    lab.foreign("10.0.0.9", "b");
    assert!(!lab.index_is_valid());
    assert_eq!(lab.held("b"), ["10.0.0.9"]);
    assert!(lab.index_is_valid());

    fs::remove_file(lab.path("10.0.0.2")).unwrap();
    assert!(!lab.index_is_valid());
    assert!(lab.held("a").is_empty());

    // Overwritten in place: the directory's modification time stays.
    lab.foreign("10.0.0.9", "c");
    assert!(lab.index_is_valid());
    assert!(lab.held("b").is_empty());
    assert_eq!(lab.held("c"), ["10.0.0.9"]);
}

#[test]
fn a_foreign_change_in_the_same_tick_of_the_clock_is_noticed() {
    let lab = Lab::new("10.0.0.0/16");
    for turn in 0..200 {
        lab.add(&format!("a{turn}"));
        lab.foreign(&format!("10.0.200.{turn}"), &format!("b{turn}"));
        assert!(!lab.index_is_valid(), "turn {turn}");
    }
}

#[test]
fn a_killed_call_leaves_an_invalid_index() {
    let lab = Lab::new("10.0.0.0/24");
    lab.add("a");
    let mut network = lab.network();
    let owner = Owner::of(&attachment("b"));
    assert!(
        network
            .reserve(&owner, "10.0.0.7".parse().unwrap(), Some(0))
            .unwrap()
    );
    network.torn = true; // nothing is saved, as after a kill
    drop(network);
    assert!(!lab.index_is_valid());
    assert!(!lab.is_foreign());
    assert_eq!(lab.held("b"), ["10.0.0.7"]);
    assert_eq!(lab.add("c"), "10.0.0.8");
}

#[test]
fn another_program_is_noted_and_nothing_else() {
    let lab = Lab::new("10.0.0.0/24");
    NOTED.set(false);
    lab.add("a");
    lab.del("a");
    lab.add_at(BEFORE, "b");
    lab.add("c");
    assert!(!NOTED.get(), "a new directory, and boots");

    lab.foreign("10.0.0.9", "go");
    assert!(lab.is_foreign() && !lab.is_foreign());
    fs::remove_file(lab.path("10.0.0.9")).unwrap();
    assert!(lab.is_foreign() && !lab.is_foreign());
    // Added and removed within a tick of the clock.
    lab.foreign("10.0.0.9", "go");
    fs::remove_file(lab.path("10.0.0.9")).unwrap();
    assert!(lab.is_foreign() && !lab.is_foreign());
    fs::remove_dir_all(lab.index()).unwrap();
    assert!(lab.is_foreign() && !lab.is_foreign());

    // After a kill.
    lab.foreign("10.0.0.9", "go");
    let mut network = lab.network();
    network.begin(&Owner::of(&attachment("killed")));
    network.torn = true;
    drop(network);
    assert!(lab.is_foreign());

    // Before this boot.
    lab.foreign("10.0.0.8", "go");
    let dir = fs::File::open(lab.path("")).unwrap();
    let then = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000);
    dir.set_times(fs::FileTimes::new().set_modified(then))
        .unwrap();
    assert!(!lab.is_foreign());
}

#[test]
fn a_removed_or_emptied_index_is_rebuilt() {
    let lab = Lab::new("10.0.0.0/24");
    lab.add("a");
    fs::remove_dir_all(lab.index()).unwrap();
    assert_eq!(lab.held("a"), ["10.0.0.2"]);

    // A power failure: the names are on the disk, the contents are not.
    for entry in fs::read_dir(lab.index()).unwrap().flatten() {
        fs::write(entry.path(), "").unwrap();
    }
    assert_eq!(lab.held("a"), ["10.0.0.2"]);
    assert!(lab.index_is_valid());
}

#[test]
fn an_index_of_any_length_has_every_record_and_no_other() {
    for count in [1, 40, 700] {
        let lab = Lab::new("10.0.0.0/16");
        let given: Vec<_> = (0..count).map(|id| lab.add(&format!("c{id}"))).collect();
        assert_eq!(lab.records(), count);
        let half = (count / 2).max(1);
        (0..half).for_each(|id| lab.del(&format!("c{id}")));
        let again = lab.add("c0");
        for (id, ip) in given.iter().enumerate() {
            let expected = match id {
                0 => vec![&again],
                id if id < half => Vec::new(),
                _ => vec![ip],
            };
            assert_eq!(
                lab.held(&format!("c{id}")).iter().collect::<Vec<_>>(),
                expected
            );
        }
        (0..count).for_each(|id| lab.del(&format!("c{id}")));
        assert_eq!(lab.records(), 0);
        assert!(lab.index_is_valid());
    }
}

#[test]
fn a_container_with_more_addresses_than_a_page_has_room_for_keeps_them() {
    let lab = Lab::new("10.0.0.0/16");
    lab.add("other");
    for number in 0..200 {
        lab.foreign(&format!("10.0.1.{number}"), "many");
    }
    assert_eq!(lab.held("many").len(), 200);
    assert_eq!(lab.add("b"), "10.0.0.3");
    lab.del("many");
    assert_eq!((lab.held("many").len(), lab.held("b").len()), (0, 1));
    assert!(lab.index_is_valid());
}

#[test]
fn a_damaged_page_is_noticed() {
    let lab = Lab::new("10.0.0.0/16");
    let given: Vec<_> = (0..20).map(|id| lab.add(&format!("c{id}"))).collect();
    let path = lab.index().join(FILE);
    let whole = fs::read(&path).unwrap();
    for page in 0..whole.len() / 4096 {
        for damage in [&b"x"[..], &[0; 4096], &[0xff; 4096], b""] {
            let index = fs::File::create(&path).unwrap();
            index.write_all_at(&whole, 0).unwrap();
            match damage {
                b"" => index.set_len(4096 * page as u64).unwrap(),
                damage => index.write_all_at(damage, 4096 * page as u64).unwrap(),
            }
            for (id, ip) in given.iter().enumerate() {
                assert_eq!(
                    lab.held(&format!("c{id}")),
                    std::slice::from_ref(ip),
                    "page {page}"
                );
            }
        }
    }
}

#[test]
fn without_an_index_all_verbs_work() {
    let lab = Lab::new("10.0.0.0/24");
    fs::write(lab.data_dir.path().join(DIRECTORY), "in the way").unwrap();
    assert_eq!(lab.add("a"), "10.0.0.2");
    assert!(lab.add("a").contains("duplicate allocation is not allowed"));
    assert_eq!(lab.add("b"), "10.0.0.3");
    lab.del("a");
    assert!(!lab.path("10.0.0.2").exists());
    assert_eq!(lab.held("b"), ["10.0.0.3"]);
}

#[test]
fn a_temporary_file_is_removed() {
    let lab = Lab::new("10.0.0.0/24");
    lab.add("a");
    // Killed after the link: the spare name is the reservation itself.
    fs::hard_link(lab.path("10.0.0.2"), lab.path(SPARE)).unwrap();
    assert_eq!(lab.held("a"), ["10.0.0.2"]);
    assert!(!lab.path(SPARE).exists());
    assert_eq!(fs::read(lab.path("10.0.0.2")).unwrap(), b"a\r\neth0");
}

#[test]
fn without_o_tmpfile_a_reservation_is_created_as_the_go_plugin_does() {
    let lab = Lab::new("10.0.0.0/24");
    lab.add("a");
    let path = lab.path("10.0.0.9");
    file::create_named(&path, "b\r\neth0").unwrap();
    let taken = file::create_named(&path, "c\r\neth0").unwrap_err();
    assert_eq!(taken.kind(), std::io::ErrorKind::AlreadyExists);
    assert_eq!(lab.held("b"), ["10.0.0.9"]);
    // Killed before the content was written.
    fs::write(lab.path("10.0.0.8"), "").unwrap();
    lab.held("b");
    assert!(!lab.path("10.0.0.8").exists());
}

#[test]
fn foreign_objects_are_neither_followed_nor_handed_out() {
    let lab = Lab::new("10.0.0.0/24");
    let outside = lab.data_dir.path().join("outside");
    fs::write(&outside, "").unwrap();
    lab.network();
    symlink(&outside, lab.path("10.0.0.2")).unwrap();
    symlink("/nonexistent", lab.path("10.0.0.3")).unwrap();
    fs::create_dir(lab.path("10.0.0.4")).unwrap();
    nix::unistd::mkfifo(&lab.path("10.0.0.5"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(lab.add("a"), "10.0.0.6");
    lab.network().retain(|_| false).unwrap();
    assert!(lab.path("10.0.0.2").is_symlink() && lab.path("10.0.0.4").is_dir());

    fs::remove_file(lab.path("last_reserved_ip.0")).unwrap();
    symlink(&outside, lab.path("last_reserved_ip.0")).unwrap();
    assert_eq!(lab.add("b"), "10.0.0.6", "the last address is a hint");
    assert!(lab.path("last_reserved_ip.0").is_symlink());
    assert_eq!(fs::read(&outside).unwrap(), b"");
}

#[test]
fn a_container_id_may_be_longer_than_a_file_name() {
    let lab = Lab::new("10.0.0.0/24");
    let id = "x".repeat(5000);
    assert_eq!(lab.add(&id), "10.0.0.2");
    assert_eq!(lab.held(&id), ["10.0.0.2"]);
    lab.del(&id);
    assert!(!lab.path("10.0.0.2").exists());
}

#[test]
fn a_file_seen_for_the_first_time_may_be_of_this_boot() {
    let lab = Lab::new("10.0.0.0/30");
    // Written by the Go plugin, in an unknown boot.
    lab.network();
    lab.foreign("10.0.0.2", "a");
    assert!(lab.add("b").starts_with("no IP addresses available"));
    // In the next boot it is known to be older.
    assert_eq!(lab.add_at("ffff0000", "b"), "10.0.0.2");
}

#[test]
fn a_recreated_file_is_of_this_boot() {
    let lab = Lab::new("10.0.0.0/30");
    assert_eq!(lab.add_at(BEFORE, "a"), "10.0.0.2");
    fs::remove_file(lab.path("10.0.0.2")).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20)); // longer than a tick
    lab.foreign("10.0.0.2", "a");
    assert!(lab.add("b").starts_with("no IP addresses available"));
}

#[test]
fn with_an_unknown_boot_no_reservation_is_older() {
    let lab = Lab::new("10.0.0.0/30");
    lab.add_at("", "a");
    assert!(lab.add("b").starts_with("no IP addresses available"));
    let lab = Lab::new("10.0.0.0/30");
    lab.add_at(BEFORE, "a");
    assert!(lab.add_at("", "b").starts_with("no IP addresses available"));
}

#[test]
fn after_many_lookups_the_directory_is_listed() {
    let lab = Lab::new("10.0.0.0/16");
    lab.network();
    for number in 2..3000 {
        lab.foreign(&format!("10.0.{}.{}", number / 256, number % 256), "x");
    }
    fs::write(lab.path("10.0.11.184"), "").unwrap();
    fs::remove_file(lab.path("10.0.11.180")).unwrap();
    assert_eq!(lab.add("a"), "10.0.11.180");
    assert_eq!(lab.add("b"), "10.0.11.184");
    assert_eq!(lab.add("c"), "10.0.11.185");
}

#[test]
fn concurrent_adds_get_different_addresses() {
    let lab = Lab::new("10.0.0.0/22");
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let lab = &lab;
            scope.spawn(move || {
                for turn in 0..30 {
                    lab.add(&format!("{thread}-{turn}"));
                    if turn % 3 == 0 {
                        lab.del(&format!("{thread}-{turn}"));
                    }
                }
            });
        }
    });
    let found = lab.network().read_all().unwrap();
    let owners: HashSet<_> = found.iter().map(|found| found.owner.as_str()).collect();
    assert_eq!((found.len(), owners.len()), (160, 160));
    assert!(lab.index_is_valid());
}

#[test]
fn a_directory_removed_while_we_wait_is_created_and_locked_again() {
    let lab = Lab::new("10.0.0.0/24");
    let network = lab.network();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| lab.add("a"));
        std::thread::sleep(std::time::Duration::from_millis(50));
        fs::remove_dir_all(lab.path("")).unwrap();
        drop(network);
        assert_eq!(waiting.join().unwrap(), "10.0.0.2");
    });
    assert!(lab.path("10.0.0.2").exists());
}

#[test]
fn del_creates_nothing() {
    let lab = Lab::new("10.0.0.0/24");
    lab.del("a");
    assert_eq!(fs::read_dir(lab.data_dir.path()).unwrap().count(), 0);
}
