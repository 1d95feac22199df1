//! Is what was made right? By our reader and, where there is one, by another.

use crate::Result;
use crate::process::{Argv, find, run};

/// Fails unless both disks read the same.
pub(crate) fn same(original: &str, output: &str) -> Result<()> {
    if crate::images::hash(original)? != crate::images::hash(output)? {
        return Err(format!("{output} does not read like {original}").into());
    }
    // It would ask for every block of a disk that is nearly all empty.
    const TOO_LARGE: u64 = 1 << 36;
    let size = vhdkit::VirtualDisk::open(original)?.virtual_size();
    if find("qemu-img").is_some() && size < TOO_LARGE {
        // A fixed VHD looks like a raw disk to who does not know better.
        let format = |path: &str| match path.rsplit('.').next() {
            Some("vhdx") => "vhdx",
            Some("vhd") => "vpc",
            _ => "raw",
        };
        let formats = ["-f", format(original), "-F", format(output)];
        let parts = [&["qemu-img", "compare"], &formats[..], &[original, output]].concat();
        run(&Argv::new(&parts))?;
    }
    Ok(())
}
