//! `vhdkit merge`.

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use serde_json::json;
use vhdkit_testkit::require::require;

use crate::chain::chain;
use crate::interrupt::signal;
use crate::support::{Folder, Ran};

/// Writes a word to a disk.
fn word(folder: &Folder, disk: &str, offset: &str, word: &str) {
    std::fs::write(folder.path("word"), word).unwrap();
    folder.put(disk, offset, "word");
    std::fs::remove_file(folder.path("word")).unwrap();
}

#[test]
fn a_chain_becomes_its_base() {
    for extension in ["vhd", "vhdx"] {
        let folder = chain(extension);
        let [base, child, leaf, extra] =
            ["base", "child", "leaf", "extra"].map(|name| format!("{name}.{extension}"));
        // A disk that the command is not told about.
        folder.ok(&format!("create {extra} --parent {leaf}"));
        word(&folder, &extra, "40M", "beside");
        let (flat, beside) = (folder.content(&leaf), folder.content(&extra));
        let files = folder.files();

        let all = format!("merge {leaf} --all --delete-merged");
        let plan = folder.json(&format!("{all} --dry-run --json"));
        let said = folder.ok(&format!("{all} --dry-run"));
        assert_eq!(folder.files(), files, "{extension}");
        assert!(said.starts_with(&format!("would merge {leaf}, ")), "{said}");
        assert!(
            said.contains(&format!("would be deleted: {leaf}\n")),
            "{said}"
        );

        let ran = folder.run(&format!("{all} --json"));
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{ran:?}");
        let done: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        let text = |name: &str| {
            let path = folder.path(name);
            path.parent()
                .unwrap()
                .canonicalize()
                .unwrap()
                .join(name)
                .to_str()
                .unwrap()
                .to_owned()
        };
        let length = std::fs::metadata(folder.path(&base)).unwrap().len();
        assert_eq!(plan["dry_run"], true);
        assert_eq!(done["dry_run"], false);
        for (field, value) in [
            ("path", json!(leaf)),
            ("orphaned", json!([])),
            ("size_before", plan["size_before"].clone()),
        ] {
            assert_eq!(done[field], value, "{field}: {done}");
            assert_eq!(plan[field], value, "{field}: {plan}");
        }
        for plan in [&plan, &done] {
            assert!(plan["target"].as_str().unwrap().ends_with(&base), "{plan}");
            for field in ["merged", "deleted"] {
                let names = plan[field].as_array().unwrap();
                assert_eq!(names.len(), 2, "{plan}");
                for name in [&leaf, &child] {
                    assert!(
                        names
                            .iter()
                            .any(|n| n.as_str().unwrap().ends_with(name.as_str())),
                        "{plan}"
                    );
                }
            }
            assert_eq!(plan["relinked"], json!([text(&extra)]), "{plan}");
        }
        assert_eq!(done["size_after"], length);
        assert!(plan["size_after"].as_u64().unwrap() >= length, "{plan}");
        assert!(done["copied"].as_u64().unwrap() > 0, "{done}");
        assert_eq!(folder.names(), [base.clone(), extra.clone()]);
        assert_eq!(folder.content(&base), flat, "{extension}");
        assert_eq!(folder.content(&extra), beside, "{extension}");
        folder.sound(&extra);
        // And on: the last one, too.
        folder.ok(&format!("merge {extra} --delete-merged"));
        assert_eq!(folder.names(), std::slice::from_ref(&base));
        assert_eq!(folder.content(&base), beside);
    }
}

#[test]
fn one_is_merged_and_kept_until_it_is_deleted() {
    for extension in ["vhd", "vhdx"] {
        let folder = chain(extension);
        let leaf = format!("leaf.{extension}");
        let flat = folder.content(&leaf);
        let said = folder.ok(&format!("merge {leaf}"));
        assert!(said.starts_with(&format!("merged {leaf} into ")), "{said}");
        assert!(
            said.ends_with(&format!("no longer needed: {leaf}\n")),
            "{said}"
        );
        assert_eq!(folder.names().len(), 3);
        assert_eq!(folder.content(&leaf), flat);
        assert_eq!(folder.content(&format!("child.{extension}")), flat);
        folder.sound(&leaf);
        // Once more, now for good.
        folder.ok(&format!("merge {leaf} --delete-merged"));
        assert_eq!(folder.names().len(), 2);
        assert_eq!(folder.content(&format!("child.{extension}")), flat);
    }
}

#[test]
fn the_middle_of_a_chain_is_folded() {
    for extension in ["vhd", "vhdx"] {
        let folder = chain(extension);
        let leaf = format!("leaf.{extension}");
        let last = format!("last.{extension}");
        folder.ok(&format!("create {last} --parent {leaf}"));
        word(&folder, &last, "50M", "word 3");
        let flat = folder.content(&last);
        let words = format!("merge {last} --source 2 --target 4 --delete-merged --json");
        let done = folder.json(&words);
        let relinked = done["relinked"].as_array().unwrap();
        assert_eq!(relinked.len(), 1, "{done}");
        assert!(relinked[0].as_str().unwrap().ends_with(&last), "{done}");
        assert_eq!(folder.names(), [format!("base.{extension}"), last.clone()]);
        assert_eq!(folder.content(&last), flat);
        folder.sound(&last);
    }
}

