/* The rules of the progress contract (contract, 6). */
#include "check.h"

static HANDLE disk;

/* P-01: a failed operation is still a good answer. P-20, P-23: the status is its result. P-33 */
static void p_01_the_fate_is_in_the_status(void) {
    CREATE_VIRTUAL_DISK_PARAMETERS p = creation(8 * MB);
    HANDLE fixed = create_with("p01.vhd", CREATE_VIRTUAL_DISK_FLAG_FULL_PHYSICAL_ALLOCATION, &p);
    OVERLAPPED o = with_event();
    DWORD n;
    EXPECT(ERROR_IO_PENDING, CompactVirtualDisk(fixed, COMPACT_VIRTUAL_DISK_FLAG_NONE, NULL, &o));
    EXPECT(ERROR_VHD_INVALID_TYPE, finish(fixed, &o));
    EXPECT(WAIT_OBJECT_0, WaitForSingleObject(o.hEvent, INFINITE));
    EXPECT_LAST_ERROR(ERROR_VHD_INVALID_TYPE, GetOverlappedResult(fixed, &o, &n, TRUE));
    EXPECT(ERROR_VHD_INVALID_TYPE, CompactVirtualDisk(fixed, COMPACT_VIRTUAL_DISK_FLAG_NONE, NULL, NULL));
    close_handle(o.hEvent);
    close_handle(fixed);
}

/* P-03: the address counts, not the content. P-04: and the handle. */
static void p_03_the_same_address(HANDLE other) {
    OVERLAPPED o = with_event(), copy;
    VIRTUAL_DISK_PROGRESS p;
    EXPECT(ERROR_IO_PENDING, start_mirror(disk, "p03.vhdx", MIRROR_VIRTUAL_DISK_FLAG_NONE, &o));
    memcpy(&copy, &o, sizeof o);
    EXPECT(ERROR_INVALID_PARAMETER, GetVirtualDiskOperationProgress(disk, &copy, &p));
    EXPECT(ERROR_INVALID_PARAMETER, GetVirtualDiskOperationProgress(other, &o, &p));
    EXPECT(ERROR_IO_PENDING, progress(disk, &o).OperationStatus);
    EXPECT_LAST_ERROR(ERROR_NOT_FOUND, CancelIoEx(disk, &copy));
    CHECK(CancelIoEx(disk, &o));
    EXPECT(ERROR_OPERATION_ABORTED, finish(disk, &o));
    close_handle(o.hEvent);
}

/* P-02, P-05, P-06: no operation, no answer; and nothing is broken by having asked. */
static void p_05_never_an_operation(void) {
    static OVERLAPPED o; /* at an address that no operation had before */
    VIRTUAL_DISK_PROGRESS p;
    COMPACT_VIRTUAL_DISK_PARAMETERS bad;
    DWORD n;
    o = with_event();
    EXPECT(ERROR_INVALID_PARAMETER, GetVirtualDiskOperationProgress(disk, &o, &p));
    EXPECT(ERROR_INVALID_PARAMETER, GetVirtualDiskOperationProgress(disk, NULL, &p));
    EXPECT(ERROR_INVALID_PARAMETER, GetVirtualDiskOperationProgress(disk, &o, NULL));
    /* P-30: it did not start, so it is none. */
    memset(&bad, 0, sizeof bad);
    EXPECT(ERROR_INVALID_PARAMETER, CompactVirtualDisk(disk, COMPACT_VIRTUAL_DISK_FLAG_NONE, &bad, &o));
    EXPECT(ERROR_INVALID_PARAMETER, GetVirtualDiskOperationProgress(disk, &o, &p));
    /* Nor if one had it before. */
    EXPECT(ERROR_SUCCESS, finish_started(CompactVirtualDisk(disk, COMPACT_VIRTUAL_DISK_FLAG_NONE, NULL, &o), disk, &o));
    EXPECT(ERROR_INVALID_PARAMETER, CompactVirtualDisk(disk, COMPACT_VIRTUAL_DISK_FLAG_NONE, &bad, &o));
    EXPECT(ERROR_INVALID_PARAMETER, GetVirtualDiskOperationProgress(disk, &o, &p));
    CHECK(ResetEvent(o.hEvent));
    EXPECT(WAIT_TIMEOUT, WaitForSingleObject(o.hEvent, 0));
    EXPECT_LAST_ERROR(ERROR_NOT_FOUND, CancelIoEx(disk, &o));
    CHECK(GetOverlappedResult(disk, &o, &n, FALSE));
    EXPECT(ERROR_INVALID_HANDLE, GetVirtualDiskOperationProgress(NULL, &o, &p)); /* P-06 */
    EXPECT(ERROR_INVALID_HANDLE, GetVirtualDiskOperationProgress(INVALID_HANDLE_VALUE, &o, &p));
    /* An event that is none keeps the operation from starting. */
    CHECK(CloseHandle(o.hEvent));
    EXPECT(ERROR_INVALID_HANDLE, CompactVirtualDisk(disk, COMPACT_VIRTUAL_DISK_FLAG_NONE, NULL, &o));
}

