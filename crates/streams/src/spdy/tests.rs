//! Sessions against a client that speaks the protocol over a pipe.

use std::collections::HashSet;

use engine_api::{Exit, ProcessIo};
use futures::{FutureExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, DuplexStream};

use super::*;

/// A client: sends frames, collects what comes per stream.
pub(crate) struct Client {
    io: DuplexStream,
    encoder: Encoder,
    /// The data of each stream so far.
    data: HashMap<u32, Vec<u8>>,
    /// The streams that the server has ended at once.
    pub(crate) resets: HashSet<u32>,
}

impl Client {
    pub(crate) async fn open(&mut self, id: u32, headers: &[(&str, &str)]) {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let block = self.encoder.encode(&headers).unwrap();
        self.send(Frame::SynStream { id, fin: false, block }).await;
    }

    async fn send(&mut self, frame: Frame) {
        self.io.write_all(&frame.encode()).await.unwrap();
    }

    /// Reads on until what has come is enough.
    pub(crate) async fn until(&mut self, enough: impl Fn(&Self) -> bool) {
        while !enough(self) {
            match FrameReader::new(&mut self.io).next().await.unwrap().unwrap() {
                Frame::Reset { id, .. } => drop(self.resets.insert(id)),
                Frame::Data { id, bytes, .. } => {
                    self.data.entry(id).or_default().extend_from_slice(&bytes);
                }
                _ => {}
            }
        }
    }

    /// What has come on a stream so far.
    pub(crate) fn told(&self, id: u32) -> String {
        String::from_utf8_lossy(self.data.get(&id).map(Vec::as_slice).unwrap_or_default()).into_owned()
    }

    /// Everything until the server closes: the data of each stream.
    async fn rest(self) -> HashMap<u32, Vec<u8>> {
        let mut reader = FrameReader::new(self.io);
        let mut data: HashMap<u32, Vec<u8>> = HashMap::new();
        while let Ok(Some(frame)) = reader.next().await {
            if let Frame::Data { id, bytes, .. } = frame {
                data.entry(id).or_default().extend_from_slice(&bytes);
            }
        }
        data
    }
}

pub(crate) fn client() -> (Client, DuplexStream) {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    (Client { io: ours, encoder: Encoder::new(), data: HashMap::new(), resets: HashSet::new() }, theirs)
}

/// A process that says its input again in capitals and ends with code 3.
fn shouting() -> Process {
    let (stdin, mut input) = tokio::io::duplex(1024);
    let (exit, receiver) = tokio::sync::oneshot::channel();
    let stdout = async move {
        let mut text = String::new();
        input.read_to_string(&mut text).await.unwrap();
        let finished_at = jiff::Timestamp::UNIX_EPOCH;
        exit.send(Ok(Exit { code: 3, signal: 0, oom_killed: false, finished_at, message: String::new() }))
            .unwrap();
        Ok(Bytes::from(text.to_uppercase()))
    };
    let (resize, _) = mpsc::channel(1);
    let io = ProcessIo {
        stdin: Some(Box::pin(stdin)),
        stdout: Some(futures::stream::once(stdout).boxed()),
        stderr: None,
        resize,
    };
    Process { io, exit: receiver, pid: 1 }
}

#[tokio::test]
async fn a_command_gets_its_streams_and_its_exit_code() {
    let (mut client, server) = client();
    let wanted = Wanted { stdin: true, stdout: true, stderr: false, tty: false, ..Wanted::default() };
    let start = Box::new(|| async { Ok(shouting()) }.boxed());
    let session = command_session(server, "v4.channel.k8s.io", wanted, start);
    let talk = async {
        client.open(1, &[("streamtype", "error")]).await;
        client.open(3, &[("streamtype", "stdin")]).await;
        client.open(5, &[("streamtype", "stdout")]).await;
        client.send(Frame::Data { id: 3, fin: false, bytes: "hel".into() }).await;
        client.send(Frame::Data { id: 3, fin: true, bytes: "lo".into() }).await;
        client.rest().await
    };
    let (data, ()) = tokio::join!(talk, session);
    assert_eq!(data[&5], b"HELLO");
    let status: serde_json::Value = serde_json::from_slice(&data[&1]).unwrap();
    assert_eq!(status["details"]["causes"][0]["message"], "3");
}

#[tokio::test]
async fn streams_are_answered_and_pings_come_back() {
    let (mut client, server) = client();
    let (session, mut incoming) = Session::start(server);
    let talk = async {
        client.open(1, &[("streamtype", "data"), ("port", "80"), ("requestID", "0")]).await;
        client.send(Frame::Ping(9)).await;
        let stream = incoming.recv().await.unwrap();
        assert_eq!((stream.header("port"), stream.header("requestid")), (Some("80"), Some("0")));
        stream.out.send("x".into()).await.unwrap();
        let mut reader = FrameReader::new(&mut client.io);
        let mut frames = Vec::new();
        for _ in 0..3 {
            frames.push(reader.next().await.unwrap().unwrap());
        }
        assert!(matches!(frames[0], Frame::SynReply { id: 1, .. }));
        assert!(frames.contains(&Frame::Ping(9)));
        assert!(frames.contains(&Frame::Data { id: 1, fin: false, bytes: "x".into() }));
        drop(client);
    };
    tokio::join!(session, talk);
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_session() {
    let (mut client, server) = client();
    let wanted = Wanted { stdin: false, stdout: true, stderr: false, tty: false, ..Wanted::default() };
    let never = Box::new(|| async { futures::future::pending().await }.boxed());
    let session = command_session(server, "v4.channel.k8s.io", wanted, never);
    let talk = async {
        client.open(1, &[("streamtype", "error")]).await;
        drop(client);
    };
    tokio::join!(session, talk);
}
