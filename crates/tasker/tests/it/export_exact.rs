//! Text exports are byte for byte what the server itself would write: its `row_to_json` and its `COPY` are asked for the same rows.

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use voiceai_postgres::sqlx::{self, Executor as _, PgConnection};
use voiceai_tasker::jobs::export::Format;

use crate::export_bench::Bench;

/// Every kind of type, each with what is likely to go wrong with it.
const HOSTILE: &str = r#"
    CREATE TYPE colour AS ENUM ('red', 'a "b", c');
    CREATE DOMAIN small AS int CHECK (VALUE < 100);
    CREATE DOMAIN document AS json;
    CREATE TYPE pair AS (a int, b text);
    CREATE TABLE devices (
        n serial, flag bool, i2 int2, i4 int4, i8 int8, f4 float4, f8 float8, price numeric(12,4), big numeric,
        note text, short varchar(20), padded char(5), name name, blob bytea, id uuid,
        day date, at timestamptz, local timestamp, hour time, zoned timetz, span interval,
        doc jsonb, raw json, raws json[], tags text[], grid int[], address inet, net cidr, mac macaddr,
        hue colour, limited small, document document, pair pair, bits bit varying, cash money, place point,
        range int4range, vector tsvector, one "char", "odd ""name"", ü" text, xml xml, lsn pg_lsn, ids oid
    );
    INSERT INTO devices (note) VALUES
        (NULL), (''), (' '), ('plain'), ('"'), (','), ('a,b'), (E'line\nline'), (E'line\r'), (E'tab\tback\\slash\b\f'), (E'\u0001\u001f\u007f'),
        ('ä€😀'), ('\.'), ('null'), ('NULL'), (E'\\N'), ('</script>'), (E'\u2028'), (E'\u0080'), (repeat('x"', 70000));
    INSERT INTO devices (flag, i2, i4, i8, limited) VALUES
        (true, 0, 0, 0, 0), (false, -32768, -2147483648, -9223372036854775808, -7), (NULL, 32767, 2147483647, 9223372036854775807, 99);
    INSERT INTO devices (f8, f4) SELECT v::float8, v::float4 FROM unnest(ARRAY['NaN', 'Infinity', '-Infinity', '0', '-0', '1', '-1.5', '0.1', '100000', '999999',
        '1000000', '1234567', '0.0001', '0.00001', '1e-30', '1e30', '3.4e38', '1e15', '16777216', '123456789']) v;
    INSERT INTO devices (f8) VALUES ('5e-324'), ('1.7976931348623157e308'), ('999999999999999'), ('1e22'), ('9007199254740993'), ('123456789012345678'), ('2.2250738585072014e-308');
    INSERT INTO devices (price, big) VALUES
        ('NaN', 'NaN'), ('-12.3456', '12345678901234567890.1234567890'), (0, 'Infinity'), (99999999.9999, '-Infinity'), (1, '0.000'), (2, '1e-20'), (3, repeat('9', 1000)::numeric);
    INSERT INTO devices (short, padded, name, one, blob, id) VALUES
        ('v', 'ab', 'n', 'c', '\x00ff22', '00000000-0000-0000-0000-0000000000ff'), ('', '', '', '', '', 'FFFFFFFF-ffff-ffff-ffff-ffffffffffff');
    INSERT INTO devices (day) SELECT v::date FROM unnest(ARRAY['infinity', '-infinity', '4713-01-01 BC', '0044-03-15 BC', '0001-12-31 BC', '0001-01-01', '0099-12-31',
        '1582-10-15', '1900-02-28', '1969-12-31', '1970-01-01', '2000-02-29', '2100-03-01', '9999-12-31', '10000-01-01', '5874897-12-31']) v;
    INSERT INTO devices (at, local) SELECT v::timestamptz, v::timestamp FROM unnest(ARRAY['infinity', '-infinity', '4713-01-01 00:00:00 BC', '0001-12-31 23:59:59.999999 BC',
        '0001-01-01 00:00', '1969-12-31 23:59:59.5', '1970-01-01', '2026-03-29 01:30:00.000001', '2026-10-25 01:30:00.1', '9999-12-31 23:59:59', '294276-12-31 23:59:59.999999']) v;
    INSERT INTO devices (hour, zoned, span) VALUES ('00:00', '00:00+14', '1 year -2 days 03:04:05.6'), ('24:00', '23:59:59.999999-11', '-1 mon'), ('12:34:56.789', '12:00+00', '0');
    INSERT INTO devices (doc, raw) VALUES
        ('{"a": [1, {"b": "\u0001\n\"😀"}], "z": 1e400}', '{"a" :1,"a":2}'), ('null', 'null'), ('"text"', '"\u0000"'), ('[]', ' 7 '), ('1.0', E'"\\ud83d\\ude00"');
    INSERT INTO devices (tags, grid, raws) VALUES ('{x,"y z",NULL,"a\"b\\c"}', '{{1,2},{3,NULL}}', ARRAY['{"a":1}', '[2]']::json[]), ('{}', '{}', '{}'), (ARRAY[E'a\nb'], '[0:1]={1,2}', NULL);
    INSERT INTO devices (address, net, mac, hue, document, pair, bits, cash, place, range, vector, lsn, ids, "odd ""name"", ü") VALUES
        ('10.0.0.1', '10.0.0.0/8', '08:00:2b:01:02:03', 'a "b", c', '{"x":1}', ROW(1, E'q"\n'), B'0101', '12.34', '(1.5,-2)', '[1,5)', 'a:1 b', '16/B374D848', 4294967295, 'v'),
        ('::1/64', '::/0', NULL, 'red', NULL, ROW(NULL, NULL), B'', '-1', NULL, 'empty', '', '0/0', 0, '');
    INSERT INTO devices (f8, f4, i8, at, local, day, hour)
        SELECT (random() - 0.5) * 10 ^ (random() * 310 - 300), ((random() - 0.5) * 10 ^ (random() * 40 - 35))::float4, ((random() - 0.5) * 9e18)::int8,
               timestamptz 'epoch' + (random() - 0.4) * 1e11 * interval '1 second', timestamp 'epoch' + (random() - 0.1) * 1e12 * interval '1 second',
               date '2000-01-01' + ((random() - 0.3) * 2000000)::int, time '00:00' + random() * interval '24 hours'
        FROM generate_series(1, 10000);
    INSERT INTO devices (f8) SELECT round((random() * 1000)::numeric, 2) FROM generate_series(1, 2000);
