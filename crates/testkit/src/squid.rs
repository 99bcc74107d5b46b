//! Squid of a test's own, with an access list.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::ports::Port;
use crate::process::{Process, Program};
use crate::wait::wait_for;

const PROGRAM: &str = "/usr/sbin/squid";
const START_WITHIN: Duration = Duration::from_secs(30);

/// What the proxy lets through.
#[derive(Debug, Clone, Default)]
pub struct SquidOptions {
    /// Ports of servers that may be reached; none other may. Empty: all.
    pub ports: Vec<u16>,
    /// User and password that it asks for.
    pub login: Option<(&'static str, &'static str)>,
}

/// A running proxy. Ended on drop.
#[derive(Debug)]
pub struct Squid {
    process: Process,
    port: Port,
    login: Option<(&'static str, &'static str)>,
    folder: TempDir,
}

impl Squid {
    /// Starts it on a free port and waits until it listens.
    ///
    /// # Panics
    /// When it is not installed or does not start.
    pub async fn start(options: SquidOptions) -> Self {
        assert!(Path::new(PROGRAM).exists(), "{PROGRAM} is missing: run scripts/install.sh test");
        let folder = tempfile::Builder::new().prefix("voiceai-squid-").tempdir().expect("a folder for squid");
        // Started by root it becomes a user of its own, who writes here too.
        let everybody = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(folder.path(), everybody).expect("open squid's folder");
        let port = Port::reserve();
        let file = folder.path().join("squid.conf");
        std::fs::write(&file, configuration(folder.path(), port.number(), &options))
            .expect("write squid.conf");
        let process = Program::new(PROGRAM).arg("-N").arg("-f").arg(&file).start();
        let squid = Self { process, port, login: options.login, folder };
        let listens = async || TcpStream::connect((Ipv4Addr::LOCALHOST, squid.port.number())).await.is_ok();
        squid.process.wait_until(START_WITHIN, "squid listens", listens).await;
        squid
    }

    /// `http://127.0.0.1:PORT`, with user and password where it asks for them.
    #[must_use]
    pub fn url(&self) -> String {
        let login = self.login.map_or_else(String::new, |(user, password)| format!("{user}:{password}@"));
        format!("http://{login}127.0.0.1:{}", self.port.number())
    }

    /// The port it listens on.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port.number()
    }

    /// SIGSTOP: it takes connections, by the kernel's hand, and answers nothing.
    pub fn pause(&self) {
        self.process.pause();
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.process.resume();
    }

    /// What it has written about requests so far: `TCP_TUNNEL/200`, `TCP_DENIED/403`, method and target of each.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("access.log")).unwrap_or_default()
    }

    /// Waits for a line of [`Squid::log`] that holds `text`; it is written when a request ends.
    pub async fn wait_for_log(&self, text: &str) -> String {
        wait_for(Duration::from_secs(20), format!("squid logs {text:?}"), async || {
            let log = self.log();
            let line = log.lines().find(|line| line.contains(text));
            line.map(str::to_owned).ok_or(log)
        })
        .await
    }
}

fn configuration(folder: &Path, port: u16, options: &SquidOptions) -> String {
    let folder = folder.display();
    let mut text = format!("http_port 127.0.0.1:{port}\n");
    let mut line = |words: &str| writeln!(text, "{words}").expect("a String can be written");
    if let Some((user, password)) = options.login {
        // A helper of the simplest kind: Squid hands it a login a line.
        let helper = format!("{folder}/login.sh");
        let script = format!(
            "#!/bin/sh\nwhile read -r login; do [ \"$login\" = '{user} {password}' ] && echo OK || echo ERR; done\n"
        );
        std::fs::write(&helper, script).expect("write squid's helper");
        std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755))
            .expect("open squid's helper");
        line(&format!("auth_param basic program {helper}"));
        line("auth_param basic children 1 startup=1");
        line("acl known proxy_auth REQUIRED");
        line("http_access deny !known");
    }
    if !options.ports.is_empty() {
        let ports: Vec<_> = options.ports.iter().map(u16::to_string).collect();
        line(&format!("acl allowed port {}", ports.join(" ")));
        line("http_access deny !allowed");
    }
    line("http_access allow localhost");
    line("http_access deny all");
    line("cache deny all");
    line(&format!("pid_filename {folder}/squid.pid"));
    line(&format!("access_log stdio:{folder}/access.log"));
    line(&format!("cache_log {folder}/cache.log"));
    line(&format!("coredump_dir {folder}"));
    line("netdb_filename none");
    line("pinger_enable off");
    line("shutdown_lifetime 1 seconds");
    line("connect_timeout 3 seconds");
    // Nobody answers there: names that are not in the hosts file cannot be resolved.
    line("dns_nameservers 127.0.0.1");
    line("dns_timeout 1 seconds");
    line("dns_retransmit_interval 1 seconds");
    line("visible_hostname squid.test");
    line("max_filedescriptors 1024");
    text
}
