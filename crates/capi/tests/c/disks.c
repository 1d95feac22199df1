/* Create, open, attach without a local host, read and write, detach (contract, 2.0 to 2.6). */
#include "check.h"

static void create_open_and_use(const char *name, CREATE_VIRTUAL_DISK_FLAG flags) {
    CREATE_VIRTUAL_DISK_PARAMETERS p = creation(8 * MB);
    HANDLE handle = create_with(name, flags, &p), other = NULL;
    CHECK(virtual_size(handle) == 8 * MB);
    EXPECT(ERROR_SHARING_VIOLATION, try_open(name, OPEN_VIRTUAL_DISK_FLAG_NONE, FALSE, FALSE, &other));
    attach(handle);
    put(handle, 5 * MB, 0x5A);
    CHECK(get(handle, 5 * MB) == 0x5A && get(handle, 0) == 0);
    detach(handle);
    close_handle(handle);
    CHECK(get_from(name, 5 * MB) == 0x5A);
    EXPECT(ERROR_FILE_EXISTS, CreateVirtualDisk(any_type(), at(name), VIRTUAL_DISK_ACCESS_NONE, NULL,
                                                flags, 0, &p, NULL, &other));
}

static void version_1(void) {
    CREATE_VIRTUAL_DISK_PARAMETERS p;
    VIRTUAL_STORAGE_TYPE vhd = {VIRTUAL_STORAGE_TYPE_DEVICE_VHD, VIRTUAL_STORAGE_TYPE_VENDOR_MICROSOFT};
    HANDLE handle = NULL;
    memset(&p, 0, sizeof p);
    p.Version = CREATE_VIRTUAL_DISK_VERSION_1;
    p.Version1.MaximumSize = 8 * MB;
    p.Version1.UniqueId = guid_of(7);
    EXPECT(ERROR_SUCCESS, CreateVirtualDisk(&vhd, at("v1.vhd"), VIRTUAL_DISK_ACCESS_ALL, NULL,
                                            CREATE_VIRTUAL_DISK_FLAG_NONE, 0, &p, NULL, &handle));
    CHECK(same_guid(info(handle, GET_VIRTUAL_DISK_INFO_IDENTIFIER).Identifier, guid_of(7)));
    attach(handle);
    put(handle, 0, 1);
    close_handle(handle);

    /* Rights are the bits of the mask. */
    handle = open_v1("v1.vhd", VIRTUAL_DISK_ACCESS_GET_INFO, 0);
    CHECK(virtual_size(handle) == 8 * MB);
    EXPECT(ERROR_ACCESS_DENIED, AttachVirtualDisk(handle, NULL, raw(1), 0, NULL, NULL));
    EXPECT(ERROR_ACCESS_DENIED, DetachVirtualDisk(handle, DETACH_VIRTUAL_DISK_FLAG_NONE, 0));
    EXPECT(ERROR_ACCESS_DENIED, CompactVirtualDisk(handle, COMPACT_VIRTUAL_DISK_FLAG_NONE, NULL, NULL));
    close_handle(handle);
    handle = open_v1("v1.vhd", VIRTUAL_DISK_ACCESS_ATTACH_RO, 0);
    EXPECT(ERROR_ACCESS_DENIED, try_info(handle, GET_VIRTUAL_DISK_INFO_SIZE));
    EXPECT(ERROR_ACCESS_DENIED, AttachVirtualDisk(handle, NULL, raw(0), 0, NULL, NULL));
    EXPECT(ERROR_SUCCESS, AttachVirtualDisk(handle, NULL, raw(1), 0, NULL, NULL));
    CHECK(get(handle, 0) == 1);
    close_handle(handle);
}

