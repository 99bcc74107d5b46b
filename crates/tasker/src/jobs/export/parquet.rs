//! Rows in the binary form of `COPY` become row groups of a Parquet file. A row group is gathered, compressed and handed on
//! before the next one begins, so memory does not grow with the number of rows.

use std::io;
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use parquet::basic::{Compression, LogicalType, Repetition, TimeUnit, Type as Physical};
use parquet::data_type::{
    BoolType, ByteArray, ByteArrayType, DataType, DoubleType, FixedLenByteArray, FixedLenByteArrayType,
    FloatType, Int32Type, Int64Type,
};
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::types::Type;
use tokio::sync::mpsc;

use super::columns::{Column, Kind};
use super::error::ExportError;

/// What a row group holds at most, as it lies in memory.
const GROUP_BYTES: usize = 8 * 1024 * 1024;
/// Bytes of a chunk on its way to the upload.
const CHUNK: usize = 64 * 1024;
/// What a value of variable length costs beside its bytes.
const VALUE: usize = 32;
/// From 1970 to 2000, where PostgreSQL counts from.
const DAYS: i32 = 10_957;
const MICROS: i64 = 946_684_800_000_000;
/// Signature, flags and length of the extension: the head of a binary `COPY`.
const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";

/// Where chunks of an object go: an upload that reads them one after the other.
type Chunks = mpsc::Sender<Result<Bytes, io::Error>>;

/// A file on its way, with the row group that is being gathered.
pub(super) struct File {
    writer: SerializedFileWriter<Sink>,
    buffers: Vec<Buffer>,
    weight: usize,
    rows: u64,
    headed: bool,
}

impl File {
    /// A file with these columns.
    pub(super) fn new(columns: &[Column], chunks: Chunks) -> Result<Self, ExportError> {
        let fields: Result<Vec<_>, ParquetError> = columns.iter().map(field).collect();
        let schema = Type::group_type_builder("export").with_fields(fields?).build()?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_statistics_enabled(EnabledStatistics::Chunk)
            .set_created_by(concat!("voiceai-tasker ", env!("CARGO_PKG_VERSION")).to_owned())
            .build();
        let sink = Sink { chunks, gathered: Vec::new() };
        Ok(Self {
            writer: SerializedFileWriter::new(sink, Arc::new(schema), Arc::new(properties))?,
            buffers: columns.iter().map(|column| Buffer::new(column.kind)).collect(),
            weight: 0,
            rows: 0,
            headed: false,
        })
    }

    /// True when the row group is to be written before more is taken.
    pub(super) const fn is_full(&self) -> bool {
        self.weight >= GROUP_BYTES
    }

    /// Takes a message of the server: whole rows, before the first of them the head.
    pub(super) fn take(&mut self, mut message: Bytes) -> Result<(), ExportError> {
        if !self.headed {
            behead(&mut message)?;
            self.headed = true;
        }
        while !message.is_empty() {
            let fields = message.try_get_i16().map_err(|_| cut())?;
            if fields < 0 {
                return Ok(());
            }
            if usize::try_from(fields).ok() != Some(self.buffers.len()) {
                return Err(ExportError::Encode(format!(
                    "a row has {fields} fields, not {}",
                    self.buffers.len()
                )));
            }
            for buffer in &mut self.buffers {
                let length = message.try_get_i32().map_err(|_| cut())?;
                let value = match usize::try_from(length) {
                    Ok(length) if length > message.len() => return Err(cut()),
                    Ok(length) => Some(message.split_to(length)),
                    Err(_) => None,
                };
                self.weight += buffer.push(value)?;
            }
            self.rows += 1;
        }
        Ok(())
    }

    /// Writes the row group that was gathered, where there is one. Takes its time: neither compression nor a slow upload may hold
    /// up a thread that others need.
    pub(super) fn write_group(&mut self) -> Result<(), ExportError> {
        if self.weight == 0 {
            return Ok(());
        }
        let mut group = self.writer.next_row_group()?;
        for buffer in &mut self.buffers {
            let column = group
                .next_column()?
                .ok_or_else(|| ExportError::Encode("the file has fewer columns than its rows".to_owned()))?;
            buffer.write(column)?;
        }
        group.close()?;
        self.weight = 0;
        Ok(())
    }

    /// Writes what is left and the foot of the file. Answers how many rows it holds.
    pub(super) fn end(mut self) -> Result<u64, ExportError> {
        self.write_group()?;
        let mut sink = self.writer.into_inner()?;
        sink.hand_on().map_err(|error| ExportError::Encode(error.to_string()))?;
        Ok(self.rows)
    }
}

