//! Keys of AWS, and of stores that speak its language, as they stand now.

use std::sync::Arc;

use voiceai_aws::{KeyPair, KeySource, ReadKeys};
use voiceai_config::Setting;
use voiceai_runtime::Secret;

use crate::{Secrets, Values};

/// The settings of an access key and of its secret key.
pub type KeySettings = (&'static Setting<Secret>, &'static Setting<Secret>);

#[derive(Debug)]
struct Rotating {
    secrets: Secrets,
    pairs: Vec<KeySettings>,
}

impl Rotating {
    fn pair(&self, values: &Values) -> Option<KeyPair> {
        self.pairs.iter().find_map(|(access, secret)| values.get(access).zip(values.get(secret)))
    }
}

impl KeySource for Rotating {
    fn keys(&self, refused: bool) -> ReadKeys<'_> {
        Box::pin(async move {
            let mut values = self.secrets.current();
            if refused && let Some(newer) = self.secrets.newer_than(&values).await {
                values = newer;
            }
            self.pair(&values)
        })
    }
}

impl Secrets {
    /// The keys of the first of `pairs` that has both, as they stand whenever they are asked for; after a refusal every layer is
    /// read again first.
    #[must_use]
    pub fn keys(&self, pairs: impl IntoIterator<Item = KeySettings>) -> Arc<dyn KeySource> {
        Arc::new(Rotating { secrets: self.clone(), pairs: pairs.into_iter().collect() })
    }
}
