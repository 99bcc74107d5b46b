use fred::types::scripts::Script as FredScript;

/// A Lua script with a name for errors and traces. Loaded on first use, and again whenever the server forgot it.
#[derive(Clone, Debug)]
pub struct Script {
    name: &'static str,
    inner: FredScript,
}

impl Script {
    /// Wraps `source`, usually `include_str!("lua/<name>.lua")`.
    #[must_use]
    pub fn new(name: &'static str, source: &str) -> Self {
        Self { name, inner: FredScript::from_lua(source) }
    }

    /// The name given at construction.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) const fn inner(&self) -> &FredScript {
        &self.inner
    }
}
