//! Texts between the database's encoding and UTF-8, which the engine speaks. Offsets count
//! characters, so they are the same in both.

use std::borrow::Cow;
use std::ffi::{CStr, c_char, c_int};
use std::slice;

use pgrx::callconv::{BoxRet, FcInfo};
use pgrx::{IntoDatum, pg_sys};

use crate::errors::Error;

const UTF8: c_int = pg_sys::pg_enc::PG_UTF8 as c_int;

/// A text value's bytes in UTF-8.
///
/// # Errors
/// `InvalidText`; PostgreSQL's own error when a character has no equivalent.
pub fn to_utf8(bytes: &[u8]) -> Result<Cow<'_, str>, Error> {
    if is_utf8_database() {
        return utf8(bytes).map(Cow::Borrowed);
    }
    let len = c_int::try_from(bytes.len()).map_err(|_| Error::InvalidText)?;
    let source: *const c_char = bytes.as_ptr().cast();
    // SAFETY: pointer and length are those of a slice. What comes back is either the same pointer
    // or a new NUL-terminated string, which is copied before anything else is allocated.
    let converted = unsafe {
        let converted = pg_sys::pg_server_to_any(source, len, UTF8);
        if converted.cast_const() == source {
            return utf8(bytes).map(Cow::Borrowed);
        }
        let owned = utf8(CStr::from_ptr(converted).to_bytes()).map(str::to_owned);
        pg_sys::pfree(converted.cast());
        owned
    };
    converted.map(Cow::Owned)
}

/// A text value's bytes before and from a character, or the end if it has fewer.
pub fn split_at_char(text: &[u8], char: usize) -> (&[u8], &[u8]) {
    if is_utf8_database() {
        // PostgreSQL's own count of them looks at each alone, which long texts are too long for.
        let mut chars = std::str::from_utf8(text).unwrap_or_default().chars();
        if char > 0 {
            chars.nth(char - 1);
        }
        return text.split_at(text.len() - chars.as_str().len());
    }
    let [len, limit] = [text.len(), char].map(|count| c_int::try_from(count).unwrap_or(c_int::MAX));
    // SAFETY: pointer and length are those of a slice, of which it reads no more.
    let before = unsafe { pg_sys::pg_mbcharcliplen(text.as_ptr().cast(), len, limit) };
    text.split_at(usize::try_from(before).unwrap_or(0).min(text.len()))
}

fn utf8(bytes: &[u8]) -> Result<&str, Error> {
    std::str::from_utf8(bytes).map_err(|_| Error::InvalidText)
}

fn is_utf8_database() -> bool {
    // SAFETY: reads a setting of this process.
    unsafe { pg_sys::GetDatabaseEncoding() == UTF8 }
}

/// A message that can be sent to the client whatever the database's encoding is: an error must not
/// fail over its own text.
pub fn displayable(message: String) -> String {
    if message.is_ascii() || is_utf8_database() {
        return message;
    }
    let replace = |c: char| if c.is_ascii() { c } else { '?' };
    message.chars().map(replace).collect()
}

/// A result column of type `text`.
pub struct ServerText(pub String);

impl IntoDatum for ServerText {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        if is_utf8_database() {
            return self.0.into_datum();
        }
        let len = c_int::try_from(self.0.len()).ok()?;
        let source: *const c_char = self.0.as_ptr().cast();
        // SAFETY: pointer and length are those of the string. What comes back is either the same
        // pointer or a new NUL-terminated string in the current memory context.
        let bytes = unsafe {
            let converted = pg_sys::pg_any_to_server(source, len, UTF8);
            if converted.cast_const() == source {
                slice::from_raw_parts(source.cast(), self.0.len())
            } else {
                CStr::from_ptr(converted).to_bytes()
            }
        };
        // A `text` and a `bytea` have the same representation.
        bytes.into_datum()
    }

    fn type_oid() -> pg_sys::Oid {
        pg_sys::TEXTOID
    }
}

// SAFETY: the datum is a `text`, as the functions' SQL declarations say.
unsafe impl BoxRet for ServerText {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> pgrx::datum::Datum<'fcx> {
        match self.into_datum() {
            // SAFETY: see above.
            Some(datum) => unsafe { fcinfo.return_raw_datum(datum) },
            None => fcinfo.return_null(),
        }
    }
}