#[test]
fn siblings_are_warned_about() {
    for extension in ["vhd", "vhdx"] {
        let folder = chain(extension);
        let (leaf, other) = (format!("leaf.{extension}"), format!("other.{extension}"));
        folder.ok(&format!("create {other} --parent base.{extension}"));
        let files = folder.files();
        for dry in ["--dry-run --json", "--json"] {
            assert_eq!(folder.files(), files);
            let ran = folder.run(&format!("merge {leaf} --all {dry}"));
            assert_eq!(ran.code, Some(0), "{ran:?}");
            assert!(ran.err.starts_with("vhdkit: warning: "), "{ran:?}");
            assert!(ran.err.contains(&other), "{ran:?}");
            assert!(ran.err.ends_with("becomes invalid\n"), "{ran:?}");
            assert_eq!(ran.err.lines().count(), 1, "{ran:?}");
            let done: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
            let orphaned = done["orphaned"].as_array().unwrap();
            assert_eq!(orphaned.len(), 1, "{done}");
            assert!(orphaned[0].as_str().unwrap().ends_with(&other), "{done}");
        }
        if extension == "vhdx" {
            folder
                .run(&format!("read {other} --length 1"))
                .failed(1, "identifier");
        }
    }
}

#[test]
fn a_larger_child_makes_its_parent_larger() {
    let folder = chain("vhdx");
    folder.ok("resize leaf.vhdx 96M");
    word(&folder, "leaf.vhdx", "90M", "beyond");
    let flat = folder.content("leaf.vhdx");
    folder.ok("merge leaf.vhdx --all --delete-merged");
    assert_eq!(folder.content("base.vhdx"), flat);
    assert_eq!(
        folder.json("info base.vhdx --json")["virtual_size"],
        96 << 20
    );
    folder.sound("base.vhdx");
    // And a smaller one smaller.
    folder.ok("create child.vhdx --parent base.vhdx");
    folder.ok("resize child.vhdx 48M");
    let flat = folder.content("child.vhdx");
    folder.ok("merge child.vhdx --delete-merged");
    assert_eq!(folder.content("base.vhdx"), flat);
    folder.sound("base.vhdx");
}

#[test]
fn what_cannot_be_merged_is_refused_and_untouched() {
    for extension in ["vhd", "vhdx"] {
        let folder = chain(extension);
        let leaf = format!("leaf.{extension}");
        let files = folder.files();
        for (words, what) in [
            (format!("merge base.{extension}"), "no parent"),
            (format!("merge base.{extension} --all"), "no parent"),
            (format!("merge {leaf} --source 3"), "depth 3"),
            (format!("merge {leaf} --source 0"), "depth 0"),
            (format!("merge {leaf} --target 4"), "chain of 3"),
            (format!("merge {leaf} --target 1"), "depth 1"),
            (format!("merge {leaf} --source 2 --target 2"), "depth 2"),
        ] {
            folder.run(&words).failed(1, what);
            folder.run(&format!("{words} --dry-run")).failed(1, what);
            assert_eq!(folder.files(), files, "{words}");
        }
        std::fs::rename(
            folder.path(&format!("base.{extension}")),
            folder.path("moved"),
        )
        .unwrap();
        for words in ["", "--all", "--all --delete-merged"] {
            let ran = folder.run(&format!("merge {leaf} {words}"));
            ran.failed(1, "parent");
            assert!(ran.err.contains("--parent"), "{ran:?}");
        }
        // Named by hand it works.
        let given = format!("--parent child.{extension} --parent moved");
        let flat = folder.ok(&format!("read {leaf} --length 64K {given}"));
        folder.ok(&format!("merge {leaf} --all --delete-merged {given}"));
        assert_eq!(folder.names(), ["moved"]);
        assert_eq!(folder.ok("read moved --length 64K"), flat);
    }
}

#[test]
fn an_interrupted_merge_leaves_the_chain_as_it_was() {
    for extension in ["vhd", "vhdx"] {
        let folder = Folder::new();
        let (base, leaf) = (format!("base.{extension}"), format!("leaf.{extension}"));
        folder.fill("data", 192 << 20);
        let mut stopped = false;
        for _ in 0..20 {
            folder.ok(&format!("create {base} 512M"));
            folder.ok(&format!("create {leaf} --parent {base}"));
            folder.put(&leaf, "64M", "data");
            let flat = folder.content(&leaf);
            let mut child = folder
                .command(&format!("merge {leaf} --delete-merged --progress json"))
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
            if ran.code == Some(130) {
                assert!(
                    rest.contains("vhdkit: cancelled; the chain reads"),
                    "{rest}"
                );
                assert_eq!(folder.content(&leaf), flat);
                folder.sound(&leaf);
                folder.ok(&format!("merge {leaf} --delete-merged"));
                stopped = true;
            }
            assert_eq!(folder.names(), [base.clone(), "data".into()]);
            assert_eq!(folder.content(&base), flat);
            folder.sound(&base);
            std::fs::remove_file(folder.path(&base)).unwrap();
            if stopped {
                break;
            }
        }
        // A file system with reflinks may always be done before.
        println!("stopped: {stopped}");
    }
}

