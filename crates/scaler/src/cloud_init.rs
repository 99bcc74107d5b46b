//! The start-up document of a new server: made by CLOUD_INIT_SCRIPT from the bootstrap variables, checked before it is used,
//! and never in an argument or a log.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Map, Value};
use tempfile::NamedTempFile;
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;
use voiceai_aws::{AwsAccess, secret_value};
use voiceai_runtime::Secret;

use crate::script::PATH;
use crate::store::ServerRow;

/// Longest run of the script.
const LIMIT: Duration = Duration::from_secs(60);
/// Most bytes of a document.
const BYTES_MAX: usize = 32 * 1024;
/// Most bytes that AWS takes as user data.
const BYTES_MAX_AWS: usize = 16 * 1024;

/// Top-level keys of cloud-config that cloud-init knows and a server of ours may need. cloud-init itself passes over an
/// unknown one in silence, so that a slip of the pen would be found on the server only.
const KEYS: [&str; 26] = [
    "apt",
    "bootcmd",
    "chpasswd",
    "disk_setup",
    "disable_root",
    "final_message",
    "fqdn",
    "fs_setup",
    "groups",
    "hostname",
    "locale",
    "manage_etc_hosts",
    "mounts",
    "ntp",
    "output",
    "package_reboot_if_required",
    "package_update",
    "package_upgrade",
    "packages",
    "power_state",
    "preserve_hostname",
    "runcmd",
    "ssh_authorized_keys",
    "ssh_pwauth",
    "users",
    "write_files",
];

