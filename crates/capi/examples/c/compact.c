/* Makes a disk's file as small as its content allows, but stops when the time for it is over.
 *
 *     compact DISK [MILLISECONDS]
 *
 * A compaction that was cancelled has done part of its work: the disk reads as before, and the next one goes on. */
#include <windows.h>
#include <initguid.h>
#include <virtdisk.h>

#include <stdio.h>
#include <stdlib.h>

#include "arguments.h"

static ULONGLONG FileSizeInMegabytes(HANDLE disk) {
    GET_VIRTUAL_DISK_INFO info;
    ULONG size = sizeof(info);

    info.Version = GET_VIRTUAL_DISK_INFO_SIZE;
    if (GetVirtualDiskInformation(disk, &size, &info, NULL) != ERROR_SUCCESS)
        return 0;
    return info.Size.PhysicalSize / (1024 * 1024);
}

int main(int argc, char **argv) {
    VIRTUAL_STORAGE_TYPE storageType;
    OPEN_VIRTUAL_DISK_PARAMETERS openParameters;
    COMPACT_VIRTUAL_DISK_PARAMETERS parameters;
    VIRTUAL_DISK_PROGRESS progress;
    OVERLAPPED overlapped;
    HANDLE disk = INVALID_HANDLE_VALUE;
    DWORD limit = INFINITE, status;
    LPCWSTR path;

    if (argc < 2 || argc > 3 || (path = FullPath(argv[1])) == NULL) {
        fprintf(stderr, "usage: compact DISK [MILLISECONDS]\n");
        return 2;
    }
    if (argc == 3)
        limit = (DWORD)strtoul(argv[2], NULL, 10);

    ZeroMemory(&storageType, sizeof(storageType));
    ZeroMemory(&openParameters, sizeof(openParameters));
    openParameters.Version = OPEN_VIRTUAL_DISK_VERSION_2;
    status = OpenVirtualDisk(&storageType, path, VIRTUAL_DISK_ACCESS_NONE, OPEN_VIRTUAL_DISK_FLAG_NONE, &openParameters,
                             &disk);
    if (status != ERROR_SUCCESS) {
        printf("not opened: error %u (0x%X)\n", (unsigned)status, (unsigned)status);
        return 1;
    }
    printf("the file has %u MB\n", (unsigned)FileSizeInMegabytes(disk));

    ZeroMemory(&parameters, sizeof(parameters));
    parameters.Version = COMPACT_VIRTUAL_DISK_VERSION_1;
    ZeroMemory(&overlapped, sizeof(overlapped));
    overlapped.hEvent = CreateEvent(NULL, TRUE, FALSE, NULL);
    status = CompactVirtualDisk(disk, COMPACT_VIRTUAL_DISK_FLAG_NONE, &parameters, &overlapped);
    if (status == ERROR_IO_PENDING || status == ERROR_SUCCESS) {
        if (WaitForSingleObject(overlapped.hEvent, limit) == WAIT_TIMEOUT) {
            printf("time is over\n");
            /* This asks. The operation ends when its files are as they should be. */
            CancelIoEx(disk, &overlapped);
            WaitForSingleObject(overlapped.hEvent, INFINITE);
        }
        status = GetVirtualDiskOperationProgress(disk, &overlapped, &progress);
        if (status == ERROR_SUCCESS)
            status = progress.OperationStatus;
    }

    if (status == ERROR_OPERATION_ABORTED)
        printf("cancelled: run it again to go on\n");
    else if (status != ERROR_SUCCESS)
        printf("not compacted: error %u (0x%X)\n", (unsigned)status, (unsigned)status);
    else
        printf("compacted: the file has %u MB\n", (unsigned)FileSizeInMegabytes(disk));
    CloseHandle(overlapped.hEvent);
    CloseHandle(disk);
    return status == ERROR_SUCCESS ? 0 : 1;
}