/// Killed at each of its last calls to the file system, a merge leaves files that nothing leads to any more: run again, it
/// deletes them.
#[test]
fn a_merge_that_was_killed_while_it_deleted_is_finished_when_run_again() {
    const CALLS: &str = "unlink,unlinkat,linkat,rename,fdatasync";
    let strace = std::process::Command::new("strace").arg("-V").output();
    if !require(strace.is_ok(), "needs strace") {
        return;
    }
    let mut finished = 0;
    for extension in ["vhd", "vhdx"] {
        let [base, leaf, last] = ["base", "leaf", "last"].map(|name| format!("{name}.{extension}"));
        for (words, left) in [
            (format!("merge {last} --all --delete-merged"), vec![&base]),
            (
                format!("merge {last} --source 2 --target 4 --delete-merged"),
                vec![&base, &last],
            ),
        ] {
            let start = chain(extension);
            start.ok(&format!("create {last} --parent {leaf}"));
            let content = start.content(&last);
            let mut killed = 0;
            for back in 0.. {
                let folder = Folder::new();
                for name in start.names() {
                    std::fs::copy(start.path(&name), folder.path(&name)).unwrap();
                }
                let log = folder.path("log");
                let total = if back == 0 {
                    usize::MAX
                } else {
                    killed + 1 - back
                };
                let mut strace = std::process::Command::new("strace");
                strace
                    .args(["-f", "-qq", "-o"])
                    .arg(&log)
                    .args(["-e", &format!("trace={CALLS}"), "-e"])
                    .arg(format!(
                        "inject={CALLS}:signal=KILL:when={}",
                        total.min(60_000)
                    ))
                    .arg(env!("CARGO_BIN_EXE_vhdkit"))
                    .args(words.split(' '))
                    .current_dir(folder.path(""))
                    .stdout(Stdio::null())
                    .stderr(Stdio::null());
                let ended = strace.status().unwrap();
                let calls = std::fs::read_to_string(&log).unwrap();
                std::fs::remove_file(&log).unwrap();
                if back == 0 {
                    assert!(ended.success(), "{words}");
                    killed = calls.lines().filter(|line| line.contains('(')).count();
                    continue;
                }
                // Before that nothing has been deleted.
                if back > 14 {
                    break;
                }
                let what = format!("{words}, killed at call {total} of {killed}: {calls}");
                // It may have had nothing left to do but to close its files.
                if !folder.names().iter().eq(left.iter().copied()) {
                    finished += folder.ok(&words).matches("deleted: ").count();
                }
                let names = folder.names();
                assert!(names.iter().eq(left.iter().copied()), "{what}: {names:?}");
                let shown = left.last().unwrap();
                assert_eq!(folder.content(shown), content, "{what}");
                folder.sound(shown);
            }
        }
    }
    assert!(finished > 20, "{finished}");
}

/// A list of files to be deleted is obeyed only for what it was made for.
#[test]
fn a_list_of_merged_files_deletes_nothing_else() {
    let folder = chain("vhdx");
    folder.ok("create other.vhdx --parent base.vhdx");
    folder.ok("create single.vhdx 8M");
    let id = |name: &str| {
        folder.json(&format!("info {name} --json"))["link_identifier"]
            .as_str()
            .map_or_else(
                || "00000000-0000-0000-0000-000000000000".to_owned(),
                str::to_owned,
            )
    };
    let entry = |id: &str, name: &str| format!("{id} {}\0", folder.path(name).display());
    let list = format!(
        "vhdkit: files of a merge, to be deleted\n{}{}{}",
        entry(&id("single.vhdx"), "single.vhdx"),
        entry("6ba7b810-9dad-41d1-80b4-00c04fd430c8", "other.vhdx"),
        entry(&id("base.vhdx"), "missing.vhdx"),
    );
    for bytes in [
        list.as_str(),
        "vhdkit: files of a merge, to be deleted\nxx\0",
        "",
        "\0",
    ] {
        std::fs::write(folder.path("leaf.vhdx.vhdkit-merged"), bytes).unwrap();
        folder.ok("merge leaf.vhdx --dry-run --delete-merged");
        let said = folder.ok("merge leaf.vhdx --source 2 --target 3");
        assert!(!said.contains("deleted"), "{said}");
        assert!(folder.path("single.vhdx").exists() && folder.path("other.vhdx").exists());
    }
    let said = folder.ok("merge leaf.vhdx --delete-merged");
    assert_eq!(said.matches("deleted: ").count(), 1, "{said}");
    assert_eq!(
        folder.names(),
        ["base.vhdx", "child.vhdx", "other.vhdx", "single.vhdx"]
    );
}
