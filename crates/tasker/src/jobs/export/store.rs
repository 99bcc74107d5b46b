//! From the database to the bucket.

use std::io;

use bytes::Bytes;
use futures_util::StreamExt as _;
use sqlx::Executor as _;
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use voiceai_aws::{ObjectStore, PartSizes, S3ErrorKind};
use voiceai_postgres::PgPool;
use voiceai_postgres::sqlx::{self, PgConnection};

use super::columns::{self, Column};
use super::error::ExportError;
use super::parquet::File;
use super::query::{self, Table};
use super::rows::{self, Export, Made};
use super::shape::Format;
use super::text::{Layout, Text};
use super::wire::Wire;
use super::{ExportContext, ExportSettings};

/// Chunks between the database and the upload.
const WAITING: usize = 16;
/// Bytes of a chunk.
const GATHERED: usize = 64 * 1024;
/// Chunks of rows between the database and the thread that makes a Parquet file.
const LOTS: usize = 4;
/// Parts of S3's smallest size: more of them travel at a time in the same memory. Some 300 GiB fit.
const PARTS: PartSizes = PartSizes::starting_at(5 * 1024 * 1024);

/// Where the objects of one order begin.
fn stem(settings: &ExportSettings, id: Uuid) -> String {
    let prefix = &settings.prefix;
    if prefix.is_empty() { format!("{id}-") } else { format!("{prefix}/{id}-") }
}

/// Removes every object and half upload of an order.
pub(super) async fn clear(
    store: &ObjectStore,
    settings: &ExportSettings,
    id: Uuid,
) -> Result<(), ExportError> {
    let stem = stem(settings, id);
    store.abort_uploads(&stem, |_| true).await?;
    for object in store.list(&stem).await? {
        store.delete(&object.key).await?;
    }
    Ok(())
}

/// Removes an order that has ended: first what it has in the bucket, then its row.
///
/// # Errors
/// The store's, with the row still there; the database's.
pub async fn remove(
    pool: &PgPool,
    store: &ObjectStore,
    settings: &ExportSettings,
    id: Uuid,
) -> Result<(), ExportError> {
    clear(store, settings, id).await?;
    Ok(rows::remove(pool, id).await.map(drop)?)
}

/// Streams the rows of a claimed order into an object of this attempt's own.
pub(super) async fn make(
    ctx: &ExportContext,
    claimed: &Export,
    cancel: &CancellationToken,
) -> Result<Made, ExportError> {
    let format = Format::of(&claimed.format).ok_or_else(|| {
        ExportError::Order(format!("format {:?} is none of {}", claimed.format, Format::words()))
    })?;
    let key = format!("{}{}.{}", stem(&ctx.settings, claimed.id), claimed.attempt, format.word());

    let (sender, mut receiver) = mpsc::channel(WAITING);
    let reading = tokio::spawn(read(ctx.clone(), claimed.clone(), format, sender));
    let reader = StreamReader::new(futures_util::stream::poll_fn(move |context| receiver.poll_recv(context)));
    let approve = async |_| Ok::<(), io::Error>(());
    let uploaded = ctx.store.put_stream(&key, reader, PARTS, cancel, approve).await;
    // The upload, and with it the receiver, is gone: the reader ends at its next chunk.
    let read = reading.await.unwrap_or(Err(ExportError::Cancelled));
    match (uploaded, read) {
        (Ok(uploaded), Ok(rows)) => Ok(Made { key, bytes: uploaded.bytes, rows }),
        (Err(error), _) if error.kind() == S3ErrorKind::Cancelled => Err(ExportError::Cancelled),
        (Err(error), Ok(_) | Err(ExportError::Cancelled)) => Err(error.into()),
        (_, Err(error)) => Err(error),
    }
}

type Chunks = mpsc::Sender<Result<Bytes, io::Error>>;

/// Reads the rows to their end and answers how many they were. An end without all of them is an error in the stream, so that no
/// upload is completed.
async fn read(
    ctx: ExportContext,
    claimed: Export,
    format: Format,
    sender: Chunks,
) -> Result<u64, ExportError> {
    let done = copy(&ctx, &claimed, format, &sender).await;
    // Nobody takes the chunks any more: whatever came of it, the upload's own error says why.
    if sender.is_closed() {
        return Err(ExportError::Cancelled);
    }
    if let Err(error) = &done {
        let _ = sender.send(Err(io::Error::other(error.to_string()))).await;
    }
    done
}

