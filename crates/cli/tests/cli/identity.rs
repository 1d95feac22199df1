//! `vhdkit set`, `set-parent` and `metadata`.

use serde_json::json;

use crate::chain::chain;
use crate::support::{Folder, Ran};

const ID: &str = "6ba7b810-9dad-41d1-80b4-00c04fd430c8";

#[test]
fn a_moved_parent_is_recorded() {
    for extension in ["vhd", "vhdx"] {
        let folder = chain(extension);
        let [base, child, leaf] =
            ["base", "child", "leaf"].map(|name| format!("{name}.{extension}"));
        let flat = folder.content(&leaf);
        std::fs::create_dir(folder.path("new")).unwrap();
        let moved = format!("new/{base}");
        std::fs::rename(folder.path(&base), folder.path(&moved)).unwrap();
        let read = |name: &str| std::fs::read(folder.path(name)).unwrap();
        folder
            .run(&format!("read {leaf} --length 1"))
            .failed(1, "parent");
        let before = (read(&child), read(&moved));
        let done = folder.json(&format!("set-parent {child} {moved} --dry-run --json"));
        let expected = json!({"path": child, "parent": moved, "depth": 1, "dry_run": true});
        assert_eq!(done, expected);
        assert_eq!((read(&child), read(&moved)), before);
        let said = folder.ok(&format!("set-parent {child} {moved}"));
        assert_eq!(said, format!("{child} has {moved} as its parent\n"));
        assert_eq!(read(&moved), before.1);
        assert_eq!(folder.content(&leaf), flat);
        folder.sound(&leaf);

        // The middle one, told through the leaf.
        std::fs::rename(folder.path(&moved), folder.path(&base)).unwrap();
        let given = format!("--parent {child} --parent {base}");
        let words = format!("set-parent {leaf} {base} --depth 2 {given} --json");
        let done = folder.json(&words);
        assert_eq!(done["depth"], 2);
        assert!(done["path"].as_str().unwrap().ends_with(&child), "{done}");
        assert_eq!(folder.content(&leaf), flat);
        // Also without help, although the chain cannot be opened before.
        std::fs::rename(folder.path(&base), folder.path(&moved)).unwrap();
        let words = format!("set-parent {leaf} {moved} --depth 2");
        let middle = read(&child);
        assert!(folder.ok(&format!("{words} --dry-run")).contains(&child));
        assert_eq!(read(&child), middle);
        let said = folder.ok(&words);
        assert!(said.contains(&format!("{child} has {moved}")), "{said}");
        assert_eq!(folder.content(&leaf), flat);
        std::fs::rename(folder.path(&moved), folder.path(&base)).unwrap();
        folder.ok(&format!("set-parent {leaf} {base} --depth 2"));
        // The name that Windows has for it goes into the record.
        let folder_here = folder.path(".").canonicalize().unwrap();
        let map = format!("C:\\Disks={}", folder_here.display());
        folder.ok(&format!("set-parent {child} {base} --parent-map {map}"));
        let info = folder.ok(&format!("info {child}"));
        assert!(info.contains(&format!("C:\\Disks\\{base}")), "{info}");
        assert_eq!(folder.content(&leaf), flat);
    }
}

#[test]
fn a_wrong_parent_is_refused_and_nothing_changes() {
    for extension in ["vhd", "vhdx"] {
        let folder = chain(extension);
        let [base, child, leaf, other] =
            ["base", "child", "leaf", "other"].map(|name| format!("{name}.{extension}"));
        let flat = folder.content(&leaf);
        folder.ok(&format!("create {other} 64M"));
        folder.ok("create raw.img 64M");
        folder.ok(&format!(
            "create alien.vhd{} 64M",
            &"x"[..usize::from(extension == "vhd")]
        ));
        let alien = format!("alien.vhd{}", &"x"[..usize::from(extension == "vhd")]);
        let files = folder.files();
        for (words, what) in [
            (format!("set-parent {child} {other}"), "is not the parent"),
            (format!("set-parent {child} {leaf}"), "leads back"),
            (
                format!("set-parent {child} {leaf} --ignore-id"),
                "leads back",
            ),
            (format!("set-parent {child} {child}"), "leads back"),
            (format!("set-parent {base} {other}"), "has no parent"),
            (format!("set-parent raw.img {other}"), "has no parent"),
            (format!("set-parent {child} none"), "does not exist"),
            (
                format!("set-parent {child} raw.img --ignore-id"),
                "cannot be a child",
            ),
            (
                format!("set-parent {child} {alien} --ignore-id"),
                "cannot be a child",
            ),
            (format!("set-parent {leaf} {base} --depth 4"), "depth 4"),
            (format!("set-parent {leaf} {base} --depth 0"), "depth 0"),
            (
                format!("set-parent {leaf} {other} --depth 2"),
                "is not the parent",
            ),
        ] {
            let ran = folder.run(&words);
            ran.failed(1, what);
            assert!(
                words.split(' ').skip(1).any(|word| ran.err.contains(word)),
                "{ran:?}"
            );
            folder.run(&format!("{words} --dry-run")).failed(1, what);
            assert_eq!(folder.files(), files, "{words}");
        }
        // A copy of the base that got another identifier reads the same.
        std::fs::copy(folder.path(&base), folder.path(&other)).unwrap();
        if extension == "vhd" {
            folder.ok(&format!("set {other} --new-id"));
        } else {
            std::fs::write(folder.path("word"), "word 0").unwrap();
            folder.put(&other, "0", "word");
        }
        folder
            .run(&format!("set-parent {child} {other}"))
            .failed(1, "is not the parent");
        folder.ok(&format!("set-parent {child} {other} --ignore-id"));
        std::fs::remove_file(folder.path(&base)).unwrap();
        assert_eq!(folder.content(&leaf), flat);
        folder.sound(&leaf);
    }
}

