/* Disks as devices of the system (contract, 2.3 to 2.7): as root, with the vhdkit command to serve them. */
#include "check.h"

#include <fcntl.h>
#include <unistd.h>

/* The file under a loop device, which names the attachment; nothing for other devices. As soon as a device is free, another
 * process may have one of the same name. */
static void read_mark(const char *device, char mark[256]) {
    char path[512];
    FILE *file;
    memset(mark, 0, 256);
    snprintf(path, sizeof path, "/sys/block/%s/loop/backing_file", strrchr(device, '/') + 1);
    file = fopen(path, "r");
    if (file) {
        CHECK(fgets(mark, 256, file) != NULL || mark[0] == 0);
        fclose(file);
    }
}

/* The device's path as bytes. */
static const char *device_of(HANDLE handle) {
    static char path[256];
    WCHAR wide[256];
    ULONG size = 0, needed;
    EXPECT(ERROR_INSUFFICIENT_BUFFER, GetVirtualDiskPhysicalPath(handle, &size, NULL));
    needed = size;
    size = sizeof wide;
    EXPECT(ERROR_SUCCESS, GetVirtualDiskPhysicalPath(handle, &size, wide));
    CHECK(size == needed && wide[size / 2 - 1] == 0);
    CHECK(WideCharToMultiByte(CP_UTF8, 0, wide, -1, path, sizeof path, NULL, NULL) > 0);
    CHECK(strncmp(path, "/dev/", 5) == 0);
    return path;
}

/* True if the device is in the list of all, and is still the one that was marked. */
static int is_listed(const char *device, const char *mark) {
    char now[256];
    ULONG size = 0;
    DWORD code;
    WCHAR *list = NULL, *at;
    char path[256];
    int found = 0;
    /* Disks of others come and go. */
    while ((code = GetAllAttachedVirtualDiskPhysicalPaths(&size, list)) == ERROR_INSUFFICIENT_BUFFER) {
        free(list);
        list = (WCHAR *)calloc(1, size += 64);
    }
    EXPECT(ERROR_SUCCESS, code);
    for (at = list; list && size >= 4 && *at; at += strlen(path) + 1) {
        CHECK(WideCharToMultiByte(CP_UTF8, 0, at, -1, path, sizeof path, NULL, NULL) > 0);
        found |= strcmp(path, device) == 0;
    }
    free(list);
    read_mark(device, now);
    return found && strcmp(now, mark) == 0;
}

static void write_device(const char *device, off_t offset, int byte) {
    unsigned char sector[512];
    int file = open(device, O_RDWR);
    CHECK(file >= 0);
    memset(sector, byte, sizeof sector);
    CHECK(pwrite(file, sector, sizeof sector, offset) == (ssize_t)sizeof sector);
    CHECK(fsync(file) == 0 && close(file) == 0);
}

static int read_device(const char *device, off_t offset) {
    unsigned char sector[512];
    int file = open(device, O_RDONLY);
    CHECK(file >= 0);
    CHECK(pread(file, sector, sizeof sector, offset) == (ssize_t)sizeof sector);
    close(file);
    return sector[0];
}

static DWORD attach_device(HANDLE handle, int flags) {
    return AttachVirtualDisk(handle, NULL, (ATTACH_VIRTUAL_DISK_FLAG)flags, 0, NULL, NULL);
}

static DWORD flags_of(HANDLE handle, char *device, size_t room) {
    union {
        STORAGE_DEPENDENCY_INFO info;
        char room[4096];
    } u;
    memset(&u, 0, sizeof u);
    u.info.Version = STORAGE_DEPENDENCY_INFO_VERSION_2;
    EXPECT(ERROR_SUCCESS, GetStorageDependencyInformation(handle, GET_STORAGE_DEPENDENCY_FLAG_HOST_VOLUMES, sizeof u, &u.info,
                                                          NULL));
    CHECK(u.info.NumberEntries >= 1);
    CHECK(WideCharToMultiByte(CP_UTF8, 0, u.info.Version2Entries[0].DependencyDeviceName, -1, device, (int)room, NULL,
                              NULL) > 0);
    return (DWORD)u.info.Version2Entries[0].DependencyTypeFlags;
}

