//! A file system without space: what fails says so, leaves no litter, and the disks read as before.

use crate::support::Folder;

/// Runs a script where `m` is a small file system; `ok` ends the script if its command fails, `no` if it does not.
fn on_small(folder: &Folder, size: &str, script: &str) {
    let script = format!(
        "mkdir -p m; mount -t tmpfs -o size={size} none m
        ok() {{ \"$@\" > said 2>&1 || {{ echo \"failed: $*\"; cat said; exit 9; }}; }}
        no() {{ \"$@\" > said 2>&1; c=$?; cat said >> errors
            [ $c = 1 ] || {{ echo \"not refused ($c): $*\"; cat said; exit 9; }}; }}
        {script}
        exit 0"
    );
    if let Some(ran) = folder.shell_with_mounts(&script) {
        assert_eq!(ran.code, Some(0), "{ran:?}");
        let errors = std::fs::read_to_string(folder.path("errors")).unwrap();
        let sentences = errors.matches("vhdkit: ").count();
        assert!(sentences > 0);
        assert_eq!(
            errors.matches("no space left").count(),
            sentences,
            "{errors}"
        );
        assert_eq!(errors.matches("hint: ").count(), sentences, "{errors}");
        assert_eq!(errors.matches("m/").count(), sentences, "{errors}");
        assert_eq!(errors.lines().count(), 2 * sentences, "{errors}");
    }
}

#[test]
fn a_merge_out_of_space_leaves_the_chain_as_it_was() {
    for extension in ["vhd", "vhdx"] {
        let folder = Folder::new();
        folder.fill("low", 8 << 20);
        folder.fill("high", 20 << 20);
        on_small(
            &folder,
            "40m",
            &format!(
                "ok $V create m/base.{extension} 256M
                ok $V write m/base.{extension} --offset 0 < low
                ok $V create m/leaf.{extension} --parent m/base.{extension}
                ok $V write m/leaf.{extension} --offset 64M < high
                ok $V convert m/leaf.{extension} flat.img
                ls -A m > before
                for options in '' --delete-merged; do
                    no $V merge m/leaf.{extension} $options
                    ls -A m | ok cmp - before
                    ok $V compare m/leaf.{extension} flat.img
                    ok $V check --chain m/leaf.{extension}
                done
                mount -o remount,size=128m m
                ok $V merge m/leaf.{extension} --delete-merged
                ok $V compare m/base.{extension} flat.img
                ok $V check m/base.{extension}
                [ $(ls -A m) = base.{extension} ] || exit 8"
            ),
        );
    }
}

#[test]
fn new_files_out_of_space_are_gone() {
    let folder = Folder::new();
    folder.fill("data", 24 << 20);
    on_small(
        &folder,
        "16m",
        "ok $V create a.vhdx 64M; ok $V write a.vhdx --offset 1M < data
        for to in vhd vhdx img; do
            no $V mirror a.vhdx m/b.$to
            no $V convert a.vhdx m/b.$to
            no $V convert a.vhdx m/b.$to --progress none
        done
        no $V mirror a.vhdx m/b.vhd --type fixed
        no $V mirror a.vhdx m/b.vhdx --type fixed
        no $V convert data m/b.vhd --profile azure
        [ -z \"$(ls -A m)\" ] || exit 8
        ok $V check a.vhdx; ok $V compare a.vhdx a.vhdx
        for to in vhd vhdx; do
            ok $V create m/c.$to 64M
            no $V mirror a.vhdx m/c.$to --existing
            ok $V check m/c.$to
            [ $(ls -A m) = c.$to ] || exit 7; rm m/*
        done",
    );
}

#[test]
fn a_resize_out_of_space_keeps_the_size() {
    let folder = Folder::new();
    folder.fill("data", 8 << 20);
    on_small(
        &folder,
        "12m",
        "for kind in vhd vhdx; do
            ok $V create m/f.$kind 8M --type fixed
            ok $V write m/f.$kind --offset 0 < data
            cp --sparse=always m/f.$kind before
            head -c 16M /dev/zero > m/rest 2> /dev/null
            for verb in expand resize; do
                no $V $verb m/f.$kind 64M
                ok $V check m/f.$kind
                ok $V compare m/f.$kind before
                [ $($V info m/f.$kind --json | grep -c '\"virtual_size\": 8388608') = 1 ] || exit 8
            done
            [ \"$(ls -A m)\" = \"f.$kind
rest\" ] || exit 7
            rm m/*
        done",
    );
}

/// Nothing has changed, so the children of the disk still fit.
#[test]
fn a_resize_out_of_space_keeps_the_children() {
    let folder = Folder::new();
    folder.fill("data", 3 << 20);
    on_small(
        &folder,
        "16m",
        "for kind in vhd vhdx; do
            case $kind in vhd) size=2000G;; vhdx) size=64T;; esac
            ok $V create m/p.$kind 8M
            ok $V write m/p.$kind --offset 1M < data
            ok $V create m/c.$kind --parent m/p.$kind
            ok $V convert m/c.$kind before.img --force
            head -c 32M /dev/zero > m/rest 2> /dev/null
            no $V resize m/p.$kind $size
            ok $V check --chain m/c.$kind
            ok $V compare m/c.$kind before.img
            rm m/*
        done",
    );
}

#[test]
fn a_compaction_needs_no_space() {
    let folder = Folder::new();
    folder.fill("data", 16 << 20);
    std::fs::write(folder.path("zeros"), vec![0; 8 << 20]).unwrap();
    on_small(
        &folder,
        "32m",
        "for kind in vhd vhdx; do
            ok $V create m/a.$kind 64M
            ok $V write m/a.$kind --offset 4M < data
            ok $V write m/a.$kind --offset 6M < zeros
            ok $V convert m/a.$kind flat.img --force
            head -c 64M /dev/zero > m/rest 2> /dev/null
            no $V convert m/a.$kind m/b.img
            ok $V compact m/a.$kind
            ok $V compare m/a.$kind flat.img
            ok $V check m/a.$kind
            rm m/*
        done",
    );
}
