/* Compact, merge, expand, resize (contract, 2.12 to 2.15), user metadata (2.10). */
#include "check.h"

static DWORD compact(HANDLE handle, OVERLAPPED *o) {
    return CompactVirtualDisk(handle, COMPACT_VIRTUAL_DISK_FLAG_NONE, NULL, o);
}

static DWORD expand(HANDLE handle, ULONGLONG size) {
    EXPAND_VIRTUAL_DISK_PARAMETERS p;
    memset(&p, 0, sizeof p);
    p.Version = EXPAND_VIRTUAL_DISK_VERSION_1;
    p.Version1.NewSize = size;
    return ExpandVirtualDisk(handle, EXPAND_VIRTUAL_DISK_FLAG_NONE, &p, NULL);
}

static DWORD resize(HANDLE handle, RESIZE_VIRTUAL_DISK_FLAG flags, ULONGLONG size) {
    RESIZE_VIRTUAL_DISK_PARAMETERS p;
    memset(&p, 0, sizeof p);
    p.Version = RESIZE_VIRTUAL_DISK_VERSION_1;
    p.Version1.NewSize = size;
    return ResizeVirtualDisk(handle, flags, &p, NULL);
}

static DWORD merge1(HANDLE handle, ULONG depth) {
    MERGE_VIRTUAL_DISK_PARAMETERS p;
    memset(&p, 0, sizeof p);
    p.Version = MERGE_VIRTUAL_DISK_VERSION_1;
    p.Version1.MergeDepth = depth;
    return MergeVirtualDisk(handle, MERGE_VIRTUAL_DISK_FLAG_NONE, &p, NULL);
}

static DWORD merge2(HANDLE handle, ULONG source, ULONG target, OVERLAPPED *o) {
    MERGE_VIRTUAL_DISK_PARAMETERS p;
    memset(&p, 0, sizeof p);
    p.Version = MERGE_VIRTUAL_DISK_VERSION_2;
    p.Version2.MergeSourceDepth = source;
    p.Version2.MergeTargetDepth = target;
    return MergeVirtualDisk(handle, MERGE_VIRTUAL_DISK_FLAG_NONE, &p, o);
}

static void compacting(void) {
    CREATE_VIRTUAL_DISK_PARAMETERS p = creation(64 * MB);
    HANDLE handle;
    ULONGLONG before;
    OVERLAPPED o = with_event();
    int i;
    p.Version2.BlockSizeInBytes = 1 << 20;
    handle = create_with("compact.vhdx", CREATE_VIRTUAL_DISK_FLAG_NONE, &p);
    attach(handle);
    for (i = 0; i < 32; i++)
        put(handle, (ULONGLONG)i * MB, i + 1);
    for (i = 0; i < 31; i++)
        put(handle, (ULONGLONG)i * MB, 0);
    EXPECT(ERROR_VHD_INVALID_STATE, compact(handle, NULL));
    detach(handle);
    before = info(handle, GET_VIRTUAL_DISK_INFO_SIZE).Size.PhysicalSize;
    EXPECT(ERROR_SUCCESS, finish_started(compact(handle, &o), handle, &o));
    CHECK(info(handle, GET_VIRTUAL_DISK_INFO_SIZE).Size.PhysicalSize < before / 2);
    EXPECT(ERROR_SUCCESS, CompactVirtualDisk(handle, COMPACT_VIRTUAL_DISK_FLAG_NO_ZERO_SCAN, NULL, NULL));
    EXPECT(ERROR_NOT_SUPPORTED, CompactVirtualDisk(handle, COMPACT_VIRTUAL_DISK_FLAG_NO_BLOCK_MOVES, NULL, NULL));
    close_handle(handle);
    CHECK(get_from("compact.vhdx", 31 * MB) == 32);

    /* Attached read-only, with version 1 of handles. */
    handle = open_v1("compact.vhdx",
                     (VIRTUAL_DISK_ACCESS_MASK)(VIRTUAL_DISK_ACCESS_METAOPS | VIRTUAL_DISK_ACCESS_ATTACH_RO), 1);
    EXPECT(ERROR_SUCCESS, AttachVirtualDisk(handle, NULL, raw(1), 0, NULL, NULL));
    EXPECT(ERROR_SUCCESS, compact(handle, NULL));
    close_handle(handle);
    close_handle(o.hEvent);
}

