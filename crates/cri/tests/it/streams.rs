//! Exec, attach and port-forward by the URLs that are given out.

use cri::proto::*;
use futures::{SinkExt as _, StreamExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tonic::Code;

use crate::world::{World, code, script, with};

/// Opens a URL as a WebSocket; the status of the answer where it is refused.
async fn open(url: &str, protocol: &str) -> Result<WebSocketStream<TcpStream>, u16> {
    let mut request = url.replacen("http://", "ws://", 1).into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
    let address = url["http://".len()..].split('/').next().unwrap().to_owned();
    let stream = TcpStream::connect(address).await.unwrap();
    match tokio_tungstenite::client_async(request, stream).await {
        Ok((socket, _)) => Ok(socket),
        Err(tokio_tungstenite::tungstenite::Error::Http(answer)) => Err(answer.status().as_u16()),
        Err(error) => panic!("{error}"),
    }
}

/// Everything that comes on a channel until the end, and the final status.
async fn read(socket: &mut WebSocketStream<TcpStream>, channel: u8) -> (String, serde_json::Value) {
    let (mut said, mut status) = (Vec::new(), Vec::new());
    while let Some(Ok(message)) = socket.next().await {
        let Message::Binary(bytes) = message else { continue };
        match bytes.first() {
            Some(number) if *number == channel => said.extend_from_slice(&bytes[1..]),
            Some(3) => status.extend_from_slice(&bytes[1..]),
            _ => {}
        }
    }
    (String::from_utf8(said).unwrap(), serde_json::from_slice(&status).unwrap_or_default())
}

#[tokio::test]
async fn urls_open_once_and_carry_streams_and_exit_codes() {
    with(async |mut world: World| {
        let pod = world.run_pod(world.pod("a")).await;
        let id = world.start(&pod, script("c", "sleep 1000")).await;
        let exec = ExecRequest {
            container_id: id.clone(),
            cmd: ["sh", "-c", "cat; exit 4"].map(str::to_owned).to_vec(),
            stdin: true,
            stdout: true,
            stderr: true,
            tty: false,
        };
        let url = world.runtime.exec(exec.clone()).await.unwrap().into_inner().url;
        assert!(url.starts_with("http://127.0.0.1:"), "{url}");
        let mut socket = open(&url, "v5.channel.k8s.io").await.unwrap();
        socket.send(Message::binary(b"\x00hello".to_vec())).await.unwrap();
        socket.send(Message::binary(vec![255, 0])).await.unwrap();
        let (said, status) = read(&mut socket, 1).await;
        assert_eq!(said, "hello");
        assert_eq!(status["details"]["causes"][0]["message"], "4");
        assert_eq!(open(&url, "v5.channel.k8s.io").await.err(), Some(404), "a token is of use once");
        let guessed = format!("{}/x", url.rsplit_once('/').unwrap().0);
        assert_eq!(open(&guessed, "v5.channel.k8s.io").await.err(), Some(404));

        let none = ExecRequest { stdin: false, stdout: false, stderr: false, ..exec.clone() };
        assert_eq!(code(world.runtime.exec(none).await), Code::InvalidArgument);
        let both = ExecRequest { tty: true, ..exec.clone() };
        assert_eq!(code(world.runtime.exec(both).await), Code::InvalidArgument);
        let gone = ExecRequest { container_id: "none".into(), ..exec };
        assert_eq!(code(world.runtime.exec(gone).await), Code::NotFound);
        world
    })
    .await;
}

#[tokio::test]
async fn a_container_is_attached_to() {
    with(async |mut world: World| {
        let pod = world.run_pod(world.pod("a")).await;
        let reads =
            ContainerConfig { stdin: true, stdin_once: true, ..script("c", "read line; echo got $line") };
        let id = world.start(&pod, reads).await;
        let attach = AttachRequest { container_id: id, stdin: true, stdout: true, stderr: true, tty: false };
        let url = world.runtime.attach(attach).await.unwrap().into_inner().url;
        let mut socket = open(&url, "v4.channel.k8s.io").await.unwrap();
        socket.send(Message::binary(b"\x00word\n".to_vec())).await.unwrap();
        let (said, status) = read(&mut socket, 1).await;
        assert_eq!((said.as_str(), status["status"].as_str()), ("got word\n", Some("Success")));
        world
    })
    .await;
}

#[tokio::test]
async fn ports_of_a_sandbox_are_forwarded() {
    with(async |mut world: World| {
        let pod = world.run_pod(world.pod("a")).await;
        let serves = "echo ready; nc -l -p 8000 -e echo served";
        let id = world.start(&pod, script("c", serves)).await;
        // Until it listens: the port in hexadecimal, in state LISTEN.
        world
            .exec(&id, "until grep -q ':1F40 .* 0A ' /proc/net/tcp /proc/net/tcp6; do sleep 0.05; done")
            .await;
        let forward = PortForwardRequest { pod_sandbox_id: pod, port: vec![8000] };
        let url = world.runtime.port_forward(forward).await.unwrap().into_inner().url;
        let mut socket = open(&url, "v4.channel.k8s.io").await.unwrap();
        let mut said = Vec::new();
        while !said.ends_with(b"served\n") {
            let Some(Ok(Message::Binary(bytes))) = socket.next().await else { break };
            // The first message of a channel names its port.
            if bytes[0] == 0 && bytes[1..] != 8000_u16.to_le_bytes() {
                said.extend_from_slice(&bytes[1..]);
            }
        }
        assert_eq!(said, b"served\n");
        let unknown = PortForwardRequest { pod_sandbox_id: "none".into(), port: vec![] };
        assert_eq!(code(world.runtime.port_forward(unknown).await), Code::NotFound);
        world
    })
    .await;
}
