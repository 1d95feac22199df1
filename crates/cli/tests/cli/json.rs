//! The JSON that programs rely on: every field of every object (docs/cli-json.md).

use serde_json::json;

use crate::support::Folder;

#[test]
fn info() {
    let folder = Folder::new();
    folder.ok("create a.vhd 64M --reproducible 1 --id 6ba7b810-9dad-41d1-80b4-00c04fd430c8");
    let mut info = folder.json("info a.vhd --json");
    for field in ["file_size", "allocated_size"] {
        assert!(info[field].is_u64(), "{info}");
        info[field] = json!(0);
    }
    assert!(info["creator"].is_string(), "{info}");
    info["creator"] = json!("");
    assert_eq!(
        info,
        json!({
            "path": "a.vhd",
            "format": "vhd",
            "type": "dynamic",
            "virtual_size": 67_108_864,
            "file_size": 0,
            "allocated_size": 0,
            "logical_sector_size": 512,
            "physical_sector_size": 512,
            "block_size": 2_097_152,
            "identifier": "6ba7b810-9dad-41d1-80b4-00c04fd430c8",
            "link_identifier": "6ba7b810-9dad-41d1-80b4-00c04fd430c8",
            "creator": "",
            "created": "2000-01-01T00:00:00Z",
            "geometry": { "cylinders": 963, "heads": 8, "sectors_per_track": 17 },
            "log_replayed": false,
            "parent": null,
        })
    );
    folder.ok("create b.vhd --parent a.vhd");
    let info = folder.json("info b.vhd --chain --json");
    let parent = &info["parent"];
    assert_eq!(
        parent["identifiers"],
        json!(["6ba7b810-9dad-41d1-80b4-00c04fd430c8"])
    );
    assert!(
        parent["modified"].as_str().unwrap().ends_with('Z'),
        "{parent}"
    );
    let paths = parent["paths"].as_array().unwrap();
    assert!(
        paths.contains(&json!({ "kind": "relative", "path": ".\\a.vhd" })),
        "{parent}"
    );
    assert_eq!(info["chain"][0]["path"], "b.vhd");
    assert_eq!(info["chain"][1]["format"], "vhd");
    assert_eq!(info["chain"][1]["parent"], json!(null));
    // What create says is what info says.
    let made = folder.json("create c.vhdx 1G --json");
    assert_eq!(made, folder.json("info c.vhdx --json"));
}

#[test]
fn info_with_details() {
    let folder = Folder::new();
    folder.ok("create a.vhdx 64M --block-size 1M");
    folder.fill("data", 1 << 20);
    folder.put("a.vhdx", "4M", "data");
    let mut info = folder.json("info a.vhdx --details --json");
    let details = &mut info["details"];
    for field in ["host_logical_sector_size", "host_physical_sector_size"] {
        assert!(details[field].as_u64() >= Some(512), "{details}");
        details[field] = json!(0);
    }
    assert_eq!(
        *details,
        json!({
            "payload": 1 << 20,
            "structures": 4 << 20,
            "free": 0,
            "packed_size": 5 << 20,
            "allocated_blocks": 1,
            "fragmentation_percent": 0,
            "is_4k_aligned": true,
            "smallest_safe_size": null,
            "parent_location": null,
            "change_tracking_files": [],
            "host_logical_sector_size": 0,
            "host_physical_sector_size": 0,
            "host_is_remote": false,
        })
    );
    // As Windows' backups leave them.
    folder.fill("a.vhdx.rct", 512);
    let info = folder.json("info a.vhdx --details --json");
    let files = info["details"]["change_tracking_files"].as_array().unwrap();
    assert_eq!(files.len(), 1);
    assert!(files[0].as_str().unwrap().ends_with("a.vhdx.rct"));
}

#[test]
fn map() {
    let folder = Folder::new();
    folder.ok("create a.img 1M");
    folder.fill("part", 65536);
    folder.run_with_input("write a.img --offset 512K", "part");
    assert_eq!(
        folder.json("map a.img --json"),
        json!({
            "path": "a.img",
            "virtual_size": 1_048_576,
            "extents": [
                { "start": 0, "length": 524_288, "type": "zero", "layer": null, "file": null, "offset": null },
                { "start": 524_288, "length": 65536, "type": "data", "layer": 0, "file": "a.img", "offset": 524_288 },
                { "start": 589_824, "length": 458_752, "type": "zero", "layer": null, "file": null, "offset": null },
            ],
        })
    );
    folder.ok("create empty.img 0x200");
    std::fs::File::options()
        .write(true)
        .open(folder.path("empty.img"))
        .unwrap()
        .set_len(0)
        .unwrap();
    assert_eq!(
        folder.json("map empty.img --json"),
        json!({ "path": "empty.img", "virtual_size": 0, "extents": [] })
    );
}

#[test]
fn convert_and_compare() {
    let folder = Folder::new();
    folder.ok("create a.img 4M");
    folder.fill("part", 65536);
    folder.run_with_input("write a.img --offset 1M", "part");
    let mut done = folder.json("convert a.img b.vhdx --json");
    assert!(done["file_size"].as_u64().unwrap() > 65536, "{done}");
    done["file_size"] = json!(0);
    let moved = done["copied"].as_u64().unwrap() + done["cloned"].as_u64().unwrap();
    assert!((65536..=4 << 20).contains(&moved), "{done}");
    assert_eq!(moved + done["zero"].as_u64().unwrap(), 4 << 20, "{done}");
    for field in ["copied", "cloned", "zero"] {
        done[field] = json!(0);
    }
    assert_eq!(
        done,
        json!({
            "source": "a.img",
            "target": "b.vhdx",
            "format": "vhdx",
            "type": "dynamic",
            "virtual_size": 4_194_304,
            "copied": 0,
            "cloned": 0,
            "zero": 0,
            "file_size": 0,
        })
    );
    let same = json!({
        "a": "a.img",
        "b": "b.vhdx",
        "same": true,
        "first_difference": null,
        "size_a": 4_194_304,
        "size_b": 4_194_304,
    });
    assert_eq!(folder.json("compare a.img b.vhdx --json"), same);
    assert_eq!(
        folder
            .run_with_input("write a.img --offset 3M --json", "part")
            .out,
        "{\n  \"path\": \"a.img\",\n  \"offset\": 3145728,\n  \"length\": 65536\n}\n"
    );
    let ran = folder.run("compare a.img b.vhdx --json");
    assert_eq!(ran.code, Some(1));
    let verdict: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(verdict["same"], false);
    assert_eq!(verdict["first_difference"], 3 << 20);
}

#[test]
fn check() {
    let folder = Folder::new();
    folder.ok("create a.vhdx 64M");
    assert_eq!(
        folder.json("check a.vhdx --json"),
        json!({
            "files": [{ "path": "a.vhdx", "format": "vhdx", "findings": [] }],
            "chain_error": null,
            "worst": null,
        })
    );
    std::fs::write(folder.path("b.vhdx"), [1; 512]).unwrap();
    let ran = folder.run("check b.vhdx --json");
    assert_eq!(ran.code, Some(3));
    let report: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(report["worst"], "error");
    let finding = &report["files"][0]["findings"][0];
    assert_eq!(finding["code"], "file-signature-missing");
    assert_eq!(finding["severity"], "error");
    assert_eq!(finding["offset"], json!(null));
    assert!(finding["message"].is_string());
}
