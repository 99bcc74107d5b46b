//! From the database to the bucket.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::StreamExt as _;
use sqlx::Executor as _;
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use voiceai_aws::{PartSizes, S3ErrorKind};
use voiceai_postgres::sqlx;

use super::ExportContext;
use super::error::ExportError;
use super::query::{self, Table};
use super::rows::{Export, Made};
use super::shape::{Format, Shaper};

/// Chunks between the database and the upload.
const WAITING: usize = 16;
/// Bytes of a chunk.
const GATHERED: usize = 64 * 1024;

/// Where the objects of one order begin.
pub(super) fn stem(ctx: &ExportContext, id: Uuid) -> String {
    let prefix = &ctx.settings.prefix;
    if prefix.is_empty() { format!("{id}-") } else { format!("{prefix}/{id}-") }
}

/// Removes every object and half upload of an order.
pub(super) async fn clear(ctx: &ExportContext, id: Uuid) -> Result<(), ExportError> {
    let stem = stem(ctx, id);
    ctx.store.abort_uploads(&stem, |_| true).await?;
    for object in ctx.store.list(&stem).await? {
        ctx.store.delete(&object.key).await?;
    }
    Ok(())
}

/// Streams the rows of a claimed order into an object of this attempt's own.
pub(super) async fn make(
    ctx: &ExportContext,
    claimed: &Export,
    cancel: &CancellationToken,
) -> Result<Made, ExportError> {
    let format = Format::of(&claimed.format).ok_or_else(|| {
        ExportError::Order(format!("format {:?} is none of csv, json, ndjson", claimed.format))
    })?;
    let source = query::source(&claimed.export_type, &ctx.settings.tables)?;
    let table = Table::look_up(&ctx.pool, &source).await?;
    let statement =
        query::statement(&table, source.range, claimed.tenant_id.as_deref(), &claimed.filters, format)?;
    let list = if claimed.export_type == "telemetry" { "telemetry" } else { "data" };
    let key = format!("{}{}.{}", stem(ctx, claimed.id), claimed.attempt, format.word());

    let (sender, mut receiver) = mpsc::channel::<Result<Bytes, std::io::Error>>(WAITING);
    let rows = Arc::new(AtomicU64::new(0));
    let reading =
        tokio::spawn(read(ctx.clone(), statement, Shaper::new(format, list), Arc::clone(&rows), sender));
    let reader = StreamReader::new(futures_util::stream::poll_fn(move |context| receiver.poll_recv(context)));
    let approve = async |_| Ok::<(), std::io::Error>(());
    let uploaded = ctx.store.put_stream(&key, reader, PartSizes::SMALLEST, cancel, approve).await;
    // The upload, and with it the receiver, is gone: the reader ends at its next chunk.
    let read = reading.await.unwrap_or(Err(ExportError::Cancelled));
    match (uploaded, read) {
        (Ok(uploaded), Ok(())) => Ok(Made { key, bytes: uploaded.bytes, rows: rows.load(Ordering::Acquire) }),
        (Err(error), _) if error.kind() == S3ErrorKind::Cancelled => Err(ExportError::Cancelled),
        (Err(error), Ok(())) => Err(error.into()),
        (Err(error), Err(ExportError::Cancelled)) => Err(error.into()),
        (_, Err(error)) => Err(error),
    }
}

/// Reads the rows to their end. An end without all of them is an error in the stream, so that no upload is completed.
async fn read(
    ctx: ExportContext,
    statement: String,
    mut shaper: Shaper,
    rows: Arc<AtomicU64>,
    sender: mpsc::Sender<Result<Bytes, std::io::Error>>,
) -> Result<(), ExportError> {
    let done = copy(&ctx, &statement, &mut shaper, &sender).await;
    if let Err(error) = &done {
        let _ = sender.send(Err(std::io::Error::other(error.to_string()))).await;
    } else {
        rows.store(shaper.rows(), Ordering::Release);
    }
    done
}

async fn copy(
    ctx: &ExportContext,
    statement: &str,
    shaper: &mut Shaper,
    sender: &mpsc::Sender<Result<Bytes, std::io::Error>>,
) -> Result<(), ExportError> {
    // A session of its own, closed at the end whatever comes: a COPY that is left in its middle spoils a pooled one.
    let mut session = ctx.pool.acquire().await?.detach();
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET LOCAL statement_timeout = 0;
                 SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL TimeZone = 'UTC'; SET LOCAL DateStyle = ISO";
    session.execute(sqlx::raw_sql(begin)).await?;
    let mut chunks = session.copy_out_raw(statement).await?;
    // The server sends a row at a time: gathered, they cost one hand-over for many.
    let mut gathered = Vec::with_capacity(2 * GATHERED);
    while let Some(chunk) = chunks.next().await {
        gathered.extend(shaper.push(&chunk?));
        if gathered.len() >= GATHERED {
            let full = std::mem::replace(&mut gathered, Vec::with_capacity(2 * GATHERED));
            if sender.send(Ok(Bytes::from(full))).await.is_err() {
                return Err(ExportError::Cancelled);
            }
        }
    }
    gathered.extend(shaper.end());
    let _ = sender.send(Ok(Bytes::from(gathered))).await;
    Ok(())
}
