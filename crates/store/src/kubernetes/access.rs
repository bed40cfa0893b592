//! Where the API is, and what it accepts: the kubeconfig of a program outside, or what a pod finds.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use yaml_rust2::{Yaml, YamlLoader};

use crate::connection::{Tls, read};

/// Where Kubernetes puts a pod's account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// How the API is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiAccess {
    /// A kubeconfig; `None` in a pod of the cluster.
    pub kubeconfig: Option<PathBuf>,
}

/// A server of the API, as it is at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// `https://HOST:PORT`.
    pub server: String,
    ca: Option<Pem>,
    identity: Option<(Pem, Pem)>,
    token: Option<Pem>,
}

/// A text in a file, or the text itself.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Pem {
    File(PathBuf),
    Text(String),
}

impl ApiAccess {
    /// Reads the kubeconfig, or the pod's environment.
    ///
    /// # Errors
    /// A kubeconfig that cannot be read or has something that is not supported; no cluster around.
    pub(super) fn place(&self) -> Result<Place> {
        match &self.kubeconfig {
            Some(file) => {
                let text = read("kubeconfig", file)?;
                let dir = file.parent().unwrap_or(Path::new("/"));
                kubeconfig(&text, dir).with_context(|| format!("kubeconfig {}", file.display()))
            }
            None => in_cluster(|name| std::env::var(name).ok()),
        }
    }
}

impl Place {
    /// The token of the account as it is now; `None` where a certificate stands for it.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn token(&self) -> Result<Option<String>> {
        let token = self.token.as_ref().map(|it| it.read("token"));
        Ok(token.transpose()?.map(|it| it.trim().to_owned()))
    }

    pub fn tls(&self) -> Result<Tls> {
        let ca = self.ca.as_ref().map(|it| it.read("certificate-authority"));
        let identity = self.identity.as_ref().map(|(certificate, key)| {
            let certificate = certificate.read("client-certificate")?;
            Ok::<_, anyhow::Error>((certificate, key.read("client-key")?))
        });
        Ok(Tls {
            ca: ca.transpose()?,
            identity: identity.transpose()?,
        })
    }
}

impl Pem {
    fn read(&self, key: &str) -> Result<String> {
        match self {
            Self::File(file) => read(key, file),
            Self::Text(text) => Ok(text.clone()),
        }
    }
}

