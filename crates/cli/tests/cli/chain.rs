//! Differencing disks and their parents.

use crate::support::Folder;

/// A base, its child and its grandchild, each with one word of its own.
pub(crate) fn chain(extension: &str) -> Folder {
    let folder = Folder::new();
    let names = ["base", "child", "leaf"].map(|n| format!("{n}.{extension}"));
    folder.ok(&format!("create {} 64M", names[0]));
    for (i, name) in names.iter().enumerate() {
        if i > 0 {
            folder.ok(&format!("create {name} --parent {}", names[i - 1]));
        }
        // Each word is written before the next child is made: a parent must not change afterwards.
        std::fs::write(folder.path("word"), format!("word {i}")).unwrap();
        let ran = folder.run_with_input(&format!("write {name} --offset {}M", 8 * i), "word");
        assert_eq!(ran.code, Some(0), "{ran:?}");
    }
    std::fs::remove_file(folder.path("word")).unwrap();
    folder
}

#[test]
fn a_leaf_reads_through_its_parents() {
    for extension in ["vhd", "vhdx"] {
        let folder = chain(extension);
        for i in 0..3 {
            let words = format!("read leaf.{extension} --offset {}M --length 6", 8 * i);
            assert_eq!(folder.ok(&words), format!("word {i}"), "{extension}");
        }
        let map = folder.json(&format!("map leaf.{extension} --json"));
        let mut layers: Vec<u64> = map["extents"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|e| e["layer"].as_u64())
            .collect();
        layers.dedup();
        assert_eq!(layers, [2, 1, 0], "{map}");
        let info = folder.json(&format!("info leaf.{extension} --chain --json"));
        let files: Vec<&str> = info["chain"]
            .as_array()
            .unwrap()
            .iter()
            .map(|image| image["path"].as_str().unwrap().rsplit('/').next().unwrap())
            .collect();
        let expected = ["leaf", "child", "base"].map(|n| format!("{n}.{extension}"));
        assert_eq!(files, expected);
        assert_eq!(info["type"], "differencing");
        let said = folder.ok(&format!("check --chain leaf.{extension}"));
        assert_eq!(said.matches("nothing found").count(), 3, "{said}");
        // Flattened, it needs no parents.
        folder.ok(&format!("convert leaf.{extension} flat.img"));
        folder.ok(&format!("compare leaf.{extension} flat.img"));
    }
}

#[test]
fn a_missing_parent_is_told_with_the_way_out() {
    for extension in ["vhd", "vhdx"] {
        let folder = chain(extension);
        std::fs::create_dir(folder.path("moved")).unwrap();
        let rename = |name: &str| {
            std::fs::rename(
                folder.path(&format!("{name}.{extension}")),
                folder.path(&format!("moved/{name}.disk")),
            )
            .unwrap();
        };
        rename("base");
        rename("child");
        let leaf = format!("leaf.{extension}");
        let ran = folder.run(&format!("read {leaf} --length 6"));
        ran.failed(1, "parent");
        assert!(ran.err.contains("--parent"), "{ran:?}");
        // The file itself can still be looked at.
        folder.ok(&format!("info {leaf}"));
        assert_eq!(folder.run(&format!("info --chain {leaf}")).code, Some(1));
        assert!(
            folder
                .ok(&format!("check {leaf}"))
                .contains("nothing found")
        );
        let ran = folder.run(&format!("check --chain {leaf}"));
        assert_eq!(ran.code, Some(3), "{ran:?}");
        assert!(ran.out.contains("chain: cannot open"), "{ran:?}");
        assert!(ran.out.contains("chain-parent-missing"), "{ran:?}");
        // Given by hand, the direct parent first.
        let given = "--parent moved/child.disk --parent moved/base.disk";
        assert_eq!(
            folder.ok(&format!("read {leaf} --length 6 {given}")),
            "word 0"
        );
        folder.ok(&format!("check --chain {leaf} {given}"));
        // The wrong way round.
        let wrong = "--parent moved/base.disk --parent moved/child.disk";
        let ran = folder.run(&format!("read {leaf} --length 6 {wrong}"));
        assert_eq!(ran.code, Some(1), "{ran:?}");
        let ran = folder.run(&format!("check --chain {leaf} {wrong}"));
        assert_eq!(ran.code, Some(3), "{ran:?}");
        // A new child of the moved child, whose own parent has moved too.
        folder
            .run(&format!("create new.{extension} --parent moved/child.disk"))
            .failed(1, "parent");
        folder.ok(&format!("create new.{extension} {given}"));
        assert_eq!(
            folder.ok(&format!("read new.{extension} --length 6 {given}")),
            "word 0"
        );
    }
}

