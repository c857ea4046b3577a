//! A load of HTTP requests from a host, as real clients make them: a steady number a second, each on a connection of
//! its own, and clients that keep their connection and ask again and again.
//!
//! What counts as a failure: a connection that is refused, reset or not answered in time, an answer that is not
//! `200 OK` or is cut short. A client that keeps its connection takes its orderly end as every HTTP client does, by
//! connecting anew: an end between requests, an announced one (`Connection: close`), and one that crosses the next
//! request on its way and comes before any byte of an answer (RFC 9112, section 9.3.1). A reset is a failure there, too.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::host::Host;

/// A request that takes longer has failed; only something broken takes so long.
const PATIENCE: Duration = Duration::from_secs(60);
/// How many requests on connections of their own may be under way at once.
const AT_ONCE: usize = 16;
/// An answer that is longer is none of ours.
const ANSWER_MAX: usize = 64 * 1024;
/// How many failures are kept with their causes; all are counted.
const FAILURES_KEPT: usize = 50;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct LoadConfig {
    /// Who is asked, in turn.
    pub targets: Vec<SocketAddr>,
    /// Requests a second on connections of their own.
    pub per_second: u32,
    /// How many clients keep their connection.
    pub kept: u32,
    /// How long such a client pauses between an answer and its next request.
    pub pause: Duration,
}

/// A request that failed.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Since the beginning of the load.
    pub at: Duration,
    /// Whether the connection was one that is kept.
    pub kept: bool,
    /// Who was asked.
    pub target: SocketAddr,
    /// What happened.
    pub cause: String,
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct LoadReport {
    /// How long it took.
    pub took: Duration,
    /// Answered requests on connections of their own.
    pub fresh: u64,
    /// Answered requests on connections that are kept.
    pub kept: u64,
    /// Kept connections that ended in order and were made anew.
    pub reconnects: u64,
    /// Those of them whose end crossed a request, which was sent again. Only the end of who answers may cause it: see
    /// [`Load::every_client_asked`].
    pub crossed: u64,
    /// How often each answer was given, by its body.
    pub answers: BTreeMap<String, u64>,
    /// How many requests failed.
    pub failed: u64,
    /// The first of them.
    pub failures: Vec<Failure>,
}

impl LoadReport {
    /// The numbers without what they are about.
    fn counts(&self) -> Self {
        let Self { took, fresh, kept, reconnects, crossed, failed, .. } = *self;
        Self { took, fresh, kept, reconnects, crossed, failed, ..Self::default() }
    }

    /// Answered requests a second on connections of their own, over the whole time.
    pub fn rate(&self) -> f64 {
        #[allow(clippy::cast_precision_loss, reason = "a rate for people")]
        let fresh = self.fresh as f64;
        fresh / self.took.as_secs_f64().max(f64::EPSILON)
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { took, fresh, kept, reconnects, crossed, answers, failed, failures } = self;
        writeln!(
            out,
            "{fresh} requests in {took:.1?}, {:.0} a second; {kept} on kept connections,",
            self.rate()
        )?;
        writeln!(
            out,
            "{reconnects} of which were made anew ({crossed} crossed a request); answers {answers:?}"
        )?;
        writeln!(out, "{failed} failed")?;
        for Failure { at, kept, target, cause } in failures {
            let kind = if *kept { "kept" } else { "new" };
            writeln!(out, "  at {at:.3?}, {target}, {kind} connection: {cause}")?;
        }
        Ok(())
    }
}

/// A running load.
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    config: LoadConfig,
    start: Instant,
    state: Mutex<State>,
    /// Told of the end, and now and then of progress.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    stopped: bool,
    tickets: u32,
    /// How often each client that keeps its connection has asked, whatever came of it.
    asked: Vec<u64>,
    report: LoadReport,
}

