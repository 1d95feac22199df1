/* Moves a disk to another file while it is in use.
 *
 *     mirror DISK COPY
 *
 * The disk is attached without a local host, so its handle reads and writes; here one sector is written before, during
 * and after the move. */
#include <windows.h>
#include <initguid.h>
#include <virtdisk.h>

#include <stdio.h>
#include <string.h>

#include "arguments.h"

#define SECTOR 512

static DWORD WriteText(HANDLE disk, ULONGLONG offset, const char *text) {
    char sector[SECTOR];
    OVERLAPPED place;
    DWORD written = 0;

    ZeroMemory(sector, sizeof(sector));
    strncpy(sector, text, sizeof(sector) - 1);
    ZeroMemory(&place, sizeof(place));
    place.Offset = (DWORD)offset;
    place.OffsetHigh = (DWORD)(offset >> 32);
    return WriteFile(disk, sector, sizeof(sector), &written, &place) ? ERROR_SUCCESS : GetLastError();
}

static DWORD PrintText(HANDLE disk, ULONGLONG offset) {
    char sector[SECTOR];
    OVERLAPPED place;
    DWORD read = 0;

    ZeroMemory(&place, sizeof(place));
    place.Offset = (DWORD)offset;
    place.OffsetHigh = (DWORD)(offset >> 32);
    if (!ReadFile(disk, sector, sizeof(sector), &read, &place))
        return GetLastError();
    printf("  %.*s\n", (int)sizeof(sector), sector);
    return ERROR_SUCCESS;
}

static DWORD Open(LPCWSTR path, HANDLE *disk) {
    VIRTUAL_STORAGE_TYPE storageType;
    OPEN_VIRTUAL_DISK_PARAMETERS parameters;
    DWORD status;

    ZeroMemory(&storageType, sizeof(storageType));
    ZeroMemory(&parameters, sizeof(parameters));
    parameters.Version = OPEN_VIRTUAL_DISK_VERSION_2;
    status = OpenVirtualDisk(&storageType, path, VIRTUAL_DISK_ACCESS_NONE, OPEN_VIRTUAL_DISK_FLAG_NONE, &parameters, disk);
    if (status == ERROR_SUCCESS)
        status = AttachVirtualDisk(*disk, NULL, ATTACH_VIRTUAL_DISK_FLAG_NO_LOCAL_HOST, 0, NULL, NULL);
    return status;
}

/* Mirrored completely: both values are the same while the operation goes on. Any other status means that it failed. */
static DWORD WaitUntilMirrored(HANDLE disk, LPOVERLAPPED overlapped) {
    VIRTUAL_DISK_PROGRESS progress;
    DWORD status;

    for (;;) {
        status = GetVirtualDiskOperationProgress(disk, overlapped, &progress);
        if (status != ERROR_SUCCESS)
            return status;
        if (progress.OperationStatus != ERROR_IO_PENDING)
            return progress.OperationStatus;
        if (progress.CurrentValue == progress.CompletionValue)
            return ERROR_SUCCESS;
        Sleep(10);
    }
}

int main(int argc, char **argv) {
    MIRROR_VIRTUAL_DISK_PARAMETERS parameters;
    OVERLAPPED overlapped;
    HANDLE disk = INVALID_HANDLE_VALUE;
    LPCWSTR path, copy;
    DWORD status;

    if (argc != 3 || (path = FullPath(argv[1])) == NULL || (copy = FullPath(argv[2])) == NULL) {
        fprintf(stderr, "usage: mirror DISK COPY\n");
        return 2;
    }

    status = Open(path, &disk);
    if (status == ERROR_SUCCESS)
        status = WriteText(disk, 0 * SECTOR, "written before");
    if (status != ERROR_SUCCESS)
        goto Cleanup;

    ZeroMemory(&overlapped, sizeof(overlapped));
    overlapped.hEvent = CreateEvent(NULL, TRUE, FALSE, NULL);
    parameters.Version = MIRROR_VIRTUAL_DISK_VERSION_1;
    parameters.Version1.MirrorVirtualDiskPath = copy;
    status = MirrorVirtualDisk(disk, MIRROR_VIRTUAL_DISK_FLAG_NONE, &parameters, &overlapped);
    if (status != ERROR_IO_PENDING && status != ERROR_SUCCESS)
        goto Cleanup;
    WriteText(disk, 1 * SECTOR, "written meanwhile");
    status = WaitUntilMirrored(disk, &overlapped);
    if (status != ERROR_SUCCESS)
        goto Cleanup;
    printf("mirrored: every write goes to both files\n");

    /* From here on the handle is that of the copy. */
    status = BreakMirrorVirtualDisk(disk);
    if (status != ERROR_SUCCESS)
        goto Cleanup;
    WaitForSingleObject(overlapped.hEvent, INFINITE);
    CloseHandle(overlapped.hEvent);
    printf("moved\n");
    status = WriteText(disk, 2 * SECTOR, "written afterwards");
    CloseHandle(disk);

    status = Open(copy, &disk);
    if (status != ERROR_SUCCESS)
        goto Cleanup;
    printf("in the copy:\n");
    PrintText(disk, 0 * SECTOR);
    PrintText(disk, 1 * SECTOR);
    PrintText(disk, 2 * SECTOR);

Cleanup:
    if (status != ERROR_SUCCESS)
        printf("not moved: error %u (0x%X)\n", (unsigned)status, (unsigned)status);
    if (disk != INVALID_HANDLE_VALUE)
        CloseHandle(disk);
    return status == ERROR_SUCCESS ? 0 : 1;
}
