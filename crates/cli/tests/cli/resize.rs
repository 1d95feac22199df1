//! `vhdkit resize` and `vhdkit expand`.

use vhdkit_testkit::require::require;

use crate::support::Folder;

fn bytes(folder: &Folder, disk: &str) -> Vec<u8> {
    let output = folder.command(&format!("read {disk}")).output().unwrap();
    assert!(output.status.success());
    output.stdout
}

/// A raw disk of 64 MiB whose partitions end at 25 MiB, with data in both; false if there is no sgdisk.
fn partitioned(folder: &Folder) -> bool {
    let there = folder.shell("command -v sgdisk").code == Some(0);
    if !require(there, "needs sgdisk (Debian: gdisk)") {
        return false;
    }
    folder.fill("part", 4 << 20);
    let ran = folder.shell(
        "truncate -s 64M disk.img && sgdisk -n 1:2048:+16M -n 2:0:+8M disk.img &&
        dd if=part of=disk.img bs=1M seek=2 conv=notrunc && dd if=part of=disk.img bs=1M seek=20 conv=notrunc && rm part",
    );
    assert_eq!(ran.code, Some(0), "{ran:?}");
    true
}

/// What sgdisk says of a disk's partition table.
fn verdict(folder: &Folder, disk: &str) -> String {
    folder.ok(&format!("convert {disk} verified.img --force"));
    let ran = folder.shell("sgdisk -v verified.img; sgdisk -p verified.img; rm verified.img");
    assert_eq!(ran.code, Some(0), "{ran:?}");
    ran.out
}

#[test]
fn a_disk_grows_with_zeros() {
    for name in ["a.vhd", "a.vhdx", "f.vhd", "f.vhdx", "a.img"] {
        let folder = Folder::new();
        let kind = if name.starts_with('f') {
            "--type fixed"
        } else {
            ""
        };
        folder.ok(&format!("create {name} 16M {kind}"));
        folder.fill("data", 4 << 20);
        folder.put(name, "12M", "data");
        let (before, files) = (bytes(&folder, name), folder.files());

        let plan = folder.json(&format!("expand {name} 40M --dry-run --json"));
        folder.json(&format!("resize {name} 40M --dry-run --json"));
        assert_eq!(folder.files(), files, "{name}");
        assert_eq!(plan["dry_run"], true);
        assert_eq!(plan["size_before"], 16 << 20);
        assert_eq!(plan["size_after"], 40 << 20);

        let done = folder.json(&format!("expand {name} 40M --json"));
        assert_eq!(
            done,
            serde_json::json!({
                "path": name,
                "dry_run": false,
                "size_before": 16 << 20,
                "size_after": 40 << 20,
                "smallest_safe_size": null,
                "file_size": std::fs::metadata(folder.path(name)).unwrap().len(),
                "gpt_moved": false,
                "gpt_cut_off": false,
            })
        );
        let said = folder.ok(&format!("resize {name} +1G"));
        let to = format!("{} bytes)\n", (40_u64 << 20) + (1 << 30));
        assert!(said.ends_with(&to), "{said}");
        folder.sound(name);
        let after = folder
            .command(&format!("read {name} --length 64M"))
            .output();
        let after = after.unwrap().stdout;
        assert_eq!(after.len(), 64 << 20);
        assert!(after.starts_with(&before), "{name}");
        assert!(after[16 << 20..].iter().all(|b| *b == 0), "{name}");
        // What is written there is kept.
        folder.put(name, "1060M", "data");
        folder.sound(name);
    }
}

#[test]
fn a_vhdx_shrinks_and_grows_back_with_zeros() {
    for (name, options) in [
        ("a.vhdx", ""),
        ("f.vhdx", "--type fixed"),
        ("k.vhdx", "--sector-size 4096 --block-size 1M"),
        ("a.img", ""),
    ] {
        let folder = Folder::new();
        folder.ok(&format!("create {name} 32M {options}"));
        folder.fill("data", 32 << 20);
        folder.put(name, "0", "data");
        folder.ok(&format!("resize {name} 8396800"));
        folder.sound(name);
        let small = bytes(&folder, name);
        assert_eq!(
            small,
            std::fs::read(folder.path("data")).unwrap()[..8_396_800]
        );
        folder.ok(&format!("resize {name} 32M"));
        folder.sound(name);
        let large = bytes(&folder, name);
        assert_eq!(large.len(), 32 << 20);
        assert!(large.starts_with(&small), "{name}");
        assert!(large[small.len()..].iter().all(|b| *b == 0), "{name}");
    }
}

