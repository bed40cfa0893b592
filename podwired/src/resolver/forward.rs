//! Queries to other servers: sent in order, the next one where one fails, and each answer checked
//! to be one to the question.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout_at};

use super::answer::{HEADER, Transport};

/// For all servers together: less than the five seconds of clients, which would ask again.
const PATIENCE: Duration = Duration::from_millis(4500);

const SERVFAIL: u8 = 2;
const NOTIMP: u8 = 4;
const REFUSED: u8 = 5;

/// Asks the servers in turn. `query` is a whole message with one question.
///
/// Returns the first answer that is no failure, with the client's id. SERVFAIL if all fail.
pub async fn ask(servers: &[SocketAddr], query: &[u8], transport: Transport) -> Vec<u8> {
    let mut forwarded = query.to_vec();
    // Another id than the client's: it knows that one, and could answer itself.
    let id = random_id();
    set_id(&mut forwarded, id);
    let start = Instant::now();
    for (number, server) in (1..).zip(servers) {
        let share = PATIENCE * number / servers.len().max(1) as u32;
        let answered = match transport {
            Transport::Udp => timeout_at(start + share, over_udp(*server, &forwarded)).await,
            Transport::Tcp => timeout_at(start + share, over_tcp(*server, &forwarded)).await,
        };
        if let Ok(Ok(mut answer)) = answered
            && answer
                .get(3)
                .is_some_and(|it| ![SERVFAIL, NOTIMP, REFUSED].contains(&(it & 15)))
        {
            set_id(&mut answer, [query[0], query[1]]);
            return answer;
        }
    }
    failure(query, SERVFAIL)
}

/// The answer with an error code and no records.
pub fn failure(query: &[u8], code: u8) -> Vec<u8> {
    let mut answer = match question_end(query) {
        Some(end) => query[..end].to_vec(),
        None => query[..HEADER].to_vec(),
    };
    let questions = u8::from(answer.len() > HEADER);
    answer[2] = (answer[2] & 0x79) | 0x80;
    answer[3] = 0x80 | code;
    answer[4..HEADER].copy_from_slice(&[0, questions, 0, 0, 0, 0, 0, 0]);
    answer
}

/// A forwarded answer for a client that takes no more than `limit`: a longer one is truncated.
pub fn fit(answer: Vec<u8>, limit: u16) -> Vec<u8> {
    if answer.len() <= usize::from(limit) {
        return answer;
    }
    let code = answer[3] & 15;
    let mut short = failure(&answer, code);
    short[2] |= 2;
    short
}

/// A socket of its own for each question: its port is random, and the kernel drops what comes from
/// other addresses than the server's.
async fn over_udp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any = match server {
        SocketAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // What is no answer to this question may be an attempt to deceive: the real one may follow.
        if is_answer(query, &buffer[..length]) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn over_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    stream
        .write_all(&[&length.to_be_bytes()[..], query].concat())
        .await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    if is_answer(query, &answer) {
        Ok(answer)
    } else {
        Err(io::Error::other("not an answer to the question"))
    }
}

/// Whether a message is an answer to this query: the id, and the question but for the case of letters.
fn is_answer(query: &[u8], answer: &[u8]) -> bool {
    let (Some(end), Some(own)) = (question_end(query), question_end(answer)) else {
        return false;
    };
    let is_response = answer[2] & 0x80 != 0 && answer[2] & 0x78 == query[2] & 0x78;
    if end != own || answer[..2] != query[..2] || !is_response || answer[4..6] != [0, 1] {
        return false;
    }
    // The last four bytes are the type and the class.
    let name = HEADER..end - 4;
    answer[name.clone()].eq_ignore_ascii_case(&query[name])
        && answer[end - 4..end] == query[end - 4..end]
}

/// Where the first question ends. The first name of a message has no pointers.
fn question_end(message: &[u8]) -> Option<usize> {
    if message.len() < HEADER || message[4..6] == [0, 0] {
        return None;
    }
    let mut at = HEADER;
    loop {
        match *message.get(at)? {
            0 => break,
            length @ 1..=63 => at += usize::from(length) + 1,
            _ => return None,
        }
    }
    let end = at + 5;
    (end <= message.len()).then_some(end)
}

fn set_id(message: &mut [u8], id: [u8; 2]) {
    message[..2].copy_from_slice(&id);
}

fn random_id() -> [u8; 2] {
    use std::hash::{BuildHasher, Hasher, RandomState};
    thread_local! {
        static STATE: (RandomState, std::cell::Cell<u64>) = (RandomState::new(), Default::default());
    }
    // SipHash of a counter with keys of getrandom(2).
    STATE.with(|(keys, count)| {
        count.set(count.get().wrapping_add(1));
        let mut hasher = keys.build_hasher();
        hasher.write_u64(count.get());
        (hasher.finish() as u16).to_be_bytes()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query() -> Vec<u8> {
        let mut query = vec![7, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        query.extend(b"\x03www\x07example\x00\x00\x41\x00\x01");
        query
    }

    #[test]
    fn an_answer_has_the_id_the_question_and_the_bit_of_answers() {
        let query = query();
        let mut answer = query.clone();
        assert!(!is_answer(&query, &answer));
        answer[2] |= 0x80;
        answer[13] = b'W';
        assert!(is_answer(&query, &answer));
        // 0x61 differs from 0x41 only as letters do.
        for (place, value) in [(0, 8), (14, b'x'), (26, 0x61), (5, 2), (2, 0x91)] {
            let mut other = answer.clone();
            other[place] = value;
            assert!(!is_answer(&query, &other), "{place}");
        }
        for length in 0..answer.len() {
            assert!(!is_answer(&query, &answer[..length]));
        }
    }

    #[test]
    fn a_failure_repeats_the_question() {
        let failed = failure(&query(), SERVFAIL);
        assert_eq!(failed.len(), query().len());
        assert_eq!((failed[2], failed[3]), (0x81, 0x82));
        let long = [query(), vec![0; 600]].concat();
        let short = fit(long.clone(), 512);
        assert_eq!((short.len(), short[2] & 2), (query().len(), 2));
        assert_eq!(fit(long.clone(), 1232), long);
    }
}
