//! The start-up document of a new server: made by CLOUD_INIT_SCRIPT from the bootstrap variables, checked before it is used,
//! and never in an argument or a log.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value};
use tempfile::NamedTempFile;
use tokio_util::sync::CancellationToken;
use voiceai_aws::{AwsAccess, secret_value};
use voiceai_config::catalogue::platform::{AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY};
use voiceai_runtime::Secret;
use voiceai_service::Secrets;

use crate::script::{PATH, Run, ScriptRunner};
use crate::store::ServerRow;

/// Beginning of the documents' names.
const PREFIX: &str = "voiceai-cloud-init-";
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
    /// Values that changed since the start; each stands in for the variable of its name.
    pub rotating: Option<Secrets>,
}

/// A document that could not be made. Holds nothing of it.
#[derive(Debug, thiserror::Error)]
pub enum CloudInitError {
    /// Variables without a value.
    #[error("bootstrap variables without a value, in the settings and in the group's `secretsName`: {}", .0.join(", "))]
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
    /// The same with values as they stand whenever a document is made.
    #[must_use]
    pub fn kept_fresh(mut self, secrets: &Secrets) -> Self {
        self.platform.renewed = Some(secrets.keys([(&AWS_ACCESS_KEY_ID, &AWS_SECRET_ACCESS_KEY)]));
        self.rotating = Some(secrets.clone());
        self
    }

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

    /// The values of the group's secret, once it is known that nothing is missing: what the settings leave out may stand there.
    ///
    /// # Errors
    /// As [`CloudInit::secrets`]; for `hetzner` and `aws` also when a bootstrap variable has no value at all.
    pub async fn bootstrap(&self, server: &ServerRow) -> Result<Vec<(String, Secret)>, CloudInitError> {
        let secrets = self.secrets(server).await?;
        let in_secret =
            |name: &str| secrets.iter().any(|(key, value)| key == name && !value.expose().is_empty());
        let missing: Vec<_> = self
            .variables
            .iter()
            .filter(|(name, value)| value.is_none() && !in_secret(name))
            .map(|(name, _)| *name)
            .collect();
        if !missing.is_empty() && matches!(server.provider.as_str(), "hetzner" | "aws") {
            return Err(CloudInitError::Missing(missing));
        }
        Ok(secrets)
    }

    /// Makes the document and leaves it in a file that only this user may read, and that is gone with the value returned.
    ///
    /// # Errors
    /// Names the variable, the script's exit or what is wrong with the document; never quotes a value.
    pub async fn render(
        &self,
        server: &ServerRow,
        runner: &ScriptRunner,
        cancel: &CancellationToken,
    ) -> Result<NamedTempFile, CloudInitError> {
        let secrets = self.bootstrap(server).await?;
        let document = self.run(server, &secrets, runner, cancel).await?;
        let most = if server.provider == "aws" { BYTES_MAX_AWS } else { BYTES_MAX };
        check(&document, most).map_err(CloudInitError::Document)?;
        // Made with mode 0600.
        let mut file = NamedTempFile::with_prefix(PREFIX)?;
        file.write_all(&document)?;
        file.flush()?;
        Ok(file)
    }

    async fn run(
        &self,
        server: &ServerRow,
        secrets: &[(String, Secret)],
        runner: &ScriptRunner,
        cancel: &CancellationToken,
    ) -> Result<Vec<u8>, CloudInitError> {
        let wrong = |why: String| CloudInitError::Script(format!("{}: {why}", self.script.display()));
        let own = [
            ("INSTANCE_NAME", server.name.as_str()),
            ("GROUP_NAME", &server.group_name),
            ("SERVICE", server.service.as_str()),
        ];
        let now = self.rotating.as_ref().map(Secrets::current);
        let set: Vec<(&str, Secret)> = self
            .variables
            .iter()
            .filter_map(|(name, value)| {
                let newer = now.as_ref().and_then(|values| values.named(name));
                value.clone().map(|value| (*name, newer.unwrap_or(value)))
            })
            .collect();
        // Of two with one name the later one counts: a secret stands in for nothing that we say.
        let environment = [("PATH", PATH)]
            .into_iter()
            .chain(secrets.iter().map(|(name, value)| (name.as_str(), value.expose())))
            .chain(set.iter().map(|(name, value)| (*name, value.expose())))
            .chain(own)
            .map(|(name, value)| (name.to_owned(), value.into()))
            .collect();
        let run = Run { script: self.script.clone(), environment, server: server.name.clone(), limit: LIMIT };
        runner.document(run, BYTES_MAX, cancel.clone()).await.map_err(wrong)
    }
}