static void sizes(void) {
    HANDLE handle = create("size.vhdx", 8 * MB);
    EXPECT(ERROR_SUCCESS, expand(handle, 16 * MB));
    CHECK(virtual_size(handle) == 16 * MB);
    EXPECT(ERROR_INVALID_PARAMETER, expand(handle, 16 * MB));
    EXPECT(ERROR_INVALID_PARAMETER, expand(handle, 8 * MB));
    EXPECT(ERROR_INVALID_PARAMETER, expand(handle, 16 * MB + 100));
    EXPECT(ERROR_INVALID_PARAMETER, resize(handle, RESIZE_VIRTUAL_DISK_FLAG_NONE, 16 * MB + 100));
    EXPECT(ERROR_INVALID_PARAMETER, resize(handle, RESIZE_VIRTUAL_DISK_FLAG_NONE, 0));
    EXPECT(ERROR_INVALID_PARAMETER,
           resize(handle, RESIZE_VIRTUAL_DISK_FLAG_RESIZE_TO_SMALLEST_SAFE_VIRTUAL_SIZE, 8 * MB));
    EXPECT(ERROR_INVALID_PARAMETER, resize(handle, (RESIZE_VIRTUAL_DISK_FLAG)3, 8 * MB));
    EXPECT(ERROR_VHD_COULD_NOT_COMPUTE_MINIMUM_VIRTUAL_SIZE,
           resize(handle, RESIZE_VIRTUAL_DISK_FLAG_RESIZE_TO_SMALLEST_SAFE_VIRTUAL_SIZE, 0));
    EXPECT(ERROR_SUCCESS, resize(handle, RESIZE_VIRTUAL_DISK_FLAG_NONE, 16 * MB));
    EXPECT(ERROR_SUCCESS, resize(handle, RESIZE_VIRTUAL_DISK_FLAG_NONE, 32 * MB));
    EXPECT(ERROR_SUCCESS, resize(handle, RESIZE_VIRTUAL_DISK_FLAG_ALLOW_UNSAFE_VIRTUAL_SIZE, 8 * MB));
    CHECK(virtual_size(handle) == 8 * MB);
    attach(handle);
    EXPECT(ERROR_VHD_INVALID_STATE, resize(handle, RESIZE_VIRTUAL_DISK_FLAG_NONE, 32 * MB));
    close_handle(handle);
    handle = create("size.vhd", 8 * MB);
    EXPECT(ERROR_VHD_INVALID_TYPE, resize(handle, RESIZE_VIRTUAL_DISK_FLAG_ALLOW_UNSAFE_VIRTUAL_SIZE, 4 * MB));
    close_handle(handle);
    handle = open_v1("size.vhdx", VIRTUAL_DISK_ACCESS_METAOPS, 1);
    EXPECT(ERROR_ACCESS_DENIED, resize(handle, RESIZE_VIRTUAL_DISK_FLAG_NONE, 32 * MB));
    EXPECT(ERROR_SUCCESS, expand(handle, 9 * MB));
    close_handle(handle);
    handle = create_child("size-child.vhdx", "size.vhdx");
    EXPECT(ERROR_VHD_INVALID_TYPE, expand(handle, 32 * MB));
    EXPECT(ERROR_SUCCESS, resize(handle, RESIZE_VIRTUAL_DISK_FLAG_NONE, 32 * MB));
    close_handle(handle);
}

static void chain(const char *base, const char *mid, const char *leaf) {
    close_handle(create(base, 16 * MB));
    put_in(base, 0, 1);
    put_in(base, 1 * MB, 1);
    put_in(base, 2 * MB, 1);
    close_handle(create_child(mid, base));
    put_in(mid, 1 * MB, 2);
    put_in(mid, 2 * MB, 2);
    close_handle(create_child(leaf, mid));
    put_in(leaf, 2 * MB, 3);
}

static void merging(void) {
    HANDLE handle;
    OVERLAPPED o = with_event();
    chain("b1.vhdx", "m1.vhdx", "l1.vhdx");
    handle = open_v1("l1.vhdx", VIRTUAL_DISK_ACCESS_METAOPS, 2);
    EXPECT(ERROR_ACCESS_DENIED, merge1(handle, 2));
    EXPECT(ERROR_INVALID_PARAMETER, merge1(handle, 0));
    EXPECT(ERROR_INVALID_PARAMETER, merge1(handle, 3));
    EXPECT(ERROR_ACCESS_DENIED, merge2(handle, 1, 2, NULL));
    EXPECT(ERROR_SUCCESS, merge1(handle, 1));
    close_handle(handle);
    CHECK(get_from("m1.vhdx", 2 * MB) == 3 && get_from("m1.vhdx", 1 * MB) == 2 && get_from("b1.vhdx", 2 * MB) == 1);
    CHECK(get_from("l1.vhdx", 2 * MB) == 3);
    handle = open_v1("l1.vhdx", VIRTUAL_DISK_ACCESS_METAOPS, 3);
    EXPECT(ERROR_SUCCESS, merge1(handle, 2));
    close_handle(handle);
    CHECK(get_from("b1.vhdx", 2 * MB) == 3 && get_from("b1.vhdx", 1 * MB) == 2);

    /* Version 2: a chain in use; the parents are only read again afterwards. */
    chain("b2.vhdx", "m2.vhdx", "l2.vhdx");
    handle = open_v2("l2.vhdx");
    attach(handle);
    EXPECT(ERROR_INVALID_PARAMETER, merge2(handle, 0, 2, NULL));
    EXPECT(ERROR_INVALID_PARAMETER, merge2(handle, 2, 2, NULL));
    EXPECT(ERROR_INVALID_PARAMETER, merge2(handle, 2, 4, NULL));
    EXPECT(ERROR_SUCCESS, finish_started(merge2(handle, 2, 3, &o), handle, &o));
    CHECK(get(handle, 2 * MB) == 3 && get(handle, 1 * MB) == 2);
    put(handle, 0, 9);
    CHECK(get_from("b2.vhdx", 1 * MB) == 2 && get_from("b2.vhdx", 0) == 1);
    close_handle(handle);
    {
        /* Somebody else uses the parent: nothing happens. */
        HANDLE parent = open_read_only("m2.vhdx");
        handle = open_v2("l2.vhdx");
        EXPECT(ERROR_SHARING_VIOLATION, merge2(handle, 1, 2, NULL));
        close_handle(parent);
        EXPECT(ERROR_SUCCESS, merge2(handle, 1, 2, NULL));
        close_handle(handle);
        CHECK(get_from("m2.vhdx", 0) == 9);
    }
    close_handle(o.hEvent);
}

