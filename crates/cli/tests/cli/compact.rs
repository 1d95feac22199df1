//! `vhdkit compact`.

use crate::interrupt::signal;
use crate::support::{Folder, Ran};
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

/// A disk of 64 MiB: half of its 16 MiB of data was zeroed since.
fn holed(folder: &Folder, name: &str, options: &str) {
    folder.ok(&format!("create {name} 64M {options}"));
    folder.fill("data", 16 << 20);
    folder.put(name, "4M", "data");
    std::fs::write(folder.path("zeros"), vec![0; 8 << 20]).unwrap();
    folder.put(name, "8M", "zeros");
    for file in ["data", "zeros"] {
        std::fs::remove_file(folder.path(file)).unwrap();
    }
}

#[test]
fn zeros_are_given_back() {
    for (name, options) in [
        ("a.vhd", ""),
        ("a.vhdx", "--block-size 1M"),
        ("b.vhdx", "--block-size 2M --sector-size 4096"),
    ] {
        let folder = Folder::new();
        holed(&folder, name, options);
        let (content, files) = (folder.content(name), folder.files());

        let plan = folder.json(&format!("compact {name} --dry-run --json"));
        assert_eq!(folder.files(), files, "{name}");
        let said = folder.ok(&format!("compact {name} --dry-run"));
        assert!(
            said.starts_with(&format!("would compact {name}: ")),
            "{said}"
        );
        assert!(said.contains("would be saved\nwhat stays: "), "{said}");

        let done = folder.json(&format!("compact {name} --json"));
        assert_eq!(plan["dry_run"], true);
        assert_eq!(done["dry_run"], false);
        for field in [
            "path",
            "size_before",
            "size_after",
            "saved",
            "released",
            "payload",
            "structures",
            "gaps",
        ] {
            assert!(!done[field].is_null(), "{field}: {done}");
            assert_eq!(plan[field], done[field], "{name} {field}: {plan} {done}");
        }
        assert_eq!(plan["moved"], 0);
        assert!(done["moved"].as_u64().unwrap() > 0, "{done}");
        assert!(done["released"].as_u64().unwrap() >= 8 << 20, "{done}");
        let length = std::fs::metadata(folder.path(name)).unwrap().len();
        assert_eq!(done["size_after"], length);
        assert_eq!(
            done["saved"].as_u64().unwrap(),
            done["size_before"].as_u64().unwrap() - length
        );
        assert_eq!(folder.content(name), content, "{name}");
        folder.sound(name);
        assert_eq!(folder.names(), [name]);

        let again = folder.json(&format!("compact {name} --json"));
        assert_eq!(again["saved"], 0, "{again}");
        assert_eq!(folder.content(name), content, "{name}");
    }
}

#[test]
fn the_quick_mode_reads_no_block() {
    for name in ["a.vhd", "a.vhdx"] {
        let folder = Folder::new();
        holed(&folder, name, "");
        let content = folder.content(name);
        let quick = folder.json(&format!("compact {name} --mode quick --json"));
        assert_eq!(folder.content(name), content, "{name}");
        let full = folder.json(&format!("compact {name} --mode full --json"));
        assert!(
            quick["size_after"].as_u64() >= full["size_after"].as_u64(),
            "{quick} {full}"
        );
        assert_eq!(folder.content(name), content, "{name}");
        folder.sound(name);
    }
}