/// Removes the documents that a leader left behind that was killed in the middle of a call: they hold secrets. No call needs one
/// that is older than `age`.
pub fn sweep(age: Duration) {
    let old = |entry: &std::fs::DirEntry| {
        let file = entry.metadata()?;
        let ours = file.is_file() && entry.file_name().to_string_lossy().starts_with(PREFIX);
        std::io::Result::Ok(ours && file.modified()?.elapsed().is_ok_and(|its| its > age))
    };
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        if !old(&entry).unwrap_or(false) {
            continue;
        }
        let path = entry.path();
        match std::fs::remove_file(&path) {
            Ok(()) => tracing::info!(file = %path.display(), "start-up document of a killed leader removed"),
            // Another user's, or somebody else was faster.
            Err(error) => {
                tracing::debug!(file = %path.display(), %error, "old start-up document not removed");
            }
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
    let document: Value = yaml_serde::from_str(body).map_err(|error| match error.location() {
        // An error's text would quote the document, which holds secrets.
        Some(at) => format!("line {} of it is not YAML", at.line() + 1),
        None => "it is not YAML".to_owned(),
    })?;
    let map = document.as_object().filter(|map| !map.is_empty()).ok_or("it says nothing")?;
    for (key, value) in map {
        known(key)?;
        if let Some(wanted) = wrong_type(key, value) {
            return Err(format!("`{key}` is not {wanted}"));
        }
    }
    check_files(map)
}

/// What the value of a key has to be, where it is not: as cloud-init's own schema has it for the keys we know.
fn wrong_type(key: &str, value: &Value) -> Option<&'static str> {
    let texts = |value: &Value| value.as_array().is_some_and(|all| all.iter().all(Value::is_string));
    let command = |value: &Value| value.is_string() || value.is_null() || texts(value);
    let commands =
        |value: &Value| value.as_array().is_some_and(|all| !all.is_empty() && all.iter().all(command));
    let (fits, wanted) = match key {
        "runcmd" | "bootcmd" => (commands(value), "a list of commands, each a text or a list of texts"),
        "ssh_authorized_keys" => (texts(value) && value != &Value::Array(Vec::new()), "a list of texts"),
        "packages" => {
            let package = |one: &Value| one.is_string() || texts(one);
            let fits = value.as_array().is_some_and(|all| !all.is_empty() && all.iter().all(package));
            (fits, "a list of packages")
        }
        "write_files" | "mounts" | "fs_setup" => {
            (value.as_array().is_some_and(|all| !all.is_empty()), "a list that is not empty")
        }
        "users" => (value.is_array() || value.is_object() || value.is_string(), "a list of users"),
        "package_update"
        | "package_upgrade"
        | "package_reboot_if_required"
        | "preserve_hostname"
        | "disable_root" => (value.is_boolean(), "true or false"),
        "hostname" | "fqdn" | "final_message" => (value.is_string(), "a text"),
        "locale" => (value.is_string() || value.is_boolean(), "a text"),
        "apt" | "chpasswd" | "disk_setup" | "power_state" | "output" => (value.is_object(), "a map"),
        "ntp" => (value.is_object() || value.is_null(), "a map"),
        _ => (true, ""),
    };
    (!fits).then_some(wanted)
}