#[test]
fn sizes_and_disks_that_do_not_fit_are_refused_and_untouched() {
    let folder = Folder::new();
    folder.ok("create a.vhd 16M");
    folder.ok("create a.vhdx 16M");
    folder.ok("create f.vhd 16M --type fixed");
    for extension in ["vhd", "vhdx"] {
        folder.ok(&format!("create c.{extension} --parent a.{extension}"));
    }
    std::fs::copy(folder.path("c.vhdx"), folder.path("d.vhdx")).unwrap();
    let files = folder.files();
    for (words, what) in [
        ("expand a.vhd 8M", "it has 16777216 bytes already"),
        ("expand a.vhdx 8M", "it has 16777216 bytes already"),
        ("expand c.vhd 32M", "differencing vhd disk cannot"),
        ("expand c.vhdx 32M", "differencing vhdx disk cannot"),
        ("resize c.vhd 32M", "differencing vhd disk cannot"),
        ("resize a.vhd 8M", "dynamic vhd disk cannot become smaller"),
        ("resize f.vhd 8M", "fixed vhd disk cannot become smaller"),
        ("resize a.vhd 3T", "cannot resize a.vhd"),
        ("resize a.vhdx 65T", "cannot resize a.vhdx"),
        ("resize a.vhdx --to-smallest", "no partition table"),
    ] {
        folder.run(words).failed(1, what);
        folder.run(&format!("{words} --dry-run")).failed(1, what);
        assert_eq!(folder.files(), files, "{words}");
    }
    for words in [
        "resize a.vhdx 16777217",
        "expand a.vhd +1000",
        "resize a.vhd 1000",
    ] {
        folder.run(words).failed(2, "whole number of sectors");
        assert_eq!(folder.files(), files, "{words}");
    }
    folder
        .run("expand a.vhdx +17179869183G")
        .failed(1, "at most 64 TiB");
    // A child of VHDX has its own size; its sibling made for the old parent is told.
    folder.ok("resize c.vhdx 24M");
    folder.sound("c.vhdx");
    folder.ok("resize a.vhdx 24M");
    folder.run("read d.vhdx --length 1").failed(1, "identifier");
}

#[test]
fn partitions_are_kept_and_the_table_moves_along() {
    let folder = Folder::new();
    if !partitioned(&folder) {
        return;
    }
    let part = |disk: &str, at: &str| {
        let words = format!("read {disk} --offset {at} --length 4M");
        folder.command(&words).output().unwrap().stdout
    };
    let (first, second) = (part("disk.img", "2M"), part("disk.img", "20M"));
    folder.ok("convert disk.img a.vhdx");
    folder.ok("convert disk.img a.vhd");
    folder.ok("convert disk.img f.vhd --type fixed");
    folder.ok("convert disk.img k.vhdx --block-size 1M");
    for disk in ["a.vhdx", "a.vhd", "f.vhd", "k.vhdx", "disk.img"] {
        let done = folder.json(&format!("resize {disk} 100M --fix-gpt --json"));
        assert_eq!(done["gpt_moved"], true, "{done}");
        let said = verdict(&folder, disk);
        assert!(said.contains("No problems found"), "{disk}: {said}");
        assert!(said.contains("204800 sectors"), "{disk}: {said}");
        assert_eq!(
            (part(disk, "2M"), part(disk, "20M")),
            (first.clone(), second.clone())
        );
        folder.sound(disk);
    }
    for disk in ["a.vhdx", "k.vhdx", "disk.img"] {
        let files = folder.files();
        let safe = folder.json(&format!("resize {disk} --to-smallest --dry-run --json"));
        assert_eq!(folder.files(), files);
        let safe = safe["smallest_safe_size"].as_u64().unwrap();
        let info = folder.json(&format!("info {disk} --details --json"));
        assert_eq!(info["details"]["smallest_safe_size"], safe);
        // 25 MiB and the second table.
        assert_eq!(safe, (25 << 20) + 33 * 512, "{disk}");

        let said = format!("its partitions reach to {safe} bytes, the new size is 20971520");
        let ran = folder.run(&format!("resize {disk} 20M"));
        ran.failed(1, &said);
        assert!(ran.err.contains("--unsafe"), "{ran:?}");
        assert_eq!(folder.files(), files);

        let words = format!("resize {disk} --to-smallest --fix-gpt");
        let plan = folder.json(&format!("{words} --dry-run --json"));
        assert_eq!(plan["gpt_moved"], true, "{plan}");
        let said = folder.ok(&format!("{words} --dry-run"));
        assert!(said.contains("would be moved"), "{said}");
        let done = folder.json(&format!("{words} --json"));
        assert_eq!(done["size_after"], safe);
        assert_eq!(done["gpt_moved"], true);
        let said = verdict(&folder, disk);
        assert!(said.contains("No problems found"), "{disk}: {said}");
        assert_eq!(
            (part(disk, "2M"), part(disk, "20M")),
            (first.clone(), second.clone())
        );
        folder.sound(disk);
        folder
            .run(&format!("resize {disk} --to-smallest"))
            .failed(1, "its partitions need all");

        let done = folder.json(&format!("resize {disk} 18M --unsafe --json"));
        assert_eq!(done["size_after"], 18 << 20);
        assert_eq!(part(disk, "2M"), first);
        folder.sound(disk);
    }
}

