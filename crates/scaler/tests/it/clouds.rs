//! API groups on the shipped providers, whole: Hetzner's scripts on the double of its API, AWS's with the real command line on
//! moto. Servers are made with their document, routed by the load balancer's own means, drained and deleted.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;
use voiceai_postgres::sqlx;
use voiceai_redis::{Redis, RedisSettings, Value as Reply};
use voiceai_testkit::{Moto, Process, Program, wait_for, wait_until};

use crate::bootstrap::create_secret;
use crate::harness::{Stack, repository};

/// Scripts of many small programs on a machine that does everything at once.
const WITHIN: Duration = Duration::from_secs(120);

/// A stack with a group of API servers: what its settings leave out of the bootstrap variables stands in the group's secret.
struct Cloud {
    stack: Stack,
    moto: Moto,
    provider: &'static str,
    config: Value,
    /// Connections by server; of the others there are none.
    connections: Arc<Mutex<HashMap<String, u64>>>,
    beats: Option<tokio::task::JoinHandle<()>>,
}

impl Drop for Cloud {
    fn drop(&mut self) {
        if let Some(beats) = &self.beats {
            beats.abort();
        }
    }
}

impl Cloud {
    async fn new(provider: &'static str, config: Value) -> Self {
        let (moto, mut stack) = tokio::join!(Moto::start(), Stack::new());
        for (name, value) in [
            ("AWS_ENDPOINT_URL", moto.endpoint().as_str()),
            ("AWS_REGION", "eu-central-1"),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "secret-access-key-canary"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("PROVIDER_SCRIPT_TIMEOUT_MS", "60000"),
            ("LEADER_LOCK_TTL_MS", "5000"),
            ("ECR_REGISTRY", "registry.example.org"),
            ("ECR_TAG", "1.2.3"),
            ("CONFIG_BUCKET", "bucket"),
            ("CONFIG_REF", "main"),
        ] {
            stack.set(name, value);
        }
        let secret = json!({"NAMESPACE": "voiceai/test", "BASTION_PUBLIC_KEY": "ssh-ed25519 AAAA bastion"});
        create_secret(&moto, "of-web", &secret.to_string()).await;
        let mut cloud = Self { stack, moto, provider, config, connections: Arc::default(), beats: None };
        cloud.config["secretsName"] = json!("of-web");
        cloud.config["routingSettleSeconds"] = json!(1);
        cloud
    }

