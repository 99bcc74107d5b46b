//! `audit …`

use jiff::Timestamp;
use voiceai_cli::{Column, Failure, Output};
use voiceai_postgres::audit::Recorded;

use super::Service;
use crate::cli::{Audit, AuditList};
use crate::operate::trail;

pub(super) async fn run(command: Audit, service: &Service, output: Output) -> Result<(), Failure> {
    let Audit::List(AuditList { since, page }) = command;
    let since = since.map(|since| since.timestamp(Timestamp::now()));
    let pool = service.pool().await?;
    let (rows, next) = trail::list(&pool, since, page.limit, page.cursor.as_deref()).await?;
    let columns = [
        Column::new("AT", |row: &Recorded| format!("{:.0}", row.at)),
        Column::new("ACTOR", |row: &Recorded| row.actor.clone()),
        Column::new("ACTION", |row: &Recorded| row.action.clone()),
        Column::new("SUBJECT", |row: &Recorded| row.subject.clone()),
        Column::new("REASON", |row: &Recorded| row.reason.clone().unwrap_or_default()),
    ];
    output.list("entries", &rows, next.as_deref(), &columns)
}
