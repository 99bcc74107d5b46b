//! The columns of an export: a table's own, and for telemetry one for each metric that any of its rows has.

use sqlx::Row as _;
use voiceai_postgres::sqlx::{self, PgConnection};

use super::error::ExportError;
use super::query::{Attribute, Selection, Table, literal};
use super::shape::Format;

/// The column of telemetry whose keys become columns.
const METRICS: &str = "metrics";
/// PostgreSQL selects at most 1,664 columns. Beyond this many metrics they stay in one column, as JSON.
const METRICS_MAX: usize = 1_200;

/// What a column's values are on the wire, and so how they are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    Int16,
    Int32,
    Int64,
    Float,
    Double,
    Text,
    /// JSON as text.
    Json,
    /// The same behind the number of its form.
    Jsonb,
    /// A decimal number as text, or a word for one that is none.
    Number,
    Bytes,
    Uuid,
    Date,
    Time,
    Timestamp {
        utc: bool,
    },
    /// A decimal number as a whole one, in units of its last digit.
    Decimal {
        precision: i32,
        scale: i32,
    },
}

/// A column of the export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: String,
    /// What is selected.
    pub(super) expression: String,
    /// What that is in the binary protocol.
    pub(super) kind: Kind,
}

/// The columns of a table as it stands. `flat`: metrics are columns, found by reading every row of the selection.
pub(super) async fn of(
    session: &mut PgConnection,
    table: &Table,
    selection: &Selection,
    format: Format,
    flat: bool,
) -> Result<Vec<Column>, ExportError> {
    let own = |column: &Attribute| own(column, format);
    let metrics = table.columns.iter().find(|column| flat && column.name == METRICS && column.is_json());
    let Some(metrics) = metrics else { return Ok(table.columns.iter().map(own).collect()) };
    let found = discover(session, metrics, selection).await?;
    if found.len() > METRICS_MAX {
        tracing::warn!(metrics = found.len(), "more metrics than columns can hold: they stay in one column");
        return Ok(table.columns.iter().map(own).collect());
    }
    // A row whose metrics are no object stays readable in a column of their own name.
    let keeps_whole = found.iter().any(|metric| metric.key.is_none());
    let mut columns: Vec<Column> =
        table.columns.iter().filter(|column| keeps_whole || column.name != METRICS).map(own).collect();
    let names: Vec<String> = columns.iter().map(|column| column.name.clone()).collect();
    for metric in found {
        let Some(key) = metric.key else { continue };
        let value = format!("(t.{}::jsonb ->> {})", metrics.quoted, literal(&key)?);
        // In CSV a value stays as it was written.
        let (expression, kind) = match metric.kind {
            Kind::Double if format == Format::Parquet => (format!("{value}::float8"), Kind::Double),
            Kind::Bool if format == Format::Parquet => (format!("{value}::bool"), Kind::Bool),
            _ => (value, Kind::Text),
        };
        let name = if names.contains(&key) { format!("{METRICS}.{key}") } else { key };
        columns.push(Column { name, expression, kind });
    }
    Ok(columns)
}

/// A metric of the selection; without a key: some row's metrics are no object.
struct Metric {
    key: Option<String>,
    kind: Kind,
}