async fn copy(
    ctx: &ExportContext,
    claimed: &Export,
    format: Format,
    sender: &Chunks,
) -> Result<u64, ExportError> {
    // A session of its own, closed at the end whatever comes: a COPY that is left in its middle spoils a pooled one.
    let mut session = ctx.pool.acquire().await?.detach();
    session.execute(query::BEGIN).await?;
    query::set_scope(&mut session, claimed.tenant_id.as_deref()).await?;
    let source = query::source(&claimed.export_type, &ctx.settings.tables)?;
    let table = Table::look_up(&mut session, &source).await?;
    let selection = query::select(&table, source.range, claimed.tenant_id.as_deref(), &claimed.filters)?;
    let telemetry = claimed.export_type == "telemetry";
    let flat = telemetry && matches!(format, Format::Csv | Format::Parquet);
    let columns = columns::of(&mut session, &table, &selection, format, flat).await?;
    let statement = query::statement(&selection, &columns);
    let layout = match format {
        Format::Parquet => return copy_parquet(&mut session, &statement, &columns, sender).await,
        Format::Csv => Layout::Csv,
        Format::Ndjson => Layout::Lines,
        Format::Json => Layout::Document(if telemetry { "telemetry" } else { "data" }),
    };
    copy_text(&mut session, &statement, &columns, Text::new(layout, &columns), sender).await
}

async fn copy_text(
    session: &mut PgConnection,
    statement: &str,
    columns: &[Column],
    mut text: Text,
    sender: &Chunks,
) -> Result<u64, ExportError> {
    let mut wire = Wire::new(columns.len());
    let mut rows = session.copy_out_raw(statement).await.map_err(ExportError::of_rows)?;
    while let Some(row) = rows.next().await {
        wire.take(&row.map_err(ExportError::of_rows)?, &mut text)?;
        // The server sends a row at a time: gathered, they cost one hand-over for many.
        if let Some(full) = text.filled(GATHERED) {
            sender.send(Ok(Bytes::from(full))).await.map_err(|_| ExportError::Cancelled)?;
        }
    }
    sender.send(Ok(Bytes::from(text.end()))).await.map_err(|_| ExportError::Cancelled)?;
    Ok(wire.rows())
}

/// What the thread that makes the file is sent.
enum Lot {
    /// Messages of the server.
    Messages(Vec<Bytes>),
    /// Those were all.
    End,
}

/// Compression takes its time, and a slow upload too: neither may hold up a thread that others need. All of it is done by one: memory
/// that one thread gives back is not at once another's.
async fn copy_parquet(
    session: &mut PgConnection,
    statement: &str,
    columns: &[Column],
    sender: &Chunks,
) -> Result<u64, ExportError> {
    let (lots, waiting) = mpsc::channel(LOTS);
    let (columns, chunks) = (columns.to_vec(), sender.clone());
    let writing = tokio::task::spawn_blocking(move || write_parquet(waiting, &columns, chunks));
    let read = send_lots(session, statement, &lots).await;
    drop(lots);
    let written = writing.await.unwrap_or(Err(ExportError::Cancelled));
    match (read, written) {
        // The writer was let down by the reader, not the other way round.
        (Err(error), Err(ExportError::Cancelled)) => Err(error),
        (_, written) => written,
    }
}

async fn send_lots(
    session: &mut PgConnection,
    statement: &str,
    lots: &mpsc::Sender<Lot>,
) -> Result<(), ExportError> {
    let mut rows = session.copy_out_raw(statement).await.map_err(ExportError::of_rows)?;
    let (mut lot, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next().await {
        let row = row.map_err(ExportError::of_rows)?;
        bytes += row.len();
        lot.push(row);
        if bytes >= GATHERED {
            let next = Vec::with_capacity(lot.len());
            let full = std::mem::replace(&mut lot, next);
            lots.send(Lot::Messages(full)).await.map_err(|_| ExportError::Cancelled)?;
            bytes = 0;
        }
    }
    for last in [Lot::Messages(lot), Lot::End] {
        lots.send(last).await.map_err(|_| ExportError::Cancelled)?;
    }
    Ok(())
}

/// On a thread that may compute and wait. Ends the file only when it was told that it has all of the rows.
fn write_parquet(
    mut waiting: mpsc::Receiver<Lot>,
    columns: &[Column],
    chunks: Chunks,
) -> Result<u64, ExportError> {
    let mut wire = Wire::new(columns.len());
    let mut file = File::new(columns, chunks)?;
    loop {
        match waiting.blocking_recv() {
            Some(Lot::Messages(messages)) => {
                for message in messages {
                    wire.take(&message, &mut file)?;
                    if file.is_full() {
                        file.write_group()?;
                    }
                }
            }
            Some(Lot::End) => {
                file.end()?;
                return Ok(wire.rows());
            }
            None => return Err(ExportError::Cancelled),
        }
    }
}