/* Handles that share a disk have their own rights. */
static void shared_disks_and_rights(void) {
    HANDLE handle = create("rights.vhdx", 8 * MB), others[2] = {NULL, NULL};
    int i;
    attach(handle);
    put(handle, 0, 1);
    EXPECT(ERROR_SUCCESS, try_open("rights.vhdx", OPEN_VIRTUAL_DISK_FLAG_NONE, TRUE, FALSE, &others[0]));
    EXPECT(ERROR_SUCCESS, try_open_v1("rights.vhdx", VIRTUAL_DISK_ACCESS_GET_INFO, 0, &others[1]));
    for (i = 0; i < 2; i++) {
        UCHAR sector[512] = {2}, sense[18], write10[10] = {0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0};
        RAW_SCSI_VIRTUAL_DISK_PARAMETERS p;
        RAW_SCSI_VIRTUAL_DISK_RESPONSE r;
        OVERLAPPED o = at_offset(0);
        DWORD n;
        EXPECT_LAST_ERROR(ERROR_ACCESS_DENIED, WriteFile(others[i], sector, 512, &n, &o));
        EXPECT_LAST_ERROR(ERROR_ACCESS_DENIED, ReadFile(others[i], sector, 512, &n, &o));
        memset(&p, 0, sizeof p);
        memset(&r, 0, sizeof r);
        p.Version = r.Version = RAW_SCSI_VIRTUAL_DISK_VERSION_1;
        p.Version1.Cdb = write10;
        p.Version1.CdbLength = sizeof write10;
        p.Version1.DataBuffer = sector;
        p.Version1.DataTransferLength = sizeof sector;
        p.Version1.SenseInfo = sense;
        p.Version1.SenseInfoLength = sizeof sense;
        EXPECT(ERROR_SUCCESS, RawSCSIVirtualDisk(others[i], &p, RAW_SCSI_VIRTUAL_DISK_FLAG_NONE, &r));
        CHECK(r.Version1.ScsiStatus == 0x84 && (sense[2] & 0x0F) == 7 && sense[12] == 0x27);
        close_handle(others[i]);
    }
    CHECK(get(handle, 0) == 1);
    close_handle(handle);

    /* An RWDepth of 0: nothing can be written, whatever the mask has. */
    handle = open_v1("rights.vhdx", VIRTUAL_DISK_ACCESS_ALL, 0);
    EXPECT(ERROR_ACCESS_DENIED, CompactVirtualDisk(handle, COMPACT_VIRTUAL_DISK_FLAG_NONE, NULL, NULL));
    EXPECT(ERROR_ACCESS_DENIED, AttachVirtualDisk(handle, NULL, raw(0), 0, NULL, NULL));
    EXPECT(ERROR_SUCCESS, AttachVirtualDisk(handle, NULL, raw(1), 0, NULL, NULL));
    CHECK(get(handle, 0) == 1);
    close_handle(handle);
}

static void sources_and_parents(void) {
    CREATE_VIRTUAL_DISK_PARAMETERS p = creation(0);
    HANDLE handle;
    /* A copy in another format is a conversion. */
    p.Version2.SourcePath = at("v1.vhd");
    handle = create_with("copy.vhdx", CREATE_VIRTUAL_DISK_FLAG_NONE, &p);
    CHECK(virtual_size(handle) == 8 * MB);
    close_handle(handle);
    CHECK(get_from("copy.vhdx", 0) == 1);

    handle = create_child("child.vhdx", "copy.vhdx");
    attach(handle);
    CHECK(get(handle, 0) == 1);
    put(handle, 0, 2);
    close_handle(handle);
    CHECK(get_from("child.vhdx", 0) == 2 && get_from("copy.vhdx", 0) == 1);

    p = creation(0);
    p.Version2.ParentPath = at("v1.vhd");
    EXPECT(ERROR_VHD_INVALID_TYPE,
           CreateVirtualDisk(any_type(), at("x.vhdx"), VIRTUAL_DISK_ACCESS_NONE, NULL,
                             CREATE_VIRTUAL_DISK_FLAG_NONE, 0, &p, NULL, &handle));
    /* The absolute path of the parent is recorded, too. */
    EXPECT(ERROR_SUCCESS,
           try_open("child.vhdx", OPEN_VIRTUAL_DISK_FLAG_IGNORE_RELATIVE_PARENT_LOCATOR, FALSE, TRUE, &handle));
    close_handle(handle);
}