/* P-10: over means that it has happened. P-20, P-21: the status stays. P-22: never pending after the event. */
static void p_20_to_22_the_end(void) {
    EXPAND_VIRTUAL_DISK_PARAMETERS p;
    OVERLAPPED o = with_event();
    DWORD n = 7;
    int i;
    memset(&p, 0, sizeof p);
    p.Version = EXPAND_VIRTUAL_DISK_VERSION_1;
    for (i = 1; i <= 50; i++) {
        p.Version1.NewSize = virtual_size(disk) + 1 * MB;
        EXPECT(ERROR_IO_PENDING, ExpandVirtualDisk(disk, EXPAND_VIRTUAL_DISK_FLAG_NONE, &p, &o));
        EXPECT(WAIT_OBJECT_0, WaitForSingleObject(o.hEvent, INFINITE));
        EXPECT(ERROR_SUCCESS, progress(disk, &o).OperationStatus); /* P-22 */
        CHECK(HasOverlappedIoCompleted(&o));
        CHECK(GetOverlappedResult(disk, &o, &n, FALSE)); /* P-23 */
        CHECK(virtual_size(disk) == p.Version1.NewSize);
        EXPECT(ERROR_SUCCESS, progress(disk, &o).OperationStatus); /* P-21, and P-26 in the next round */
        EXPECT(ERROR_SUCCESS, progress(disk, &o).OperationStatus);
    }
    close_handle(o.hEvent);
}

/* P-24: cancelled ends as 995; cancelling what is over changes nothing. CancelIo: what this thread started. */
static void p_24_cancel(void) {
    OVERLAPPED o = with_event();
    HANDLE handle;
    DWORD n;
    EXPECT(ERROR_IO_PENDING, start_mirror(disk, "p24.vhdx", MIRROR_VIRTUAL_DISK_FLAG_NONE, &o));
    CHECK(CancelIo(disk));
    EXPECT(WAIT_OBJECT_0, WaitForSingleObject(o.hEvent, INFINITE));
    EXPECT(ERROR_OPERATION_ABORTED, progress(disk, &o).OperationStatus);
    EXPECT_LAST_ERROR(ERROR_OPERATION_ABORTED, GetOverlappedResult(disk, &o, &n, TRUE));
    EXPECT_LAST_ERROR(ERROR_NOT_FOUND, CancelIoEx(disk, &o));
    EXPECT_LAST_ERROR(ERROR_NOT_FOUND, CancelIoEx(disk, NULL));
    CHECK(CancelIo(disk));
    EXPECT(ERROR_OPERATION_ABORTED, progress(disk, &o).OperationStatus);
    EXPECT(ERROR_FILE_NOT_FOUND, try_open("p24.vhdx", OPEN_VIRTUAL_DISK_FLAG_NONE, FALSE, TRUE, &handle));
    close_handle(o.hEvent);
}

/* P-25: closing cancels; nothing can be asked afterwards, and nothing is written to the OVERLAPPED. */
static void p_25_close(void) {
    HANDLE handle = create("p25.vhdx", 8 * MB);
    OVERLAPPED *o = (OVERLAPPED *)calloc(1, sizeof *o);
    VIRTUAL_DISK_PROGRESS p;
    HANDLE event = CreateEventW(NULL, TRUE, FALSE, NULL);
    o->hEvent = event;
    EXPECT(ERROR_IO_PENDING, start_mirror(handle, "p25-copy.vhdx", MIRROR_VIRTUAL_DISK_FLAG_NONE, o));
    close_handle(handle);
    CHECK(HasOverlappedIoCompleted(o));
    EXPECT(ERROR_INVALID_HANDLE, GetVirtualDiskOperationProgress(handle, o, &p));
    free(o);
    EXPECT(WAIT_OBJECT_0, WaitForSingleObject(event, 0));
    close_handle(event);
    close_handle(open_v2("p25.vhdx"));
}

