//! Values that change while the service runs: every layer of settings is read again now and then, and at once where a login
//! with an old value was refused.
//!
//! A reading that fails, or that misses or spoils a value, changes nothing: the last good value stays in use, and a warning
//! says how old it is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge};
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use voiceai_cli::Failure;
use voiceai_config::{Resolved, Setting};
use voiceai_runtime::{Pulse, Secret, random_unit};

/// Longest time for reading every layer once.
const READ_MAX: Duration = Duration::from_secs(60);
/// Least time between two readings, however often a login is refused: a wrong password must not become a storm of calls.
const APART: Duration = Duration::from_secs(5);
/// A failed reading is repeated after this part of the interval.
const AFTER_FAILURE: u32 = 4;

/// The values of every setting that rotates, all read at the same moment: a user and a password that were changed together
/// are never mixed.
#[derive(Clone, Debug)]
pub struct Values {
    values: BTreeMap<&'static str, Secret>,
    revision: u64,
}

impl Values {
    /// The setting's value; `None` where no layer gives one, or where the setting does not rotate.
    #[must_use]
    pub fn get<T>(&self, setting: &'static Setting<T>) -> Option<Secret> {
        self.named(setting.declaration.name)
    }

    /// The same by the variable's name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<Secret> {
        self.values.get(name).cloned()
    }

    /// Goes up by one with each change.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        self.revision
    }
}

type Reading = Pin<Box<dyn Future<Output = Result<Resolved, Failure>> + Send>>;

/// Where a service's rotating values come from. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Secrets(Arc<Inner>);

struct Inner {
    read: Box<dyn Fn() -> Reading + Send + Sync>,
    values: watch::Sender<Arc<Values>>,
    /// Held while layers are read: two readings never run at the same time.
    book: Mutex<Book>,
    readings: Counter<u64>,
    age: Gauge<f64>,
}

/// What is remembered from one reading to the next.
struct Book {
    resolved: Resolved,
    begun: Instant,
    good: Instant,
    /// Each value's own last good reading: one may be missing while the others are fine.
    seen: BTreeMap<&'static str, Instant>,
    told: BTreeSet<&'static str>,
    failing: bool,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets").field("values", &self.current()).finish_non_exhaustive()
    }
}

impl Secrets {
    /// Begins with `resolved`, which was just read; `read` reads every layer anew.
    pub fn new<F, Fut>(resolved: Resolved, read: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Resolved, Failure>> + Send + 'static,
    {
        let now = Instant::now();
        let values: BTreeMap<_, _> =
            resolved.rotating().into_iter().filter_map(|one| Some((one.name, one.value?))).collect();
        let seen = values.keys().map(|name| (*name, now)).collect();
        let meter = opentelemetry::global::meter("voiceai");
        let book = Book { resolved, begun: now, good: now, seen, told: BTreeSet::new(), failing: false };
        Self(Arc::new(Inner {
            read: Box::new(move || Box::pin(read())),
            values: watch::Sender::new(Arc::new(Values { values, revision: 0 })),
            book: Mutex::new(book),
            readings: meter
                .u64_counter("voiceai.settings.readings")
                .with_description("How often every layer of settings was read again, by outcome")
                .build(),
            age: meter
                .f64_gauge("voiceai.settings.age")
                .with_unit("s")
                .with_description("Time since every layer of settings was last read whole")
                .build(),
        }))
    }

    /// The values in use now.
    #[must_use]
    pub fn current(&self) -> Arc<Values> {
        self.0.values.borrow().clone()
    }

    /// Tells of every change. What it holds is always usable: a failed reading never replaces it.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<Values>> {
        self.0.values.subscribe()
    }

    /// For whoever was refused with `used`: newer values, read at once where there are none yet, or as soon as the last reading
    /// is five seconds old: a value may change right after it. `None` when nothing newer is to be had, so that the refusal
    /// stands. Several who ask at the same time share one reading.
    pub async fn newer_than(&self, used: &Values) -> Option<Arc<Values>> {
        let newer = || Some(self.current()).filter(|values| values.revision > used.revision);
        if let Some(values) = newer() {
            return Some(values);
        }
        let asked = Instant::now();
        let mut book = self.0.book.lock().await;
        // Somebody else may have read while this one waited.
        if newer().is_none() && book.begun < asked {
            // A refusal may come again and again.
            tokio::time::sleep_until(book.begun + APART).await;
            self.0.read_again(&mut book).await;
        }
        drop(book);
        newer()
    }

    /// Reads again every `interval`, give or take a tenth, until `stopping`.
    pub(crate) async fn keep_fresh(self, interval: Duration, stopping: CancellationToken, pulse: Pulse) {
        let mut wait = interval;
        loop {
            pulse.beat();
            let jittered = wait.mul_f64(0.9 + 0.2 * random_unit());
            tokio::select! {
                () = stopping.cancelled() => return,
                () = tokio::time::sleep(jittered) => {}
            }
            pulse.beat();
            let read = async {
                let mut book = self.0.book.lock().await;
                self.0.read_again(&mut book).await
            };
            let good = tokio::select! {
                () = stopping.cancelled() => return,
                good = read => good,
            };
            wait = if good {
                interval
            } else {
                (interval / AFTER_FAILURE).max(interval.min(Duration::from_secs(1)))
            };
        }
    }

