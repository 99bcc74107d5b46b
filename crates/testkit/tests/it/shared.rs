use voiceai_testkit::{database, database_from, empty_database, postgres, redis, s3};

#[tokio::test]
async fn each_test_gets_a_redis_database_of_its_own() {
    let (mine, other) = (redis().await, redis().await);
    assert_ne!(mine.url, other.url);
    assert_eq!(mine.cli(&["SET", "key", "mine"]).await, "OK");
    assert_eq!(other.cli(&["EXISTS", "key"]).await, "0");
    assert_eq!(mine.cli(&["GET", "key"]).await, "mine");
}

#[tokio::test]
async fn a_database_is_empty_when_taken_and_separate() {
    let (mine, other) = (empty_database().await, empty_database().await);
    assert_ne!(mine.name, other.name);
    mine.execute("CREATE TABLE only_here (id int)").await;
    assert_eq!(tables(&other.url).await, Vec::<String>::new());
    assert_eq!(tables(&mine.url).await, ["only_here"]);
}

#[tokio::test]
async fn a_template_is_prepared_once_and_copied() {
    // A key of this run, so that a template left by an earlier one does not answer for this.
    let key = format!("testkit {}", empty_database().await.name);
    let mut prepared = 0;
    let mut databases = Vec::new();
    for _ in 0..3 {
        let database = database_from(&key, async |url| {
            prepared += 1;
            let pool = sqlx::PgPool::connect(url).await.unwrap();
            sqlx::query("CREATE TABLE copied (id int)").execute(&pool).await.unwrap();
            pool.close().await;
        })
        .await;
        databases.push(database);
    }
    assert_eq!(prepared, 1);
    for database in &databases {
        assert_eq!(tables(&database.url).await, ["copied"]);
    }
    databases[0].execute("DROP TABLE copied").await;
    assert_eq!(tables(&databases[1].url).await, ["copied"], "a copy does not follow another");
}

#[tokio::test]
async fn a_bucket_takes_and_gives_objects() {
    let (mine, other) = (s3().await, s3().await);
    assert_ne!(mine.bucket, other.bucket);
    assert_eq!(mine.get("folder/one").await, None);
    mine.put("folder/one", b"content").await;
    assert_eq!(mine.get("folder/one").await.as_deref(), Some(b"content".as_slice()));
    assert_eq!(mine.keys().await, ["folder/one"]);
    assert_eq!(other.keys().await, Vec::<String>::new());
    assert_eq!(mine.unfinished_uploads().await, 0);
}

async fn tables(url: &str) -> Vec<String> {
    let pool = sqlx::PgPool::connect(url).await.unwrap();
    let names = sqlx::query_scalar("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
        .fetch_all(&pool)
        .await
        .unwrap();
    pool.close().await;
    names
}

#[tokio::test]
async fn a_migrated_database_has_the_schema_of_its_components() {
    let all = database().await;
    let common = postgres(&[voiceai_postgres::COMMON]).await;
    for database in [&all, &common] {
        let mut connection = database.connect().await;
        let terms: i64 = sqlx::query_scalar("SELECT count(*) FROM ops.leader_terms")
            .fetch_one(&mut connection)
            .await
            .unwrap();
        assert_eq!(terms, 0);
    }
    let histories = async |database: &voiceai_testkit::Database| -> Vec<String> {
        let mut connection = database.connect().await;
        sqlx::query_scalar("SELECT tablename FROM pg_tables WHERE schemaname = 'ops' AND tablename ~ '^migrations_' ORDER BY 1")
            .fetch_all(&mut connection)
            .await
            .unwrap()
    };
    assert_eq!(histories(&common).await, ["migrations_common"]);
    let mut expected: Vec<String> = voiceai_postgres::ALL
        .iter()
        .filter(|component| !component.files.is_empty())
        .map(|component| format!("migrations_{}", component.name))
        .collect();
    expected.sort();
    assert_eq!(histories(&all).await, expected);
}
