use std::fmt;
use std::path::Path;

use voiceai_config::HostName;

use crate::failure::Failure;

/// Who an audit row names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor(String);

impl Actor {
    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a process can see of who started it.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// `VOICEAI_OPERATOR`.
    pub operator: Option<String>,
    /// `SUDO_USER`.
    pub sudo_user: Option<String>,
    /// The user of the operating system, by name where it has one.
    pub os_user: String,
    /// The host.
    pub host: String,
    /// True inside a container, where every user is the same one.
    pub in_container: bool,
}

impl Surroundings {
    /// Looks around.
    #[must_use]
    pub fn read() -> Self {
        let uid = nix::unistd::getuid();
        let user = nix::unistd::User::from_uid(uid).ok().flatten();
        let variable = |name| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        Self {
            operator: variable("VOICEAI_OPERATOR"),
            sudo_user: variable("SUDO_USER"),
            os_user: user.map_or_else(|| format!("uid {uid}"), |user| user.name),
            host: HostName::read().0,
            in_container: variable("container").is_some() || in_container(Path::new("/")),
        }
    }
}

/// The marks that Docker, Podman, Kubernetes and LXC leave under `root`.
fn in_container(root: &Path) -> bool {
    let marked = ["/.dockerenv", "/run/.containerenv"].iter().any(|mark| root.join(&mark[1..]).exists());
    let groups = std::fs::read_to_string(root.join("proc/1/cgroup")).unwrap_or_default();
    marked
        || groups.lines().any(|line| {
            ["docker", "kubepods", "containerd", "libpod", "lxc"].iter().any(|name| line.contains(name))
        })
}

const LONGEST: usize = 128;

/// Who is acting: `--as`, else `VOICEAI_OPERATOR`, else the `sudo` user or the user with the host.
///
/// # Errors
/// Usage (2) when the name given is empty, long or holds control characters; and in a container when neither of the first two
/// is given, since its user says nothing about who is acting.
pub fn actor(given: Option<&str>, around: &Surroundings) -> Result<Actor, Failure> {
    let named = given.map(|name| ("--as", name));
    if let Some((from, name)) = named.or(around.operator.as_deref().map(|name| ("VOICEAI_OPERATOR", name))) {
        return checked(from, name);
    }
    if around.in_container {
        return Err(Failure::usage(
            "actor_needed",
            "inside a container the audit trail cannot tell who is acting",
            "Pass --as NAME, or set VOICEAI_OPERATOR.",
        ));
    }
    let user = around.sudo_user.as_deref().unwrap_or(&around.os_user);
    Ok(Actor(format!("{user}@{}", around.host)))
}

fn checked(from: &str, name: &str) -> Result<Actor, Failure> {
    let name = name.trim();
    if name.is_empty() || name.chars().count() > LONGEST || name.chars().any(char::is_control) {
        return Err(Failure::usage(
            "actor_invalid",
            format!("{from} is no name"),
            format!("Give 1 to {LONGEST} characters without control characters."),
        ));
    }
    Ok(Actor(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn around(operator: Option<&str>, sudo: Option<&str>, in_container: bool) -> Surroundings {
        Surroundings {
            operator: operator.map(str::to_owned),
            sudo_user: sudo.map(str::to_owned),
            os_user: "root".into(),
            host: "bastion".into(),
            in_container,
        }
    }

    fn name(given: Option<&str>, around: &Surroundings) -> Result<String, &'static str> {
        actor(given, around).map(|actor| actor.to_string()).map_err(|failure| failure.code)
    }

    #[test]
    fn the_flag_comes_before_the_variable_before_the_user() {
        assert_eq!(name(Some("ada"), &around(Some("bob"), Some("cy"), false)).unwrap(), "ada");
        assert_eq!(name(None, &around(Some("bob"), Some("cy"), true)).unwrap(), "bob");
        assert_eq!(name(None, &around(None, Some("cy"), false)).unwrap(), "cy@bastion");
        assert_eq!(name(None, &around(None, None, false)).unwrap(), "root@bastion");
    }

    #[test]
    fn a_container_needs_a_name() {
        assert_eq!(name(None, &around(None, Some("cy"), true)), Err("actor_needed"));
        assert_eq!(name(Some("ada"), &around(None, None, true)).unwrap(), "ada");
        for wrong in ["", "  ", "a\nb", &"x".repeat(129)] {
            assert_eq!(name(Some(wrong), &around(None, None, false)), Err("actor_invalid"), "{wrong:?}");
        }
    }

    #[test]
    fn containers_are_known_by_their_marks() {
        let root = tempfile::tempdir().unwrap();
        assert!(!in_container(root.path()), "a plain host");
        std::fs::create_dir_all(root.path().join("proc/1")).unwrap();
        let cgroup = root.path().join("proc/1/cgroup");
        std::fs::write(&cgroup, "0::/init.scope\n").unwrap();
        assert!(!in_container(root.path()));
        std::fs::write(&cgroup, "0::/kubepods.slice/pod1\n").unwrap();
        assert!(in_container(root.path()));
        std::fs::remove_file(cgroup).unwrap();
        std::fs::write(root.path().join(".dockerenv"), "").unwrap();
        assert!(in_container(root.path()));
    }
}
