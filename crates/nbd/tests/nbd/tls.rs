//! TLS with the clients' own libraries (GnuTLS), and without where it is required.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;

use tempfile::TempDir;
use vhdkit::OpenOptions;
use vhdkit_nbd::{Address, Catalog, DiskExport, Limits, Listener, Server, TlsIdentity};

use crate::support::{MIB, Memory, Served, folder, has, has_libnbd, make};

/// An authority, a server's certificate for localhost, and a client's; also one of a stranger.
fn certificates() -> TempDir {
    let folder = folder();
    let script = r#"set -eu
mkdir server client stranger open
cert() { certtool "$@" >/dev/null 2>log || { cat log; exit 1; }; }
for who in ca strange-ca; do
  cert --generate-privkey --key-type rsa --bits 2048 --outfile $who-key.pem
  printf 'cn = "%s"\nca\ncert_signing_key\nexpiration_days = 100\n' $who > t
  cert --generate-self-signed --load-privkey $who-key.pem --template t --outfile $who-cert.pem
done
issue() { # authority folder kind
  cert --generate-privkey --key-type rsa --bits 2048 --outfile $2/$3-key.pem
  printf 'cn = "localhost"\ndns_name = "localhost"\nip_address = "127.0.0.1"\ntls_www_%s\nsigning_key\nencryption_key\nexpiration_days = 100\n' $3 > t
  cert --generate-certificate --load-ca-certificate $1-cert.pem --load-ca-privkey $1-key.pem \
    --load-privkey $2/$3-key.pem --template t --outfile $2/$3-cert.pem
}
issue ca server server
issue ca client client
issue strange-ca stranger client
cp ca-cert.pem server; cp ca-cert.pem client; cp ca-cert.pem stranger
cp server/server-*.pem open
"#;
    let output = Command::new("bash")
        .args(["-c", script])
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    folder
}

#[test]
fn tls_lets_in_whom_the_authority_knows_and_nobody_else() {
    if !has_libnbd() || !has(&["certtool", "qemu-img"]) {
        return;
    }
    let pki = certificates();
    let identity = TlsIdentity::from_folder(&pki.path().join("server")).unwrap();
    assert!(identity.verifies_clients());
    let mut catalog = Catalog::new();
    catalog.add("x", Arc::new(Memory::new(40 * MIB))).unwrap();
    // One whose data would go without a copy otherwise.
    let path = pki.path().join("disk.vhdx");
    make(&path, 40 * MIB);
    let disk = OpenOptions::new().writable(true).open(&path).unwrap();
    let data: Vec<u8> = (0..12_u64 << 20)
        .map(|i| (i / 3).to_le_bytes()[0])
        .collect();
    disk.write_at(8 * MIB, &data).unwrap();
    let export = DiskExport::new(Arc::new(disk), false);
    catalog.add("disk", Arc::new(export)).unwrap();
    let listener = Listener::tcp("127.0.0.1:0".parse::<SocketAddr>().unwrap()).unwrap();
    let Address::Tcp(address) = listener.address() else {
        panic!("a port was asked for");
    };
    let server = Server::start(catalog, Some(identity), Limits::default(), vec![listener]).unwrap();
    let client = |who: &str| {
        format!(
            "nbds://localhost:{}/x?tls-certificates={}",
            address.port(),
            pki.path().join(who).display()
        )
    };
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program)
            .args(arguments)
            .current_dir(pki.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.success(), text)
    };
    let (ok, text) = run("nbdinfo", &[&client("client")]);
    assert!(ok && text.contains("with TLS"), "{text}");
    let (ok, text) = run("nbdcopy", &[&client("client"), "out.img"]);
    assert!(ok, "{text}");
    let uri = client("client").replace("/x?", "/disk?");
    let (ok, text) = run("nbdcopy", &[&uri, "disk.img"]);
    assert!(ok, "{text}");
    let copy = std::fs::read(pki.path().join("disk.img")).unwrap();
    assert!(copy[8 << 20..20 << 20] == data);
    let (ok, text) = run(
        "nbdcopy",
        &["--connections=4", "out.img", &client("client")],
    );
    assert!(ok, "{text}");
    // Strangers, and those without any certificate.
    let (ok, text) = run("nbdinfo", &[&client("stranger")]);
    assert!(!ok, "{text}");
    // Without TLS not even a name.
    let (ok, text) = run(
        "nbdinfo",
        &["--list", &format!("nbd://localhost:{}", address.port())],
    );
    assert!(!ok && !text.contains("export="), "{text}");
    // A key that both would have to know beforehand is not what this server has.
    std::fs::write(
        pki.path().join("keys.psk"),
        "someone:00112233445566778899aabbccddeeff\n",
    )
    .unwrap();
    let psk = format!(
        "nbds://someone@localhost:{}/x?tls-psk-file={}",
        address.port(),
        pki.path().join("keys.psk").display()
    );
    assert!(!run("nbdinfo", &[&psk]).0);
    // QEMU has TLS of its own making; it is served after all of these too.
    let object = format!(
        "tls-creds-x509,id=t,dir={},endpoint=client",
        pki.path().join("client").display()
    );
    let image = format!(
        "driver=nbd,host=localhost,port={},export=x,tls-creds=t",
        address.port()
    );
    let (ok, text) = run(
        "qemu-img",
        &[
            "compare",
            "--object",
            &object,
            "--image-opts",
            "driver=raw,file.driver=file,file.filename=out.img",
            &image,
        ],
    );
    assert!(ok && text.contains("identical"), "{text}");
    let (ok, text) = run(
        "qemu-io",
        &[
            "--object",
            &object,
            "--image-opts",
            &image,
            "-c",
            "write -P 9 1M 5M",
            "-c",
            "read -P 9 1M 5M",
            "-c",
            "flush",
        ],
    );
    assert!(ok && !text.contains("failed"), "{text}");
    drop(server);
}

