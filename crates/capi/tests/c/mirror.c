/* MirrorVirtualDisk and BreakMirrorVirtualDisk (contract, 2.16 and P-40 to P-46). */
#include "check.h"

/* P-40: pending for good; equal values say "the same". P-45: later writes do not undo that for good. */
static void p_40_and_45_pending_and_equal(HANDLE disk, OVERLAPPED *o) {
    int i;
    wait_mirrored(disk, o);
    for (i = 0; i < 20; i++) {
        put(disk, (ULONGLONG)i * MB / 2, i + 1);
        EXPECT(ERROR_IO_PENDING, progress(disk, o).OperationStatus);
    }
    wait_mirrored(disk, o);
    EXPECT(WAIT_TIMEOUT, WaitForSingleObject(o->hEvent, 0));
}

/* P-43: broken, the copy becomes the disk and the operation ends well. */
static void p_43_break(void) {
    HANDLE disk = create("source.vhdx", 32 * MB);
    OVERLAPPED o = with_event();
    attach(disk);
    put(disk, 20 * MB, 0x77);
    EXPECT(ERROR_VHD_INVALID_STATE, BreakMirrorVirtualDisk(disk));
    EXPECT(ERROR_IO_PENDING, start_mirror(disk, "copy.vhdx", MIRROR_VIRTUAL_DISK_FLAG_NONE, &o));
    p_40_and_45_pending_and_equal(disk, &o);
    EXPECT(ERROR_SUCCESS, BreakMirrorVirtualDisk(disk));
    EXPECT(ERROR_SUCCESS, finish(disk, &o));
    EXPECT(WAIT_OBJECT_0, WaitForSingleObject(o.hEvent, 0));
    put(disk, 0, 0x99);
    CHECK(get(disk, 20 * MB) == 0x77 && get(disk, MB) == 3);
    {
        /* The disk is now that of the copy, also for who only asks; the old file is a disk of its own. */
        HANDLE asks;
        EXPECT(ERROR_SUCCESS, try_open("copy.vhdx", OPEN_VIRTUAL_DISK_FLAG_NONE, TRUE, FALSE, &asks));
        CHECK(info(asks, GET_VIRTUAL_DISK_INFO_IS_LOADED).IsLoaded);
        close_handle(asks);
        EXPECT(ERROR_SUCCESS, try_open("source.vhdx", OPEN_VIRTUAL_DISK_FLAG_NONE, TRUE, FALSE, &asks));
        CHECK(!info(asks, GET_VIRTUAL_DISK_INFO_IS_LOADED).IsLoaded);
        close_handle(asks);
    }
    close_handle(disk);
    CHECK(get_from("copy.vhdx", 0) == 0x99 && get_from("source.vhdx", 0) == 1);
    CHECK(get_from("copy.vhdx", 20 * MB) == 0x77);
    close_handle(o.hEvent);
}

/* P-42: cancelled, the disk stays what it was. EXISTING_FILE. */
static void p_42_cancel(void) {
    HANDLE disk = open_v2("source.vhdx");
    OVERLAPPED o = with_event();
    EXPECT(ERROR_FILE_EXISTS, start_mirror(disk, "copy.vhdx", MIRROR_VIRTUAL_DISK_FLAG_NONE, &o));
    EXPECT(ERROR_FILE_NOT_FOUND, start_mirror(disk, "none.vhdx", MIRROR_VIRTUAL_DISK_FLAG_EXISTING_FILE, &o));
    attach(disk);
    EXPECT(ERROR_IO_PENDING, start_mirror(disk, "copy.vhdx", MIRROR_VIRTUAL_DISK_FLAG_EXISTING_FILE, &o));
    wait_mirrored(disk, &o);
    CHECK(CancelIoEx(disk, &o));
    EXPECT(ERROR_OPERATION_ABORTED, finish(disk, &o));
    EXPECT(ERROR_VHD_INVALID_STATE, BreakMirrorVirtualDisk(disk));
    put(disk, 0, 0x44);
    close_handle(disk);
    CHECK(get_from("source.vhdx", 0) == 0x44);
    close_handle(o.hEvent);
}

/* P-41: any other status before the break says that it failed, and why. */
static void p_41_failure(void) {
    HANDLE disk = open_v2("source.vhdx"), small = create("small.vhdx", 8 * MB);
    OVERLAPPED o = with_event();
    close_handle(small);
    EXPECT(ERROR_VHD_INVALID_SIZE,
           finish_started(start_mirror(disk, "small.vhdx", MIRROR_VIRTUAL_DISK_FLAG_EXISTING_FILE, &o), disk, &o));
    close_handle(disk);
    close_handle(o.hEvent);
}

/* P-44: without an OVERLAPPED nobody could end it. P-46: a fork is not there, and says so. */
static void p_44_and_46(void) {
    HANDLE disk = open_v2("source.vhdx"), v1;
    OVERLAPPED o = at_offset(0);
    FORK_VIRTUAL_DISK_PARAMETERS p;
    EXPECT(ERROR_INVALID_PARAMETER, start_mirror(disk, "p44.vhdx", MIRROR_VIRTUAL_DISK_FLAG_NONE, NULL));
    EXPECT(ERROR_NOT_SUPPORTED, start_mirror(disk, "p44.vhdx", MIRROR_VIRTUAL_DISK_FLAG_SKIP_MIRROR_ACTIVATION, &o));
    memset(&p, 0, sizeof p);
    p.Version = FORK_VIRTUAL_DISK_VERSION_1;
    p.Version1.ForkedVirtualDiskPath = at("fork.vhdx");
    EXPECT(ERROR_INVALID_PARAMETER, ForkVirtualDisk(disk, FORK_VIRTUAL_DISK_FLAG_NONE, &p, NULL));
    EXPECT(ERROR_NOT_SUPPORTED, ForkVirtualDisk(disk, FORK_VIRTUAL_DISK_FLAG_NONE, &p, &o));
    EXPECT(ERROR_NOT_SUPPORTED, CompleteForkVirtualDisk(disk));
    close_handle(disk);
    v1 = open_v1("source.vhdx", VIRTUAL_DISK_ACCESS_ALL, 1);
    EXPECT(ERROR_ACCESS_DENIED, start_mirror(v1, "p44.vhdx", MIRROR_VIRTUAL_DISK_FLAG_NONE, &o));
    close_handle(v1);
}

int main(int argc, char **argv) {
    start(argc, argv);
    p_43_break();
    p_42_cancel();
    p_41_failure();
    p_44_and_46();
    return 0;
}
