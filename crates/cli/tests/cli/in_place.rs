//! `vhdkit convert --in-place`, and profiles.

use serde_json::json;
use vhdkit_testkit::peers::has_qemu;
use vhdkit_testkit::require::require;

use crate::support::Folder;

#[test]
fn a_raw_disk_becomes_a_vhd_and_back_without_a_copy() {
    let folder = Folder::new();
    folder.fill("a.img", 8 << 20);
    let files = folder.files();
    let done = folder.json("convert a.img a.vhd --in-place --json");
    assert_eq!(
        done,
        json!({"path": "a.vhd", "format": "vhd", "virtual_size": 8 << 20, "file_size": (8 << 20) + 512})
    );
    assert_eq!(folder.names(), ["a.vhd"]);
    folder.sound("a.vhd");
    if require(has_qemu(), "needs qemu-img") {
        let ran = folder.shell("qemu-img info -f vpc --output json a.vhd");
        let info: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!(info["format"], "vpc", "{ran:?}");
        // By its geometry or its exact size, never less.
        assert!(info["virtual-size"].as_u64().unwrap() >= 8 << 20, "{ran:?}");
    }
    let said = folder.ok("convert a.vhd a.img --in-place");
    assert_eq!(said, "a.img is now a raw disk of 8 MiB (8388608 bytes)\n");
    assert_eq!(folder.files(), files);
    // Under its old name.
    folder.ok("convert a.img --in-place --format vhd");
    assert_eq!(folder.json("info a.img --json")["format"], "vhd");
    folder.ok("convert a.img --in-place --format raw");
    assert_eq!(folder.files(), files);
}

#[test]
fn what_has_to_be_copied_is_refused_and_untouched() {
    let folder = Folder::new();
    folder.ok("create d.vhd 8M");
    folder.ok("create c.vhd --parent d.vhd");
    folder.ok("create f.vhd 8M --type fixed");
    folder.ok("create a.vhdx 8M");
    folder.ok("create a.img 8M");
    let files = folder.files();
    for words in [
        "convert d.vhd --in-place --format raw",
        "convert c.vhd --in-place --format raw",
        "convert a.vhdx --in-place --format raw",
        "convert a.vhdx --in-place --format vhd",
        "convert a.img --in-place --format vhdx",
        "convert a.img --in-place --format raw",
        "convert f.vhd --in-place --format vhd",
        "convert f.vhd a.img --in-place",
    ] {
        let ran = folder.run(words);
        ran.failed(1, "");
        assert_eq!(folder.files(), files, "{words}");
    }
    folder.run("convert a.img --in-place").failed(2, "format");
    folder
        .run("convert a.img nowhere/a.vhd --in-place")
        .failed(1, "nowhere");
    assert_eq!(folder.files(), files);
}

#[test]
fn azure_gets_whole_mebibytes() {
    let folder = Folder::new();
    folder.fill("a.img", (20 << 20) + 512);
    let source = std::fs::read(folder.path("a.img")).unwrap();
    let length = |name: &str| std::fs::metadata(folder.path(name)).unwrap().len();
    let done = folder.json("convert a.img azure.vhd --profile azure --json");
    assert_eq!(done["type"], "fixed");
    assert_eq!(done["virtual_size"], 21 << 20);
    assert_eq!(length("azure.vhd"), (21 << 20) + 512);
    folder.ok("compare a.img azure.vhd");
    folder.sound("azure.vhd");
    folder.ok("create small.vhd 1M --profile azure");
    assert_eq!(length("small.vhd"), (20 << 20) + 512);
    folder.ok("create even.vhd 32M --profile azure");
    assert_eq!(length("even.vhd"), (32 << 20) + 512);
    // The extension may be left to the profile.
    for (words, what) in [
        ("convert a.img b.vhdx --profile azure", "azure demands"),
        (
            "convert a.img b.vhd --profile azure --type dynamic",
            "azure demands",
        ),
        (
            "convert a.img b.vhd --profile azure --block-size 2M",
            "azure demands",
        ),
        ("create b.vhdx 1G --profile azure", "azure demands"),
        ("create b.vhd 1G --profile wsl", "wsl demands"),
    ] {
        let ran = folder.run(words);
        assert!(matches!(ran.code, Some(1 | 2)), "{words}: {ran:?}");
        assert!(ran.err.contains(what), "{words}: {ran:?}");
        assert!(!folder.path("b.vhd").exists() && !folder.path("b.vhdx").exists());
    }
    // In place the raw file grows by what is missing.
    folder.ok("convert a.img c.vhd --in-place --profile azure");
    assert_eq!(length("c.vhd"), (21 << 20) + 512);
    let bytes = std::fs::read(folder.path("c.vhd")).unwrap();
    assert!(bytes.starts_with(&source));
    folder.ok("compare azure.vhd c.vhd");
    folder.sound("c.vhd");
}