static void a_device_is_read_and_written(const char *name) {
    HANDLE disk = create(name, 16 * MB), second = NULL;
    char device[256], mark[256], named[256];
    unsigned char sector[512];
    OVERLAPPED o = with_event();
    DWORD n;
    n = 0;
    EXPECT(ERROR_DEV_NOT_EXIST, GetVirtualDiskPhysicalPath(disk, &n, NULL));
    EXPECT(ERROR_SUCCESS, AttachVirtualDisk(disk, NULL, ATTACH_VIRTUAL_DISK_FLAG_NONE, 0, NULL, &o));
    EXPECT(ERROR_SUCCESS, progress(disk, &o).OperationStatus); /* P-31 */
    strcpy(device, device_of(disk));
    read_mark(device, mark);
    CHECK(is_listed(device, mark));
    CHECK(info(disk, GET_VIRTUAL_DISK_INFO_IS_LOADED).IsLoaded && virtual_size(disk) == 16 * MB);
    CHECK(flags_of(disk, named, sizeof named) == 0 && strcmp(named, device) == 0);
    write_device(device, 5 * MB, 0x5A);
    CHECK(read_device(device, 5 * MB) == 0x5A);

    /* The device has the disk: nothing else changes it, and bytes go through the device. */
    EXPECT(ERROR_SHARING_VIOLATION, attach_device(disk, ATTACH_VIRTUAL_DISK_FLAG_NONE));
    EXPECT(ERROR_SHARING_VIOLATION, attach_device(disk, ATTACH_VIRTUAL_DISK_FLAG_NO_LOCAL_HOST));
    EXPECT(ERROR_VHD_INVALID_STATE, CompactVirtualDisk(disk, COMPACT_VIRTUAL_DISK_FLAG_NONE, NULL, NULL));
    EXPECT(ERROR_VHD_INVALID_STATE, start_mirror(disk, "device-mirror.vhdx", MIRROR_VIRTUAL_DISK_FLAG_NONE, &o));
    {
        OVERLAPPED place = at_offset(0);
        EXPECT_LAST_ERROR(ERROR_NOT_READY, ReadFile(disk, sector, sizeof sector, &n, &place));
    }
    /* A second handle meets the attachment, and may end it. */
    EXPECT(ERROR_SHARING_VIOLATION, try_open_v1(name, VIRTUAL_DISK_ACCESS_METAOPS, 1, &second));
    second = open_v2(name);
    CHECK(strcmp(device, device_of(second)) == 0);
    {
        /* Not while it is in use. */
        int user = open(device, O_RDONLY);
        CHECK(user >= 0);
        EXPECT(ERROR_BUSY, DetachVirtualDisk(second, DETACH_VIRTUAL_DISK_FLAG_NONE, 0));
        close(user);
    }
    detach(second);
    CHECK(!is_listed(device, mark));
    CHECK(!info(disk, GET_VIRTUAL_DISK_INFO_IS_LOADED).IsLoaded);
    close_handle(second);
    /* The first handle goes on with what was written. */
    attach(disk);
    CHECK(get(disk, 5 * MB) == 0x5A);
    detach(disk);
    EXPECT(ERROR_SUCCESS, CompactVirtualDisk(disk, COMPACT_VIRTUAL_DISK_FLAG_NONE, NULL, NULL));
    close_handle(disk);
    close_handle(o.hEvent);
}

static void it_goes_with_the_last_handle(void) {
    HANDLE disk = create("last.vhdx", 8 * MB);
    char device[256], mark[256];
    int i;
    EXPECT(ERROR_SUCCESS, attach_device(disk, ATTACH_VIRTUAL_DISK_FLAG_NONE));
    strcpy(device, device_of(disk));
    read_mark(device, mark);
    close_handle(disk);
    /* First the device goes, then the file is closed. */
    for (i = 0; i < 12000; i++) {
        DWORD code = is_listed(device, mark) ? ERROR_SHARING_VIOLATION
                                             : try_open("last.vhdx", OPEN_VIRTUAL_DISK_FLAG_NONE, FALSE, FALSE, &disk);
        if (code == ERROR_SUCCESS) {
            close_handle(disk);
            return;
        }
        EXPECT(ERROR_SHARING_VIOLATION, code);
        Sleep(10);
    }
    CHECK(!"it has gone within two minutes");
}

