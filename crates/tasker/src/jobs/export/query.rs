//! From an order to the statement that reads its rows.

use serde_json::Value;
use sqlx::{Executor as _, Row as _};
use voiceai_postgres::PgPool;
use voiceai_postgres::sqlx::{self, PgConnection};

use super::columns::Column;
use super::error::ExportError;

/// Where an export's rows come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Schema.
    pub schema: String,
    /// Table or view.
    pub table: String,
    /// How far back it goes where the order names no time.
    pub range: Option<&'static str>,
}

const RANGES: [(&str, &str); 6] = [
    ("1h", "1 hour"),
    ("6h", "6 hours"),
    ("24h", "24 hours"),
    ("7d", "7 days"),
    ("30d", "30 days"),
    ("90d", "90 days"),
];
const TIMES: [&str; 4] = ["time", "created_at", "createdAt", "at"];
const TENANTS: [&str; 2] = ["tenant_id", "tenantId"];

/// The source of an export of this type.
///
/// # Errors
/// [`ExportError::Order`] for a type that is none, or a table that is not among `allowed`.
pub fn source(export_type: &str, allowed: &[String]) -> Result<Source, ExportError> {
    let of = |schema: &str, table: &str, range| Source {
        schema: schema.to_owned(),
        table: table.to_owned(),
        range,
    };
    match export_type {
        "devices" => Ok(of("public", "devices", None)),
        "alerts" => Ok(of("public", "fleet_alert", Some("30 days"))),
        "telemetry" => Ok(of("public", "telemetry", Some("24 hours"))),
        other => match other.split_once('.') {
            Some((schema, table)) if allowed.iter().any(|name| name == other) => Ok(of(schema, table, None)),
            Some(_) => Err(ExportError::Order(format!("{other:?} is not among EXPORT_TABLES"))),
            None => Err(ExportError::Order(format!(
                "type {other:?} is none of devices, alerts, telemetry, or schema.table out of EXPORT_TABLES"
            ))),
        },
    }
}

/// A column of a table as the database has it.
#[derive(Debug, Clone)]
pub(super) struct Attribute {
    pub(super) name: String,
    /// The same in quotes where it needs them.
    pub(super) quoted: String,
    pub(super) type_oid: u32,
    /// `atttypmod`; -1 where there is none.
    pub(super) modifier: i32,
    /// `typcategory`.
    pub(super) category: String,
}

impl Attribute {
    pub(super) const fn is_json(&self) -> bool {
        matches!(self.type_oid, 114 | 3802)
    }
}

/// A table as the database has it.
#[derive(Debug, Clone)]
pub(super) struct Table {
    quoted: String,
    pub(super) columns: Vec<Attribute>,
}

/// Which rows: what follows FROM, and the condition with its WHERE, which may be empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Selection {
    pub(super) from: String,
    pub(super) condition: String,
}

impl Table {
    pub(super) async fn look_up(session: &mut PgConnection, source: &Source) -> Result<Self, ExportError> {
        let rows = sqlx::query(
            "SELECT pg_catalog.format('%I.%I', n.nspname, c.relname), a.attname::text, pg_catalog.quote_ident(a.attname),
                    a.atttypid::int8, a.atttypmod, y.typcategory::text
             FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
             JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
             JOIN pg_catalog.pg_type y ON y.oid = a.atttypid
             WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p', 'v', 'm', 'f') ORDER BY a.attnum",
        )
        .bind(&source.schema)
        .bind(&source.table)
        .fetch_all(session)
        .await?;
        let first = rows.first().ok_or_else(|| {
            ExportError::Order(format!("there is no table {}.{} with columns", source.schema, source.table))
        })?;
        let attribute = |row: &sqlx::postgres::PgRow| Attribute {
            name: row.get(1),
            quoted: row.get(2),
            type_oid: u32::try_from(row.get::<i64, _>(3)).unwrap_or(0),
            modifier: row.get(4),
            category: row.get(5),
        };
        Ok(Self { quoted: first.get(0), columns: rows.iter().map(attribute).collect() })
    }

