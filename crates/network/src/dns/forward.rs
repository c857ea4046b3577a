//! Names outside the cluster: asked of the host's resolvers, kept for as long as their answers may be.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use hickory_proto::op::{Message, Query, ResponseCode};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// A resolver has this long to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// How many answers are kept.
const KEPT_MAX: usize = 4096;

/// However long an answer may be kept, it is not kept longer.
const KEPT_FOR_MAX: Duration = Duration::from_secs(300);

/// The resolvers that a `resolv.conf` names, as it is now: a host that moves to another network is followed.
#[derive(Debug)]
pub struct Resolvers {
    file: PathBuf,
    /// Addresses that this server itself answers on.
    own: Vec<IpAddr>,
    /// When the file was written that was read, and what it said.
    read: Mutex<(Option<SystemTime>, Vec<SocketAddr>)>,
}

impl Resolvers {
    /// Those of the file, without the addresses `own`, which this server itself answers on. No file: no resolver.
    pub fn of(file: PathBuf, own: Vec<IpAddr>) -> Self {
        Self { file, own, read: Mutex::default() }
    }

    fn list(&self) -> Vec<SocketAddr> {
        let written = std::fs::metadata(&self.file).and_then(|file| file.modified()).ok();
        let mut read = self.read.lock();
        if read.0 != written {
            let text = std::fs::read_to_string(&self.file).unwrap_or_default();
            *read = (written, upstreams(&text, &self.own));
        }
        read.1.clone()
    }
}

fn upstreams(resolv_conf: &str, own: &[IpAddr]) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    for line in resolv_conf.lines() {
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        // A zone id (`fe80::1%eth0`) cannot be parsed as an address and is of no use behind another interface.
        let Some(ip) = words.next().and_then(|word| word.parse::<IpAddr>().ok()) else { continue };
        if !own.contains(&ip) {
            found.push(SocketAddr::new(ip, 53));
        }
    }
    found
}

/// Asks resolvers, in order.
pub struct Forwarder {
    resolvers: Resolvers,
    kept: Mutex<HashMap<Query, Kept>>,
}

struct Kept {
    message: Message,
    since: Instant,
    lives: Duration,
}

impl Forwarder {
    /// A forwarder to these resolvers; none is fine and answers SERVFAIL.
    pub fn new(resolvers: Resolvers) -> Self {
        Self { resolvers, kept: Mutex::default() }
    }

    /// The answer to a question; `None` where no resolver answers.
    pub async fn ask(&self, question: &Query) -> Option<Message> {
        if let Some(known) = self.recall(question) {
            return Some(known);
        }
        for resolver in self.resolvers.list() {
            match timeout(PATIENCE, exchange(resolver, question)).await {
                Ok(Ok(message)) if message.metadata.response_code != ResponseCode::ServFail => {
                    self.keep(question, &message);
                    return Some(message);
                }
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::debug!(%resolver, %error, "resolver failed"),
                Err(_) => tracing::debug!(%resolver, "resolver does not answer"),
            }
        }
        None
    }

    fn recall(&self, question: &Query) -> Option<Message> {
        let mut kept = self.kept.lock();
        let known = kept.get(question)?;
        let age = known.since.elapsed();
        if age >= known.lives {
            kept.remove(question);
            return None;
        }
        let mut message = known.message.clone();
        let seconds = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        for record in message.answers.iter_mut().chain(&mut message.authorities) {
            record.ttl = record.ttl.saturating_sub(seconds);
        }
        Some(message)
    }

    fn keep(&self, question: &Query, message: &Message) {
        let records = message.answers.iter().chain(&message.authorities);
        let Some(ttl) = records.map(|record| record.ttl).min() else { return };
        let lives = Duration::from_secs(u64::from(ttl)).min(KEPT_FOR_MAX);
        let mut kept = self.kept.lock();
        if kept.len() >= KEPT_MAX {
            kept.retain(|_, known| known.since.elapsed() < known.lives);
        }
        if kept.len() < KEPT_MAX && !lives.is_zero() {
            kept.insert(question.clone(), Kept { message: message.clone(), since: Instant::now(), lives });
        }
    }
}

/// One question by UDP, and again by TCP where the answer does not fit.
async fn exchange(resolver: SocketAddr, question: &Query) -> std::io::Result<Message> {
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(question.clone());
    let bytes = query.to_vec().map_err(std::io::Error::other)?;
    let local: SocketAddr = if resolver.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    // A socket of its own for each question: its port is part of what an attacker would have to guess.
    let socket = UdpSocket::bind(local).await?;
    socket.connect(resolver).await?;
    socket.send(&bytes).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let read = socket.recv(&mut buffer).await?;
        match Message::from_vec(&buffer[..read]) {
            Ok(answer) if is_answer(&answer, &query) && !answer.metadata.truncation => return Ok(answer),
            Ok(answer) if is_answer(&answer, &query) => return exchange_tcp(resolver, &query, &bytes).await,
            // Somebody else's packet: the right one may follow.
            _ => {}
        }
    }
}

async fn exchange_tcp(resolver: SocketAddr, query: &Message, bytes: &[u8]) -> std::io::Result<Message> {
    let mut stream = TcpStream::connect(resolver).await?;
    let length = u16::try_from(bytes.len()).map_err(std::io::Error::other)?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(bytes).await?;
    let length = stream.read_u16().await?;
    let mut buffer = vec![0; usize::from(length)];
    stream.read_exact(&mut buffer).await?;
    let answer = Message::from_vec(&buffer).map_err(std::io::Error::other)?;
    if is_answer(&answer, query) {
        Ok(answer)
    } else {
        Err(std::io::Error::other("an answer to another question"))
    }
}

fn is_answer(answer: &Message, query: &Message) -> bool {
    answer.metadata.id == query.metadata.id && answer.queries == query.queries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_and_loops_avoided() {
        let text = "# x\nsearch a b\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\nnameserver 10.43.0.10\nnameserver ::1\n";
        let own = ["10.43.0.10".parse().unwrap()];
        let found: Vec<String> = upstreams(text, &own).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.53:53", "[::1]:53"]);
    }

    #[test]
    fn a_changed_file_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        let resolvers = Resolvers::of(file.clone(), Vec::new());
        assert!(resolvers.list().is_empty(), "no file, no resolver");
        for (written, address) in [(1, "192.0.2.1"), (2, "192.0.2.2")] {
            std::fs::write(&file, format!("nameserver {address}\n")).unwrap();
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(written);
            std::fs::File::options().write(true).open(&file).unwrap().set_modified(at).unwrap();
            assert_eq!(resolvers.list(), [SocketAddr::new(address.parse().unwrap(), 53)]);
        }
        std::fs::remove_file(&file).unwrap();
        assert!(resolvers.list().is_empty());
    }
}
