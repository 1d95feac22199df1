//! Many requests at once, with every byte verified.

use std::time::{Duration, Instant};

use super::{Attached, can_attach, has, sh};
use crate::support::Folder;

/// Thirty seconds by default; the soak is the same for longer (CONTRIBUTING.md says how).
fn seconds() -> u64 {
    std::env::var("VHDKIT_SOAK_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(30)
}

#[test]
fn what_was_written_deep_and_wide_is_what_is_read() {
    if !can_attach() || !has(&["fio"]) {
        return;
    }
    let folder = Folder::new();
    let start = Instant::now();
    let total = Duration::from_secs(seconds());
    for (name, words) in [
        ("a.vhdx", "create a.vhdx 1G"),
        ("b.vhd", "create b.vhd 1G"),
        (
            "c.vhdx",
            "create c.vhdx 1G --sector-size 4096 --block-size 1M",
        ),
    ] {
        folder.ok(words);
        let attached = Attached::new(&folder, name);
        let device = attached.device().to_owned();
        let mut round = 0;
        let end = start.elapsed() + total / 3;
        while round == 0 || start.elapsed() < end {
            for depth in [16, 32] {
                fio(
                    &folder,
                    &device,
                    &format!(
                        "--name=v --iodepth={depth} --rw=randwrite --bs=4k --size=24M --offset=$(({round} % 8 * 64))M --verify=crc32c --verify_fatal=1 --randseed={round}"
                    ),
                );
            }
            // Several at once, each in its own part, one of them trimming. Meanwhile nobody else gets at the file.
            let mixed = "--time_based --runtime=3 --iodepth=16 \
                --name=a --offset=512M --size=100M --rw=randrw --bsrange=4k-256k --verify=crc32c --verify_fatal=1 \
                --name=b --offset=640M --size=100M --rw=randwrite --bsrange=4k-64k --verify=crc32c --verify_fatal=1 \
                --name=c --offset=768M --size=100M --rw=randtrim --bs=64k \
                --name=d --offset=896M --size=100M --rw=randrw --bs=4k";
            std::thread::scope(|scope| {
                let load = scope.spawn(|| fio(&folder, &device, mixed));
                std::thread::sleep(Duration::from_millis(500));
                for (verb, words) in [
                    (format!("compact {name}"), "in use"),
                    (format!("write {name} --offset 0"), "in use"),
                    (
                        format!("convert {name} copy.img"),
                        "open for writing elsewhere",
                    ),
                ] {
                    folder.run(&verb).failed(1, words);
                }
                load.join().unwrap();
            });
            round += 1;
        }
        // What the last jobs wrote is still there when it is another device.
        folder.ok(&format!("detach {name}"));
        attached.gone();
        folder.sound(name);
        let again = Attached::new(&folder, name);
        let last = round - 1;
        fio(
            &folder,
            again.device(),
            &format!(
                "--name=v --iodepth=32 --rw=randread --bs=4k --size=24M --offset=$(({last} % 8 * 64))M --verify=crc32c --verify_only=1 --randseed={last}"
            ),
        );
        sh(
            &folder,
            again.device(),
            "blkdiscard $D; cmp -n 67108864 $D /dev/zero",
        );
        folder.ok(&format!("detach {name}"));
        again.gone();
    }
}

fn fio(folder: &Folder, device: &str, jobs: &str) {
    sh(
        folder,
        device,
        &format!(
            "fio --minimal --filename=$D --direct=1 --ioengine=libaio --fallocate=none --verify_state_save=0 --allow_mounted_write=1 {jobs}"
        ),
    );
}
