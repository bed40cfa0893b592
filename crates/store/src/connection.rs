//! Connections over HTTP/2, with or without TLS.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use http::uri::Uri;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

/// Connecting takes a round trip or two. A server that needs longer is as good as dead.
const PATIENCE: Duration = Duration::from_secs(2);
/// A connection that is silently dead is noticed after both. etcd closes connections that ask
/// more often than every five seconds.
const PINGS: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));
/// What may be in flight, so that a list is not sent in portions of 64 KiB with a round trip for
/// each.
const WINDOW: u32 = 4 << 20;

/// What TLS takes, as PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tls {
    /// The authorities of the server's certificate.
    pub ca: Option<String>,
    /// The client's certificate and its private key.
    pub identity: Option<(String, String)>,
}

/// How a connection to `url` is made.
///
/// # Errors
/// No URL, or certificates that cannot be read.
pub(crate) fn endpoint(url: &str, tls: Tls) -> Result<Endpoint> {
    let (interval, answer) = PINGS;
    let endpoint = Endpoint::from_shared(url.to_owned())?
        .connect_timeout(PATIENCE)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .http2_keep_alive_interval(interval)
        .keep_alive_timeout(answer)
        .keep_alive_while_idle(true);
    if !is_tls(url) {
        return Ok(endpoint);
    }
    let mut config = ClientTlsConfig::new();
    // Of an IPv6 address, the certificate has what is between the brackets.
    let uri: Uri = url.parse()?;
    if let Some(host) = uri.host() {
        config = config.domain_name(host.trim_start_matches('[').trim_end_matches(']'));
    }
    if let Some(ca) = tls.ca {
        config = config.ca_certificate(Certificate::from_pem(ca));
    }
    if let Some((certificate, key)) = tls.identity {
        config = config.identity(Identity::from_pem(certificate, key));
    }
    Ok(endpoint.tls_config(config)?)
}

pub(crate) fn is_tls(url: &str) -> bool {
    url.starts_with("https://")
}

/// The file that is the value of `key`.
pub(crate) fn read(key: &str, file: &Path) -> Result<String> {
    let read = std::fs::read_to_string(file);
    read.with_context(|| format!("{key}: read {}", file.display()))
}

/// An error with all its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
