//! The original attributes of an interface, in the files of the Go plugin.

use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cni::{Attachment, SystemError, file, json, names};
use serde::{Deserialize, Serialize};
use serde_json::ser::{PrettyFormatter, Serializer};

use crate::plan::Attributes;

/// Where the files are, unless the configuration says otherwise.
pub const DATA_DIR: &str = "/run/cni/tuning";

/// The longest file that is read, in bytes: five short members.
const LONGEST: u64 = 4096;

/// The longest name of a file, in bytes (NAME_MAX in limits.h).
const NAME_MAX: usize = 255;

/// The content of a file, with the members in the Go plugin's order.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
struct Members {
    #[serde(skip_serializing_if = "String::is_empty")]
    mac: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    promisc: Option<bool>,
    #[serde(skip_serializing_if = "is_zero")]
    mtu: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    allmulti: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tx_q_len: Option<u32>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde wants it")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// The file of one attachment.
#[derive(Clone, Debug)]
pub struct Backup(PathBuf);

impl Backup {
    /// The file of `attachment` in `data_dir`.
    pub fn of(attachment: &Attachment, data_dir: &str) -> Self {
        let dir = match data_dir {
            "" => DATA_DIR,
            dir => dir,
        };
        let (id, ifname) = (&attachment.container_id, &attachment.ifname);
        let mut name = format!("{id}_{ifname}.json");
        if name.len() > NAME_MAX {
            // The Go plugin cannot write such a file.
            name = format!("{}_{ifname}.json", names::short(id.as_str()));
        }
        Self(Path::new(dir).join(name))
    }

    /// A file whose path was noted.
    pub fn at(path: &str) -> Self {
        Self(path.into())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The attributes in the file; `None` if there is no file, or not a valid one.
    ///
    /// # Errors
    /// The file is there, but cannot be read.
    pub fn read(&self) -> Result<Option<Attributes>> {
        let content = match file::read(&self.0, LONGEST) {
            Ok((content, _)) => content,
            Err(error) if file::is_absent(&error) || file::is_foreign(&error) => return Ok(None),
            Err(error) => {
                let op = format!("read {}", self.0.display());
                return Err(SystemError::io(op, &error).into());
            }
        };
        let members = json::read::<Members>(&content).ok();
        Ok(members.map(|members| Attributes {
            mac: members.mac.parse().ok(),
            promisc: members.promisc,
            mtu: Some(members.mtu).filter(|mtu| *mtu != 0),
            allmulti: members.allmulti,
            tx_queue_len: members.tx_q_len,
        }))
    }

    /// Writes `attributes`. They are short enough for one write(2), so a kill leaves either the old
    /// or the new content.
    ///
    /// # Errors
    /// The directory cannot be made, or the file cannot be written.
    pub fn write(&self, attributes: &Attributes) -> Result<()> {
        let content = encode(attributes)?;
        let write = || file::overwrite(&self.0, &content);
        let written = match write() {
            Err(error) if file::is_absent(&error) => self.make_dir().and_then(|()| write()),
            other => other,
        };
        written.with_context(|| format!("keep the original values in {}", self.0.display()))
    }

    /// Removes the file, if there is one. A directory in its place is not ours, and a read-only file
    /// system has no file of ours.
    ///
    /// # Errors
    /// As unlink(2).
    pub fn remove(&self) -> Result<()> {
        match file::remove(&self.0) {
            Err(error)
                if !matches!(
                    error.kind(),
                    ErrorKind::IsADirectory
                        | ErrorKind::NotADirectory
                        | ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                let op = format!("remove {}", self.0.display());
                Err(SystemError::io(op, &error).into())
            }
            _ => Ok(()),
        }
    }

    fn make_dir(&self) -> std::io::Result<()> {
        let dir = self.0.parent().unwrap_or(Path::new("."));
        DirBuilder::new().recursive(true).mode(0o700).create(dir)
    }
}

/// The JSON of the Go plugin, indented by one space, without a newline at its end.
fn encode(attributes: &Attributes) -> Result<Vec<u8>> {
    let members = Members {
        mac: attributes
            .mac
            .map(|mac| mac.to_string())
            .unwrap_or_default(),
        promisc: attributes.promisc,
        mtu: attributes.mtu.unwrap_or_default(),
        allmulti: attributes.allmulti,
        tx_q_len: attributes.tx_queue_len,
    };
    let mut content = Vec::new();
    let format = PrettyFormatter::with_indent(b" ");
    members.serialize(&mut Serializer::with_formatter(&mut content, format))?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backup(dir: &Path, id: &str) -> Backup {
        let attachment = Attachment::parse("testnet", id, "eth0").unwrap();
        Backup::of(&attachment, dir.to_str().unwrap())
    }

    fn all() -> Attributes {
        Attributes {
            mac: "72:10:b9:2b:ec:f7".parse().ok(),
            promisc: Some(false),
            mtu: Some(1500),
            allmulti: Some(false),
            tx_queue_len: Some(1000),
        }
    }

    #[test]
    fn the_file_is_that_of_the_go_plugin() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().join("a/b");
        let backup = backup(&data_dir, "pod1");
        assert_eq!(backup.read().unwrap(), None);
        backup.write(&all()).unwrap();
        let file = data_dir.join("pod1_eth0.json");
        let expected = "{\n \"mac\": \"72:10:b9:2b:ec:f7\",\n \"promisc\": false,\n \"mtu\": 1500,\n \
                        \"allmulti\": false,\n \"txQLen\": 1000\n}";
        assert_eq!(std::fs::read_to_string(&file).unwrap(), expected);
        assert_eq!(backup.read().unwrap(), Some(all()));
        let only = Attributes {
            tx_queue_len: Some(0),
            ..Attributes::default()
        };
        backup.write(&only).unwrap();
        assert_eq!(
            std::fs::read_to_string(&file).unwrap(),
            "{\n \"txQLen\": 0\n}"
        );
        assert_eq!(backup.read().unwrap(), Some(only));
        backup.remove().unwrap();
        backup.remove().unwrap();
        assert!(!file.exists());
    }

    #[test]
    fn a_file_that_cannot_be_read_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let backup = backup(dir.path(), "pod1");
        for content in ["", "{", "[]", "{\"mtu\": \"x\"}"] {
            std::fs::write(dir.path().join("pod1_eth0.json"), content).unwrap();
            assert_eq!(backup.read().unwrap(), None, "{content}");
        }
        // A member that is no value of its kind is left out.
        std::fs::write(
            dir.path().join("pod1_eth0.json"),
            r#"{"mac": "x", "mtu": 9}"#,
        )
        .unwrap();
        assert_eq!(
            backup.read().unwrap().map(|it| (it.mac, it.mtu)),
            Some((None, Some(9)))
        );
    }

    #[test]
    fn a_long_container_id_has_a_file_too() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (
            backup(dir.path(), &"c".repeat(4000)),
            backup(dir.path(), &"d".repeat(4000)),
        );
        one.write(&all()).unwrap();
        assert_eq!(
            (one.read().unwrap(), other.read().unwrap()),
            (Some(all()), None)
        );
    }
}
