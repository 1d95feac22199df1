//! `vhdkit mirror`.

use std::process::Stdio;

use serde_json::json;

use crate::chain::chain;
use crate::interrupt::signal;
use crate::published::Place;
use crate::support::{Folder, Ran};

#[test]
fn a_mirror_reads_the_same_in_every_format() {
    for extension in ["vhd", "vhdx"] {
        let folder = chain(extension);
        let leaf = format!("leaf.{extension}");
        folder.fill("data", 3 << 20);
        folder.put(&leaf, "31M", "data");
        for (target, options) in [
            ("m.vhdx", ""),
            ("m.vhd", ""),
            ("m.img", ""),
            ("f.vhdx", "--type fixed"),
            ("f.vhd", "--type fixed"),
            ("b.vhdx", "--block-size 1M"),
            ("odd.disk", "--format vhd"),
        ] {
            let done = folder.json(&format!("mirror {leaf} {target} {options} --json"));
            assert_eq!(done["source"], leaf);
            assert_eq!(done["target"], target);
            assert!(done["copied"].as_u64().unwrap() >= 3 << 20, "{done}");
            folder.ok(&format!("compare {leaf} {target}"));
            folder.sound(target);
        }
        // The disk itself is as it was.
        folder.sound(&leaf);
        let said = folder.ok(&format!("mirror {leaf} again.vhdx"));
        assert!(
            said.starts_with(&format!("mirrored {leaf} to again.vhdx: ")),
            "{said}"
        );
    }
}

#[test]
fn an_existing_disk_is_filled() {
    let folder = chain("vhdx");
    folder.fill("junk", 20 << 20);
    for (target, options) in [
        ("m.vhdx", ""),
        ("m.vhd", ""),
        ("f.vhd", "--type fixed"),
        ("m.img", ""),
    ] {
        folder.ok(&format!("create {target} 80M {options}"));
        folder.put(target, "0", "junk");
        folder.ok(&format!("mirror leaf.vhdx {target} --existing"));
        folder.ok(&format!("compare leaf.vhdx {target}"));
        folder.sound(target);
    }
    folder.ok("create small.vhdx 8M");
    folder.ok("create child.vhd --parent m.vhd");
    let files = folder.files();
    for (words, what) in [
        (
            "mirror leaf.vhdx small.vhdx --existing",
            "it has 8388608 bytes",
        ),
        ("mirror leaf.vhdx child.vhd --existing", "without a parent"),
        ("mirror leaf.vhdx none.vhdx --existing", "does not exist"),
        ("mirror leaf.vhdx m.vhdx", "exists"),
        ("mirror leaf.vhdx nowhere/m.vhdx", "folder does not exist"),
        ("mirror leaf.vhdx leaf.vhdx --existing", "in use"),
        ("mirror leaf.vhdx base.vhdx --existing", "in use"),
        ("mirror leaf.vhdx leaf.vhdx", "exists"),
    ] {
        folder.run(words).failed(1, what);
        assert_eq!(folder.files(), files, "{words}");
    }
}

#[test]
fn a_mirror_that_waits_is_cancelled_from_elsewhere() {
    for (by, target) in [
        ("cancel", "m.vhdx"),
        ("signal", "m.vhd"),
        ("cancel", "m.img"),
    ] {
        let place = Place::new();
        let folder = &place.folder;
        folder.ok("create a.vhdx 64M");
        folder.fill("data", 8 << 20);
        folder.put("a.vhdx", "7M", "data");
        let content = folder.content("a.vhdx");
        let child = place
            .command(&format!("mirror a.vhdx {target} --wait"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        place.until("a.vhdx", |all| {
            all[0]["operation"] == "mirror"
                && all[0]["current"] == all[0]["completion"]
                && folder.path(target).exists()
        });
        let other = place.json("progress --json");
        assert!(
            other[0]["other"].as_str().unwrap().ends_with(target),
            "{other}"
        );
        assert_eq!(other[0]["percent"], 100.0);
        if by == "cancel" {
            let ended = place.json("cancel a.vhdx --json");
            assert_eq!(ended[0]["status"], 995, "{ended}");
        } else {
            signal(&child, "TERM");
        }
        let ran = Ran::of(&child.wait_with_output().unwrap());
        assert_eq!(ran.code, Some(130), "{ran:?}");
        assert_eq!(
            ran.err,
            format!("vhdkit: cancelled; a.vhdx is as it was, {target} was deleted\n")
        );
        assert_eq!(folder.names(), ["a.vhdx", "data"]);
        assert_eq!(folder.content("a.vhdx"), content);
        folder.sound("a.vhdx");
        assert_eq!(place.json("progress --json"), json!([]));
    }
}

#[test]
fn an_existing_copy_survives_its_mirror() {
    let place = Place::new();
    let folder = &place.folder;
    folder.ok("create a.vhdx 64M");
    folder.fill("data", 8 << 20);
    folder.put("a.vhdx", "7M", "data");
    folder.ok("create m.vhd 64M");
    let child = place
        .command("mirror a.vhdx m.vhd --existing --wait")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    place.until("a.vhdx", |all| all[0]["percent"] == 100.0);
    // Nobody else writes to either of them.
    let ran = Ran::of(&folder.command("write a.vhdx --offset 0").output().unwrap());
    ran.failed(1, "in use");
    folder.run("write m.vhd --offset 0").failed(1, "in use");
    signal(&child, "INT");
    let ran = Ran::of(&child.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(130), "{ran:?}");
    assert!(ran.err.contains("m.vhd keeps what was copied"), "{ran:?}");
    folder.sound("m.vhd");
    folder.sound("a.vhdx");
    folder.ok("compare a.vhdx m.vhd");
}

#[test]
fn what_has_no_content_is_mirrored_too() {
    let folder = Folder::new();
    folder.ok("create a.vhd 4M");
    folder.ok("mirror a.vhd m.vhdx");
    folder.ok("compare a.vhd m.vhdx");
    folder.ok("mirror m.vhdx n.img");
    assert_eq!(folder.json("info n.img --json")["virtual_size"], 4 << 20);
}

#[test]
fn a_file_that_exists_is_only_filled_when_asked() {
    let folder = Folder::new();
    for name in ["a.vhdx", "b.vhdx"] {
        folder.ok(&format!("create {name} 8M"));
    }
    let files = folder.files();
    let ran = folder.run("mirror a.vhdx b.vhdx");
    ran.failed(1, "the file already exists");
    assert!(ran.err.contains("--existing"), "{ran:?}");
    assert!(!ran.err.contains("--force"), "{ran:?}");
    assert_eq!(folder.files(), files);
}