#[test]
fn zeros_of_a_child_go_on_hiding_its_parent() {
    for extension in ["vhd", "vhdx"] {
        let folder = Folder::new();
        let (base, child, leaf) = (
            format!("base.{extension}"),
            format!("child.{extension}"),
            format!("leaf.{extension}"),
        );
        folder.ok(&format!("create {base} 64M"));
        folder.fill("data", 16 << 20);
        folder.put(&base, "0", "data");
        folder.ok(&format!("create {child} --parent {base}"));
        std::fs::write(folder.path("zeros"), vec![0; 10 << 20]).unwrap();
        folder.put(&child, "0", "zeros");
        folder.put(&child, "40M", "data");
        folder.put(&child, "42M", "zeros");
        folder.ok(&format!("create {leaf} --parent {child}"));
        let content = folder.content(&leaf);
        folder.ok(&format!("compact {child}"));
        // The leaf has recorded nothing that a compaction changes.
        assert_eq!(folder.content(&leaf), content);
        assert_eq!(folder.content(&child), content);
        folder.sound(&leaf);
        // In the middle of a chain as well, without its parent being opened for writing.
        folder.ok(&format!("compact {base}"));
        assert_eq!(folder.content(&leaf), content);
        // Where the parent is not, nobody can tell which zeros matter.
        std::fs::rename(folder.path(&base), folder.path("elsewhere")).unwrap();
        folder.run(&format!("compact {child}")).failed(1, "parent");
        folder.ok(&format!("compact {child} --parent elsewhere"));
    }
}

#[test]
fn what_has_no_blocks_is_refused() {
    let folder = Folder::new();
    folder.ok("create a.vhd 8M --type fixed");
    folder.ok("create a.img 8M");
    folder.ok("create a.vhdx 8M --type fixed");
    for name in ["a.vhd", "a.img"] {
        for dry in ["", "--dry-run"] {
            folder
                .run(&format!("compact {name} {dry}"))
                .failed(1, &format!("cannot compact {name}"));
        }
    }
    let done = folder.json("compact a.vhdx --json");
    assert_eq!(done["saved"], 0);
    folder.sound("a.vhdx");
}

#[test]
fn an_interrupted_compaction_leaves_a_whole_disk() {
    for name in ["a.vhd", "a.vhdx"] {
        let folder = Folder::new();
        folder.ok(&format!("create {name} 512M"));
        folder.fill("data", 192 << 20);
        std::fs::write(folder.path("zeros"), vec![0; 32 << 20]).unwrap();
        let mut stopped = false;
        for round in 0..20 {
            folder.put(name, "64M", "data");
            folder.put(name, &format!("{}M", 64 + 40 * (round % 4)), "zeros");
            let content = folder.content(name);
            let mut child = folder
                .command(&format!("compact {name} --progress json"))
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let mut err = BufReader::new(child.stderr.take().unwrap());
            let mut line = String::new();
            err.read_line(&mut line).unwrap();
            assert!(line.contains("\"status\":997"), "{line}");
            signal(&child, "INT");
            let mut rest = String::new();
            err.read_to_string(&mut rest).unwrap();
            let ran = Ran::of(&child.wait_with_output().unwrap());
            assert_eq!(folder.content(name), content, "{rest}");
            folder.sound(name);
            if ran.code == Some(130) {
                assert!(
                    rest.contains("vhdkit: cancelled; the disk is whole"),
                    "{rest}"
                );
                stopped = true;
            } else {
                assert_eq!(ran.code, Some(0), "{rest}");
            }
            folder.ok(&format!("compact {name}"));
            assert_eq!(folder.content(name), content);
            if stopped {
                break;
            }
        }
        assert!(stopped, "{name}: it was always done before the signal");
        assert_eq!(folder.names(), [name, "data", "zeros"]);
    }
}

#[test]
fn what_is_predicted_for_nothing_but_zeros_is_what_comes() {
    for (name, options) in [
        ("a.vhd", ""),
        ("b.vhd", "--block-size 512K"),
        ("a.vhdx", "--block-size 1M"),
    ] {
        let folder = Folder::new();
        folder.ok(&format!("create {name} 8M {options}"));
        std::fs::write(folder.path("zeros"), vec![0; 8 << 20]).unwrap();
        folder.fill("data", 8 << 20);
        folder.put(name, "0", "data");
        folder.put(name, "0", "zeros");
        let plan = folder.json(&format!("compact {name} --dry-run --json"));
        let done = folder.json(&format!("compact {name} --json"));
        assert!(done["saved"].as_u64().unwrap() >= 8 << 20, "{done}");
        for field in ["size_after", "saved", "payload", "structures", "gaps"] {
            assert_eq!(plan[field], done[field], "{name} {field}: {plan} {done}");
        }
    }
}