    fn column(&self, names: &[&str], what: &str) -> Result<&str, ExportError> {
        let found = names.iter().find_map(|name| self.columns.iter().find(|column| column.name == *name));
        found.map(|column| column.quoted.as_str()).ok_or_else(|| {
            ExportError::Order(format!(
                "{what} cannot be applied: {} has no column {}",
                self.quoted,
                names.join(" or ")
            ))
        })
    }
}

/// Which rows an order means.
pub(super) fn select(
    table: &Table,
    range: Option<&str>,
    tenant: Option<&str>,
    filters: &Value,
) -> Result<Selection, ExportError> {
    let mut conditions = Vec::new();
    if let Some(tenant) = tenant {
        let column = table.column(&TENANTS, "tenant_id")?;
        // A literal without a type is of the column's: a cast of the column would keep its index from being used.
        conditions.push(format!("t.{column} = {}", literal(tenant)?));
    }
    let mut range = range;
    let empty = serde_json::Map::new();
    for (name, value) in filters.as_object().unwrap_or(&empty) {
        match name.as_str() {
            "status" => conditions.push(any_of(table, "status", name, value)?),
            "site_ids" => conditions.push(any_of(table, "site_id", name, value)?),
            "device_ids" => conditions.push(any_of(table, "device_id", name, value)?),
            "alert_types" => conditions.push(any_of(table, "alert_type", name, value)?),
            "time_range" => {
                let word = value.as_str().unwrap_or_default();
                let known = RANGES.iter().find(|(known, _)| *known == word);
                let wrong = || {
                    let words = RANGES.map(|(word, _)| word).join(", ");
                    ExportError::Order(format!("time_range {value} is none of {words}"))
                };
                range = Some(known.ok_or_else(wrong)?.1);
            }
            other => {
                return Err(ExportError::Order(format!(
                    "filter {other:?} is none of status, site_ids, device_ids, alert_types, time_range"
                )));
            }
        }
    }
    if let Some(range) = range {
        let column = table.column(&TIMES, "time_range")?;
        conditions.push(format!("t.{column} >= pg_catalog.now() - interval '{range}'"));
    }
    let condition =
        if conditions.is_empty() { String::new() } else { format!("WHERE {}", conditions.join(" AND ")) };
    Ok(Selection { from: format!("{} t", table.quoted), condition })
}

/// The `COPY` that gives the rows, one a message.
pub(super) fn statement(selection: &Selection, columns: &[Column]) -> String {
    let Selection { from, condition } = selection;
    let list = columns.iter().map(|column| column.expression.as_str()).collect::<Vec<_>>().join(", ");
    format!("COPY (SELECT {list} FROM {from} {condition}) TO STDOUT WITH (FORMAT binary)")
}

/// Begins the one transaction in which rows are read: those of one moment.
pub(super) const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY";

/// Values are shown in one way whatever the server's settings, however long it takes; a table that somebody rebuilds is not waited
/// for in vain.
const MANNERS: &str = "SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL lock_timeout = '60s';
     SET LOCAL TimeZone = 'UTC'; SET LOCAL DateStyle = ISO; SET LOCAL IntervalStyle = postgres; SET LOCAL bytea_output = hex;
     SET LOCAL extra_float_digits = 1";

/// In the transaction that has begun, sees to it that no more is read than the order is about, and no less.
///
/// Where a table has policies of row security, those that name `app.tenant_id` see the order's tenant. An order of everybody's rows
/// is an error there unless the role is above the policies: they would leave rows out without a word.
pub(super) async fn set_scope(session: &mut PgConnection, tenant: Option<&str>) -> Result<(), ExportError> {
    if tenant.is_some_and(|tenant| tenant.contains('\0')) {
        return Err(ExportError::Order("the tenant holds a NUL character".to_owned()));
    }
    session.execute(sqlx::raw_sql(MANNERS)).await?;
    match tenant {
        Some(tenant) => {
            let scope = sqlx::query("SELECT pg_catalog.set_config('app.tenant_id', $1, true)").bind(tenant);
            scope.execute(session).await?;
        }
        None => {
            session.execute("SET LOCAL row_security = off").await?;
        }
    }
    Ok(())
}

