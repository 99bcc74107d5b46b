//! Exim of a test's own: the real mail server that clients are proved against.

use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::certificate::Certificate;
use crate::ports::Port;
use crate::process::{Process, Program};
use crate::wait::wait_for;

const PROGRAM: &str = "/usr/sbin/exim4";
/// The user that Debian's package brings; without it Exim keeps to the one who started it.
const USER: &str = "Debian-exim";
const START_WITHIN: Duration = Duration::from_secs(30);

/// A running Exim that takes mail over STARTTLS from those who log in as `mailer` with `exim-pass`. To `bounce@` it answers
/// 550 5.1.1, to `later@` 451 4.7.1, to `full@` 452 4.2.2; all other mail lies in a folder a moment later.
#[derive(Debug)]
pub struct Exim {
    process: Process,
    port: Port,
    certificate: Certificate,
    folder: TempDir,
}

impl Exim {
    /// The user that may log in.
    pub const USER: &'static str = "mailer";
    /// Its password.
    pub const PASSWORD: &'static str = "exim-pass";

    /// Starts it on a free port and waits until it listens.
    ///
    /// # Panics
    /// When it is not installed or does not start.
    pub async fn start() -> Self {
        assert!(Path::new(PROGRAM).exists(), "{PROGRAM} is missing: run scripts/install.sh test");
        let folder = tempfile::Builder::new().prefix("voiceai-exim-").tempdir().expect("a folder for exim");
        let everybody = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(folder.path(), everybody.clone()).expect("open exim's folder");
        for below in ["spool", "log", "mail"] {
            let path = folder.path().join(below);
            std::fs::create_dir(&path).expect("a folder");
            std::fs::set_permissions(&path, everybody.clone()).expect("open the folder");
        }
        let (port, certificate) = (Port::reserve(), Certificate::localhost());
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).expect("write");
            // A configuration that others may write is refused.
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("close the file");
            path
        };
        write("server.pem", &certificate.pem);
        write("server.key", &certificate.key_pem);
        let file = write("exim.conf", &configuration(folder.path(), port.number()));
        let mut program = Program::new(PROGRAM).args(["-bdf", "-C"]).arg(&file);
        if nix::unistd::geteuid().is_root() {
            program = program.wrapped_in(["runuser", "-u", USER, "--"]);
        }
        let exim = Self { process: program.start(), port, certificate, folder };
        let listens = async || TcpStream::connect((Ipv4Addr::LOCALHOST, exim.port.number())).await.is_ok();
        exim.process.wait_until(START_WITHIN, "exim listens", listens).await;
        exim
    }

    /// The port it listens on, at 127.0.0.1; its certificate is for that address and for `localhost`.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port.number()
    }

    /// Its certificate, with the authority's.
    #[must_use]
    pub const fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// The mails that it has delivered, each as it lies in the folder.
    #[must_use]
    pub fn delivered(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.folder.path().join("mail/new")) else { return Vec::new() };
        let mut paths: Vec<PathBuf> =
            entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
        paths.sort();
        paths.iter().filter_map(|path| std::fs::read_to_string(path).ok()).collect()
    }

    /// Waits until so many mails are delivered, and returns them.
    pub async fn wait_for(&self, count: usize) -> Vec<String> {
        wait_for(Duration::from_secs(20), format!("{count} mails delivered by exim"), async || {
            let mails = self.delivered();
            if mails.len() >= count { Ok(mails) } else { Err(format!("{} are; {}", mails.len(), self.log())) }
        })
        .await
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        ["mainlog", "rejectlog", "paniclog"]
            .iter()
            .filter_map(|name| std::fs::read_to_string(self.folder.path().join("log").join(name)).ok())
            .collect()
    }
}

fn configuration(folder: &Path, port: u16) -> String {
    let folder = folder.display();
    format!(
        "primary_hostname = localhost
spool_directory = {folder}/spool
log_file_path = {folder}/log/%slog
pid_file_path = {folder}/exim.pid
daemon_smtp_ports = {port}
local_interfaces = 127.0.0.1
tls_advertise_hosts = *
tls_certificate = {folder}/server.pem
tls_privatekey = {folder}/server.key
auth_advertise_hosts = ${{if eq{{$tls_in_cipher}}{{}}{{}}{{*}}}}
smtputf8_advertise_hosts = *
message_size_limit = 200K
acl_smtp_rcpt = acl_rcpt
acl_smtp_data = acl_data
begin acl
acl_rcpt:
  deny  message = 550 5.7.0 TLS is required
        condition = ${{if eq{{$tls_in_cipher}}{{}}{{yes}}{{no}}}}
  deny  local_parts = bounce
        message = 550 5.1.1 no such user
  defer local_parts = later
        message = 451 4.7.1 greylisted, try again in 300 seconds
  defer local_parts = full
        message = 452 4.2.2 mailbox is full
  accept authenticated = *
  deny  message = 550 5.7.1 relay denied
acl_data:
  accept
begin routers
all:
  driver = accept
  transport = file
begin transports
file:
  driver = appendfile
  maildir_format
  directory = {folder}/mail
  create_directory
  user = {USER}
begin retry
* * F,1h,1m
begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${{if and{{{{eq{{$auth2}}{{{user}}}}}{{eq{{$auth3}}{{{password}}}}}}}}}
  server_set_id = $auth2
login:
  driver = plaintext
  public_name = LOGIN
  server_prompts = Username:: : Password::
  server_condition = ${{if and{{{{eq{{$auth1}}{{{user}}}}}{{eq{{$auth2}}{{{password}}}}}}}}}
  server_set_id = $auth1
",
        user = Exim::USER,
        password = Exim::PASSWORD,
    )
}
