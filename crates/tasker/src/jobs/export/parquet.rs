//! Rows in the binary form of `COPY` become row groups of a Parquet file. A row group is gathered, compressed and handed on
//! before the next one begins, so memory does not grow with the number of rows.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
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
use super::text::versioned;
use super::values::{DAYS, fixed};
use super::wire::Rows;

/// What a row group holds at most, as it lies in memory.
const GROUP_BYTES: usize = 8 * 1024 * 1024;
/// Bytes of a chunk on its way to the upload.
const CHUNK: usize = 64 * 1024;
/// What a value of variable length costs beside its bytes.
const VALUE: usize = 8;
/// From 1970 to 2000, where PostgreSQL counts from.
const MICROS: i64 = 946_684_800_000_000;

/// Where chunks of an object go: an upload that reads them one after the other.
type Chunks = mpsc::Sender<Result<Bytes, io::Error>>;

/// A file on its way, with the row group that is being gathered.
pub(super) struct File {
    writer: SerializedFileWriter<Sink>,
    buffers: Vec<Buffer>,
    weight: usize,
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
        })
    }

    /// True when the row group is to be written before more is taken.
    pub(super) const fn is_full(&self) -> bool {
        self.weight >= GROUP_BYTES
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

    /// Writes what is left and the foot of the file.
    pub(super) fn end(mut self) -> Result<(), ExportError> {
        self.write_group()?;
        let mut sink = self.writer.into_inner()?;
        sink.hand_on().map_err(|error| ExportError::Encode(error.to_string()))
    }
}

impl Rows for File {
    fn field(&mut self, at: usize, value: Option<&[u8]>) -> Result<(), ExportError> {
        let Some(buffer) = self.buffers.get_mut(at) else {
            return Err(ExportError::Encode(format!("a row has more than {at} fields")));
        };
        self.weight += buffer.push(value)?;
        Ok(())
    }

    fn end_row(&mut self) {}
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
        Kind::Text | Kind::Number => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
        Kind::Json | Kind::Jsonb => (Physical::BYTE_ARRAY, Some(LogicalType::Json)),
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
    Bytes(Lot),
    Fixed(Lot),
}

/// Values of any length, one behind the other. As values of their own they are made only when their column is written, so that no
/// more than one column's are there at a time.
#[derive(Default)]
struct Lot {
    bytes: Vec<u8>,
    lengths: Vec<usize>,
}

impl Lot {
    fn push(&mut self, value: &[u8]) {
        self.bytes.extend_from_slice(value);
        self.lengths.push(value.len());
    }

    /// Takes them out.
    fn values<T: From<ByteArray>>(&mut self) -> Vec<T> {
        // As large again: the next row group is like this one.
        let room = Vec::with_capacity(self.bytes.len());
        let mut bytes = Bytes::from(std::mem::replace(&mut self.bytes, room));
        self.lengths.drain(..).map(|length| T::from(ByteArray::from(bytes.split_to(length)))).collect()
    }
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
            Kind::Text | Kind::Number | Kind::Json | Kind::Jsonb | Kind::Bytes => {
                Values::Bytes(Lot::default())
            }
            Kind::Uuid => Values::Fixed(Lot::default()),
        };
        Self { kind, values, defined: Vec::new() }
    }

    /// Adds a row's value; answers what it weighs.
    fn push(&mut self, value: Option<&[u8]>) -> Result<usize, ExportError> {
        let mut weight = 2;
        let mut there = false;
        if let Some(value) = value {
            (weight, there) =
                self.values.push(self.kind, value).map(|(more, there)| (weight + more, there))?;
        }
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
            Values::Bytes(lot) => all::<ByteArrayType>(&mut column, &mut lot.values(), defined)?,
            Values::Fixed(lot) => {
                all::<FixedLenByteArrayType>(&mut column, &mut lot.values::<FixedLenByteArray>(), defined)?;
            }
        }
        self.defined.clear();
        column.close()
    }
}

impl Values {
    /// Adds a value. Answers what it weighs, and whether it has a place in the file.
    fn push(&mut self, kind: Kind, value: &[u8]) -> Result<(usize, bool), ExportError> {
        Ok(match self {
            Self::Bool(values) => {
                let [byte] = fixed(value, "boolean")?;
                values.push(byte != 0);
                (1, true)
            }
            Self::Int32(values) => {
                let number = match kind {
                    Kind::Int16 => Some(i32::from(i16::from_be_bytes(fixed(value, "smallint")?))),
                    Kind::Date => day(i32::from_be_bytes(fixed(value, "date")?)),
                    _ => Some(i32::from_be_bytes(fixed(value, "integer")?)),
                };
                values.extend(number);
                (4, number.is_some())
            }
            Self::Int64(values) => {
                let number = i64::from_be_bytes(fixed(value, "bigint")?);
                let number =
                    if matches!(kind, Kind::Timestamp { .. }) { instant(number) } else { Some(number) };
                values.extend(number);
                (8, number.is_some())
            }
            Self::Float(values) => {
                values.push(f32::from_be_bytes(fixed(value, "real")?));
                (4, true)
            }
            Self::Double(values) => {
                values.push(f64::from_be_bytes(fixed(value, "double precision")?));
                (8, true)
            }
            Self::Bytes(lot) => {
                let value = if kind == Kind::Jsonb { versioned(value)? } else { value };
                lot.push(value);
                (VALUE + value.len(), true)
            }
            Self::Fixed(lot) => {
                lot.push(&fixed::<16>(value, "uuid")?);
                (VALUE + 16, true)
            }
        })
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
    fn a_value_of_another_kind_is_an_error_and_not_a_panic() {
        let kinds = [
            Kind::Bool,
            Kind::Int16,
            Kind::Int32,
            Kind::Int64,
            Kind::Float,
            Kind::Double,
            Kind::Uuid,
            Kind::Jsonb,
        ];
        for kind in kinds {
            let column = Column { name: "n".to_owned(), expression: "t.n".to_owned(), kind };
            let (chunks, _reader) = mpsc::channel(16);
            let mut file = File::new(&[column], chunks).expect("a file");
            assert!(file.field(0, Some(&[])).is_err(), "{kind:?}");
            assert!(file.field(0, None).is_ok() && file.field(1, None).is_err(), "{kind:?}");
        }
    }
}
