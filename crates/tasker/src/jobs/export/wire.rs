//! The binary form of `COPY`: rows of fields with their lengths. The server spends the least on it, and nothing has to be searched
//! for delimiters here.

use super::error::ExportError;

/// Signature, flags and length of the extension: the head of a binary `COPY`.
pub(super) const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";

/// What becomes of the rows.
pub(super) trait Rows {
    /// The value of column `at` of the row at hand; NULL is `None`. Columns come in their order.
    fn field(&mut self, at: usize, value: Option<&[u8]>) -> Result<(), ExportError>;

    /// The row is whole.
    fn end_row(&mut self);
}

/// Takes the messages of one `COPY` apart.
#[derive(Debug)]
pub(super) struct Wire {
    columns: usize,
    headed: bool,
    rows: u64,
}

impl Wire {
    /// Of rows with so many columns.
    pub(super) const fn new(columns: usize) -> Self {
        Self { columns, headed: false, rows: 0 }
    }

    /// Rows so far.
    pub(super) const fn rows(&self) -> u64 {
        self.rows
    }

    /// Takes a message of the server: whole rows, before the first of them the head.
    pub(super) fn take(&mut self, mut message: &[u8], to: &mut impl Rows) -> Result<(), ExportError> {
        if !self.headed {
            behead(&mut message)?;
            self.headed = true;
        }
        while !message.is_empty() {
            let fields = i16::from_be_bytes(*first(&mut message)?);
            if fields < 0 {
                return Ok(());
            }
            if usize::try_from(fields).ok() != Some(self.columns) {
                return Err(ExportError::Encode(format!("a row has {fields} fields, not {}", self.columns)));
            }
            for at in 0..self.columns {
                let length = i32::from_be_bytes(*first(&mut message)?);
                let value = match usize::try_from(length) {
                    Ok(length) => Some(message.split_off(..length).ok_or_else(cut)?),
                    Err(_) => None,
                };
                to.field(at, value)?;
            }
            to.end_row();
            self.rows += 1;
        }
        Ok(())
    }
}

/// The first bytes of a value or a message, which it loses.
fn first<'a, const N: usize>(bytes: &mut &'a [u8]) -> Result<&'a [u8; N], ExportError> {
    bytes.split_off(..N).and_then(<[u8]>::first_chunk).ok_or_else(cut)
}

fn behead(message: &mut &[u8]) -> Result<(), ExportError> {
    if message.split_off(..SIGNATURE.len()) != Some(SIGNATURE) {
        return Err(ExportError::Encode("the server's rows have no head of COPY".to_owned()));
    }
    let _flags: &[u8; 4] = first(message)?;
    let extension = usize::try_from(i32::from_be_bytes(*first(message)?)).map_err(|_| cut())?;
    message.split_off(..extension).map(drop).ok_or_else(cut)
}

fn cut() -> ExportError {
    ExportError::Encode("a row of the server is cut off".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps what it is given, rows ended by a dot.
    #[derive(Default)]
    struct Kept(Vec<String>);

    impl Rows for Kept {
        fn field(&mut self, at: usize, value: Option<&[u8]>) -> Result<(), ExportError> {
            self.0.push(format!("{at}={value:?}"));
            Ok(())
        }

        fn end_row(&mut self) {
            self.0.push(".".to_owned());
        }
    }

    fn message(rest: &[u8]) -> Vec<u8> {
        [SIGNATURE, &[0; 8], rest].concat()
    }

    #[test]
    fn rows_come_with_the_head_and_after_it() {
        let (mut wire, mut kept) = (Wire::new(1), Kept::default());
        wire.take(&message(&[0, 1, 0, 0, 0, 2, 7, 8]), &mut kept).expect("a row");
        wire.take(&[0, 1, 0xff, 0xff, 0xff, 0xff, 0, 1, 0, 0, 0, 0], &mut kept).expect("NULL, then nothing");
        wire.take(&[0xff, 0xff], &mut kept).expect("the end");
        assert_eq!((kept.0.concat().as_str(), wire.rows()), ("0=Some([7, 8]).0=None.0=Some([]).", 3));
        // An extension of the head is passed over.
        let extended = [SIGNATURE, &[0, 0, 0, 0, 0, 0, 0, 3, 9, 9, 9], &[0xff, 0xff]].concat();
        Wire::new(1).take(&extended, &mut Kept::default()).expect("no row");
    }

    #[test]
    fn what_is_no_row_is_an_error_and_not_a_panic() {
        for bad in [&[0, 2][..], &[0], &[0, 1, 0, 0, 0, 9, 1], &[0, 1, 0]] {
            assert!(Wire::new(1).take(&message(bad), &mut Kept::default()).is_err(), "{bad:?}");
        }
        for bad in [&b"COPY"[..], SIGNATURE, &[SIGNATURE, &[0, 0, 0, 0, 0xff, 0, 0, 0]].concat()] {
            assert!(Wire::new(1).take(bad, &mut Kept::default()).is_err(), "{bad:?}");
        }
    }
}