/// Whether an order could be carried out now, and about how many rows it would have, as the planner guesses.
///
/// # Errors
/// [`ExportError::Order`] or [`ExportError::Refused`] with what is wrong with it; the database's.
pub async fn check(pool: &PgPool, order: &super::Order, allowed: &[String]) -> Result<u64, ExportError> {
    let source = source(&order.export_type, allowed)?;
    let mut session = pool.begin_with(BEGIN).await?;
    set_scope(&mut session, order.tenant.as_deref()).await?;
    // A person waits.
    session.execute("SET LOCAL lock_timeout = '5s'").await?;
    let table = Table::look_up(&mut session, &source).await?;
    let Selection { from, condition } =
        select(&table, source.range, order.tenant.as_deref(), &order.filters)?;
    // Plans without reading a row: what the filters are compared with must fit their columns, and the role must have the right.
    let plan = format!("EXPLAIN (FORMAT JSON) SELECT FROM {from} {condition}");
    let plan: Value = sqlx::query_scalar(sqlx::AssertSqlSafe(plan))
        .fetch_one(&mut *session)
        .await
        .map_err(ExportError::of_rows)?;
    session.rollback().await?;
    Ok(plan.pointer("/0/Plan/Plan Rows").and_then(Value::as_u64).unwrap_or(0))
}

fn any_of(table: &Table, column: &str, name: &str, value: &Value) -> Result<String, ExportError> {
    let wrong = || ExportError::Order(format!("filter {name:?} takes a text or a list of texts"));
    let texts = match value {
        Value::String(text) => vec![literal(text)?],
        Value::Array(values) => {
            let text = |value: &Value| literal(value.as_str().ok_or_else(wrong)?);
            values.iter().map(text).collect::<Result<_, _>>()?
        }
        _ => return Err(wrong()),
    };
    let column = table.column(&[column], name)?;
    Ok(if texts.is_empty() { "false".to_owned() } else { format!("t.{column} IN ({})", texts.join(", ")) })
}

/// A text that is one in every setting of the server: `COPY` takes no parameters.
pub(super) fn literal(text: &str) -> Result<String, ExportError> {
    if text.contains('\0') {
        return Err(ExportError::Order("a filter holds a NUL character".to_owned()));
    }
    Ok(format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "\\'")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn table() -> Table {
        let columns = ["device_id", "tenant_id", "time", "status"];
        let text = |name: &str| Attribute {
            name: name.to_owned(),
            quoted: name.to_owned(),
            type_oid: 25,
            modifier: -1,
            category: "S".to_owned(),
        };
        Table { quoted: "public.telemetry".to_owned(), columns: columns.map(text).into() }
    }

    #[test]
    fn an_order_becomes_one_statement_whose_values_cannot_leave_their_quotes() {
        let filters = json!({ "device_ids": ["a", "b' OR true --\\"], "time_range": "7d" });
        let selection = select(&table(), Some("24 hours"), Some("t'1"), &filters).expect("a selection");
        let column = Column {
            name: "status".to_owned(),
            expression: "t.status".to_owned(),
            kind: super::super::columns::Kind::Text,
        };
        assert_eq!(
            statement(&selection, &[column]),
            "COPY (SELECT t.status FROM public.telemetry t WHERE t.tenant_id = E't\\'1' AND t.device_id IN \
             (E'a', E'b\\' OR true --\\\\') AND t.time >= pg_catalog.now() - interval '7 days') TO STDOUT \
             WITH (FORMAT binary)"
        );
    }

    #[test]
    fn what_cannot_be_meant_is_named() {
        for (filters, says) in [
            (json!({ "colour": "red" }), "colour"),
            (json!({ "time_range": "2y" }), "1h, 6h"),
            (json!({ "status": 7 }), "status"),
            (json!({ "site_ids": ["a"] }), "no column site_id"),
            (json!({ "status": "a\u{0}" }), "NUL"),
        ] {
            let error = select(&table(), None, None, &filters).expect_err(says).to_string();
            assert!(error.contains(says), "{error}");
        }
        let allowed = ["billing.calls".to_owned()];
        assert_eq!(source("billing.calls", &allowed).expect("allowed").table, "calls");
        for other in ["billing.secrets", "users", "public.devices"] {
            assert!(source(other, &allowed).is_err(), "{other}");
        }
    }
}
