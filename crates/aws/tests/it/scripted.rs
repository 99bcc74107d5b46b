//! A server that answers as it is told.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// One request: `PUT /bucket/key?partNumber=1&uploadId=u`.
pub(crate) type Answers = dyn Fn(&str, usize) -> (u16, String) + Send + Sync;

/// A status that means: the text is the whole answer, from its status to where the connection breaks.
pub(crate) const BROKEN: u16 = 0;

/// A running server and what it was asked, in order.
pub(crate) struct Scripted {
    pub(crate) endpoint: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Scripted {
    /// Answers each request by `answers`, which is given the request line and how often it has come before.
    pub(crate) async fn start(
        answers: impl Fn(&str, usize) -> (u16, String) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let (asked, answers): (Arc<Mutex<Vec<String>>>, Arc<Answers>) = (Arc::default(), Arc::new(answers));
        let log = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&log), Arc::clone(&answers)));
            }
        });
        Self { endpoint, asked }
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no panic held it").clone()
    }
}

async fn serve(stream: TcpStream, log: Arc<Mutex<Vec<String>>>, answers: Arc<Answers>) {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut first, mut length) = (String::new(), 0);
        if stream.read_line(&mut first).await.unwrap_or(0) == 0 {
            return;
        }
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.unwrap_or(0) == 0 || line == "\r\n" {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().expect("a length");
            }
        }
        let mut body = vec![0; length];
        if stream.read_exact(&mut body).await.is_err() {
            return;
        }
        let request = first.rsplit_once(' ').map_or("", |(request, _)| request).to_owned();
        let before = {
            let mut log = log.lock().expect("no panic held it");
            log.push(request.clone());
            log.iter().filter(|known| **known == request).count() - 1
        };
        let (status, body) = answers(&request, before);
        // A scripted answer may promise more than it gives, as a connection that breaks does.
        if let Some((head, given)) = body.split_once("\n\n").filter(|_| status == BROKEN) {
            let answer =
                format!("HTTP/1.1 {head}\r\n\r\n{given}").replace('\n', "\r\n").replace("\r\r", "\r");
            let _ = stream.write_all(answer.as_bytes()).await;
            return;
        }
        let answer = format!(
            "HTTP/1.1 {status} Scripted\r\ncontent-type: application/xml\r\netag: \"e\"\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}
