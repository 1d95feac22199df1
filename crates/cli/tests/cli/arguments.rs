//! What is typed, rightly and wrongly.

use crate::support::Folder;

#[test]
fn nothing_typed_shows_the_help() {
    let folder = Folder::new();
    let ran = folder.run("");
    assert_eq!(ran.code, Some(2));
    assert!(ran.err.contains("Usage: vhdkit <COMMAND>"), "{ran:?}");
    assert!(folder.ok("--version").starts_with("vhdkit 0."));
    assert!(folder.ok("--help").contains("Exit codes:"));
    assert!(folder.ok("progress --help").contains("Examples:"));
    for command in [
        "create",
        "info",
        "map",
        "convert",
        "compare",
        "check",
        "compact",
        "expand",
        "resize",
        "merge",
        "mirror",
        "set-parent",
        "set",
        "metadata",
        "read",
        "write",
        "cancel",
        "serve",
    ] {
        assert!(
            folder
                .ok(&format!("{command} --help"))
                .contains("Examples:")
        );
        assert_eq!(folder.run(command).code, Some(2), "{command}");
    }
}

#[test]
fn wrong_arguments_end_with_2() {
    let folder = Folder::new();
    for words in [
        "frobnicate",
        "create",
        "create a.vhdx 1X",
        "create a.vhdx 40GB",
        "create a.vhdx 1000",
        "create a.vhd 1000",
        "create a.img 1000",
        "create a.vhdx 4194816 --sector-size 4096",
        "create a.vhdx 0",
        "create a.vhdx",
        "create a.vhdx 1G --type differencing",
        "create a.vhdx --parent b.vhdx --from c.vhdx",
        "create a.vhdx 1G --id 12",
        "create a.qcow2 1G",
        "create a 1G",
        "create a.iso 1G",
        "create a.img 1G --block-size 1M",
        "info",
        "info a b",
        "map a --json --frob",
        "convert a.img",
        "convert a.img b.vmdk",
        "convert a.img b.vhd --type differencing",
        "convert a.img b.vhd --progress loud",
        "compare a",
        "check",
        "read a --length -1",
        "write a",
        "info a --parent-map C:",
        "completions tcsh",
        "compact",
        "compact a.vhdx --mode slow",
        "expand a.vhdx",
        "expand a.vhdx 1GB",
        "expand a.vhdx -1G",
        "resize a.vhdx",
        "resize a.vhdx 1G --to-smallest",
        "merge",
        "merge a.vhdx --all --target 2",
        "merge a.vhdx --source x",
        "mirror a.vhdx",
        "mirror a.vhdx b.qcow2",
        "mirror a.vhdx b.vhdx --existing --format vhd",
        "mirror a.vhdx b.vhdx --type differencing",
        "set-parent a.vhdx",
        "set a.vhdx",
        "set a.vhdx --id 12",
        "set a.vhdx --new-id --id 6ba7b810-9dad-41d1-80b4-00c04fd430c8",
        "set a.vhdx --physical-sector-size big",
        "metadata",
        "metadata get a.vhdx",
        "metadata set a.vhdx 12",
        "convert a.img --in-place",
        "convert a.img --in-place --format vhdk",
        "convert a.img b.vhd --in-place --force",
        "convert a.img b.vhd --profile gcp",
        "create a.vhd 1G --profile gcp",
        "cancel",
        "serve",
        "serve a.vhdx --format qcow2",
    ] {
        let ran = folder.run(words);
        assert_eq!(ran.code, Some(2), "{words}: {ran:?}");
        assert!(
            !ran.err.is_empty() && ran.out.is_empty(),
            "{words}: {ran:?}"
        );
        assert!(folder.names().is_empty(), "{words} left something behind");
    }
}

#[test]
fn si_sizes_are_refused_with_both_readings() {
    let ran = Folder::new().run("create a.img 40GB");
    assert!(ran.err.contains("40G or 40GiB"), "{ran:?}");
    assert!(ran.err.contains("40000000000"), "{ran:?}");
}

#[test]
fn an_unknown_extension_names_the_choices() {
    let ran = Folder::new().run("create disk.qcow2 1G");
    ran.failed(2, "disk.qcow2");
    for choice in ["--format vhdx", "--format vhd", "--format raw", ".img"] {
        assert!(ran.err.contains(choice), "{choice}: {ran:?}");
    }
}

#[test]
fn a_resize_without_a_size_is_told_both_ways_to_give_one() {
    let folder = Folder::new();
    let ran = folder.run("resize a.vhdx");
    assert_eq!(ran.code, Some(2));
    assert!(ran.err.contains("<SIZE|--to-smallest>"), "{ran:?}");
    let ran = folder.run("resize a.vhdx 1G --to-smallest");
    assert!(ran.err.contains("cannot be used with"), "{ran:?}");
}
