//! Is what was made right? By our reader and, where there is one, by another.

use crate::Result;
use crate::process::{Argv, find, run};

/// Fails unless both disks read the same.
pub(crate) fn same(original: &str, output: &str) -> Result<()> {
    if crate::images::hash(original)? != crate::images::hash(output)? {
        return Err(format!("{output} does not read like {original}").into());
    }
    if find("qemu-img").is_some() {
        run(&Argv::new(&["qemu-img", "compare", original, output]))?;
    }
    Ok(())
}
