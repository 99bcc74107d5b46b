//! Parquet, and the columns of telemetry: what is written is read again.

use bytes::Bytes;
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::record::{Field, RowAccessor as _};
use serde_json::json;
use voiceai_tasker::jobs::export::Format;

use crate::export_bench::Bench;

const TYPES: &str = r#"
    CREATE TYPE colour AS ENUM ('red', 'blue');
    CREATE DOMAIN small AS int CHECK (VALUE < 100);
    CREATE TABLE devices (
        device_id text, flag bool, i2 int2, i4 int4, i8 int8, f4 float4, f8 float8, price numeric(12,4), big numeric,
        blob bytea, id uuid, day date, at timestamptz, local timestamp, hour time, doc jsonb, tags text[], address inet,
        hue colour, limited small, "odd, name" varchar(10)
    );
    INSERT INTO devices VALUES
        ('ä', true, -2, 40000, 5000000000, 1.5, 0.1, -12.3456, 12345678901234567890.123, '\x00ff',
         '00000000-0000-0000-0000-0000000000ff', '1970-01-02', '2026-11-22 03:00:00.000001+01', '1969-12-31 23:59:59',
         '00:00:01', '{"a": 1}', '{x,"y z"}', '10.0.0.1', 'blue', 7, 'v'),
        (NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
         NULL, NULL, NULL),
        ('', false, 0, 0, 0, 'NaN', 'Infinity', 'NaN', 'NaN', '', '00000000-0000-0000-0000-000000000000', 'infinity',
         '-infinity', 'infinity', '00:00', 'null', '{}', '::1', 'red', 0, '');
"#;

fn reader(object: Vec<u8>) -> SerializedFileReader<Bytes> {
    SerializedFileReader::new(Bytes::from(object)).expect("a Parquet file")
}

fn shown(object: Vec<u8>) -> Vec<Vec<(String, String)>> {
    let reader = reader(object);
    let rows = reader.get_row_iter(None).expect("rows");
    rows.map(|row| {
        let row = row.expect("a row");
        row.get_column_iter()
            .map(|(name, field)| {
                let text = match field {
                    Field::Bytes(bytes) => format!("{:?}", bytes.data()),
                    other => other.to_string(),
                };
                (name.clone(), text)
            })
            .collect()
    })
    .collect()
}

#[tokio::test]
async fn every_type_is_read_again_as_it_was() {
    let bench = Bench::new(TYPES).await;
    let order = bench.order(Format::Parquet, None, json!({})).await;
    let (made, object) = bench.made(&order).await;
    assert_eq!(made.row_count, Some(3));
    assert!(made.file_path.is_some_and(|key| key.ends_with("-1.parquet")));
    let rows = shown(object);
    let values = |row: usize| rows[row].iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>();
    let uuid = "[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255]";
    assert_eq!(
        values(0),
        [
            "\"ä\"",
            "true",
            "-2",
            "40000",
            "5000000000",
            "1.5",
            "0.1",
            "-12.3456",
            "\"12345678901234567890.123\"",
            "[0, 255]",
            uuid,
            "1970-01-02",
            "2026-11-22 02:00:00.000001 +00:00",
            "1969-12-31 23:59:59.000000 +00:00",
            "00:00:01.000000",
            "\"{\"a\": 1}\"",
            "\"[\"x\",\"y z\"]\"",
            "\"10.0.0.1\"",
            "\"blue\"",
            "\"7\"",
            "\"v\"",
        ]
    );
    assert!(values(1).iter().all(|text| *text == "null"), "{:?}", values(1));
    // What has no place in the file is NULL: NaN of a decimal, days and instants without end.
    let last = values(2);
    assert_eq!((last[0], last[5], last[6], last[7], last[8]), ("\"\"", "NaN", "inf", "null", "\"NaN\""));
    assert_eq!((last[11], last[12], last[13]), ("null", "null", "null"));
    assert_eq!(rows[0].last().map(|(name, _)| name.as_str()), Some("odd, name"));
}

