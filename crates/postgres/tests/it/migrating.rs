use sqlx::{AssertSqlSafe, Row};
use voiceai_postgres::{ALL, COMMON, Component, MigrateError, PostgresSettings, connect, migrate};
use voiceai_runtime::Secret;

async fn pool(url: &str) -> sqlx::PgPool {
    connect(&PostgresSettings::new(Secret::new(url))).await.unwrap()
}

#[tokio::test]
async fn twenty_starts_at_once_migrate_once() {
    let database = voiceai_testkit::empty_database().await;
    let mut starts = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let url = database.url.clone();
        starts.spawn(async move { migrate(&pool(&url).await, ALL).await.unwrap().applied });
    }
    let applied: Vec<Vec<String>> = starts.join_all().await;
    let expected: usize = ALL.iter().map(|c| c.files.len()).sum();
    assert_eq!(
        applied.iter().map(Vec::len).sum::<usize>(),
        expected,
        "each migration is applied by exactly one"
    );
    assert_eq!(migrate(&pool(&database.url).await, ALL).await.unwrap().applied, Vec::<String>::new());
}

#[tokio::test]
async fn a_newer_schema_is_refused_only_when_marked_breaking() {
    const OLD: Component =
        Component { name: "sample", files: &[("0001_first", "CREATE TABLE ops.a (x int)")] };
    const NEW: Component =
        Component { name: "sample", files: &[OLD.files[0], ("0002_wider", "ALTER TABLE ops.a ADD y int")] };
    const BREAKING: Component = Component {
        name: "sample",
        files: &[NEW.files[0], NEW.files[1], ("0003_breaking_drop", "ALTER TABLE ops.a DROP x")],
    };
    let database = voiceai_testkit::empty_database().await;
    let pool = pool(&database.url).await;
    migrate(&pool, &[NEW]).await.unwrap();
    assert!(migrate(&pool, &[OLD]).await.unwrap().applied.is_empty(), "an older binary goes on");
    migrate(&pool, &[BREAKING]).await.unwrap();
    let refused = migrate(&pool, &[OLD]).await.unwrap_err();
    assert!(
        matches!(&refused, MigrateError::NewerBreaking { component: "sample", version: 3, name } if name == "breaking drop"),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_failing_migration_leaves_nothing_half_done_and_can_be_repaired() {
    const BAD: Component =
        Component { name: "sample", files: &[("0001_bad", "CREATE TABLE ops.a (x int); SELECT 1/0")] };
    const GOOD: Component =
        Component { name: "sample", files: &[("0001_good", "CREATE TABLE ops.a (x int)")] };
    let database = voiceai_testkit::empty_database().await;
    let pool = pool(&database.url).await;
    assert!(matches!(migrate(&pool, &[BAD]).await, Err(MigrateError::Run { component: "sample", .. })));
    let there: bool =
        sqlx::query("SELECT to_regclass('ops.a') IS NOT NULL").fetch_one(&pool).await.unwrap().get(0);
    assert!(!there, "the failed migration was rolled back");
    assert_eq!(migrate(&pool, &[GOOD]).await.unwrap().applied, ["sample/0001"]);
}

#[tokio::test]
async fn a_role_without_the_right_to_create_schemas_migrates_where_the_schema_exists() {
    let database = voiceai_testkit::empty_database().await;
    let role = format!("limited_{}", std::process::id());
    database.execute(&format!("CREATE ROLE {role} LOGIN PASSWORD 'limited'")).await;
    let mut url: String = database.url.clone();
    let at = url.find("://").unwrap() + 3;
    let rest = url[at..].find('@').map_or(at, |i| at + i + 1);
    url.replace_range(at..rest, &format!("{role}:limited@"));
    let limited = pool(&url).await;
    let refused = migrate(&limited, &[COMMON]).await.unwrap_err();
    assert!(matches!(refused, MigrateError::MayNotCreateSchema(_)), "{refused:?}");
    assert!(refused.to_string().contains("CREATE SCHEMA ops"), "{refused}");
    database.execute(&format!("CREATE SCHEMA ops AUTHORIZATION {role}")).await;
    assert!(!migrate(&limited, &[COMMON]).await.unwrap().applied.is_empty());
    // Nothing left to do needs no right at all.
    database.execute(&format!("REVOKE CREATE ON SCHEMA ops FROM {role}")).await;
    assert!(migrate(&limited, &[COMMON]).await.unwrap().applied.is_empty());
    limited.close().await;
    let drop_role = format!("DROP OWNED BY {role}; DROP ROLE {role}");
    sqlx::raw_sql(AssertSqlSafe(drop_role)).execute(&database.pool().await).await.unwrap();
}