#[test]
fn without_being_asked_the_table_stays() {
    let folder = Folder::new();
    if !partitioned(&folder) {
        return;
    }
    folder.ok("convert disk.img a.vhdx");
    let said = folder.ok("expand a.vhdx 100M");
    assert!(!said.contains("partition table"), "{said}");
    let before = bytes(&folder, "disk.img");
    assert!(bytes(&folder, "a.vhdx").starts_with(&before));
    folder.ok("convert a.vhdx b.img");
    let ran = folder.shell("sgdisk -v b.img");
    assert!(!ran.out.contains("No problems found"), "{ran:?}");
    // Asked for later, nothing has to change but the table.
    let said = folder.ok("expand a.vhdx +1M --fix-gpt");
    assert!(said.contains("partition table was moved"), "{said}");
    assert!(verdict(&folder, "a.vhdx").contains("No problems found"));
}

#[test]
fn a_second_copy_of_the_table_that_is_cut_off_is_told() {
    let folder = Folder::new();
    if !partitioned(&folder) {
        return;
    }
    let warning = "vhdkit: warning: the second copy of the partition table is cut off";
    for disk in ["a.vhdx", "a.img"] {
        folder.ok(&format!("convert disk.img {disk}"));
        for words in ["--to-smallest --dry-run", "32M --dry-run", "32M"] {
            let ran = folder.run(&format!("resize {disk} {words}"));
            assert_eq!(ran.code, Some(0), "{ran:?}");
            assert_eq!(
                ran.err.trim_end(),
                format!("{warning}; --fix-gpt moves it to the new end")
            );
        }
        // Now there is none, which is nothing new.
        let ran = folder.run(&format!("resize {disk} 30M"));
        assert_eq!((ran.code, &*ran.err), (Some(0), ""), "{ran:?}");
    }
    folder.ok("convert disk.img b.vhdx");
    let ran = folder.run("resize b.vhdx 18M --unsafe --fix-gpt --json");
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(
        ran.err.trim_end(),
        format!("{warning}: the new end leaves no room for it")
    );
    let done: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(
        (&done["gpt_moved"], &done["gpt_cut_off"]),
        (&false.into(), &true.into())
    );
    // Where it goes along, or the disk becomes larger, nothing is lost.
    folder.ok("convert disk.img c.vhdx");
    for words in ["100M", "64M", "32M --fix-gpt"] {
        let ran = folder.run(&format!("resize c.vhdx {words}"));
        assert_eq!((ran.code, &*ran.err), (Some(0), ""), "{words}: {ran:?}");
    }
}

#[test]
fn the_smallest_size_of_a_child_is_known_if_its_parents_are_there() {
    let folder = Folder::new();
    if !partitioned(&folder) {
        return;
    }
    folder.ok("convert disk.img a.vhdx");
    folder.ok("create c.vhdx --parent a.vhdx");
    let smallest = |words: &str| {
        let told = folder.json(&format!("info c.vhdx --details --json {words}"));
        told["details"]["smallest_safe_size"].as_u64()
    };
    let safe = Some((25 << 20) + 33 * 512);
    assert_eq!(smallest(""), safe);
    assert_eq!(smallest("--chain"), safe);
    std::fs::rename(folder.path("a.vhdx"), folder.path("b.vhdx")).unwrap();
    assert_eq!(smallest(""), None);
    assert_eq!(smallest("--parent b.vhdx"), safe);
}
