//! The metadata service of a cloud's instance, version 2, as a process in a container meets it.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::http::{Request, answer, read};

const TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";
const TOKEN: &str = "x-aws-ec2-metadata-token";
const ROLES: &str = "/latest/meta-data/iam/security-credentials/";

/// An instance.
#[derive(Debug, Clone)]
pub struct ImdsOptions {
    /// How many hops its answer with a token survives. A container is one hop further away than its host: with 1 the answer
    /// never arrives, and the connection stays open and silent.
    pub hop_limit: u32,
    /// Name of the instance's role; `None`: it has none.
    pub role: Option<&'static str>,
    /// The role's access key.
    pub access_key: &'static str,
    /// The role's secret key.
    pub secret_key: &'static str,
}

impl Default for ImdsOptions {
    fn default() -> Self {
        Self { hop_limit: 2, role: Some("ops"), access_key: "ASIATESTROLE", secret_key: "secret-of-the-role" }
    }
}

/// A running metadata service; ends on drop. Requests without a token, as version 1 made them, are refused and counted.
#[derive(Debug)]
pub struct Imds {
    endpoint: String,
    asked: Arc<Mutex<Vec<String>>>,
    serving: JoinHandle<()>,
}

impl Imds {
    /// Starts it on a free port of 127.0.0.1.
    pub async fn start(options: ImdsOptions) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind the metadata service");
        let endpoint = format!("http://{}", listener.local_addr().expect("its address"));
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = Arc::clone(&asked);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, options.clone(), Arc::clone(&log)));
            }
        });
        Self { endpoint, asked, serving }
    }

    /// What `AWS_EC2_METADATA_SERVICE_ENDPOINT` is set to.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Every request so far: method, path and the status it got; 0 for none.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Imds {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(stream: TcpStream, options: ImdsOptions, log: Arc<Mutex<Vec<String>>>) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read(&mut stream).await {
        let said = decide(&request, &options);
        let status = said.as_ref().map_or(0, |(status, ..)| *status);
        let line = format!("{} {} {status}", request.method, request.target);
        log.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        let Some((status, header, body)) = said else {
            // Dropped on the way: nothing ever comes.
            std::future::pending::<()>().await;
            return;
        };
        let headers: Vec<(&str, &str)> = header.iter().map(|value| (TTL, value.as_str())).collect();
        if answer(&mut stream, status, &headers, body.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Status, time to live of the token, and text; `None`: the answer is lost on the way.
fn decide(request: &Request, options: &ImdsOptions) -> Option<(u16, Option<String>, String)> {
    let plain = |status: u16, text: &str| Some((status, None, text.to_owned()));
    if request.header("x-forwarded-for").is_some() {
        // The real one refuses whatever came through a proxy.
        return plain(403, "");
    }
    if (request.method.as_str(), request.target.as_str()) == ("PUT", "/latest/api/token") {
        let Some(ttl) = request.header(TTL).filter(|ttl| ttl.parse::<u32>().is_ok()) else {
            return plain(400, "");
        };
        return (options.hop_limit > 1)
            .then(|| (200, Some(ttl.to_owned()), "token-of-the-double".to_owned()));
    }
    if request.header(TOKEN) != Some("token-of-the-double") {
        return plain(401, "");
    }
    match (request.target.as_str(), options.role) {
        ("/latest/meta-data/placement/region", _) => plain(200, "eu-central-1"),
        (path, Some(role)) if path.trim_end_matches('/') == ROLES.trim_end_matches('/') => plain(200, role),
        (path, Some(role)) if path.strip_prefix(ROLES) == Some(role) => {
            let (access, secret) = (options.access_key, options.secret_key);
            let text = format!(
                r#"{{"Code":"Success","LastUpdated":"2026-01-01T00:00:00Z","Type":"AWS-HMAC","AccessKeyId":"{access}","SecretAccessKey":"{secret}","Token":"session","Expiration":"2099-01-01T00:00:00Z"}}"#
            );
            plain(200, &text)
        }
        _ => plain(404, ""),
    }
}