fn in_cluster(environment: impl Fn(&str) -> Option<String>) -> Result<Place> {
    let host = environment("KUBERNETES_SERVICE_HOST").filter(|it| !it.is_empty());
    let port = environment("KUBERNETES_SERVICE_PORT").filter(|it| !it.is_empty());
    let (Some(host), Some(port)) = (host, port) else {
        bail!(
            "kubeconfig: missing, and KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set: this is no pod of a cluster"
        );
    };
    let host = if host.contains(':') {
        format!("[{host}]")
    } else {
        host
    };
    let file = |name: &str| Pem::File(Path::new(ACCOUNT).join(name));
    Ok(Place {
        server: format!("https://{host}:{port}"),
        ca: Some(file("ca.crt")),
        identity: None,
        token: Some(file("token")),
    })
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct ContextKeys {
    cluster: String,
    user: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct ClusterKeys {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    insecure_skip_tls_verify: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct UserKeys {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    exec: Option<serde_json::Value>,
    auth_provider: Option<serde_json::Value>,
    username: Option<String>,
}

/// The cluster and the user of the current context. Paths are relative to the file's directory.
fn kubeconfig(text: &str, dir: &Path) -> Result<Place> {
    let documents = YamlLoader::load_from_str(text)?;
    let document = documents.first().context("it is empty")?;
    let current = document["current-context"].as_str().unwrap_or_default();
    let context: ContextKeys = named(document, "context", current)?;
    let cluster: ClusterKeys = named(document, "cluster", &context.cluster)?;
    let user: UserKeys = named(document, "user", &context.user)?;
    if !cluster.server.starts_with("https://") {
        let server = &cluster.server;
        bail!("server: {server:?} is not https://HOST:PORT");
    }
    if cluster.insecure_skip_tls_verify {
        bail!("insecure-skip-tls-verify: true is not supported; name the certificate-authority");
    }
    for (key, is_there) in [
        ("exec", user.exec.is_some()),
        ("auth-provider", user.auth_provider.is_some()),
        ("username", user.username.is_some()),
    ] {
        if is_there {
            bail!("{key}: not supported; use a token, or a client-certificate");
        }
    }
    let pem = |key: &str, data: Option<String>, file: Option<PathBuf>| match (data, file) {
        (Some(data), _) => decoded(&data)
            .map(|it| Some(Pem::Text(it)))
            .with_context(|| format!("{key}-data")),
        (None, file) => Ok(file.map(|it| Pem::File(dir.join(it)))),
    };
    let authority = "certificate-authority";
    let ca = pem(
        authority,
        cluster.certificate_authority_data,
        cluster.certificate_authority,
    )?;
    let certificate = pem(
        "client-certificate",
        user.client_certificate_data,
        user.client_certificate,
    )?;
    let key = pem("client-key", user.client_key_data, user.client_key)?;
    let identity = match (certificate, key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => bail!("client-certificate and client-key: one without the other"),
    };
    // As kubectl: the file comes first, because it is replaced.
    let file = user.token_file.map(|it| Pem::File(dir.join(it)));
    Ok(Place {
        server: cluster.server.trim_end_matches('/').to_owned(),
        ca: Some(ca.with_context(|| format!("{authority}: missing"))?),
        identity,
        token: file.or(user.token.map(Pem::Text)),
    })
}

/// The value of `kind` with the name `name`, in the document's list of them.
fn named<T: for<'a> Deserialize<'a>>(document: &Yaml, kind: &str, name: &str) -> Result<T> {
    let all = document[format!("{kind}s").as_str()].as_vec();
    let found = all
        .into_iter()
        .flatten()
        .find(|it| it["name"].as_str() == Some(name));
    let found = found.with_context(|| format!("{kind}s: there is none with the name {name:?}"))?;
    let value = serde_json::from_value(json(&found[kind]));
    value.with_context(|| format!("{kind}s: {name}"))
}

fn json(yaml: &Yaml) -> serde_json::Value {
    match yaml {
        Yaml::Boolean(it) => (*it).into(),
        Yaml::Integer(it) => (*it).into(),
        Yaml::Real(text) | Yaml::String(text) => text.as_str().into(),
        Yaml::Array(all) => all.iter().map(json).collect(),
        Yaml::Hash(all) => {
            let pairs = all.iter();
            let pairs = pairs.map(|(key, it)| (key.as_str().unwrap_or_default().into(), json(it)));
            serde_json::Value::Object(pairs.collect())
        }
        _ => serde_json::Value::Null,
    }
}

fn decoded(text: &str) -> Result<String> {
    let packed: String = text.split_whitespace().collect();
    let bytes = STANDARD.decode(packed)?;
    String::from_utf8(bytes).map_err(|_| anyhow!("it is no text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const K3S: &str = "
apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: Q0E=
    server: https://127.0.0.1:6443
  name: default
contexts:
- {context: {cluster: default, user: agent}, name: default}
current-context: default
kind: Config
users:
- name: agent
  user:
    client-certificate: client.pem
    client-key: /etc/client.key
    token: abc
    tokenFile: token
";

    fn fault(from: &str, to: &str) -> String {
        assert!(K3S.contains(from));
        let text = K3S.replace(from, to);
        format!("{:#}", kubeconfig(&text, Path::new("/k")).unwrap_err())
    }

    #[test]
    fn a_kubeconfig_is_read_as_kubectl_reads_it() {
        let place = kubeconfig(K3S, Path::new("/k")).unwrap();
        let file = |path: &str| Pem::File(path.into());
        assert_eq!(place.server, "https://127.0.0.1:6443");
        assert_eq!(place.ca, Some(Pem::Text("CA".into())));
        let identity = (file("/k/client.pem"), file("/etc/client.key"));
        assert_eq!(place.identity, Some(identity));
        assert_eq!(place.token, Some(file("/k/token")));
    }

    #[test]
    fn what_is_not_supported_names_its_key() {
        for (from, to, why) in [
            ("https://", "http://", "server: "),
            ("Q0E=", "'!'", "certificate-authority-data"),
            (
                "user: agent",
                "user: other",
                "users: there is none with the name \"other\"",
            ),
            ("token: abc", "exec: {command: x}", "exec: not supported"),
            (
                "    client-key: /etc/client.key\n",
                "",
                "client-certificate and client-key",
            ),
            (
                "server: https",
                "insecure-skip-tls-verify: true\n    server: https",
                "insecure-skip-tls-verify",
            ),
            (
                "current-context: default",
                "current-context: x",
                "contexts: there is none",
            ),
        ] {
            let found = fault(from, to);
            assert!(found.starts_with(why), "{found}");
        }
    }

    #[test]
    fn a_pod_finds_the_cluster_in_its_environment() {
        let set = |name: &str| match name {
            "KUBERNETES_SERVICE_HOST" => Some("fd00::1".to_owned()),
            _ => Some("443".to_owned()),
        };
        let place = in_cluster(set).unwrap();
        assert_eq!(place.server, "https://[fd00::1]:443");
        let error = in_cluster(|_| None).unwrap_err();
        assert!(error.to_string().starts_with("kubeconfig: missing"));
    }
}