static void read_only_and_permanent(void) {
    HANDLE disk = create("permanent.vhdx", 8 * MB), other = NULL;
    char device[256], mark[256], named[256];
    int file;
    attach(disk);
    put(disk, 0, 7);
    detach(disk);
    EXPECT(ERROR_SUCCESS,
           attach_device(disk, ATTACH_VIRTUAL_DISK_FLAG_READ_ONLY | ATTACH_VIRTUAL_DISK_FLAG_PERMANENT_LIFETIME));
    strcpy(device, device_of(disk));
    read_mark(device, mark);
    CHECK(read_device(device, 0) == 7);
    file = open(device, O_RDWR);
    CHECK(file < 0 || pwrite(file, named, 0, 0) <= 0);
    if (file >= 0)
        close(file);
    CHECK(flags_of(disk, named, sizeof named) ==
          (DWORD)(DEPENDENT_DISK_FLAG_READ_ONLY | DEPENDENT_DISK_FLAG_PERMANENT_LIFETIME));
    close_handle(disk);
    /* It is still there, for whoever may detach it, but not for writing. */
    CHECK(is_listed(device, mark));
    EXPECT(ERROR_ACCESS_DENIED, try_open("permanent.vhdx", OPEN_VIRTUAL_DISK_FLAG_NONE, FALSE, FALSE, &other));
    other = open_v1("permanent.vhdx",
                    (VIRTUAL_DISK_ACCESS_MASK)(VIRTUAL_DISK_ACCESS_DETACH | VIRTUAL_DISK_ACCESS_GET_INFO), 0);
    CHECK(strcmp(device, device_of(other)) == 0);
    detach(other);
    close_handle(other);
    CHECK(!is_listed(device, mark));
    close_handle(open_v2("permanent.vhdx"));
}

/* Written through a child, whose parent stays as it is. */
static void a_chain(void) {
    HANDLE disk;
    close_handle(create("chain.vhdx", 8 * MB));
    put_in("chain.vhdx", 512, 3);
    disk = create_child("chain-child.vhdx", "chain.vhdx");
    EXPECT(ERROR_SUCCESS, attach_device(disk, ATTACH_VIRTUAL_DISK_FLAG_NONE));
    CHECK(read_device(device_of(disk), 512) == 3);
    write_device(device_of(disk), 512, 4);
    detach(disk);
    close_handle(disk);
    CHECK(get_from("chain-child.vhdx", 512) == 4 && get_from("chain.vhdx", 512) == 3);
}

static void what_devices_cannot(void) {
    HANDLE disk = create("cannot.vhdx", 8 * MB);
    ATTACH_VIRTUAL_DISK_PARAMETERS p;
    memset(&p, 0, sizeof p);
    p.Version = ATTACH_VIRTUAL_DISK_VERSION_2;
    p.Version2.RestrictedLength = 4096;
    EXPECT(ERROR_NOT_SUPPORTED, AttachVirtualDisk(disk, NULL, ATTACH_VIRTUAL_DISK_FLAG_RESTRICTED_RANGE, 0, &p, NULL));
    EXPECT(ERROR_NOT_SUPPORTED, attach_device(disk, ATTACH_VIRTUAL_DISK_FLAG_AT_BOOT));
    EXPECT(ERROR_VHD_INVALID_STATE, DetachVirtualDisk(disk, DETACH_VIRTUAL_DISK_FLAG_NONE, 0));
    close_handle(disk);
}

int main(int argc, char **argv) {
    start(argc, argv);
    a_device_is_read_and_written("device.vhdx");
    a_device_is_read_and_written("device.vhd");
    it_goes_with_the_last_handle();
    read_only_and_permanent();
    a_chain();
    what_devices_cannot();
    return 0;
}
