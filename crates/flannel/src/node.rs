//! A node of Kubernetes as flanneld uses it: its annotations say what a lease says in etcd.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{Backing, Lease};

/// What the names of annotations begin with, unless an operator has chosen otherwise.
pub const ANNOTATIONS: &str = "flannel.alpha.coreos.com";

/// The names of the annotations of one network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Annotations {
    /// Ends in `/` or `-`.
    prefix: String,
}

type Texts = BTreeMap<String, String>;

impl Annotations {
    /// The names that begin with `prefix`, put together as flanneld does.
    ///
    /// # Errors
    /// The prefix has two slashes, or is none for Kubernetes.
    pub fn new(prefix: &str) -> Result<Self, String> {
        let slashes = prefix.matches('/').count();
        let is_plain = |it: char| it.is_ascii_alphanumeric() || "-._/".contains(it);
        if slashes > 1 || prefix.starts_with('/') || !prefix.chars().all(is_plain) {
            return Err(format!(
                "{prefix:?} is no prefix of annotations, as {ANNOTATIONS}"
            ));
        }
        let end = match slashes {
            0 => "/",
            _ if prefix.ends_with(['/', '-']) => "",
            _ => "-",
        };
        let prefix = format!("{prefix}{end}");
        Ok(Self { prefix })
    }

    fn name(&self, of: &str) -> String {
        format!("{}{of}", self.prefix)
    }

    fn text<'t>(&self, of: &str, all: &'t Texts) -> Option<&'t str> {
        let text = all.get(&self.name(of))?.as_str();
        Some(text).filter(|it| !it.is_empty())
    }

    /// The lease that a node's annotations stand for, in the form of etcd; `None` if the node is not
    /// in the network. [`Lease::parse`] says what of it is wrong.
    pub fn lease(&self, all: &Texts) -> Option<String> {
        let text = |of: &str| self.text(of, all);
        if text("kube-subnet-manager") != Some("true") {
            return None;
        }
        // What is no JSON stays a text, which is no data of a backend.
        let data = |of: &str| match text(of) {
            Some(text) => serde_json::from_str(text).unwrap_or_else(|_| json!(text)),
            None => Value::Null,
        };
        let lease = json!({
            "PublicIP": text("public-ip"),
            "PublicIPv6": text("public-ipv6"),
            "BackendType": text("backend-type").unwrap_or_default(),
            "BackendData": data("backend-data"),
            "BackendV6Data": data("backend-v6-data"),
        });
        Some(lease.to_string())
    }

    /// The annotations of a node that has `lease`. An administrator's annotation in `present`
    /// replaces the address.
    pub fn written(&self, lease: &Lease, present: &Texts) -> Texts {
        let address = |own: Option<String>, overwrite: &str| {
            own.map(|own| self.text(overwrite, present).map_or(own, str::to_owned))
        };
        let v4 = lease.public_ip.map(|it| it.to_string());
        let v6 = lease.public_ipv6.map(|it| it.to_string());
        let texts = [
            ("kube-subnet-manager", Some("true".to_owned())),
            ("backend-type", Some(lease.backend_type.clone())),
            ("backend-data", Some(data(lease.v4))),
            ("public-ip", address(v4, "public-ip-overwrite")),
            ("backend-v6-data", lease.v6.map(|it| data(Some(it)))),
            ("public-ipv6", address(v6, "public-ipv6-overwrite")),
        ];
        let texts = texts.into_iter();
        texts
            .filter_map(|(of, text)| Some((self.name(of), text?)))
            .collect()
    }

    /// Whether a node's annotations are those of a node that has `lease`.
    pub fn says(&self, all: &Texts, lease: &Lease) -> bool {
        let mut wanted = self.written(lease, all).into_iter();
        wanted.all(|(name, text)| all.get(&name) == Some(&text))
    }
}

/// flanneld takes this apart by its colons and quotes when it is started again: without blanks, and
/// with the MAC at the end.
fn data(backing: Option<Backing>) -> String {
    match backing {
        Some(Backing { vni, mac }) => format!(r#"{{"VNI":{vni},"VtepMAC":"{mac}"}}"#),
        None => "null".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(pairs: &[(&str, &str)]) -> Texts {
        let own = |(name, text): &(&str, &str)| (format!("{ANNOTATIONS}/{name}"), text.to_string());
        pairs.iter().map(own).collect()
    }

    const NODE: [(&str, &str); 4] = [
        ("backend-data", r#"{"VNI":1,"VtepMAC":"be:9f:00:00:00:01"}"#),
        ("backend-type", "vxlan"),
        ("kube-subnet-manager", "true"),
        ("public-ip", "192.168.77.11"),
    ];

    #[test]
    fn a_node_of_flanneld_is_read_and_written_to_the_letter() {
        let names = Annotations::new(ANNOTATIONS).unwrap();
        let lease = names.lease(&texts(&NODE)).unwrap();
        let lease = Lease::parse(lease.as_bytes()).unwrap();
        assert_eq!(lease.v4.unwrap().mac.to_string(), "be:9f:00:00:00:01");
        assert_eq!(names.written(&lease, &Texts::new()), texts(&NODE));
        assert!(names.says(&texts(&NODE), &lease));
        assert!(!names.says(&texts(&NODE[1..]), &lease));
        assert_eq!(names.lease(&texts(&NODE[..2])), None);
    }

    #[test]
    fn an_administrator_replaces_the_address() {
        let names = Annotations::new(ANNOTATIONS).unwrap();
        let lease = Lease::parse(names.lease(&texts(&NODE)).unwrap().as_bytes()).unwrap();
        let overwrite = texts(&[("public-ip-overwrite", "203.0.113.7")]);
        let written = names.written(&lease, &overwrite);
        assert_eq!(written[&names.name("public-ip")], "203.0.113.7");
    }

    #[test]
    fn names_are_put_together_as_flanneld_does() {
        for (prefix, name) in [
            ("flannel.alpha.coreos.com", "flannel.alpha.coreos.com/x"),
            ("example.com/", "example.com/x"),
            ("example.com/a", "example.com/a-x"),
            ("example.com/a-", "example.com/a-x"),
        ] {
            assert_eq!(Annotations::new(prefix).unwrap().name("x"), name);
        }
        for odd in ["/coreos.com/network", "a/b/c", "a b"] {
            assert!(Annotations::new(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn data_that_is_no_json_is_a_fault_of_the_lease() {
        let mut all = texts(&NODE);
        let names = Annotations::new(ANNOTATIONS).unwrap();
        all.insert(names.name("backend-data"), "{".into());
        let lease = names.lease(&all).unwrap();
        assert!(Lease::parse(lease.as_bytes()).is_err());
    }
}
