//! Servers that answer with their name and the source that they see, and clients.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use netns::NetNs;

const TIMEOUT: Duration = Duration::from_secs(2);

/// Answers each connection to `at` in `ns` with `name` and the client's address.
/// Ends with the test program.
pub fn serve_tcp(ns: &NetNs, at: &str, name: &'static str) {
    let listener = ns.enter(|| TcpListener::bind(at)).unwrap().unwrap();
    thread::spawn(move || {
        while let Ok((mut stream, client)) = listener.accept() {
            let _ = write!(stream, "{name} {}", client.ip());
        }
    });
}

/// The same for datagrams.
pub fn serve_udp(ns: &NetNs, at: &str, name: &'static str) {
    let socket = ns.enter(|| UdpSocket::bind(at)).unwrap().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 16];
        while let Ok((_, client)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(format!("{name} {}", client.ip()).as_bytes(), client);
        }
    });
}

/// What a server at `to` tells a client in `ns`.
pub fn ask_tcp(ns: &NetNs, to: &str) -> io::Result<String> {
    let to: SocketAddr = to.parse().unwrap();
    ns.enter(|| {
        let mut stream = TcpStream::connect_timeout(&to, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })
    .unwrap()
}

/// A client of UDP that keeps its source port.
pub struct UdpClient(UdpSocket);

impl UdpClient {
    /// In `ns`, to `to`.
    pub fn new(ns: &NetNs, to: &str) -> Self {
        let any = if to.starts_with('[') {
            "[::]:0"
        } else {
            "0.0.0.0:0"
        };
        let socket = ns.enter(|| UdpSocket::bind(any)).unwrap().unwrap();
        socket.connect(to).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        Self(socket)
    }

    /// The server's answer to one of up to four datagrams: one may be lost or late.
    pub fn ask(&self) -> io::Result<String> {
        // An answer that was too late is none to this question.
        self.0.set_nonblocking(true)?;
        while self.0.recv(&mut [0; 128]).is_ok() {}
        self.0.set_nonblocking(false)?;
        for _ in 1..4 {
            match self.ask_once() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                answer => return answer,
            }
        }
        self.ask_once()
    }

    fn ask_once(&self) -> io::Result<String> {
        self.0.send(b"?")?;
        let mut buffer = [0; 128];
        let length = self.0.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }
}

/// What a server at `to` tells a client in `ns`, over UDP.
pub fn ask_udp(ns: &NetNs, to: &str) -> io::Result<String> {
    UdpClient::new(ns, to).ask()
}
