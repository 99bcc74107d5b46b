use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::rule::{Proxy, Purpose, Rule};

/// More than any proxy says; less than one that talks for ever.
const REPLY_LONGEST: usize = 8 * 1024;

/// A connection that could not be made. Says which of the two, the proxy or the server, did not do its part.
#[derive(Debug, thiserror::Error)]
pub enum EgressError {
    /// The server cannot be reached directly.
    #[error("connect to {target}")]
    Direct {
        /// `host:port`.
        target: String,
        /// Why.
        source: io::Error,
    },
    /// The proxy cannot be reached, or ended the conversation.
    #[error("connect to {target} through the proxy {proxy}")]
    Proxy {
        /// `host:port` behind the proxy.
        target: String,
        /// `host:port` of the proxy.
        proxy: String,
        /// Why.
        source: io::Error,
    },
    /// The proxy answered that it will not.
    #[error("the proxy {proxy} refused a tunnel to {target}: {answer}")]
    Refused {
        /// `host:port` behind the proxy.
        target: String,
        /// `host:port` of the proxy.
        proxy: String,
        /// Its status line, escaped.
        answer: String,
        /// Its status.
        status: u16,
    },
    /// Nothing came in time.
    #[error("connect to {target}{}: no answer within {limit:?}", through(.proxy.as_ref()))]
    TimedOut {
        /// `host:port`.
        target: String,
        /// `host:port` of the proxy, when one was asked.
        proxy: Option<String>,
        /// The limit that passed.
        limit: Duration,
    },
}

fn through(proxy: Option<&String>) -> String {
    proxy.map_or_else(String::new, |proxy| format!(" through the proxy {proxy}"))
}

/// Connects to `host:port` as the rule says: directly, or by CONNECT through the proxy. What comes back is the server's own
/// stream: not a byte of it was read.
///
/// # Errors
/// [`EgressError`], within `limit`.
pub async fn connect(
    rule: &Rule,
    purpose: Purpose,
    host: &str,
    port: u16,
    limit: Duration,
) -> Result<TcpStream, EgressError> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let target = if bare.contains(':') { format!("[{bare}]:{port}") } else { format!("{bare}:{port}") };
    let proxy = rule.proxy_for(purpose, host);
    let connected = tokio::time::timeout(limit, async {
        match proxy {
            Some(proxy) => through_proxy(proxy, &target).await,
            None => TcpStream::connect((bare, port))
                .await
                .map_err(|source| EgressError::Direct { target: target.clone(), source }),
        }
    });
    connected.await.unwrap_or_else(|_| {
        Err(EgressError::TimedOut { target: target.clone(), proxy: proxy.map(ToString::to_string), limit })
    })
}

async fn through_proxy(proxy: &Proxy, target: &str) -> Result<TcpStream, EgressError> {
    let failed = |source| EgressError::Proxy { target: target.to_owned(), proxy: proxy.to_string(), source };
    let mut stream = TcpStream::connect((proxy.host.as_str(), proxy.port)).await.map_err(failed)?;
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
    if let Some(authorization) = &proxy.authorization {
        request.push_str(&format!("Proxy-Authorization: {}\r\n", authorization.expose()));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    let reply = read_reply(&mut stream).await.map_err(failed)?;
    let line = reply.lines().next().unwrap_or_default();
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    if line.starts_with("HTTP/1.") && (200..300).contains(&status) {
        return Ok(stream);
    }
    let answer = line.chars().take(120).flat_map(char::escape_default).collect();
    Err(EgressError::Refused { target: target.to_owned(), proxy: proxy.to_string(), answer, status })
}

/// The proxy's reply, to the empty line and not a byte further: a mail server speaks first, and its greeting may stand in the
/// very same packet.
async fn read_reply(stream: &mut TcpStream) -> io::Result<String> {
    let mut reply = Vec::new();
    while !reply.ends_with(b"\r\n\r\n") {
        if reply.len() == REPLY_LONGEST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its reply is longer than 8 KiB"));
        }
        reply.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&reply).into_owned())
}
