//! Health and metrics over HTTP: `/healthz` (each role answers), `/readyz` (each does what it is
//! for) and `/metrics`.
//!
//! It is for one scraper on the node. A connection carries one request.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

use crate::conf::Endpoint;
use crate::control::{Control, listen};
use crate::metrics::Page;
use crate::roles::Ask;

/// The longest head of a request, in bytes.
const LONGEST: usize = 8 * 1024;
/// How long a client may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many clients are served at once.
const CLIENTS: usize = 16;

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// Serves until the task is dropped.
///
/// # Errors
/// The address cannot be listened at.
pub async fn open(endpoint: &Endpoint, control: Arc<Control>) -> Result<()> {
    let listener = match endpoint {
        Endpoint::Unix(path) => Listener::Unix(listen(path)?),
        Endpoint::Loopback(address) => {
            let bound = TcpListener::bind(address).await;
            Listener::Tcp(bound.with_context(|| format!("listen at {address}"))?)
        }
    };
    tokio::spawn(accept(listener, control));
    Ok(())
}

async fn accept(listener: Listener, control: Arc<Control>) {
    let clients = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let Ok(permit) = Arc::clone(&clients).acquire_owned().await else {
            return;
        };
        let control = Arc::clone(&control);
        match &listener {
            Listener::Unix(listener) => match listener.accept().await {
                Ok((stream, _)) => tokio::spawn(async move {
                    let _permit = permit;
                    serve(stream, &control).await;
                }),
                Err(_) => pause().await,
            },
            Listener::Tcp(listener) => match listener.accept().await {
                Ok((stream, _)) => tokio::spawn(async move {
                    let _permit = permit;
                    serve(stream, &control).await;
                }),
                Err(_) => pause().await,
            },
        };
    }
}

/// No descriptor is left: others end meanwhile.
async fn pause() -> tokio::task::JoinHandle<()> {
    tokio::time::sleep(Duration::from_millis(100)).await;
    tokio::spawn(async {})
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, control: &Control) {
    let served = async {
        let head = read_head(&mut stream).await?;
        let (status, kind, body) = match head {
            Some(head) => page(&head, control).await,
            None => ("400 Bad Request", TEXT, "not a request of HTTP\n".into()),
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.ok()?;
        stream.write_all(body.as_bytes()).await.ok()?;
        stream.shutdown().await.ok()
    };
    let _ = tokio::time::timeout(PATIENCE, served).await;
}

/// The first line of a request whose head is complete; within, `None` if it is none of HTTP.
async fn read_head<S: AsyncRead + Unpin>(stream: &mut S) -> Option<Option<String>> {
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !head.windows(4).any(|it| it == b"\r\n\r\n") {
        let length = stream.read(&mut buffer).await.ok()?;
        if length == 0 {
            return None;
        }
        head.extend_from_slice(buffer.get(..length)?);
        if head.len() > LONGEST {
            return Some(None);
        }
    }
    let head = String::from_utf8_lossy(&head);
    Some(head.lines().next().map(str::to_owned))
}

type Answer = (&'static str, &'static str, String);

const TEXT: &str = "text/plain; charset=utf-8";
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

async fn page(head: &str, control: &Control) -> Answer {
    let mut words = head.split(' ');
    let (method, path) = (words.next(), words.next().unwrap_or_default());
    if method != Some("GET") {
        return ("405 Method Not Allowed", TEXT, "only GET\n".into());
    }
    match path.split('?').next().unwrap_or_default() {
        "/healthz" => state(health(control).await),
        "/readyz" => state(readiness(control)),
        "/metrics" => ("200 OK", METRICS, metrics(control).await),
        _ => (
            "404 Not Found",
            TEXT,
            "/healthz, /readyz and /metrics are here\n".into(),
        ),
    }
}

fn state(faults: Vec<String>) -> Answer {
    match faults.is_empty() {
        true => ("200 OK", TEXT, "ok\n".into()),
        false => ("503 Service Unavailable", TEXT, faults.concat()),
    }
}

async fn health(control: &Control) -> Vec<String> {
    let mut faults = Vec::new();
    for role in &control.roles {
        if let Err(error) = role.ask(Ask::Status).await {
            faults.push(format!("{error}\n"));
        }
    }
    faults
}

fn readiness(control: &Control) -> Vec<String> {
    let mut faults = Vec::new();
    for role in &control.roles {
        if let Err(why) = &*role.readiness.borrow() {
            faults.push(format!("{}: {why}\n", role.name));
        }
    }
    faults
}

async fn metrics(control: &Control) -> String {
    let mut page = Page::default();
    page.begin("podwired_build_info", "gauge", "The version that runs.");
    page.sample(
        "podwired_build_info",
        &[("version", env!("CARGO_PKG_VERSION"))],
        1,
    );
    let help = "Whether a role does what it is for.";
    page.begin("podwired_role_ready", "gauge", help);
    for role in &control.roles {
        let ready = u8::from(role.readiness.borrow().is_ok());
        page.sample("podwired_role_ready", &[("role", role.name)], ready);
    }
    if let Some(bytes) = resident() {
        let help = "Resident memory size in bytes.";
        page.single("process_resident_memory_bytes", "gauge", help, bytes);
    }
    for role in &control.roles {
        if let Ok(own) = role.ask(Ask::Metrics).await {
            page.append(&own);
        }
    }
    page.text().to_owned()
}

fn resident() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * 4096)
}