#[test]
fn identifiers_are_set() {
    for name in ["a.vhd", "f.vhd", "a.vhdx", "f.vhdx"] {
        let folder = Folder::new();
        let kind = if name.starts_with('f') {
            "--type fixed"
        } else {
            ""
        };
        folder.ok(&format!("create {name} 8M {kind}"));
        let old = folder.json(&format!("info {name} --json"));
        let content = folder.content(name);
        let done = folder.json(&format!("set {name} --id {ID} --json"));
        assert_eq!(done["path"], name);
        assert_eq!(done["identifier"], ID);
        assert_eq!(done["physical_sector_size"], old["physical_sector_size"]);
        assert_eq!(
            folder.json(&format!("info {name} --json"))["identifier"],
            ID
        );
        let said = folder.ok(&format!("set {name} --new-id"));
        assert!(said.starts_with(&format!("{name}: identifier ")), "{said}");
        let new = folder.json(&format!("info {name} --json"));
        assert_ne!(new["identifier"], ID);
        assert_ne!(new["identifier"], old["identifier"]);
        assert_eq!(folder.content(name), content);
        folder.sound(name);
    }
    let folder = Folder::new();
    folder.ok("create a.img 8M");
    folder.run("set a.img --new-id").failed(1, "a.img");
    folder.run("set a.img --id 00000000-0000-0000-0000-000000000000");
}

#[test]
fn children_of_a_vhd_notice_its_new_identifier_and_those_of_a_vhdx_do_not() {
    let folder = chain("vhdx");
    let flat = folder.content("leaf.vhdx");
    folder.ok("set base.vhdx --new-id");
    folder.ok("set child.vhdx --new-id");
    assert_eq!(folder.content("leaf.vhdx"), flat);
    folder.sound("leaf.vhdx");
    let folder = chain("vhd");
    let flat = folder.content("leaf.vhd");
    folder.ok("set base.vhd --new-id");
    folder
        .run("read leaf.vhd --length 1")
        .failed(1, "identifier");
    folder.ok("set-parent child.vhd base.vhd --ignore-id");
    assert_eq!(folder.content("leaf.vhd"), flat);
}

#[test]
fn physical_sectors_are_set() {
    let folder = Folder::new();
    folder.ok("create a.vhdx 8M");
    for size in [512, 4096] {
        let words = format!("set a.vhdx --physical-sector-size {size} --json");
        assert_eq!(folder.json(&words)["physical_sector_size"], size);
        let info = folder.json("info a.vhdx --json");
        assert_eq!(info["physical_sector_size"], size);
        assert_eq!(info["logical_sector_size"], 512);
    }
    let done = folder.json(&format!(
        "set a.vhdx --id {ID} --physical-sector-size 512 --json"
    ));
    assert_eq!(
        (&done["identifier"], &done["physical_sector_size"]),
        (&json!(ID), &json!(512))
    );
    folder.sound("a.vhdx");
    folder.ok("create k.vhdx 8M --sector-size 4096");
    folder.ok("create a.vhd 8M");
    folder.ok("create a.img 8M");
    let files = folder.files();
    for words in [
        "set a.vhdx --physical-sector-size 1024",
        "set k.vhdx --physical-sector-size 512",
        "set a.vhd --physical-sector-size 4096",
        "set a.img --physical-sector-size 4096",
        // Nothing of a request that fails in part is done.
        "set a.vhd --new-id --physical-sector-size 4096",
        "set a.vhdx --new-id --physical-sector-size 1024",
    ] {
        let ran = folder.run(words);
        assert!(matches!(ran.code, Some(1 | 2)), "{words}: {ran:?}");
        assert_eq!(ran.err.lines().count(), 2, "{words}: {ran:?}");
        assert_eq!(folder.files(), files, "{words}");
    }
}

