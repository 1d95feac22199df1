//! What is wrong with a file (format sheet 10). Placeholder until the catalogue is in.

use std::sync::Arc;

use crate::error::Result;
use crate::image::Finding;
use crate::storage::Storage;

/// Findings of a check of one file.
///
/// # Errors
/// Only if the file cannot be read.
pub fn check(_storage: &Arc<dyn Storage>) -> Result<Vec<Finding>> {
    Ok(Vec::new())
}