async fn discover(
    session: &mut PgConnection,
    metrics: &Attribute,
    selection: &Selection,
) -> Result<Vec<Metric>, ExportError> {
    let column = format!("t.{}::jsonb", metrics.quoted);
    let Selection { from, condition } = selection;
    let keys = format!(
        "SELECT e.key,
                pg_catalog.bool_and(CASE pg_catalog.jsonb_typeof(e.value)
                    WHEN 'number' THEN pg_catalog.abs((e.value #>> '{{}}')::numeric) < 1e308
                    ELSE pg_catalog.jsonb_typeof(e.value) = 'null' END),
                pg_catalog.bool_and(pg_catalog.jsonb_typeof(e.value) IN ('boolean', 'null'))
         FROM {from} CROSS JOIN LATERAL pg_catalog.jsonb_each(
             CASE WHEN pg_catalog.jsonb_typeof({column}) = 'object' THEN {column} END) e {condition}
         GROUP BY e.key ORDER BY e.key"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(keys)).fetch_all(&mut *session).await?;
    let kind = |number: bool, boolean: bool| match (number, boolean) {
        // A key that is null wherever it stands is neither.
        (true, true) | (false, false) => Kind::Text,
        (true, false) => Kind::Double,
        (false, true) => Kind::Bool,
    };
    let mut found: Vec<Metric> =
        rows.iter().map(|row| Metric { key: row.get(0), kind: kind(row.get(1), row.get(2)) }).collect();
    let joint = if condition.is_empty() { "WHERE" } else { "AND" };
    let others = format!(
        "SELECT EXISTS (SELECT FROM {from} {condition} {joint} pg_catalog.jsonb_typeof({column}) NOT IN ('object', 'null'))"
    );
    if sqlx::query_scalar(sqlx::AssertSqlSafe(others)).fetch_one(&mut *session).await? {
        found.push(Metric { key: None, kind: Kind::Json });
    }
    Ok(found)
}

/// A column of the table itself.
fn own(column: &Attribute, format: Format) -> Column {
    let plain = format!("t.{}", column.quoted);
    let (kind, expression) = form(column, &plain, format);
    Column { name: column.name.clone(), expression, kind }
}

/// How a column's values are asked for: most as they are; those of a type whose binary form is not read here as text.
fn form(column: &Attribute, plain: &str, format: Format) -> (Kind, String) {
    let as_it_is = |kind| (kind, plain.to_owned());
    match (column.type_oid, format) {
        (16, _) => as_it_is(Kind::Bool),
        (17, _) => as_it_is(Kind::Bytes),
        (20, _) => as_it_is(Kind::Int64),
        (21, _) => as_it_is(Kind::Int16),
        (23, _) => as_it_is(Kind::Int32),
        (19 | 25 | 1042 | 1043, _) => as_it_is(Kind::Text),
        (114, _) => as_it_is(Kind::Json),
        (3802, _) => as_it_is(Kind::Jsonb),
        (700, _) => as_it_is(Kind::Float),
        (701, _) => as_it_is(Kind::Double),
        (1082, _) => as_it_is(Kind::Date),
        (1083, _) => as_it_is(Kind::Time),
        (1114, _) => as_it_is(Kind::Timestamp { utc: false }),
        (1184, _) => as_it_is(Kind::Timestamp { utc: true }),
        (2950, _) => as_it_is(Kind::Uuid),
        (1700, Format::Parquet) => match decimal(column.modifier) {
            Some((precision, scale)) => {
                let factor = format!("1{}", "0".repeat(usize::try_from(scale).unwrap_or(0)));
                let whole = format!("(NULLIF({plain}, 'NaN') * {factor}::numeric)::int8");
                (Kind::Decimal { precision, scale }, whole)
            }
            None => (Kind::Text, format!("{plain}::text")),
        },
        (1700, _) => (Kind::Number, format!("{plain}::text")),
        // What `row_to_json` makes of it, whatever it is.
        (_, Format::Json | Format::Ndjson) => (Kind::Json, format!("pg_catalog.to_json({plain})::text")),
        // Arrays and rows keep their structure.
        (_, Format::Parquet) if column.category == "A" || column.category == "C" => {
            (Kind::Json, format!("pg_catalog.to_json({plain})::text"))
        }
        // As every client shows it: a cast to text has rules of its own for some types.
        // A row of nothing but NULLs is not NULL, and yet it is not IS NOT NULL.
        _ => (
            Kind::Text,
            format!("CASE WHEN {plain} IS DISTINCT FROM NULL THEN pg_catalog.format('%s', {plain}) END"),
        ),
    }
}

/// Precision and scale of a numeric column, where 64 bits hold every value of it.
fn decimal(modifier: i32) -> Option<(i32, i32)> {
    let packed = modifier.checked_sub(4).filter(|packed| *packed >= 0)?;
    let (precision, scale) = ((packed >> 16) & 0xffff, packed & 0x7ff);
    ((1..=18).contains(&precision) && scale <= precision).then_some((precision, scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(format: Format, type_oid: u32, modifier: i32, category: &str) -> (Kind, String) {
        let column = Attribute {
            name: "c".to_owned(),
            quoted: "c".to_owned(),
            type_oid,
            modifier,
            category: category.to_owned(),
        };
        let made = own(&column, format);
        (made.kind, made.expression)
    }

    fn form(type_oid: u32, modifier: i32, category: &str) -> (Kind, String) {
        asked(Format::Parquet, type_oid, modifier, category)
    }

    #[test]
    fn a_type_that_parquet_does_not_know_goes_as_text() {
        assert_eq!(form(1184, -1, "D"), (Kind::Timestamp { utc: true }, "t.c".to_owned()));
        // numeric(12,4), numeric, numeric(30,2), numeric(3,-2)
        let whole = "(NULLIF(t.c, 'NaN') * 10000::numeric)::int8".to_owned();
        assert_eq!(form(1700, (12 << 16 | 4) + 4, "N"), (Kind::Decimal { precision: 12, scale: 4 }, whole));
        for modifier in [-1, (30 << 16 | 2) + 4, (3 << 16 | 0x7fe) + 4] {
            assert_eq!(form(1700, modifier, "N"), (Kind::Text, "t.c::text".to_owned()), "{modifier}");
        }
        assert_eq!(form(1007, -1, "A"), (Kind::Json, "pg_catalog.to_json(t.c)::text".to_owned()));
        let shown = "CASE WHEN t.c IS DISTINCT FROM NULL THEN pg_catalog.format('%s', t.c) END".to_owned();
        assert_eq!(form(869, -1, "I"), (Kind::Text, shown));
    }
}