/// What documents are made from.
#[derive(Debug, Clone)]
pub struct CloudInit {
    /// CLOUD_INIT_SCRIPT, given or its default.
    pub script: PathBuf,
    /// True when it was given.
    pub given: bool,
    /// The bootstrap variables, by name; a secret stays one.
    pub variables: Vec<(&'static str, Option<Secret>)>,
    /// How Secrets Manager is reached.
    pub platform: AwsAccess,
}

/// A document that could not be made. Holds nothing of it.
#[derive(Debug, thiserror::Error)]
pub enum CloudInitError {
    /// Variables without a value.
    #[error("bootstrap variables without a value: {}", .0.join(", "))]
    Missing(Vec<&'static str>),
    /// The group's secret.
    #[error("{0}")]
    Secret(String),
    /// The script.
    #[error("{0}")]
    Script(String),
    /// The document.
    #[error("the cloud-config is not usable: {0}")]
    Document(String),
    /// The file.
    #[error("write the cloud-config: {0}")]
    File(#[from] std::io::Error),
}

impl CloudInit {
    /// True when a server of this provider starts with a document.
    #[must_use]
    pub fn is_needed(&self, provider: &str) -> bool {
        matches!(provider, "hetzner" | "aws") || (self.given && provider != "local")
    }

    /// The group's own bootstrap values, from `secretsName`: the text values of a JSON object.
    ///
    /// # Errors
    /// When the secret cannot be read or is no such object.
    pub async fn secrets(&self, server: &ServerRow) -> Result<Vec<(String, Secret)>, CloudInitError> {
        let Some(name) = &server.spec.secrets_name else { return Ok(Vec::new()) };
        let wrong = |why: String| CloudInitError::Secret(why);
        let text = secret_value(&self.platform, name).await.map_err(|error| wrong(error.to_string()))?;
        let map: Map<String, Value> = serde_json::from_str(text.expose())
            .map_err(|_| wrong(format!("the secret `{name}` is not a JSON object")))?;
        map.into_iter()
            .map(|(key, value)| match value {
                Value::String(value) if is_variable(&key) => Ok((key, Secret::new(value))),
                _ => Err(wrong(format!(
                    "`{key}` in the secret `{name}` is no text under the name of a variable"
                ))),
            })
            .collect()
    }

    /// Makes the document and leaves it in a file that only this user may read, and that is gone with the value returned.
    ///
    /// # Errors
    /// Names the variable, the script's exit or what is wrong with the document; never quotes a value.
    pub async fn render(&self, server: &ServerRow) -> Result<NamedTempFile, CloudInitError> {
        let missing: Vec<_> =
            self.variables.iter().filter(|(_, value)| value.is_none()).map(|(name, _)| *name).collect();
        if !missing.is_empty() && matches!(server.provider.as_str(), "hetzner" | "aws") {
            return Err(CloudInitError::Missing(missing));
        }
        let secrets = self.secrets(server).await?;
        let document = self.run(server, &secrets).await?;
        let most = if server.provider == "aws" { BYTES_MAX_AWS } else { BYTES_MAX };
        check(&document, most).map_err(CloudInitError::Document)?;
        // Made with mode 0600.
        let mut file = NamedTempFile::with_prefix("voiceai-cloud-init-")?;
        file.write_all(&document)?;
        file.flush()?;
        Ok(file)
    }

    async fn run(&self, server: &ServerRow, secrets: &[(String, Secret)]) -> Result<Vec<u8>, CloudInitError> {
        let wrong = |why: String| CloudInitError::Script(format!("{}: {why}", self.script.display()));
        let mut command = Command::new(&self.script);
        command.env_clear().env("PATH", PATH);
        command.envs(secrets.iter().map(|(name, value)| (name, value.expose())));
        let set = self.variables.iter().filter_map(|(name, value)| Some((name, value.as_ref()?.expose())));
        command.envs(set);
        command.env("INSTANCE_NAME", &server.name).env("GROUP_NAME", &server.group_name);
        command.env("SERVICE", server.service.as_str());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child =
            command.process_group(0).kill_on_drop(true).spawn().map_err(|error| wrong(error.to_string()))?;
        let mut document = Vec::new();
        let ended = tokio::time::timeout(LIMIT, async {
            if let Some(stdout) = child.stdout.take() {
                stdout.take(BYTES_MAX as u64 + 1).read_to_end(&mut document).await?;
            }
            child.wait().await
        });
        match ended.await {
            Ok(Ok(status)) if status.success() => Ok(document),
            // A document that is too long breaks the script's pipe: its length is what is wrong.
            Ok(Ok(_)) if document.len() > BYTES_MAX => Ok(document),
            Ok(Ok(status)) => Err(wrong(format!("ended with {status}"))),
            Ok(Err(error)) => Err(wrong(error.to_string())),
            Err(_) => Err(wrong(format!("no end within {LIMIT:?}"))),
        }
    }
}

fn is_variable(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_uppercase() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
        && !crate::script::is_never_passed(name)
        && name != "PATH"
}

/// Our own checks of a cloud-config: the form, the known keys, their types as far as they can be seen, nothing unresolved.
fn check(document: &[u8], most: usize) -> Result<(), String> {
    if document.len() > most {
        return Err(format!("more than {most} bytes"));
    }
    let text = std::str::from_utf8(document).map_err(|_| "it is not UTF-8".to_owned())?;
    let body = text.strip_prefix("#cloud-config\n").ok_or("its first line is not `#cloud-config`")?;
    if let Some(at) = body.find("${") {
        let line = body[..at].matches('\n').count() + 2;
        return Err(format!("an unresolved variable in line {line}"));
    }
    if body.trim_start().starts_with('{') {
        return check_json(body);
    }
    check_lines(body)
}

/// A document written as JSON, which is YAML as well: every type can be seen.
fn check_json(body: &str) -> Result<(), String> {
    let map: Map<String, Value> =
        serde_json::from_str(body).map_err(|error| format!("line {} of it is not JSON", error.line() + 1))?;
    for (key, value) in &map {
        known(key)?;
        let fits = match key.as_str() {
            "runcmd"
            | "bootcmd"
            | "packages"
            | "write_files"
            | "ssh_authorized_keys"
            | "users"
            | "mounts" => value.is_array(),
            "package_update" | "package_upgrade" | "preserve_hostname" | "disable_root" => value.is_boolean(),
            "hostname" | "fqdn" | "final_message" | "locale" => value.is_string(),
            _ => true,
        };
        if !fits {
            return Err(format!("`{key}` has the wrong type"));
        }
    }
    for (index, file) in map.get("write_files").and_then(Value::as_array).into_iter().flatten().enumerate() {
        let text = |name: &str| file.get(name).is_none_or(Value::is_string);
        if !file.get("path").is_some_and(Value::is_string)
            || !text("content")
            || !text("permissions")
            || !text("encoding")
        {
            return Err(format!(
                "`write_files[{index}]` needs a path, and texts for content, permissions and encoding"
            ));
        }
    }
    Ok(())
}

/// A document written as YAML in blocks: the top level can be seen.
fn check_lines(body: &str) -> Result<(), String> {
    let mut any = false;
    for (number, line) in body.lines().enumerate() {
        let number = number + 2;
        if line.starts_with('\t') || line.trim_start_matches(' ').starts_with('\t') {
            return Err(format!("a tab before the text of line {number}"));
        }
        if line.trim().is_empty() || line.starts_with(['#', ' ', '-']) {
            continue;
        }
        let (key, _) = line.split_once(':').ok_or_else(|| format!("line {number} is no `key:`"))?;
        known(key)?;
        any = true;
    }
    if any { Ok(()) } else { Err("it says nothing".to_owned()) }
}

fn known(key: &str) -> Result<(), String> {
    if KEYS.contains(&key) {
        return Ok(());
    }
    let shown: String = key.chars().filter(char::is_ascii_graphic).take(40).collect();
    Err(format!("unknown top-level key `{shown}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cloud_init_would_pass_over_in_silence_is_refused() {
        let ok = |text: &str| check(text.as_bytes(), BYTES_MAX);
        assert_eq!(ok("#cloud-config\npackage_update: true\nruncmd:\n  - [ls]\n- x\n"), Ok(()));
        assert_eq!(
            ok("#cloud-config\n{\"runcmd\": [[\"ls\"]], \"write_files\": [{\"path\": \"/x\"}]}\n"),
            Ok(())
        );
        for (document, part) in [
            ("", "first line"),
            ("package_update: true", "first line"),
            ("#cloud-config\n", "says nothing"),
            ("#cloud-config\nwrite_filez: []\n", "`write_filez`"),
            ("#cloud-config\n{\"write_filez\": []}\n", "`write_filez`"),
            ("#cloud-config\n{\"runcmd\": 5}\n", "`runcmd`"),
            ("#cloud-config\n{\"write_files\": [{\"content\": \"x\"}]}\n", "write_files[0]"),
            (
                "#cloud-config\n{\"write_files\": [{\"path\": \"/x\", \"permissions\": 600}]}\n",
                "write_files[0]",
            ),
            ("#cloud-config\n{\"runcmd\": [\n", "not JSON"),
            ("#cloud-config\nhostname: x\nfqdn: ${NAME}\n", "line 3"),
            ("#cloud-config\n\truncmd: []\n", "tab"),
            ("#cloud-config\nruncmd\n", "line 2"),
        ] {
            let why = ok(document).expect_err(document);
            assert!(why.contains(part), "{document:?}: {why}");
        }
        let long = format!("#cloud-config\nhostname: {}\n", "x".repeat(BYTES_MAX_AWS));
        assert_eq!(check(long.as_bytes(), BYTES_MAX), Ok(()));
        assert!(check(long.as_bytes(), BYTES_MAX_AWS).is_err(), "AWS takes half");
    }

    #[test]
    fn only_plain_variables_come_out_of_a_secret() {
        assert!(is_variable("DB_PASSWORD_2"));
        for bad in ["", "lower", "2X", "A-B", "BASH_ENV", "LD_PRELOAD", "PATH", "A B"] {
            assert!(!is_variable(bad), "{bad}");
        }
    }
}