static void metadata(void) {
    HANDLE handle = create("meta.vhdx", 8 * MB), vhd = create("meta.vhd", 8 * MB), v1;
    GUID a = guid_of(1), b = guid_of(2), zero = guid_of(0), found[4];
    ULONG n = 0;
    char text[8] = "12345";
    EXPECT(ERROR_SUCCESS, EnumerateVirtualDiskMetadata(handle, &n, NULL));
    CHECK(n == 0);
    EXPECT(ERROR_SUCCESS, SetVirtualDiskMetadata(handle, &a, 5, text));
    EXPECT(ERROR_SUCCESS, SetVirtualDiskMetadata(handle, &b, 1, text));
    n = 1;
    EXPECT(ERROR_INSUFFICIENT_BUFFER, EnumerateVirtualDiskMetadata(handle, &n, found));
    CHECK(n == 2 && same_guid(found[0], a));
    n = 4;
    EXPECT(ERROR_SUCCESS, EnumerateVirtualDiskMetadata(handle, &n, found));
    CHECK(n == 2 && same_guid(found[1], b));
    memset(text, 0, sizeof text);
    n = 2;
    EXPECT(ERROR_INSUFFICIENT_BUFFER, GetVirtualDiskMetadata(handle, &a, &n, text));
    CHECK(n == 5 && memcmp(text, "12\0", 3) == 0);
    EXPECT(ERROR_SUCCESS, GetVirtualDiskMetadata(handle, &a, &n, text));
    CHECK(n == 5 && memcmp(text, "12345", 5) == 0);
    EXPECT(ERROR_SUCCESS, DeleteVirtualDiskMetadata(handle, &b));
    EXPECT(ERROR_NOT_FOUND, DeleteVirtualDiskMetadata(handle, &b));
    EXPECT(ERROR_NOT_FOUND, GetVirtualDiskMetadata(handle, &b, &n, text));
    EXPECT(ERROR_INVALID_PARAMETER, SetVirtualDiskMetadata(handle, &zero, 1, text));
    EXPECT(ERROR_INVALID_PARAMETER, SetVirtualDiskMetadata(handle, &a, 1, NULL));
    EXPECT(ERROR_VHD_INVALID_TYPE, SetVirtualDiskMetadata(vhd, &a, 1, text));
    EXPECT(ERROR_VHD_INVALID_TYPE, EnumerateVirtualDiskMetadata(vhd, &n, NULL));
    close_handle(handle);
    close_handle(vhd);
    /* A child starts with what its parent has, unless that is not wanted. */
    handle = create_child("meta-child.vhdx", "meta.vhdx");
    n = 4;
    EXPECT(ERROR_SUCCESS, EnumerateVirtualDiskMetadata(handle, &n, found));
    CHECK(n == 1 && same_guid(found[0], a));
    close_handle(handle);
    {
        CREATE_VIRTUAL_DISK_PARAMETERS p = creation(0);
        p.Version2.ParentPath = at("meta.vhdx");
        handle = create_with("meta-child2.vhdx", CREATE_VIRTUAL_DISK_FLAG_DO_NOT_COPY_METADATA_FROM_PARENT, &p);
        EXPECT(ERROR_SUCCESS, EnumerateVirtualDiskMetadata(handle, &n, NULL));
        CHECK(n == 0);
        close_handle(handle);
    }
    /* Reading is for handles that only ask, too; not for version 1. */
    EXPECT(ERROR_SUCCESS, try_open("meta.vhdx", OPEN_VIRTUAL_DISK_FLAG_NO_PARENTS, TRUE, FALSE, &handle));
    n = sizeof text;
    EXPECT(ERROR_SUCCESS, GetVirtualDiskMetadata(handle, &a, &n, text));
    EXPECT(ERROR_ACCESS_DENIED, SetVirtualDiskMetadata(handle, &a, 1, text));
    EXPECT(ERROR_ACCESS_DENIED, DeleteVirtualDiskMetadata(handle, &a));
    close_handle(handle);
    v1 = open_v1("meta.vhdx", VIRTUAL_DISK_ACCESS_ALL, 1);
    EXPECT(ERROR_ACCESS_DENIED, GetVirtualDiskMetadata(v1, &a, &n, text));
    close_handle(v1);
}

int main(int argc, char **argv) {
    start(argc, argv);
    compacting();
    sizes();
    merging();
    metadata();
    return 0;
}
