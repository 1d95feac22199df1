//! Each command and each error, asked for by libnbd without its own checks.

use crate::support::{MIB, Served, has_libnbd};

#[test]
fn commands_do_what_they_say() {
    if !has_libnbd() {
        return;
    }
    for disk in ["a.vhdx", "a.vhd", "a.img"] {
        let mut served = Served::disks(&[disk], 64 * MIB);
        served.nbdsh(
            disk,
            r#"
assert h.get_size() == 64 << 20 and h.get_structured_replies_negotiated()
assert h.can_multi_conn() and h.can_df() and h.can_fua() and h.can_fast_zero() and h.can_cache()
assert not h.is_read_only() and h.get_block_size(nbd.SIZE_MAXIMUM) == 32 << 20
noise = os.urandom(3 << 20)
h.pwrite(noise, 5 << 20)
assert h.pread(3 << 20, 5 << 20) == noise
assert h.pread(3 << 20, 5 << 20, nbd.CMD_FLAG_DF) == noise
# Any alignment.
h.pwrite(b"odd", (1 << 20) - 1, nbd.CMD_FLAG_FUA)
assert h.pread(5, (1 << 20) - 2) == b"\0odd\0"
# The largest requests, over data and holes.
big = os.urandom(1 << 20) * 32
h.pwrite(big, 16 << 20)
assert h.pread(32 << 20, 16 << 20) == big
assert h.pread(32 << 20, 16 << 20, nbd.CMD_FLAG_DF) == big
assert h.pread(32 << 20, 0)[5 << 20:8 << 20] == noise
h.flush()
for flags in (0, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FAST_ZERO, nbd.CMD_FLAG_FUA):
    h.pwrite(noise, 5 << 20)
    h.zero(1 << 20, (5 << 20) + 4096, flags)
    got = h.pread(3 << 20, 5 << 20)
    assert got[:4096] == noise[:4096] and got[4096:4096 + (1 << 20)] == bytes(1 << 20)
    assert got[4096 + (1 << 20):] == noise[4096 + (1 << 20):]
h.zero(32 << 20, 16 << 20)
assert h.pread(32 << 20, 16 << 20) == bytes(32 << 20)
h.trim(2 << 20, 5 << 20, nbd.CMD_FLAG_FUA)
got = h.pread(3 << 20, 5 << 20)
assert got[2 << 20:] == noise[2 << 20:]
h.cache(8 << 20, 0)
h.flush(nbd.CMD_FLAG_FUA)
"#,
        );
        served.close();
    }
}

#[test]
fn status_tells_data_from_holes_and_reads_send_holes_as_such() {
    if !has_libnbd() {
        return;
    }
    let served = Served::disks(&["a.vhdx"], 64 * MIB);
    served.nbdsh(
        "a.vhdx",
        r#"
def runs(h, length, offset, flags=0):
    found = []
    def note(context, at, entries, error):
        assert (context, at) == ("base:allocation", offset)
        found.extend(zip(entries[0::2], entries[1::2]))
    h.block_status(length, offset, note, flags)
    return found

h.pwrite(bytes([7]) * (1 << 20), 32 << 20)
whole = runs(h, 64 << 20, 0)
assert sum(n for n, _ in whole) == 64 << 20, whole
assert (whole[0][1], whole[-1][1]) == (3, 3) and 0 in [s for _, s in whole], whole
assert all(a[1] != b[1] for a, b in zip(whole, whole[1:])), whole
assert runs(h, 4096, 32 << 20) == [(4096, 0)]
assert len(runs(h, 64 << 20, 0, nbd.CMD_FLAG_REQ_ONE)) == 1
chunks = []
buf = h.pread_structured(2 << 20, 31 << 20, lambda data, at, status, error: chunks.append((at, len(data), status)))
assert buf == bytes(1 << 20) + bytes([7]) * (1 << 20)
assert nbd.READ_HOLE in [c[2] for c in chunks] and nbd.READ_DATA in [c[2] for c in chunks], chunks
chunks.clear()
h.pread_structured(2 << 20, 31 << 20, lambda data, at, status, error: chunks.append(status), nbd.CMD_FLAG_DF)
assert chunks == [nbd.READ_DATA], chunks
# Nobody who did not choose the context may ask.
g = nbd.NBD()
g.set_strict_mode(0)
g.connect_uri(uri)
fails(errno.EINVAL, lambda: g.block_status(4096, 0, lambda *a: 0))
"#,
    );
}

