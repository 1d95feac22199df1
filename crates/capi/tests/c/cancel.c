/* Cancelling what is under way: a create and a merge (contract, 2.0.6 and P-24, P-25, P-34). Whatever is cancelled can be
 * done again. */
#include "check.h"

#include <sys/stat.h>

#define CHUNK (1u << 20)

/* Fills the first megabytes of a disk, so that there is something to copy. */
static void fill(HANDLE handle, int megabytes, int byte) {
    unsigned char *data = (unsigned char *)malloc(CHUNK);
    int i;
    CHECK(data != NULL);
    memset(data, byte, CHUNK);
    for (i = 0; i < megabytes; i++) {
        OVERLAPPED o = at_offset((ULONGLONG)i * MB);
        DWORD n;
        data[0] = (unsigned char)i;
        CHECK(WriteFile(handle, data, CHUNK, &n, &o) && n == CHUNK);
    }
    free(data);
}

static int exists(const char *name) {
    char path[1024];
    struct stat there;
    snprintf(path, sizeof path, "%s/%s", test_folder, name);
    return stat(path, &there) == 0;
}

static HANDLE create_cached(const char *name, const char *parent, ULONGLONG size) {
    CREATE_VIRTUAL_DISK_PARAMETERS p = creation(size);
    p.Version2.OpenFlags = OPEN_VIRTUAL_DISK_FLAG_CACHED_IO;
    p.Version2.BlockSizeInBytes = 1 << 20;
    if (parent)
        p.Version2.ParentPath = at(parent);
    return create_with(name, CREATE_VIRTUAL_DISK_FLAG_NONE, &p);
}

static int remove_file(const char *name) {
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", test_folder, name);
    return remove(path) == 0;
}

/* What the chain reads, whatever the handle may do with it. */
static int get_through(HANDLE handle, ULONG version, ULONGLONG offset) {
    int byte;
    if (version == 1) { /* the mask has no right to attach */
        unsigned char cdb[10], sector[512];
        RAW_SCSI_VIRTUAL_DISK_PARAMETERS p;
        RAW_SCSI_VIRTUAL_DISK_RESPONSE r;
        memset(&p, 0, sizeof p);
        memset(&r, 0, sizeof r);
        memset(cdb, 0, sizeof cdb);
        cdb[0] = 0x28; /* READ (10) */
        cdb[2] = (unsigned char)(offset / 512 >> 24);
        cdb[3] = (unsigned char)(offset / 512 >> 16);
        cdb[4] = (unsigned char)(offset / 512 >> 8);
        cdb[5] = (unsigned char)(offset / 512);
        cdb[8] = 1;
        p.Version = RAW_SCSI_VIRTUAL_DISK_VERSION_1;
        r.Version = RAW_SCSI_VIRTUAL_DISK_VERSION_1;
        p.Version1.Cdb = cdb;
        p.Version1.CdbLength = sizeof cdb;
        p.Version1.DataBuffer = sector;
        p.Version1.DataTransferLength = sizeof sector;
        EXPECT(ERROR_SUCCESS, RawSCSIVirtualDisk(handle, &p, RAW_SCSI_VIRTUAL_DISK_FLAG_NONE, &r));
        CHECK(r.Version1.ScsiStatus == 1 && r.Version1.DataTransferLength == sizeof sector);
        return sector[0];
    }
    attach(handle);
    byte = get(handle, offset);
    detach(handle);
    return byte;
}

enum way { BY_OVERLAPPED, BY_HANDLE, BY_THREAD, BY_CLOSING };

static void cancel(HANDLE handle, OVERLAPPED *o, enum way way) {
    switch (way) {
    case BY_OVERLAPPED:
        CancelIoEx(handle, o);
        break;
    case BY_HANDLE:
        CancelIoEx(handle, NULL);
        break;
    case BY_THREAD:
        CancelIo(handle);
        break;
    case BY_CLOSING:
        close_handle(handle);
        break;
    }
}

