//! A real API server of Kubernetes, in a namespace of a test.

use std::path::PathBuf;

/// The token of the administrator.
pub const ADMIN: &str = "the-administrator";

/// An authority, the certificate of a server at `$ip`, a key for tokens of accounts, and the administrator's token.
pub const CERTIFICATES: &str = "
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -days 1 -subj /CN=ca 2>/dev/null
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout server.key -out server.csr -subj /CN=server 2>/dev/null
printf 'subjectAltName=IP:%s,IP:10.96.0.1\\n' $ip >server.ext
openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out server.pem -days 1 -extfile server.ext 2>/dev/null
openssl genrsa -out accounts.key 2048 2>/dev/null
echo the-administrator,admin,admin,system:masters >tokens";

/// The arguments of an API server at `ip`, with the files of [`CERTIFICATES`] in `dir`.
pub fn arguments(dir: &str, ip: &str, etcd: &str) -> Vec<String> {
    let file = |name: &str| format!("{dir}/{name}");
    vec![
        format!("--etcd-servers={etcd}"),
        format!("--bind-address={ip}"),
        format!("--tls-cert-file={}", file("server.pem")),
        format!("--tls-private-key-file={}", file("server.key")),
        format!("--token-auth-file={}", file("tokens")),
        "--authorization-mode=RBAC".to_owned(),
        // Nodes have no name in a DNS.
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
        format!("--service-account-issuer=https://{ip}:6443"),
        format!("--service-account-key-file={}", file("accounts.key")),
        format!(
            "--service-account-signing-key-file={}",
            file("accounts.key")
        ),
    ]
}

/// A program that `make test-kubernetes` has built, in `$KUBERNETES_PROGRAMS` or `target/kubernetes`.
pub fn program(name: &str) -> String {
    let given = std::env::var_os("KUBERNETES_PROGRAMS").map(PathBuf::from);
    let built = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/kubernetes");
    let program = given.unwrap_or_else(|| built.into()).join(name);
    assert!(
        program.exists(),
        "{}: make test-kubernetes builds it",
        program.display()
    );
    program.display().to_string()
}

/// A kubeconfig of the cluster at `server`, with the file of its authority and the key of a user's token.
pub fn kubeconfig(server: &str, ca: &str, token: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Config
current-context: here
contexts: [{{name: here, context: {{cluster: c, user: u}}}}]
clusters: [{{name: c, cluster: {{server: '{server}', certificate-authority: {ca}}}}}]
users: [{{name: u, user: {{{token}}}}}]
"
    )
}