#[test]
fn wrong_requests_get_their_error_and_the_connection_goes_on() {
    if !has_libnbd() {
        return;
    }
    let served = Served::disks(&["a.vhdx"], 64 * MIB);
    served.nbdsh(
        "a.vhdx",
        r#"
size = 64 << 20
fails(errno.EINVAL, lambda: h.pread(512, size))
fails(errno.EINVAL, lambda: h.pread(512, size - 511))
fails(errno.EINVAL, lambda: h.pread(512, 2**63))
fails(errno.ENOSPC, lambda: h.pwrite(bytes(512), size - 511))
fails(errno.ENOSPC, lambda: h.zero(512, size))
fails(errno.EINVAL, lambda: h.trim(512, size))
fails(errno.EINVAL, lambda: h.cache(512, size))
fails(errno.EINVAL, lambda: h.block_status(512, size, lambda *a: 0))
for empty in (lambda: h.pread(0, 0), lambda: h.pwrite(b"", 0), lambda: h.trim(0, 0), lambda: h.zero(0, 0)):
    fails(errno.EINVAL, empty)
fails(errno.EINVAL, lambda: h.pread((32 << 20) + 1, 0))
fails(errno.EOVERFLOW, lambda: h.pread((32 << 20) + 1, 0, nbd.CMD_FLAG_DF))
fails(errno.EINVAL, lambda: h.pwrite(bytes((32 << 20) + 1), 0))
# Flags that do not belong.
fails(errno.EINVAL, lambda: h.pread(512, 0, nbd.CMD_FLAG_REQ_ONE))
fails(errno.EINVAL, lambda: h.pwrite(bytes(512), 0, nbd.CMD_FLAG_DF))
fails(errno.EINVAL, lambda: h.trim(512, 0, nbd.CMD_FLAG_NO_HOLE))
fails(errno.EINVAL, lambda: h.flush(nbd.CMD_FLAG_FAST_ZERO))
fails(errno.EINVAL, lambda: h.pwrite(bytes(512), 0, 1 << 9))
words = fails(errno.EINVAL, lambda: h.pread(512, size))
assert "Invalid argument" in words, words
assert h.pread(512, 0) == bytes(512)
# Without structured replies the same.
g = connect(set_request_structured_replies=False)
assert not g.get_structured_replies_negotiated() and not g.can_df()
g.pwrite(b"simple", 100)
assert g.pread(32 << 20, 0)[100:106] == b"simple"
fails(errno.EINVAL, lambda: g.pread(512, size))
fails(errno.EINVAL, lambda: g.pread(512, 0, nbd.CMD_FLAG_DF))
fails(errno.ENOSPC, lambda: g.pwrite(bytes(512), size))
assert g.pread(6, 100) == b"simple"
"#,
    );
}

#[test]
fn a_flush_on_one_connection_covers_the_writes_of_another() {
    if !has_libnbd() {
        return;
    }
    let mut served = Served::disks(&["a.vhdx"], 64 * MIB);
    served.nbdsh(
        "a.vhdx",
        r"
g = connect()
for i in range(16):
    h.pwrite(bytes([i + 1]) * 4096, i << 20)
    assert g.pread(4096, i << 20) == bytes([i + 1]) * 4096
g.flush()
",
    );
    // What another process would find if this one died now.
    let copy = served.path("copy.vhdx");
    std::fs::copy(served.path("a.vhdx"), &copy).unwrap();
    let disk = vhdkit::VirtualDisk::open(&copy).unwrap();
    for i in 0..16_u8 {
        let mut buf = [0; 4096];
        disk.read_at(u64::from(i) * MIB, &mut buf).unwrap();
        assert!(buf.iter().all(|&b| b == i + 1), "{i}");
    }
    served.close();
}

#[test]
fn names_are_listed_and_unknown_ones_refused_with_words() {
    if !has_libnbd() {
        return;
    }
    let served = Served::disks(&["a.vhdx", "b.img"], 4 * MIB);
    served.nbdsh(
        "a.vhdx",
        r#"
o = nbd.NBD()
o.set_opt_mode(True)
o.connect_uri(uri)
names = []
assert o.opt_list(lambda name, about: names.append((name, about))) == 2
assert names == [("a.vhdx", "vhdx, dynamic"), ("b.img", "raw")], names
o.set_full_info(True)
o.set_export_name("a.vhdx")
o.opt_info()
assert o.get_size() == 4 << 20 and o.get_export_description() == "vhdx, dynamic"
assert o.get_canonical_export_name() == "a.vhdx"
for name in ("nobody", ""):
    o.set_export_name(name)
    try:
        o.opt_go()
        raise AssertionError(name)
    except nbd.Error as e:
        assert e.errnum in (errno.ENOENT, errno.ENOTSUP), e
contexts = []
o.set_export_name("b.img")
o.add_meta_context("base:")
assert o.opt_list_meta_context(lambda name: contexts.append(name)) == 1 and contexts == ["base:allocation"]
o.opt_go()
o.pwrite(b"x", 0)
o.shutdown()
a = nbd.NBD()
a.set_opt_mode(True)
a.connect_uri(uri)
a.opt_abort()
"#,
    );
}