/* The handle that a create gives out at once is the one to cancel with. What is cancelled leaves no file. */
static void creating(enum way way) {
    int attempts;
    for (attempts = 0; attempts < 20; attempts++) {
        CREATE_VIRTUAL_DISK_PARAMETERS p = creation(0);
        OVERLAPPED o = with_event();
        HANDLE handle = NULL;
        DWORD status, n;
        p.Version2.SourcePath = at("source.vhdx");
        EXPECT(ERROR_IO_PENDING, CreateVirtualDisk(any_type(), at("target.vhd"), VIRTUAL_DISK_ACCESS_NONE, NULL,
                                                   CREATE_VIRTUAL_DISK_FLAG_NONE, 0, &p, &o, &handle));
        cancel(handle, &o, way);
        EXPECT(WAIT_OBJECT_0, WaitForSingleObject(o.hEvent, INFINITE));
        close_handle(o.hEvent);
        if (way == BY_CLOSING) {
            VIRTUAL_DISK_PROGRESS progress;
            EXPECT(ERROR_INVALID_HANDLE, GetVirtualDiskOperationProgress(handle, &o, &progress));
            CHECK(HasOverlappedIoCompleted(&o));
            if (!exists("target.vhd"))
                return;
            CHECK(remove_file("target.vhd"));
            continue;
        }
        status = progress(handle, &o).OperationStatus;
        if (status == ERROR_OPERATION_ABORTED) {
            EXPECT_LAST_ERROR(ERROR_OPERATION_ABORTED, GetOverlappedResult(handle, &o, &n, TRUE));
            EXPECT_LAST_ERROR(ERROR_NOT_FOUND, CancelIoEx(handle, &o));
            EXPECT(ERROR_OPERATION_ABORTED, progress(handle, &o).OperationStatus);
            /* The handle is none of a disk. */
            EXPECT(ERROR_VHD_INVALID_STATE, try_info(handle, GET_VIRTUAL_DISK_INFO_SIZE));
            CHECK(!exists("target.vhd"));
            close_handle(handle);
            return;
        }
        /* It was faster. */
        EXPECT(ERROR_SUCCESS, status);
        close_handle(handle);
        CHECK(remove_file("target.vhd"));
    }
    CHECK(!"cancelled within twenty attempts");
}

static void creating_again(void) {
    CREATE_VIRTUAL_DISK_PARAMETERS p = creation(0);
    HANDLE handle;
    p.Version2.SourcePath = at("source.vhdx");
    handle = create_with("target.vhd", CREATE_VIRTUAL_DISK_FLAG_NONE, &p);
    CHECK(virtual_size(handle) == 64 * MB);
    close_handle(handle);
    CHECK(get_from("target.vhd", 40 * MB + 512) == 0x5A);
}

static void start_merge(HANDLE handle, ULONG version, OVERLAPPED *o) {
    MERGE_VIRTUAL_DISK_PARAMETERS p;
    memset(&p, 0, sizeof p);
    p.Version = (MERGE_VIRTUAL_DISK_VERSION)version;
    if (version == 1) {
        p.Version1.MergeDepth = 1;
    } else {
        p.Version2.MergeSourceDepth = 1;
        p.Version2.MergeTargetDepth = 2;
    }
    EXPECT(ERROR_IO_PENDING, MergeVirtualDisk(handle, MERGE_VIRTUAL_DISK_FLAG_NONE, &p, o));
}

/* A merge that was cancelled leaves the child reading as before, and the chain as writable as it was. */
static void merging(ULONG version, enum way way) {
    int attempts;
    for (attempts = 0; attempts < 20; attempts++) {
        OVERLAPPED o = with_event();
        HANDLE handle = create_cached("base.vhdx", NULL, 64 * MB);
        DWORD status;
        close_handle(handle);
        handle = create_cached("child.vhdx", "base.vhdx", 0);
        attach(handle);
        fill(handle, 48, 0x33);
        close_handle(handle);
        handle = version == 1 ? open_v1("child.vhdx", VIRTUAL_DISK_ACCESS_METAOPS, 2) : open_v2("child.vhdx");
        start_merge(handle, version, &o);
        cancel(handle, &o, way);
        EXPECT(WAIT_OBJECT_0, WaitForSingleObject(o.hEvent, INFINITE));
        if (way == BY_CLOSING) {
            handle = version == 1 ? open_v1("child.vhdx", VIRTUAL_DISK_ACCESS_METAOPS, 2) : open_v2("child.vhdx");
            status = (DWORD)o.Internal == 0 ? ERROR_SUCCESS : ERROR_OPERATION_ABORTED;
            if (status != ERROR_SUCCESS)
                CHECK((DWORD)o.Internal == 0xC0000120u); /* STATUS_CANCELLED */
        } else {
            status = progress(handle, &o).OperationStatus;
        }
        if (status == ERROR_OPERATION_ABORTED) {
            CHECK(get_through(handle, version, 40 * MB + 512) == 0x33);
            start_merge(handle, version, &o);
            EXPECT(ERROR_SUCCESS, finish(handle, &o));
        } else {
            EXPECT(ERROR_SUCCESS, status);
        }
        close_handle(handle);
        close_handle(o.hEvent);
        CHECK(get_from("base.vhdx", 40 * MB + 512) == 0x33 && get_from("base.vhdx", 60 * MB) == 0);
        CHECK(get_from("child.vhdx", 47 * MB + 512) == 0x33);
        CHECK(remove_file("child.vhdx") && remove_file("base.vhdx"));
        if (status == ERROR_OPERATION_ABORTED)
            return;
    }
    CHECK(!"cancelled within twenty attempts");
}

int main(int argc, char **argv) {
    HANDLE source;
    start(argc, argv);
    source = create_cached("source.vhdx", NULL, 64 * MB);
    attach(source);
    fill(source, 48, 0x5A);
    close_handle(source);
    creating(BY_OVERLAPPED);
    creating(BY_HANDLE);
    creating(BY_THREAD);
    creating(BY_CLOSING);
    creating_again();
    merging(1, BY_OVERLAPPED);
    merging(2, BY_OVERLAPPED);
    merging(2, BY_CLOSING);
    return 0;
}