/* P-26: an OVERLAPPED under way cannot be used again. P-27: a second operation of the kind is refused as busy. */
static void p_26_and_27_two_at_once(void) {
    OVERLAPPED o = with_event(), second = with_event();
    unsigned char sector[512];
    VIRTUAL_DISK_PROGRESS p;
    EXPECT(ERROR_IO_PENDING, start_mirror(disk, "p26.vhdx", MIRROR_VIRTUAL_DISK_FLAG_NONE, &o));
    EXPECT(ERROR_INVALID_PARAMETER, start_mirror(disk, "p26-again.vhdx", MIRROR_VIRTUAL_DISK_FLAG_NONE, &o));
    EXPECT(ERROR_BUSY, CompactVirtualDisk(disk, COMPACT_VIRTUAL_DISK_FLAG_NONE, NULL, &second));
    EXPECT(ERROR_INVALID_PARAMETER, GetVirtualDiskOperationProgress(disk, &second, &p));
    EXPECT_LAST_ERROR(ERROR_INVALID_PARAMETER, ReadFile(disk, sector, sizeof sector, NULL, &o));
    EXPECT(ERROR_IO_PENDING, progress(disk, &o).OperationStatus);
    CHECK(CancelIoEx(disk, NULL));
    EXPECT(ERROR_OPERATION_ABORTED, finish(disk, &o));
    EXPECT(ERROR_SUCCESS, finish_started(CompactVirtualDisk(disk, COMPACT_VIRTUAL_DISK_FLAG_NONE, NULL, &o), disk, &o));
    close_handle(o.hEvent);
    close_handle(second.hEvent);
}

/* P-31: finished at once is an operation that is over. P-32: a start resets the event and says pending. */
static void p_31_and_32_the_start(void) {
    OVERLAPPED o = with_event();
    HANDLE handle = create("p31.vhdx", 8 * MB);
    DWORD n;
    EXPECT(ERROR_SUCCESS, AttachVirtualDisk(handle, NULL, raw(0), 0, NULL, &o));
    EXPECT(ERROR_SUCCESS, progress(handle, &o).OperationStatus);
    EXPECT(WAIT_OBJECT_0, WaitForSingleObject(o.hEvent, 0));
    EXPECT(ERROR_IO_PENDING, start_mirror(handle, "p32.vhdx", MIRROR_VIRTUAL_DISK_FLAG_NONE, &o));
    EXPECT(WAIT_TIMEOUT, WaitForSingleObject(o.hEvent, 0));
    CHECK(!HasOverlappedIoCompleted(&o) && o.Internal == STATUS_PENDING);
    EXPECT_LAST_ERROR(ERROR_IO_INCOMPLETE, GetOverlappedResult(handle, &o, &n, FALSE));
    close_handle(handle);
    close_handle(o.hEvent);
}

/* P-34: the handle is there before the operation is over. P-04: and it is the one to ask with. */
static void p_34_create(void) {
    CREATE_VIRTUAL_DISK_PARAMETERS p = creation(64 * MB);
    OVERLAPPED o = with_event();
    HANDLE handle = NULL;
    EXPECT(ERROR_IO_PENDING,
           CreateVirtualDisk(any_type(), at("p34.vhdx"), VIRTUAL_DISK_ACCESS_NONE, NULL,
                             CREATE_VIRTUAL_DISK_FLAG_FULL_PHYSICAL_ALLOCATION, 0, &p, &o, &handle));
    CHECK(handle != NULL);
    EXPECT(ERROR_SUCCESS, finish(handle, &o));
    CHECK(virtual_size(handle) == 64 * MB);
    close_handle(handle);

    /* One that fails: its handle can be asked, and closed, and is good for nothing else. */
    p = creation(0);
    p.Version2.SourcePath = at("missing.vhdx");
    EXPECT(ERROR_IO_PENDING, CreateVirtualDisk(any_type(), at("p34b.vhdx"), VIRTUAL_DISK_ACCESS_NONE, NULL,
                                               CREATE_VIRTUAL_DISK_FLAG_NONE, 0, &p, &o, &handle));
    EXPECT(ERROR_FILE_NOT_FOUND, finish(handle, &o));
    EXPECT(ERROR_VHD_INVALID_STATE, try_info(handle, GET_VIRTUAL_DISK_INFO_SIZE));
    close_handle(handle);
    EXPECT(ERROR_FILE_NOT_FOUND, try_open("p34b.vhdx", OPEN_VIRTUAL_DISK_FLAG_NONE, FALSE, TRUE, &handle));
    close_handle(o.hEvent);
}

int main(int argc, char **argv) {
    HANDLE other;
    start(argc, argv);
    disk = create("disk.vhdx", 64 * MB);
    other = create("other.vhdx", 8 * MB);
    p_01_the_fate_is_in_the_status();
    p_03_the_same_address(other);
    p_05_never_an_operation();
    p_20_to_22_the_end();
    p_24_cancel();
    p_25_close();
    p_26_and_27_two_at_once();
    p_31_and_32_the_start();
    p_34_create();
    close_handle(disk);
    close_handle(other);
    return 0;
}