fn behead(message: &mut Bytes) -> Result<(), ExportError> {
    if message.len() < SIGNATURE.len() + 8 || !message.starts_with(SIGNATURE) {
        return Err(ExportError::Encode("the server's rows have no head of COPY".to_owned()));
    }
    message.advance(SIGNATURE.len() + 4);
    let extension = usize::try_from(message.get_i32()).map_err(|_| cut())?;
    if extension > message.len() {
        return Err(cut());
    }
    message.advance(extension);
    Ok(())
}

fn cut() -> ExportError {
    ExportError::Encode("a row of the server is cut off".to_owned())
}

fn field(column: &Column) -> Result<Arc<Type>, ParquetError> {
    let micros = || TimeUnit::MICROS;
    let (physical, logical) = match column.kind {
        Kind::Bool => (Physical::BOOLEAN, None),
        Kind::Int16 => (Physical::INT32, Some(LogicalType::integer(16, true))),
        Kind::Int32 => (Physical::INT32, None),
        Kind::Int64 => (Physical::INT64, None),
        Kind::Float => (Physical::FLOAT, None),
        Kind::Double => (Physical::DOUBLE, None),
        Kind::Text => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
        Kind::Json => (Physical::BYTE_ARRAY, Some(LogicalType::Json)),
        Kind::Bytes => (Physical::BYTE_ARRAY, None),
        Kind::Uuid => (Physical::FIXED_LEN_BYTE_ARRAY, Some(LogicalType::Uuid)),
        Kind::Date => (Physical::INT32, Some(LogicalType::Date)),
        Kind::Time => (Physical::INT64, Some(LogicalType::time(false, micros()))),
        Kind::Timestamp { utc } => (Physical::INT64, Some(LogicalType::timestamp(utc, micros()))),
        Kind::Decimal { precision, scale } => (Physical::INT64, Some(LogicalType::decimal(scale, precision))),
    };
    let mut builder = Type::primitive_type_builder(&column.name, physical)
        .with_repetition(Repetition::OPTIONAL)
        .with_logical_type(logical);
    if column.kind == Kind::Uuid {
        builder = builder.with_length(16);
    }
    if let Kind::Decimal { precision, scale } = column.kind {
        builder = builder.with_precision(precision).with_scale(scale);
    }
    builder.build().map(Arc::new)
}

/// The values of one column in the row group at hand, those that are not NULL, and for each row whether it has one.
struct Buffer {
    kind: Kind,
    values: Values,
    defined: Vec<i16>,
}

enum Values {
    Bool(Vec<bool>),
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    Float(Vec<f32>),
    Double(Vec<f64>),
    Bytes(Vec<ByteArray>),
    Fixed(Vec<FixedLenByteArray>),
}

impl Buffer {
    fn new(kind: Kind) -> Self {
        let values = match kind {
            Kind::Bool => Values::Bool(Vec::new()),
            Kind::Int16 | Kind::Int32 | Kind::Date => Values::Int32(Vec::new()),
            Kind::Int64 | Kind::Time | Kind::Timestamp { .. } | Kind::Decimal { .. } => {
                Values::Int64(Vec::new())
            }
            Kind::Float => Values::Float(Vec::new()),
            Kind::Double => Values::Double(Vec::new()),
            Kind::Text | Kind::Json | Kind::Bytes => Values::Bytes(Vec::new()),
            Kind::Uuid => Values::Fixed(Vec::new()),
        };
        Self { kind, values, defined: Vec::new() }
    }

    /// Adds a row's value; answers what it weighs.
    fn push(&mut self, value: Option<Bytes>) -> Result<usize, ExportError> {
        let kind = self.kind;
        let wrong = |_| ExportError::Encode(format!("a value of the server is no {kind:?}"));
        let mut weight = 2;
        let there = match (&mut self.values, value) {
            (_, None) => false,
            (Values::Bool(values), Some(mut value)) => {
                values.push(value.try_get_u8().map_err(wrong)? != 0);
                true
            }
            (Values::Int32(values), Some(mut value)) => {
                let number = match kind {
                    Kind::Int16 => Some(i32::from(value.try_get_i16().map_err(wrong)?)),
                    Kind::Date => day(value.try_get_i32().map_err(wrong)?),
                    _ => Some(value.try_get_i32().map_err(wrong)?),
                };
                weight += 4;
                values.extend(number);
                number.is_some()
            }
            (Values::Int64(values), Some(mut value)) => {
                let number = value.try_get_i64().map_err(wrong)?;
                let number =
                    if matches!(kind, Kind::Timestamp { .. }) { instant(number) } else { Some(number) };
                weight += 8;
                values.extend(number);
                number.is_some()
            }
            (Values::Float(values), Some(mut value)) => {
                weight += 4;
                values.push(value.try_get_f32().map_err(wrong)?);
                true
            }
            (Values::Double(values), Some(mut value)) => {
                weight += 8;
                values.push(value.try_get_f64().map_err(wrong)?);
                true
            }
            (Values::Bytes(values), Some(value)) => {
                weight += VALUE + value.len();
                values.push(ByteArray::from(value));
                true
            }
            (Values::Fixed(values), Some(value)) => {
                weight += VALUE + value.len();
                values.push(FixedLenByteArray::from(ByteArray::from(value)));
                true
            }
        };
        self.defined.push(i16::from(there));
        Ok(weight)
    }