static void reading_and_writing(void) {
    HANDLE handle = create("rw.vhdx", 16 * MB), event;
    unsigned char sector[4096];
    DWORD n = 7;
    OVERLAPPED o = at_offset(0);
    memset(sector, 3, sizeof sector);
    EXPECT_LAST_ERROR(ERROR_NOT_READY, ReadFile(handle, sector, 512, &n, &o));
    attach(handle);
    EXPECT(ERROR_SHARING_VIOLATION, AttachVirtualDisk(handle, NULL, raw(0), 0, NULL, NULL));
    CHECK(info(handle, GET_VIRTUAL_DISK_INFO_IS_LOADED).IsLoaded);
    EXPECT_LAST_ERROR(ERROR_INVALID_PARAMETER, ReadFile(handle, sector, 512, &n, NULL));
    EXPECT_LAST_ERROR(ERROR_INVALID_PARAMETER, ReadFile(handle, NULL, 512, &n, &o));
    EXPECT_LAST_ERROR(ERROR_INVALID_PARAMETER, ReadFile(handle, sector, 511, &n, &o));
    o = at_offset(100);
    EXPECT_LAST_ERROR(ERROR_INVALID_PARAMETER, WriteFile(handle, sector, 512, &n, &o));
    o = at_offset(16 * MB);
    EXPECT_LAST_ERROR(ERROR_HANDLE_EOF, WriteFile(handle, sector, 512, &n, &o));
    o = at_offset(~511ull);
    EXPECT_LAST_ERROR(ERROR_HANDLE_EOF, ReadFile(handle, sector, 512, &n, &o));
    CHECK(n == 0);

    /* With an event, and through GetOverlappedResult. */
    event = CreateEventW(NULL, TRUE, FALSE, NULL);
    o = at_offset(1 * MB);
    o.hEvent = event;
    CHECK(WriteFile(handle, sector, 4096, NULL, &o));
    EXPECT(WAIT_OBJECT_0, WaitForSingleObject(event, 0));
    CHECK(HasOverlappedIoCompleted(&o) && GetOverlappedResult(handle, &o, &n, TRUE) && n == 4096);
    CHECK(FlushFileBuffers(handle));
    close_handle(event);
    detach(handle);
    EXPECT(ERROR_VHD_INVALID_STATE, DetachVirtualDisk(handle, DETACH_VIRTUAL_DISK_FLAG_NONE, 0));

    /* Read-only. */
    EXPECT(ERROR_SUCCESS, AttachVirtualDisk(handle, NULL, raw(1), 0, NULL, NULL));
    o = at_offset(0);
    EXPECT_LAST_ERROR(ERROR_WRITE_PROTECT, WriteFile(handle, sector, 512, &n, &o));
    detach(handle);

    /* A window of the disk. */
    {
        ATTACH_VIRTUAL_DISK_PARAMETERS p;
        ATTACH_VIRTUAL_DISK_FLAG flags =
            (ATTACH_VIRTUAL_DISK_FLAG)(raw(0) | ATTACH_VIRTUAL_DISK_FLAG_RESTRICTED_RANGE);
        memset(&p, 0, sizeof p);
        p.Version = ATTACH_VIRTUAL_DISK_VERSION_2;
        EXPECT(ERROR_INVALID_PARAMETER, AttachVirtualDisk(handle, NULL, flags, 0, &p, NULL));
        p.Version2.RestrictedOffset = 1 * MB;
        p.Version2.RestrictedLength = 4096;
        EXPECT(ERROR_INVALID_PARAMETER, AttachVirtualDisk(handle, NULL, raw(0), 0, &p, NULL));
        EXPECT(ERROR_SUCCESS, AttachVirtualDisk(handle, NULL, flags, 0, &p, NULL));
        CHECK(get(handle, 0) == 3);
        o = at_offset(4096);
        EXPECT_LAST_ERROR(ERROR_HANDLE_EOF, ReadFile(handle, sector, 512, &n, &o));
        detach(handle);
    }
    close_handle(handle);
}