    /// Longest silence of [`Secrets::keep_fresh`].
    pub(crate) fn bound(interval: Duration) -> Duration {
        interval.mul_f64(1.1) + READ_MAX * 2
    }
}

impl Inner {
    /// One reading of everything; true when every layer could be read.
    async fn read_again(&self, book: &mut Book) -> bool {
        book.begun = Instant::now();
        let read = tokio::time::timeout(READ_MAX, (self.read)()).await;
        let read = read.unwrap_or_else(|_| {
            let text = format!("no answer within {READ_MAX:?}");
            Err(Failure::unreachable("settings_unreadable", text, "Check the route to AWS and HTTPS_PROXY."))
        });
        let outcome = if read.is_ok() { "read" } else { "failed" };
        self.readings.add(1, &[KeyValue::new("outcome", outcome)]);
        let good = match read {
            Ok(resolved) => {
                self.take(book, resolved);
                true
            }
            Err(failure) => {
                book.failing = true;
                tracing::warn!(
                    age_seconds = book.good.elapsed().as_secs(),
                    remedy = failure.remedy,
                    "settings could not be read again, the last good values stay in use: {}",
                    failure.message
                );
                false
            }
        };
        self.age.record(book.good.elapsed().as_secs_f64(), &[]);
        good
    }

    fn take(&self, book: &mut Book, resolved: Resolved) {
        let now = Instant::now();
        let before = self.values.borrow().clone();
        let mut values = before.values.clone();
        for one in resolved.rotating() {
            let kept = before.values.get(one.name);
            let age = book.seen.get(one.name).map_or(0, |seen| seen.elapsed().as_secs());
            match (one.value, one.wrong) {
                (Some(_), Some(wrong)) => tracing::warn!(
                    setting = one.name,
                    age_seconds = age,
                    "its new value cannot be used ({wrong}), the last good one stays in use"
                ),
                (None, _) if kept.is_some() => tracing::warn!(
                    setting = one.name,
                    age_seconds = age,
                    "it is gone from its store, the last good value stays in use"
                ),
                (None, _) => {}
                (Some(value), None) => {
                    book.seen.insert(one.name, now);
                    if kept.map(Secret::expose) != Some(value.expose()) {
                        tracing::info!(setting = one.name, "picked up a new value");
                        values.insert(one.name, value);
                    }
                }
            }
        }
        self.tell_the_rest(book, &resolved);
        if book.failing {
            tracing::info!("settings are read again");
        }
        (book.failing, book.good) = (false, now);
        let changed = values.iter().any(|(name, value)| {
            before.values.get(name).is_none_or(|earlier| earlier.expose() != value.expose())
        });
        if changed {
            let revision = before.revision + 1;
            self.values.send_replace(Arc::new(Values { values, revision }));
        }
    }

