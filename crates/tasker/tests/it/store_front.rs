//! Stands before the real store and answers some requests as a store does on its worst days; all others pass.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// Which requests, by their first line, are answered with a status and a code of S3's.
pub(crate) type Fault = fn(&str) -> Option<(u16, &'static str)>;

/// The front of one store.
pub(crate) struct Front {
    /// Its address, in the place of the store's.
    pub(crate) endpoint: String,
    fault: Arc<Mutex<Option<Fault>>>,
}

impl Front {
    pub(crate) async fn of(store: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let store = store.trim_start_matches("http://").to_owned();
        let fault: Arc<Mutex<Option<Fault>>> = Arc::default();
        let faults = Arc::clone(&fault);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (store, faults) = (store.clone(), Arc::clone(&faults));
                tokio::spawn(async move { serve(client, &store, &faults).await });
            }
        });
        Self { endpoint, fault }
    }

    pub(crate) fn answer(&self, fault: Fault) {
        *self.fault.lock().unwrap() = Some(fault);
    }

    pub(crate) fn heal(&self) {
        *self.fault.lock().unwrap() = None;
    }
}

/// One request a connection.
async fn serve(client: TcpStream, store: &str, faults: &Mutex<Option<Fault>>) -> Option<()> {
    let mut client = BufReader::new(client);
    let (mut head, mut length) = (String::new(), 0_usize);
    loop {
        let mut line = String::new();
        client.read_line(&mut line).await.ok().filter(|read| *read > 0)?;
        if line == "\r\n" {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        head.push_str(&line);
    }
    let mut body = vec![0; length];
    client.read_exact(&mut body).await.ok()?;
    let first = head.lines().next().unwrap_or_default().to_owned();
    let fault = faults.lock().unwrap().and_then(|fault| fault(&first));
    if let Some((status, code)) = fault {
        let text = format!(
            "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>said the store</Message></Error>"
        );
        let answer = format!(
            "HTTP/1.1 {status} Told\r\ncontent-type: application/xml\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{text}",
            text.len()
        );
        client.write_all(answer.as_bytes()).await.ok()?;
        return client.shutdown().await.ok();
    }
    let mut store = TcpStream::connect(store).await.ok()?;
    store.write_all(format!("{head}connection: close\r\n\r\n").as_bytes()).await.ok()?;
    store.write_all(&body).await.ok()?;
    tokio::io::copy(&mut store, &mut client).await.ok()?;
    client.shutdown().await.ok()
}