#[test]
fn a_parent_that_was_changed_is_noticed() {
    let folder = chain("vhdx");
    std::fs::write(folder.path("word"), "other").unwrap();
    let ran = folder.run_with_input("write child.vhdx --offset 0", "word");
    assert_eq!(ran.code, Some(0), "{ran:?}");
    folder
        .run("read leaf.vhdx --length 1")
        .failed(1, "identifier");
    let ran = folder.run("check --chain leaf.vhdx --json");
    assert_eq!(ran.code, Some(3), "{ran:?}");
    let report: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(report["chain_error"]["kind"], "parent_id_mismatch");
    assert_eq!(report["worst"], "error");
    // About the middle one, which is the child of the changed one: the leaf is, here.
    let codes = |i: usize| report["files"][i]["findings"].to_string();
    assert!(codes(0).contains("chain-parent-mismatch"), "{report}");
    assert_eq!(report["files"].as_array().unwrap().len(), 3, "{report}");
}

/// A VHD's identifier does not change with its content.
#[test]
fn a_vhd_parent_that_was_written_to_or_resized_is_noticed_by_the_check() {
    let folder = chain("vhd");
    folder.sound("leaf.vhd");
    let base = std::fs::File::options()
        .append(true)
        .open(folder.path("base.vhd"))
        .unwrap();
    let before = base.metadata().unwrap().modified().unwrap();
    base.set_modified(before - std::time::Duration::from_hours(1))
        .unwrap();
    let ran = folder.run("check --chain leaf.vhd");
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(
        ran.out.contains("vhd-parent-modified") && ran.out.contains("3600 seconds before"),
        "{ran:?}"
    );
    folder.ok("expand base.vhd 1G");
    let ran = folder.run("check --chain leaf.vhd");
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert!(ran.out.contains("vhd-parent-size"), "{ran:?}");
    folder
        .run("create other.vhd 512M --parent base.vhd")
        .failed(1, "the size of its parent");
}

#[test]
fn more_parents_than_there_are_are_refused() {
    let folder = chain("vhdx");
    folder.ok("create stranger.vhdx 8M");
    folder
        .run("read stranger.vhdx --length 1 --parent base.vhdx")
        .failed(1, "has no parent");
    folder
        .run("read child.vhdx --length 1 --parent base.vhdx --parent stranger.vhdx")
        .failed(1, "has no parent");
}

#[test]
fn a_chain_may_be_longer_than_the_usual_number_of_open_files() {
    let folder = Folder::new();
    let script = "ulimit -Sn 24; $V create 0.vhdx 8M && for i in $(seq 30); do $V create $i.vhdx --parent $((i - 1)).vhdx || exit; done; $V info --chain 30.vhdx";
    let ran = folder.shell(script);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let ran = folder.shell("ulimit -Sn 24; ulimit -Hn 24; $V read 30.vhdx --length 1");
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.err.contains("ulimit -n"), "{ran:?}");
}

#[test]
fn two_children_are_compared_over_one_parent() {
    let folder = chain("vhdx");
    folder.ok("create other.vhdx --parent child.vhdx");
    let ran = folder.run("compare leaf.vhdx other.vhdx");
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.out.contains(&format!("offset {}", 16 << 20)), "{ran:?}");
    std::fs::rename(folder.path("child.vhdx"), folder.path("c.disk")).unwrap();
    let ran = folder.run("compare leaf.vhdx other.vhdx --parent c.disk");
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let ran = folder.run("compare leaf.vhdx other.vhdx --parent c.disk --parent-b base.vhdx");
    assert_eq!(ran.code, Some(2), "{ran:?}");
}