static void attachments_and_handles(void) {
    HANDLE first = create("many.vhdx", 8 * MB), second = NULL, asks = NULL;
    ULONG size = 0;
    WCHAR path[64];
    attach(first);
    /* Who only asks may do so meanwhile. */
    EXPECT(ERROR_SUCCESS, try_open("many.vhdx", OPEN_VIRTUAL_DISK_FLAG_NONE, TRUE, FALSE, &asks));
    CHECK(info(asks, GET_VIRTUAL_DISK_INFO_IS_LOADED).IsLoaded);
    EXPECT(ERROR_ACCESS_DENIED, DetachVirtualDisk(asks, DETACH_VIRTUAL_DISK_FLAG_NONE, 0));
    size = sizeof path;
    EXPECT(ERROR_DEV_NOT_EXIST, GetVirtualDiskPhysicalPath(asks, &size, path));
    close_handle(asks);
    close_handle(first);
    /* The attachment went with the last handle. */
    first = open_v2("many.vhdx");
    CHECK(!info(first, GET_VIRTUAL_DISK_INFO_IS_LOADED).IsLoaded);
    close_handle(first);

    /* Who only asks does not keep others out. */
    EXPECT(ERROR_SUCCESS, try_open("many.vhdx", OPEN_VIRTUAL_DISK_FLAG_NONE, TRUE, FALSE, &asks));
    first = open_v2("many.vhdx");
    attach(first);
    put(first, 0, 9);
    CHECK(virtual_size(asks) == 8 * MB);
    close_handle(first);
    close_handle(asks);
    CHECK(get_from("many.vhdx", 0) == 9);

    /* A permanent attachment outlives its handle, and another one ends it. */
    first = open_v2("many.vhdx");
    EXPECT(ERROR_SUCCESS,
           AttachVirtualDisk(first, NULL,
                             (ATTACH_VIRTUAL_DISK_FLAG)(raw(0) | ATTACH_VIRTUAL_DISK_FLAG_PERMANENT_LIFETIME), 0,
                             NULL, NULL));
    close_handle(first);
    EXPECT(ERROR_SHARING_VIOLATION, try_open_v1("many.vhdx", VIRTUAL_DISK_ACCESS_ATTACH_RW, 1, &second));
    second = open_v1("many.vhdx", VIRTUAL_DISK_ACCESS_DETACH, 0);
    detach(second);
    close_handle(second);
    first = open_v2("many.vhdx");
    CHECK(!info(first, GET_VIRTUAL_DISK_INFO_IS_LOADED).IsLoaded);
    close_handle(first);

    /* The same ResiliencyGuid: one disk. */
    {
        OPEN_VIRTUAL_DISK_PARAMETERS p;
        memset(&p, 0, sizeof p);
        p.Version = OPEN_VIRTUAL_DISK_VERSION_2;
        p.Version2.ResiliencyGuid = guid_of(3);
        EXPECT(ERROR_SUCCESS, OpenVirtualDisk(any_type(), at("many.vhdx"), VIRTUAL_DISK_ACCESS_NONE,
                                              OPEN_VIRTUAL_DISK_FLAG_NONE, &p, &first));
        EXPECT(ERROR_SUCCESS, OpenVirtualDisk(any_type(), at("many.vhdx"), VIRTUAL_DISK_ACCESS_NONE,
                                              OPEN_VIRTUAL_DISK_FLAG_NONE, &p, &second));
        attach(first);
        CHECK(get(second, 0) == 9);
        close_handle(first);
        CHECK(get(second, 0) == 9);
        close_handle(second);
    }
}

static void handles(void) {
    HANDLE handle = create("h.vhdx", 8 * MB), event = CreateEventW(NULL, FALSE, FALSE, NULL);
    VIRTUAL_DISK_PROGRESS p;
    OVERLAPPED o = at_offset(0);
    close_handle(handle);
    EXPECT_LAST_ERROR(ERROR_INVALID_HANDLE, CloseHandle(handle));
    EXPECT(ERROR_INVALID_HANDLE, try_info(handle, GET_VIRTUAL_DISK_INFO_SIZE));
    EXPECT(ERROR_INVALID_HANDLE, try_info(event, GET_VIRTUAL_DISK_INFO_SIZE));
    EXPECT(ERROR_INVALID_HANDLE, try_info(&o, GET_VIRTUAL_DISK_INFO_SIZE));
    EXPECT(ERROR_INVALID_HANDLE, GetVirtualDiskOperationProgress(handle, &o, &p)); /* P-06 */
    handle = open_v2("h.vhdx");
    EXPECT_LAST_ERROR(ERROR_INVALID_HANDLE, SetEvent(handle));
    /* An event resets itself when one thread has seen it. */
    EXPECT(WAIT_TIMEOUT, WaitForSingleObject(event, 0));
    CHECK(SetEvent(event));
    EXPECT(WAIT_OBJECT_0, WaitForSingleObject(event, INFINITE));
    EXPECT(WAIT_TIMEOUT, WaitForSingleObject(event, 1));
    CHECK(SetEvent(event) && ResetEvent(event));
    EXPECT(WAIT_TIMEOUT, WaitForSingleObject(event, 0));
    EXPECT(WAIT_OBJECT_0, WaitForSingleObject(handle, 0));
    close_handle(event);
    EXPECT(WAIT_FAILED, WaitForSingleObject(event, 0));
    close_handle(handle);
}

int main(int argc, char **argv) {
    start(argc, argv);
    create_open_and_use("dynamic.vhdx", CREATE_VIRTUAL_DISK_FLAG_NONE);
    create_open_and_use("fixed.vhdx", CREATE_VIRTUAL_DISK_FLAG_FULL_PHYSICAL_ALLOCATION);
    create_open_and_use("dynamic.vhd", CREATE_VIRTUAL_DISK_FLAG_NONE);
    create_open_and_use("fixed.vhd", CREATE_VIRTUAL_DISK_FLAG_FULL_PHYSICAL_ALLOCATION);
    version_1();
    shared_disks_and_rights();
    sources_and_parents();
    reading_and_writing();
    attachments_and_handles();
    handles();
    return 0;
}