    fn write(&mut self, mut column: SerializedColumnWriter<'_>) -> Result<(), ParquetError> {
        fn all<T: DataType>(
            column: &mut SerializedColumnWriter<'_>,
            values: &mut Vec<T::T>,
            defined: &[i16],
        ) -> Result<(), ParquetError> {
            column.typed::<T>().write_batch(values, Some(defined), None)?;
            values.clear();
            Ok(())
        }
        let defined = &self.defined;
        match &mut self.values {
            Values::Bool(values) => all::<BoolType>(&mut column, values, defined)?,
            Values::Int32(values) => all::<Int32Type>(&mut column, values, defined)?,
            Values::Int64(values) => all::<Int64Type>(&mut column, values, defined)?,
            Values::Float(values) => all::<FloatType>(&mut column, values, defined)?,
            Values::Double(values) => all::<DoubleType>(&mut column, values, defined)?,
            Values::Bytes(values) => all::<ByteArrayType>(&mut column, values, defined)?,
            Values::Fixed(values) => all::<FixedLenByteArrayType>(&mut column, values, defined)?,
        }
        self.defined.clear();
        column.close()
    }
}

/// Days since 1970. `infinity`, and what lies beyond the numbers, has no place in the file.
fn day(days: i32) -> Option<i32> {
    if days == i32::MAX || days == i32::MIN { None } else { days.checked_add(DAYS) }
}

/// Microseconds since 1970; likewise.
fn instant(micros: i64) -> Option<i64> {
    if micros == i64::MAX || micros == i64::MIN { None } else { micros.checked_add(MICROS) }
}

/// Hands chunks on, from a thread that may wait.
struct Sink {
    chunks: Chunks,
    gathered: Vec<u8>,
}

impl Sink {
    /// In pieces: a page of a column comes as one, and many of those would wait on their way.
    fn hand_on(&mut self) -> io::Result<()> {
        let mut gathered = Bytes::from(std::mem::take(&mut self.gathered));
        while !gathered.is_empty() {
            let piece = gathered.split_to(CHUNK.min(gathered.len()));
            self.chunks.blocking_send(Ok(piece)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        }
        Ok(())
    }
}

impl io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.gathered.extend_from_slice(bytes);
        if self.gathered.len() >= CHUNK {
            self.hand_on()?;
        }
        Ok(bytes.len())
    }

    // What is gathered goes with the next chunk or with the end: the writer flushes after every column.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_beyond_all_bounds_have_no_place() {
        assert_eq!((day(0), day(-DAYS), day(i32::MAX), day(i32::MIN)), (Some(DAYS), Some(0), None, None));
        assert_eq!((instant(0), instant(i64::MAX), instant(i64::MIN)), (Some(MICROS), None, None));
        assert_eq!((day(i32::MAX - 1), instant(i64::MAX - 1)), (None, None));
    }

    #[test]
    fn what_is_no_row_is_an_error_and_not_a_panic() {
        let column = Column {
            name: "n".to_owned(),
            text: "t.n".to_owned(),
            binary: "t.n".to_owned(),
            kind: Kind::Int32,
        };
        let file = || {
            let (chunks, _reader) = mpsc::channel(16);
            File::new(std::slice::from_ref(&column), chunks).expect("a file")
        };
        let head = [SIGNATURE, &[0; 8]].concat();
        let message = |rest: &[u8]| Bytes::from([&head[..], rest].concat());
        let mut good = file();
        good.take(message(&[0, 1, 0, 0, 0, 4, 0, 0, 0, 7])).expect("a row");
        good.take(Bytes::from_static(&[0, 1, 0xff, 0xff, 0xff, 0xff])).expect("a row of NULL");
        good.take(Bytes::from_static(&[0xff, 0xff])).expect("the end");
        assert_eq!(good.rows, 2);
        for bad in [&[0, 2][..], &[0], &[0, 1, 0, 0, 0, 9, 1], &[0, 1, 0, 0, 0, 2, 1, 1], &[0, 1, 0]] {
            assert!(file().take(message(bad)).is_err(), "{bad:?}");
        }
        assert!(file().take(Bytes::from_static(b"COPY")).is_err());
    }
}