#[test]
fn profiles_of_vhdx_choose_blocks() {
    let folder = Folder::new();
    for (profile, block) in [("hyperv", 32 << 20), ("wsl", 1 << 20)] {
        folder.ok(&format!("create {profile}.vhdx 64M --profile {profile}"));
        let info = folder.json(&format!("info {profile}.vhdx --json"));
        assert_eq!(info["block_size"], block);
        assert_eq!(info["logical_sector_size"], 512);
        assert_eq!(info["physical_sector_size"], 4096);
        folder.ok(&format!(
            "convert hyperv.vhdx to-{profile}.vhdx --profile {profile}"
        ));
        let info = folder.json(&format!("info to-{profile}.vhdx --json"));
        assert_eq!(info["block_size"], block);
    }
}

/// Where a file system shares blocks; and killed at any of its calls that change names, sizes or sharing it leaves one or
/// the other.
#[test]
fn a_raw_disk_becomes_a_vhdx_and_back_where_blocks_are_shared() {
    const SCRIPT: &str = r#"
        set -e
        truncate -s 400M xfs.img && mkfs.xfs -q xfs.img && mkdir -p mnt && mount -o loop xfs.img mnt
        trap 'cd ..; umount mnt' EXIT
        cd mnt
        head -c 24M /dev/urandom > disk.img; truncate -s 256M disk.img
        head -c 5000 /dev/urandom | dd of=disk.img bs=1 seek=200000001 conv=notrunc status=none
        was=$($V read disk.img | sha256sum)
        for way in vhdx raw; do
            set -- $way
            before=$(df -k --output=used . | tail -1)
            $V convert disk.img --in-place --format $1
            test "$($V read disk.img | sha256sum)" = "$was"
            $V info disk.img --json | grep -q "\"format\": *\"$1\""
            $V check disk.img > /dev/null
            test "$(ls -A)" = disk.img
            # It took no second copy's space.
            after=$(df -k --output=used . | tail -1); test $((after - before)) -lt 16000
        done
        test "$(stat -c %s disk.img)" = 268435456
        kills=0
        for n in $(seq 1 40); do
            cp --reflink disk.img killed.img
            if strace -f -qq -o /dev/null -e trace=ioctl,linkat,rename,fdatasync,ftruncate,pwrite64 \
                -e inject=ioctl,linkat,rename,fdatasync,ftruncate,pwrite64:signal=KILL:when=$n \
                $V convert killed.img --in-place --format vhdx > /dev/null 2>&1; then break; fi
            kills=$((kills + 1))
            test "$($V read killed.img --length 25M | sha256sum)" = "$($V read disk.img --length 25M | sha256sum)"
            $V check killed.img > /dev/null
            rm -f killed.img .vhdkit-*.tmp
        done
        echo "killed $kills times"
        test $kills -gt 5 && test $kills -lt 40
    "#;
    let tools = "command -v strace mkfs.xfs losetup";
    let folder = Folder::new();
    if !require(
        folder.shell(tools).code == Some(0),
        "needs strace and xfsprogs",
    ) {
        return;
    }
    if let Some(ran) = folder.shell_with_mounts(SCRIPT) {
        assert_eq!(ran.code, Some(0), "{ran:?}");
    }
}