/// Each file has a path, and texts for what cloud-init takes as texts: permissions without quotes are a number.
fn check_files(map: &Map<String, Value>) -> Result<(), String> {
    const TEXTS: [&str; 5] = ["path", "content", "permissions", "encoding", "owner"];
    const OTHERS: [&str; 3] = ["append", "defer", "source"];
    for (index, file) in map.get("write_files").and_then(Value::as_array).into_iter().flatten().enumerate() {
        let of = |what: &str| format!("`write_files[{index}]` {what}");
        let file = file.as_object().ok_or_else(|| of("is not a map"))?;
        if !file.contains_key("path") {
            return Err(of("has no path"));
        }
        for (key, value) in file {
            if TEXTS.contains(&key.as_str()) {
                if !value.is_string() {
                    return Err(of(&format!("has something else than a text as {key}")));
                }
            } else if !OTHERS.contains(&key.as_str()) {
                return Err(of("has a key that cloud-init does not know"));
            }
        }
    }
    Ok(())
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

    fn ok(text: &str) -> Result<(), String> {
        check(text.as_bytes(), BYTES_MAX)
    }

    #[test]
    fn what_cloud_init_would_pass_over_in_silence_is_refused() {
        for (document, part) in [
            ("", "first line"),
            ("package_update: true", "first line"),
            ("#cloud-config\n", "says nothing"),
            ("#cloud-config\nwrite_filez: []\n", "`write_filez`"),
            ("#cloud-config\n{\"write_filez\": []}\n", "`write_filez`"),
            ("#cloud-config\nhostname: x\nfqdn: ${NAME}\n", "line 3"),
            ("#cloud-config\n{\"runcmd\": [\n", "not YAML"),
            ("#cloud-config\nhostname: secret: canary\n", "line 2"),
        ] {
            let why = ok(document).expect_err(document);
            assert!(why.contains(part) && !why.contains("canary"), "{document:?}: {why}");
        }
        let long = format!("#cloud-config\nhostname: {}\n", "x".repeat(BYTES_MAX_AWS));
        assert_eq!(check(long.as_bytes(), BYTES_MAX), Ok(()));
        assert!(check(long.as_bytes(), BYTES_MAX_AWS).is_err(), "AWS takes half");
    }

    /// Documents in both notations, and whether cloud-init itself calls them valid.
    const JUDGED: [(&str, bool); 26] = [
        ("package_update: true\nruncmd:\n  - [ls]\n  - ls -l\n", true),
        ("{\"runcmd\": [[\"ls\"]], \"write_files\": [{\"path\": \"/x\"}]}\n", true),
        ("hostname: x\npackages: [a, [b, '1.0']]\n", true),
        ("ssh_authorized_keys: [ssh-ed25519 AAAA]\nfinal_message: done\n", true),
        (
            "write_files:\n- {path: /x, content: y, permissions: '0600', encoding: b64, owner: root, append: true}\n",
            true,
        ),
        ("users: [default]\n", true),
        ("power_state: {mode: reboot}\n", true),
        ("bootcmd: [ls]\n", true),
        ("runcmd: 5\n", false),
        ("{\"runcmd\": 5}\n", false),
        ("runcmd: []\n", false),
        ("runcmd: [5]\n", false),
        ("bootcmd: ls\n", false),
        ("packages: bash\n", false),
        ("packages: []\n", false),
        ("package_update: 1\n", false),
        ("hostname: [x]\n", false),
        ("final_message: 7\n", false),
        ("ssh_authorized_keys: ssh-ed25519\n", false),
        ("write_files: {path: /x}\n", false),
        ("write_files: []\n", false),
        ("write_files:\n- content: x\n", false),
        ("write_files:\n- {path: /x, permissions: 600}\n", false),
        ("write_files:\n- {path: /x, contents: y}\n", false),
        ("{\"write_files\": [{\"path\": 7}]}\n", false),
        ("runcmd: [ls\n", false),
    ];

    #[test]
    fn a_document_is_valid_when_cloud_init_calls_it_so() {
        for (body, valid) in JUDGED {
            let said = ok(&format!("#cloud-config\n{body}"));
            assert_eq!(said.is_ok(), valid, "{body}: {said:?}");
        }
    }

    /// The table above, and what our own generator prints, held to `cloud-init schema`.
    #[test]
    fn cloud_init_itself_agrees() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let run = |command: &mut std::process::Command| {
            let output = command.output().expect("it runs");
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{command:?}: {told}");
            output.stdout
        };
        let tool =
            run(std::process::Command::new("bash").arg(root.join("scripts/stack/tool.sh")).arg("cloud-init"));
        let tool = String::from_utf8_lossy(&tool).trim().to_owned();
        let folder = tempfile::tempdir().expect("a folder");
        let mut documents: Vec<(String, bool)> =
            JUDGED.iter().map(|(body, valid)| (format!("#cloud-config\n{body}"), *valid)).collect();
        let generated = run(std::process::Command::new(root.join("scripts/generate-cloud-init.sh"))
            .env_clear()
            .env("PATH", PATH)
            .envs(
                ["INSTANCE_NAME", "SERVICE", "ENVIRONMENT", "NAMESPACE", "ECR_REGISTRY", "ECR_TAG"]
                    .map(|name| (name, "x")),
            )
            .envs(
                ["CONFIG_BUCKET", "CONFIG_REF", "AWS_REGION", "HTTP_PROXY"]
                    .map(|name| (name, "a'b$(id)\"`x`")),
            )
            .env("BASTION_PUBLIC_KEY", "ssh-ed25519 AAAA"));
        let generated = String::from_utf8(generated).expect("text");
        assert_eq!(ok(&generated), Ok(()));
        documents.push((generated, true));
        // One process judges them all: each start of cloud-init takes most of a second.
        let files: Vec<_> = documents
            .iter()
            .enumerate()
            .map(|(number, (document, _))| {
                let file = folder.path().join(number.to_string());
                std::fs::write(&file, document).expect("a file");
                file
            })
            .collect();
        let said = run(std::process::Command::new(tool).args(&files));
        let said = String::from_utf8_lossy(&said);
        let said: Vec<&str> = said.lines().collect();
        assert_eq!(said.len(), documents.len(), "{said:?}");
        for ((document, valid), said) in documents.iter().zip(said) {
            assert_eq!(said == "valid", *valid, "{document}: {said}");
        }
    }

    #[test]
    fn only_plain_variables_come_out_of_a_secret() {
        assert!(is_variable("DB_PASSWORD_2"));
        for bad in ["", "lower", "2X", "A-B", "BASH_ENV", "LD_PRELOAD", "PATH", "A B"] {
            assert!(!is_variable(bad), "{bad}");
        }
    }
}
