//! pgvector's type `vector`. Its representation is part of pgvector's on-disk format and therefore
//! stable: varlena header, int16 dimensions, int16 unused, float4 elements.

use std::mem::size_of;

use pgrx::callconv::{BoxRet, FcInfo};
use pgrx::{IntoDatum, pg_sys, set_varsize_4b};

use crate::errors::Error;

/// pgvector's limit.
const MAX_DIMS: usize = 16_000;

#[repr(C)]
struct Header {
    varlena: [u8; 4],
    dims: i16,
    unused: i16,
}

/// A result of type `vector`: 1 to 16,000 finite elements.
pub struct Vector {
    elements: Vec<f32>,
    dims: i16,
}

impl Vector {
    /// # Errors
    /// `BadAnswer` for what pgvector itself would refuse; such a value would damage its indexes.
    pub fn new(elements: Vec<f32>) -> Result<Self, Error> {
        let dims = match i16::try_from(elements.len()) {
            Ok(dims) if (1..=MAX_DIMS).contains(&elements.len()) => dims,
            _ => {
                let problem = format!("an embedding of {} dimensions", elements.len());
                return Err(Error::BadAnswer(problem));
            }
        };
        if !elements.iter().all(|element| element.is_finite()) {
            return Err(Error::BadAnswer("an embedding that is not finite".into()));
        }
        Ok(Self { elements, dims })
    }
}

/// The elements of a stored vector; `value` is what follows its varlena header.
///
/// # Errors
/// `NotAVector` if the lengths do not agree.
pub fn elements(value: &[u8]) -> Result<Vec<f32>, Error> {
    let (header, elements) = value.split_at_checked(4).ok_or(Error::NotAVector)?;
    let dims = i16::from_ne_bytes([header[0], header[1]]);
    let (elements, rest) = elements.as_chunks();
    if !rest.is_empty() || usize::try_from(dims) != Ok(elements.len()) {
        return Err(Error::NotAVector);
    }
    Ok(elements
        .iter()
        .map(|bytes| f32::from_ne_bytes(*bytes))
        .collect())
}

impl IntoDatum for Vector {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        let len = size_of::<Header>() + self.elements.len() * size_of::<f32>();
        // SAFETY: palloc gives `len` bytes, aligned for any type, or raises an error; header and
        // elements fill them exactly. `len` is at most 64,008.
        unsafe {
            let value = pg_sys::palloc(len);
            value.cast::<Header>().write(Header {
                varlena: [0; 4],
                dims: self.dims,
                unused: 0,
            });
            set_varsize_4b(value.cast(), len as i32);
            let target = value.add(size_of::<Header>()).cast::<f32>();
            target.copy_from_nonoverlapping(self.elements.as_ptr(), self.elements.len());
            Some(pg_sys::Datum::from(value))
        }
    }

    /// The type has no fixed OID; the functions' SQL declarations name it.
    fn type_oid() -> pg_sys::Oid {
        pg_sys::InvalidOid
    }
}

// SAFETY: the datum is a `vector`, as the functions' SQL declarations say.
unsafe impl BoxRet for Vector {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> pgrx::datum::Datum<'fcx> {
        match self.into_datum() {
            // SAFETY: see above.
            Some(datum) => unsafe { fcinfo.return_raw_datum(datum) },
            None => fcinfo.return_null(),
        }
    }
}