"#;

/// A session that shows values as exports do.
async fn oracle(bench: &Bench) -> PgConnection {
    let mut session = bench.database.connect().await;
    let set = "SET TimeZone = 'UTC'; SET DateStyle = ISO; SET IntervalStyle = postgres; SET bytea_output = hex; SET extra_float_digits = 1";
    session.execute(sqlx::raw_sql(set)).await.unwrap();
    session
}

async fn copied(session: &mut PgConnection, statement: &str) -> Vec<u8> {
    let mut rows = session.copy_out_raw(statement).await.unwrap();
    let mut all = Vec::new();
    while let Some(row) = rows.next().await {
        all.extend_from_slice(&row.unwrap());
    }
    all
}

/// The first line in which two texts differ.
fn assert_same(ours: &[u8], theirs: &[u8]) {
    let lines = |text: &[u8]| text.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect::<Vec<_>>();
    for (at, (our, their)) in lines(ours).iter().zip(lines(theirs)).enumerate() {
        let shown = |line: &[u8]| String::from_utf8_lossy(line).chars().take(2_000).collect::<String>();
        assert!(*our == their, "line {at}:\n  ours {}\ntheirs {}", shown(our), shown(&their));
    }
    assert_eq!(ours.len(), theirs.len());
}

#[tokio::test]
async fn a_text_export_is_what_the_server_itself_would_write() {
    let bench = Bench::new(HOSTILE).await;
    let mut session = oracle(&bench).await;
    let server: Vec<String> = sqlx::query_scalar("SELECT row_to_json(d)::text FROM devices d")
        .fetch_all(&mut session)
        .await
        .unwrap();

    let order = bench.order(Format::Ndjson, None, json!({})).await;
    let (made, object) = bench.made(&order).await;
    assert_eq!(made.row_count, Some(server.len() as i64));
    let lines: String = server.iter().flat_map(|line| [line.as_str(), "\n"]).collect();
    assert_same(&object, lines.as_bytes());

    let order = bench.order(Format::Json, None, json!({})).await;
    let (_, object) = bench.made(&order).await;
    let document = format!("{{\"data\":[{}],\"count\":{}}}\n", server.join(",\n"), server.len());
    assert_same(&object, document.as_bytes());

    let order = bench.order(Format::Csv, None, json!({})).await;
    let (_, object) = bench.made(&order).await;
    let csv =
        copied(&mut session, "COPY (SELECT * FROM devices) TO STDOUT WITH (FORMAT csv, HEADER true)").await;
    assert_same(&object, &csv);
    assert!(csv.len() > 1_000_000, "the rows are there");
}

#[tokio::test]
async fn a_float_of_any_size_is_read_again_as_it_was() {
    // Among large ones there are some that have two shortest forms, of which the server takes another one.
    let fill = "CREATE TABLE devices (f8 float8, f4 float4);
                INSERT INTO devices SELECT (random() - 0.5) * 10 ^ (random() * 300), ((random() - 0.5) * 10 ^ (random() * 38))::float4
                FROM generate_series(1, 10000)";
    let bench = Bench::new(fill).await;
    let order = bench.order(Format::Csv, None, json!({})).await;
    let text = String::from_utf8(bench.made(&order).await.1).unwrap();
    let ours: Vec<(f64, f32)> = text
        .lines()
        .skip(1)
        .filter_map(|line| line.split_once(','))
        .map(|(double, float)| (double.parse().unwrap(), float.parse().unwrap()))
        .collect();
    let theirs: Vec<(f64, f32)> =
        sqlx::query_as("SELECT f8, f4 FROM devices").fetch_all(&bench.ctx.pool).await.unwrap();
    assert_eq!((ours.len(), ours), (10_000, theirs));
}

#[tokio::test]
async fn a_column_by_itself_is_as_exact_and_a_document_over_many_lines_stays_one_line() {
    let bench = Bench::new(
        "CREATE TABLE devices (note text); INSERT INTO devices VALUES ('\\.'), (''), (NULL), ('x'), ('\\.x')",
    )
    .await;
    let mut session = oracle(&bench).await;
    let order = bench.order(Format::Csv, None, json!({})).await;
    let (_, object) = bench.made(&order).await;
    let csv =
        copied(&mut session, "COPY (SELECT * FROM devices) TO STDOUT WITH (FORMAT csv, HEADER true)").await;
    assert_same(&object, &csv);

    let documents = "DROP TABLE devices; CREATE TABLE devices (n int, raw json, raws json[]);
                     INSERT INTO devices VALUES (1, E'{\\n  \"a\": \"x\\\\ny\",\\r\\n  \"b\": [\\n]\\n}', ARRAY[E'[\\n1]']::json[])";
    bench.database.execute(documents).await;
    let order = bench.order(Format::Ndjson, None, json!({})).await;
    let text = String::from_utf8(bench.made(&order).await.1).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    let row: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(row, json!({ "n": 1, "raw": { "a": "x\ny", "b": [] }, "raws": [[1]] }));
}
