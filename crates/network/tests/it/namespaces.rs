//! A network namespace that lives as long as a thread of its own, which carries out whatever is to happen inside.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

/// Longest wait of a client; only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

type Job = Box<dyn FnOnce() + Send>;

pub(crate) struct Netns {
    path: PathBuf,
    jobs: mpsc::Sender<Job>,
}

impl Netns {
    pub(crate) fn new() -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, tid) = mpsc::channel();
        std::thread::spawn(move || {
            sys::ns::unshare(&[sys::ns::Namespace::Network]).unwrap();
            sys::ns::loopback_up().unwrap();
            ready.send(rustix::thread::gettid()).unwrap();
            // Ends when the last sender is gone, and the namespace with it.
            queue.into_iter().for_each(|job| job());
        });
        let tid = tid.recv().unwrap().as_raw_nonzero();
        let path = PathBuf::from(format!("/proc/{}/task/{tid}/ns/net", std::process::id()));
        Self { path, jobs }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` inside; a panic of it is one of the caller.
    pub(crate) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (sender, result) = mpsc::channel();
        let job = move || {
            let _ = sender.send(std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)));
        };
        self.jobs.send(Box::new(job)).unwrap();
        match result.recv().unwrap() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Serves TCP: tells each client `name` and the address that the client has for the server, then waits for the
    /// client to close.
    pub(crate) fn serve_tcp(&self, port: u16, name: &str) {
        let listener = self.run(move || TcpListener::bind(("0.0.0.0", port)).unwrap());
        let name = name.to_owned();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let name = name.clone();
                std::thread::spawn(move || greet(stream, &name));
            }
        });
    }

    /// Serves UDP: answers each packet with `name`.
    pub(crate) fn serve_udp(&self, port: u16, name: &str) {
        let socket = self.run(move || UdpSocket::bind(("0.0.0.0", port)).unwrap());
        let name = name.to_owned();
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(name.as_bytes(), from);
            }
        });
    }

    /// Connects, reads the greeting: who serves, and as whom this client appeared there.
    pub(crate) fn ask(&self, to: &str) -> Result<Greeting, std::io::Error> {
        let mut stream = self.connect(to)?;
        read_greeting(&mut stream)
    }

    pub(crate) fn connect(&self, to: &str) -> Result<TcpStream, std::io::Error> {
        let to: SocketAddr = to.parse().unwrap();
        let stream = self.run(move || TcpStream::connect_timeout(&to, PATIENCE))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// A connected UDP socket, which always has the same source port.
    pub(crate) fn udp(&self, to: &str) -> UdpSocket {
        let to: SocketAddr = to.parse().unwrap();
        self.run(move || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect(to).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Greeting {
    pub(crate) server: String,
    pub(crate) client: SocketAddr,
}

fn greet(mut stream: TcpStream, name: &str) {
    let Ok(client) = stream.peer_addr() else { return };
    let _ = stream.write_all(format!("{name} {client}\n").as_bytes());
    let _ = stream.read(&mut [0; 16]);
}

pub(crate) fn read_greeting(stream: &mut TcpStream) -> Result<Greeting, std::io::Error> {
    let mut line = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    let line = String::from_utf8(line).map_err(std::io::Error::other)?;
    let (server, client) = line.split_once(' ').ok_or(std::io::ErrorKind::UnexpectedEof)?;
    Ok(Greeting { server: server.into(), client: client.parse().map_err(std::io::Error::other)? })
}

pub(crate) fn udp_ask(socket: &UdpSocket) -> Result<String, std::io::Error> {
    socket.send(b"who")?;
    let mut buffer = [0; 64];
    let len = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..len]).into_owned())
}