#[test]
fn without_an_authority_any_client_is_let_in_but_only_with_tls() {
    if !has_libnbd() || !has(&["certtool"]) {
        return;
    }
    let pki = certificates();
    let identity = TlsIdentity::from_folder(&pki.path().join("open")).unwrap();
    assert!(!identity.verifies_clients());
    let served = Served::disks_in(folder(), &["a.img"], 4 * MIB, Some(identity));
    let socket = served.socket();
    let pki = pki.path().join("client");
    let script = format!(
        "import nbd\nh = nbd.NBD()\nh.set_tls(nbd.TLS_REQUIRE)\nh.set_tls_certificates('{}')\nh.set_tls_verify_peer(False)\nh.set_export_name('a.img')\nh.connect_unix('{}')\nassert h.get_tls_negotiated()\nh.pwrite(b'x' * 70000, 1)\nassert h.pread(70000, 1) == b'x' * 70000\nh.shutdown()\n",
        pki.display(),
        socket.display()
    );
    served.ok("/usr/bin/python3", &["-c", &script]);
    let (ok, text) = served.run("nbdinfo", &[&served.uri("a.img")]);
    assert!(!ok && text.to_lowercase().contains("tls"), "{text}");
}

#[test]
fn unusable_certificates_are_named() {
    if !has(&["certtool"]) {
        return;
    }
    let pki = certificates();
    let refused = |name: &str| {
        TlsIdentity::from_folder(&pki.path().join(name))
            .err()
            .unwrap()
            .to_string()
    };
    assert!(refused("nowhere").contains("server-cert.pem"));
    let open = pki.path().join("open");
    std::fs::copy(
        pki.path().join("client/client-key.pem"),
        open.join("server-key.pem"),
    )
    .unwrap();
    assert!(
        refused("open").contains("server-cert.pem"),
        "{}",
        refused("open")
    );
    std::fs::write(open.join("server-key.pem"), "no key").unwrap();
    assert!(
        refused("open").contains("server-key.pem"),
        "{}",
        refused("open")
    );
}
