//! Completions and manual pages.

use crate::support::Folder;

#[test]
fn completions_know_every_command() {
    let folder = Folder::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = folder.ok(&format!("completions {shell}"));
        for word in ["convert", "parent-map", "reproducible"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    std::fs::write(folder.path("v"), folder.ok("completions bash")).unwrap();
    let ran = folder.shell(
        "source v; COMP_WORDS=(vhdkit con); COMP_CWORD=1; _vhdkit vhdkit con vhdkit; echo ${COMPREPLY[@]}",
    );
    assert_eq!(ran.out, "convert\n", "{ran:?}");
}

#[test]
fn every_command_has_a_manual_page() {
    let folder = Folder::new();
    let said = folder.ok("man share/man1");
    assert_eq!(said.lines().count(), 27, "{said}");
    for name in ["vhdkit", "vhdkit-create", "vhdkit-man"] {
        let page = std::fs::read_to_string(folder.path(&format!("share/man1/{name}.1"))).unwrap();
        assert!(page.contains(".TH"), "{name}");
    }
    let page = std::fs::read_to_string(folder.path("share/man1/vhdkit-convert.1")).unwrap();
    assert!(page.contains("convert snapshot.avhdx flat.img"), "{page}");
}