    /// What changed and is not picked up: an operator who waits for it should know.
    fn tell_the_rest(&self, book: &mut Book, resolved: &Resolved) {
        let changed: BTreeSet<_> = resolved.changed_since(&book.resolved).into_iter().collect();
        if !changed.is_empty() && changed != book.told {
            let names: Vec<_> = changed.iter().copied().collect();
            tracing::info!(settings = names.join(","), "changed in their store, and taken at the next start");
        }
        book.told = changed;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex as Plain;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use voiceai_config::Binary;
    use voiceai_config::catalogue::{scaler, transport};

    use super::*;

    type Pairs = Vec<(&'static str, &'static str)>;

    fn tasker(pairs: &Pairs) -> Resolved {
        Resolved::from_pairs(Binary::Tasker, pairs.iter().copied())
    }

    /// Layers whose content a test changes; `None` cannot be read.
    #[derive(Clone, Default)]
    struct Stores(Arc<(Plain<Option<Pairs>>, AtomicUsize)>);

    impl Stores {
        fn hold(&self, pairs: Option<Pairs>) {
            *self.0.0.lock().expect("no panic held it") = pairs;
        }

        fn reads(&self) -> usize {
            self.0.1.load(Ordering::SeqCst)
        }

        fn secrets(&self, first: &Pairs) -> Secrets {
            self.hold(Some(first.clone()));
            let stores = self.clone();
            Secrets::new(tasker(first), move || {
                let held = stores.0.0.lock().expect("no panic held it").clone();
                stores.0.1.fetch_add(1, Ordering::SeqCst);
                async move {
                    tokio::task::yield_now().await;
                    let away = || Failure::unreachable("settings_unreadable", "throttled", "Wait.");
                    held.map(|pairs| tasker(&pairs)).ok_or_else(away)
                }
            })
        }
    }

    async fn read_again(secrets: &Secrets) -> bool {
        secrets.0.read_again(&mut *secrets.0.book.lock().await).await
    }

    fn password(secrets: &Secrets) -> String {
        secrets.current().get(&transport::SMTP_PASS).expect("a password").expose().to_owned()
    }

    #[tokio::test]
    async fn a_user_and_a_password_change_together_and_everybody_is_told_once() {
        let stores = Stores::default();
        let secrets = stores.secrets(&vec![("SMTP_USER", "a"), ("SMTP_PASS", "old-canary")]);
        let mut watch = secrets.watch();
        assert!(read_again(&secrets).await);
        assert!(!watch.has_changed().expect("alive"), "nothing changed");
        stores.hold(Some(vec![("SMTP_USER", "b"), ("SMTP_PASS", "new-canary")]));
        assert!(read_again(&secrets).await);
        let values = watch.borrow_and_update().clone();
        let get = |setting| values.get::<Secret>(setting).expect("given").expose().to_owned();
        assert_eq!((values.revision(), get(&transport::SMTP_PASS).as_str()), (1, "new-canary"));
        assert_eq!(values.get(&transport::SMTP_USER).expect("given").expose(), "b");
        assert!(values.get(&scaler::HETZNER_API_TOKEN).is_none(), "a scaler's is none of a tasker's");
        assert!(!format!("{secrets:?}").contains("canary"));
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_gone_or_spoilt_changes_nothing() {
        let stores = Stores::default();
        let first = vec![("SMTP_USER", "a"), ("SMTP_PASS", "good")];
        let secrets = stores.secrets(&first);
        for broken in [
            None,
            Some(vec![]),
            Some(vec![("SMTP_USER", "a")]),
            // Two names of one setting that disagree.
            Some(vec![("SMTP_USER", "a"), ("SMTP_PASS", "x"), ("SMTP_PASSWORD", "y")]),
        ] {
            let readable = broken.is_some();
            stores.hold(broken.clone());
            assert_eq!(read_again(&secrets).await, readable, "{broken:?}");
            assert_eq!(
                (password(&secrets).as_str(), secrets.current().revision()),
                ("good", 0),
                "{broken:?}"
            );
        }
        stores.hold(Some(vec![("SMTP_USER", "a"), ("SMTP_PASS", "better")]));
        assert!(read_again(&secrets).await);
        assert_eq!(password(&secrets), "better");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_reads_at_once_and_refusals_are_no_storm() {
        let stores = Stores::default();
        let secrets = stores.secrets(&vec![("SMTP_USER", "a"), ("SMTP_PASS", "old")]);
        tokio::time::advance(APART).await;
        stores.hold(Some(vec![("SMTP_USER", "a"), ("SMTP_PASS", "new")]));
        let used = secrets.current();
        let asked = (0..20).map(|_| {
            let (secrets, used) = (secrets.clone(), used.clone());
            tokio::spawn(async move { secrets.newer_than(&used).await.map(|values| values.revision()) })
        });
        for answer in asked.collect::<Vec<_>>() {
            assert_eq!(answer.await.expect("no panic"), Some(1));
        }
        assert_eq!(stores.reads(), 1, "one reading for all");
        tokio::time::advance(Duration::from_millis(1)).await;
        // Refused again at once, while the value changes once more: a refusal waits for its turn to read.
        let used = secrets.current();
        stores.hold(Some(vec![("SMTP_USER", "a"), ("SMTP_PASS", "newest")]));
        let asked = Instant::now();
        assert_eq!(secrets.newer_than(&used).await.map(|values| values.revision()), Some(2));
        assert!((4..=5).contains(&asked.elapsed().as_secs()), "{:?}", asked.elapsed());
        assert_eq!((stores.reads(), password(&secrets).as_str()), (2, "newest"));
        let used = secrets.current();
        assert!(secrets.newer_than(&used).await.is_none(), "nothing newer is to be had");
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_read_every_interval_and_ends_when_told() {
        let stores = Stores::default();
        let secrets = stores.secrets(&vec![("SMTP_USER", "a"), ("SMTP_PASS", "old")]);
        let stopping = CancellationToken::new();
        let pulse =
            voiceai_runtime::Vitals::new().register("settings", Secrets::bound(Duration::from_secs(300)));
        let running = secrets.clone().keep_fresh(Duration::from_secs(300), stopping.clone(), pulse);
        let running = tokio::spawn(running);
        let mut watch = secrets.watch();
        stores.hold(Some(vec![("SMTP_USER", "a"), ("SMTP_PASS", "new")]));
        let start = tokio::time::Instant::now();
        watch.changed().await.expect("alive");
        let took = start.elapsed();
        assert!((270..=330).contains(&took.as_secs()), "{took:?}");
        // A failure is not waited for as long.
        stores.hold(None);
        let reads = stores.reads();
        tokio::time::sleep(Duration::from_secs(331)).await;
        assert_eq!(stores.reads(), reads + 1);
        tokio::time::sleep(Duration::from_secs(83)).await;
        assert_eq!(stores.reads(), reads + 2);
        stopping.cancel();
        running.await.expect("it ends");
    }
}
