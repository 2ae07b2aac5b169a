//! Whether the extension is there.

use std::ffi::CStr;

use pgrx::pg_sys;

/// Whether the schema is the extension's, which stays so until the transaction ends. Anyone who may
/// create schemas can make one of that name when the extension is gone: a superuser's process must
/// call nothing there. Every transaction that does asks this first.
pub fn is_installed() -> bool {
    const NAME: &CStr = c"ner_retriever";
    // SAFETY: look-ups in the catalogue, in a transaction.
    unsafe {
        let extension = pg_sys::get_extension_oid(NAME.as_ptr(), true);
        if extension == pg_sys::Oid::INVALID {
            return false;
        }
        let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        pg_sys::LockDatabaseObject(pg_sys::ExtensionRelationId, extension, 0, lock);
        let schema = pg_sys::get_namespace_oid(NAME.as_ptr(), true);
        schema != pg_sys::Oid::INVALID
            && pg_sys::get_extension_oid(NAME.as_ptr(), true) == extension
            && pg_sys::getExtensionOfObject(pg_sys::NamespaceRelationId, schema) == extension
    }
}