    async fn want(&self, min: i32, max: i32) {
        self.stack.group("web", min, max, &self.config).await;
        let sql =
            format!(r#"UPDATE "ServerGroup" SET service = 'api', "scalingProvider" = '{}'"#, self.provider);
        self.stack.database.execute(&sql).await;
    }

    /// Beats for every server that the provider has told the address of, as the service on it would.
    async fn beat(&mut self) {
        let settings = RedisSettings::from_url(self.stack.redis.url.as_str()).expect("an address");
        let redis = Redis::connect(&settings).await.expect("a connection");
        let (pool, connections) = (self.stack.pool.clone(), Arc::clone(&self.connections));
        self.beats = Some(tokio::spawn(async move {
            loop {
                let sql = "SELECT name FROM ops.servers WHERE status IN ('booting', 'active', 'draining') \
                           AND COALESCE(private_ip, ip) IS NOT NULL";
                let names: Vec<(String,)> = sqlx::query_as(sql).fetch_all(&pool).await.unwrap_or_default();
                for (name,) in names {
                    let active = connections.lock().expect("not poisoned").get(&name).copied().unwrap_or(0);
                    let at_ms = jiff::Timestamp::now().as_millisecond();
                    let beat = json!({"service": "api", "group": "web", "active": active, "capacity": 10, "atMs": at_ms});
                    let key = format!("voiceai:heartbeat:{name}");
                    let args: Vec<Reply> =
                        vec![key.into(), beat.to_string().into(), "PX".into(), 2000.into()];
                    let _: Result<Reply, _> = redis.command("SET", args).await;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }));
    }

    /// Gives servers their connections, and waits until their heartbeats say so: what is decided next goes by these.
    async fn connect(&self, loads: &[(&str, u64)]) {
        let loads = loads.iter().map(|(name, active)| ((*name).to_owned(), *active));
        self.connections.lock().expect("not poisoned").extend(loads.clone());
        let settings = RedisSettings::from_url(self.stack.redis.url.as_str()).expect("an address");
        let redis = Redis::connect(&settings).await.expect("a connection");
        for (name, active) in loads {
            wait_until(WITHIN, format!("{name} beats with {active} connections"), async || {
                let key = format!("voiceai:heartbeat:{name}");
                let beat: Option<String> =
                    redis.command("GET", vec![Reply::from(key)]).await.expect("a reply");
                let beat: Option<Value> = beat.and_then(|beat| serde_json::from_str(&beat).ok());
                // One that is let go at zero may be gone before it was looked at.
                beat.map_or(active == 0, |beat| beat["active"] == active)
            })
            .await;
        }
    }

    /// Waits until exactly these servers are in service and nothing is going on.
    async fn wait_in_service(&self, names: &[&str]) {
        wait_for(WITHIN, format!("in service: {names:?}"), async || {
            let servers = self.stack.servers().await;
            let open = "SELECT name, state, error_text FROM ops.operations o JOIN ops.servers s ON s.id = o.server_id \
                        WHERE finished_at IS NULL";
            let open: Vec<(String, String, Option<String>)> =
                sqlx::query_as(open).fetch_all(&self.stack.pool).await.expect("rows");
            let active = servers.iter().all(|(_, status)| status == "active");
            if active && open.is_empty() && servers.iter().map(|(name, _)| name.as_str()).eq(names.iter().copied()) {
                Ok(())
            } else {
                Err(format!("{servers:?}, open: {open:?}"))
            }
        })
        .await;
    }

    /// The server that drains.
    async fn wait_draining(&self) -> String {
        wait_for(WITHIN, "a server drains", async || {
            let sql = "SELECT s.name FROM ops.operations o JOIN ops.servers s ON s.id = o.server_id \
                       WHERE o.kind = 'down' AND o.state = 'draining'";
            let draining: Vec<(String,)> =
                sqlx::query_as(sql).fetch_all(&self.stack.pool).await.expect("rows");
            draining.into_iter().next().map(|(name,)| name).ok_or_else(|| "none".to_owned())
        })
        .await
    }

    /// A drain that waits for its connections goes on beating and being there, for some looks at it.
    async fn stays(&self, name: &str) {
        let beats = async || self.stack.redis.cli(&["GET", &format!("voiceai:heartbeat:{name}")]).await;
        for _ in 0..12 {
            let before = beats().await;
            wait_until(WITHIN, "another heartbeat", async || beats().await != before).await;
        }
        assert_eq!(self.wait_draining().await, name, "its connections are open");
    }

    /// Nothing of a server is left but its history.
    async fn is_gone(&self, name: &str) {
        wait_until(WITHIN, "its heartbeat is gone", async || {
            self.stack.redis.cli(&["EXISTS", &format!("voiceai:heartbeat:{name}")]).await == "0"
        })
        .await;
        let open = self.stack.number("SELECT count(*) FROM ops.operations WHERE finished_at IS NULL").await;
        assert_eq!((open, self.stack.records().await), (0, Vec::new()), "API servers have no records");
    }
}

/// Hetzner Cloud, as `tests/providers/hetzner_double.py` plays it.
struct Hetzner {
    endpoint: String,
    _process: Process,
}

impl Hetzner {
    async fn start() -> Self {
        let script = repository().join("tests/providers/hetzner_double.py");
        let process = Program::new("python3").arg("-B").arg(script).start();
        let endpoint = wait_for(WITHIN, "the double tells its address", async || {
            process.stdout().lines().next().map(str::to_owned).ok_or_else(|| process.stderr())
        })
        .await;
        Self { endpoint, _process: process }
    }

    async fn told(&self) -> Value {
        let url = self.endpoint.replace("/v1", "/double");
        let answer = reqwest::Client::builder().no_proxy().build().expect("a client").get(url).send().await;
        let text = answer.expect("an answer").text().await.expect("a body");
        serde_json::from_str(&text).expect("JSON")
    }

    /// Name and load balancer's label of each server.
    async fn servers(&self) -> HashMap<String, Option<String>> {
        let told = self.told().await;
        let pair = |server: &Value| {
            let label = server["labels"]["in-service"].as_str().map(str::to_owned);
            (server["name"].as_str().expect("a name").to_owned(), label)
        };
        told["servers"].as_array().expect("servers").iter().map(pair).collect()
    }
}

#[tokio::test]
async fn an_api_group_grows_and_shrinks_on_hetzner_by_the_load_balancers_label() {
    let hetzner = Hetzner::start().await;
    let config = json!({
        "candidates": [{"type": "cx22", "location": "nbg1"}], "image": "debian-12", "pollMs": 20, "waitSeconds": 30,
    });
    let mut cloud = Cloud::new("hetzner", config).await;
    cloud.stack.set("HETZNER_API_TOKEN", "double-token");
    cloud.stack.set("HCLOUD_ENDPOINT", &hetzner.endpoint);
    cloud.beat().await;
    cloud.want(2, 3).await;
    let scaler = cloud.stack.scaler("a");
    let (one, two, three) = ("test-api-01", "test-api-02", "test-api-03");
    cloud.wait_in_service(&[one, two]).await;
    let told = hetzner.told().await;
    let asked = |method: &str, path: &str| -> Vec<Value> {
        let all = told["requests"].as_array().cloned().unwrap_or_default();
        all.into_iter().filter(|one| one["method"] == method && one["path"] == path).collect()
    };
    let made = asked("POST", "/servers");
    assert_eq!(made.len(), 2, "each was asked for once");
    for request in &made {
        let document = request["body"]["user_data"].as_str().expect("its document");
        assert!(
            document.starts_with("#cloud-config\n") && document.contains("ssh-ed25519 AAAA bastion"),
            "{document}"
        );
        assert_eq!(
            request["body"]["labels"]["in-service"],
            Value::Null,
            "no request before the first heartbeat"
        );
        assert_eq!(request["body"]["labels"]["managed-by"], "voiceai-scaler");
    }
    let label = || Some("true".to_owned());
    assert_eq!(
        hetzner.servers().await,
        HashMap::from([(one.to_owned(), label()), (two.to_owned(), label())])
    );

    cloud.connect(&[(one, 8), (two, 8)]).await;
    cloud.wait_in_service(&[one, two, three]).await;
    // Now there is too little to do: the emptiest one goes, but not before its connections have ended.
    cloud.connect(&[(one, 1), (two, 2), (three, 2)]).await;
    cloud.want(2, 2).await;
    assert_eq!(cloud.wait_draining().await, one);
    cloud.stays(one).await;
    assert_eq!(hetzner.servers().await.get(one), Some(&None), "out of the load balancer, and still there");
    assert_eq!(hetzner.servers().await.get(two), Some(&label()));
    cloud.connect(&[(one, 0)]).await;
    cloud.wait_in_service(&[two, three]).await;
    assert_eq!(
        hetzner.servers().await,
        HashMap::from([(two.to_owned(), label()), (three.to_owned(), label())])
    );
    cloud.is_gone(one).await;
    assert!(!(scaler.stdout() + &scaler.stderr()).contains("double-token"), "the token is in no log");
}

/// The real command line, beside which the scaler's scripts find it, too.
async fn command_line() -> PathBuf {
    let output = Command::new(repository().join("scripts/stack/tool.sh")).arg("providers").output().await;
    let output = output.expect("run scripts/stack/tool.sh");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let python = PathBuf::from(String::from_utf8(output.stdout).expect("a path").trim());
    python.parent().expect("its folder").to_owned()
}

async fn aws(folder: &Path, moto: &Moto, words: &[&str]) -> Value {
    let output = Command::new(folder.join("aws"))
        .args(["--region", "eu-central-1", "--endpoint-url", &moto.endpoint(), "--output", "json"])
        .args(words)
        .env_clear()
        .envs([("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"), ("NO_PROXY", "*")])
        .output()
        .await
        .expect("run aws");
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

#[tokio::test]
async fn an_api_group_shrinks_on_aws_by_its_target_group() {
    let folder = command_line().await;
    let config = json!({
        "candidates": [{"type": "t3.small"}], "region": "eu-central-1", "imageId": "ami-12345678", "pollMs": 50,
        "waitSeconds": 50, "targetPort": 8080,
    });
    let mut cloud = Cloud::new("aws", config).await;
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").expect("a path"));
    cloud.stack.set("PATH", &path);
    cloud.stack.set("PROVIDER_ENV_PASS", "PATH");
    cloud.stack.set("NO_PROXY", "*");
    let vpcs = aws(&folder, &cloud.moto, &["ec2", "describe-vpcs"]).await;
    let vpc = vpcs["Vpcs"][0]["VpcId"].as_str().expect("a network");
    let words = [
        "elbv2",
        "create-target-group",
        "--name",
        "api",
        "--protocol",
        "HTTP",
        "--port",
        "8080",
        "--vpc-id",
        vpc,
    ];
    let made = aws(&folder, &cloud.moto, &words).await;
    let arn = made["TargetGroups"][0]["TargetGroupArn"].as_str().expect("an ARN").to_owned();
    cloud.config["targetGroupArns"] = json!([arn]);
    cloud.beat().await;
    let targets = async || {
        let words = ["elbv2", "describe-target-health", "--target-group-arn", &arn];
        let told = aws(&folder, &cloud.moto, &words).await;
        let of =
            |one: &Value| (one["Target"]["Id"].as_str().map(str::to_owned), one["Target"]["Port"].as_i64());
        let mut targets: Vec<_> =
            told["TargetHealthDescriptions"].as_array().expect("targets").iter().map(of).collect();
        targets.sort();
        targets
    };
    let instance = async |name: &str| {
        let sql = "SELECT provider_id FROM ops.servers WHERE name = $1";
        let (id,): (Option<String>,) =
            sqlx::query_as(sql).bind(name.to_owned()).fetch_one(&cloud.stack.pool).await.expect("a row");
        (id, Some(8080))
    };
    cloud.want(2, 2).await;
    let scaler = cloud.stack.scaler("a");
    let (one, two) = ("test-api-01", "test-api-02");
    cloud.wait_in_service(&[one, two]).await;
    let mut both = [instance(one).await, instance(two).await];
    both.sort();
    assert_eq!(targets().await, both, "registered after their heartbeats");
    cloud.connect(&[(one, 1), (two, 2)]).await;
    cloud.want(1, 1).await;
    assert_eq!(cloud.wait_draining().await, one);
    cloud.stays(one).await;
    assert_eq!(targets().await, [instance(two).await], "deregistered, and still there");
    cloud.connect(&[(one, 0)]).await;
    cloud.wait_in_service(&[two]).await;
    let words = [
        "ec2",
        "describe-instances",
        "--filters",
        "Name=instance-state-name,Values=pending,running,stopping,stopped",
    ];
    let left = aws(&folder, &cloud.moto, &words).await;
    let left = left["Reservations"].as_array().expect("reservations");
    let names: Vec<&Value> = left.iter().map(|one| &one["Instances"][0]["InstanceId"]).collect();
    assert_eq!(names, [&json!(instance(two).await.0)]);
    cloud.is_gone(one).await;
    assert!(
        !(scaler.stdout() + &scaler.stderr()).contains("secret-access-key-canary"),
        "the key is in no log"
    );
}
