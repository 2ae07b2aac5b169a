//! Text values as the server has them: keys and names need not be UTF-8, and the library only passes
//! them on.

use pgrx::callconv::{BoxRet, FcInfo};
use pgrx::{IntoDatum, pg_sys};

/// A value of type `text` in the database's encoding.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerBytes(pub Vec<u8>);

impl IntoDatum for ServerBytes {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        // A `text` and a `bytea` have the same representation.
        self.0.into_datum()
    }

    fn type_oid() -> pg_sys::Oid {
        pg_sys::TEXTOID
    }
}

// SAFETY: the datum is a `text`, as the functions' SQL declarations say.
unsafe impl BoxRet for ServerBytes {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> pgrx::datum::Datum<'fcx> {
        match self.into_datum() {
            // SAFETY: see above.
            Some(datum) => unsafe { fcinfo.return_raw_datum(datum) },
            None => fcinfo.return_null(),
        }
    }
}
