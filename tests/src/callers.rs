use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use voiceai_redis::{Redis, RedisSettings, Value};

const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Kamailio's flags: 1 inactive, 4 disabled. Either keeps new calls away.
const TAKES_NO_CALLS: u32 = 1 | 4;

/// One record of the dispatcher set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The server's name: the tail of the record's key.
    pub name: String,
    /// Where it takes calls.
    pub address: SocketAddr,
    /// Kamailio's flags.
    pub flags: u32,
}

impl Destination {
    /// True when Kamailio would send new calls there.
    #[must_use]
    pub const fn takes_calls(&self) -> bool {
        self.flags & TAKES_NO_CALLS == 0
    }
}

struct Call {
    server: String,
    stream: BufReader<TcpStream>,
}

/// People on the phone. Each call is a connection that is open for as long as it lasts.
pub struct Callers {
    dispatcher: Redis,
    prefix: String,
    calls: Vec<Call>,
    turn: usize,
    ended: usize,
}

impl std::fmt::Debug for Callers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Callers").field("calls", &self.calls.len()).finish_non_exhaustive()
    }
}

impl Callers {
    /// Callers that are routed by the records in the dispatcher's Redis.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn new(dispatcher_url: &str, prefix: &str) -> Result<Self> {
        let dispatcher = Redis::connect(&RedisSettings::from_url(dispatcher_url)?).await?;
        Ok(Self { dispatcher, prefix: prefix.to_owned(), calls: Vec::new(), turn: 0, ended: 0 })
    }

    /// The dispatcher set as Kamailio would load it, by name. A record that Kamailio could not load is an error.
    ///
    /// # Errors
    /// When Redis is away or a record is incomplete.
    pub async fn destinations(&self) -> Result<Vec<Destination>> {
        let keys: Vec<String> = self.dispatcher.command("KEYS", vec![format!("{}*", self.prefix)]).await?;
        let mut all = Vec::new();
        for key in keys {
            let fields: BTreeMap<String, String> =
                self.dispatcher.command("HGETALL", vec![key.as_str()]).await?;
            if fields.is_empty() {
                continue; // removed between the two reads
            }
            for field in ["setid", "destination", "flags", "priority", "attrs"] {
                ensure!(
                    fields.contains_key(field),
                    "record {key} has no field {field}: Kamailio would crash on it"
                );
            }
            let address = fields["destination"]
                .trim_start_matches("sip:")
                .split(';')
                .next()
                .unwrap_or_default()
                .parse()
                .with_context(|| format!("record {key}: destination {:?}", fields["destination"]))?;
            let name = key.trim_start_matches(&self.prefix).to_owned();
            all.push(Destination { name, address, flags: fields["flags"].parse()? });
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// How many calls are running.
    #[must_use]
    pub const fn running(&self) -> usize {
        self.calls.len()
    }

    /// How many calls ended because the caller hung up.
    #[must_use]
    pub const fn ended(&self) -> usize {
        self.ended
    }

    /// The servers that carry running calls, with their number of calls.
    #[must_use]
    pub fn by_server(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for call in &self.calls {
            *counts.entry(call.server.clone()).or_default() += 1;
        }
        counts
    }

    /// Dials until `count` calls are running, round robin over the servers that take calls; a full one passes the call on.
    ///
    /// # Errors
    /// When no server takes a call.
    pub async fn dial_up_to(&mut self, count: usize) -> Result<()> {
        while self.calls.len() < count {
            let servers: Vec<Destination> =
                self.destinations().await?.into_iter().filter(Destination::takes_calls).collect();
            ensure!(!servers.is_empty(), "a caller heard 503: no server in the dispatcher set takes calls");
            let mut answered = false;
            for offset in 0..servers.len() {
                let server = &servers[(self.turn + offset) % servers.len()];
                if let Some(call) = dial(server).await? {
                    self.calls.push(call);
                    answered = true;
                    break;
                }
            }
            self.turn += 1;
            ensure!(answered, "a caller heard 486: every server is full");
        }
        Ok(())
    }

    /// Hangs up until no server carries more than `count` calls, the newest first.
    pub async fn hang_up_to(&mut self, count: usize) {
        let mut kept: BTreeMap<String, usize> = BTreeMap::new();
        let mut staying = Vec::with_capacity(self.calls.len());
        for call in std::mem::take(&mut self.calls) {
            let on_server = kept.entry(call.server.clone()).or_default();
            *on_server += 1;
            if *on_server > count { self.hang_up(call).await } else { staying.push(call) }
        }
        self.calls = staying;
    }

    /// Hangs up every call on `server`.
    pub async fn hang_up_on(&mut self, server: &str) {
        let (going, staying): (Vec<Call>, Vec<Call>) =
            std::mem::take(&mut self.calls).into_iter().partition(|call| call.server == server);
        self.calls = staying;
        for call in going {
            self.hang_up(call).await;
        }
    }

    async fn hang_up(&mut self, mut call: Call) {
        // A call that was cut before would be found by `check_none_was_cut`; here its end changes nothing.
        let _ = call.stream.get_mut().shutdown().await;
        self.ended += 1;
    }

    /// Says a word in every call and hears it back.
    ///
    /// # Errors
    /// Names the server of the first call that was cut.
    pub async fn check_none_was_cut(&mut self) -> Result<()> {
        for call in &mut self.calls {
            let heard = tokio::time::timeout(ANSWER_WITHIN, speak(&mut call.stream)).await;
            match heard {
                Ok(Ok(())) => {}
                Ok(Err(error)) => bail!("a call on {} was cut: {error:#}", call.server),
                Err(_) => bail!("a call on {} is silent", call.server),
            }
        }
        Ok(())
    }

    /// Any value of the dispatcher's Redis.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn dispatcher_value(&self, key: &str) -> Result<Value> {
        Ok(self.dispatcher.command("GET", vec![key]).await?)
    }
}

/// `None`: the server is full.
async fn dial(server: &Destination) -> Result<Option<Call>> {
    let connect = TcpStream::connect(server.address);
    let stream = tokio::time::timeout(ANSWER_WITHIN, connect)
        .await
        .with_context(|| format!("{} did not pick up", server.name))?
        .with_context(|| format!("{} in the dispatcher set refuses calls", server.name))?;
    let mut stream = BufReader::new(stream);
    let mut answer = String::new();
    tokio::time::timeout(ANSWER_WITHIN, stream.read_line(&mut answer)).await??;
    match answer.split(' ').next() {
        Some("200") => Ok(Some(Call { server: server.name.clone(), stream })),
        Some("486") => Ok(None),
        _ => bail!("{} answered {answer:?}", server.name),
    }
}

async fn speak(stream: &mut BufReader<TcpStream>) -> Result<()> {
    stream.get_mut().write_all(b"hello\n").await?;
    let mut heard = String::new();
    stream.read_line(&mut heard).await?;
    ensure!(heard == "hello\n", "heard {heard:?}");
    Ok(())
}