impl Load {
    /// Starts asking from the network of `host`.
    pub fn start(host: &Host, config: LoadConfig) -> Result<Self> {
        if config.targets.is_empty() || config.per_second == 0 {
            bail!("a load needs a target and a rate");
        }
        let network = format!("/proc/{}/ns/net", host.pid());
        let kept = config.kept;
        let state = State { asked: vec![0; usize::try_from(kept)?], ..State::default() };
        let shared = Arc::new(Shared {
            config,
            start: Instant::now(),
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let mut load = Self { shared, threads: Vec::new() };
        for number in 0..AT_ONCE + usize::try_from(kept)? {
            let network = File::open(&network).with_context(|| format!("open {network}"))?;
            let shared = load.shared.clone();
            let work = move || {
                if let Err(error) = sys::ns::join(network, sys::ns::Namespace::Network) {
                    shared.fail(
                        true,
                        shared.config.targets[0],
                        &format!("no way into the host's network: {error}"),
                    );
                } else if number < AT_ONCE {
                    shared.ask_fresh();
                } else {
                    shared.ask_kept(number - AT_ONCE);
                }
            };
            let thread = std::thread::Builder::new().name(format!("load-{number}")).stack_size(256 * 1024);
            load.threads.push(thread.spawn(work).context("start a client")?);
        }
        Ok(load)
    }

    /// Returns when `count` more requests on connections of their own were answered or failed.
    pub fn more(&self, count: u64) {
        let done = |state: &State| state.report.fresh + state.report.failed;
        let until = done(&self.shared.lock()) + count;
        self.wait_while(Duration::MAX, |state| done(state) < until);
    }

    /// Returns when every client that keeps its connection has asked anew and knows what came of it: whatever happened
    /// to their connections before the call is then in the report.
    pub fn every_client_asked(&self) {
        // What is under way was asked before.
        let until: Vec<u64> = self.shared.lock().asked.iter().map(|asked| asked + 2).collect();
        self.wait_while(Duration::MAX, |state| state.asked.iter().zip(&until).any(|(now, then)| now < then));
    }

    /// Goes on until that many requests a second were answered on connections of their own, over the whole time: who
    /// falls behind the schedule catches up with it. Gives the rate, which is smaller only if `patience` ran out.
    pub fn until_rate(&self, per_second: f64, patience: Duration) -> f64 {
        let start = self.shared.start;
        let rate = |state: &State| LoadReport { took: start.elapsed(), ..state.report.counts() }.rate();
        self.wait_while(patience, |state| rate(state) < per_second);
        rate(&self.shared.lock())
    }

    /// Waits as long as it is so, looking again at each answer.
    fn wait_while(&self, patience: Duration, mut is_so: impl FnMut(&State) -> bool) {
        let begun = Instant::now();
        let mut state = self.shared.lock();
        while is_so(&state) {
            let left = patience.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return;
            }
            // The longest wait that the system's condition variable takes for certain.
            let left = left.min(Duration::from_secs(3600));
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What came of it so far.
    pub fn report(&self) -> LoadReport {
        LoadReport { took: self.shared.start.elapsed(), ..self.shared.lock().report.clone() }
    }

    /// Stops asking and waits for the answers that are under way.
    pub fn stop(mut self) -> LoadReport {
        let took = self.shared.start.elapsed();
        self.end();
        LoadReport { took, ..self.shared.lock().report.clone() }
    }

    fn end(&mut self) {
        self.shared.lock().stopped = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, kept: bool, target: SocketAddr, cause: &str) {
        let report = &mut self.lock().report;
        report.failed += 1;
        if report.failures.len() < FAILURES_KEPT {
            let cause = cause.to_owned();
            report.failures.push(Failure { at: self.start.elapsed(), kept, target, cause });
        }
        self.changed.notify_all();
    }

    fn answered(&self, kept: bool, body: String) {
        let report = &mut self.lock().report;
        *if kept { &mut report.kept } else { &mut report.fresh } += 1;
        if report.answers.len() < FAILURES_KEPT || report.answers.contains_key(&body) {
            *report.answers.entry(body).or_default() += 1;
        }
        self.changed.notify_all();
    }

    /// Waits until `due`; whether the load goes on.
    fn wait_until(&self, due: Instant) -> bool {
        let mut state = self.lock();
        loop {
            let left = due.saturating_duration_since(Instant::now());
            if state.stopped || left.is_zero() {
                return !state.stopped;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// One of those who ask on new connections: each takes the next moment of the schedule that nobody has taken.
    fn ask_fresh(&self) {
        loop {
            let ticket = {
                let mut state = self.lock();
                state.tickets += 1;
                state.tickets
            };
            if !self.wait_until(self.start + Duration::from_secs(1) * ticket / self.config.per_second) {
                return;
            }
            let target = self.target(ticket as usize);
            // Every other client says that it will not ask again, so that the server ends the connection; the others
            // end it themselves.
            let asked = connect(target).and_then(|mut stream| ask(&mut stream, target, ticket % 2 == 0));
            match asked {
                Ok(Answer { body, .. }) => self.answered(false, body),
                Err(error) => self.fail(false, target, &error.to_string()),
            }
        }
    }

    fn ask_kept(&self, number: usize) {
        let target = self.target(number);
        let mut held: Option<TcpStream> = None;
        let mut due = self.start;
        while self.wait_until(due) {
            due = Instant::now() + self.config.pause;
            self.asks(number);
            let reused = match held.take().map(still_open) {
                None => None,
                Some(Ok(Some(stream))) => Some(stream),
                Some(Ok(None)) => {
                    self.lock().report.reconnects += 1;
                    None
                }
                Some(Err(error)) => {
                    self.fail(true, target, &error.to_string());
                    None
                }
            };
            let was_used = reused.is_some();
            let asked = match reused.map_or_else(|| connect(target), Ok) {
                Ok(mut stream) => ask(&mut stream, target, false).map(|answer| (stream, answer)),
                Err(error) => Err(error),
            };
            match asked {
                Ok((stream, Answer { body, ends })) => {
                    self.answered(true, body);
                    if ends {
                        self.lock().report.reconnects += 1;
                    } else {
                        held = Some(stream);
                    }
                }
                // No byte of an answer came: the server had ended the connection before it saw the request.
                Err(error) if was_used && error.kind() == ErrorKind::UnexpectedEof => {
                    let report = &mut self.lock().report;
                    report.reconnects += 1;
                    report.crossed += 1;
                    due = Instant::now();
                }
                Err(error) => self.fail(true, target, &error.to_string()),
            }
        }
    }

    /// A client that keeps its connection begins to ask.
    fn asks(&self, number: usize) {
        self.lock().asked[number] += 1;
        self.changed.notify_all();
    }

    fn target(&self, number: usize) -> SocketAddr {
        self.config.targets[number % self.config.targets.len()]
    }
}

struct Answer {
    body: String,
    /// Whether the server ends the connection after it.
    ends: bool,
}

fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, PATIENCE).map_err(|error| doing("connect", &error))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A connection on which nothing is asked, unless the server has ended it in order.
fn still_open(stream: TcpStream) -> io::Result<Option<TcpStream>> {
    stream.set_nonblocking(true)?;
    match stream.peek(&mut [0]) {
        Ok(0) => Ok(None),
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            stream.set_nonblocking(false)?;
            Ok(Some(stream))
        }
        Ok(_) => Err(io::Error::other("the server sent what nobody asked for")),
        Err(error) => Err(doing("keep an idle connection", &error)),
    }
}

/// Asks for `/` and reads the whole answer. [`ErrorKind::UnexpectedEof`] only where the connection ended in order
/// before a byte came.
fn ask(stream: &mut TcpStream, target: SocketAddr, last: bool) -> io::Result<Answer> {
    let connection = if last { "close" } else { "keep-alive" };
    let request = format!("GET / HTTP/1.1\r\nHost: {target}\r\nConnection: {connection}\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(|error| doing("send the request", &error))?;
    let mut held = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        if let Some(answer) = parse(&held)? {
            return Ok(answer);
        }
        match stream.read(&mut buffer).map_err(|error| doing("read the answer", &error))? {
            0 if held.is_empty() => {
                return Err(io::Error::new(ErrorKind::UnexpectedEof, "ended without an answer"));
            }
            0 => return Err(io::Error::other(format!("the answer is cut short after {} bytes", held.len()))),
            len if held.len() + len > ANSWER_MAX => return Err(io::Error::other("the answer is too long")),
            len => held.extend_from_slice(&buffer[..len]),
        }
    }
}

fn doing(what: &str, error: &io::Error) -> io::Error {
    io::Error::other(format!("{what}: {error}"))
}

/// An answer of a known length, if all of it is there.
fn parse(held: &[u8]) -> io::Result<Option<Answer>> {
    let text = String::from_utf8_lossy(held);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return Ok(None) };
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        return Err(io::Error::other(format!("answered {status:?}")));
    }
    let header = |name: &str| {
        let mut fields = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
        fields.find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    };
    let length = header("content-length").and_then(|length| length.parse::<usize>().ok());
    let Some(length) = length else { return Err(io::Error::other("the answer does not tell its length")) };
    if body.len() < length {
        return Ok(None);
    }
    let ends = header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    Ok(Some(Answer { body: body[..length].trim().to_owned(), ends }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_whole_or_not_at_all() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nv1\n";
        let answer = parse(whole).unwrap().unwrap();
        assert_eq!((answer.body.as_str(), answer.ends), ("v1", true));
        for cut in 0..whole.len() {
            assert!(parse(&whole[..cut]).unwrap().is_none(), "{cut}");
        }
        assert!(parse(b"HTTP/1.1 502 Bad Gateway\r\n\r\n").is_err());
        assert!(parse(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