#[test]
fn metadata_goes_round() {
    let folder = chain("vhdx");
    let flat = folder.content("leaf.vhdx");
    let other = "0f8a2b5e-3c1d-4a52-9a5e-5d3a3f6f2c11";
    std::fs::write(folder.path("small"), "backup 42\n").unwrap();
    folder.fill("large", 1 << 20);
    std::fs::write(folder.path("empty"), "").unwrap();
    for disk in ["leaf.vhdx", "base.vhdx"] {
        assert_eq!(folder.ok(&format!("metadata list {disk}")), "");
        assert_eq!(
            folder.json(&format!("metadata list {disk} --json")),
            json!([])
        );
        let set = |id: &str, input: &str| {
            let ran = folder.run_with_input(&format!("metadata set {disk} {id}"), input);
            assert_eq!((ran.code, ran.out.as_str()), (Some(0), ""), "{ran:?}");
        };
        let get = |id: &str| {
            let words = format!("metadata get {disk} {id}");
            folder.command(&words).output().unwrap()
        };
        set(ID, "small");
        set(other, "large");
        let mut listed = folder.json(&format!("metadata list {disk} --json"));
        let rows = listed.as_array_mut().unwrap();
        rows.sort_by_key(|row| row["length"].as_u64());
        assert_eq!(
            listed,
            json!([{"item": ID, "length": 10}, {"item": other, "length": 1 << 20}])
        );
        let said = folder.ok(&format!("metadata list {disk}"));
        assert!(said.contains(&format!("{ID}  10 bytes\n")), "{said}");
        assert_eq!(get(ID).stdout, b"backup 42\n");
        assert_eq!(
            get(other).stdout,
            std::fs::read(folder.path("large")).unwrap()
        );
        set(ID, "large");
        assert_eq!(get(ID).stdout.len(), 1 << 20);
        set(ID, "empty");
        assert!(get(ID).status.success());
        assert_eq!(get(ID).stdout, b"");
        folder.sound("leaf.vhdx");
        folder.ok(&format!("metadata delete {disk} {ID}"));
        Ran::of(&get(ID)).failed(1, disk);
        folder
            .run(&format!("metadata delete {disk} {ID}"))
            .failed(1, disk);
        folder.ok(&format!("metadata delete {disk} {{{other}}}"));
        assert_eq!(folder.ok(&format!("metadata list {disk}")), "");
        assert_eq!(folder.content("leaf.vhdx"), flat);
        folder.sound("leaf.vhdx");
    }
}

#[test]
fn metadata_has_limits() {
    let folder = Folder::new();
    folder.ok("create a.vhdx 8M");
    folder.ok("create a.vhd 8M");
    folder.ok("create a.img 8M");
    folder.fill("large", (1 << 20) + 1);
    std::fs::write(folder.path("small"), "x").unwrap();
    let files = folder.files();
    let ran = folder.run_with_input(&format!("metadata set a.vhdx {ID}"), "large");
    ran.failed(1, "an item holds at most 1 MiB");
    assert!(ran.err.contains("a.vhdx"), "{ran:?}");
    for disk in ["a.vhd", "a.img"] {
        folder.run(&format!("metadata list {disk}")).failed(1, disk);
        folder
            .run_with_input(&format!("metadata set {disk} {ID}"), "small")
            .failed(1, disk);
    }
    folder.run_with_input(
        "metadata set a.vhdx 00000000-0000-0000-0000-000000000000",
        "small",
    );
    // What the format itself keeps there is not the user's.
    folder
        .run("metadata get a.vhdx 2fa54224-cd1b-4876-b211-5dbed83bf4b8")
        .failed(1, "a.vhdx");
    assert_eq!(folder.files(), files);
}

#[test]
fn changes_of_metadata_and_their_failures_are_told_as_json() {
    let folder = Folder::new();
    folder.ok("create a.vhdx 8M");
    std::fs::write(folder.path("item"), "backup-42\n").unwrap();
    let ran = folder.run_with_input(&format!("metadata set a.vhdx {ID} --json"), "item");
    let told: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(told, serde_json::json!({"item": ID, "length": 10}));
    let told = folder.json(&format!("metadata delete a.vhdx {ID} --json"));
    assert_eq!(told, serde_json::json!({"item": ID}));
    for verb in ["get", "delete"] {
        let ran = folder.run(&format!("metadata {verb} a.vhdx {ID} --json"));
        let told: serde_json::Value = serde_json::from_str(&ran.err).unwrap();
        assert_eq!(told["error"]["kind"], "item_not_found", "{ran:?}");
        assert_eq!((ran.code, &*ran.out), (Some(1), ""), "{ran:?}");
    }
}

/// The format allows it, but other programs would take the item for the disk's own.
#[test]
fn an_item_is_not_called_like_one_of_the_disks_own() {
    let folder = Folder::new();
    folder.ok("create a.vhdx 16M");
    std::fs::write(folder.path("value"), "8 bytes.").unwrap();
    let words = "metadata set a.vhdx 2fa54224-cd1b-4876-b211-5dbed83bf4b8";
    folder
        .run_with_input(words, "value")
        .failed(1, "QEMU, libvhdi and 7-Zip");
    assert_eq!(folder.ok("metadata list a.vhdx"), "");
}