#[tokio::test]
async fn many_rows_are_many_row_groups_and_no_row_at_all_is_a_file_too() {
    let tables = "CREATE TABLE devices (device_id int, note text);
                  INSERT INTO devices SELECT i, repeat(md5(i::text), 12) FROM generate_series(1, 60000) i";
    let bench = Bench::new(tables).await;
    let order = bench.order(Format::Parquet, None, json!({})).await;
    let (made, object) = bench.made(&order).await;
    assert_eq!(made.row_count, Some(60_000));
    let reader = reader(object);
    let groups = reader.metadata().num_row_groups();
    assert!((2..10).contains(&groups), "{groups} row groups");
    let mut ids: Vec<i32> = reader
        .get_row_iter(None)
        .expect("rows")
        .map(|row| row.expect("a row").get_int(0).expect("an id"))
        .collect();
    ids.sort_unstable();
    assert!(ids.into_iter().eq(1..=60_000), "each row once");

    bench.database.execute("TRUNCATE devices").await;
    let empty = bench.order(Format::Parquet, None, json!({})).await;
    let (made, object) = bench.made(&empty).await;
    assert_eq!((made.row_count, shown(object).len()), (Some(0), 0));
}

const TELEMETRY: &str = r#"
    CREATE TABLE telemetry (time timestamptz NOT NULL DEFAULT now(), tenant_id text, device_id text, metrics jsonb);
    INSERT INTO telemetry (tenant_id, device_id, metrics) SELECT 't', 'd', '{"battery": 3.5, "time": "x"}' FROM generate_series(1, 2000);
    INSERT INTO telemetry (tenant_id, device_id, metrics) VALUES
        ('t', 'late', '{"ok": true, "mixed": 1, "a \"b\", c": null}'), ('t', 'late', '{"mixed": "x", "ok": null}'),
        ('u', 'other', '{"foreign": 1}'), ('t', 'none', NULL);
"#;

#[tokio::test]
async fn a_metric_of_the_last_row_alone_has_its_column() {
    let bench = Bench::new(TELEMETRY).await;
    let order = bench.order_of("telemetry", Format::Csv, Some("t"), json!({})).await;
    let (made, object) = bench.made(&order).await;
    assert_eq!(made.row_count, Some(2_003));
    let text = String::from_utf8(object).expect("text");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[0], "time,tenant_id,device_id,\"a \"\"b\"\", c\",battery,mixed,ok,metrics.time",
        "another tenant's metric is no column"
    );
    assert!(lines[1].ends_with(",t,d,,3.5,,,x"), "{}", lines[1]);
    assert!(lines.iter().any(|line| line.ends_with(",t,late,,,1,true,")), "{:?}", lines.last());
    assert!(lines.iter().any(|line| line.ends_with(",t,none,,,,,")), "{:?}", lines.last());

    let order = bench.order_of("telemetry", Format::Parquet, Some("t"), json!({})).await;
    let rows = shown(bench.made(&order).await.1);
    let late: Vec<_> = rows.iter().filter(|row| row[2].1 == "\"late\"").collect();
    let values = |row: &[(String, String)]| row[3..].iter().map(|(_, text)| text.clone()).collect::<Vec<_>>();
    assert_eq!(values(late[0]), ["null", "null", "\"1\"", "true", "null"]);
    assert_eq!(values(&rows[0]), ["null", "3.5", "null", "null", "\"x\""]);

    // Metrics that are no object are not lost: the column stays beside those of the keys.
    bench
        .database
        .execute("INSERT INTO telemetry (tenant_id, device_id, metrics) VALUES ('t', 'list', '[1]')")
        .await;
    let order = bench.order_of("telemetry", Format::Csv, Some("t"), json!({})).await;
    let text = String::from_utf8(bench.made(&order).await.1).expect("text");
    assert!(text.starts_with("time,tenant_id,device_id,metrics,"), "{text:.100}");
    assert!(text.contains(",t,list,[1],"), "the list");

    let order = bench.order_of("telemetry", Format::Json, Some("t"), json!({ "device_ids": "late" })).await;
    let document: serde_json::Value = serde_json::from_slice(&bench.made(&order).await.1).expect("JSON");
    assert_eq!((&document["count"], &document["telemetry"][0]["metrics"]["mixed"]), (&json!(2), &json!(1)));
}
